from tunesmith.testing import conformance
from tunesmith_plugins.samplers import Chain, Greedy, MinP, RepetitionPenalty, Temperature, TopK, TopP


@conformance(
    Greedy(),
    Temperature(temperature=0.7),
    TopK(k=5),
    TopP(p=0.8),
    TopP(p=0.3, min_keep=4),
    MinP(p=0.2),
    RepetitionPenalty(penalty=1.5),
    RepetitionPenalty(penalty=1.5, window=2),
    Chain(),
    Chain(links=(RepetitionPenalty(penalty=1.2), Temperature(temperature=0.8), TopK(k=20), TopP(p=0.9), MinP(p=0.02))),
    Chain(links=(TopP(p=0.9, min_keep=2), Chain(links=(Temperature(temperature=2.0), TopK(k=9)))), draw="greedy"),
)
def test_conforms(check):
    check()

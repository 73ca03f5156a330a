from tunesmith.testing import conformance
from tunesmith_plugins.samplers import (
    XTC,
    AllowedTokens,
    BadWords,
    BiasedSequence,
    Chain,
    Dry,
    DynamicTemperature,
    Epsilon,
    Eta,
    ForcedTokens,
    FrequencyPenalty,
    LengthDecay,
    LogitBias,
    MaxLength,
    MinLength,
    Mirostat,
    NoRepeatNgram,
    PresencePenalty,
    SequenceBias,
    Temperature,
    TopA,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    Watermark,
)


@conformance(
    Typical(mass=0.7),
    Typical(mass=0.2, min_keep=4),
    Epsilon(epsilon=0.02),
    Eta(epsilon=0.02),
    TopA(a=0.3),
    TopNSigma(n=1.5),
    TopH(h=0.5),
    TopH(h=0.5, candidates=20),
    XTC(threshold=0.05, probability=0.5),
    Mirostat(tau=3.0),
    Mirostat(tau=3.0, version=1),
    DynamicTemperature(low=0.5, high=2.0),
    PresencePenalty(penalty=0.7),
    FrequencyPenalty(penalty=0.7, window=3, prompt=True),
    Dry(multiplier=0.8),
    LogitBias(bias={"3": 1.5, "9": -2.0}),
    SequenceBias(sequences=(BiasedSequence(tokens=(1, 4), bias=2.0), BiasedSequence(tokens=(5,), bias=-1.0))),
    LengthDecay(end=(2,), start=5, factor=1.1),
    Watermark(delta=1.0),
    NoRepeatNgram(size=2),
    BadWords(sequences=((4,), (1, 2))),
    MinLength(end=(2,), tokens=50),
    MaxLength(end=(2,), tokens=300),
    ForcedTokens(at={"200": 3}),
    TopK(k=7, ties="low"),
    TopP(p=0.7, ties="low"),
    TopP(p=0.7, ties="all"),
    Chain(links=(FrequencyPenalty(penalty=0.3), Temperature(temperature=0.7), TopNSigma(n=2.0), Mirostat(tau=4.0))),
)
def test_conforms(check):
    check()


EMPTY = (
    "rows that have lost every allowed token have the status EMPTY, as promised, and the check wants all of them fine"
)


@conformance(
    AllowedTokens(tokens=tuple(range(0, 11, 2))),
    expected_failures={"check_a_removed_token_is_never_drawn": EMPTY},
)
def test_a_mask_conforms(check):
    check()

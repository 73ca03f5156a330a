from tunesmith.testing import conformance
from tunesmith_plugins.decoders import Beam, BestOfN, Stepwise


@conformance(Stepwise(), Beam(beams=3), Beam(beams=2, early_stopping="yes"), BestOfN(n=3))
def test_conforms(check):
    check()

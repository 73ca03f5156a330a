from sampler_links import CONFORMING

from tunesmith.testing import conformance
from tunesmith_plugins.samplers import AllowedTokens


@conformance(*CONFORMING)
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

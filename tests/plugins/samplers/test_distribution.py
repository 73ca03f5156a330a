"""Draws through every link and through a pair for every link, 2^20 each, against the float64 rules (G-tests).

``exhaustive`` takes every pair, in both orders, with 2^18 draws each.

All tests of this file together fail a sound build with a probability of 1e-6; draws are the same every time, besides.
"""

import itertools

import pytest
import torch
from sampler_links import LINKS, registered_links

from tunesmith.testing.samplers import drawer, follows
from tunesmith_plugins.samplers import XTC, Chain, ForcedTokens

pytestmark = pytest.mark.usefixtures("one_thread")

ROW = torch.tensor([0.31, 1.02, -0.43, 0.88, 1.43, -1.21, 0.57])
HISTORY, PROMPT, POSITION = (3, 1, 5, 3, 1), 2, 3
PAIRS = tuple((LINKS[n], LINKS[(n + 11) % len(LINKS)]) for n in range(0, len(LINKS), 2))
"""A pair for every link, half of them first."""
EVERY_PAIR = tuple(itertools.permutations(LINKS, 2))
ALPHA = 1e-6 / (len(LINKS) + len(PAIRS) + len(EVERY_PAIR))


def draws_as_stated(links, oracle, count):
    """Rows of which nothing is left (XTC before a link that leaves one token) are counted as one token more."""
    p = oracle.probabilities(links, ROW.double().numpy(), oracle.place(HISTORY, PROMPT))
    chain = drawer(Chain(links=tuple(links)), history=HISTORY, prompt=PROMPT, empty=len(ROW))
    finding = follows(
        lambda logits, seeds, positions: chain(logits[:, :-1], seeds, positions),
        torch.cat([ROW, torch.tensor([-torch.inf])]),
        torch.from_numpy(p),
        count=count,
        other=POSITION,
        alpha=ALPHA,
    )
    assert finding.ok, str(finding)


def name_of(links):
    return "-".join(link.name_in_chain for link in links)


def test_every_registered_link_is_here():
    assert registered_links() == {link.name_in_chain for link in LINKS}
    assert all(any(link in pair for pair in PAIRS) for link in LINKS)


@pytest.mark.parametrize("link", LINKS, ids=lambda link: name_of([link]))
def test_a_million_draws_through_a_link(link, oracle):
    draws_as_stated([link], oracle, 2**20)


def test_rows_of_which_nothing_is_left_are_counted(oracle):
    links = XTC(threshold=0.17, probability=0.4), ForcedTokens(at={"3": 4})
    p = oracle.probabilities(links, ROW.double().numpy(), oracle.place(HISTORY, PROMPT))
    assert p[-1] == pytest.approx(0.4)
    assert p[4] == pytest.approx(0.6)
    draws_as_stated(links, oracle, 2**16)


@pytest.mark.parametrize("pair", PAIRS, ids=name_of)
def test_a_million_draws_through_a_pair(pair, oracle):
    draws_as_stated(pair, oracle, 2**20)


@pytest.mark.exhaustive
@pytest.mark.parametrize("pair", EVERY_PAIR, ids=name_of)
def test_draws_through_every_pair(pair, oracle):
    draws_as_stated(pair, oracle, 2**18)


def test_every_link_changes_what_is_drawn(oracle):
    """Otherwise the tests above would say nothing of it."""
    plain = oracle.probabilities([], ROW.double().numpy(), oracle.place(HISTORY, PROMPT))
    for link in LINKS:
        p = oracle.probabilities([link], ROW.double().numpy(), oracle.place(HISTORY, PROMPT))
        assert abs(p - plain).max() > 0.01, link

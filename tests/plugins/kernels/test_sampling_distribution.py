"""Draws follow the stated distribution, to the last token, and successive seeds, positions and streams are unrelated.

Seeds are fixed, so a test either always passes or always fails; the thresholds are for p = 1e-6.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest
from torch import Tensor

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Step


def tokens(row: Tensor, steps: list[Step], draws: int, vary: str = "seed") -> Tensor:
    """Draw from one row with consecutive seeds, streams or positions, the others fixed."""
    inputs = {name: torch.full((draws,), 17) for name in ("seed", "stream", "position")}
    inputs[vary] = torch.arange(draws)
    return kernels.sample_chain(row.expand(draws, -1), steps, **inputs).token


def g_test(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the p-value of the G-test, cells of an expectation below 5 pooled."""
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities * counts.sum()
    order = np.argsort(-expected)
    counts, expected = counts[order].astype(float), expected[order]
    large = int((expected >= 5).sum())
    counts = np.append(counts[:large], counts[large:].sum())
    expected = np.append(expected[:large], expected[large:].sum())
    if expected[-1] == 0:
        counts, expected = counts[:-1], expected[:-1]
    terms = np.where(counts > 0, counts * np.log(np.maximum(counts, 1) / expected), 0.0)
    return float(chi2.sf(2 * terms.sum(), len(expected) - 1))


@pytest.mark.parametrize("vary", ["seed", "stream", "position"])
@pytest.mark.parametrize("vocab", [2, 7, 17, 257])
def test_draws_follow_the_softmax(isa: str, vocab: int, vary: str) -> None:
    torch.manual_seed(vocab)
    row = torch.randn(vocab) * 2
    counts = torch.bincount(tokens(row, [], 2**17, vary), minlength=vocab).numpy()
    assert g_test(counts, row.double().softmax(-1).numpy()) > 1e-6


@pytest.mark.parametrize("op", ["temperature", "top_k", "top_p", "min_p"])
def test_draws_follow_the_truncated_softmax(isa: str, op: str) -> None:
    torch.manual_seed(3)
    row = torch.randn(40) * 1.5
    value = {"temperature": 0.5, "top_k": 12.0, "top_p": 0.8, "min_p": 0.1}[op]
    steps = [Step(op, torch.tensor([value], dtype=torch.float64))]
    kept = kernels.apply_chain(row[None], steps).logits[0]
    counts = torch.bincount(tokens(row, steps, 2**16), minlength=40).numpy()
    assert g_test(counts, kept.double().softmax(-1).numpy()) > 1e-6


def test_a_wrong_distribution_would_be_noticed(isa: str) -> None:
    row = torch.zeros(16)
    counts = torch.bincount(tokens(row, [], 2**16), minlength=16).numpy()
    wrong = np.full(16, 1 / 16)
    wrong[0], wrong[1] = 1.12 / 16, 0.88 / 16
    assert g_test(counts, wrong) < 1e-6


def test_a_flat_row_is_reached_everywhere(isa: str) -> None:
    vocab = 10_000
    drawn = tokens(torch.zeros(vocab), [], 8_000).numpy()
    assert kstest((drawn + 0.5) / vocab, "uniform").pvalue > 1e-6
    distinct = len(np.unique(drawn))
    expected = vocab * (1 - np.exp(-8_000 / vocab))
    assert abs(distinct - expected) < 6 * np.sqrt(expected)


@pytest.mark.parametrize("vary", ["seed", "stream", "position"])
def test_neighbours_are_unrelated(isa: str, vary: str) -> None:
    drawn = tokens(torch.zeros(16), [], 2**17, vary).numpy()
    joint = np.zeros((16, 16))
    np.add.at(joint, (drawn[:-1], drawn[1:]), 1)
    assert g_test(joint.ravel(), np.full(256, 1 / 256)) > 1e-6
    shift = (drawn[1:] - drawn[:-1]) % 16
    assert g_test(np.bincount(shift, minlength=16), np.full(16, 1 / 16)) > 1e-6


def test_unlikely_tokens_keep_their_share(isa: str) -> None:
    # A head of 1 and 65536 tokens of 2^-20 each: 1/17 of the mass sits where 24-bit uniforms begin to fail.
    row = torch.full((4097,), -20 * float(np.log(2)))
    row[0] = 0.0
    share = 4096 * 2.0**-20 / (1 + 4096 * 2.0**-20)
    drawn = tokens(row, [], 30_000)
    tail = int((drawn > 0).sum())
    assert abs(tail - 30_000 * share) < 5 * np.sqrt(30_000 * share)

"""The chain against two independent authorities: a float64 numpy oracle and transformers' own processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Step

MARGIN = 2e-6  # float32 rounding of a cumulative sum: closer to a limit than this, both answers are right


def numpy_step(z: np.ndarray, op: str, value: float, history: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return one row after one step by the definition, and which tokens lie within MARGIN of a limit."""
    out, unsure = z.copy(), np.zeros(z.shape, bool)
    p64 = np.exp(z.astype(np.float64) - z.max())
    if op == "temperature":
        out = z / np.float32(value)
    elif op == "repetition_penalty":
        for token in set(history):
            out[token] = z[token] * np.float32(value) if z[token] < 0 else z[token] / np.float32(value)
    elif op == "top_k":
        if value >= 1:
            out[z < np.sort(z)[::-1][min(int(value), len(z)) - 1]] = -np.inf
    elif op == "min_p":
        out[p64 < value] = -np.inf
        unsure = np.abs(p64 - value) < MARGIN
    elif value < 1:
        order = np.lexsort((np.arange(len(z)), z))
        mass = np.cumsum((p64 / p64.sum())[order])
        drop = mass <= 1 - value
        drop[-1] = False
        out[order[drop]] = -np.inf
        unsure[order] = np.abs(mass - (1 - value)) < MARGIN
        unsure[order[-1]] = False
    return out, unsure


def value_of(op: str, rng: np.random.Generator, vocab: int) -> float:
    ranges = {"temperature": (0.2, 3), "repetition_penalty": (0.5, 2), "top_p": (0, 1), "min_p": (0, 0.4)}
    return float(rng.integers(0, vocab + 5)) if op == "top_k" else float(rng.uniform(*ranges[op]))


def test_every_step_keeps_what_its_definition_in_float64_keeps(serving: str) -> None:
    rng = np.random.default_rng(7)
    decided = dropped = 0
    for trial in range(400):
        vocab = int(rng.choice([1, 2, 5, 16, 33, 200, 2000]))
        z = (rng.normal(size=vocab) * rng.choice([0.1, 2, 8])).astype(np.float32)
        if trial % 2:
            z = np.round(z)  # ties at every boundary
        history = rng.integers(0, vocab, 5).tolist()
        before: list[Step] = []
        for op in rng.choice(["temperature", "repetition_penalty", "top_k", "top_p", "min_p"], 4):
            value = value_of(op, rng, vocab)
            before.append(Step(str(op), torch.tensor([value], dtype=torch.float64)))
            found = kernels.apply_chain(torch.from_numpy(z)[None], before, history=torch.tensor([history]))
            result = found.logits[0].numpy()
            start = kernels.apply_chain(torch.from_numpy(z)[None], before[:-1], history=torch.tensor([history]))
            expected, unsure = numpy_step(start.logits[0].numpy(), str(op), value, history)
            assert np.array_equal(result[~unsure], expected[~unsure]), (trial, op, value)
            decided += int((~unsure).sum())
            dropped += int(np.isneginf(result).sum())
    assert decided > 100_000
    assert dropped > 10_000


def huggingface(logits: Tensor, history: Tensor, processors: list[object]) -> Tensor:
    return LogitsProcessorList(processors)(history, logits.clone())


@pytest.mark.parametrize("seed", range(4))
def test_edits_and_top_k_equal_transformers_exactly(serving: str, seed: int) -> None:
    torch.manual_seed(seed)
    logits = (torch.randn(6, 500) * 4).round() / 2
    history = torch.randint(0, 500, (6, 20))
    expected = huggingface(
        logits, history, [RepetitionPenaltyLogitsProcessor(1.3), TemperatureLogitsWarper(0.7), TopKLogitsWarper(40)]
    )
    steps = [
        Step("repetition_penalty", torch.tensor([1.3], dtype=torch.float64)),
        Step("temperature", torch.tensor([0.7], dtype=torch.float64)),
        Step("top_k", torch.tensor([40])),
    ]
    assert torch.equal(kernels.apply_chain(logits, steps, history=history).logits, expected)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9, 0.99])
def test_top_p_and_min_p_keep_as_many_as_transformers(serving: str, p: float) -> None:
    torch.manual_seed(int(p * 100))
    logits = torch.randn(40, 800) * 3
    logits[::2] = logits[::2].round()
    none = torch.zeros(40, 0, dtype=torch.int64)
    value = torch.tensor([p], dtype=torch.float64)
    compared = 0
    for op, warper in (("top_p", TopPLogitsWarper(p)), ("min_p", MinPLogitsWarper(p))):
        expected = huggingface(logits, none, [warper]).isfinite().sum(-1)
        found = kernels.apply_chain(logits, [Step(op, value)]).logits.isfinite().sum(-1)
        for row in range(40):
            _, unsure = numpy_step(logits[row].numpy(), op, p, [])
            if not unsure.any():
                assert found[row] == expected[row], (op, row)
                compared += 1
    assert compared > 60


def test_top_p_keeps_the_highest_indices_of_tied_tokens(serving: str) -> None:
    row = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0]])
    # mass of the three largest is 0.803: half of everything takes two of the three
    kept = kernels.apply_chain(row, [Step("top_p", torch.tensor([0.5], dtype=torch.float64))]).logits.isfinite()
    assert kept[0].tolist() == [False, False, True, False, True]


def test_top_k_keeps_every_tie_with_the_last(serving: str) -> None:
    kept = kernels.apply_chain(
        torch.tensor([[2.0, 1.0, 1.0, 0.0]]), [Step("top_k", torch.tensor([2]))]
    ).logits.isfinite()
    assert kept[0].tolist() == [True, True, True, False]


def test_the_order_of_steps_is_the_callers(serving: str) -> None:
    # The example that separates transformers' order from the one with min-p first.
    row = torch.tensor([[1.0, 0.1, 0.055, 0.04]]).log()
    k, p, m = (
        Step("top_k", torch.tensor([4])),
        *(Step(op, torch.tensor([v], dtype=torch.float64)) for op, v in (("top_p", 0.95), ("min_p", 0.05))),
    )
    counts = [int(kernels.apply_chain(row, order).logits.isfinite().sum()) for order in ((k, p, m), (m, k, p))]
    assert counts == [3, 2]


def test_log_probabilities_equal_log_softmax(serving: str) -> None:
    torch.manual_seed(5)
    logits = torch.randn(64, 1000) * 3
    zero = torch.zeros(64, dtype=torch.int64)
    steps = [Step("temperature", torch.tensor([0.6], dtype=torch.float64)), Step("top_k", torch.tensor([30]))]
    asked = dict.fromkeys(("logp_raw", "logp_processed", "logp_truncated"), True)
    result = kernels.sample_chain(logits, steps, zero, zero, torch.arange(64), **asked)
    edited = (logits / 0.6).double()
    kept = kernels.apply_chain(logits, steps).logits.double()
    for found, rows in (
        (result.logp_raw, logits.double()),
        (result.logp_processed, edited),
        (result.logp_truncated, kept),
    ):
        assert found is not None
        expected = rows.log_softmax(-1).gather(1, result.token[:, None])[:, 0]
        assert (found.double() - expected).abs().max() < 2e-6


def test_processed_means_all_edits_and_no_truncation_whatever_their_order(serving: str) -> None:
    torch.manual_seed(6)
    logits = torch.randn(16, 50)
    zero = torch.zeros(16, dtype=torch.int64)
    heat, cut = Step("temperature", torch.tensor([2.0], dtype=torch.float64)), Step("top_k", torch.tensor([3]))
    result = kernels.sample_chain(logits, [cut, heat], zero, zero, torch.arange(16), logp_processed=True)
    assert result.logp_processed is not None
    expected = (logits / 2).double().log_softmax(-1).gather(1, result.token[:, None])[:, 0]
    assert (result.logp_processed.double() - expected).abs().max() < 2e-6

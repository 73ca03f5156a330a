"""The benchmark's contenders draw from the distribution that the kernel draws from, so their times can be compared."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Step

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def contenders() -> ModuleType:
    """The file of the contenders, which is no package."""
    spec = importlib.util.spec_from_file_location("sampling_contenders", FOLDER / "sampling_contenders.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sampling_contenders"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("chain", ["a", "b", "c"])
def test_every_contender_draws_only_what_the_kernel_keeps_and_most_of_it(contenders: ModuleType, chain: str) -> None:
    torch.manual_seed(0)
    row = torch.randn(1, 2000) * 2
    history = torch.randint(0, 2000, (1, 256))
    value = {
        name: torch.tensor([v]).double()
        for name, v in (("t", 0.8), ("k", 50), ("p", 0.9), ("q", 0.95), ("m", 0.05), ("r", 1.1))
    }
    heat = Step("temperature", value["t"])
    steps = {
        "a": [heat, Step("top_k", value["k"])],
        "b": [heat, Step("top_p", value["p"])],
        "c": [
            Step("repetition_penalty", value["r"]),
            heat,
            Step("top_k", value["k"]),
            Step("top_p", value["q"]),
            Step("min_p", value["m"]),
        ],
    }[chain]
    kept = kernels.apply_chain(row, steps, history=history).logits[0]
    probabilities = kept.double().softmax(-1)
    rows, histories = row.expand(4000, -1).contiguous(), history.expand(4000, -1).contiguous()
    for name, contender in contenders.CONTENDERS.items():
        drawn = torch.as_tensor(contender(chain, rows, histories)()).flatten()
        assert bool((probabilities[drawn] > 0).all()), name
        counts = torch.bincount(drawn, minlength=2000).double()
        # half the sum of differences between what was drawn and what should be: about sqrt(kept / 4000) / 2.5 by chance
        distance = float((counts / 4000 - probabilities).abs().sum() / 2)
        assert distance < float((int((probabilities > 0).sum()) / 4000) ** 0.5), name
    drawn = contenders.ours(chain, rows, histories)().token
    assert bool((probabilities[drawn] > 0).all())

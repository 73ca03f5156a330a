"""DPO: its loss against numpy, its start, and what it learns on real architectures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tunesmith.data.records import Preference
from tunesmith.errors import ConfigError, DataError, MissingPower, NumericError
from tunesmith.kinds.rl_algorithm import Offline, Online
from tunesmith.registry import adapters
from tunesmith.runtime import Runtime
from tunesmith.scoring import pad, token_logps
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.rl_algorithms import DPO
from tunesmith_plugins.rl_algorithms.pairs import encode
from tunesmith_plugins.rl_algorithms.preference_losses import pair_loss

FAMILIES = ["decoder", "encoder-decoder"]
PAIRS = [
    Preference(id="0", prompt="who sees the cat ?", chosen="the good dog", rejected="a bad bird eats fish"),
    Preference(id="1", prompt="yes", chosen="good", rejected="bad bad bad"),
    Preference(id="2", prompt="what runs", chosen="good tree and house", rejected="bad"),
]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_that_of_the_paper(smoothing: float) -> None:
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(size=7) * 5, rng.normal(size=7) * 5
    found, margins = pair_loss("sigmoid", torch.from_numpy(chosen), torch.from_numpy(rejected), 0.3, smoothing)
    for i in range(7):
        margin = 0.3 * (chosen[i] - rejected[i])
        right = math.log(1 / (1 + math.exp(-margin)))
        wrong = math.log(1 / (1 + math.exp(margin)))
        assert float(margins[i]) == pytest.approx(margin)
        assert float(found[i]) == pytest.approx(-(1 - smoothing) * right - smoothing * wrong)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapter", [None, "lora"])
def test_it_starts_at_log_two_and_learns_to_tell_the_pairs_apart(family: Any, adapter: str | None) -> None:
    lm = tiny_lm(family)
    if adapter:
        lm = adapters.create(adapter).build().attach(lm, Runtime())
    config = DPO(epochs=30, batch_size=2, learning_rate=1e-2, beta=0.1)
    report = config.build().train(lm, Offline(preferences=PAIRS), Runtime())
    assert report.summary["start_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert report.steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert report.steps[-1]["loss"] < 0.5
    assert report.steps[-1]["accuracy"] == 1
    assert report.summary["reference"] == ("last adapter off" if adapter else "frozen copy")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_of_sequence_is_part_of_a_completion_and_the_prompt_is_not(family: Any) -> None:
    lm = tiny_lm(family)
    pairs = encode(lm, PAIRS, 0, 0)
    words = lm.tokenizer.convert_ids_to_tokens(pairs.completions[pairs.chosen[0]])
    assert words == ["the", "good", "dog", "</s>"]
    assert lm.tokenizer.convert_ids_to_tokens(pairs.prompts[pairs.chosen[1]])[0] == "yes"


def test_weights_count_as_repetitions() -> None:
    def trained(pairs: list[Preference], weights: list[float]) -> torch.Tensor:
        from attrs import evolve

        lm = tiny_lm("decoder")
        lm.model.double()
        weighted = [evolve(p, weight=w) for p, w in zip(pairs, weights, strict=True)]
        DPO(steps=3, batch_size=8, learning_rate=1e-2).build().train(
            lm, Offline(preferences=weighted), Runtime(dtype="float64")
        )
        return torch.cat([p.detach().flatten() for p in lm.model.parameters()])

    twice = trained([PAIRS[0], PAIRS[0], PAIRS[1]], [1.0, 1.0, 1.0])
    assert torch.allclose(twice, trained([PAIRS[0], PAIRS[1]], [2.0, 1.0]), atol=1e-7)
    assert not torch.allclose(twice, trained([PAIRS[0], PAIRS[1]], [1.0, 1.0]), atol=1e-4)


def test_micro_batches_change_nothing_but_memory() -> None:
    found = []
    for size in (0, 1):
        lm = tiny_lm("encoder-decoder")
        lm.model.double()
        DPO(steps=4, batch_size=3, learning_rate=1e-2, micro_batch_size=size).build().train(
            lm, Offline(preferences=PAIRS), Runtime(dtype="float64")
        )
        found.append(torch.cat([p.detach().flatten() for p in lm.model.parameters()]))
    assert torch.allclose(found[0], found[1], atol=1e-9)


def test_the_chosen_completions_gain_on_the_rejected_ones_by_the_reported_margin() -> None:
    lm, reference = tiny_lm("decoder"), tiny_lm("decoder")
    config = DPO(epochs=5, batch_size=3, learning_rate=1e-3, schedule="constant")
    config.build().train(lm, Offline(preferences=PAIRS), Runtime())
    pairs = encode(lm, PAIRS, 0, 0)

    def ratio(side: torch.Tensor) -> torch.Tensor:
        ids, lengths = pad([pairs.completions[i] for i in side])
        prompts = [pairs.prompts[i] for i in side]
        with torch.no_grad():
            return (token_logps(lm, prompts, ids, lengths)[0] - token_logps(reference, prompts, ids, lengths)[0]).sum(1)

    margin = 0.1 * (ratio(pairs.chosen) - ratio(pairs.rejected))
    once_more = config.build().train(reference, Offline(preferences=PAIRS), Runtime())
    assert float(margin.mean()) > once_more.steps[-1]["margin"] > 0  # the last step's number is from before its update


def test_long_texts_are_cut_and_counted() -> None:
    report = (
        DPO(max_prompt_tokens=2, max_completion_tokens=3)
        .build()
        .train(tiny_lm("decoder"), Offline(preferences=PAIRS), Runtime())
    )
    assert report.summary["cut_prompts"] == 1
    assert report.summary["cut_completions"] == 4


def test_what_dpo_cannot_do_is_said() -> None:
    with pytest.raises(ConfigError, match="give preferences"):
        DPO().build().train(tiny_lm("decoder"), Online(prompts=["yes"], reward=None), Runtime())
    with pytest.raises(ConfigError, match="no preferences"):
        DPO().build().train(tiny_lm("decoder"), Offline(preferences=[]), Runtime())
    with pytest.raises(MissingPower, match="encoder"):
        DPO().build().train(tiny_lm("encoder"), Offline(preferences=PAIRS), Runtime())
    nothing = [Preference(id="0", prompt="who", chosen="a", rejected="the", weight=0.0)]
    with pytest.raises(DataError, match="weight 0"):
        DPO().build().train(tiny_lm("decoder"), Offline(preferences=nothing), Runtime())


def test_an_adapter_that_is_not_fresh_is_refused() -> None:
    lm = adapters.create("lora").build().attach(tiny_lm("decoder"), Runtime())
    for _, parameter in lm.adapters[0].trainable():
        torch.nn.init.normal_(parameter, std=0.3)
    with pytest.raises(NumericError, match="allow_start_kl"):
        DPO().build().train(lm, Offline(preferences=PAIRS), Runtime())

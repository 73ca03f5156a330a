"""Online algorithms on a base whose weights are int8."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tunesmith.errors import NumericError
from tunesmith.kinds.rl_algorithm import Online
from tunesmith.lm import load
from tunesmith.runtime import Runtime
from tunesmith.scoring import token_logps
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.adapters import LoRA
from tunesmith_plugins.compressors import Int8, Int8WeightOnly
from tunesmith_plugins.rl_algorithms import GRPO, PPO, RLOO, Reinforce, online
from tunesmith_plugins.rl_algorithms.rollouts import Drawer
from tunesmith_plugins.rl_algorithms.rounding import nudged, quantization_of
from tunesmith_plugins.starter.carried import model_path

PROMPTS = [
    "Summarize the dialogue.\n\nTom: Hello, Ben, lend me your radio on Monday.\nBen: Yes.\nSummary:",
    "Summarize the dialogue.\n\nAda: Did you see my green bag?\nEva: It is in the hall.\nSummary:",
]
SMALL: dict[str, Any] = {"steps": 2, "batch_size": 16, "max_new_tokens": 8, "samples": 0}
ALGORITHMS = {
    "ppo": PPO(**SMALL, minibatches=2, epochs=2),
    "grpo": GRPO(**SMALL, group_size=8),
    "rloo": RLOO(**SMALL, group_size=4),
    "reinforce": Reinforce(**SMALL),
}
RUNTIME = Runtime(seed=3, threads=1, progress=False)


def by_length(_: str, text: str) -> float:
    return len(text) / 10


def int8(compressor: Any = None) -> Any:
    lm, _ = (compressor or Int8()).build().compress(load(model_path("seq2seq")), runtime=RUNTIME)
    adapter = LoRA(rank=4).build()
    adapter.setup(RUNTIME)
    return adapter.attach(lm, RUNTIME)


@pytest.mark.parametrize("name", list(ALGORITHMS))
@pytest.mark.parametrize("compressor", [Int8(), Int8WeightOnly()], ids=lambda c: type(c).__name__)
def test_an_adapter_on_an_int8_base_is_trained(compressor: Any, name: str, reward_by: Any) -> None:
    lm = int8(compressor)
    before = {n: p.detach().clone() for n, p in lm.adapters[-1].trainable()}
    report = ALGORITHMS[name].build().train(lm, Online(prompts=PROMPTS, reward=reward_by(by_length)), RUNTIME)
    assert len(report.steps) == 2
    assert abs(report.summary["start_kl"]) < 0.1
    assert any(not torch.equal(p, before[n]) for n, p in lm.adapters[-1].trainable())


def test_the_same_rows_get_the_same_bits_with_and_without_gradients() -> None:
    lm = int8()
    prompts = [lm.tokenizer(text)["input_ids"] for text in PROMPTS]
    ids, lengths = torch.tensor([[30, 41, 52, 1], [35, 46, 1, 0]]), torch.tensor([4, 3])
    lm.model.eval()
    with torch.no_grad():
        expected = token_logps(lm, prompts, ids, lengths)[0]
    found = token_logps(lm, prompts, ids, lengths)[0]
    assert found.requires_grad
    assert torch.equal(found, expected)


def trained(lm: Any, reward_by: Any) -> None:
    ALGORITHMS["grpo"].build().train(lm, Online(prompts=PROMPTS, reward=reward_by(by_length)), RUNTIME)


def test_a_policy_that_draws_otherwise_is_still_found_out(reward_by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def hotter(policy: Any, prompts: Any, temperature: float, *rest: Any) -> Any:
        return Drawer(policy, prompts, 2 * temperature, *rest)

    monkeypatch.setattr(online, "Drawer", hotter)
    with pytest.raises(NumericError, match=r"(?s)computed again differ.*rounding in its tunesmith\S* layers"):
        trained(int8(), reward_by)


def test_dropout_is_not_taken_for_rounding(reward_by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = int8()
    dropout = next(m for m in lm.model.modules() if isinstance(m, torch.nn.Dropout))
    monkeypatch.setattr(dropout, "forward", lambda x: torch.nn.functional.dropout(x, 0.1, True))
    with pytest.raises(NumericError, match="scored twice .* not deterministic"):
        trained(lm, reward_by)


def test_a_float_policy_is_not_measured(reward_by: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "movement", None)
    lm = tiny_lm("decoder")
    assert quantization_of(lm) is None
    ALGORITHMS["rloo"].build().train(lm, Online(prompts=["the cat", "dog"], reward=reward_by(by_length)), RUNTIME)


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
def test_nudges_reach_every_embedding_and_are_gone_afterwards(family: Any) -> None:
    lm, _ = Int8().build().compress(tiny_lm(family), runtime=RUNTIME)
    assert "int8" in str(quantization_of(lm))
    ids = torch.tensor([[5, 6, 7]])
    more = {"decoder_input_ids": ids} if family == "encoder-decoder" else {}
    with lm.evaluating():
        before = lm.model(input_ids=ids, **more).logits
        with nudged(lm.model, torch.Generator().manual_seed(0)):
            inside = lm.model(input_ids=ids, **more).logits
        assert torch.equal(lm.model(input_ids=ids, **more).logits, before)
    assert 0 < float((inside - before).norm() / before.norm()) < 0.1

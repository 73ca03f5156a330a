"""The tabular policy behaves as any causal language model of transformers does."""

from __future__ import annotations

import pytest
import torch

from tunesmith.generation import generate
from tunesmith.runtime import Runtime
from tunesmith.testing.tabular import IMPOSSIBLE, tabular_lm
from tunesmith.testing.exam_worlds import exam_world, seq2seq_world


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.tensor([[5, 1, 2, 3], [5, 4, 4, 1], [5, 2, 0, 0]])


def test_every_beginning_has_a_row_of_its_own() -> None:
    lm = tabular_lm(symbols=2, depth=3, prompts=2)
    config = lm.model.config
    seen = set()
    for prompt in (3, 4):
        for beginning in [(), (1,), (2,), (1, 1), (1, 2), (2, 1), (2, 2)]:
            ids = torch.tensor([[prompt, *beginning]])
            seen.add(int(lm.model.model.rows(ids, torch.ones_like(ids))[0, -1]))
    assert seen == set(range(config.hidden_size))
    assert config.hidden_size == 2 * 7


def test_the_cache_changes_nothing(rows: torch.Tensor) -> None:
    lm = tabular_lm(seed=1, spread=1.0)
    whole = lm.model(rows).logits
    past, parts = None, []
    for place in range(rows.shape[1]):
        out = lm.model(rows[:, place : place + 1], past_key_values=past, use_cache=True)
        past = out.past_key_values
        parts.append(out.logits)
    assert torch.equal(torch.cat(parts, 1), whole)


def test_padding_on_the_left_changes_nothing(rows: torch.Tensor) -> None:
    lm = tabular_lm(seed=1, spread=1.0)
    padded = torch.cat([torch.full((3, 2), 6), rows], 1)
    mask = torch.cat([torch.zeros(3, 2), torch.ones(3, 4)], 1).long()
    assert torch.equal(lm.model(padded, attention_mask=mask).logits[:, 2:], lm.model(rows).logits)


def test_nothing_but_answers_can_be_written() -> None:
    lm = tabular_lm(spread=3.0)
    logits = lm.model(torch.tensor([[5]])).logits[0, -1]
    assert (logits[5:] == IMPOSSIBLE).all()
    assert float(torch.softmax(logits, 0)[5:].sum()) == 0


def test_completions_are_drawn_as_often_as_the_table_says() -> None:
    world, lm = exam_world(2, symbols=2, depth=2)
    completions = generate(
        lm, ["q0"], sampler="temperature", max_new_tokens=2, completions=3000, runtime=Runtime(progress=False)
    )
    for answer, logp in zip(world.answers, world.reference.tolist(), strict=True):
        expected = torch.tensor(logp).exp().item()
        share = sum(c.token_ids == answer for c in completions) / 3000
        assert share == pytest.approx(expected, abs=4.5 * (expected * (1 - expected) / 3000) ** 0.5 + 1e-9)


def test_the_worlds_answers_are_all_there_are() -> None:
    for world, lm in (exam_world(0), seq2seq_world(0)):
        assert len(world.answers) == len(set(world.answers)) == 341
        assert float(world.logps(lm).exp().sum()) == pytest.approx(1, abs=1e-6)
        assert world.score(world.reference) == pytest.approx(0)
        assert world.score(world.tilt) == pytest.approx(1)

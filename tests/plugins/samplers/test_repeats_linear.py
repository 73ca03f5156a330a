"""Looking for repetitions takes time in proportion to the history, whatever it holds and however long the n-grams are."""

from __future__ import annotations

import random

import pytest
import torch

from tunesmith.generation import component
from tunesmith.kinds.sampler import Rows
from tunesmith_plugins.samplers import repeats
from tunesmith_plugins.samplers.repeats import banned, matches


class Counted(int):
    """An id that counts how often it is compared."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        Counted.comparisons += 1
        return int.__eq__(self, other) is True

    __hash__ = int.__hash__


HISTORIES = {
    "one id": [1] * 600,
    "one id, then another": [1] * 599 + [2],
    "two in turn": [1, 2] * 300,
    "halves": ([1] * 299 + [2]) * 2,
    "random": [random.Random(0).randrange(3) for _ in range(600)],
}


@pytest.mark.parametrize("kind", HISTORIES)
@pytest.mark.parametrize("size", [1, 2, 150, 300, 600])
def test_comparisons_are_linear(kind: str, size: int) -> None:
    history = [Counted(token) for token in HISTORIES[kind]]
    for look in (lambda: banned(history, size), lambda: matches(history, frozenset())):
        Counted.comparisons = 0
        look()
        # two for each id of the Z-function, one more where a set or a dict finds an equal one
        assert Counted.comparisons <= 4 * len(history)


@pytest.mark.parametrize("seed", range(200))
def test_an_ngram_is_banned_where_the_history_has_it(seed: int) -> None:
    chosen = random.Random(seed)
    history = [chosen.randrange(1 + seed % 4) for _ in range(chosen.randrange(20))]
    for size in range(8):
        start = history[len(history) - size + 1 :]
        places = range(len(history) - size + 1) if size >= 1 else []
        expected = {history[i + size - 1] for i in places if history[i : i + size - 1] == start}
        assert banned(history, size) == expected


@pytest.mark.parametrize("name", ["no_repeat_ngram(size=2)", "dry(allowed_length=1)"])
@pytest.mark.parametrize("way", ["apply", "lower"])
def test_rows_of_one_history_share_one_walk(monkeypatch, name, way):
    histories = torch.tensor([[1, 2, 3, 1, 2], [2, 2, 1, 2, 9]]).repeat_interleave(4, dim=0)
    lengths = torch.tensor([5, 5, 4, 4, 5, 5, 4, 4])
    zeros = torch.zeros(8, dtype=torch.int64)
    rows = Rows(
        seed=zeros, stream=zeros, position=zeros, history=histories, history_lengths=lengths, prompt_lengths=zeros
    )
    walked = []
    walk = repeats.repetitions
    monkeypatch.setattr(repeats, "repetitions", lambda ids: walked.append(tuple(ids)) or walk(ids))
    link, logits = component(name, "sampler"), torch.arange(5.0).expand(8, -1)
    found = link.apply(logits, rows) if way == "apply" else link.lower(rows).ids
    assert len(walked) == len(set(walked)) == 4
    for row in range(8):
        one = rows.select(torch.tensor([row]))
        alone = link.apply(logits[:1], one) if way == "apply" else link.lower(one).ids
        assert {*found[row].tolist()} - {-1} == {*alone[0].tolist()} - {-1}

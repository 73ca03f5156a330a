"""Rows keep their bits through shards, files and back."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import ArtifactError, DataError, NumericError
from tunesmith.kinds.metric import Metric
from tunesmith.statistics import compare, load, make, merge, save
from tunesmith_plugins.metrics import Perplexity, Rouge, TokenF1

TEXTS = ["the cat sat on the mat", "a dog", "", "birds sing here", "no", "two red houses", "the mat sat"]


def batch(chosen: list[int]) -> dict[str, list[object]]:
    return {
        "id": [f"example-{i}" for i in chosen],
        "prediction": [TEXTS[i] for i in chosen],
        "references": [(TEXTS[(i + 1) % 7], TEXTS[(i + 3) % 7]) for i in chosen],
        "group": ["even" if i % 2 == 0 else "" for i in chosen],
    }


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(7)), st.integers(0, 7), st.integers(0, 7))
def test_shards_in_any_order_equal_one_pass_bit_for_bit(order: list[int], one: int, two: int) -> None:
    metric = Rouge().build()
    whole = make(metric, batch(list(range(7))))
    low, high = min(one, two), max(one, two)
    shards = [make(metric, batch(part)) for part in (order[:low], order[low:high], order[high:])]
    random.Random(one).shuffle(shards)
    assert merge(shards).equals(whole)


def test_rows_stand_in_the_order_of_their_ids() -> None:
    found = make(TokenF1().build(), batch([5, 1, 3]))
    assert found.ids == ("example-1", "example-3", "example-5")


def test_an_example_that_two_shards_share_counts_once() -> None:
    metric = TokenF1().build()
    assert merge([make(metric, batch([0, 1])), make(metric, batch([1, 2]))]).equals(make(metric, batch([0, 1, 2])))


def test_one_id_with_two_different_rows_is_an_error_that_names_it() -> None:
    metric = TokenF1().build()
    other = {**batch([1]), "prediction": ["birds"], "references": [("birds",)]}
    with pytest.raises(DataError, match="'example-1' is there twice"):
        merge([make(metric, batch([1])), make(metric, other)])


def test_tables_of_two_metrics_do_not_merge() -> None:
    with pytest.raises(DataError, match="different metrics"):
        merge([make(TokenF1().build(), batch([1])), make(Rouge().build(), batch([2]))])


@pytest.mark.parametrize(("per", "counted"), [("token", True), ("byte", False)])
def test_rows_that_count_tokens_keep_their_vocabulary_and_mix_with_no_other(
    tmp_path: Path, per: str, counted: bool
) -> None:
    metric, rows = Perplexity(per=per).build(), {"id": ["a"], "token_losses": [(1.0, 2.0)], "references": [("x y",)]}
    one, two = (make(metric, rows, vocabulary=name) for name in ("one", "two"))
    save(one, tmp_path / "rows.jsonl")
    assert load(tmp_path / "rows.jsonl").equals(one)
    assert one.equals(two) is not counted
    old = evolve(one, vocabulary="")  # saved before vocabularies were kept
    assert merge([old, two]).vocabulary == two.vocabulary
    assert compare(old, two, metric).main.value.value == 0
    if counted:
        with pytest.raises(DataError, match="different vocabularies cannot be merged"):
            merge([one, two])
        with pytest.raises(DataError, match=r"different vocabularies.*perplexity\(per='byte'\)"):
            compare(one, two, metric)
    else:
        assert merge([one, two]).equals(one)
        assert compare(one, two, metric).main.value.value == 0


def test_a_file_gives_the_same_bits_back(tmp_path: Path) -> None:
    found = make(Rouge().build(), batch(list(range(7))))
    save(found, tmp_path / "rows.jsonl")
    assert load(tmp_path / "rows.jsonl").equals(found)


@pytest.mark.parametrize("keep", [0, 1, 4])
def test_a_truncated_file_is_an_error_that_says_what_to_do(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "rows.jsonl"
    save(make(TokenF1().build(), batch(list(range(7)))), path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:keep]))
    with pytest.raises(ArtifactError, match="evaluate again"):
        load(path)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(DataError, match="needs references"):
        make(TokenF1().build(), {"id": ["a"], "prediction": ["b"]})


def test_columns_of_unequal_length_are_named() -> None:
    with pytest.raises(DataError, match="prediction"):
        make(TokenF1().build(), {"id": ["a"], "prediction": [], "references": [("b",)]})


def test_a_row_that_is_not_finite_names_its_example() -> None:
    class Broken(type(TokenF1().build())):  # type: ignore[misc]
        def rows(self, batch: object) -> np.ndarray:
            return np.array([[1.0], [np.nan]])

    broken: Metric = Broken(TokenF1())
    with pytest.raises(NumericError, match="'example-2'"):
        make(broken, batch([0, 2]))

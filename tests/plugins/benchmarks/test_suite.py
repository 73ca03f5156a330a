"""The suite's perturbations and its table."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

from tunesmith.benchmarking import run
from tunesmith.benchmarking.runner import worst
from tunesmith.runtime import Runtime
from tunesmith.statistics import make
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.benchmarks import MMLU, Suite, SuperGlue
from tunesmith_plugins.benchmarks.perturbations import PERTURBATIONS
from tunesmith_plugins.metrics import Accuracy

OFFLINE = Runtime(offline=True, progress=False)
TEXT = "Do you think that it is not raining? She does not know, and I can't see the neighbouring garden. " * 4


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_seed_decides_a_perturbation(name: str) -> None:
    change = PERTURBATIONS[name]
    assert change(TEXT, Random(1)) == change(TEXT, Random(1)) != TEXT


def test_typing_errors_hit_about_one_long_word_in_ten_and_keep_lengths() -> None:
    changed = PERTURBATIONS["typos"]("longer " * 2000, Random(3)).split()
    assert sum(word != "longer" for word in changed) / 2000 == pytest.approx(0.1, abs=0.025)
    assert {len(word) for word in changed} == {6}
    assert PERTURBATIONS["typos"]("to be or so", Random(3)) == "to be or so"


def test_case_keeps_letters_that_name_answers() -> None:
    assert PERTURBATIONS["case"]("The CAT:\nA. Big", Random(0)) == "the cat:\nA. big"


def test_contractions_go_both_ways() -> None:
    change = PERTURBATIONS["contractions"]
    assert change("It is late. They do not know", Random(0)) == "It's late. They don't know"
    assert change("It's late. They don't know", Random(0)) == "It is late. They do not know"


def test_spaces_change_nothing_else() -> None:
    changed = PERTURBATIONS["spaces"](TEXT + "\nnew  line", Random(5))
    assert changed.split() == (TEXT + "\nnew line").split()
    assert "\nnew" in changed


def test_only_the_question_is_perturbed(small: Path) -> None:
    suite = Suite(benchmark=MMLU(source=str(small / "mmlu"), shots=2), perturbations=("case", "typos")).build()
    items = suite.items(OFFLINE)
    assert [item.id for item in items[:4]] == [
        "red_birds/0000",
        "red_birds/0000#case",
        "red_birds/0000#typos",
        "red_birds/0001",
    ]
    original, lower = items[0], items[1]
    assert lower.context.startswith(original.preamble)
    assert lower.context.endswith("A. one\nB. two\nC. three\nD. the cat\nAnswer:")
    assert (lower.choices, lower.target) == (original.choices, original.target)
    assert suite.variant(lower) == ("red_birds/0000", "case")
    assert suite.variant(original) == ("red_birds/0000", "")


def test_each_item_has_a_seed_of_its_own(small: Path) -> None:
    """Leaving out the first items changes no other item's perturbation."""
    config = Suite(benchmark=SuperGlue(source=str(small / "BoolQ"), task="boolq"))
    by_id = {item.id: item.context for item in config.build().items(OFFLINE)}
    assert len(by_id) == 9 * 5
    assert len({c for key, c in by_id.items() if key.endswith("#spaces")}) == 9


def test_one_table_has_all_sides(small: Path) -> None:
    config = Suite(benchmark=SuperGlue(source=str(small / "BoolQ"), task="boolq"), perturbations=("case", "spaces"))
    found = run(tiny_lm("decoder"), config, runtime=OFFLINE)
    assert set(found.results) == {
        "accuracy",
        "accuracy-choices_by_characters",
        "accuracy-choices_by_bytes",
        "ece",
        "latency",
        "accuracy@case",
        "accuracy@spaces",
        "accuracy@worst",
    }
    versions = [found.tables[name].values for name in ("accuracy", "accuracy@case", "accuracy@spaces")]
    assert (found.tables["accuracy@worst"].values == np.min(versions, axis=0)).all()
    assert found.results["latency"].main.value > 0
    assert found.results["accuracy@case"].n == 9


@pytest.mark.parametrize(("higher", "expected"), [(True, [0, 0, 1]), (False, [1, 1, 1])])
def test_the_worst_version_counts(higher: bool, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Right on 2 and 3, and on 1 and 3: only the third item is right in every version."""
    metric = Accuracy().build()
    monkeypatch.setattr(type(metric), "higher_is_better", higher)
    batch = {"id": ["a", "b", "c"], "label": [1, 1, 1], "references": [("1",)] * 3}
    tables = [make(metric, {**batch, "prediction": said}) for said in (["0", "1", "1"], ["1", "0", "1"])]
    assert worst(tables, metric).values[:, 0].tolist() == expected
    assert worst(tables[::-1], metric).values[:, 0].tolist() == expected


def test_few_items_come_with_all_their_versions(small: Path) -> None:
    config = Suite(benchmark=SuperGlue(source=str(small / "BoolQ"), task="boolq"), efficiency=False)
    found = run(tiny_lm("decoder"), config, items=2, runtime=OFFLINE)
    assert len(found.items) == 2 * 5
    assert found.results["accuracy@worst"].n == 2

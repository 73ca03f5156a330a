"""Metrics small enough to compute by hand, beside a reference implementation where there is one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from tunesmith.errors import DataError
from tunesmith.kinds.metric import MetricConfig
from tunesmith.statistics import compute, make
from tunesmith_plugins.metrics import ECE, Accuracy, ChoiceGrade, DistinctN, ExactMatch, Latency, Perplexity, TokenF1


def score(config: MetricConfig, **columns: list[object]) -> dict[str, float]:
    metric = config.build()
    count = len(next(iter(columns.values())))
    table = make(metric, {"id": [f"{i:03d}" for i in range(count)], **columns})
    return {name: s.value for name, s in compute(table, metric).scores.items()}


@pytest.mark.parametrize(("normalize", "expected"), [("none", 1 / 4), ("strip", 2 / 4), ("squad", 3 / 4)])
def test_exact_match_by_hand(normalize: str, expected: float) -> None:
    predictions = ["Paris", " Paris\n", "the  Paris!", "Lyon"]
    references = [("London", "Paris"), ("Paris",), ("paris",), ("Paris",)]
    assert score(ExactMatch(normalize=normalize), prediction=predictions, references=references) == {
        "exact_match": expected
    }


def test_token_f1_by_hand() -> None:
    """Written "cat sat down", wanted "cat sat on mat": 2 of 3 and 2 of 4, so F1 is 4/7; articles do not count."""
    predictions = ["The cat sat down.", "", "yes"]
    references = [("a cat sat on the mat", "dog"), ("the",), ("no",)]
    assert score(TokenF1(), prediction=predictions, references=references) == pytest.approx({"f1": (4 / 7 + 1 + 0) / 3})


def test_token_f1_equals_the_squad_script() -> None:
    """The cases and numbers of SQuAD's own F1: a repeated word counts as often as both have it."""
    assert score(TokenF1(), prediction=["x x y"], references=[("x x x z",)])["f1"] == pytest.approx(
        2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
    )


def test_accuracy_of_labels_is_sklearns() -> None:
    random = np.random.default_rng(0)
    said, right = random.integers(0, 3, 50), random.integers(0, 3, 50)
    found = score(Accuracy(), prediction=[f" {s}\n" for s in said], label=right.tolist())
    assert found["accuracy"] == pytest.approx(accuracy_score(right, said))


def test_accuracy_of_classes_takes_the_most_probable() -> None:
    found = score(Accuracy(of="classes"), probabilities=[(0.2, 0.8), (0.6, 0.4), (0.1, 0.9)], label=[1, 1, 1])
    assert found == pytest.approx({"accuracy": 2 / 3})


@pytest.mark.parametrize(("of", "chosen"), [("choices", 0), ("choices_by_characters", 1), ("choices_by_bytes", 2)])
def test_accuracy_of_choices_by_each_length(of: str, chosen: int) -> None:
    """-4, -6, -7 for lengths of 2, 6, 3 characters and 2, 6, 9 bytes: -2, -1, -7/3 a character, -2, -1, -7/9 a byte."""
    columns = {"choice_logprobs": [(-4.0, -6.0, -7.0)], "choice_lengths": [((2, 2), (6, 6), (3, 9))]}
    assert score(Accuracy(of=of), label=[chosen], **columns) == {"accuracy": 1}
    assert score(Accuracy(of=of), label=[(chosen + 1) % 3], **columns) == {"accuracy": 0}


@pytest.mark.parametrize(("of", "expected"), [("choices", 0.2), ("choices_by_characters", 0.9)])
def test_the_grade_is_that_of_the_chosen_one(of: str, expected: float) -> None:
    """-4 and -6 for 2 and 6 characters: the first one by the sum, the second one by the character."""
    columns = {"choice_logprobs": [(-4.0, -6.0)], "choice_lengths": [((2, 2), (6, 6))], "choice_grades": [(0.2, 0.9)]}
    assert score(ChoiceGrade(of=of), **columns) == {"choice_grade": expected}


def test_the_grade_of_all_or_nothing_is_the_accuracy() -> None:
    random = np.random.default_rng(3)
    logprobs = [tuple(row) for row in random.normal(size=(40, 4)).tolist()]
    label = random.integers(0, 4, 40).tolist()
    grades = [tuple(float(i == right) for i in range(4)) for right in label]
    found = score(ChoiceGrade(), choice_logprobs=logprobs, choice_grades=grades)["choice_grade"]
    assert found == score(Accuracy(of="choices"), choice_logprobs=logprobs, label=label)["accuracy"]


def test_the_first_of_equal_choices_is_chosen() -> None:
    assert score(Accuracy(of="choices"), choice_logprobs=[(-1.0, -1.0)], label=[0]) == {"accuracy": 1}


@pytest.mark.parametrize(("per", "units"), [("token", 4), ("word", 3), ("byte", 12)])
def test_perplexity_by_hand(per: str, units: int) -> None:
    """Losses of 1, 2, 0.5, 0.5 over "ein süßes" and "x": 9 + 2 bytes of two letters each, plus one."""
    losses, texts = [(1.0, 2.0), (0.5, 0.5)], [("ein süßes",), ("x",)]
    found = score(Perplexity(per=per), token_losses=losses, references=texts)
    assert found == pytest.approx({"perplexity": math.exp(4 / units), "loss": 4 / units})


def test_blanks_at_the_ends_are_no_words() -> None:
    """As of a continuation that begins with a space: " a b\\n" has two words."""
    found = score(Perplexity(per="word"), token_losses=[(1.0, 2.0, 1.0)], references=[(" a  b\n",)])
    assert found["loss"] == 2.0


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary() -> None:
    assert score(Perplexity(), token_losses=[(math.log(512),) * 7])["perplexity"] == pytest.approx(512)


def test_perplexity_of_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="no tokens"):
        score(Perplexity(), token_losses=[()])


def test_distinct_n_counts_all_texts_together() -> None:
    """a b a | a c: 3 distinct of 5 words; ab, ba, ac: 3 of 3 pairs."""
    assert score(DistinctN(), prediction=["a b a", "a c"]) == {"distinct_1": 3 / 5, "distinct_2": 1.0}


def test_distinct_n_agrees_with_a_plain_count() -> None:
    random = np.random.default_rng(1)
    texts = [" ".join(random.choice(list("abcdefgh"), size=30)) for _ in range(20)]
    pairs = [tuple(t.split()[i : i + 2]) for t in texts for i in range(29)]
    assert score(DistinctN(orders=(2,)), prediction=texts)["distinct_2"] == len(set(pairs)) / len(pairs)


def test_distinct_n_has_no_interval() -> None:
    metric = DistinctN().build()
    table = make(metric, {"id": ["a", "b"], "prediction": ["x y", "z"]})
    assert compute(table, metric).main.low is None


def test_ece_by_hand() -> None:
    """Two bins: (0.6 right, 0.7 wrong) is off by |0.65 - 0.5|, (0.8 right, 0.9 right) by |0.85 - 1|."""
    probabilities = [(0.2, 0.8), (0.6, 0.4), (0.9, 0.1), (0.3, 0.7)]
    found = score(ECE(of="classes", bins=2), probabilities=probabilities, label=[1, 0, 0, 0])
    assert found == pytest.approx({"ece": 0.15})


def test_a_calibrated_model_has_a_small_ece_and_a_boastful_one_a_large_one() -> None:
    random = np.random.default_rng(2)
    sure = random.uniform(0.5, 1, 8000)
    right = (random.uniform(size=8000) < sure).astype(int)
    logits = [(0.0, math.log(p / (1 - p))) for p in sure]
    assert score(ECE(), choice_logprobs=logits, label=right.tolist())["ece"] < 0.02
    assert score(ECE(), choice_logprobs=[(0, 9.0)] * 8000, label=right.tolist())["ece"] == pytest.approx(0.25, abs=0.02)


def test_choices_of_tiny_log_likelihoods_still_have_probabilities() -> None:
    found = score(ECE(bins=1), choice_logprobs=[(-5000.0, -5000.0 + math.log(3))], label=[1])
    assert found["ece"] == pytest.approx(0.25)


def test_latency_by_hand() -> None:
    found = score(Latency(), latency=[{"seconds": 1.0, "new_tokens": 10}, {"seconds": 3.0, "new_tokens": 50}])
    assert found == {"seconds": 2.0, "tokens_per_second": 15.0}

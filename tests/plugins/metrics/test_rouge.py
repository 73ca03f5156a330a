"""ROUGE against rouge-score and by hand."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from rouge_score import rouge_scorer

from tunesmith.statistics import compute, make
from tunesmith_plugins.metrics import Rouge

WORDS = "the a cat dogs running runs sat mat on happily happy . , 12 twelve\n".split(" ")


def texts(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, 14))) for _ in range(count)]


def batch(predictions: list[str], references: list[tuple[str, ...]]) -> dict[str, object]:
    return {"id": [f"{i:04d}" for i in range(len(predictions))], "prediction": predictions, "references": references}


def score(config: Rouge, prediction: str, *references: str) -> dict[str, float]:
    metric = config.build()
    return metric.score(metric.rows(batch([prediction], [references])))


@pytest.mark.parametrize("stemmer", [True, False])
def test_it_equals_rouge_score_exactly(stemmer: bool) -> None:
    predictions, references = texts(1, 80), texts(2, 80)
    types = ["rouge1", "rouge2", "rouge3", "rougeL", "rougeLsum"]
    theirs = rouge_scorer.RougeScorer(types, use_stemmer=stemmer)
    metric = Rouge(types=("1", "2", "3", "L", "Lsum"), stemmer=stemmer).build()
    rows = metric.rows(batch(predictions, [(r,) for r in references]))
    for row, prediction, reference in zip(rows, predictions, references, strict=True):
        found = theirs.score(reference, prediction)
        expected = [n for t in types for n in (found[t].fmeasure, found[t].precision, found[t].recall)]
        assert row.tolist() == expected


def test_the_best_f_of_several_references_is_rouge_scores() -> None:
    predictions, references = texts(3, 40), [tuple(texts(i, 3)) for i in range(40)]
    theirs = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    rows = Rouge().build().rows(batch(predictions, references))
    for row, prediction, several in zip(rows, predictions, references, strict=True):
        found = theirs.score_multi(several, prediction)
        assert row[::3].tolist() == [found[t].fmeasure for t in ("rouge1", "rouge2", "rougeL", "rougeLsum")]


def test_rules_for_several_references_by_hand() -> None:
    """Against "a b c d" (2 of 4) and "a" (1 of 1): F is 4/7 and 1/2 (written: a b x)."""

    def found(rule: str) -> dict[str, float]:
        config = Rouge(types=("1",), references=rule, stemmer=False, measures=("f", "precision", "recall"))
        return score(config, "a b x", "a b c d", "a")

    assert found("max_f") == pytest.approx({"rouge1": 4 / 7, "rouge1_precision": 2 / 3, "rouge1_recall": 1 / 2})
    assert found("best_recall") == pytest.approx({"rouge1": 1 / 2, "rouge1_precision": 1 / 3, "rouge1_recall": 1})
    assert found("pooled") == pytest.approx({"rouge1": 6 / 11, "rouge1_precision": 3 / 6, "rouge1_recall": 3 / 5})
    assert found("mean") == pytest.approx(
        {"rouge1": (4 / 7 + 1 / 2) / 2, "rouge1_precision": 1 / 2, "rouge1_recall": 3 / 4}
    )


@pytest.mark.parametrize("kind", ["1", "2", "L", "Lsum"])
def test_pooling_one_reference_changes_nothing(kind: str) -> None:
    for prediction, reference in zip(texts(4, 40), texts(5, 40), strict=True):
        pooled, plain = (score(Rouge(types=(kind,), references=r), prediction, reference) for r in ("pooled", "max_f"))
        assert pooled == pytest.approx(plain, abs=1e-15)


def test_the_ascii_tokenizer_gives_equal_russian_texts_nothing_and_the_unicode_one_all() -> None:
    text = "кошка сидит на окне"
    assert score(Rouge(types=("1", "2")), text, text) == {"rouge1": 0, "rouge2": 0}
    assert score(Rouge(types=("1", "2"), tokenizer="unicode"), text, text) == {"rouge1": 1, "rouge2": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("猫が好き cat", ["猫", "が", "好", "き", "cat"]),
        ("Straße, CAFÉ_12!", ["straße", "café", "12"]),
        ("¿qué?", ["qué"]),
    ],
)
def test_unicode_words_keep_their_marks(text: str, words: list[str]) -> None:
    from tunesmith_plugins.metrics.words import words as split

    assert split(text) == words


def test_in_english_the_tokenizers_agree() -> None:
    for prediction, reference in zip(texts(6, 30), texts(7, 30), strict=True):
        assert score(Rouge(), prediction, reference) == score(Rouge(tokenizer="unicode"), prediction, reference)


def test_the_score_is_the_mean_and_no_seed_moves_it() -> None:
    metric = Rouge(types=("2",)).build()
    table = make(metric, batch(texts(8, 60), [(t,) for t in texts(9, 60)]))
    one, other = (compute(table, metric, seed=seed) for seed in (0, 1))
    assert one.main.value == other.main.value == pytest.approx(table.values[:, 0].mean(), rel=1e-14)
    assert one.main.low != other.main.low


def test_the_signature_names_every_rule() -> None:
    assert (
        Rouge(tokenizer="unicode", references="pooled", stemmer=False)
        .build()
        .signature.startswith("rouge|types:1,2,L,Lsum|measures:f|stem:no|tok:unicode|refs:pooled|agg:mean|rouge-score:")
    )


@pytest.mark.realdata
def test_on_three_dialogsum_references_it_equals_rouge_score(real_data: Path) -> None:
    lines = (real_data / "dialogsum" / "dialogsum.test.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    records = [json.loads(line) for line in lines]
    predictions = [" ".join(r["dialogue"].split()[1:25]) for r in records]
    references = [(r["summary1"], r["summary2"], r["summary3"]) for r in records]
    theirs = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    expected = np.mean(
        [[s.fmeasure for s in theirs.score_multi(r, p).values()] for p, r in zip(predictions, references, strict=True)],
        axis=0,
    )
    metric = Rouge(types=("1", "2", "L")).build()
    assert list(metric.score(metric.rows(batch(predictions, references))).values()) == pytest.approx(
        expected, rel=1e-14
    )

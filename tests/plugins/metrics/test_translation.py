"""BLEU, chrF and TER equal sacrebleu's corpus scores."""

from __future__ import annotations

import random

import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF, TER

from tunesmith.errors import TunesmithError
from tunesmith.kinds.metric import MetricConfig
from tunesmith.statistics import compute, make, merge
from tunesmith_plugins.metrics import Bleu, ChrF, Ter

WORDS = "The the a cat, dogs run sat mat on . ! 12 e-mail it's".split()

CASES = [
    (Bleu(), BLEU()),
    (Bleu(lowercase=True, tokenize="intl"), BLEU(lowercase=True, tokenize="intl")),
    (Bleu(smooth="add-k", smooth_value=0.5), BLEU(smooth_method="add-k", smooth_value=0.5)),
    (Bleu(smooth="floor", order=2), BLEU(smooth_method="floor", max_ngram_order=2)),
    (Bleu(smooth="none", effective_order=True), BLEU(smooth_method="none", effective_order=True)),
    (ChrF(), CHRF()),
    (ChrF(word_order=2, lowercase=True), CHRF(word_order=2, lowercase=True)),
    (ChrF(char_order=4, beta=3, whitespace=True), CHRF(char_order=4, beta=3, whitespace=True)),
    (Ter(), TER()),
    (
        Ter(normalized=True, no_punct=True, case_sensitive=True),
        TER(normalized=True, no_punct=True, case_sensitive=True),
    ),
]


def texts(seed: int, count: int = 40) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(count)]


def batch(references: int = 2) -> dict[str, list[object]]:
    predictions = texts(0)
    several = [texts(k + 1) for k in range(references)]
    for i in range(0, 40, 3):
        several[0][i] = predictions[i] + " too"
    return {
        "id": [f"{i:02d}" for i in range(40)],
        "prediction": list(predictions),
        "references": [tuple(r[i] for r in several) for i in range(40)],
    }


def streams(made: dict[str, list[object]]) -> list[list[str]]:
    return [list(stream) for stream in zip(*made["references"], strict=True)]  # type: ignore[call-overload]


@pytest.mark.parametrize(("config", "theirs"), CASES, ids=[str(config) for config, _ in CASES])
@pytest.mark.parametrize("references", [1, 2])
def test_the_score_is_sacrebleus_corpus_score(config: MetricConfig, theirs: object, references: int) -> None:
    made = batch(references)
    metric = config.build()
    found = metric.score(metric.rows(made))[metric.scores[0]]
    assert found == theirs.corpus_score(made["prediction"], streams(made)).score  # type: ignore[attr-defined]


@pytest.mark.parametrize(("config", "theirs"), CASES, ids=[str(config) for config, _ in CASES])
def test_the_bootstrap_scores_resamples_as_sacrebleu_would(config: MetricConfig, theirs: object) -> None:
    made = batch()
    metric = config.build()
    rows = metric.rows(made)
    chosen = np.random.default_rng(3).integers(0, 40, size=40)
    found = metric.score_sums(rows[chosen].sum(axis=0)[None], np.array([40.0]))[0, 0]
    predictions = [made["prediction"][i] for i in chosen]
    resampled = [[stream[i] for i in chosen] for stream in streams(made)]
    assert found == pytest.approx(theirs.corpus_score(predictions, resampled).score, rel=1e-12)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "config", [Bleu(), Bleu(smooth="add-k"), Bleu(tokenize="char", lowercase=True), Ter()], ids=str
)
def test_without_sacrebleus_private_names_the_rows_are_the_same(config: MetricConfig, monkeypatch) -> None:
    made = batch()
    before = config.build().rows(made)
    monkeypatch.setattr("tunesmith_plugins.metrics.translation.statistics", lambda *_: None)
    assert config.build().rows(made).tolist() == before.tolist()


def test_without_private_names_chrf_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr("tunesmith_plugins.metrics.translation.statistics", lambda *_: None)
    with pytest.raises(TunesmithError, match=r"install sacrebleu 2\.6"):
        ChrF().build().rows(batch())


def test_segments_may_have_different_numbers_of_references() -> None:
    made = batch()
    made["references"] = [r if i % 2 else r[:1] for i, r in enumerate(made["references"])]  # type: ignore[index]
    metric = Bleu().build()
    padded = [[r[0] for r in made["references"]], [r[1] if len(r) > 1 else None for r in made["references"]]]
    assert metric.score(metric.rows(made))["bleu"] == BLEU().corpus_score(made["prediction"], padded).score


def test_a_merged_corpus_score_is_that_of_the_whole() -> None:
    """Unlike means, corpus BLEU of shards is not the mean of their BLEUs."""
    made = batch()
    metric = Bleu().build()
    shards = [make(metric, {key: column[a:b] for key, column in made.items()}) for a, b in ((25, 40), (0, 25))]
    value = compute(merge(shards), metric).main.value
    assert value == BLEU().corpus_score(made["prediction"], streams(made)).score
    assert value != pytest.approx(np.mean([compute(s, metric).main.value for s in shards]), rel=1e-3)


def test_a_worked_bleu() -> None:
    """Papineni et al. 2002, section 2: 2 of 7 clipped unigrams; with one order and a reference of 7 words that is
    BLEU.
    """
    metric = Bleu(order=1, tokenize="none").build()
    made = {"id": ["0"], "prediction": ["the the the the the the the"], "references": [("the cat is on the mat now",)]}
    assert metric.score(metric.rows(made))["bleu"] == pytest.approx(100 * 2 / 7, rel=1e-14)


def test_signatures_are_sacrebleus() -> None:
    assert Bleu().build().signature.startswith("bleu|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert ChrF(word_order=2).build().signature.startswith("chrf|case:mixed|eff:yes|nc:6|nw:2|space:no|version:")
    assert Ter().build().signature.startswith("ter|case:lc|tok:tercom|norm:no|punct:yes|asian:no|version:")
    before = Bleu().build()
    first = before.signature
    before.rows(batch())
    assert before.signature == first

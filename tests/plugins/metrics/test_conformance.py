"""Every metric keeps its contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunesmith.errors import ConfigError, TunesmithError
from tunesmith.runtime import Runtime
from tunesmith.statistics import compute, make
from tunesmith.testing import conformance, run_checks
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins import metrics as m


@conformance(
    m.Rouge(),
    m.Rouge(types=("1", "Lsum"), references="pooled", tokenizer="unicode", stemmer=False, measures=("recall", "f")),
    m.Rouge(types=("2",), references="best_recall"),
    m.Rouge(types=("L",), references="mean"),
    m.Bleu(),
    m.ChrF(word_order=2),
    m.Ter(),
    m.ExactMatch(),
    m.TokenF1(),
    m.Accuracy(),
    m.Accuracy(of="classes"),
    m.Accuracy(of="choices_by_bytes"),
    m.Perplexity(),
    m.Perplexity(per="word"),
    m.DistinctN(),
    m.ECE(),
    m.ECE(of="classes", bins=3),
    m.Latency(),
)
def test_metrics_conform(check) -> None:
    check()


@pytest.fixture
def classifier(tmp_path: Path) -> str:
    lm = tiny_lm("encoder", head="classification", labels=("clean", "toxic"))
    lm.save(tmp_path / "classifier")
    return str(tmp_path / "classifier")


def test_toxicity_conforms(classifier: str) -> None:
    results = run_checks(m.Toxicity(model=classifier))
    assert len(results) > 20
    assert [r for r in results if not r.ok] == []


def test_toxicity_is_the_mean_probability_of_the_class(classifier: str) -> None:
    import torch

    lm = tiny_lm("encoder", head="classification", labels=("clean", "toxic"))
    texts = ["the cat runs", "a bad dog eats the fish", "no"]
    with torch.no_grad():
        expected = [lm.model(**lm.tokenizer(t, return_tensors="pt")).logits.softmax(-1)[0, 1].item() for t in texts]
    metric = m.Toxicity(model=classifier, threshold=sorted(expected)[1] - 1e-6).build()
    metric.setup(Runtime(offline=True))
    found = compute(make(metric, {"id": list("abc"), "prediction": texts}), metric).scores
    assert found["toxicity"].value == pytest.approx(sum(expected) / 3, abs=1e-5)
    assert found["toxic_share"].value == pytest.approx(2 / 3)


def test_toxicity_of_an_unknown_class_names_those_there_are(classifier: str) -> None:
    with pytest.raises(TunesmithError, match="clean, toxic"):
        m.Toxicity(model=classifier, label="rude").build().setup(Runtime(offline=True))


def test_toxicity_before_setup_says_what_to_call(classifier: str) -> None:
    with pytest.raises(TunesmithError, match=r"setup\(runtime\)"):
        m.Toxicity(model=classifier).build().rows({"id": ["a"], "prediction": ["b"]})


def test_wrong_options_are_errors() -> None:
    for wrong in ({"types": ("0",)}, {"types": ()}, {"references": "best"}, {"stemmer": "yes"}):
        with pytest.raises((TypeError, ValueError, ConfigError)):
            m.Rouge(**wrong)

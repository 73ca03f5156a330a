"""Every metric keeps its contract."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from attrs import evolve

from tunesmith import reward
from tunesmith.continuation import positions
from tunesmith.data import Example
from tunesmith.errors import ConfigError, DataError, TunesmithError
from tunesmith.evaluation import content, evaluate_texts
from tunesmith.kinds.decoder import Completion
from tunesmith.lm import load
from tunesmith.runtime import Runtime
from tunesmith.statistics import compute, make
from tunesmith.testing import conformance, run_checks
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins import metrics as m
from tunesmith_plugins.reward_models import Pairwise, Trained


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
    m.ChoiceGrade(),
    m.ChoiceGrade(of="choices_by_characters"),
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


def test_texts_that_the_classifier_cannot_read_whole_are_counted_once(classifier: str) -> None:
    lm = load(classifier)
    limit = positions(lm)
    assert limit is not None
    long, short = "the cat runs " * limit, "no"
    metric = m.Toxicity(model=classifier).build()
    metric.setup(Runtime(offline=True))
    batch = {"id": list("abc"), "prediction": [long, short, long]}
    metric.rows(batch)
    metric.rows(batch)
    assert list(metric.truncated.values()) == [2]


def test_an_evaluation_says_how_many_texts_the_classifier_cut(classifier: str) -> None:
    lm = tiny_lm("decoder")
    examples = [Example(id=str(i), prompt="the cat", targets=(), columns={}) for i in range(3)]
    long = Completion(request=0, id="0", stream=0, text="the cat runs " * 600, token_ids=(1,), finish="length")
    texts = [evolve(long, request=0), evolve(long, request=1, text="no"), evolve(long, request=2)]
    found = evaluate_texts(lm, examples, texts, (m.Toxicity(model=classifier),), runtime=Runtime(offline=True))
    told = content(found, {}).verdicts
    assert told == ("Of 3 texts read by the classifier of 'toxic', 2 were cut at the model's limit (66.7%).",)


@pytest.fixture
def reward_folder(tmp_path: Path) -> str:
    tiny_lm("encoder").save(tmp_path / "encoder")
    model = Pairwise(model=str(tmp_path / "encoder")).build()
    model.setup(Runtime(offline=True))
    reward.save(model, tmp_path / "reward")
    return str(tmp_path / "reward")


def test_the_reward_conforms(reward_folder: str) -> None:
    results = run_checks(m.Reward(model=Trained(reward_model=reward_folder)))
    assert len(results) > 20
    assert [r for r in results if not r.ok] == []


def test_the_reward_is_the_mean_of_the_reward_models_scores(reward_folder: str) -> None:
    model = reward.load(Path(reward_folder), Runtime(offline=True))
    prompts, texts = ["the cat", "a dog", "no"], ["runs", "eats the fish", "yes"]
    expected = [model.score([p], [t])[0] for p, t in zip(prompts, texts, strict=True)]
    metric = m.Reward(model=Trained(reward_model=reward_folder)).build()
    metric.setup(Runtime(offline=True))
    found = compute(make(metric, {"id": list("abc"), "source": prompts, "prediction": texts}), metric)
    assert found.main.value == pytest.approx(sum(expected) / 3, abs=1e-6)


def test_texts_without_a_reward_are_left_out_of_the_mean() -> None:
    metric = m.Reward(model=Trained(reward_model="unused")).build()
    rows = np.array([[2.0, 1.0], [0.0, 0.0], [4.0, 1.0]])
    assert metric.score(rows) == {"reward": 3.0}
    assert metric.score_sums(rows.sum(axis=0)[None], np.array([3.0])).tolist() == [[3.0]]
    with pytest.raises(DataError, match="no opinion"):
        metric.score(np.zeros((2, 2)))


def test_other_weights_have_another_signature(reward_folder: str, tmp_path: Path) -> None:
    other = Pairwise(model=str(tmp_path / "encoder")).build()
    other.setup(Runtime(offline=True, seed=1))
    import torch

    with torch.no_grad():
        next(p for p in other.scorer.parameters() if p.requires_grad).add_(1)
    reward.save(other, tmp_path / "other")
    signatures = []
    for folder in (reward_folder, str(tmp_path / "other"), reward_folder):
        metric = m.Reward(model=Trained(reward_model=folder)).build()
        metric.setup(Runtime(offline=True))
        signatures.append(metric.signature)
    assert signatures[0] == signatures[2] != signatures[1]


def test_another_vocabulary_has_another_signature_and_another_report_has_not(reward_folder: str) -> None:
    folder = Path(reward_folder)

    def signature() -> str:
        metric = m.Reward(model=Trained(reward_model=reward_folder)).build()
        metric.setup(Runtime(offline=True))
        return metric.signature

    found = [signature()]
    for file, text in (
        ("merges.txt", "a b"), ("merges.txt", "b a"), ("spiece.model", "x"), ("report.json", "{}"), (".left", "x"),
    ):  # fmt: skip
        (folder / "weights" / file).write_text(text)
        found.append(signature())
    assert len(set(found[:4])) == 4
    assert found[3] == found[4] == found[5]


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

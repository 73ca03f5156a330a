"""Distillation of sequence classifiers, of models with few positions, and what is refused before any training."""

import pytest
import torch
import transformers

from tunesmith.data.records import Example
from tunesmith.errors import ConfigError, DataError
from tunesmith.lm import LM, load
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors import Distill
from tunesmith_plugins.compressors.distill_divergence import Divergence, divergence
from tunesmith_plugins.compressors.distill_hidden import pairings
from tunesmith_plugins.compressors.distill_loss import DistillationLoss

RUNTIME = Runtime(progress=False)
NAMES = ("bad", "fair", "good")
DATA = [
    Example(id=str(i), prompt=" ".join("abcdefgh"[i % 5 : i % 5 + 2 + i % 3]), targets=(NAMES[i % 3],)) for i in range(12)
]  # fmt: skip
HEADS = {
    "bert": transformers.BertForSequenceClassification,
    "llama": transformers.LlamaForSequenceClassification,
    "bart": transformers.BartForSequenceClassification,
}
BART = {
    "d_model": 32, "encoder_layers": 4, "decoder_layers": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_start_token_id": 0, "bos_token_id": 2, "vocab_size": 30,
    "max_position_embeddings": 16, "pad_token_id": 0, "eos_token_id": 1, "dropout": 0.0, "attention_dropout": 0.0,
}  # fmt: skip


def classifier(make, kind="bert", seed=0, names=NAMES):
    like = make("bert" if kind == "bart" else kind)
    config = transformers.BartConfig(**BART) if kind == "bart" else like.model.config
    config.id2label, config.label2id = dict(enumerate(names)), {name: n for n, name in enumerate(names)}
    torch.manual_seed(seed)
    family = "encoder-decoder" if kind == "bart" else like.family
    return LM(model=HEADS[kind](config).eval(), tokenizer=like.tokenizer, family=family)


def batch(kind):
    ids = torch.randint(4, 30, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[1, 4:], mask[1, 4:] = 0, 0
    if kind == "bart":  # reads its answer off the end-of-sequence token
        ids[torch.arange(3), mask.sum(1) - 1] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([2, 0, 1])}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_the_loss_of_a_text_is_that_of_its_classes(make, kind, name):
    teacher, student, given = classifier(make, kind), classifier(make, kind, seed=1), batch(kind)
    rule = Divergence(kind=name, beta=0.3, temperature=2.0, soft=0.7, hard=0.3)
    loss = DistillationLoss(teacher.model, rule, False, classes=True)
    found = loss(student.model, given)
    inputs = {name: value for name, value in given.items() if name != "labels"}
    with torch.no_grad():
        ours, theirs = (lm.model(**inputs).logits for lm in (student, teacher))
    soft = divergence((theirs / 2).log_softmax(-1), (ours / 2).log_softmax(-1), name, 0.3)
    hard = -ours.log_softmax(-1)[torch.arange(3), given["labels"]]
    assert float(found.detach()) == pytest.approx(float((0.7 * 4 * soft + 0.3 * hard).sum()), rel=1e-5)
    assert int(loss.items(given)) == 3


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_hidden_states_of_a_classifier_are_compared_over_the_whole_text(make, kind):
    teacher, student, given = classifier(make, kind), classifier(make, kind, seed=1), batch(kind)
    layers = pairings(teacher.model, student.model, (), True)
    loss = DistillationLoss(teacher.model, Divergence(soft=0.0), False, classes=True, hidden=2.0, layers=layers)
    inputs = {name: value for name, value in given.items() if name != "labels"}
    with torch.no_grad():
        ours, theirs = (lm.model(**inputs, output_hidden_states=True).hidden_states for lm in (student, teacher))
    mask, expected = given["attention_mask"].float(), 0.0
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        expected += float((((mine - other).square().mean(-1) * mask).sum(1) / mask.sum(1)).sum())
    assert float(loss(student.model, given).detach()) == pytest.approx(2 * expected, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("bert", {"soft": 1.0}),
        ("bert", {"soft": 0.0}),
        ("llama", {"soft": 0.5, "hidden": 0.1, "divergence": "reverse_kl"}),
    ],
)
def test_a_classifier_learns_from_one(make, tmp_path, kind, options):
    lm = classifier(make, kind)
    lm.model.score.weight.data.mul_(20) if kind == "llama" else lm.model.classifier.weight.data.mul_(20)
    config = Distill(temperature=1.0, steps=15, batch_size=6, learning_rate=3e-3, **options)
    small, report = config.build().compress(lm, data=DATA, runtime=RUNTIME)
    losses = report.summary["loss"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    small.save(tmp_path)
    again, ids = load(tmp_path), torch.tensor([[4, 5, 6]])
    torch.testing.assert_close(again.model.state_dict(), small.model.state_dict(), rtol=0, atol=0)
    # weights mapped from a file lie at other addresses, and by those torch's products may sum in another order
    with torch.no_grad():
        found, expected = (lm.model(input_ids=ids).logits for lm in (again, small))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert tuple(again.model.config.id2label.values()) == NAMES
    assert again.model.config.num_hidden_layers == 2


def test_labels_have_to_be_classes_only_where_they_are_in_the_loss(make):
    data = [Example(id="0", prompt="a b", targets=("splendid",)), Example(id="1", prompt="c d")]
    Distill(soft=1.0, steps=1, batch_size=2).build().compress(classifier(make), data=data, runtime=RUNTIME)
    with pytest.raises(DataError, match="the model knows 'bad', 'fair', 'good'"):
        Distill(soft=0.5, steps=1).build().compress(classifier(make), data=data, runtime=RUNTIME)


def test_a_classifier_of_another_architecture_has_the_same_classes(make):
    other = {"model_type": "distilbert", "dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2}
    config = Distill(student=other, steps=1, batch_size=2)
    small, _ = config.build().compress(classifier(make), data=DATA, runtime=RUNTIME)
    assert type(small.model).__name__ == "DistilBertForSequenceClassification"
    assert tuple(small.model.config.id2label.values()) == NAMES


def refused(lm, message, teacher=None, **options):
    with pytest.raises(ConfigError, match=message):
        Distill(steps=1, **options).build().compress(lm, data=DATA, teacher=teacher, runtime=RUNTIME)


def test_what_classifiers_cannot_do_is_refused(make):
    refused(classifier(make), "the same, in one order", teacher=classifier(make, names=NAMES[::-1]))
    refused(classifier(make), "is a classifier and the other is not", teacher=make("bert"))
    refused(classifier(make, names=("score",)), "no distribution over classes")
    refused(classifier(make), "writes no answers", on_policy=0.5)
    refused(classifier(make), "cannot teach by it", texts="teacher")
    body = transformers.BertModel(make("bert").model.config)
    refused(LM(model=body, tokenizer=make("bert").tokenizer, family="encoder"), "a BertModel, which has neither")


@pytest.mark.parametrize("kind", ["gpt2", "pegasus"])
@pytest.mark.parametrize("options", [{}, {"on_policy": 1.0, "max_new_tokens": 70}], ids=["data", "on-policy"])
def test_texts_are_cut_to_what_both_models_read(make, kind, options):
    lm = make("gpt2")
    if kind == "pegasus":
        model = transformers.PegasusForConditionalGeneration(transformers.PegasusConfig(**BART))
        lm = LM(model=model.eval(), tokenizer=lm.tokenizer, family="encoder-decoder")
    long = [Example(id=str(i), prompt="a b c d " * 30, targets=("e f g h " * 4,)) for i in range(2)]
    config = Distill(steps=1, batch_size=2, **options)
    _, report = config.build().compress(lm, data=long, runtime=RUNTIME)
    assert report.summary["cut_inputs"] == 2


def test_students_that_cannot_be_are_told_before_training(make):
    refused(make("llama"), "for 30 tokens and the student for 20", student={"vocab_size": 20})
    refused(make("llama"), "this gives no student: .*hidden", student={"hidden_size": 33})
    refused(make("t5"), "leave this out @ keep_every", teacher=make("t5"), keep_every=3)
    with pytest.raises(ValueError, match="'keep_every' would change nothing"):
        Distill(student={"num_hidden_layers": 1}, keep_every=3)

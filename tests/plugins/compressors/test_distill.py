"""Distillation: the loss against numpy in float64, its scale in temperature, and students of every family."""

import numpy as np
import pytest
import torch
from attrs import evolve

from tunesmith.data.records import Example
from tunesmith.errors import ConfigError
from tunesmith.lm import load
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors import Distill
from tunesmith_plugins.compressors.distill_divergence import Divergence
from tunesmith_plugins.compressors.student import every_nth

RUNTIME = Runtime(progress=False)
EXAMPLES = [
    Example(
        id=str(i), prompt=" ".join("abcdefgh"[i % 5 : i % 5 + 3]), targets=(" ".join("mnopqrst"[i % 4 : i % 4 + 4]),)
    )
    for i in range(16)
]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize(("temperature", "soft"), [(1.0, 1.0), (2.0, 0.5), (4.0, 0.9), (1.5, 0.0)])
def test_the_loss_is_the_formula(temperature, soft):
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(3, 7)) * 2, generator.normal(size=(3, 7)) * 2
    labels = np.array([1, 4, 6])
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    kl = (p * (np.log(p) - np.log(q))).sum(-1)
    ce = -np.log(softmax(student)[np.arange(3), labels])
    expected = soft * temperature**2 * kl + (1 - soft) * ce
    loss = Divergence(temperature=temperature, soft=soft, hard=1 - soft)
    found = loss(torch.tensor(student), torch.tensor(teacher), torch.tensor(labels))
    assert np.allclose(found.numpy(), expected, rtol=1e-12)


def test_the_gradient_keeps_its_scale_when_the_temperature_grows():
    # T^2 KL has, to first order in 1/T, the gradient (z_s - z_t) / V for centred logits (Hinton et al. 2015, eq. 4)
    teacher = torch.tensor([[[1.0, -1.0, 0.0, 0.0]]], dtype=torch.float64)
    for temperature in (50.0, 500.0):
        student = torch.tensor([[[0.5, 0.5, -1.0, 0.0]]], dtype=torch.float64, requires_grad=True)
        Divergence(temperature=temperature)(student[0], teacher[0], torch.tensor([0])).sum().backward()
        assert torch.allclose(student.grad, (student - teacher) / 4, atol=0.02)


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2", "bert"])
def test_a_student_has_every_second_layer_and_loads_back(make, tmp_path, kind):
    lm = make(kind)
    student = every_nth(lm, 2)
    assert student.parameter_count() < lm.parameter_count()
    stacks = {"t5": lambda m: m.decoder.block, "llama": lambda m: m.model.layers, "gpt2": lambda m: m.transformer.h,
              "bert": lambda m: m.bert.encoder.layer}  # fmt: skip
    kept, full = stacks[kind](student.model), stacks[kind](lm.model)
    assert len(kept) == 2
    for index, layer in enumerate(kept):
        for (name, a), (_, b) in zip(layer.state_dict().items(), full[2 * index].state_dict().items(), strict=True):
            assert torch.equal(a, b), name
    student.save(tmp_path)
    assert load(tmp_path).parameter_count() == student.parameter_count()


@pytest.mark.parametrize("kind", ["t5", "llama", "bert"])
def test_a_student_comes_nearer_to_its_teacher(make, kind):
    config = Distill(keep_every=2, soft=1.0, temperature=1.0, steps=25, batch_size=8, learning_rate=5e-3)
    small, report = config.build().compress(make(kind), data=EXAMPLES, runtime=RUNTIME)
    losses = report.summary["loss"]
    assert len(losses) == 25
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert report.parameters[1] == small.parameter_count(nonzero=True) < report.parameters[0]
    assert report.bytes[1] < report.bytes[0]


def test_a_given_teacher_is_not_changed_and_the_student_is_the_model_itself(make):
    teacher, student = make("t5", seed=1), make("t5", seed=2)
    before = {n: t.clone() for n, t in teacher.model.state_dict().items()}
    small, _ = Distill(steps=3, batch_size=4).build().compress(student, data=EXAMPLES, teacher=teacher, runtime=RUNTIME)
    assert small.model is student.model
    assert all(torch.equal(before[n], t) for n, t in teacher.model.state_dict().items())


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_an_interrupted_run_ends_with_the_same_weights(make, tmp_path, kind):
    config = Distill(steps=8, batch_size=4, learning_rate=1e-3)
    whole, _ = config.build().compress(
        make(kind), data=EXAMPLES, runtime=Runtime(folder=tmp_path / "a", progress=False)
    )
    folder = tmp_path / "b"
    lm, steps = make(kind), iter(range(5))

    def dying(*_):
        if next(steps, None) is None:
            raise KeyboardInterrupt

    lm.model.register_forward_pre_hook(dying)  # the teacher's, once a step
    with pytest.raises(KeyboardInterrupt):
        config.build().compress(lm, data=EXAMPLES, runtime=Runtime(folder=folder, progress=False))
    assert list(folder.glob("checkpoint-*"))
    resumed, _ = config.build().compress(make(kind), data=EXAMPLES, runtime=Runtime(folder=folder, progress=False))
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_it_says_what_is_missing(make):
    with pytest.raises(ConfigError, match="examples"):
        Distill().build().compress(make("t5"), runtime=RUNTIME)
    with pytest.raises(ConfigError, match="family"):
        Distill().build().compress(make("t5"), data=EXAMPLES, teacher=make("llama"), runtime=RUNTIME)
    with pytest.raises(ConfigError, match="is decided by the Compress stage"):
        Distill(arguments={"device_map": "auto"}).build().compress(make("t5"), data=EXAMPLES, runtime=RUNTIME)
    with pytest.raises(ConfigError, match="is decided by 'soft'"):
        Distill(arguments={"label_smoothing_factor": 0.1}).build().compress(make("t5"), data=EXAMPLES, runtime=RUNTIME)
    with pytest.raises(ConfigError, match="cannot pack"):
        Distill(packing=True).build().compress(make("t5"), data=EXAMPLES, runtime=RUNTIME)


def same(one, other, **tolerance):
    return all(
        torch.allclose(a, b, **tolerance)
        for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True)
    )


def test_steps_of_several_batches_are_steps_of_one_large_batch(make):
    """Even where batches have different numbers of tokens."""
    uneven = [evolve(e, targets=(e.targets[0][: 1 + 2 * (i % 4)],)) for i, e in enumerate(EXAMPLES)]

    def student(batch_size, **arguments):
        lm = make("t5")
        lm.model.config.dropout_rate = 0.0
        config = Distill(steps=3, batch_size=batch_size, learning_rate=0.1, arguments={"optim": "sgd", **arguments})
        return config.build().compress(lm, data=uneven, runtime=RUNTIME)[0]

    large, small = student(8), student(2, gradient_accumulation_steps=4)
    assert same(large, small, atol=2e-5)


def test_packed_examples_have_the_loss_that_they_have_apart(make):
    config = Distill(steps=1, batch_size=16, max_length=64, soft=0.7)
    _, apart = config.build().compress(make("llama"), data=EXAMPLES, runtime=RUNTIME)
    _, packed = evolve(config, packing=True).build().compress(make("llama"), data=EXAMPLES, runtime=RUNTIME)
    assert packed.summary["loss"] == pytest.approx(apart.summary["loss"], rel=1e-5)


def test_prompts_are_in_the_loss_only_if_asked_for(make):
    config = Distill(steps=1, batch_size=16)
    _, answers = config.build().compress(make("llama"), data=EXAMPLES, runtime=RUNTIME)
    _, whole = evolve(config, mask_prompt=False).build().compress(make("llama"), data=EXAMPLES, runtime=RUNTIME)
    assert answers.summary["loss"] != pytest.approx(whole.summary["loss"], rel=1e-3)


def test_it_stops_early_by_examples_that_it_is_not_trained_on(make):
    config = Distill(
        steps=40, batch_size=4, learning_rate=0.3, soft=0.0, validation=0.25, early_stopping=2, arguments={"eval_steps": 2, "save_steps": 2}
    )  # fmt: skip
    _, report = config.build().compress(make("t5"), data=EXAMPLES, runtime=RUNTIME)
    assert report.summary["steps"] < 40
    assert (report.summary["examples"], report.summary["validation_examples"]) == (12, 4)
    assert [step for step, _ in report.summary["validation_loss"]] == list(range(2, report.summary["steps"] + 1, 2))


def test_checkpoints_hold_no_pickle(make, tmp_path):
    runtime = Runtime(folder=tmp_path, progress=False)
    Distill(steps=2, batch_size=4).build().compress(make("t5"), data=EXAMPLES, runtime=runtime)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".json", ".safetensors"}


def test_a_teacher_can_go_on_training(make):
    teacher = make("llama")
    teacher.model.train()
    teacher.model.model.embed_tokens.requires_grad_(False)
    Distill(steps=1).build().compress(make("llama", 1), data=EXAMPLES[:4], teacher=teacher, runtime=RUNTIME)
    assert teacher.model.training
    frozen = [name for name, parameter in teacher.model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.embed_tokens.weight"]

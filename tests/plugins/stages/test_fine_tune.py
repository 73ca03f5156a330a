"""The fine-tuning stage on tiny models: every objective, what it writes, what it refuses."""

import json
import math
from pathlib import Path

import pytest
import torch
from attrs import evolve

from tunesmith.data import Data
from tunesmith.errors import ConfigError, PipelineError, TunesmithError
from tunesmith.kinds.stage import StageContext
from tunesmith.lm import load
from tunesmith.report import content
from tunesmith.runtime import Runtime
from tunesmith.testing import conformance
from tunesmith.testing.models import WORDS, tiny_lm
from tunesmith_plugins.adapters import IA3, Bottleneck, LoRA, Prefix, Prompt
from tunesmith_plugins.compressors import Int8
from tunesmith_plugins.stages import FineTune
from tunesmith_plugins.stages.fine_tune import FineTuneStage
from tunesmith_plugins.stages.training import child


@conformance(FineTune(name="tune"), FineTune(name="tune", adapter=LoRA(), objective="seq2seq", packing=False, steps=3))
def test_conforms(check):
    check()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Data of two word tasks and a model of each family."""
    root = tmp_path_factory.mktemp("tune")
    for task, shift in (("first", 0), ("second", 7)):
        (root / task).mkdir()
        for split, count in (("train", 32), ("validation", 8), ("test", 8)):
            rows = []
            for i in range(count):
                words = [WORDS[(i * 5 + k * 3 + shift + len(split)) % 20] for k in range(6)]
                kind = "good" if words[0] < "f" else "bad"
                rows.append(
                    json.dumps({"x": " ".join(words), "y": " ".join(words[:3]), "kind": kind, "text": " ".join(words)})
                )
            (root / task / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    for family in ("encoder", "decoder", "encoder-decoder"):
        tiny_lm(family).save(root / family)
    return root


@pytest.fixture
def run(folder, tmp_path):
    """Run a stage from a family's model; returns its summary and its context."""

    def go(family, config, seed=1, start=None, name="run", dtype="float32"):
        for part in ("work", "out"):
            (tmp_path / name / part).mkdir(parents=True, exist_ok=True)
        work = tmp_path / name / "work"
        context = StageContext(
            name=name,
            start=str(start or folder / family),
            data=pairs(folder),
            inputs={},
            folder=work,
            out=tmp_path / name / "out",
            runtime=Runtime(seed=seed, folder=work, dtype=dtype),
        )
        return config.build().run(context), context

    return go


def pairs(folder: Path, task: str = "first") -> Data:
    return Data(source=str(folder / task), prompt="{x} ?", target="{y}")


BASE = FineTune(name="x", batch_size=8, validation="validation", learning_rate=1e-2)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("encoder-decoder", {}),
        ("encoder-decoder", {"adapter": LoRA()}),
        ("encoder-decoder", {"adapter": Prompt(tokens=4), "learning_rate": 0.3}),
        ("encoder-decoder", {"adapter": Prefix(tokens=4), "learning_rate": 0.05}),
        ("encoder-decoder", {"adapter": Bottleneck(reduction=4)}),
        ("decoder", {}),
        ("decoder", {"adapter": LoRA()}),
        ("decoder", {"packing": True, "max_length": 48}),
        ("encoder", {}),
        ("encoder", {"adapter": LoRA()}),
    ],
    ids=str,
)
def test_training_lowers_the_validation_loss_and_the_saved_model_has_it(run, folder, family, options):
    config = evolve(BASE, epochs=6, **options)
    summary, context = run(family, config)
    loss = summary["validation_loss"]
    assert loss["after"] < loss["before"]
    lm = load(context.out / "model")
    assert len(lm.adapters) == (1 if config.adapter else 0)
    assert summary["trainable_parameters"] <= summary["parameters"]
    # a second stage on the saved model, of zero learning rate, finds the very same loss
    again, _ = run(
        family, evolve(config, adapter=LoRA(), learning_rate=1e-12, steps=1), start=context.out / "model", name="again"
    )
    assert again["validation_loss"]["before"] == pytest.approx(loss["after"], rel=1e-6)


def test_an_adapter_leaves_the_base_bit_for_bit(run, folder):
    _, context = run("encoder-decoder", evolve(BASE, adapter=LoRA(), epochs=2))
    base = load(context.out / "model" / "base")
    assert base.fingerprint == load(folder / "encoder-decoder").fingerprint


def test_causal_loss_is_over_the_answer_unless_asked_otherwise(run, folder):
    """The loss before training equals the mean negative log-likelihood of the answer's tokens, computed by hand."""
    lm = load(folder / "decoder")
    logps = {"answer": [], "all": []}
    for line in (folder / "first" / "validation.jsonl").read_text().splitlines():
        record = json.loads(line)
        prompt = lm.tokenizer(record["x"] + " ?")["input_ids"]
        ids = lm.tokenizer(record["x"] + " ?" + record["y"])["input_ids"] + [lm.tokenizer.eos_token_id]
        with torch.no_grad():
            every = torch.log_softmax(lm.model(torch.tensor([ids])).logits[0].double(), -1)
        found = [-float(every[t, ids[t + 1]]) for t in range(len(ids) - 1)]
        logps["all"] += found
        logps["answer"] += found[len(prompt) - 1 :]
    for name, masked in (("answer", True), ("all", False)):
        summary, _ = run("decoder", evolve(BASE, steps=1, mask_prompt=masked), name=name)
        assert summary["validation_loss"]["before"] == pytest.approx(sum(logps[name]) / len(logps[name]), rel=1e-5)


def test_span_corruption_trains_on_plain_text(run, folder, tmp_path):
    lm = tiny_lm("encoder-decoder")
    lm.tokenizer.add_special_tokens({"additional_special_tokens": [f"<extra_id_{i}>" for i in range(4)]})
    lm.model.resize_token_embeddings(len(lm.tokenizer))
    lm.save(tmp_path / "model")
    data = Data(source=str(folder / "first"))  # without templates the field "text" is the text
    config = evolve(
        BASE, objective="span_corruption", data=data, epochs=10, adapter=LoRA(), max_length=16, max_target_length=16
    )
    summary, _context = run("encoder-decoder", config, start=tmp_path / "model")
    assert summary["validation_loss"]["after"] < summary["validation_loss"]["before"]
    assert summary["truncated_token_share"] == 0


def test_packed_examples_do_not_see_each_other(run):
    """Packed or not, the loss over the same examples is the same number."""
    apart, _ = run("decoder", evolve(BASE, steps=1), name="apart")
    packed, _ = run("decoder", evolve(BASE, steps=1, packing=True, max_length=64), name="packed")
    assert packed["examples"] < apart["examples"]
    assert packed["validation_loss"]["before"] == pytest.approx(apart["validation_loss"]["before"], rel=1e-5)


def test_packing_with_virtual_tokens_is_refused(run):
    with pytest.raises(ConfigError, match="only its first example would see"):
        run("decoder", evolve(BASE, packing=True, adapter=Prompt(tokens=2)))


@pytest.mark.parametrize("family", ["encoder", "decoder"])
@pytest.mark.parametrize("adapter", [None, LoRA(rank=4)], ids=["full", "lora"])
def test_a_classifier_learns_its_head_and_loads_with_it(run, folder, family, adapter):
    data = evolve(pairs(folder), prompt="{x}", target="{kind}")
    config = evolve(BASE, objective="classification", data=data, adapter=adapter, epochs=20, learning_rate=2e-2)
    summary, context = run(family, config)
    assert summary["validation_loss"]["after"] < min(summary["validation_loss"]["before"], math.log(2))
    lm = load(context.out / "model")  # the folder says what head it has
    assert type(lm.model).__name__.endswith("ForSequenceClassification")
    assert lm.model.config.id2label == {0: "bad", 1: "good"}
    assert load(context.out / "model", head="classification").fingerprint == lm.fingerprint


def test_mixed_tasks_are_learned_together_and_forgetting_is_measured(run, folder):
    held_out = {"second": pairs(folder, "second")}
    alone, _ = run("encoder-decoder", evolve(BASE, epochs=8, held_out=held_out), name="alone")
    mixed, context = run(
        "encoder-decoder",
        evolve(BASE, epochs=8, held_out=held_out, mix={"second": pairs(folder, "second")}, mix_weights={"second": 1.0}),
        name="mixed",
    )
    assert mixed["steps"] == 2 * alone["steps"]  # an epoch is a pass over the main task; the other comes on top
    assert mixed["forgetting"]["second"]["after"] < alone["forgetting"]["second"]["after"]
    table = next(t for t in content.read(context.out / "report").tables if t.title.startswith("Held-out"))
    assert [row[0] for row in table.rows] == ["validation", "second"]


def test_the_report_has_the_loss_of_every_step(run):
    summary, context = run("encoder-decoder", evolve(BASE, steps=5, adapter=LoRA()))
    (series,) = content.read(context.out / "report").series
    assert series.x[:5] == [1.0, 2.0, 3.0, 4.0, 5.0] or tuple(series.x) == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert all(loss is not None for loss in series.y["training"])
    assert series.y["training"][-1] == summary["last_loss"]
    assert summary["steps"] == 5
    assert summary["peak_memory_bytes"] > 2**20
    assert summary["median_step_seconds"] > 0


def test_equal_seeds_give_equal_runs_and_other_seeds_others(run):
    config = evolve(BASE, adapter=LoRA(dropout=0.1), steps=6)
    losses = [run("encoder-decoder", config, seed=s, name=f"s{i}")[0]["last_loss"] for i, s in enumerate((1, 1, 2))]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("adapter", [Bottleneck(), Prompt(tokens=4), LoRA(), IA3()])
def test_an_adapter_trains_on_a_quantized_model_and_all_its_weights_do_not(run, tmp_path, adapter):
    small, _ = Int8().build().compress(tiny_lm("decoder"), runtime=Runtime())
    small.save(tmp_path / "int8")
    _, context = run("decoder", FineTune(name="run", steps=2, adapter=adapter), start=tmp_path / "int8")
    tuned = load(context.out / "model")
    assert [type(a.config) for a in tuned.adapters] == [type(adapter)]
    kept = tuned.unadapted_state()
    for name, tensor in load(tmp_path / "int8").model.state_dict().items():
        assert torch.equal(tensor, kept[name]), name
    with pytest.raises(TunesmithError, match="quantized"):
        run("decoder", FineTune(name="run", steps=2), start=tmp_path / "int8", name="full")


def test_early_stopping_stops_and_keeps_the_best(run):
    config = evolve(
        BASE,
        adapter=LoRA(),
        steps=60,
        learning_rate=3.0,
        early_stopping=2,
        arguments={"eval_steps": 2, "save_steps": 2},
    )
    summary, context = run("encoder-decoder", config)
    assert summary["steps"] < 60
    (series,) = content.read(context.out / "report").series
    best = min(loss for loss in series.y["validation"] if loss is not None)
    assert summary["validation_loss"]["after"] == pytest.approx(best, rel=1e-3)


def test_what_is_cut_is_counted(run):
    summary, context = run("encoder-decoder", evolve(BASE, steps=1, max_length=4, max_target_length=3))
    table = next(t for t in content.read(context.out / "report").tables if t.title == "Truncation")
    rows = {row[0]: row[1:] for row in table.rows}
    # inputs are six words and a question mark, targets three words and an end
    assert list(rows["inputs"]) == [32, 32, 7 * 32, 3 * 32, 3 / 7]
    assert list(rows["targets"]) == [32, 32, 4 * 32, 32, 1 / 4]
    assert summary["truncated_inputs"] == 32


def test_training_arguments_pass_through(run, caplog):
    config = evolve(
        BASE,
        adapter=LoRA(),
        steps=2,
        arguments={
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": True,
            "weight_decay": 0.1,
            "warmup_steps": 1,
        },
    )
    summary, context = run("decoder", config)
    assert summary["steps"] == 2
    state = json.loads(sorted((context.folder / "trainer").glob("checkpoint-*/trainer_state.json"))[-1].read_text())
    assert state["log_history"][0]["learning_rate"] == 0.0  # warmup


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("family", "objective"),
    [
        ("encoder-decoder", "auto"),
        ("decoder", "auto"),
        ("encoder", "auto"),
        ("decoder", "classification"),
        ("encoder", "classification"),
    ],
)
def test_steps_of_several_batches_are_steps_of_one_large_batch(run, tmp_path, family, objective, smoothing):
    """Even where batches have different numbers of tokens, and plain texts, whose first token nobody predicts."""
    classes = objective == "classification"
    rows = [
        {"x": "the cat sees" * (i % 3), "y": ("no", "yes")[i % 2] if classes else "good dog bird " * (1 + 3 * (i % 4))}
        for i in range(16)
    ]
    if family != "decoder" or classes:
        rows = [{**row, "x": f"the cat {row['x']}"} for row in rows]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data(source=str(tmp_path / "train.jsonl"), prompt="{x}", target="{y}")

    def trained(batch_size, **arguments):
        given = {"optim": "sgd", "max_grad_norm": 0.0, "label_smoothing_factor": smoothing, **arguments}
        config = FineTune(
            name="x", data=data, objective=objective, batch_size=batch_size, steps=2, learning_rate=0.1, arguments=given
        )
        summary, context = run(family, config, name=f"of-{batch_size}")
        return summary, load(context.out / "model").model.state_dict()

    large, one = trained(8)
    small, several = trained(2, gradient_accumulation_steps=4)
    assert small["first_loss"] == pytest.approx(large["first_loss"], rel=1e-4)
    assert all(torch.allclose(one[name], several[name], atol=2e-5) for name in one)


def test_the_validation_loss_is_a_mean_over_labels_however_batches_are_cut(run, tmp_path):
    rows = [{"x": "the cat sees", "y": "good dog bird " * (1 + 4 * (i % 3))} for i in range(7)]
    for split in ("train", "validation"):
        (tmp_path / "uneven").mkdir(exist_ok=True)
        (tmp_path / "uneven" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data(source=str(tmp_path / "uneven"), prompt="{x}", target="{y}")
    config = evolve(BASE, data=data, batch_size=2, steps=1, learning_rate=1e-12, arguments={"eval_steps": 1})
    summary, context = run("encoder-decoder", config)
    (series,) = content.read(context.out / "report").series
    assert series.y["validation"] == (pytest.approx(summary["validation_loss"]["before"], rel=1e-6),)


def test_smoothed_labels_are_those_of_torch(run, folder):
    """The loss before any step, by hand: cross-entropy with a tenth of each label spread evenly, over the answer's tokens."""
    config = evolve(BASE, batch_size=32, steps=1, validation="", arguments={"label_smoothing_factor": 0.1})
    summary, _ = run("encoder-decoder", config)
    lm = load(folder / "encoder-decoder")
    losses = []
    for line in (folder / "first" / "train.jsonl").read_text().splitlines():
        record = json.loads(line)
        ids = torch.tensor([lm.tokenizer(record["x"] + " ?")["input_ids"]])
        labels = torch.tensor([[*lm.tokenizer(record["y"])["input_ids"], lm.tokenizer.eos_token_id]])
        with torch.no_grad():
            every = lm.model(input_ids=ids, labels=labels).logits[0]
        losses += torch.nn.functional.cross_entropy(every, labels[0], label_smoothing=0.1, reduction="none").tolist()
    assert summary["first_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_checkpointed_activations_change_no_gradient(run):
    config = evolve(BASE, adapter=LoRA(), steps=4)
    plain, _ = run("decoder", config, name="plain")
    kept, _ = run("decoder", evolve(config, arguments={"gradient_checkpointing": True}), name="kept")
    assert kept["last_loss"] == pytest.approx(plain["last_loss"], rel=1e-6)


def test_prefixes_are_not_lost_silently_under_recomputation(run):
    with pytest.raises(TunesmithError, match="gradient checkpointing switches off"):
        run("decoder", evolve(BASE, adapter=Prefix(tokens=2), steps=1, arguments={"gradient_checkpointing": True}))


def test_all_wrong_arguments_are_named_at_once(run):
    with pytest.raises(ConfigError) as caught:
        run("decoder", evolve(BASE, arguments={"weight_decy": 0.1, "learning_rate": 1.0, "max_steps": 3}))
    assert len(caught.value.problems) == 3
    assert "did you mean 'weight_decay'?" in str(caught.value)


def test_float16_weights_are_not_trained_by_adam(folder, run, tmp_path):
    lm = load(folder / "decoder")
    lm.model.half()
    lm.save(tmp_path / "half")
    with pytest.raises(ConfigError, match=r"is float16.*Adam.*bfloat16"):
        run("", BASE, start=tmp_path / "half", dtype="float16")
    tuned, _ = run("", evolve(BASE, adapter=LoRA()), start=tmp_path / "half", dtype="float16", name="lora")
    assert tuned["last_loss"] < tuned["first_loss"]
    sgd = evolve(BASE, steps=1, arguments={"optim": "sgd"})
    summary, _ = run("", sgd, start=tmp_path / "half", dtype="float16", name="sgd")
    assert summary["steps"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "causal"}, "needs a model of the family 'decoder'"),
        ({"packing": True}, "cannot pack"),
        ({"objective": "span_corruption"}, "has no <extra_id_0>"),
    ],
)
def test_what_cannot_be_is_refused(run, changes, message):
    with pytest.raises(ConfigError, match=message):
        run("encoder-decoder", evolve(BASE, **changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"early_stopping": 1}, r"'early_stopping' needs a validation split or share to stop by: set 'validation'"),
        ({"mix_weights": {"b": 1.0}}, r"every task of 'mix' needs a weight.*\['b'\]"),
        ({"mix": {"b": Data(source="b")}}, r"every task of 'mix' needs a weight.*\['b'\]"),
        ({"mix": {"": Data(source="b")}, "mix_weights": {"": 1.0}}, "a task of 'mix' needs a label"),
        ({"mix": {"b": Data(source="b")}, "mix_weights": {"b": 0.0}}, r"must be finite and > 0: \{'b': 0.0\}"),
        ({"mix": {"b": Data(source="b")}, "mix_weights": {"b": math.inf}}, "must be finite and > 0"),
        ({"held_out": {"validation": Data(source="b")}}, "choose another label in 'held_out'"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_any_work(options, message):
    with pytest.raises(ValueError, match=message):
        FineTune(name="tuned", **options)


def test_without_model_or_data_it_says_so(run, tmp_path):
    context = StageContext(name="x", start=None, data=None, inputs={}, folder=tmp_path, out=tmp_path, runtime=Runtime())
    with pytest.raises(PipelineError, match="no model to train"):
        BASE.build().run(context)
    with pytest.raises(PipelineError, match="no data"):
        BASE.build().run(evolve(context, start="somewhere"))


def test_in_a_child_process_the_result_is_the_same(run):
    config = evolve(BASE, adapter=LoRA(), steps=3)
    here, mine = run("encoder-decoder", config, name="here")
    there, theirs = run("encoder-decoder", evolve(config, measure_in_child=True), name="there")
    assert load(mine.out / "model").fingerprint == load(theirs.out / "model").fingerprint
    assert there["last_loss"] == here["last_loss"]
    assert there["peak_memory_bytes"] > 2**20


@pytest.mark.exhaustive
def test_in_two_processes_it_is_the_training_of_one_with_batches_of_both(run):
    """Evaluation between the steps included, which leaves a model in another mode than training does."""
    config = evolve(BASE, adapter=LoRA(), steps=3, batch_size=4, validation="validation", arguments={"optim": "sgd"})
    here, mine = run("encoder-decoder", evolve(config, batch_size=8), name="here")
    launch = ("--multi_gpu", "--num_processes", "2")
    there, theirs = run("encoder-decoder", evolve(config, launch=launch), name="there")
    for name in ("steps", "first_loss", "last_loss", "trainable_parameters"):
        assert there[name] == pytest.approx(here[name], rel=1e-5), name
    assert there["validation_loss"]["after"] == pytest.approx(here["validation_loss"]["after"], rel=1e-6)
    one, two = (load(context.out / "model").model.state_dict() for context in (mine, theirs))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-5)


def test_an_error_of_somebody_else_in_the_child_is_told_here(run, monkeypatch):
    class Here:
        """The child, in this process."""

        def __init__(self, command, env):
            child.main(Path(command[-1]))

        def wait(self):
            return 0

    def fails(*_):
        raise RuntimeError("no room on the device")

    monkeypatch.setattr(child.subprocess, "Popen", Here)
    monkeypatch.setattr(child, "_end_with_the_run", lambda _: None)
    monkeypatch.setattr(FineTuneStage, "_train", fails)
    with pytest.raises(PipelineError, match="run: RuntimeError in the process that trained: no room on the device"):
        run("decoder", evolve(BASE, measure_in_child=True))


def test_an_error_in_the_child_is_raised_here(run):
    with pytest.raises(ConfigError, match="needs a model of the family 'encoder'"):
        run("decoder", evolve(BASE, objective="masked", measure_in_child=True))

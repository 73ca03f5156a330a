"""The export stage: what stands in the folder loads as the card says and computes the same."""

import json

import pytest
import torch
import transformers
from attrs import evolve

import tunesmith
from tunesmith.errors import PipelineError
from tunesmith.kinds.stage import StageContext
from tunesmith.lm import LM, load
from tunesmith.runtime import Runtime
from tunesmith.testing import conformance
from tunesmith.testing.adapters import move, outputs
from tunesmith.testing.models import WORDS, tiny_lm
from tunesmith_plugins.adapters import IA3, Bottleneck, LoRA, Prompt
from tunesmith_plugins.metrics import ExactMatch
from tunesmith_plugins.stages import Evaluate, Export, FineTune
from tunesmith_plugins.stages.model_card import Record, card

AUTO = {
    "encoder": transformers.AutoModelForMaskedLM,
    "decoder": transformers.AutoModelForCausalLM,
    "encoder-decoder": transformers.AutoModelForSeq2SeqLM,
}


@conformance(Export(name="out"), Export(name="out", folder="somewhere", merge=False))
def test_conforms(check):
    check()


def export(tmp_path, lm, config=None, **options):
    lm.save(tmp_path / "start")
    for part in ("work", "out"):
        (tmp_path / part).mkdir(exist_ok=True)
    context = StageContext(
        name="export",
        start=str(tmp_path / "start"),
        data=None,
        inputs={},
        folder=tmp_path / "work",
        out=tmp_path / "out",
        runtime=Runtime(),
    )
    return Export(name="export", **options).build().run(context), tmp_path / "out" / "model"


def adapted(family, *configs):
    lm = tiny_lm(family)
    for config in configs:
        lm = config.build().attach(lm, Runtime())
        move(lm.adapters[-1], 0.2)
    return lm


@pytest.mark.parametrize("family", AUTO)
@pytest.mark.parametrize("configs", [(), (LoRA(),), (IA3(), LoRA()), (LoRA(), LoRA(rank=2))], ids=len)
def test_merged_it_is_a_folder_for_from_pretrained(tmp_path, family, configs):
    lm = adapted(family, *configs)
    summary, folder = export(tmp_path, lm)
    assert summary["loads_with"] == "from_pretrained"
    theirs = AUTO[family].from_pretrained(folder).eval()
    found, expected = outputs(LM(model=theirs, tokenizer=None, family=family)), outputs(lm)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert len(transformers.AutoTokenizer.from_pretrained(folder)) == len(lm.tokenizer)
    card = (folder / "README.md").read_text()
    assert AUTO[family].__name__ in card
    for config in configs:
        assert type(config).__name__ in card


@pytest.mark.parametrize("config", [Bottleneck(reduction=8), Prompt(tokens=3)], ids=lambda c: type(c).__name__)
def test_what_cannot_be_merged_stays_beside_the_base_and_the_card_says_so(tmp_path, config):
    lm = adapted("encoder-decoder", LoRA(), config)
    summary, folder = export(tmp_path, lm)
    assert summary["left_unmerged"] == [type(config).__name__]
    again = load(folder)
    assert torch.allclose(outputs(again), outputs(lm), atol=1e-4)
    assert [a.config for a in again.adapters] == [config]
    card = (folder / "README.md").read_text()
    assert "does **not** give this model" in card
    assert "tunesmith.load" in card


def test_without_merging_adapters_stay(tmp_path):
    summary, folder = export(tmp_path, adapted("decoder", LoRA()), merge=False)
    assert summary["left_unmerged"] == ["LoRA"]
    assert load(folder).adapters


def test_a_classifier_is_exported_as_one(tmp_path):
    lm = LoRA().build().attach(tiny_lm("encoder", head="classification"), Runtime())
    _, folder = export(tmp_path, lm)
    assert "AutoModelForSequenceClassification" in (folder / "README.md").read_text()
    assert transformers.AutoModelForSequenceClassification.from_pretrained(folder).config.id2label == {
        0: "no",
        1: "yes",
    }


def test_a_copy_goes_where_the_user_wants_it_and_is_renewed(tmp_path):
    target = tmp_path / "elsewhere" / "mine"
    for seed in (0, 1):
        lm = tiny_lm("decoder", seed=seed)
        export(tmp_path, lm, folder=str(target))
        assert load(target).fingerprint == lm.fingerprint
    assert sorted(p.name for p in target.parent.iterdir()) == ["mine"]


def test_a_foreign_folder_is_left_alone(tmp_path):
    target = tmp_path / "thesis"
    target.mkdir()
    (target / "chapter.txt").write_text("years of work")
    with pytest.raises(PipelineError, match="is no export of tunesmith"):
        export(tmp_path, tiny_lm("decoder"), folder=str(target))
    assert (target / "chapter.txt").read_text() == "years of work"


def test_without_a_model_it_says_so(tmp_path):
    context = StageContext(name="x", start=None, data=None, inputs={}, folder=tmp_path, out=tmp_path, runtime=Runtime())
    with pytest.raises(PipelineError, match="no model to export"):
        Export(name="x").build().run(evolve(context))


def test_the_card_shows_a_score_that_is_not_finite():
    score = {"value": None, "low": None, "high": None}
    scores = {"name": "perplexity", "n": 3, "scores": {"perplexity": score, "loss": {**score, "value": 801.25}}}
    text = card(tiny_lm("decoder"), Record(base="here", scores=(scores,)), [], [])
    assert "| perplexity | perplexity | not finite | none | 3 |" in text
    assert "| perplexity | loss | 801.2500 | none | 3 |" in text


def test_in_a_pipeline_the_card_says_how_the_model_was_made_and_what_it_scored(tmp_path):
    rows = [json.dumps({"q": word, "a": "yes"}) for word in WORDS[:12]]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    tiny_lm("encoder-decoder").save(tmp_path / "model")
    pipeline = tunesmith.Pipeline(
        base=str(tmp_path / "model"),
        data=tunesmith.Data(source=str(tmp_path), prompt="{q}", target="{a}"),
        stages=(
            FineTune(name="tuned", adapter=LoRA(), steps=2, batch_size=4),
            Evaluate(name="measured", metrics=(ExactMatch(),)),
            Export(name="out", folder=str(tmp_path / "exported")),
        ),
    )
    pipeline.run(folder=str(tmp_path / "run"))
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "Adapters folded into the weights: LoRA." in card
    assert '"use": "tunesmith/fine_tune"' in card
    assert '"use": "tunesmith/export"' in card  # the whole pipeline
    assert "| exact_match |" in card
    assert f"transformers {transformers.__version__}" in card


def test_a_reused_export_is_copied_again_to_a_folder_that_is_gone(tmp_path):
    import shutil

    tiny_lm("decoder").save(tmp_path / "base")
    target = tmp_path / "deployed"
    pipeline = tunesmith.Pipeline(base=str(tmp_path / "base"), stages=(Export(name="out", folder=str(target)),))
    run = pipeline.run(tmp_path / "run", progress=False)
    before = {p.relative_to(target): p.read_bytes() for p in target.rglob("*") if p.is_file()}
    finished = run.stages["out"].record["finished"]
    shutil.rmtree(target)
    again = pipeline.run(tmp_path / "run", progress=False)
    assert {p.relative_to(target): p.read_bytes() for p in target.rglob("*") if p.is_file()} == before
    assert again.stages["out"].record["finished"] == finished  # copied, not made anew
    assert load(target).family == "decoder"


def test_a_folder_that_is_there_is_left_alone_by_a_reused_export(tmp_path):
    tiny_lm("decoder").save(tmp_path / "base")
    target = tmp_path / "deployed"
    pipeline = tunesmith.Pipeline(base=str(tmp_path / "base"), stages=(Export(name="out", folder=str(target)),))
    pipeline.run(tmp_path / "run", progress=False)
    (target / "note.txt").write_text("mine")
    pipeline.run(tmp_path / "run", progress=False)
    assert (target / "note.txt").read_text() == "mine"

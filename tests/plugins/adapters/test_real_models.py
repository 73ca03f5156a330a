"""Adapters on the two real tiny models."""

import math

import pytest
import torch

from tunesmith.data import Data, load_examples
from tunesmith.generation import generate
from tunesmith.kinds.stage import StageContext
from tunesmith.lm import load
from tunesmith.runtime import Runtime
from tunesmith.testing.adapters import move
from tunesmith_plugins.adapters import IA3, Bottleneck, LoRA, Prefix, Prompt
from tunesmith_plugins.stages import FineTune

pytestmark = pytest.mark.realdata

WORDS = ["آتزمون", "محمد", "سلام"]


@pytest.mark.parametrize(
    "config", [LoRA(), IA3(), Bottleneck(), Bottleneck(style="parallel"), Bottleneck(style="pfeiffer")], ids=str
)
def test_the_transliterator_is_unchanged_by_a_fresh_adapter(real_models, config):
    plain = load(real_models / "aren-seq2seq")
    expected = [c.text for c in generate(plain, WORDS, max_new_tokens=24)]
    assert all(text.strip() for text in expected)
    lm = config.build().attach(load(real_models / "aren-seq2seq"), Runtime())
    assert [c.text for c in generate(lm, WORDS, max_new_tokens=24)] == expected
    move(lm.adapters[0], 1.0)
    assert [c.text for c in generate(lm, WORDS, max_new_tokens=24)] != expected
    with lm.adapters[0].disabled():
        assert [c.text for c in generate(lm, WORDS, max_new_tokens=24)] == expected


@pytest.mark.parametrize("config", [Prompt(tokens=5), Prefix(tokens=5)], ids=str)
def test_the_transliterator_under_a_disabled_soft_prompt_is_itself(real_models, config):
    expected = [c.text for c in generate(load(real_models / "aren-seq2seq"), WORDS, max_new_tokens=24)]
    lm = config.build().attach(load(real_models / "aren-seq2seq"), Runtime())
    move(lm.adapters[0], 2.0)
    assert [c.text for c in generate(lm, WORDS, max_new_tokens=24)] != expected
    with lm.adapters[0].disabled():
        assert [c.text for c in generate(lm, WORDS, max_new_tokens=24)] == expected


def test_lora_takes_the_story_teller_to_another_domain_and_forgets_little(real_models, real_data, tmp_path):
    """A few steps on WikiText lower its loss there; what stories cost is measured beside it."""
    for part in ("work", "out"):
        (tmp_path / part).mkdir()
    text = (real_data / "wikitext2" / "wiki.valid.raw").read_text(encoding="utf-8")
    (tmp_path / "wiki.train.txt").write_text(text[:60_000], encoding="utf-8")
    (tmp_path / "wiki.validation.txt").write_text(text[200_000:215_000], encoding="utf-8")
    stories = (real_data / "tinystories" / "tinystories.txt").read_text(encoding="utf-8")[:15_000]
    (tmp_path / "stories.test.txt").write_text(stories, encoding="utf-8")
    wiki = Data(source=str(tmp_path / "wiki.train.txt"))
    (tmp_path / "both").mkdir()
    for split in ("train", "validation"):
        (tmp_path / f"wiki.{split}.txt").rename(tmp_path / "both" / f"{split}.txt")
    wiki = Data(source=str(tmp_path / "both"))
    context = StageContext(
        name="wiki",
        start=str(real_models / "stories260k"),
        data=wiki,
        inputs={},
        folder=tmp_path / "work",
        out=tmp_path / "out",
        runtime=Runtime(seed=0, folder=tmp_path / "work"),
    )
    stage = FineTune(
        name="wiki",
        adapter=LoRA(rank=8, alpha=32.0),
        steps=25,
        batch_size=8,
        learning_rate=1e-2,
        max_length=128,
        packing=True,
        validation="validation",
        held_out={"stories": Data(source=str(tmp_path / "stories.test.txt"))},
    )
    summary = stage.build().run(context)
    there, stories_loss = summary["validation_loss"], summary["forgetting"]["stories"]
    assert there["after"] < there["before"] - 0.1
    assert stories_loss["before"] < 2.0 < there["before"]  # it knew stories and not encyclopedias
    assert math.isfinite(stories_loss["after"])
    lm = load(tmp_path / "out" / "model")
    with lm.adapters[0].disabled():
        plain = load(real_models / "stories260k")
        ids = torch.tensor([plain.tokenizer("Once upon a time")["input_ids"]])
        with torch.no_grad():
            assert torch.equal(lm.model(ids).logits, plain.model(ids).logits)
    assert load_examples(wiki, "train")

"""Generation, training, compression and alignment on a GPU beside the same on the CPU, and models that go from one to the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tunesmith as ts
from tunesmith.generation import generate
from tunesmith.kinds.rl_algorithm import Online
from tunesmith.kinds.stage import StageContext
from tunesmith.lm import LM, load
from tunesmith.registry import adapters, compressors, rl_algorithms
from tunesmith.runtime import Runtime
from tunesmith.testing.models import WORDS, tiny_lm
from tunesmith_plugins.adapters import Bottleneck, LoRA, Prompt
from tunesmith_plugins.decoders import Speculative
from tunesmith_plugins.engines import Transformers
from tunesmith_plugins.reward_models import LengthPenalty
from tunesmith_plugins.stages import FineTune

pytestmark = pytest.mark.gpu
FAMILIES = ("decoder", "encoder-decoder")
PROMPTS = ["the cat sees a tree", "dog", "one two red and blue fish in the house", "no fish"]
HOT = "chain(links=[repetition_penalty(penalty=1.3), temperature(temperature=1.5), top_k(k=20), top_p(p=0.9)])"
SAMPLERS = (
    HOT,
    "chain(links=[frequency_penalty(penalty=0.4), no_repeat_ngram(size=2), temperature(temperature=1.2), min_p(p=0.02)])",
    "chain(links=[dry(multiplier=0.8), typical(mass=0.9)])",
    "chain(links=[temperature(temperature=1.2), watermark(key=7)])",
    "mirostat(tau=3.0)",
)
DECODERS = (
    "stepwise",
    "beam(beams=3)",
    "diverse_beam(beams=4, groups=2)",
    "contrastive",
    "best_of_n(n=3)",
    "speculative",
    "speculative(verify='tokens')",
)
GPU = Runtime(device="cuda", progress=False)
CPU = Runtime(progress=False)


def there(lm: LM) -> LM:
    lm.model.to("cuda")
    return lm


def tokens(lm: LM, **options: Any) -> list[Any]:
    return [c.token_ids for c in generate(lm, PROMPTS, **{"max_new_tokens": 12, **options})]


def logits(lm: LM) -> torch.Tensor:
    ids = torch.tensor([[4, 5, 6, 7, 8, 1], [9, 10, 11, 12, 13, 1]], device=lm.device)
    extra = {"decoder_input_ids": ids[:, :4]} if lm.family == "encoder-decoder" else {}
    with lm.evaluating():
        found: torch.Tensor = lm.model(input_ids=ids, **extra).logits
    return found.cpu()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("decoder", DECODERS)
def test_greedy_texts_are_those_of_the_cpu(family: Any, decoder: str) -> None:
    assert tokens(there(tiny_lm(family)), decoder=decoder) == tokens(tiny_lm(family), decoder=decoder)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_drawn_texts_are_those_of_the_cpu(family: Any, sampler: str) -> None:
    """The same seeds draw the same numbers; logits that differ in the last bits seldom change what they choose."""
    found, expected = (tokens(lm, sampler=sampler, seed=3) for lm in (there(tiny_lm(family)), tiny_lm(family)))
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 3


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_of_beams_that_draw_are_those_of_the_cpu(family: Any) -> None:
    """As above: the same numbers choose among nearly the same weights."""
    options = {"sampler": HOT, "seed": 3, "decoder": "beam(beams=3, draws=true)", "max_new_tokens": 6}
    found, expected = (tokens(lm, **options) for lm in (there(tiny_lm(family)), tiny_lm(family)))
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1, 3])
def test_a_cache_of_integers_serves_there_too(family: Any, size: int) -> None:
    """Rows come and go, tokens are taken back; the texts do not depend on how many share a cache."""
    engine, lm = Transformers(cache="int8", batch_size=size), there(tiny_lm(family))
    alone = tokens(lm, engine=Transformers(cache="int8", batch_size=1))
    assert tokens(lm, engine=engine) == alone
    assert tokens(lm, engine=engine, decoder="speculative") == alone


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", ["beside", "cpu"])
def test_a_draft_of_a_folder_lies_beside_the_model_or_where_it_is_told_to(
    family: Any, place: str, tmp_path: Path
) -> None:
    tiny_lm(family, spread=0.7).save(tmp_path)
    lm, decoder = there(tiny_lm(family, spread=0.7)), Speculative(draft=str(tmp_path))
    options = {} if place == "beside" else {"runtime": CPU}
    assert tokens(lm, decoder=decoder, **options) == tokens(lm)


@pytest.mark.parametrize("family", ["encoder", *FAMILIES])
@pytest.mark.parametrize("name", sorted({entry.name for entry in compressors.entries()} - {"distill"}))
def test_a_model_made_smaller_there_is_the_one_of_the_cpu(family: Any, name: str, tmp_path: Path) -> None:
    texts = [" ".join(WORDS[k : k + 9]) for k in range(0, 36, 3)]
    data = {} if name in ("int8_weight_only", "magnitude") else {"data": texts}
    config = compressors.create(name, ffn=0.5, layers=0.5) if name == "structured" else compressors.create(name)
    made = {
        place: ts.compress(lm, config, runtime=Runtime(device=place, progress=False), **data)
        for place, lm in (("cuda", there(tiny_lm(family))), ("cpu", tiny_lm(family)))
    }
    assert made["cuda"].device.type == "cuda"
    found, expected = logits(made["cuda"]), logits(made["cpu"])
    assert (found - expected).norm() < 0.05 * expected.norm()
    made["cuda"].save(tmp_path)
    assert torch.equal(logits(load(tmp_path, runtime=GPU)), found)
    assert (logits(load(tmp_path)) - found).norm() < 1e-3 * found.norm()


@pytest.mark.parametrize("name", sorted({entry.name for entry in adapters.entries()} - {"full"}))
def test_an_adapter_is_the_same_wherever_it_is(name: str, tmp_path: Path) -> None:
    """Attached, saved there and loaded on the other device; a model read there by a fresh process has it too."""
    made = {}
    for place in ("cpu", "cuda"):
        lm = tiny_lm("encoder-decoder")
        lm.model.to(place)
        tuned = adapters.create(name).build().attach(lm, Runtime(device=place, seed=1, progress=False))
        for number, (_, parameter) in enumerate(tuned.adapters[-1].trainable()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1
            with torch.no_grad():
                parameter.copy_(noise.to(parameter.device))
        assert tuned.device.type == place
        made[place] = logits(tuned)
        tuned.save(tmp_path / place)
    assert torch.allclose(made["cuda"], made["cpu"], atol=1e-3)
    assert torch.allclose(logits(load(tmp_path / "cuda")), made["cpu"], atol=1e-3)
    assert torch.allclose(logits(load(tmp_path / "cpu", runtime=GPU)), made["cpu"], atol=1e-3)


@pytest.mark.parametrize("family", ["encoder", *FAMILIES])
@pytest.mark.parametrize("adapter", [None, LoRA(), Prompt(tokens=4), Bottleneck(reduction=4)], ids=str)
def test_fine_tuning_there_loses_what_it_loses_on_the_cpu(family: Any, adapter: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        rows = [{"x": " ".join(WORDS[k : k + 5]), "y": WORDS[k + len(split) % 2]} for k in range(24)]
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_lm(family).save(tmp_path / "start")
    data = ts.Data(source=str(tmp_path / "data"), prompt="{x} ?", target="{y}")
    config = FineTune(name="x", batch_size=8, validation="validation", learning_rate=1e-2, steps=16, adapter=adapter)
    found = {}
    for place in ("cpu", "cuda"):
        work = tmp_path / place
        runtime = Runtime(device=place, seed=1, folder=work, progress=False)
        stage = StageContext(
            name="x",
            start=str(tmp_path / "start"),
            data=data,
            inputs={},
            folder=work,
            out=work / "out",
            runtime=runtime,
        )
        work.mkdir(exist_ok=True)
        found[place] = config.build().run(stage)["validation_loss"]
        loaded = load(work / "out" / "model", runtime=GPU)
        assert len(loaded.adapters) == (adapter is not None)
    assert found["cuda"]["before"] == pytest.approx(found["cpu"]["before"], rel=1e-4)
    assert found["cuda"]["after"] == pytest.approx(found["cpu"]["after"], rel=0.05)
    assert found["cuda"]["after"] < found["cuda"]["before"]


@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo", "reinforce"])
@pytest.mark.parametrize("family", FAMILIES)
def test_online_learning_begins_where_the_cpu_does(name: str, family: Any) -> None:
    groups = {"group_size": 4} if name == "grpo" else {}
    config = rl_algorithms.create(name, steps=2, batch_size=4, max_new_tokens=5, learning_rate=1e-3, **groups)
    task = Online(prompts=PROMPTS, reward=LengthPenalty(most=2).build())
    reports = {}
    for place in ("cpu", "cuda"):
        runtime = Runtime(device=place, seed=1, progress=False)
        lm = tiny_lm(family)
        lm.model.to(place)
        lm = adapters.create("lora").build().attach(lm, runtime)
        reports[place] = config.build().train(lm, task, runtime).steps
    first, other = reports["cuda"][0], reports["cpu"][0]
    assert first.keys() == other.keys()
    assert first["reward"] == pytest.approx(other["reward"], abs=1e-4)
    assert abs(first["kl"]) < 1e-4

"""LoRA and (IA)^3 on models whose weights are int8, in every family."""

import copy
import gc
import weakref

import pytest
import torch
from attrs import evolve
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

from tunesmith.errors import ConfigError, TunesmithError
from tunesmith.kinds.stage import StageContext
from tunesmith.lm import load
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.adapters import IA3, Bottleneck, LoRA, Prefix
from tunesmith_plugins.adapters.quantized import stood_in
from tunesmith_plugins.compressors import Int8
from tunesmith_plugins.compressors.fused import unfuse
from tunesmith_plugins.compressors.int8_linear import Int8Linear
from tunesmith_plugins.stages import Export

FAMILIES = ("encoder", "decoder", "encoder-decoder")
ADAPTERS = (LoRA(rank=2), IA3())
RUNTIME = Runtime(seed=1, threads=1, progress=False)


def int8(family):
    small, _ = Int8().build().compress(tiny_lm(family), runtime=RUNTIME)
    return small


def attached(lm, config):
    adapter = config.build()
    adapter.setup(RUNTIME)
    return adapter, adapter.attach(lm, RUNTIME)


def batch(lm):
    ids = lm.tokenizer(["the cat sees a dog", "good bird"], padding=True, return_tensors="pt")
    labels = ids["input_ids"].clone()
    return {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"], "labels": labels}


def logits(lm):
    unfuse(lm.model)  # an adapter takes a layer out of its fused form, which rounds otherwise
    with lm.evaluating():
        return lm.model(**batch(lm)).logits


def trained(lm, adapter):
    """Take a few steps and return the losses."""
    optimizer = torch.optim.AdamW([p for _, p in adapter.trainable()], lr=0.05)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = lm.model(**batch(lm)).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", ADAPTERS, ids=lambda c: type(c).__name__)
def test_it_begins_as_nothing_trains_is_switched_off_and_comes_back(tmp_path, family, config):
    lm = int8(family)
    integers = [m for m in lm.model.modules() if isinstance(m, Int8Linear)]
    before, weights = logits(lm), [m.weight_int8().clone() for m in integers]
    adapter, lm = attached(lm, config)
    assert [m for m in lm.model.modules() if isinstance(m, Int8Linear)] == integers
    assert torch.allclose(logits(lm), before, atol=1e-6)
    losses = trained(lm, adapter)
    assert losses[-1] < losses[0]
    after = logits(lm)
    assert not torch.allclose(after, before, atol=1e-3)
    assert all(torch.equal(m.weight_int8(), w) for m, w in zip(integers, weights, strict=True))
    with adapter.disabled():
        assert torch.allclose(logits(lm), before, atol=1e-6)
    lm.save(tmp_path)
    again = load(tmp_path)
    assert again.model.is_quantized
    assert torch.allclose(logits(again), after, atol=1e-6)
    assert sum(isinstance(m, Int8Linear) for m in again.model.modules()) == len(integers)


def test_the_layer_is_the_integer_layer_plus_the_low_rank_update():
    adapter, lm = attached(int8("decoder"), LoRA(rank=2, alpha=6))
    trained(lm, adapter)
    (layer,) = (m for n, m in lm.model.named_modules() if n.endswith("layers.0.self_attn.q_proj"))
    x = torch.randn(3, layer.in_features)
    a, b = (layer.lora_A[adapter.name].weight, layer.lora_B[adapter.name].weight)
    with torch.no_grad():
        assert torch.allclose(layer(x), layer.base_layer(x) + 3 * x @ a.T @ b.T, atol=1e-6)


@pytest.mark.parametrize("config", ADAPTERS, ids=lambda c: type(c).__name__)
def test_adapters_stack_and_each_can_be_switched_off(config):
    lm = int8("decoder")
    first, lm = attached(lm, config)
    trained(lm, first)
    alone = logits(lm)
    second, lm = attached(lm, LoRA(rank=3))
    trained(lm, second)
    assert not torch.allclose(logits(lm), alone, atol=1e-4)
    with second.disabled():
        assert torch.allclose(logits(lm), alone, atol=1e-6)


@pytest.mark.parametrize("config", ADAPTERS, ids=lambda c: type(c).__name__)
def test_it_cannot_be_merged_and_export_keeps_it_on_top(tmp_path, config):
    adapter, lm = attached(int8("encoder-decoder"), config)
    trained(lm, adapter)
    with pytest.raises(TunesmithError, match="cannot be folded into int8 weights"):
        adapter.merge(lm)
    lm.save(tmp_path / "start")
    context = StageContext(
        name="out",
        start=str(tmp_path / "start"),
        data=None,
        inputs={},
        folder=tmp_path / "work",
        out=tmp_path / "out",
        runtime=evolve(RUNTIME, folder=tmp_path / "work"),
    )
    summary = Export(name="out").build().run(context)
    assert summary["left_unmerged"] == [type(config).__name__]
    assert summary["loads_with"] == "tunesmith.load"
    assert torch.allclose(logits(load(tmp_path / "out" / "model")), logits(lm), atol=1e-6)


def test_a_head_tied_to_int8_embeddings_takes_an_adapter_too(tmp_path):
    lm = tiny_lm("encoder-decoder")
    assert lm.model.lm_head.weight is lm.model.shared.weight
    lm, _ = Int8().build().compress(lm, runtime=RUNTIME)
    logits(lm)  # packs
    adapter, lm = attached(lm, LoRA(rank=2, targets=("lm_head", "q")))
    losses = trained(lm, adapter)
    assert losses[-1] < losses[0]
    lm.save(tmp_path)
    assert torch.allclose(logits(load(tmp_path)), logits(lm), atol=1e-6)


def test_trainers_take_no_bare_model_in_which_norms_alone_would_train(tmp_path):
    lm = int8("decoder")
    lm.save(tmp_path)
    arguments = TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True)
    for model in (lm.model, load(tmp_path).model, copy.deepcopy(lm.model)):
        assert any(parameter.requires_grad for parameter in model.parameters())
        with pytest.raises(ValueError, match="purely quantized models"):
            Trainer(model, arguments)
        model.requires_grad_(False)
        with pytest.raises(ValueError, match="purely quantized models"):
            Trainer(model, arguments)
        next(model.parameters()).requires_grad_(True)  # chosen by hand
        Trainer(model, arguments)
    for config in (LoRA(rank=2), IA3(), Bottleneck(), Prefix()):
        _, tuned = attached(load(tmp_path), config)
        Trainer(tuned.model, arguments)
        Trainer(copy.deepcopy(tuned.model), arguments)


def test_the_quantizer_does_not_keep_its_model_alive():
    model = int8("decoder").model
    gone = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules="all-linear"),
        LoraConfig(target_modules=["q_proj", "v_proj"]),
        IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
        LoHaConfig(target_modules=["o_proj"]),
    ],
    ids=["all-linear", "named", "ia3", "loha"],
)
def test_adapters_that_peft_makes_itself_go_around_integer_layers(tmp_path, config):
    lm = int8("decoder")
    lm.save(tmp_path / "base")
    before = logits(lm)
    integers = [m for m in lm.model.modules() if isinstance(m, Int8Linear)]
    with stood_in(lm.model):
        tuned = get_peft_model(lm.model, config)
    assert [m for m in lm.model.modules() if isinstance(m, Int8Linear)] == integers
    with torch.no_grad():
        assert torch.equal(tuned(**batch(lm)).logits, before)
    Trainer(tuned, TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True))
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = tuned(**batch(lm)).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    tuned.save_pretrained(tmp_path / "adapter")
    again = load(tmp_path / "base")
    unfuse(again.model)
    with stood_in(again.model):
        read = PeftModel.from_pretrained(again.model, str(tmp_path / "adapter"))
    with torch.no_grad():
        assert torch.equal(read.eval()(**batch(lm)).logits, tuned.eval()(**batch(lm)).logits)
    with pytest.raises(ConfigError, match="is int8"):
        tuned.merge_and_unload()

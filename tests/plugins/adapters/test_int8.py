"""LoRA and (IA)^3 on models whose weights are int8, in every family."""

import copy
import gc
import weakref

import pytest
import torch
from attrs import evolve
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, get_peft_model
from tiny_batches import batch
from transformers import Trainer, TrainingArguments

from tunesmith.errors import TunesmithError
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
    arguments = TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, disable_tqdm=True)
    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}]
    for model in (lm.model, load(tmp_path).model, copy.deepcopy(lm.model)):
        assert any(parameter.requires_grad for parameter in model.parameters())
        with pytest.raises(ValueError, match="purely quantized models"):
            Trainer(model, arguments)
        model.requires_grad_(False)
        frozen = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
        assert frozen.evaluate()["eval_loss"] > 0
        with pytest.raises(RuntimeError, match="does not require grad"):
            frozen.train()
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
    for safe in (False, True):
        with pytest.raises(TunesmithError, match="cannot be folded into int8 weights"):
            tuned.merge_and_unload(safe_merge=safe)


def test_peft_does_not_merge_into_integers_that_are_not_packed_yet():
    """``safe_merge`` casts what it adds to the type of the weights, which would be nothing at all."""
    lm = int8("decoder")
    lm.model.to("cpu")  # unpacks
    with stood_in(lm.model):
        tuned = get_peft_model(lm.model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    integers = {m: m.weight_int8().clone() for m in lm.model.modules() if isinstance(m, Int8Linear)}
    assert all(module._packed is None for module in integers)
    for merge in (tuned.merge_adapter, tuned.merge_and_unload):
        for safe in (False, True):
            with pytest.raises(TunesmithError, match="cannot be folded into int8 weights"):
                merge(safe_merge=safe)
    assert all(torch.equal(module.weight_int8(), before) for module, before in integers.items())


def test_a_refused_merge_leaves_float_layers_too():
    lm, _ = Int8(skip=("layers.0",)).build().compress(tiny_lm("decoder"), runtime=RUNTIME)
    with stood_in(lm.model):
        tuned = get_peft_model(lm.model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    unfuse(lm.model)
    with torch.no_grad(), tuned.disable_adapter():
        before = tuned(**batch(lm)).logits
    with pytest.raises(TunesmithError, match="cannot be folded into int8 weights"):
        tuned.merge_and_unload()
    with torch.no_grad(), tuned.disable_adapter():
        assert torch.equal(tuned(**batch(lm)).logits, before)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        *({"init_lora_weights": name} for name in ("pissa", "pissa_niter_4", "olora", "mica")),
    ],
    ids=str,
)
def test_methods_that_read_the_weights_are_refused_and_leave_the_model(options):
    lm = int8("decoder")
    before, modules = logits(lm), list(lm.model.modules())
    with pytest.raises(TunesmithError, match="these are int8"), stood_in(lm.model):
        get_peft_model(lm.model, LoraConfig(target_modules=["q_proj"], **options))
    assert list(lm.model.modules()) == modules
    assert torch.equal(logits(lm), before)


@pytest.mark.parametrize(
    "options", [{"use_rslora": True}, {"init_lora_weights": "gaussian"}, {"init_lora_weights": "orthogonal"}], ids=str
)
def test_methods_that_do_not_read_them_train(options):
    lm = int8("decoder")
    with stood_in(lm.model):
        tuned = get_peft_model(lm.model, LoraConfig(r=4, lora_alpha=2, target_modules=["q_proj"], **options))
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    tuned(**batch(lm)).loss.backward()
    torch.optim.SGD(parameters, lr=1.0).step()
    assert any(not torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    (layer,) = (m for n, m in lm.model.named_modules() if n.endswith("layers.0.self_attn.q_proj"))
    x = torch.randn(3, layer.in_features)
    scale = 1.0 if options.get("use_rslora") else 0.5  # alpha over the root of the rank, or over the rank
    update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    with torch.no_grad():
        assert torch.allclose(layer(x), layer.base_layer(x) + scale * x @ update.T, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_in_modules_to_save_trains_as_a_float_copy(tmp_path, family):
    """peft copies the layer; a copy of what stands in its place would be all zeros."""
    lm = int8(family)
    lm.save(tmp_path / "base")
    before = logits(lm)
    name, head = next((n, m) for n, m in lm.model.named_modules() if m is lm.model.get_output_embeddings())
    target = {"encoder": "query", "decoder": "q_proj", "encoder-decoder": "q"}[family]
    config = LoraConfig(target_modules=[target], modules_to_save=[name])
    with stood_in(lm.model):
        tuned = get_peft_model(lm.model, config)
    copy_ = lm.model.get_submodule(name).modules_to_save["default"]
    assert lm.model.get_submodule(name).original_module is head
    source = getattr(head, "source", head)
    assert torch.equal(copy_.weight, source.dequantized())
    assert all(p.requires_grad for p in copy_.parameters())
    tuned.eval()
    with torch.no_grad():
        found = tuned(**batch(lm)).logits
        assert 0 < float((found - before).norm() / before.norm()) < 0.02  # its activations are not rounded
        with tuned.disable_adapter():
            assert torch.equal(tuned(**batch(lm)).logits, before)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        tuned(**batch(lm)).loss.backward()
        optimizer.step()
    assert not torch.equal(copy_.weight, source.dequantized())
    tuned.save_pretrained(tmp_path / "adapter")
    again = load(tmp_path / "base")
    unfuse(again.model)
    with stood_in(again.model):
        read = PeftModel.from_pretrained(again.model, str(tmp_path / "adapter"))
    with torch.no_grad():
        assert torch.equal(read.eval()(**batch(lm)).logits, tuned(**batch(lm)).logits)
        with read.disable_adapter():
            assert torch.equal(read(**batch(lm)).logits, before)


def test_a_float_copy_is_of_the_models_type():
    lm = tiny_lm("decoder")
    lm.model.to(torch.bfloat16)
    lm, _ = Int8().build().compress(lm, runtime=RUNTIME)
    with stood_in(lm.model):
        tuned = get_peft_model(lm.model, LoraConfig(target_modules=["q_proj"]))  # its own weights are float32
    with stood_in(lm.model):
        tuned.add_adapter("two", LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head", "down_proj"]))
    tuned.set_adapter("two")
    assert lm.model.lm_head.modules_to_save["two"].weight.dtype == torch.bfloat16
    tuned(**batch(lm)).loss.backward()
    assert lm.model.lm_head.modules_to_save["two"].weight.grad.isfinite().all()


def test_int8_embeddings_are_no_copies_to_train():
    lm = int8("decoder")
    with (
        pytest.raises(TunesmithError, match="is an int8 Int8Embedding, of which no float copy can be trained"),
        stood_in(lm.model),
    ):
        get_peft_model(lm.model, LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"]))


def test_an_adapter_that_lies_on_float_layers_alone_is_merged():
    lm = tiny_lm("decoder")
    lm, _ = Int8(skip=("mlp",)).build().compress(lm, runtime=RUNTIME)
    with stood_in(lm.model):
        tuned = get_peft_model(lm.model, LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    with stood_in(lm.model):
        tuned.add_adapter("other", LoraConfig(target_modules=["up_proj"], init_lora_weights=False))
    tuned.set_adapter("other")
    tuned.eval()
    expected = logits(lm)
    tuned.merge_adapter(["other"])
    assert torch.allclose(logits(lm), expected, atol=1e-4)
    with pytest.raises(TunesmithError, match="cannot be folded into int8 weights"):
        tuned.merge_adapter(["default"])
    tuned.unmerge_adapter()
    tuned.delete_adapter("default")
    tuned.merge_adapter(["other"])

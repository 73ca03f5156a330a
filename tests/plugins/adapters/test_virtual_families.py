"""Prompts and prefixes on every text architecture of transformers: written on in batches as alone, scored as written, or refused in words.

A small set always runs; the rest is exhaustive.
"""

from inspect import signature

import pytest
import torch
from attrs import evolve
from text_models import ALL, HOT, PROMPTS, text_model
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

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
    "prompt": "DeepseekV4 FSMT-encoder-decoder Gemma4Text ProphetNet Qwen4ExpText".split(),
    "prefix": """
    AXK2 BigBirdPegasus-encoder-decoder DeepseekV32 DeepseekV4 Dots3NoteText FSMT-encoder-decoder FalconMamba GlmMoeDsa HYV4
    LED-encoder-decoder LongT5-encoder-decoder Mamba Mamba2 MiniMax OpenAIGPT PegasusX-encoder-decoder ProphetNet
    ProphetNet-encoder-decoder Qwen4ExpText RecurrentGemma Reformer Rwkv xLSTM
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
    if not needs(lm.model).one_by_one and kind_of(lm) not in NEAR:
        anew = generate(lm, prompts, engine=Transformers(batch_size=1, kv_cache=False), **options)
        assert [c.token_ids for c in anew] == [c.token_ids for c in ours]


WHY = {
    "DeepseekV32": "its attention keeps more than keys and values",
    "FSMT": "no self-attention with a cache of keys and values was found",
    "Mamba": "no self-attention with a cache of keys and values was found",
    "MiniMax": "its attention keeps more than keys and values",
    "ProphetNet": "over a cache it reads one token at a time, and training reads whole texts",
    "RecurrentGemma": "what it keeps of a text serves no further token",
    "BigBirdPegasus": "it attends to blocks of a long text",
}


@pytest.mark.parametrize("kind", WHY)
def test_what_takes_no_prefix_is_told_why_and_what_to_take(kind):
    family = "encoder-decoder" if kind in ("FSMT", "BigBirdPegasus") else "decoder"
    lm = text_model(kind, family)
    with pytest.raises(ConfigError, match=f"{WHY[kind]}; take prompt, p_tuning or lora instead"):
        Prefix().build().attach(lm, Runtime())
    assert not any(module._forward_pre_hooks for module in lm.model.modules())


@pytest.mark.parametrize("kind", ["NllbMoe", "T5Gemma"])
def test_attention_to_what_was_read_gets_no_prefix(kind):
    lm = Prefix(tokens=3).build().attach(text_model(kind, "encoder-decoder"), Runtime())
    ids = torch.tensor([PROMPTS[0]])
    past = lm.model(input_ids=ids, decoder_input_ids=ids[:, :2], use_cache=True).past_key_values
    assert past.self_attention_cache.get_seq_length() == 3 + 2


REAL = [9, 22, 6, 40]
TEXT = torch.tensor([[5, 9, 30, 12], [21, 33, 5, 6]])
RELATIVE = {"T5", "MT5", "UMT5", "SwitchTransformers"}
"""Whose encoders count distances, so that a prefix stands before the text; elsewhere a key has its position in it."""


def behind(plain, ids):
    """Logits (batch, time, vocab) of a text behind what stands in the encoder, the decoder or both."""
    if not plain.config.is_encoder_decoder:
        return plain(input_ids=ids).logits
    return plain(input_ids=ids, decoder_input_ids=TEXT).logits


def kept_of(lm, ids):
    """What the decoder's attentions keep of real tokens, as a table has it, and logits of the text over that."""
    half = lm.model.get_decoder() if lm.family == "encoder-decoder" else lm.model
    past, options = DynamicCache(config=half.config), {}
    recurrent = [layer for layer in past.layers if isinstance(layer, LinearAttentionCacheLayerMixin)]
    if not recurrent:
        past = DynamicCache()  # windows keep all then
    name, given = "input_ids", past
    if lm.family == "encoder-decoder":
        options = {"encoder_outputs": lm.model.get_encoder()(input_ids=TEXT[:1], return_dict=True)}
        name, given = "decoder_input_ids", EncoderDecoderCache(past, DynamicCache())
    lm.model(**{name: ids, "past_key_values": given, "use_cache": True}, **options)
    kept = [
        part for layer in past.layers if getattr(layer, "keys", None) is not None for part in (layer.keys, layer.values)
    ]
    table = torch.cat([part[0].transpose(0, 1).flatten(1) for part in kept], dim=-1)
    if not recurrent:
        logits = lm.model(**{name: torch.cat([ids, TEXT[:1]], dim=1)}, **options).logits[:, ids.shape[1] :]
    else:  # a state begins with the text
        for layer in recurrent:
            LinearAttentionCacheLayerMixin.reset(layer)
        if "position_ids" in signature(lm.model.forward).parameters:  # Bamba does not count what a cache holds
            options = {"position_ids": torch.arange(4, 8)[None]}
        logits = lm.model(input_ids=TEXT[:1], past_key_values=past, use_cache=True, **options).logits
        options = {}
    return table, logits, {**options, name: TEXT[:1]}


def read_by(encoder, ids):
    """Keys and values that an encoder's attentions make of all tokens, as a table has them, and its states."""
    seen = []

    class Seen:
        def get_seq_length(self, layer_idx=None):
            return 0

        def update(self, keys, values, layer_idx):
            seen.extend([keys, values])
            return keys, values

    def lend(module, args, kwargs):
        return args, {**kwargs, "past_key_values": Seen()}

    attentions = [m for m in encoder.modules() if type(m).__name__.endswith(("Attention", "SelfAttention"))]
    attentions = [m for m in attentions if "past_key_values" in signature(m.forward).parameters]
    inner = [m for m in attentions if not any(part in attentions for part in m.modules() if part is not m)]
    hooks = [m.register_forward_pre_hook(lend, with_kwargs=True) for m in inner]
    states = encoder(input_ids=ids, return_dict=True).last_hidden_state
    for hook in hooks:
        hook.remove()
    return torch.cat([part[0].transpose(0, 1).flatten(1) for part in seen], dim=-1), states


SOME = {"GPTNeoX", "Lfm2", "OPT", "T5"}
EVERY = [pytest.param(*one, marks=() if one[0] in SOME else pytest.mark.exhaustive, id="-".join(one)) for one in ALL]


@pytest.mark.parametrize(("kind", "family"), EVERY)
@torch.no_grad()
def test_real_tokens_in_the_place_of_virtual_ones_are_those_tokens(kind, family, adapter, tmp_path):
    """The oracle: what a plain model makes of a text behind a real prompt, whose vectors, keys and values the adapter is given."""
    plain = text_model(kind, family)
    name = type(adapter).__name__.lower()
    if (kind if family == "decoder" else f"{kind}-{family}") in REFUSED[name] or needs(plain.model).unfit:
        pytest.skip("takes none")
    real = torch.tensor([REAL])
    adapter = evolve(adapter, tokens=len(REAL))
    lm = adapter.build().attach(text_model(kind, family), Runtime())
    ours = dict(lm.adapters[0].trainable())
    if name == "prompt":
        reader = lm.model.get_encoder() if family == "encoder-decoder" else lm.model.get_decoder()
        scale = getattr(reader, "embed_scale", 1.0)
        ours["embedding.weight"].copy_(plain.model.get_input_embeddings()(real[0]) * scale)
        expected = behind(plain.model, torch.cat([real.expand(2, -1), TEXT], dim=1))
        found = behind(lm.model, TEXT)
        expected = expected[:, -found.shape[1] :]
    else:
        table, expected, inputs = kept_of(plain, real)
        ours["decoder.embedding.weight"].copy_(table)
        found = lm.model(**inputs).logits
        assert torch.allclose(lm.model(**inputs, use_cache=False).logits, found, atol=1e-4)
        assert lm.model(**inputs, use_cache=False).get("past_key_values") is None
    assert torch.allclose(found, expected, atol=2e-3)
    if name == "prefix" and family == "encoder-decoder":
        text = TEXT[:1, :2]  # within the windows of T5Gemma, which prefixes are always in
        table, states = read_by(
            plain.model.get_encoder(), torch.cat([real, text] if kind in RELATIVE else [text, real], 1)
        )
        at, of = (slice(4), slice(4, None)) if kind in RELATIVE else (slice(2, None), slice(2))
        ours["encoder.embedding.weight"].copy_(table[at])
        assert torch.allclose(lm.model.get_encoder()(input_ids=text).last_hidden_state, states[:, of], atol=2e-3)
    lm.adapters[0].save(tmp_path)
    again = adapter.build().load(text_model(kind, family), tmp_path, Runtime())
    assert torch.equal(behind(again.model, TEXT), behind(lm.model, TEXT))


@pytest.mark.parametrize(("kind", "family"), EVERY)
def test_training_reaches_every_virtual_token_and_nothing_else(kind, family, adapter):
    lm = text_model(kind, family)
    name = type(adapter).__name__.lower()
    if (kind if family == "decoder" else f"{kind}-{family}") in REFUSED[name] or needs(lm.model).unfit:
        pytest.skip("takes none")
    if kind == "Reformer":
        pytest.skip("trains on texts of the length of its table alone")
    lm = adapter.build().attach(lm, Runtime())
    lm.model.train()
    for use_cache in (True, False):
        lm.model.config.use_cache = use_cache
        lm.model(input_ids=TEXT, attention_mask=torch.ones_like(TEXT), labels=TEXT).loss.backward()
        for parameter, table in lm.adapters[0].trainable():
            assert (table.grad.abs().sum(-1) > 0).all(), parameter
            table.grad = None
    own = {id(parameter) for _, parameter in lm.adapters[0].trainable()}
    assert all(parameter.grad is None for parameter in lm.model.parameters() if id(parameter) not in own)

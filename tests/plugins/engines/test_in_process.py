import logging
from concurrent.futures import ThreadPoolExecutor

import attrs
import numpy as np
import pytest
import torch
import transformers

from tunesmith.errors import ConfigError
from tunesmith.generation import component, generate, prompt_ids
from tunesmith.hf_generate import custom_generate
from tunesmith.kinds.decoder import Limits, Request
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith.spec import parse
from tunesmith.testing.models import tiny_lm, tiny_tokenizer
from tunesmith_plugins.decoders import Stepwise
from tunesmith_plugins.decoders.stepwise import StepwiseDecoder
from tunesmith_plugins.engines import Transformers, places
from tunesmith_plugins.engines.in_process import _fit
from tunesmith_plugins.samplers import ForcedTokens, LogitBias

PROMPTS = ["the cat sees a tree", "dog", "one two red and blue fish in the house", "no fish"]
HOT = "chain(links=[temperature(temperature=1.5), top_p(p=0.95)])"
SIZES = {"vocab_size": 51, "pad_token_id": None, "eos_token_id": 1, "bos_token_id": 3}


def spread(model, width):
    """Make a random model's logits differ visibly."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * width)
    return model.eval()


def gpt2():
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **SIZES)
    return LM(model=spread(transformers.GPT2LMHeadModel(config), 0.3), tokenizer=tiny_tokenizer(), family="decoder")


def sliding():
    config = transformers.MistralConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
        **SIZES,
    )
    return LM(model=spread(transformers.MistralForCausalLM(config), 0.3), tokenizer=tiny_tokenizer(), family="decoder")


def bloom():
    config = transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **SIZES)
    return LM(model=spread(transformers.BloomForCausalLM(config), 0.3), tokenizer=tiny_tokenizer(), family="decoder")


def seq2seq(config, model, **settings):
    made = spread(
        model(
            config(
                d_model=32,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                encoder_ffn_dim=64,
                decoder_ffn_dim=64,
                max_position_embeddings=64,
                decoder_start_token_id=1,
                **{**SIZES, "pad_token_id": 0},
                **settings,
            )
        ),
        0.3,
    )
    made.generation_config.forced_eos_token_id = None
    return LM(model=made, tokenizer=tiny_tokenizer(), family="encoder-decoder")


def bart():
    lm = seq2seq(transformers.BartConfig, transformers.BartForConditionalGeneration)
    lm.model.generation_config.forced_bos_token_id = 7
    return lm


def mbart():
    return seq2seq(transformers.MBartConfig, transformers.MBartForConditionalGeneration)


def pegasus():
    return seq2seq(transformers.PegasusConfig, transformers.PegasusForConditionalGeneration)


def marian():
    return seq2seq(
        transformers.MarianConfig,
        transformers.MarianMTModel,
        decoder_vocab_size=51,
        share_encoder_decoder_embeddings=True,
    )


def blenderbot():
    return seq2seq(transformers.BlenderbotConfig, transformers.BlenderbotForConditionalGeneration)


def m2m100():
    return seq2seq(transformers.M2M100Config, transformers.M2M100ForConditionalGeneration)


def t5():
    return tiny_lm("encoder-decoder")


def umt5():
    config = transformers.UMT5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0, **{**SIZES, "pad_token_id": 0}
    )
    model = spread(transformers.UMT5ForConditionalGeneration(config), 0.3)
    return LM(model=model, tokenizer=tiny_tokenizer(), family="encoder-decoder")


def rembert():
    config = transformers.RemBertConfig(
        hidden_size=32, input_embedding_size=32, output_embedding_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, is_decoder=True, **{**SIZES, "pad_token_id": 0},
    )  # fmt: skip
    model = spread(transformers.RemBertForCausalLM(config), 0.3)
    return LM(model=model, tokenizer=tiny_tokenizer(), family="decoder")


def roformer():
    config = transformers.RoFormerConfig(
        hidden_size=32, embedding_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, is_decoder=True, **{**SIZES, "pad_token_id": 0},
    )  # fmt: skip
    model = transformers.RoFormerForCausalLM(config)
    turns = model.roformer.encoder.embed_positions.weight.detach().clone()
    spread(model, 0.3).roformer.encoder.embed_positions.weight.data.copy_(turns)
    return LM(model=model, tokenizer=tiny_tokenizer(), family="decoder")


def switch():
    config = transformers.SwitchTransformersConfig(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4, num_experts=2, decoder_start_token_id=0,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, **{**SIZES, "pad_token_id": 0},
    )  # fmt: skip
    model = spread(transformers.SwitchTransformersForConditionalGeneration(config), 0.3)
    return LM(model=model, tokenizer=tiny_tokenizer(), family="encoder-decoder")


MODELS = {
    "gpt2": gpt2,
    "rembert": rembert,
    "roformer": roformer,
    "switch transformers": switch,
    "mistral with a window": sliding,
    "bloom": bloom,
    "t5": t5,
    "umt5": umt5,
    "bart": bart,
    "mbart": mbart,
    "pegasus": pegasus,
    "marian": marian,
    "blenderbot": blenderbot,
    "m2m100": m2m100,
}
APART = {"mistral with a window", "m2m100", "roformer"}
"""Rows of different age cannot share a batch: windows; positions that the model works out from ids, or from places in the cache."""


@pytest.fixture(scope="module", params=list(MODELS))
def lm(request):
    return MODELS[request.param]()


def test_greedy_tokens_are_those_of_transformers_in_mixed_batches(lm):
    ours = generate(lm, PROMPTS, max_new_tokens=8, engine=Transformers(batch_size=3))
    for completion, ids in zip(ours, prompt_ids(lm, PROMPTS), strict=True):
        ids = torch.tensor([ids])
        theirs = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        new = theirs[0, ids.shape[1] if lm.family == "decoder" else 1 :].tolist()
        assert tuple(new) == completion.token_ids


def test_a_row_that_ended_at_the_last_position_disturbs_nobody():
    lm = gpt2()
    prompts = [[5 + n % 20 for n in range(60)], *[[6, 7, 8 + n] for n in range(15)]]
    limits = [4, *[40] * 15]
    # with sixteen rows an ended one keeps its place in the cache for a while, behind the end of the table of positions
    together = generate(lm, prompts, max_new_tokens=limits, min_new_tokens=40, engine=Transformers(batch_size=16))
    for prompt, limit, completion in zip(prompts, limits, together, strict=True):
        (alone,) = generate(lm, [prompt], max_new_tokens=limit, min_new_tokens=limit)
        assert alone.token_ids == completion.token_ids


def test_a_first_token_that_the_generation_config_forces_comes_first():
    for completion in generate(bart(), PROMPTS, sampler=HOT, max_new_tokens=3):
        assert completion.token_ids[0] == 7


@pytest.mark.parametrize(
    "kept", [{}, {"kv_cache": False}, {"cache": "int8"}], ids=["float cache", "no cache", "int8 cache"]
)
def test_tokens_do_not_depend_on_the_size_of_the_batch(lm, kept, request):
    if "cache" in kept and request.node.callspec.params["lm"] == "mistral with a window":
        with pytest.raises(ConfigError, match="leave cache='int8' out"):
            generate(lm, PROMPTS, engine=Transformers(**kept))
        return
    if "cache" in kept and request.node.callspec.params["lm"] == "roformer":
        pytest.skip("it turns keys by their places, padding and all, before they are rounded")
    # many ends, so that rows leave and enter a running batch at all times
    settings = lm.model.generation_config
    before, settings.eos_token_id = settings.eos_token_id, [1, *range(8, 20)]
    options = {"sampler": HOT, "completions": 3, "max_new_tokens": 9}
    alone = generate(lm, PROMPTS, engine=Transformers(batch_size=1, cache=kept.get("cache", "float")), **options)
    engine = Transformers(batch_size=4, **kept).build()
    entered = []
    engine.sync(lm)
    model = engine.step_model
    replace = model.replace
    model.replace = lambda cache, index, new: entered.append(len(index)) or replace(cache, index, new)
    engine.sync = lambda lm: None
    together = generate(lm, PROMPTS, engine=engine, **options)
    settings.eos_token_id = before
    assert len({len(c.token_ids) for c in alone}) >= 3
    assert [c.token_ids for c in alone] == [c.token_ids for c in together]
    for one, other in zip(alone, together, strict=True):
        assert other.logp == pytest.approx(one.logp, abs=1e-2 if "cache" in kept else 1e-4)
    assert model.joins == (request.node.callspec.params["lm"] not in APART)
    assert bool(entered) == model.joins, "nobody entered a running batch"


def test_a_model_without_a_cache_is_read_anew_at_every_step():
    lm = tiny_lm()
    expected = generate(lm, PROMPTS, sampler=HOT, max_new_tokens=6)
    forward = lm.model.forward

    def without(*args, **kwargs):
        output = forward(*args, **{**kwargs, "use_cache": False, "past_key_values": None})
        output.past_key_values = None
        return output

    import functools

    lm.model.forward = functools.wraps(forward)(without)
    found = generate(lm, PROMPTS, sampler=HOT, max_new_tokens=6, engine=Transformers(batch_size=3))
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]


def test_a_prompt_that_is_asked_for_many_times_is_read_once(lm):
    many = ["dog", "one two red", "dog", "dog"]
    alone = [generate(lm, [p], ids=[str(n)], sampler=HOT, max_new_tokens=5)[0] for n, p in enumerate(many)]
    rows = []
    reader = lm.model.get_encoder() if lm.family == "encoder-decoder" else lm.model.get_input_embeddings()
    hook = reader.register_forward_pre_hook(
        lambda module, inputs, named: rows.append(len([*inputs, *named.values()][0])), with_kwargs=True
    )
    found = generate(lm, many, sampler=HOT, max_new_tokens=5)
    hook.remove()
    assert rows[0] == 2
    assert [c.token_ids for c in found] == [c.token_ids for c in alone]


def test_an_encoder_is_refused():
    with pytest.raises(ConfigError, match="encoder and writes no text"):
        generate(tiny_lm("encoder"), PROMPTS)


def test_an_engine_without_a_model_says_so():
    with pytest.raises(ConfigError, match="sync"):
        Transformers().build().score([((5,), (6,))])


def test_long_prompts_lose_their_beginning_but_not_the_first_token_and_are_counted(caplog):
    lm = tiny_lm()
    engine = Transformers(max_length=8).build()
    long = (3, 10, 11, 12, 13, 14, 15)
    engine.sync(lm)

    def first(prompt):
        requests = [Request(prompt_ids=prompt), Request(prompt_ids=(5, 6))]
        found = engine.generate(
            requests, component(None, "decoder"), component(None, "sampler"), Limits(max_new_tokens=4), Runtime()
        )
        return next(c.token_ids for c in found if c.request == 0)

    with caplog.at_level(logging.WARNING):
        cut = first(long)
    assert engine.truncated == 1
    assert "1 of 2 prompts were longer than 4 tokens" in caplog.text
    assert first((3, 13, 14, 15)) == cut
    assert engine.truncated == 1
    assert first((9, *long[1:])) == first((12, 13, 14, 15))
    assert engine.truncated == 2


def test_what_an_encoder_reads_loses_its_end_but_not_the_end_of_text():
    lm = tiny_lm("encoder-decoder")
    engine = Transformers(max_length=4).build()
    engine.sync(lm)
    assert _fit(lm, (5, 6, 7, 8, 9, 1), 4, 0) == (5, 6, 7, 1)
    assert _fit(lm, (5, 6, 7, 8, 9), 4, 0) == (5, 6, 7, 8)
    scores = engine.score([((5, 6, 7, 8, 9, 1), (10, 11)), ((5, 6, 7, 1), (10, 11))])
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert engine.truncated == 1


def test_no_room_for_a_prompt_is_an_error():
    with pytest.raises(ConfigError, match="no room for a prompt"):
        generate(tiny_lm(), PROMPTS, max_new_tokens=128)


def test_a_decoder_with_few_positions_ends_there_and_says_so(caplog):
    lm = bart()
    with caplog.at_level(logging.WARNING):
        (found,) = generate(lm, PROMPTS[:1], max_new_tokens=100, min_new_tokens=80)
    assert len(found.token_ids) == 64
    assert "64 positions" in caplog.text


def test_an_empty_prompt_of_ids_is_an_error():
    engine = Transformers().build()
    engine.sync(tiny_lm())
    with pytest.raises(ConfigError, match="request 0 has an empty prompt"):
        list(
            engine.generate(
                [Request(prompt_ids=())],
                component(None, "decoder"),
                component(None, "sampler"),
                Limits(),
                Runtime(),
            )
        )


def test_a_model_that_cannot_tell_padding_reads_rows_of_one_length_only():
    config = transformers.RwkvConfig(hidden_size=32, num_hidden_layers=2, context_length=64, **SIZES)
    lm = LM(model=spread(transformers.RwkvForCausalLM(config), 0.3), tokenizer=tiny_tokenizer(), family="decoder")
    alone = generate(lm, PROMPTS, max_new_tokens=5, engine="transformers(batch_size=1)")
    for prompt, found in zip(PROMPTS, alone, strict=True):
        ids = torch.tensor([prompt_ids(lm, [prompt])[0]])
        theirs = lm.model.generate(ids, max_new_tokens=5, do_sample=False, use_cache=False)[0, ids.shape[1] :]
        assert tuple(theirs[: len(found.token_ids)].tolist()) == found.token_ids
    assert generate(lm, PROMPTS[1:2] * 2, max_new_tokens=5)[1].token_ids == alone[1].token_ids
    single = [[token] for token in range(4, 8)]
    together = generate(lm, single, max_new_tokens=5)
    for prompt, found in zip(single, together, strict=True):
        assert found.token_ids == generate(lm, [prompt], max_new_tokens=5)[0].token_ids
    with pytest.raises(ConfigError, match="cannot tell padding from text"):
        generate(lm, PROMPTS, max_new_tokens=5)


def recurrent_gemma():
    config = transformers.RecurrentGemmaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, lru_width=32, **SIZES
    )
    model = spread(transformers.RecurrentGemmaForCausalLM(config), 0.3)
    with torch.no_grad():
        for block in model.model.layers[:2]:
            block.temporal_block.linear_x.bias.fill_(1.0)  # what padding brings into the convolution
    return LM(model=model, tokenizer=tiny_tokenizer(), family="decoder")


def test_a_model_that_looks_at_padding_in_a_part_of_it_reads_rows_of_one_length_only():
    lm = recurrent_gemma()
    ids = [list(row) for row in prompt_ids(lm, PROMPTS[:2])]
    width = max(map(len, ids))
    padded = torch.tensor([[0] * (width - len(row)) + row for row in ids])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    assert not mask.all()
    for decoder in ("stepwise", "contrastive", "beam"):
        with pytest.raises(ConfigError, match="cannot tell padding from text"):
            generate(lm, ids, max_new_tokens=3, decoder=decoder)
    with pytest.raises(ConfigError, match="takes padding for text"):
        lm.model.generate(padded, attention_mask=mask, max_new_tokens=3, custom_generate=custom_generate())
    assert min(map(len, ids)) == 1  # of which it would make more of the last text
    alone = generate(lm, ids, max_new_tokens=5, engine="transformers(batch_size=1)")
    for row, found in zip(ids, alone, strict=True):
        one = torch.tensor([row])
        for way in ({"do_sample": False}, {"custom_generate": custom_generate()}):
            theirs = lm.model.generate(
                one, attention_mask=torch.ones_like(one), max_new_tokens=5, use_cache=False, **way
            )
            assert tuple(theirs[0, len(row) :].tolist()) == found.token_ids


def test_a_decoder_that_reads_several_tokens_at_once_wrongly_needs_its_cache():
    sizes = {"hidden_size": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_start_token_id": 1}
    layers = {"num_encoder_layers": 2, "num_decoder_layers": 2}
    heads = {"num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4}
    config = transformers.ProphetNetConfig(
        max_position_embeddings=64, **sizes, **layers, **heads, **{**SIZES, "pad_token_id": 0}
    )
    model = spread(transformers.ProphetNetForConditionalGeneration(config), 0.3)
    lm = LM(model=model, tokenizer=tiny_tokenizer(), family="encoder-decoder")
    for found, ids in zip(generate(lm, PROMPTS, max_new_tokens=8), prompt_ids(lm, PROMPTS), strict=True):
        theirs = model.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, 1:]
        assert tuple(theirs.tolist()) == found.token_ids
    with pytest.raises(ConfigError, match="leave kv_cache=False out"):
        generate(lm, PROMPTS, engine="transformers(kv_cache=false)")
    with pytest.raises(ConfigError, match="use the decoder 'stepwise'"):
        generate(lm, PROMPTS, decoder="speculative")


def test_a_model_that_predicts_at_mapped_places_is_refused():
    config = transformers.XLNetConfig(vocab_size=51, d_model=32, d_inner=64, n_layer=1, n_head=4)
    lm = LM(model=transformers.XLNetLMHeadModel(config), tokenizer=tiny_tokenizer(), family="decoder")
    with pytest.raises(ConfigError, match="XLNetLMHeadModel predicts at places that its caller maps"):
        generate(lm, PROMPTS)


def completions_of(lm, *requests, sampler="top_p", decoder="stepwise"):
    engine = Transformers().build()
    engine.sync(lm)
    parts = parse(decoder, "decoder").build(), parse(sampler, "sampler").build()
    return [c.token_ids for c in engine.generate(requests, *parts, Limits(max_new_tokens=4), Runtime())]


def test_a_model_that_wants_a_mask_behind_the_text_is_refused():
    config = transformers.XLMConfig(emb_dim=32, n_layers=1, n_heads=4, **{**SIZES, "pad_token_id": 0})
    lm = LM(model=transformers.XLMWithLMHeadModel(config), tokenizer=tiny_tokenizer(), family="decoder")
    with pytest.raises(ConfigError, match="predicts at places that its caller maps"):
        generate(lm, PROMPTS)


def test_requests_hold_ids_and_numbers_of_any_kind():
    lm = tiny_lm()
    plain = completions_of(lm, Request(prompt_ids=(5, 6), seed=2, negative_ids=(7,)), decoder="guidance")
    for of in (list, np.array, torch.tensor):
        number = of([2])[0]
        request = Request(prompt_ids=of([5, 6]), seed=number, max_new_tokens=number + 2, negative_ids=of([7]))
        assert completions_of(lm, request, request, decoder="guidance") == [*plain, *plain]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompt_ids": (5, 99)}, "request 0 has the id 99, and the model has 51 ids"),
        ({"prompt_ids": (-1,)}, "request 0 has the id -1"),
        ({"prompt_ids": (5.5,)}, "request 0 is neither"),
        ({"negative_ids": (99,)}, "the negative prompt of request 0 has the id 99"),
        ({"parameters": {"top_p.p": 2.0}}, "top_p.p=2: 'p' must be <= 1"),
        ({"parameters": {"top_p.ties": 1}}, "is the same for all rows"),
        ({"parameters": {"top_p.p": [0.5]}}, "top_p.p: a number was expected"),
    ],
)
def test_what_the_model_or_the_sampler_has_not_is_refused_by_name(request_, message):
    with pytest.raises(ConfigError, match=message):
        completions_of(tiny_lm(), Request(**{"prompt_ids": (5,), **request_}))


def test_limits_are_whole_numbers_and_stop_strings_a_tuple():
    with pytest.raises(ConfigError, match=r"max_new_tokens: a whole number was expected, not float 3.5"):
        Limits(max_new_tokens=3.5)
    with pytest.raises(ConfigError, match=r"min_new_tokens: a whole number was expected, not str '3'"):
        Limits(min_new_tokens="3")
    with pytest.raises(ConfigError, match=r"max_new_tokens: a whole number was expected, not str '3'"):
        Request(prompt_ids=(5,), max_new_tokens="3")
    with pytest.raises(ConfigError, match=r"min_new_tokens=5 is more than max_new_tokens=4"):
        Limits(max_new_tokens=4, min_new_tokens=5)
    with pytest.raises(ConfigError, match="'stop' is a tuple of strings, and 'dog' is none"):
        Limits(stop="dog")


def test_ends_that_the_vocabulary_has_not_end_nothing():
    lm = tiny_lm()
    lm.model.generation_config.eos_token_id = [1, 999]
    for decoder in ("stepwise", "beam(beams=2)", "contrastive"):
        (found,) = generate(lm, [[5]], decoder=decoder, min_new_tokens=3, max_new_tokens=4)
        assert len(found.token_ids) >= 3


def test_an_end_below_zero_is_none_and_bars_no_token():
    lm = tiny_lm()
    lm.model.generation_config.eos_token_id = -1
    last = lm.model.config.vocab_size - 1
    for decoder in ("stepwise", "beam(beams=2, draws=True)"):
        options = {"sampler": LogitBias(bias={str(last): 1e4}), "decoder": decoder, "max_new_tokens": 3}
        (found,) = generate(lm, ["dog"], min_new_tokens=3, **options)
        assert found.token_ids == (last,) * 3


def test_an_end_that_is_written_and_completes_a_stop_string_is_a_stop():
    lm = tiny_lm()
    cat = lm.tokenizer.convert_tokens_to_ids("cat")
    lm.model.generation_config.eos_token_id = [1, cat]
    sampler = ForcedTokens(at={"0": cat - 1, "1": cat})
    for decoder in ("stepwise", "beam(beams=1)", "speculative"):
        options = {"sampler": sampler, "decoder": decoder, "max_new_tokens": 5}
        (found,) = generate(lm, ["dog"], stop=("cat",), **options)
        assert (found.finish, len(found.token_ids)) == ("stop", 2)
        assert "cat" not in found.text
        pieces = list(generate(lm, ["dog"], stop=("cat",), stream=True, **options))
        assert "".join(piece.text for piece in pieces) == found.text
        (found,) = generate(lm, ["dog"], **options)
        assert found.finish == "eos"
        assert found.text.endswith("cat")


def test_long_texts_are_not_kept():
    engine = Transformers().build()
    engine.sync(tiny_lm())
    model = engine.step_model
    for number in range(40):
        assert model.text([5 + number] * 2000) == model.text([5 + number] * 2000)
        model.text([5 + number])
    assert model._texts[1].cache_info().currsize == 40


def test_ends_come_from_the_generation_config_first():
    lm = tiny_lm()
    free = generate(lm, PROMPTS[:1], max_new_tokens=6, min_new_tokens=6)[0].token_ids
    lm.model.generation_config.eos_token_id = [1, free[2]]
    (found,) = generate(lm, PROMPTS[:1], max_new_tokens=6)
    assert found.token_ids == free[: free.index(free[2]) + 1]
    assert found.finish == "eos"


def test_generating_leaves_the_training_mode_and_gradients_as_they_were():
    lm = tiny_lm()
    lm.model.config.attention_dropout = 0.5
    expected = generate(lm, PROMPTS, max_new_tokens=4)
    lm.model.train()
    engine = Transformers().build()
    engine.sync(lm)
    requests = [Request(prompt_ids=ids) for ids in prompt_ids(lm, PROMPTS)]
    parts = component(None, "decoder"), component(None, "sampler")
    for completion in engine.generate(requests, *parts, Limits(max_new_tokens=4), Runtime()):
        assert torch.is_grad_enabled(), "a consumer that trains between completions would have no gradients"
        assert lm.model.training
        assert completion.token_ids == expected[completion.request].token_ids


def test_weights_that_change_in_place_are_followed_without_a_word():
    lm, other = tiny_lm(), tiny_lm(seed=3)
    engine = Transformers().build()
    generate(lm, PROMPTS, engine=engine, max_new_tokens=4)
    with torch.no_grad():
        for mine, theirs in zip(lm.model.parameters(), other.model.parameters(), strict=True):
            mine.copy_(theirs)
    requests = [Request(prompt_ids=ids) for ids in prompt_ids(lm, PROMPTS)]
    parts = component(None, "decoder"), component(None, "sampler")
    found = engine.generate(requests, *parts, Limits(max_new_tokens=4), Runtime())
    expected = generate(other, PROMPTS, max_new_tokens=4)
    assert {c.request: c.token_ids for c in found} == {c.request: c.token_ids for c in expected}


def test_caches_given_to_select_and_join_stay_as_they_were():
    lm = tiny_lm()
    engine = Transformers().build()
    engine.sync(lm)
    model = engine.step_model
    _, cache = model.begin([(5, 6, 7), (8,)])
    _, younger = model.begin([(9, 10)])
    again = model.select(cache, torch.tensor([0, 1]))
    token = torch.tensor([11])
    expected, _ = model.step(token, model.select(cache, torch.tensor([1])))
    model.step(torch.tensor([11, 12, 11]), model.join([cache, younger]))
    model.step(torch.tensor([12]), model.select(cache, torch.tensor([0])))
    found, _ = model.step(token, model.select(again, torch.tensor([1])))
    torch.testing.assert_close(found, expected)
    assert attrs.asdict(cache, recurse=False)["mask"].shape == (2, 3)


@pytest.mark.parametrize("adapter", [None, "prefix(tokens=3)", "prompt(tokens=3)"])
def test_rows_go_on_alike_after_padding_is_cut_off_or_put_before_them(adapter):
    from tunesmith.spec import parse

    lm = tiny_lm()
    if adapter is not None:
        lm = parse(adapter, "adapter").build().attach(lm, Runtime())
        with torch.no_grad():
            for _, parameter in lm.adapters[0].trainable():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    engine = Transformers().build()
    engine.sync(lm)
    model = engine.step_model
    long, short, token = (5, 6, 7, 8), (9,), torch.tensor([11])
    expected, _ = model.step(token, model.begin([short])[1])
    _, together = model.begin([long, short])
    cut = model.select(together, torch.tensor([1]))
    assert cut.mask.shape == (1, 1)
    torch.testing.assert_close(model.step(token, cut)[0], expected)
    joined = model.join([model.begin([short])[1], model.begin([long])[1]])
    torch.testing.assert_close(model.step(token.expand(2), joined)[0][:1], expected)


def elsewhere(work):
    """Return what another thread makes of a call, while this one waits where it is."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_threads_that_write_with_one_model_do_not_meet_in_its_table_of_positions():
    lm = bart()
    expected = [c.token_ids for c in generate(lm, PROMPTS, max_new_tokens=5)]
    table = places.table(lm.model.get_decoder())
    with places.shifted(table, torch.tensor([3, 0])):
        assert [c.token_ids for c in elsewhere(lambda: generate(lm, PROMPTS, max_new_tokens=5))] == expected
        shown = table(torch.zeros(2, 2, dtype=torch.int64), position_ids=torch.tensor([4, 5]))
    offset = table.offset
    assert torch.equal(shown[0], table.weight[torch.tensor([1, 2]) + offset])
    assert torch.equal(shown[1], table.weight[torch.tensor([4, 5]) + offset])


def test_states_are_those_of_the_thread_that_asked():
    lm = gpt2()
    engine = component(None, "engine")
    engine.sync(lm)
    with engine.step_model._watching() as seen:
        other = elsewhere(lambda: lm.model(torch.tensor([[5, 6, 7]])))
        assert other.hidden_states is None
        assert not seen
        lm.model(torch.tensor([[5, 6]]))
        assert [states.shape[1] for states in seen] == [2]


def test_a_stream_keeps_to_the_model_that_it_was_begun_with():
    first, second, engine = gpt2(), bart(), component(None, "engine")
    expected = [c.token_ids for c in generate(first, PROMPTS, max_new_tokens=6)]
    begun = generate(first, PROMPTS, engine=engine, max_new_tokens=6, stream=True)
    generate(second, PROMPTS, engine=engine, max_new_tokens=6)
    done = {p.request: p.completion.token_ids for p in begun if p.completion is not None}
    assert [done[number] for number in range(len(PROMPTS))] == expected


def test_what_is_wrong_is_said_when_it_is_asked_for():
    engine = component(None, "engine")
    engine.sync(gpt2())
    for ask in (engine.generate, engine.stream):
        with pytest.raises(ConfigError, match="request 0 has an empty prompt"):
            ask(
                [Request(prompt_ids=())],
                component(None, "decoder"),
                component(None, "sampler"),
                Limits(max_new_tokens=4),
                Runtime(),
            )


def test_a_decoder_that_is_no_generator_finds_a_sampler_that_knows_the_tokens():
    class AtOnce(StepwiseDecoder):
        def decode(self, step_model, requests, sampler, limits, runtime):
            asked.append(known[-1] if known else None)
            return iter(list(super().decode(step_model, requests, sampler, limits, runtime)))

    asked, known = [], []
    lm = tiny_lm("decoder")
    engine = Transformers().build()
    engine.sync(lm)
    sampler = component("greedy", "sampler")
    sampler.use_tokenizer = lambda tokenizer, end_ids: known.append(tokenizer)
    given = [Request(prompt_ids=(4, 5), seed=0)], AtOnce(Stepwise()), sampler, Limits(max_new_tokens=2), Runtime()
    assert len(list(engine.generate(*given))) == 1
    assert list(engine.stream(*given))
    assert asked[0] is lm.tokenizer


def test_ids_that_are_no_tokens_have_no_text():
    tokenizer = transformers.ByT5Tokenizer()
    more = len(tokenizer) + 16
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=4, **{**SIZES, "vocab_size": more})
    lm = LM(model=spread(transformers.GPT2LMHeadModel(config), 0.3), tokenizer=tokenizer, family="decoder")
    sampler = ForcedTokens(at={"0": 3 + ord("a"), "1": more - 1, "2": 3 + ord("b")})
    for stream in (False, True):
        found = list(generate(lm, ["x"], sampler=sampler, max_new_tokens=3, stop=("never",), stream=stream))
        assert "".join(piece.text for piece in found) == "ab"

"""Where tokens stand: models that count by themselves, models behind a wrapper, and texts up to the last position there is."""

from functools import partial

import pytest
import torch
import transformers

from tunesmith.continuation import Pair, positions, readable, truncate, writable
from tunesmith.errors import ConfigError, DataError
from tunesmith.generation import generate
from tunesmith.hf_generate import custom_generate
from tunesmith.lm import LM
from tunesmith.padding import first_position
from tunesmith.processes import Processes
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm, tiny_tokenizer
from tunesmith_plugins.adapters import Prefix, Prompt, PTuning
from tunesmith_plugins.decoders import Speculative
from tunesmith_plugins.engines import Transformers
from tunesmith_plugins.engines.decoder_only import DecoderOnly
from tunesmith_plugins.rl_algorithms.rollouts import Drawer

PROMPTS = [[5, 9, 30, 12, 7, 8, 40, 41, 9, 22, 6], [17], [21, 33, 5, 6], [9, 9, 9]]
HOT = "chain(links=[temperature(temperature=1.5), top_p(p=0.95)])"
BOTH = {
    "vocab_size": 51, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": 3, "decoder_start_token_id": 1,
}  # fmt: skip


def wide(model, family):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.35)
    model.generation_config.forced_eos_token_id = None
    return LM(model=model.eval(), tokenizer=tiny_tokenizer(), family=family)


def bart_alone():
    # the config counts the layers of the encoder that is not there, of which the cache has some then
    config = transformers.BartConfig(max_position_embeddings=32, **{**BOTH, "encoder_layers": 4})
    return wide(transformers.BartForCausalLM(config), "decoder")


def marian_alone():
    config = transformers.MarianConfig(max_position_embeddings=32, **{**BOTH, "pad_token_id": 50})
    return wide(transformers.MarianForCausalLM(config), "decoder")


def bart():
    config = transformers.BartConfig(max_position_embeddings=32, **BOTH)
    return wide(transformers.BartForConditionalGeneration(config), "encoder-decoder")


def mvp():
    config = transformers.MvpConfig(max_position_embeddings=32, **BOTH)
    return wide(transformers.MvpForConditionalGeneration(config), "encoder-decoder")


def led():
    config = transformers.LEDConfig(
        max_encoder_position_embeddings=32, max_decoder_position_embeddings=16, attention_window=8, **BOTH
    )
    return wide(transformers.LEDForConditionalGeneration(config), "encoder-decoder")


def two_berts(Config=transformers.BertConfig):
    sizes = {
        "vocab_size": 51,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    encoder = Config(max_position_embeddings=32, **sizes)
    decoder = Config(max_position_embeddings=16, is_decoder=True, add_cross_attention=True, **sizes)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = 3, 1, 0
    return wide(transformers.EncoderDecoderModel(config=config), "encoder-decoder")


def two_robertas():
    return two_berts(partial(transformers.RobertaConfig, pad_token_id=2))


def many_ends(lm):
    lm.model.generation_config.eos_token_id = [1, *range(8, 22)]
    return lm


@pytest.mark.parametrize("kept", [{}, {"kv_cache": False}, {"cache": "int8"}], ids=["float", "none", "int8"])
@pytest.mark.parametrize("make", [bart_alone, marian_alone, mvp])
def test_models_that_count_by_themselves_give_rows_of_any_age_their_own_positions(make, kept):
    lm = many_ends(make())
    options = {"sampler": HOT, "completions": 3, "max_new_tokens": 9}
    alone = generate(lm, PROMPTS, engine=Transformers(batch_size=1, cache=kept.get("cache", "float")), **options)
    together = generate(lm, PROMPTS, engine=Transformers(batch_size=4, **kept), **options)
    assert len({len(c.token_ids) for c in alone}) >= 3
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]


@pytest.mark.parametrize("adapter", [Prompt(tokens=3), Prefix(tokens=3)])
def test_adapters_that_take_places_leave_the_others_in_theirs(adapter):
    lm = adapter.build().attach(many_ends(bart_alone()), Runtime())
    options = {"sampler": HOT, "completions": 2, "max_new_tokens": 7}
    alone = generate(lm, PROMPTS, engine=Transformers(batch_size=1), **options)
    together = generate(lm, PROMPTS, engine=Transformers(batch_size=4), **options)
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]


def test_several_tokens_are_read_and_taken_back_where_the_model_counts():
    lm = bart_alone()
    expected = generate(lm, PROMPTS, max_new_tokens=9, engine=Transformers(batch_size=1))
    found = generate(lm, PROMPTS, max_new_tokens=9, decoder="speculative(tokens=3, ngram=1)")
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]


def test_transformers_loop_would_count_padding_and_is_refused_padded_prompts():
    lm = bart_alone()
    ids = torch.tensor([[0, 0, 5], [6, 7, 8]])
    draw = custom_generate(HOT)
    with pytest.raises(ConfigError, match="takes padding for text"):
        lm.model.generate(ids, attention_mask=(ids > 0).long(), max_new_tokens=3, custom_generate=draw)
    lm.model.generate(ids[1:], max_new_tokens=3, custom_generate=draw)


def test_a_compiled_model_is_told_the_positions_too():
    config = transformers.GPT2Config(
        n_embd=32, n_layer=1, n_head=4, n_positions=64, vocab_size=51, eos_token_id=1, bos_token_id=3
    )
    lm = wide(transformers.GPT2LMHeadModel(config), "decoder")
    expected = generate(lm, PROMPTS, max_new_tokens=6)
    compiled = torch.compile(lm.model, backend="eager")
    assert [c.token_ids for c in generate((compiled, lm.tokenizer), PROMPTS, max_new_tokens=6)] == [
        c.token_ids for c in expected
    ]


def test_halves_that_count_from_behind_padding_have_fewer_positions_of_their_own():
    lm = two_robertas()
    engine = Transformers().build()
    (found,) = generate(lm, [[5 + n % 40 for n in range(50)]], max_new_tokens=40, min_new_tokens=40, engine=engine)
    assert len(found.token_ids) == 16 - 3
    assert engine.step_model.prompt_length == 32 - 3


@pytest.mark.parametrize(("adapter", "read", "written"), [(Prompt(tokens=3), 29, 0), (Prefix(tokens=4), 32, 4)])
@pytest.mark.parametrize(("make", "most", "behind"), [(bart, 32, 0), (two_berts, 16, 0), (two_robertas, 16, 3)])
def test_adapters_leave_fewer_positions_to_either_half(make, most, behind, adapter, read, written, caplog):
    lm = adapter.build().attach(make(), Runtime())
    engine = Transformers().build()
    (found,) = generate(lm, [[5 + n % 40 for n in range(50)]], max_new_tokens=40, min_new_tokens=40, engine=engine)
    assert len(found.token_ids) == most - behind - written
    assert engine.step_model.prompt_length == read - behind
    assert f"longer than {read - behind} tokens" in caplog.text
    caplog.clear()
    engine.score([([5 + n % 40 for n in range(50)], [7])])
    assert f"longer than {read - behind} tokens" in caplog.text


@pytest.mark.parametrize("make", [led, two_berts])
def test_each_half_of_a_model_has_positions_of_its_own(make, caplog):
    lm = make()
    engine = Transformers().build()
    (found,) = generate(lm, [[5 + n % 40 for n in range(50)]], max_new_tokens=40, min_new_tokens=40, engine=engine)
    assert len(found.token_ids) == 16
    assert engine.truncated == 1
    assert "16 positions of the model's decoder" in caplog.text
    assert (positions(lm), writable(lm)) == (32, 16)
    # what the encoder reads is not cut to what the decoder writes
    pair = Pair(context_ids=(5,) * 40, ids=(6,) * 16)
    assert truncate(lm, pair).cut == 8
    with pytest.raises(DataError, match="17 tokens is longer than the 16 that the model writes"):
        truncate(lm, Pair(context_ids=(5,), ids=(6,) * 17))
    assert Drawer(lm, ["cat " * 20], 1.0, 4, 16, Runtime(), Processes()).cut == 0
    with_prefix = Prefix(tokens=4).build().attach(two_berts(), Runtime())
    assert (positions(with_prefix), writable(with_prefix)) == (32, 12)


def test_a_model_of_two_halves_that_writes_nothing_reads_a_text_in_both():
    config = transformers.LEDConfig(
        max_encoder_position_embeddings=32, max_decoder_position_embeddings=16, attention_window=8, **BOTH
    )
    assert readable(transformers.LEDModel(config), None) == 16


@pytest.mark.parametrize("decoder", ["stepwise", "beam(beams=2)", "guidance(scale=2.0)", "speculative(tokens=3)"])
def test_a_completion_may_take_all_positions_of_a_decoder(decoder):
    (found,) = generate(bart(), PROMPTS[:1], max_new_tokens=32, min_new_tokens=32, decoder=decoder)
    assert len(found.token_ids) == 32


def test_contrastive_search_reads_the_last_token_too_and_ends_one_earlier():
    (found,) = generate(bart(), PROMPTS[:1], max_new_tokens=32, min_new_tokens=32, decoder="contrastive(top_k=3)")
    assert (len(found.token_ids), found.finish) == (31, "length")


def test_a_draft_model_needs_positions_for_the_completion_and_for_what_is_read():
    lm, draft = tiny_lm("encoder-decoder"), bart()
    draft.tokenizer = lm.tokenizer
    decoder = Speculative(tokens=3).build()
    decoder.draft_with(draft)
    (found,) = generate(lm, PROMPTS[:1], max_new_tokens=32, min_new_tokens=32, decoder=decoder)
    assert len(found.token_ids) == 32
    for prompt, most in ((PROMPTS[0], 33), ([5] * 33, 8)):
        with pytest.raises(ConfigError, match="more than the draft model's 32 positions"):
            generate(lm, [prompt], max_new_tokens=most, decoder=decoder)


def gpt2():
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=4, n_positions=16, vocab_size=51, eos_token_id=1)
    return wide(transformers.GPT2LMHeadModel(config), "decoder")


@pytest.mark.parametrize(("make", "most"), [(gpt2, 16), (bart, 32), (led, 16), (two_berts, 16), (two_robertas, 13)])
@pytest.mark.parametrize("adapter", [None, Prefix(tokens=2)], ids=["plain", "prefix"])
def test_a_completion_beyond_the_positions_is_scored_by_nobody_and_named(make, most, adapter):
    lm = make()
    if adapter is not None:
        if make is led:
            pytest.skip("its encoder takes no prefix")
        lm, most = adapter.build().attach(lm, Runtime()), most - 2
    engine = Transformers().build()
    engine.sync(lm)
    text = [5 + n % 40 for n in range(most + 1)]
    (fits,) = engine.score([([7], text[:most])])
    assert len(fits) == most
    with pytest.raises(ConfigError, match=f"completion 1 has {most + 1} tokens, and .* has positions for {most}"):
        engine.score([([7], text[:2]), ([7], text)])


def test_ids_that_the_model_has_not_are_scored_by_nobody_and_named():
    engine = Transformers().build()
    engine.sync(gpt2())
    with pytest.raises(ConfigError, match="completion 1"):
        engine.score([([7], [8]), ([7], [51])])
    with pytest.raises(ConfigError, match="prompt 0"):
        engine.score([([-1], [8])])


def roberta_alone():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.RobertaConfig(
        vocab_size=51,
        pad_token_id=2,
        eos_token_id=1,
        bos_token_id=3,
        max_position_embeddings=34,
        is_decoder=True,
        **sizes,
    )
    return wide(transformers.RobertaForCausalLM(config), "decoder")


@pytest.mark.parametrize(
    "adapters",
    [
        [Prompt(tokens=3)],
        [PTuning(tokens=3)],
        [Prefix(tokens=3)],
        [Prompt(tokens=1), Prefix(tokens=2)],
        [Prefix(tokens=2), Prompt(tokens=1)],
    ],
    ids=lambda adapters: "+".join(type(adapter).__name__ for adapter in adapters),
)
@torch.no_grad()
def test_virtual_tokens_stand_where_they_are_trained_in_a_model_that_counts_from_behind_padding(adapters):
    lm = roberta_alone()
    for adapter in adapters:
        lm = adapter.build().attach(lm, Runtime())
    model = DecoderOnly(lm, 4)
    logits, cache = model.begin(PROMPTS)
    found = [logits, model.step(torch.tensor([7, 8, 9, 10]), cache)[0]]
    for row, prompt in enumerate(PROMPTS):
        trained = lm.model(torch.tensor([[*prompt, 7 + row]])).logits[0, -2:]
        torch.testing.assert_close(torch.stack([found[0][row], found[1][row]]), trained, atol=1e-4, rtol=1e-4)
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[2] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    torch.testing.assert_close(
        lm.model(ids, attention_mask=(ids != 2).long()).logits[:, -1], logits, atol=1e-4, rtol=1e-4
    )
    assert model.max_length == 34 - 3 - 3
    (longest,) = generate(lm, PROMPTS[1:2], max_new_tokens=27, min_new_tokens=27)
    assert len(longest.token_ids) == 27


def test_a_model_is_searched_for_what_counts_from_behind_padding_once():
    model = roberta_alone().model
    looks = []
    modules = type(model).modules
    model.modules = lambda: looks.append(0) or modules(model)
    assert [first_position(model) for _ in range(3)] == [3, 3, 3]
    assert len(looks) == 1
    other = gpt2().model
    other.modules = lambda: looks.append(0) or modules(other)
    assert [first_position(other) for _ in range(3)] == [0, 0, 0]
    assert len(looks) == 2


def test_transformers_loop_ends_at_the_last_position_of_a_model_that_counts_from_behind_padding(caplog):
    model = roberta_alone().model
    ids = torch.tensor([[0, 0, 0, 0, 0], [5, 9, 30, 12, 7]])
    options = {"attention_mask": (ids > 0).long(), "min_new_tokens": 27, "custom_generate": custom_generate()}
    options["attention_mask"][0, -1] = 1
    fits = model.generate(ids, max_new_tokens=27, **options)
    assert "no positions" not in caplog.text
    assert fits.shape[1] == 5 + 34 - 3 - 5 + 1
    assert torch.equal(model.generate(ids, max_new_tokens=28, **options), fits)
    assert "end at 27 new tokens" in caplog.text
    with pytest.raises(ConfigError, match="32 tokens, and RobertaForCausalLM reads 31"):
        model.generate(torch.full((1, 32), 7), max_new_tokens=1, custom_generate=custom_generate())


def test_a_model_that_counts_from_behind_padding_writes_where_it_is_trained_and_scored():
    lm = roberta_alone()
    engine = Transformers(batch_size=4).build()
    found = generate(lm, PROMPTS, max_new_tokens=9, engine=engine)
    assert engine.step_model.max_length == 31
    scores = engine.score([(prompt, c.token_ids) for prompt, c in zip(PROMPTS, found, strict=True)])
    for completion, score in zip(found, scores, strict=True):
        assert completion.logp == pytest.approx(score, abs=1e-4)
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    rows = lm.model.generate(ids, attention_mask=mask, max_new_tokens=9, custom_generate=custom_generate())
    for completion, row in zip(found, rows[:, longest:].tolist(), strict=True):
        assert tuple(row[: len(completion.token_ids)]) == completion.token_ids


def mpt():
    config = transformers.MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=24, vocab_size=51, pad_token_id=0)
    return wide(transformers.MptForCausalLM(config), "decoder")


@pytest.mark.parametrize("adapter", [Prompt(tokens=3), PTuning(tokens=3), Prefix(tokens=3)])
@pytest.mark.parametrize(
    ("make", "room"), [(gpt2, 16 - 3), (roberta_alone, 34 - 3 - 3), (bart_alone, 32 - 3), (mpt, 24 - 3)]
)
def test_transformers_loop_ends_where_virtual_tokens_leave_no_position(make, room, adapter, caplog):
    lm = adapter.build().attach(make(), Runtime())
    ids, new = torch.tensor([[5, 9, 30, 12, 7]]), room - 5 + 1
    options = {"attention_mask": torch.ones_like(ids), "min_new_tokens": new, "custom_generate": custom_generate()}
    fits = lm.model.generate(ids, max_new_tokens=new, **options)
    assert "no positions" not in caplog.text
    assert fits.shape[1] == 5 + new
    assert torch.equal(lm.model.generate(ids, max_new_tokens=new + 1, **options), fits)
    assert f"end at {new} new tokens" in caplog.text
    (ours,) = generate(lm, ids.tolist(), max_new_tokens=room - 5, min_new_tokens=room - 5)
    assert ours.token_ids == tuple(fits[0, 5:-1].tolist())
    with lm.adapters[0].disabled():
        longer = lm.model.generate(ids, max_new_tokens=new + 1, **options)
    assert longer.shape[1] == 5 + new + 1


@pytest.mark.parametrize(("make", "room"), [(bart, 32 - 3), (two_berts, 16 - 3), (two_robertas, 16 - 3 - 3)])
def test_transformers_loop_ends_where_a_prefix_leaves_a_decoder_no_position(make, room, caplog):
    lm = Prefix(tokens=3).build().attach(make(), Runtime())
    ids, new = torch.tensor([[5, 9, 30, 12, 7]]), room  # the first of them is the start token's position
    options = {"attention_mask": torch.ones_like(ids), "min_new_tokens": new, "custom_generate": custom_generate()}
    fits = lm.model.generate(ids, max_new_tokens=new, **options)
    assert "no positions" not in caplog.text
    assert torch.equal(lm.model.generate(ids, max_new_tokens=new + 1, **options), fits)
    assert f"end at {new} new tokens" in caplog.text
    (ours,) = generate(lm, ids.tolist(), max_new_tokens=new, min_new_tokens=new)
    assert ours.token_ids == tuple(fits[0, 1:].tolist())


def windows():
    config = transformers.MistralConfig(
        vocab_size=51, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        sliding_window=6, eos_token_id=1, bos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return wide(transformers.MistralForCausalLM(config), "decoder")


@pytest.mark.parametrize(
    ("make", "adapter"), [(windows, Prompt(tokens=3)), (windows, Prefix(tokens=3)), (mpt, Prompt(tokens=3))]
)
def test_transformers_loop_refuses_padding_between_virtual_tokens_and_a_text_where_it_counts(make, adapter):
    lm = adapter.build().attach(make(), Runtime())
    ids = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 5], [6, 7, 8, 9, 10, 11, 12, 13]])
    options = {"attention_mask": (ids > 0).long(), "max_new_tokens": 5, "custom_generate": custom_generate()}
    with pytest.raises(ConfigError, match="counts padding between virtual tokens"):
        lm.model.generate(ids, **options)
    with lm.adapters[0].disabled():
        lm.model.generate(ids, **options)
    even = lm.model.generate(ids[1:].repeat(2, 1), **{**options, "attention_mask": None})
    (alone,) = generate(lm, [ids[1].tolist()], max_new_tokens=5)
    assert tuple(even[0, 8:].tolist()) == alone.token_ids

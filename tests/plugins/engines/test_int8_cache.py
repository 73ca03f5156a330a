"""Keys and values in 8 bits: how far they are off, and that everything that moves rows and tokens moves them right."""

import copy

import pytest
import torch
import transformers
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

import tunesmith as ts
from tunesmith.errors import ConfigError
from tunesmith.generation import generate
from tunesmith.lm import LM, load
from tunesmith.testing.models import tiny_lm, tiny_tokenizer
from tunesmith_plugins import decoders, engines, kernels
from tunesmith_plugins.compressors.int8_report import sqnr
from tunesmith_plugins.engines import caches
from tunesmith_plugins.engines.int8_cache import Int8Cache, Int8Layer, cache_for
from tunesmith_plugins.kernels.int8_reference import quantize_states


def states(batch=3, time=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, time, 8, generator=generator), torch.randn(batch, 2, time, 8, generator=generator)


def test_each_token_of_each_head_has_its_own_scale_and_is_off_by_half_a_step():
    keys, _ = states()
    keys[1, 0, 3] *= 1000
    integers, scales = quantize_states(keys)
    assert integers.dtype == torch.int8
    assert torch.allclose(scales[..., 0], keys.abs().amax(-1) / 127)
    assert ((integers * scales - keys).abs() <= 0.5001 * scales).all()
    integers, scales = quantize_states(torch.zeros(1, 1, 1, 4))
    assert (integers * scales == 0).all()


def test_it_grows_shrinks_and_reorders_as_the_float_cache_does():
    keys, values = states()
    layer = Int8Layer()
    for start in range(7):
        found = layer.update(keys[:, :, start : start + 1], values[:, :, start : start + 1])
    whole = Int8Layer()
    assert all(torch.equal(a, b) for a, b in zip(found, whole.update(keys, values), strict=True))
    assert sqnr(keys, found[0]) > 38
    assert layer.get_seq_length() == 7
    index = torch.tensor([2, 0, 0])
    layer.reorder_cache(index)
    layer.crop(-2)
    more_keys, more_values = states(time=1, seed=1)
    after = layer.update(more_keys, more_values)
    expected = Int8Layer()
    expected.update(keys[index][:, :, :5], values[index][:, :, :5])
    assert all(torch.equal(a, b) for a, b in zip(after, expected.update(more_keys, more_values), strict=True))
    layer.batch_select_indices(torch.tensor([1]))
    layer.batch_repeat_interleave(2)
    assert {tuple(getattr(layer, name).shape[:3]) for name in Int8Layer.states} == {(2, 2, 6)}
    layer.reset()
    assert layer.get_seq_length() == 0
    assert torch.equal(layer.update(keys, values)[0], whole.update(keys[:, :, :0], values[:, :, :0])[0])


def test_a_token_is_a_small_write_and_what_is_there_stays_where_it_is():
    keys, values = states(time=200)
    layer = Int8Layer()
    places = set()
    for start in range(200):
        found = layer.update(keys[:, :, start : start + 1], values[:, :, start : start + 1])
        places.add(layer.key_integers.data_ptr())
    assert len(places) <= 4  # room for 64, 128, 192 and more
    assert all(torch.equal(a, b) for a, b in zip(found, whole_of(keys, values), strict=True))
    layer.crop(-150)
    before = layer.key_integers.data_ptr()
    again = layer.update(keys[:, :, 50:51], values[:, :, 50:51])
    assert layer.key_integers.data_ptr() == before
    assert all(torch.equal(a, b) for a, b in zip(again, whole_of(keys[:, :, :51], values[:, :, :51]), strict=True))
    layer.crop(-1000)
    assert layer.get_seq_length() == 0


def whole_of(keys, values):
    return Int8Layer().update(keys, values)


@pytest.mark.parametrize("batch", [1, 3])
def test_copies_and_parts_do_not_share_what_is_written_later(batch):
    keys, values = (one[:batch, :1] for one in states())
    layer = Int8Layer()
    layer.update(keys, values)
    layer.update(keys[:, :, :1], values[:, :, :1])
    twin, other = copy.deepcopy(layer), copy.copy(layer)
    kept = [one.dense() for one in (layer.keys, layer.values)]
    twin.crop(-1)
    for one in (twin, other):
        one.update(keys[:, :, 3:4] * 5, values[:, :, 3:4] * 5)
    assert other.get_seq_length() == 9
    assert all(torch.equal(a + 0, b) for a, b in zip((layer.keys, layer.values), kept, strict=True))
    kept_of_other = other.keys + 0
    layer.crop(-2)
    layer.update(keys[:, :, :2] * 7, values[:, :, :2] * 7)
    assert torch.equal(other.keys + 0, kept_of_other)
    layer.crop(-2)
    layer.update(keys[:, :, 6:7], values[:, :, 6:7])
    layer.update(keys[:, :, :1], values[:, :, :1])
    layer.values = kept[1] * 2  # somebody's own: transformers' methods assign too
    found = layer.update(keys[:, :, :1], values[:, :, :1])
    assert torch.allclose(found[1][:, :, :8] + 0, kept[1] * 2, atol=0.1)
    assert torch.equal(found[0][:, :, :8] + 0, kept[0])


@pytest.mark.parametrize("library", ["native", "reference"])
def test_a_prefix_read_without_gradients_goes_on_outside_of_inference_mode(library, monkeypatch):
    if library == "reference":
        monkeypatch.setattr(kernels.loader, "cpu", lambda: None)
    keys, values = states()
    layer = Int8Layer()
    with torch.inference_mode():
        layer.update(keys, values)
        layer.update(keys[:, :, :1], values[:, :, :1])
    found = layer.update(keys[:, :, 1:2], values[:, :, 1:2])
    whole = [torch.cat((one, one[:, :, :2]), dim=2) for one in (keys, values)]
    assert all(torch.equal(a, b) for a, b in zip(found, whole_of(*whole), strict=True))


def test_engines_take_it_apart():
    keys, values = states()
    past = Int8Cache()
    past.update(keys, values, 0)
    chosen = caches.select(past, torch.tensor([1, 1]))
    empty = torch.zeros(2, 2, 0, 8)
    for found, one in zip(chosen.update(empty, empty, 0), (keys, values), strict=True):
        expected = torch.cat([q * s for q, s in [quantize_states(one[[1, 1]])]])
        assert torch.equal(found, expected)
    assert past.get_seq_length() == 7
    assert past.layers[0].key_integers.shape[0] == 3


def test_a_quarter_of_the_memory():
    def bytes_of(layer):
        names = getattr(layer, "states", ("keys", "values"))
        return sum(getattr(layer, n).numel() * getattr(layer, n).element_size() for n in names)

    keys, values = torch.randn(2, 4, 50, 64), torch.randn(2, 4, 50, 64)
    small, large = Int8Cache(), DynamicCache()
    small.update(keys, values, 0)
    large.update(keys, values, 0)
    assert bytes_of(small.layers[0]) / bytes_of(large.layers[0]) == pytest.approx((64 + 4) / 256)
    for _ in range(400):  # and what is kept free behind it is a quarter of that, or 64 tokens
        small.update(keys[:, :, :1], values[:, :, :1], 0)
        time, room = small.get_seq_length(), small.layers[0]._stores[0].shape[-2]
        assert room <= time + max(64, time // 4)


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
@pytest.mark.parametrize("decoder", [decoders.Stepwise(), decoders.Beam(beams=3)], ids=["stepwise", "beam"])
def test_engines_write_with_it(family, decoder):
    lm = tiny_lm(family)
    prompts = ["the cat sees", "good", "the big dog likes a fish ."]

    def write(cache, **options):
        engine = engines.Transformers(cache=cache, **options)
        return [c.token_ids for c in ts.generate(lm, prompts, engine=engine, decoder=decoder, max_new_tokens=8)]

    found = write("int8")
    assert found == write("int8", batch_size=1)  # a row's tokens depend on no other row
    exact = write("float")
    assert sum(a == b for a, b in zip(found, exact, strict=True)) >= 2


def test_finished_rows_leave_and_new_prompts_enter_a_cache_in_8_bits():
    """Fewer steps than one batch after the other would take, and each text as it is alone."""
    lm = tiny_lm("decoder", spread=0.7)
    prompts = ["the cat sees", "good", "the big dog likes a fish ."] * 4
    limits = [2, 9, 3, 12, 1, 4] * 2
    engine = engines.Transformers(cache="int8", batch_size=3).build()
    together = ts.generate(lm, prompts, engine=engine, max_new_tokens=limits, min_new_tokens=max(limits))
    steps = engine.step_model.steps
    assert steps < sum(max(limits[at : at + 3]) - 1 for at in range(0, 12, 3))
    assert all(isinstance(layer, Int8Layer) for layer in engine.step_model.begin([[5]])[1].past.layers)
    for prompt, limit, completion in zip(prompts, limits, together, strict=True):
        (alone,) = ts.generate(
            lm, [prompt], engine=engines.Transformers(cache="int8"), max_new_tokens=limit, min_new_tokens=limit
        )
        assert alone.token_ids == completion.token_ids


def test_short_prompts_with_padding_in_front_are_read_as_they_are_alone():
    """Places of padding see no token, and a model whose heads have keys of their own attends to them in integers."""
    tiny = tiny_lm("decoder")
    config = transformers.LlamaConfig(
        vocab_size=len(tiny.tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    lm = LM(model=model, tokenizer=tiny.tokenizer, family="decoder")

    def write(batch_size):
        engine = engines.Transformers(cache="int8", batch_size=batch_size)
        return [c.token_ids for c in ts.generate(lm, ["the", "the cat sees"], engine=engine, max_new_tokens=6)]

    assert write(2) == write(1)


def test_keys_may_be_longer_than_values():
    config = transformers.MiniCPM3Config(
        vocab_size=51, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, eos_token_id=1, bos_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    lm = LM(model=transformers.MiniCPM3ForCausalLM(config).eval(), tokenizer=tiny_tokenizer(), family="decoder")
    options = {"completions": 3, "max_new_tokens": [9, 4, 6], "min_new_tokens": 4, "sampler": "temperature"}
    prompts = [[5, 9, 30, 12, 7], [17], [21, 33]]
    exact = generate(lm, prompts, engine=engines.Transformers(batch_size=4), **options)
    found = generate(lm, prompts, engine=engines.Transformers(batch_size=4, cache="int8"), **options)
    pairs = list(zip(exact, found, strict=True))
    assert sum(one.token_ids == other.token_ids for one, other in pairs) >= 8  # of 9
    for one, other in pairs:
        if one.token_ids == other.token_ids:
            assert other.logp == pytest.approx(one.logp, abs=1e-2)
    drafted = generate(
        lm, prompts, engine=engines.Transformers(cache="int8"), max_new_tokens=9, decoder="speculative(tokens=3)"
    )
    plain = generate(lm, prompts, engine=engines.Transformers(cache="int8"), max_new_tokens=9)
    assert [c.token_ids for c in drafted] == [c.token_ids for c in plain]


def test_layers_that_keep_a_window_stay_as_they_are():
    config = transformers.MistralConfig(num_hidden_layers=2, sliding_window=4)
    assert not any(isinstance(layer, Int8Layer) for layer in Int8Cache(config).layers)
    assert all(isinstance(layer, Int8Layer) for layer in Int8Cache(tiny_lm("decoder").model.config).layers)
    both = cache_for(tiny_lm("encoder-decoder").model.config)
    assert isinstance(both, EncoderDecoderCache)


def bart():
    torch.manual_seed(0)
    sizes = {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = transformers.BartConfig(
        vocab_size=50, max_position_embeddings=32, encoder_layers=1, decoder_layers=3, **sizes, **heads
    )
    return transformers.BartForConditionalGeneration(config).eval()


@pytest.mark.parametrize("make", [lambda: tiny_lm("encoder-decoder").model, bart], ids=["t5", "bart"])
def test_transformers_own_generate_of_an_encoder_decoder_takes_two_caches_and_one_is_refused(make):
    model = make()
    ids = torch.tensor([[5, 9, 7, 6, 8], [6, 5, 5, 9, 7]])
    settings = transformers.GenerationConfig(max_new_tokens=10, do_sample=False, decoder_start_token_id=2)
    with pytest.raises(ConfigError, match=rf"{type(model.config).__name__} is of an encoder-decoder.*cache_for"):
        Int8Cache(model.config)
    cache = cache_for(model.config)
    found = model.generate(ids, generation_config=settings, past_key_values=cache)
    assert torch.equal(found, model.generate(ids, generation_config=settings))
    for half in (cache.self_attention_cache, cache.cross_attention_cache):
        assert all(isinstance(layer, Int8Layer) for layer in half.layers)
        assert half.get_seq_length() > 0


@pytest.mark.realdata
def test_the_storyteller_says_the_same_with_transformers_own_generate(real_models):
    lm = load(real_models / "stories260k")
    ids = lm.tokenizer("Once upon a time", return_tensors="pt").input_ids
    settings = transformers.GenerationConfig(max_new_tokens=24, do_sample=False)
    exact = lm.model.generate(ids, generation_config=settings)
    found = lm.model.generate(ids, generation_config=settings, past_key_values=Int8Cache(lm.model.config))
    assert torch.equal(found[:, :20], exact[:, :20])


def test_an_engine_without_a_cache_has_none_in_8_bits():
    with pytest.raises((ConfigError, ValueError), match="keeps nothing"):
        engines.Transformers(kv_cache=False, cache="int8")


def test_what_is_read_is_attended_to_in_integers_and_is_a_float_copy_to_anything_else(monkeypatch):
    keys, values = states()
    layer = Int8Layer()
    found = layer.update(keys, values)
    floats = [integers * scales for integers, scales in (quantize_states(keys), quantize_states(values))]
    assert [one.shape for one in found] == [keys.shape, values.shape]
    assert found[0].dtype == torch.float32
    assert torch.equal(found[0] + 0, floats[0])
    assert type(found[0][:, :1]) is torch.Tensor
    calls = []
    real = kernels.int8_attention
    monkeypatch.setattr(kernels, "int8_attention", lambda *rest: calls.append(1) or real(*rest))
    attend = torch.nn.functional.scaled_dot_product_attention
    seen = torch.ones(3, 1, 1, 7, dtype=torch.bool)
    seen[1, ..., 4:] = False
    query = torch.randn(3, 2, 1, 8)
    for mask in (None, seen):
        expected = attend(query, *floats, attn_mask=mask)
        assert (attend(query, *found, attn_mask=mask) - expected).abs().max() < 2e-3
    grouped = torch.randn(3, 4, 1, 8)
    expected = attend(grouped, *floats, enable_gqa=True)
    assert (attend(grouped, *found, enable_gqa=True) - expected).abs().max() < 2e-3
    assert len(calls) == 3
    many = torch.randn(3, 2, 9, 8)
    assert torch.equal(attend(many, *found), attend(many, *floats))
    assert torch.equal(attend(many[:, :, :7], *found, is_causal=True), attend(many[:, :, :7], *floats, is_causal=True))
    assert torch.equal(
        attend(query.double(), *(one.double() for one in found)),
        attend(query.double(), *(one.double() for one in floats)),
    )
    learning = query.clone().requires_grad_()
    attend(learning, *found).sum().backward()
    assert learning.grad is not None
    assert len(calls) == 3
    with pytest.raises(RuntimeError, match="cannot be written to"):
        found[0].zero_()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_16_bits_attend_in_integers_too(dtype):
    keys, values = (one.to(dtype) for one in states())
    found = Int8Layer().update(keys, values)
    assert found[0].dtype == dtype
    query = torch.randn(3, 2, 1, 8).to(dtype)
    mask = torch.randn(3, 1, 1, 7).to(dtype)
    parts = (*quantize_states(keys), *quantize_states(values))
    attend = torch.nn.functional.scaled_dot_product_attention
    for added in (None, mask):
        expected = kernels.int8_attention(query.float(), *parts, added).to(dtype)
        assert torch.equal(attend(query, *found, attn_mask=added), expected)
    assert attend(query.float(), *(one.float() for one in found)).dtype == torch.float32

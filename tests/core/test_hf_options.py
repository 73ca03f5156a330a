"""What transformers' ``generate`` can be told, with our sampler inside it: nothing is taken for something else in silence."""

import numpy as np
import pytest
import torch
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from tunesmith import hf
from tunesmith.errors import ConfigError, NumericError
from tunesmith.testing.models import tiny_lm

PROMPTS = ["the cat sees a tree", "dog", "one two red and blue fish"]
HOT = "chain(links=[temperature(temperature=1.5), top_k(k=20), top_p(p=0.9)])"


@pytest.fixture(scope="module")
def decoder():
    return tiny_lm()


@pytest.fixture(scope="module")
def inputs(decoder):
    found = decoder.tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
@pytest.mark.parametrize("how", ["an assistant", "lookup"])
@pytest.mark.parametrize(
    "spec", ["forced_tokens(at={0:5,3:7})", "presence_penalty(penalty=3.0)", "max_length(end=[9],tokens=3)"]
)
def test_tokens_that_are_proposed_and_judged_are_those_of_the_plain_loop(family, how, spec):
    """Positions and generated tokens count from the prompt, although the text goes back where a proposal is refused."""
    lm, small = tiny_lm(family), tiny_lm(family, seed=1)
    given = lm.tokenizer(PROMPTS[2:], return_tensors="pt")
    inputs = {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"], "max_new_tokens": 8}
    plain = lm.model.generate(**inputs, do_sample=False, logits_processor=hf.logits_processors(spec))
    more = {"assistant_model": small.model} if how == "an assistant" else {"prompt_lookup_num_tokens": 3}
    found = lm.model.generate(**inputs, **more, do_sample=False, logits_processor=hf.logits_processors(spec))
    assert found.tolist() == plain.tolist()


def test_the_callers_own_sampling_steps_run_and_transformers_own_do_not(decoder, inputs):
    greedy = decoder.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    hot = hf.custom_generate("temperature(temperature=3.0)", seed=1)
    for do_sample in (False, True):  # with True transformers adds a temperature and a top-k of its own
        own = LogitsProcessorList([TemperatureLogitsWarper(0.5), TopKLogitsWarper(1)])
        options = {"do_sample": True, "top_k": 3, "temperature": 2.0} if do_sample else {}
        found = decoder.model.generate(**inputs, max_new_tokens=4, custom_generate=hot, logits_processor=own, **options)
        assert found.tolist() == greedy.tolist()
    plain = decoder.model.generate(**inputs, max_new_tokens=4, custom_generate=hot)
    sampled = decoder.model.generate(
        **inputs, max_new_tokens=4, custom_generate=hot, do_sample=True, top_k=1, top_p=0.1
    )
    assert sampled.tolist() == plain.tolist() != greedy.tolist()


@pytest.mark.parametrize("spec", [HOT, "top_k(k=3)", "greedy", "chain(links=[mirostat(tau=2.0)])"])
def test_scores_are_what_the_tokens_were_drawn_from(decoder, inputs, spec):
    options = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    found = decoder.model.generate(**inputs, **options, custom_generate=hf.custom_generate(spec, seed=2))
    theirs = hf.logits_processors(spec, attention_mask=inputs["attention_mask"], seed=2) if spec != "greedy" else None
    begin, tokens = inputs["input_ids"], found.sequences[:, inputs["input_ids"].shape[1] :]
    for step, (scores, logits) in enumerate(zip(found.scores, found.logits, strict=True)):
        expected = logits if theirs is None else theirs(torch.cat([begin, tokens[:, :step]], dim=1), logits)
        assert torch.equal(scores, expected)
        assert bool(scores.gather(1, tokens[:, step, None]).isfinite().all())
    logp = decoder.model.compute_transition_scores(found.sequences, found.scores, normalize_logits=True)
    assert bool((logp <= 0).all())


def test_prompts_may_be_vectors_or_partly_in_a_cache(decoder, inputs):
    model, mask, ids = decoder.model, inputs["attention_mask"], inputs["input_ids"]
    greedy = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, ids.shape[1] :]
    draw = hf.custom_generate("greedy")
    vectors = model.get_input_embeddings()(ids)
    found = model.generate(inputs_embeds=vectors, attention_mask=mask, max_new_tokens=4, custom_generate=draw)
    assert found.tolist() == greedy.tolist()
    for given in (ids, ids[:, 3:]):
        cache = DynamicCache(config=model.config)
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            model(ids[:, :3], attention_mask=mask[:, :3], position_ids=places[:, :3], past_key_values=cache)
        found = model.generate(
            given, attention_mask=mask, past_key_values=cache, max_new_tokens=4, custom_generate=draw
        )
        assert found[:, given.shape[1] :].tolist() == greedy.tolist()


@pytest.mark.parametrize("options", [{"penalty_alpha": 0.6, "top_k": 4}, {"prompt_lookup_num_tokens": 3}])
def test_other_methods_of_transformers_are_refused_and_not_forgotten(decoder, inputs, options):
    with pytest.raises(
        ConfigError, match="the settings ask for transformers' (contrastive search|assisted generation)"
    ):
        decoder.model.generate(**inputs, max_new_tokens=2, custom_generate=hf.custom_generate("greedy"), **options)


def test_numbers_and_ids_of_any_kind(decoder, inputs):
    def written(**options):
        draw = hf.custom_generate(HOT, **options)
        return decoder.model.generate(**inputs, max_new_tokens=4, custom_generate=draw).tolist()

    plain = written(seed=[3, 4, 5], parameters={"top_k.k": [1, 5, 20], "top_p.p": 0.5})
    for of in (np.array, torch.tensor):
        half = of([0.5], dtype=np.float32 if of is np.array else torch.float32)[0]
        assert written(seed=of([3, 4, 5]), parameters={"top_k.k": of([1, 5, 20]), "top_p.p": half}) == plain
        assert written(seed=of([3])[0]) == written(seed=3)
    narrow = {**inputs, "input_ids": inputs["input_ids"].int()}
    for processors in (
        None,
        hf.logits_processors("repetition_penalty", attention_mask=inputs["attention_mask"].numpy()),
    ):
        found, expected = (
            decoder.model.generate(
                **ids,
                max_new_tokens=3,
                do_sample=False,
                logits_processor=processors,
                custom_generate=None if processors else hf.custom_generate("repetition_penalty"),
            )
            for ids in (narrow, inputs)
        )
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("make", [hf.custom_generate, hf.logits_processors])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameters": {"top_p.ties": 1}}, "'top_p.ties' is the same for all rows"),
        ({"parameters": {"top_p.p": [0.5, 2.0]}}, "top_p.p=2: 'p' must be <= 1"),
        ({"parameters": {"top_p.p": [0.5, 0.6], "top_k.k": [1, 2, 3]}}, "2 of 'top_p.p', 3 of 'top_k.k'"),
        ({"parameters": {"top_p.p": None}}, "a number was expected"),
        ({"seed": "1"}, "seed: a whole number was expected, not str '1'"),
        ({"seed": None}, "seed: a whole number was expected, not NoneType"),
        ({"seed": [1, 2.5]}, "seeds: a whole number was expected, not float 2.5"),
    ],
)
def test_parameters_are_looked_at_when_they_are_given(make, options, message):
    with pytest.raises(ConfigError, match=message):
        make(HOT, **options)


def test_wrong_options_of_processors_are_named():
    with pytest.raises(ConfigError, match="completions must be at least 1"):
        hf.logits_processors("top_k", completions=0)
    with pytest.raises(ConfigError, match="eos_token_id: a whole number"):
        hf.logits_processors("top_k", eos_token_id=[1.5])
    hf.logits_processors("top_k", eos_token_id=None)


def test_a_row_that_has_no_token_left_is_told_from_broken_logits(decoder, inputs):
    none = hf.custom_generate("chain(links=[allowed_tokens(tokens=[4]), bad_words(sequences=[[4]])])")
    with pytest.raises(
        NumericError, match="row 0 of the batch: no finite value is left at new token 0. Do the sampler's"
    ):
        decoder.model.generate(**inputs, max_new_tokens=2, custom_generate=none)


def test_padding_before_what_a_decoder_begins_with_is_no_history():
    lm = tiny_lm("encoder-decoder")
    given = lm.tokenizer(PROMPTS[:2], return_tensors="pt", padding=True)
    inputs = {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"]}
    begun = torch.tensor([[0, 0, 7], [0, 5, 6]])  # of the first row one is padding; T5 begins with what it pads with
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    spec = "chain(links=[frequency_penalty(penalty=2.0, prompt=true), temperature])"
    draw = hf.custom_generate(spec, seed=[3, 4])
    options = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_scores": True}
    together = lm.model.generate(
        **inputs, decoder_input_ids=begun, decoder_attention_mask=mask, custom_generate=draw, **options
    )
    alone = lm.model.generate(
        input_ids=inputs["input_ids"][:1],
        attention_mask=inputs["attention_mask"][:1],
        decoder_input_ids=begun[:1, 1:],
        custom_generate=hf.custom_generate(spec, seed=[3]),
        **options,
    )
    assert together.sequences[0, 1:].tolist() == alone.sequences[0].tolist()
    for ours, theirs in zip(together.scores, alone.scores, strict=True):
        assert torch.allclose(ours[0], theirs[0], atol=1e-4)


@pytest.mark.parametrize("ends", [[9, 8], torch.tensor([9, 8]), np.array([9, 8]), 9, torch.tensor(9)], ids=repr)
def test_rows_that_have_ended_are_filled_up_whatever_kind_of_list_the_ends_are(decoder, inputs, ends, monkeypatch):
    monkeypatch.setattr(decoder.model.generation_config, "pad_token_id", None)
    ended = hf.custom_generate(
        "chain(links=[min_length(end=[9, 8]), max_length(end=[9])])",
        parameters={"min_length.tokens": [0, 1, 2], "max_length.tokens": [1, 2, 3]},
    )
    found = decoder.model.generate(**inputs, max_new_tokens=3, eos_token_id=ends, custom_generate=ended)
    new = found[:, inputs["input_ids"].shape[1] :].tolist()
    assert new[0] == [9, 9, 9]
    assert new[1][1:] == [9, 9]
    assert new[2][2] == 9

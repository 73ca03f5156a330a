import gc
import io
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from string import ascii_letters
from weakref import ref

import numpy as np
import pytest
import torch
import transformers
from attrs import define
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tunesmith import hf
from tunesmith.cli.generate import generate as command
from tunesmith.errors import ConfigError, MissingPower, TunesmithError
from tunesmith.generation import generate, prompt_ids
from tunesmith.given import token_ids
from tunesmith.kinds.decoder import Completion, Decoder, DecoderConfig
from tunesmith.lm import LM, load
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith.turns import turns_of
from tunesmith_plugins.engines import Scripted, Transformers
from tunesmith_plugins.engines.in_process import TransformersEngine
from tunesmith_plugins.samplers import Chain, Temperature, TopK

PROMPTS = ["the cat sees a tree", "dog", "one two red and blue fish"]
HOT = "chain(links=[repetition_penalty(penalty=1.3), temperature(temperature=1.5), top_k(k=20), top_p(p=0.9)])"


@pytest.fixture(scope="module", params=["decoder", "encoder-decoder"])
def lm(request):
    return tiny_lm(request.param)


def ids_of(completions):
    return [c.token_ids for c in completions]


def test_completions_come_in_the_order_of_prompts_then_streams(lm):
    found = generate(lm, PROMPTS, ids=["c", "a", "b"], sampler=HOT, completions=2, max_new_tokens=4)
    assert [(c.request, c.id, c.stream) for c in found] == [(n, i, s) for n, i in enumerate("cab") for s in range(2)]


def test_a_prompts_completion_depends_on_its_id_and_the_seed_alone(lm):
    whole = generate(lm, PROMPTS, ids=["x", "y", "z"], sampler=HOT, seed=4, max_new_tokens=6)
    alone = generate(
        lm, [PROMPTS[2]], ids=["z"], sampler=HOT, seed=4, max_new_tokens=6, engine="transformers(batch_size=1)"
    )
    assert alone[0].token_ids == whole[2].token_ids
    assert ids_of(generate(lm, PROMPTS, ids=["x", "y", "z"], sampler=HOT, seed=5, max_new_tokens=6)) != ids_of(whole)
    twins = generate(lm, ["dog"] * 3, sampler=HOT, seed=4, max_new_tokens=6)
    assert len(set(ids_of(twins))) > 1


def test_a_spelling_a_config_and_a_component_mean_the_same(lm):
    config = Chain(links=(Temperature(temperature=1.5), TopK(k=20)))
    spelled = "chain(links=[temperature(temperature=1.5), top_k(k=20)])"
    found = [ids_of(generate(lm, PROMPTS, sampler=s, max_new_tokens=4)) for s in (config, spelled, config.build())]
    assert found[0] == found[1] == found[2]


def test_an_engine_that_is_built_serves_again(lm):
    engine = Transformers(batch_size=2).build()
    first = generate(lm, PROMPTS, engine=engine, max_new_tokens=4)
    assert ids_of(generate(lm, PROMPTS, engine=engine, max_new_tokens=4)) == ids_of(first)


def test_log_probabilities_are_those_after_edits(lm):
    found = generate(lm, PROMPTS, sampler="chain(links=[temperature(temperature=0.5), top_k(k=2)])", max_new_tokens=4)
    engine = Transformers().build()
    engine.sync(lm)
    from tunesmith.scoring import token_logps_in_batches

    for completion, prompt in zip(found, prompt_ids(lm, PROMPTS), strict=True):
        row = torch.tensor([completion.token_ids])
        expected = token_logps_in_batches(lm, [prompt], row, torch.tensor([row.shape[1]]), temperature=0.5)[0][0]
        torch.testing.assert_close(torch.tensor(completion.logp), expected, atol=1e-4, rtol=0)


def test_an_engine_without_the_powers_is_refused_with_the_names_of_others():
    with pytest.raises(MissingPower, match=r"any_sampler.*tunesmith/transformers"):
        generate(tiny_lm(), PROMPTS, engine=Scripted(answers=("a",), repeat=True), sampler="top_p")
    with pytest.raises(MissingPower, match="seeds"):
        generate(tiny_lm(), PROMPTS, engine=Scripted(answers=("a",), repeat=True), completions=2)


def test_parameters_of_custom_generate_are_values_by_name():
    with pytest.raises(ConfigError, match="parameters: values by name were expected"):
        hf.custom_generate("top_k", parameters=[5])


def test_ids_have_to_be_unique_and_complete():
    with pytest.raises(ConfigError, match="2 ids for 3 prompts"):
        generate(tiny_lm(), PROMPTS, ids=["a", "b"])
    with pytest.raises(ConfigError, match="not unique"):
        generate(tiny_lm(), PROMPTS, ids=["a", "b", "a"])


def test_something_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match="sampler"):
        generate(tiny_lm(), PROMPTS, sampler=Transformers())


def test_no_prompts_give_no_completions(lm):
    assert generate(lm, []) == []


def test_a_stream_of_no_prompts_is_empty_and_reported(lm):
    speeds = []
    assert list(generate(lm, [], stream=True, report=speeds.append)) == []
    assert (speeds[0].completions, speeds[0].new_tokens, speeds[0].tokens_per_second) == (0, 0, 0.0)


def test_prompts_may_be_token_ids(lm):
    texts = generate(lm, PROMPTS, sampler=HOT, max_new_tokens=5)
    tokens = [torch.tensor(ids) if n else list(ids) for n, ids in enumerate(prompt_ids(lm, PROMPTS))]
    assert ids_of(generate(lm, tokens, sampler=HOT, max_new_tokens=5)) == ids_of(texts)
    mixed = [PROMPTS[0], *tokens[1:]]
    assert ids_of(generate(lm, mixed, sampler=HOT, max_new_tokens=5)) == ids_of(texts)
    assert ids_of(generate(lm, PROMPTS[0], sampler=HOT, max_new_tokens=5)) == ids_of(texts[:1])
    for wrong, message in (
        ([1, 2, 3], "prompt 0 is neither a text nor a list of token ids"),
        ([[1], [2, -1]], "prompt 1 has the id -1"),
        ([[10**6]], "prompt 0 has the id 1000000, and the model has"),
        ([[]], "prompt 0 has no ids"),
        ([[3.5, 4.0]], "prompt 0 is neither a text nor a list of token ids"),
        ([None], "prompt 0 is neither a text nor a list of token ids"),
        (None, "not NoneType"),
        (lm.tokenizer(PROMPTS), "pass its 'input_ids'"),
        ({"the cat", "dog"}, "not set"),
    ):
        with pytest.raises(ConfigError, match=message):
            generate(lm, wrong)


def test_of_a_model_that_does_not_say_how_many_ids_it_reads_the_message_says_nothing_either():
    assert token_ids([10**6], None, "prompt 0", "generate") == (10**6,)
    with pytest.raises(ConfigError, match="prompt 0 has the id -1, and ids begin at 0"):
        token_ids([-1], None, "prompt 0", "generate")


def test_seeds_may_be_given_a_prompt(lm):
    both = generate(lm, PROMPTS[:2], seeds=[5, 2**64 - 1], sampler=HOT, completions=2, max_new_tokens=6)
    for number, seed in enumerate([5, 2**64 - 1]):
        alone = generate(lm, [PROMPTS[number]], seeds=[seed], sampler=HOT, completions=2, max_new_tokens=6)
        assert ids_of(alone) == ids_of(both)[2 * number : 2 * number + 2]
    same = generate(lm, ["dog", "dog"], seeds=[3, 3], sampler=HOT, max_new_tokens=6)
    assert same[0].token_ids == same[1].token_ids
    with pytest.raises(ConfigError, match="1 seeds for 3 prompts"):
        generate(lm, PROMPTS, seeds=[1])


def test_limits_may_be_given_a_prompt(lm):
    options = {"sampler": HOT, "min_new_tokens": 7, "completions": 2}
    long = generate(lm, PROMPTS, max_new_tokens=7, **options)
    own = generate(lm, PROMPTS, max_new_tokens=[7, 2, 4], **options)
    assert [len(c.token_ids) for c in own] == [7, 7, 2, 2, 4, 4]
    assert [a.token_ids[: len(b.token_ids)] for a, b in zip(long, own, strict=True)] == ids_of(own)
    with pytest.raises(ConfigError, match="2 max_new_tokens for 3 prompts"):
        generate(lm, PROMPTS, max_new_tokens=[1, 2])


def test_what_is_wrong_is_said_before_a_model_is_read():
    for wrong, message in (
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens=9 is more than max_new_tokens=8"),
        ({"min_new_tokens": 9, "max_new_tokens": [8, 3]}, "min_new_tokens=9 is more than max_new_tokens=8"),
        ({"stop": ["a", ""]}, "empty string"),
        ({"sampler": "top_p(p=3)"}, "'p' must be <= 1"),
        ({"sampler": "top_k", "parameters": {"top_p.p": 0.5}}, "this sampler has no parameter 'top_p.p'"),
        ({"report": True}, "report is called with the speed, as report=print, and True cannot be called"),
        ({"ids": 3}, "ids: a list of 2 names was expected, not int"),
    ):
        with pytest.raises(ConfigError, match=message):
            generate("no-model", ["a", "b"], **wrong)


def test_a_prompt_at_the_limit_of_positions_is_whole_and_a_longer_one_is_cut():
    lm = tiny_lm()
    places = lm.model.config.max_position_embeddings
    full = [5 + n % 20 for n in range(places - 6)]
    whole, short, cut = generate(lm, [full, full[:9], [7, *full]], max_new_tokens=[6, 9, 6], min_new_tokens=9)
    assert [len(c.token_ids) for c in (whole, short, cut)] == [6, 9, 6]
    assert cut.token_ids == whole.token_ids
    theirs = lm.model.generate(torch.tensor([full]), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert tuple(theirs[0, len(full) :].tolist()) == whole.token_ids
    with pytest.raises(ConfigError, match="no room"):
        generate(lm, [full, full], max_new_tokens=[6, places])


def test_a_folder_or_a_pair_stands_for_a_model(lm, tmp_path):
    expected = ids_of(generate(lm, PROMPTS, max_new_tokens=4))
    assert ids_of(generate((lm.model, lm.tokenizer), PROMPTS, max_new_tokens=4)) == expected
    lm.save(tmp_path)
    assert ids_of(generate(str(tmp_path), PROMPTS, max_new_tokens=4)) == expected
    with pytest.raises(ConfigError, match="a model was expected"):
        generate(lm.model, PROMPTS)
    with pytest.raises(ConfigError, match=r"the pair \(model, tokenizer\) was expected"):
        generate((lm.tokenizer, lm.model), PROMPTS)


def test_numbers_come_from_numpy_and_torch_as_from_python_and_are_never_cut(lm):
    options = {"sampler": HOT, "parameters": {"top_k.k": [3, 20], "temperature.temperature": 1.5}}
    plain = generate(lm, PROMPTS[:2], seeds=[3, 4], max_new_tokens=[3, 5], completions=2, **options)
    for of in (np.array, torch.tensor):
        found = generate(
            lm,
            PROMPTS[:2],
            seeds=of([3, 4]),
            max_new_tokens=of([3, 5]),
            completions=of([2])[0],
            sampler=HOT,
            parameters={"top_k.k": of([3, 20]), "temperature.temperature": of([1.5])[0]},
        )
        assert ids_of(found) == ids_of(plain)
        whole = {"seed": of([7])[0], "max_new_tokens": of([4])[0], "min_new_tokens": of([2])[0]}
        plainly = generate(lm, PROMPTS, seed=7, max_new_tokens=4, min_new_tokens=2, sampler=HOT)
        assert ids_of(generate(lm, PROMPTS, sampler=HOT, **whole)) == ids_of(plainly)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 4.0}, "max_new_tokens: a whole number was expected, not float 4.0"),
        ({"max_new_tokens": None}, "max_new_tokens: a whole number was expected, not NoneType"),
        ({"max_new_tokens": 0}, "max_new_tokens of prompt 0 must be at least 1, not 0"),
        ({"max_new_tokens": [3, 0, 3]}, "max_new_tokens of prompt 1 must be at least 1, not 0"),
        ({"min_new_tokens": 2.5}, "min_new_tokens: a whole number"),
        ({"min_new_tokens": -1}, "min_new_tokens must be at least 0, not -1"),
        ({"completions": 0}, "completions must be at least 1"),
        ({"completions": 10**9}, "completions=1000000000 of 3 prompts are more than the 1000000 that one call takes"),
        ({"max_new_tokens": [3, 10**9, 3]}, "max_new_tokens=1000000000 is more than 1048576"),
        ({"decoder": "beam(beams=1000000000)"}, "'beams' must be <= 65536"),
        ({"decoder": "diverse_beam(beams=1000000000)"}, "'beams' must be <= 65536"),
        ({"decoder": "best_of_n(n=1000000000)"}, "'n' must be <= 65536"),
        ({"decoder": "self_consistency(n=1000000000)"}, "'n' must be <= 65536"),
        ({"completions": True}, "completions: a whole number"),
        ({"seed": 1.5}, "seed: a whole number"),
        ({"seeds": [1.5, 2, 3]}, "seeds: a whole number"),
        ({"seeds": 5}, "a list of 3 numbers was expected"),
        ({"seeds": [2**64, 0, 1]}, "64 bits"),
        ({"stop": 5}, "'stop' is a tuple of strings"),
        ({"parameters": {"top_k.k": "5"}}, "values of 'top_k.k': a number was expected"),
        ({"parameters": [5]}, "parameters: values by name were expected"),
        ({"parameters": {"top_k.k": 2.5}}, "'k' must be a whole number: 2.5"),
        ({"parameters": {"top_k.k": [5, -1, 5]}}, "top_k.k=-1: 'k' must be >= 0"),
        ({"parameters": {"top_k.ties": 1}}, "'top_k.ties' is the same for all rows"),
        ({"parameters": {"top_p.q": 1}}, "no parameter 'top_p.q'"),
        ({"negative_prompts": ["a", None, "b"], "decoder": "guidance"}, "negative prompt 1 is neither"),
    ],
)
def test_what_is_no_such_number_is_refused_in_the_callers_words(lm, options, message):
    with pytest.raises(ConfigError, match=message):
        generate(lm, PROMPTS, **{"sampler": HOT, "max_new_tokens": 2, **options})


@pytest.mark.parametrize(
    "prompt", [b"ab", bytearray(b"ab"), [True, 5], torch.tensor([True, True]), np.array([True, False])], ids=repr
)
def test_bytes_and_masks_are_no_ids(lm, prompt):
    with pytest.raises(ConfigError, match="prompt 1 is neither a text nor a list of token ids"):
        generate(lm, [[5], prompt], max_new_tokens=2)


def test_negative_prompts_may_be_token_ids(lm):
    texts = ["dog", "the cat", "fish"]
    tokens = [texts[0], *prompt_ids(lm, texts)[1:]]
    options = {"decoder": "guidance(scale=2.0)", "sampler": HOT, "max_new_tokens": 4}
    by_text, by_ids = (generate(lm, PROMPTS, negative_prompts=n, **options) for n in (texts, tokens))
    assert ids_of(by_text) == ids_of(by_ids)


def test_a_model_without_a_tokenizer_continues_token_ids(lm):
    prompts = prompt_ids(lm, PROMPTS)
    expected = generate(lm, prompts, sampler=HOT, max_new_tokens=4)
    bare = (lm.model, None)
    found = generate(bare, prompts, sampler=HOT, max_new_tokens=4)
    assert ids_of(found) == ids_of(expected)
    assert [c.text for c in found] == [""] * len(prompts)
    pieces = generate(bare, prompts[:1], sampler=HOT, max_new_tokens=4, stream=True)
    assert tuple(t for p in pieces for t in p.token_ids) == expected[0].token_ids
    with pytest.raises(ConfigError, match="no stop string"):
        generate(bare, prompts, stop="a")
    with pytest.raises(ConfigError, match="without its tokenizer"):
        generate(bare, PROMPTS)


def test_the_speed_is_reported_once(lm):
    speeds = []
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "completions": 2, "report": speeds.append}
    engine = Transformers(batch_size=3).build()
    for _ in range(2):
        generate(lm, PROMPTS, engine=engine, **options)
    list(generate(lm, PROMPTS, engine=engine, stream=True, **options))
    assert len(speeds) == 3
    for speed in speeds:
        assert (speed.completions, speed.new_tokens) == (6, 36)
        assert speed.prompt_tokens == 2 * sum(map(len, prompt_ids(lm, PROMPTS)))
        assert speed.steps == 10, "two batches of three rows, five steps each after the first token"
        assert speed.rows_busy == 3.0
        assert speed.tokens_per_second == pytest.approx(36 / speed.seconds)
        assert str(speed).startswith("completions: 6, new tokens: 36, tokens of prompts: ")
        assert "3.0 rows busy" in str(speed)
    generate(tiny_lm(), PROMPTS, engine=Scripted(answers=("a",), repeat=True), report=speeds.append)
    assert speeds[-1].rows_busy is None
    assert "busy" not in str(speeds[-1])


def test_steps_are_reported_where_they_are_those_of_one_call(lm):
    speeds = []
    engine = Transformers(batch_size=3).build()
    options = {"engine": engine, "max_new_tokens": 6, "min_new_tokens": 6, "report": speeds.append, "stream": True}
    first, second = (generate(lm, PROMPTS, **options) for _ in range(2))
    next(first)
    list(second)
    list(first)
    assert [speed.steps for speed in speeds] == [None, None]
    list(generate(lm, PROMPTS, **options))
    assert speeds[-1].steps == 5


def test_steps_are_not_reported_where_the_engine_was_given_a_model_meanwhile(lm):
    speeds = []
    engine = Transformers(batch_size=3).build()
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "report": speeds.append, "stream": True}
    pieces = generate(lm, PROMPTS, engine=engine, **options)
    while engine.steps < 2:
        next(pieces)
    engine.sync(tiny_lm(seed=1))
    assert sum(piece.completion is not None for piece in pieces) == len(PROMPTS)
    assert [speed.steps for speed in speeds] == [None]


def test_threads_share_an_engine_with_different_models():
    """Each engine waits, once it has its model, for the other thread to give it another."""

    class Patient(TransformersEngine):
        def sync(self, lm):
            super().sync(lm)
            with suppress(threading.BrokenBarrierError):
                both.wait(timeout=0.5)

    both = threading.Barrier(2)
    engine = Patient(Transformers())
    lms = [tiny_lm(), tiny_lm(seed=1)]
    expected = [ids_of(generate(lm, PROMPTS, max_new_tokens=6)) for lm in lms]
    assert expected[0] != expected[1]
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(generate, lm, PROMPTS, engine=engine, max_new_tokens=6) for lm in lms]
        assert [ids_of(each.result()) for each in asked] == expected


def test_an_engine_may_be_a_data_class_and_equal_to_another(lm):
    @define
    class Valued(TransformersEngine):
        config: Transformers

    one, other = Valued(Transformers()), Valued(Transformers())
    assert one == other
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)
    assert ids_of(generate(lm, PROMPTS, engine=one, max_new_tokens=3)) == ids_of(
        generate(lm, PROMPTS, max_new_tokens=3)
    )
    assert turns_of(one) is turns_of(one)
    assert turns_of(one) is not turns_of(other), "a thread would wait for the calls of another engine"
    assert turns_of(copy(one)) is not turns_of(one)


def test_the_calls_of_an_engine_are_forgotten_with_it():
    engine = Transformers().build()
    turns = ref(turns_of(engine))
    gc.collect()
    assert turns() is not None
    del engine
    gc.collect()
    assert turns() is None


def test_a_stream_says_at_once_what_is_wrong(lm):
    with pytest.raises(ConfigError, match="not unique"):
        generate(lm, PROMPTS, ids=["a", "b", "a"], stream=True)


def test_a_decoder_that_forgets_a_request_is_an_error():
    class Forgetful(Decoder):
        def decode(self, step_model, requests, sampler, limits, runtime):
            yield Completion(request=0, id="0", stream=0, token_ids=(5,), text="", finish="length")

    with pytest.raises(Exception, match="returned nothing for the requests 1, 2"):
        generate(tiny_lm(), PROMPTS, decoder=Forgetful(DecoderConfig()))


def test_a_prompt_to_be_continued_does_not_end_and_begins_once():
    lm = tiny_lm()
    from tokenizers.processors import TemplateProcessing

    tokenizer = lm.tokenizer
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 3), ("</s>", 1)]
    )
    cat = tokenizer.convert_tokens_to_ids("cat")
    assert prompt_ids(lm, ["cat", "<s> cat", ""]) == [(3, cat), (3, cat), (3,)]
    seq2seq = tiny_lm("encoder-decoder")
    seq2seq.tokenizer.backend_tokenizer.post_processor = tokenizer.backend_tokenizer.post_processor
    assert prompt_ids(seq2seq, ["cat"]) == [(3, cat, 1)]


def test_an_empty_prompt_begins_with_the_beginning_of_text():
    lm = tiny_lm()
    assert prompt_ids(lm, [""]) == [(lm.tokenizer.bos_token_id,)]
    lm.tokenizer.bos_token = lm.tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="empty"):
        prompt_ids(lm, [""])


def padded(lm, prompts):
    side = "left" if lm.family == "decoder" else "right"
    found = lm.tokenizer(prompts, return_tensors="pt", padding=True, padding_side=side)
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


def new_ids(lm, sequences, inputs):
    return sequences[:, inputs["input_ids"].shape[1] if lm.family == "decoder" else 1 :].tolist()


def assert_same_tokens(rows, completions):
    for row, completion in zip(rows, completions, strict=True):
        assert tuple(row[: len(completion.token_ids)]) == completion.token_ids
        assert set(row[len(completion.token_ids) :]) <= {0}


@pytest.mark.parametrize("sampler", [HOT, "greedy", "top_p(p=0.7)"])
def test_custom_generate_draws_the_tokens_of_the_stepwise_decoder(lm, sampler):
    ours = generate(lm, PROMPTS, sampler=sampler, seed=3, max_new_tokens=7)
    inputs = padded(lm, PROMPTS)
    theirs = lm.model.generate(**inputs, max_new_tokens=7, custom_generate=hf.custom_generate(sampler, seed=3))
    assert_same_tokens(new_ids(lm, theirs, inputs), ours)


def test_custom_generate_numbers_the_completions_of_a_prompt_as_streams(lm):
    ours = generate(lm, PROMPTS, sampler=HOT, seed=3, completions=2, max_new_tokens=5)
    inputs = padded(lm, PROMPTS)
    theirs = lm.model.generate(
        **inputs,
        max_new_tokens=5,
        do_sample=True,
        top_k=1,  # of transformers' own sampling nothing is left
        num_return_sequences=2,
        custom_generate=hf.custom_generate(HOT, seed=3),
    )
    assert_same_tokens(new_ids(lm, theirs, inputs), ours)


def test_custom_generate_takes_a_seed_a_row_and_minds_the_minimum(lm):
    inputs = padded(lm, PROMPTS)
    options = {"max_new_tokens": 6, "min_new_tokens": 4}
    both = lm.model.generate(**inputs, **options, custom_generate=hf.custom_generate(HOT, seed=[11, 12, 13]))
    for number, seed in enumerate([11, 12, 13]):
        one = padded(lm, [PROMPTS[number]])
        row = lm.model.generate(**one, **options, custom_generate=hf.custom_generate(HOT, seed=[seed]))
        assert new_ids(lm, row, one)[0] == new_ids(lm, both, inputs)[number][: row.shape[1]]
        assert lm.tokenizer.eos_token_id not in new_ids(lm, row, one)[0][:3]


def test_custom_generate_refuses_what_it_cannot_do(lm):
    inputs = padded(lm, PROMPTS)
    for options, message in (({"num_beams": 2}, "beam"), ({"output_attentions": True}, "output_attentions")):
        with pytest.raises(ConfigError, match=message):
            lm.model.generate(**inputs, max_new_tokens=2, custom_generate=hf.custom_generate("greedy"), **options)
    with pytest.raises(ConfigError, match="2 seeds for 3 prompts"):
        lm.model.generate(**inputs, max_new_tokens=2, custom_generate=hf.custom_generate("greedy", seed=[1, 2]))


def letters(lm):
    """A tokenizer of which every id is a letter: transformers' stop strings cannot read word-level ones."""
    inner = Tokenizer(models.BPE({piece: n for n, piece in enumerate(ascii_letters[: len(lm.tokenizer)])}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner)


def test_custom_generate_stops_where_transformers_own_loop_stops(lm):
    tokenizer = letters(lm)
    inputs, options = padded(lm, PROMPTS), {"max_new_tokens": 12}
    free = lm.model.generate(**inputs, **options, custom_generate=hf.custom_generate(HOT, seed=3))
    words = [tokenizer.decode(row[3:5]) for row in new_ids(lm, free, inputs)[:2]]
    assert all(len(word) == 2 for word in words)
    draw = hf.custom_generate(HOT, seed=3, stop_strings=words, tokenizer=tokenizer)
    found = lm.model.generate(**inputs, **options, custom_generate=draw)
    mask = inputs["attention_mask"] if lm.family == "decoder" else None
    expected = lm.model.generate(
        **inputs,
        **options,
        do_sample=True,
        top_k=0,
        stop_strings=words,
        tokenizer=tokenizer,
        logits_processor=hf.logits_processors(HOT, attention_mask=mask, seed=3, draw=True),
    )
    assert found.tolist() == expected.tolist() != free.tolist()
    one = hf.custom_generate(HOT, seed=3, stop_strings=words[0], tokenizer=tokenizer)
    row = new_ids(lm, lm.model.generate(**inputs, **options, custom_generate=one), inputs)[0]
    assert row[:5] == new_ids(lm, free, inputs)[0][:5]
    assert not any(row[5:])  # padding


def test_stop_strings_of_custom_generate_need_a_tokenizer():
    with pytest.raises(ConfigError, match="give tokenizer too"):
        hf.custom_generate("greedy", stop_strings="a")


def test_beams_that_the_models_own_settings_ask_for_are_named(lm):
    inputs = padded(lm, PROMPTS[:1])
    with pytest.raises(ConfigError, match="num_beams=2 has no meaning with a sampler.* give num_beams=1"):
        lm.model.generate(**inputs, num_beams=2, max_new_tokens=2, custom_generate=hf.custom_generate())


def test_custom_generate_gives_scores_where_they_are_asked_for(lm):
    inputs = padded(lm, PROMPTS[:1])
    found = lm.model.generate(
        **inputs,
        max_new_tokens=3,
        min_new_tokens=3,
        custom_generate=hf.custom_generate("greedy"),
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert [int(s.argmax()) for s in found.scores] == new_ids(lm, found.sequences, inputs)[0]


@pytest.mark.parametrize("adapter", ["lora(rank=2)", "bottleneck", "prefix(tokens=3)", "prompt(tokens=3)"])
def test_adapters_count_in_both_ways_of_generating(lm, adapter):
    from tunesmith.runtime import Runtime
    from tunesmith.spec import parse

    fresh = tiny_lm(lm.family)
    adapted = parse(adapter, "adapter").build().attach(fresh, Runtime())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in adapted.adapters[0].trainable():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    fresh.model.generation_config.eos_token_id = [1, *range(8, 20)]  # many ends, so that rows leave at all times
    ours = generate(adapted, PROMPTS, sampler=HOT, seed=3, max_new_tokens=6, engine="transformers(batch_size=2)")
    alone = [generate(adapted, [p], ids=[str(n)], sampler=HOT, seed=3, max_new_tokens=6) for n, p in enumerate(PROMPTS)]
    assert ids_of(ours) == [a[0].token_ids for a in alone]
    assert ids_of(ours) != ids_of(generate(lm, PROMPTS, sampler=HOT, seed=3, max_new_tokens=6))
    inputs = padded(adapted, PROMPTS)
    theirs = adapted.model.generate(**inputs, max_new_tokens=6, custom_generate=hf.custom_generate(HOT, seed=3))
    assert_same_tokens(new_ids(adapted, theirs, inputs), ours)


@pytest.mark.parametrize("adapter", ["lora(rank=2)", "prefix(tokens=3)"])
def test_an_adapter_that_is_switched_off_leaves_the_models_own_completions(lm, adapter):
    from tunesmith.runtime import Runtime
    from tunesmith.spec import parse

    options = {"sampler": HOT, "max_new_tokens": 6, "completions": 2, "engine": "transformers(batch_size=2)"}
    expected = generate(lm, PROMPTS, **options)
    adapted = parse(adapter, "adapter").build().attach(tiny_lm(lm.family), Runtime())
    with torch.no_grad():
        for _, parameter in adapted.adapters[0].trainable():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    changed = ids_of(generate(adapted, PROMPTS, **options))
    with adapted.adapters[0].disabled():
        assert ids_of(generate(adapted, PROMPTS, **options)) == ids_of(expected)
        uncached = {**options, "engine": "transformers(batch_size=2, kv_cache=false)"}
        assert ids_of(generate(adapted, PROMPTS, **uncached)) == ids_of(expected)
    assert ids_of(generate(adapted, PROMPTS, **options)) == changed != ids_of(expected)
    assert ids_of(generate(adapted, PROMPTS, **uncached)) == changed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny_lm().save(path)
    return str(path)


def test_the_command_writes_what_the_function_writes(folder):
    given = ["-p", PROMPTS[0], "-p", PROMPTS[1]]
    run = CliRunner().invoke(
        command,
        f"{folder} --sampler top_k(k=5) --max-new-tokens 4 --seed 7 --completions 2 --json".split() + given,
        catch_exceptions=False,
    )
    assert run.exit_code == 0, run.output
    rows = [json.loads(line) for line in run.output.splitlines() if line.startswith("{")]
    ids = [f"{p}\0{1}" for p in PROMPTS[:2]]
    expected = generate(
        load(folder), PROMPTS[:2], ids=ids, sampler="top_k(k=5)", max_new_tokens=4, seed=7, completions=2
    )
    assert [tuple(row["token_ids"]) for row in rows] == ids_of(expected)
    assert [row["stream"] for row in rows] == [0, 1, 0, 1]


def test_the_command_streams_and_tells_the_speed(folder):
    given = [folder, "--sampler", "temperature", "--max-new-tokens", "8", "--stream", "-p", PROMPTS[0]]
    (expected,) = generate(
        load(folder), PROMPTS[:1], ids=[f"{PROMPTS[0]}\0{1}"], sampler="temperature", max_new_tokens=8
    )
    plain = CliRunner().invoke(command, given, catch_exceptions=False)
    assert plain.stdout == f"{expected.text}\n"
    assert "completions: 1, " in plain.stderr
    assert "new tokens/s" in plain.stderr
    lines = CliRunner().invoke(command, [*given, "-p", "dog", "--json"], catch_exceptions=False).stdout.splitlines()
    mine = [row for row in map(json.loads, lines) if row["prompt"] == PROMPTS[0]]
    assert len(mine) > 1
    assert "".join(row["text"] for row in mine) == expected.text
    assert [row["finish"] for row in mine] == [*[None] * (len(mine) - 1), expected.finish]
    assert "--stream needs --json" in CliRunner().invoke(command, [*given, "-p", "dog"]).output


def test_the_command_reads_files_and_standard_input_and_says_what_is_missing(folder, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("dog\n\nthe cat\n", encoding="utf-8")
    from_file = CliRunner().invoke(command, [folder, "--file", str(file), "--max-new-tokens", "3", "--json"])
    from_input = CliRunner().invoke(command, [folder, "--max-new-tokens", "3", "--json"], input="dog\nthe cat\n")
    lines = [line for line in from_file.output.splitlines() if line.startswith("{")]
    assert len(lines) == 2
    assert lines == [line for line in from_input.output.splitlines() if line.startswith("{")]
    (tmp_path / "bom.txt").write_bytes("\ufeffdog\r\nthe\u2028cat\n".encode())
    marked = CliRunner().invoke(
        command, [folder, "--file", str(tmp_path / "bom.txt"), "--max-new-tokens", "3", "--json"]
    )
    first, second = marked.stdout.rstrip("\n").split("\n")
    assert json.loads(first) == json.loads(lines[0])
    assert json.loads(second)["prompt"] == "the\u2028cat"
    (tmp_path / "latin.txt").write_bytes("M\xfcll\n".encode("latin-1"))
    for given, options in (["", ["--file", str(tmp_path / "latin.txt")]], [b"M\xfcll\n", []]):
        assert "is not UTF-8 text" in CliRunner().invoke(command, [folder, *options], input=given).output
    assert "every line is empty" in CliRunner().invoke(command, [folder], input="\n").output
    assert "not both" in CliRunner().invoke(command, [folder, "-p", "a", "--file", str(file)]).output
    assert "cannot be read" in CliRunner().invoke(command, [folder, "--file", str(tmp_path / "none")]).output
    file.write_bytes("\ufeffdog\n\nthe cat\n".encode())
    marked = CliRunner().invoke(command, [folder, "--file", str(file), "--max-new-tokens", "3", "--json"])
    assert lines == [line for line in marked.output.splitlines() if line.startswith("{")]
    file.write_bytes(b"\xff\xfed\x00")
    assert f"{file} is not UTF-8 text" in CliRunner().invoke(command, [folder, "--file", str(file)]).output
    assert "standard input is not UTF-8 text" in CliRunner().invoke(command, [folder], input=b"\xff\n").output
    elsewhere = CliRunner(charset="latin-1")  # a terminal whose locale has another encoding
    marked = elsewhere.invoke(command, [folder, "--max-new-tokens", "3", "--json"], input="süß\n".encode())
    assert json.loads(marked.stdout.split("\n")[0])["prompt"] == "süß"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_what_the_command_prints_is_json_in_any_encoding(folder, monkeypatch, encoding, stream):
    raw = io.BytesIO()
    # what `main` makes of the standard output of a process
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace"))
    command.main([folder, "-p", "süß \U0001f600 €", "--max-new-tokens", "2", "--json", *stream], standalone_mode=False)
    sys.stdout.flush()
    text = raw.getvalue().decode(encoding)
    assert {json.loads(line)["prompt"] for line in text.splitlines()} == {"süß \U0001f600 €"}
    assert ("süß" in text) == (encoding == "utf-8")


def test_the_command_takes_a_type_of_weights(folder):
    given = [folder, "-p", PROMPTS[0], "--max-new-tokens", "4", "--json"]
    (row,) = CliRunner().invoke(command, [*given, "--dtype", "bfloat16"], catch_exceptions=False).stdout.splitlines()
    lm = load(folder, runtime=Runtime(dtype="bfloat16"))
    assert json.loads(row)["logp"] == list(generate(lm, PROMPTS[:1], max_new_tokens=4)[0].logp)
    assert json.loads(row)["logp"] != list(generate(load(folder), PROMPTS[:1], max_new_tokens=4)[0].logp)


def test_the_command_finds_a_wrong_name_before_it_reads_the_model():
    run = CliRunner().invoke(command, ["no/such/model", "-p", "a", "--sampler", "top_pp"])
    assert isinstance(run.exception, Exception)
    assert "top_p" in str(run.exception)
    run = CliRunner().invoke(
        command, ["no/such/model", "-p", "a\udcff"]
    )  # bytes that are no text, as a shell passes them on
    assert "prompt 0 holds half of a character" in str(run.exception)


def test_half_a_character_in_a_prompt_is_named(lm):
    with pytest.raises(ConfigError, match="prompt 1 holds half of a character .* at place 2, .*reads: 'a .ud83d'$"):
        generate(lm, ["the cat", "a \ud83d"])
    with pytest.raises(ConfigError, match="prompt 1 holds half of a character") as caught:
        prompt_ids(lm, ["the cat", "a " * 10_000 + "\ud83d"])
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("prompts", "options", "message"), [
    (["a", [5], "\ud83d"], {}, "prompt 2 holds half of a character"),
    (["a"], {"negative_prompts": "\ud83d", "decoder": "guidance"}, "negative prompt 0 holds half of a character"),
    (["a"], {"negative_prompts": ["a", "b"], "decoder": "guidance"}, "2 negative prompts for 1 prompts"),
    (["a"], {"negative_prompts": "b"}, "has no use for negative_prompts"),
])  # fmt: skip
def test_what_is_wrong_with_prompts_is_said_before_a_model_is_read(prompts, options, message):
    with pytest.raises(ConfigError, match=message):
        generate("./no-model", prompts, **options)


def test_an_empty_stop_string_is_refused(lm):
    with pytest.raises(ConfigError, match="'stop' holds an empty string"):
        generate(lm, ["a"], stop=["", "x"])


@pytest.mark.realdata
def test_a_real_model_writes_what_transformers_writes_greedily(real_models):
    lm = load(real_models / "stories260k")
    prompts = ["Once upon a time", "The dog", "In the morning, Ben and his cat sat by the window. They saw"]
    ours = generate(lm, prompts, max_new_tokens=30)
    for prompt, completion, ids in zip(prompts, ours, prompt_ids(lm, prompts), strict=True):
        theirs = lm.model.generate(torch.tensor([ids]), max_new_tokens=30, do_sample=False)[0]
        assert tuple(theirs[len(ids) :].tolist()) == completion.token_ids
        # prompt and completion read on as one text: the first piece keeps its space, or its absence
        assert prompt + completion.text == lm.tokenizer.decode(theirs, skip_special_tokens=True)


@pytest.mark.realdata
@pytest.mark.parametrize("beams", [1, 4])
def test_a_real_encoder_decoder_transliterates_as_in_transformers(real_models, beams):
    lm = load(real_models / "aren-seq2seq")
    prompts = ["آ ت ز م و ن", "م ح م د", "ا ل ق ا ه ر ة"]
    decoder = "stepwise" if beams == 1 else f"beam(beams={beams}, length_penalty=0.0)"
    ours = generate(lm, prompts, max_new_tokens=24, decoder=decoder)
    for completion, ids in zip(ours, prompt_ids(lm, prompts), strict=True):
        theirs = lm.model.generate(torch.tensor([ids]), max_new_tokens=24, num_beams=beams, do_sample=False)[0, 1:]
        assert tuple(theirs.tolist()) == completion.token_ids


@pytest.mark.parametrize(("given", "device"), [(None, "cuda:1"), (Runtime(seed=3), "cpu")])
def test_what_is_loaded_lies_beside_the_model_unless_a_runtime_says_otherwise(monkeypatch, given, device):
    seen = []
    monkeypatch.setattr(LM, "device", property(lambda self: torch.device("cuda", 1)))
    monkeypatch.setattr(
        Transformers().build().__class__, "generate", lambda self, *work: iter(seen.append(work[-1]) or ())
    )
    with pytest.raises(TunesmithError, match="returned nothing"):
        generate(tiny_lm(), PROMPTS, runtime=given)
    assert seen[0].device == device

"""Every text architecture of transformers through the engine: batches as single prompts, with a cache as without, as transformers writes.

A small set always runs, with something of every kind; the rest is exhaustive.
"""

import inspect

import pytest
import torch
import transformers
from text_models import ALL, HOT, PROMPTS, VOCABULARY, text_model

from tunesmith.errors import ConfigError, MissingPower
from tunesmith.generation import generate
from tunesmith.hf_generate import custom_generate
from tunesmith.model_families import FAMILIES, needs
from tunesmith.padding import counts_padding, first_position, reads_padding
from tunesmith_plugins.engines import Transformers

ALWAYS = {
    "Bamba", "Bart", "Bloom", "CpmAnt", "CTRL", "DeepseekV3", "DeepseekV4", "FSMT", "FalconH1", "GPTNeo", "Gemma3Text",
    "Gemma4Text", "HrmText", "GPT2", "LED", "Llama", "M2M100", "Mamba", "Mamba2", "MiniMax", "Mistral", "Mpt",
    "OpenAIGPT", "OPT", "Pegasus", "ProphetNet", "Qwen3Next", "Qwen4ExpText", "RecurrentGemma", "Reformer", "RoFormer",
    "Roberta", "Rwkv", "T5", "T5Gemma", "XGLM", "XLM", "XLNet", "xLSTM",
}  # fmt: skip
NEAR = {"Mamba2": 0.01, "NemotronH": 0.01, "Zamba2": 0.05}
"""Of models whose recurrences transformers computes in two ways, token by token and all at once, which round apart."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(one, id="-".join(one), marks=() if one[0] in ALWAYS else pytest.mark.exhaustive) for one in ALL
    ],
)
def lm(request):
    kind, family = request.param
    made = text_model(kind, family)
    if needs(made.model).unfit:
        with pytest.raises(ConfigError, match=needs(made.model).unfit):
            generate(made, PROMPTS, max_new_tokens=2)
        pytest.skip("cannot be asked for one token after the other, and is refused")
    return made


@pytest.fixture(scope="module")
def alone(lm):
    """What each prompt is written on with alone, over the cache."""
    found = written(lm, batch_size=1)
    assert len({len(c.token_ids) for c in found}) >= 2
    return found


def written(lm, prompts=PROMPTS, **engine):
    return generate(
        lm,
        prompts,
        engine=Transformers(**engine),
        sampler=HOT,
        completions=3,
        max_new_tokens=9,
        seeds=range(len(prompts)),
    )


def same(found, expected, bound):
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logp == pytest.approx(other.logp, abs=bound)


def takes_padding(lm):
    return lm.family == "encoder-decoder" or not reads_padding(lm.model)


def test_prompts_of_different_length_are_written_on_together_as_alone(lm, alone):
    if takes_padding(lm):
        return same(written(lm, batch_size=4), alone, 1e-3)
    with pytest.raises(ConfigError, match="cannot tell padding from text"):
        written(lm, batch_size=4)
    even = [PROMPTS[0][:3], PROMPTS[3]]
    same(written(lm, even, batch_size=2), written(lm, even, batch_size=1), 1e-3)


def test_without_a_cache_as_with_it(lm, alone):
    if needs(lm.model).one_by_one:
        with pytest.raises(ConfigError, match="leave kv_cache=False out"):
            written(lm, kv_cache=False)
        return
    found = written(lm, batch_size=4 if takes_padding(lm) else 1, kv_cache=False)
    # what rounds apart draws apart before long
    same(found, written(lm, batch_size=1, kv_cache=False) if kind_of(lm) in NEAR else alone, 1e-3)


def test_an_int8_cache_holds_a_batch_as_it_holds_one_text_or_is_refused(lm):
    if needs(lm.model).fixed_places:
        pytest.skip("it turns keys by their places, padding and all, before they are rounded")
    size = 4 if takes_padding(lm) else 1
    try:
        found = written(lm, batch_size=size, cache="int8")
    except ConfigError as refusal:
        if "leave cache='int8' out" not in str(refusal):
            raise
        return
    assert [c.token_ids for c in found] == [c.token_ids for c in written(lm, batch_size=1, cache="int8")]


def test_greedy_tokens_are_those_of_transformers(lm):
    size = 4 if takes_padding(lm) else 1
    found = generate(lm, PROMPTS, max_new_tokens=8, engine=Transformers(batch_size=size))
    for prompt, completion in zip(PROMPTS, found, strict=True):
        assert completion.token_ids == (by_transformers(lm, prompt, len(completion.token_ids)))


def test_transformers_loop_draws_what_the_engine_draws(lm):
    decoder = lm.family == "decoder"
    even = not takes_padding(lm) or (decoder and counts_padding(lm.model))
    # a prompt of one token alone too, behind whatever was read before
    for prompts in ([PROMPTS[0][:3], PROMPTS[3]] if even else PROMPTS, PROMPTS[1:2]):
        seeds = list(range(len(prompts)))
        found = generate(lm, prompts, sampler=HOT, max_new_tokens=8, seeds=seeds, engine=Transformers(batch_size=1))
        ids, mask = padded(prompts, left=decoder)
        draw = custom_generate(HOT, seed=seeds)
        rows = lm.model.generate(ids, attention_mask=mask, max_new_tokens=8, num_beams=1, custom_generate=draw)
        for row, completion in zip(rows[:, ids.shape[1] if decoder else 1 :].tolist(), found, strict=True):
            assert tuple(row[: len(completion.token_ids)]) == completion.token_ids


def test_a_text_may_be_as_long_as_the_model_has_positions_and_no_longer(lm):
    long, ends = [5 + n % 40 for n in range(90)], lm.model.generation_config
    before, ends.eos_token_id = ends.eos_token_id, [VOCABULARY]  # one that is never written
    try:
        engine = Transformers(batch_size=1).build()
        (found,) = generate(lm, [long], max_new_tokens=30, min_new_tokens=30, engine=engine)
        assert len(found.token_ids) == 30
        most = engine.step_model.max_length
        if lm.family == "encoder-decoder" and most is not None:
            (found,) = generate(lm, [long], max_new_tokens=90, min_new_tokens=90, engine=engine)
            assert len(found.token_ids) == most
        if not needs(lm.model).one_by_one or needs(lm.model).ids_beside_states:
            assert len(engine.score([(long, long[:20])])[0]) == 20
    finally:
        ends.eos_token_id = before


def padded(prompts, left):
    width = max(map(len, prompts))
    ids, mask = [], []
    for prompt in prompts:
        gap, ones = [0] * (width - len(prompt)), [1] * len(prompt)
        ids.append(gap + prompt if left else prompt + gap)
        mask.append(gap + ones if left else ones + gap)
    return torch.tensor(ids), torch.tensor(mask)


@torch.no_grad()
def by_transformers(lm, prompt, count):
    ids = torch.tensor([prompt])
    if lm.family == "decoder" and first_position(lm.model):
        # generation of transformers begins at 0, and these models were trained from behind padding: one pass after the other
        for _ in range(count):
            ids = torch.cat([ids, lm.model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        return tuple(ids[0, len(prompt) :].tolist())
    options = {"max_new_tokens": count, "do_sample": False, "num_beams": 1}
    if needs(lm.model).no_cache or "past_key_values" not in inspect.signature(lm.model.forward).parameters:
        options["use_cache"] = False
    found = lm.model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return tuple(found[0, 1 if lm.family == "encoder-decoder" else len(prompt) :].tolist())


def test_a_text_is_scored_as_it_was_written(lm):
    engine = Transformers(batch_size=4).build()
    engine.sync(lm)
    # some prompts twice, whose encoder is run once
    asked = [*PROMPTS, *PROMPTS[1:3]]
    pairs = [generate(lm, [prompt], max_new_tokens=6)[0] for prompt in asked]
    rows = [(prompt, c.token_ids) for prompt, c in zip(asked, pairs, strict=True)]
    if needs(lm.model).one_by_one and not needs(lm.model).ids_beside_states:
        with pytest.raises(MissingPower, match="reads several tokens at once wrongly"):
            engine.score(rows)
        return
    for completion, score in zip(pairs, engine.score(rows), strict=True):
        assert score == pytest.approx(completion.logp, abs=max(NEAR.get(kind_of(lm), 0), 2e-3))


def kind_of(lm):
    return type(lm.model.config).__name__.removesuffix("Config")


def test_an_id_of_padding_within_a_text_is_a_token_like_others():
    lm = text_model("T5Gemma", "encoder-decoder")
    engine = Transformers().build()
    engine.sync(lm)
    model, text = engine.step_model, (7, 0, 30, 0, 12)
    logits, cache = model.begin(PROMPTS[:1])
    one_by_one = []
    for token in text:
        one_by_one.append(float(logits.log_softmax(-1)[0, token]))
        logits, cache = model.step(torch.tensor([token]), cache)
    assert engine.score([(PROMPTS[0], text)])[0] == pytest.approx(one_by_one, abs=1e-4)


def test_every_family_that_needs_something_always_runs():
    always = {getattr(transformers, f"{kind}Config").model_type for kind in ALWAYS}
    assert set(FAMILIES) <= always

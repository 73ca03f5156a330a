"""What users may ask of generation, through ``tunesmith.generate`` and through transformers' ``generate``, of both families,
with and without a cache, with an adapter on and off."""

import pytest
import torch
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import tunesmith as ts
from tunesmith import hf
from tunesmith.errors import ConfigError
from tunesmith.runtime import Runtime
from tunesmith.spec import parse
from tunesmith.testing.models import tiny_lm

PROMPTS = ["the cat sees a tree", "dog", "one two red and blue fish"]
HOT = "chain(links=[repetition_penalty(penalty=1.3), temperature(temperature=1.5), top_p(p=0.9)])"
PARAMETERS = {"top_p.p": [1.0, 0.05, 0.8], "temperature.temperature": 1.2}
SEEDS = [11, 2**63 + 5, 7]
COUNT = 8


@pytest.fixture(scope="module", params=["decoder", "encoder-decoder"])
def adapted(request):
    """A model with an adapter that changes much."""
    lm = parse("lora(rank=2)", "adapter").build().attach(tiny_lm(request.param), Runtime())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in lm.adapters[0].trainable():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return lm


@pytest.fixture(params=[True, False], ids=["on", "off"])
def lm(request, adapted):
    """The model with its adapter on or off."""
    if request.param:
        yield adapted
    else:
        with adapted.adapters[0].disabled():
            yield adapted


@pytest.fixture(params=[True, False], ids=["cache", "no cache"])
def cache(request):
    return request.param


def ours(lm, cache, prompts=PROMPTS, **options):
    given = {"sampler": HOT, "seeds": SEEDS, "parameters": PARAMETERS, "max_new_tokens": COUNT, **options}
    return ts.generate(lm, prompts, engine=f"transformers(kv_cache={str(cache).lower()})", **given)


def theirs(lm, cache, draw, prompts=PROMPTS, **options):
    """Return new ids of every row, up to its end, by transformers' ``generate``."""
    side = "left" if lm.family == "decoder" else "right"
    found = lm.tokenizer(prompts, return_tensors="pt", padding=True, padding_side=side)
    inputs = {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}
    begin = inputs["input_ids"].shape[1] if lm.family == "decoder" else 1
    out = lm.model.generate(**inputs, max_new_tokens=COUNT, use_cache=cache, custom_generate=draw, **options)
    rows = []
    for row in out[:, begin:].tolist():
        end = next((n + 1 for n, token in enumerate(row) if token == lm.tokenizer.eos_token_id), len(row))
        rows.append(tuple(row[:end]))
    return rows


class Kept(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self):
        self.given, self.ended = [], 0

    def put(self, value):
        self.given.append(value.clone())

    def end(self):
        self.ended += 1


class Written(StoppingCriteria):
    """Ends rows that hold a string; transformers' own criterion cannot read the tiny tokenizer."""

    def __init__(self, tokenizer, stop):
        self.tokenizer, self.stop = tokenizer, stop

    def __call__(self, input_ids, scores, **kwargs):
        texts = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        return torch.tensor([self.stop in text for text in texts])


def test_seeds_and_parameters_of_rows_alone_together_and_in_both_ways(lm, cache):
    together = [c.token_ids for c in ours(lm, cache)]
    for number, prompt in enumerate(PROMPTS):
        own = {name: value[number] if isinstance(value, list) else value for name, value in PARAMETERS.items()}
        (alone,) = ours(lm, cache, [prompt], seeds=[SEEDS[number]], parameters=own)
        assert alone.token_ids == together[number]
    assert theirs(lm, cache, hf.custom_generate(HOT, seed=SEEDS, parameters=PARAMETERS)) == together
    others = [c.token_ids for c in ours(lm, cache, parameters={"top_p.p": [0.05, 1.0, 0.05]})]
    assert others != together
    assert [c.token_ids for c in ours(lm, cache, seeds=[1, 2, 3])] != together


def test_pieces_and_streamers_show_what_is_written(lm, cache):
    whole, speeds = ours(lm, cache), []
    texts, ids = [""] * len(whole), [()] * len(whole)
    for piece in ours(lm, cache, stream=True, report=speeds.append):
        texts[piece.request] += piece.text
        ids[piece.request] += piece.token_ids
    assert texts == [c.text for c in whole]
    assert ids == [c.token_ids for c in whole]
    kept = Kept()
    found = theirs(
        lm, cache, hf.custom_generate(HOT, seed=SEEDS, parameters=PARAMETERS, streamer=kept, report=speeds.append)
    )
    assert found == ids
    shown = torch.stack(kept.given[1:], dim=1).tolist()
    assert [tuple(row[: len(own)]) for row, own in zip(shown, ids, strict=True)] == ids
    assert kept.ended == 1
    for speed in speeds:
        assert speed.new_tokens == sum(map(len, ids))
        assert speed.completions == len(PROMPTS)
        assert speed.prompt_tokens == sum(len(row) for row in lm.tokenizer(PROMPTS)["input_ids"])
        assert 0 < speed.tokens_per_second < float("inf")
        assert 0 < speed.rows_busy <= len(PROMPTS)


def test_a_stop_string_ends_a_text_in_every_way(lm, cache):
    options = {"seeds": SEEDS[:1], "parameters": {"top_p.p": 0.99}}
    (free,) = ours(lm, cache, PROMPTS[:1], **options)
    stop = next(word for word in free.text.split()[1:] if word not in PROMPTS[0])
    (stopped,) = ours(lm, cache, PROMPTS[:1], stop=stop, **options)
    assert stopped.finish == "stop"
    assert stopped.text == free.text[: free.text.index(stop)]
    *_, last = ours(lm, cache, PROMPTS[:1], stop=stop, stream=True, **options)
    assert last.completion == stopped
    draw = hf.custom_generate(HOT, seed=SEEDS[:1], parameters=options["parameters"])
    criterion = Written(lm.tokenizer, stop)
    assert theirs(lm, cache, draw, PROMPTS[:1], stopping_criteria=[criterion]) == [stopped.token_ids]


def test_parameters_that_do_not_fit_are_refused(adapted):
    with pytest.raises(ConfigError, match=r"2 values of 'top_p\.p' for 3 prompts"):
        ours(adapted, True, parameters={"top_p.p": [0.5, 0.6]})
    with pytest.raises(ConfigError, match=r"no parameter 'top_k\.k'"):
        ours(adapted, True, parameters={"top_k.k": 3})

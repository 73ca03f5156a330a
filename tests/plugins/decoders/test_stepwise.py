import attrs
import pytest
import torch

from tunesmith.errors import NumericError
from tunesmith.generation import component, prompt_ids
from tunesmith.kinds.decoder import Limits, Request
from tunesmith.kinds.sampler import Link, SamplerConfig
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.decoders import Stepwise
from tunesmith_plugins.samplers import Chain, Temperature


class Counting:
    """A step model over a fixed table of logits that writes down how many rows each call had."""

    joins = True
    vocab_size = 5
    eos_token_ids = frozenset({0})
    max_length = None

    def __init__(self, batch_size, joins=True):
        self.batch_size, self.joins = batch_size, joins
        self.began, self.stepped = [], []

    def logits(self, cache):
        # a row's first prompt id says how long it is to be: then comes the end
        table = torch.full((len(cache), 5), -9.0)
        for row, (length, done) in enumerate(cache):
            table[row, 0 if done + 1 >= length else 1 + done % 4] = 9.0
        return table

    def begin(self, prompts):
        self.began.append(len(prompts))
        cache = [(p[0], 0) for p in prompts]
        return self.logits(cache), cache

    def step(self, token_ids, cache):
        self.stepped.append(len(cache))
        assert len(token_ids) == len(cache)
        cache = [(length, done + 1) for length, done in cache]
        return self.logits(cache), cache

    def select(self, cache, index):
        return [cache[i] for i in index.tolist()]

    def join(self, caches):
        assert self.joins
        return [row for cache in caches for row in cache]

    def context(self, prompt):
        return prompt

    def text(self, token_ids):
        return "".join("_abcd"[t] for t in token_ids if t)


def decode(model, requests, sampler=None, **limits):
    drawing = component(sampler, "sampler")
    return list(Stepwise().build().decode(model, requests, drawing, Limits(**limits), Runtime()))


def test_rows_leave_when_they_end_and_waiting_prompts_take_their_places():
    lengths = [1, 2, 9, 3, 1, 4, 2, 5]
    model = Counting(4)
    found = decode(model, [Request(prompt_ids=(n,)) for n in lengths], max_new_tokens=20)
    assert sorted((c.request, len(c.token_ids)) for c in found) == list(enumerate(lengths))
    assert all(c.finish == "eos" for c in found)
    assert max(model.stepped) <= 4
    assert len(model.began) > 2, "nobody entered a running batch"
    # the longest row alone takes 9 steps; in batches of their own the others would need 3 more at least
    assert len(model.stepped) < 9 + 3


def test_a_model_that_cannot_mix_ages_finishes_a_batch_before_the_next():
    model = Counting(3, joins=False)
    found = decode(model, [Request(prompt_ids=(n,)) for n in (5, 1, 2, 4, 3)], max_new_tokens=20)
    assert sorted(len(c.token_ids) for c in found) == [1, 2, 3, 4, 5]
    assert model.began == [3, 2]


def test_a_stop_string_is_found_across_tokens_and_cut_with_what_follows():
    (found,) = decode(Counting(2), [Request(prompt_ids=(9,))], max_new_tokens=20, stop=("bc", "zz"))
    assert found.text == "a"
    assert found.finish == "stop"
    assert found.token_ids == (1, 2, 3)


def test_length_ends_a_row_that_would_go_on():
    (found,) = decode(Counting(2), [Request(prompt_ids=(9,))], max_new_tokens=4)
    assert (found.finish, len(found.token_ids), len(found.logp)) == ("length", 4, 4)


def test_the_end_cannot_be_drawn_before_the_minimum():
    (found,) = decode(Counting(2), [Request(prompt_ids=(1,))], max_new_tokens=9, min_new_tokens=3)
    assert found.finish == "eos"
    assert len(found.token_ids) == 4  # three others, then the end


def test_requests_with_and_without_parameters_of_their_own_stand_side_by_side():
    model = tiny_lm()
    from tunesmith_plugins.engines import Transformers

    engine = Transformers(batch_size=3).build()
    engine.sync(model)
    ids = prompt_ids(model, ["the cat", "dog", "one two", "red fish"])
    parameters = [{}, {"temperature.temperature": 0.01}, {"temperature.temperature": 5.0}, {}]
    requests = [Request(prompt_ids=i, seed=7, parameters=p) for i, p in zip(ids, parameters, strict=True)]

    def run(some, config):
        found = engine.generate(some, Stepwise().build(), config.build(), Limits(max_new_tokens=6), Runtime())
        return [c.token_ids for c in sorted(found, key=lambda c: c.request)]

    mixed = run(requests, Temperature(temperature=1.3))
    for number, temperature in enumerate([1.3, 0.01, 5.0, 1.3]):
        plain = attrs.evolve(requests[number], parameters={})
        assert run([plain], Temperature(temperature=temperature)) == [mixed[number]]


@pytest.mark.parametrize("replaces", [True, False])
def test_every_request_has_its_own_limit(replaces):
    class Replacing(Counting):
        def replace(self, cache, index, entered):
            cache = list(cache)
            for place, row in zip(index.tolist(), entered, strict=True):
                cache[place] = row
            return cache

    lengths = [3, 9, 1, 7, 2, 2, 8, 4, 1]
    model = (Replacing if replaces else Counting)(3)
    requests = [Request(prompt_ids=(50,), max_new_tokens=n) for n in lengths]
    found = sorted(decode(model, requests, max_new_tokens=8), key=lambda c: c.request)
    assert [len(c.token_ids) for c in found] == [min(n, 8) for n in lengths]
    assert {c.finish for c in found} == {"length"}
    expected = tuple(1 + n % 4 for n in range(8))
    assert all(c.token_ids == expected[: len(c.token_ids)] for c in found), "a row went on with another one's cache"


def test_prompts_that_need_the_longest_are_begun_first():
    model = Counting(2)
    lengths = [2, 2, 2, 2, 2, 2, 30]
    decode(model, [Request(prompt_ids=(n,), max_new_tokens=n) for n in lengths], max_new_tokens=40)
    assert len(model.stepped) == 29, "the longest row was begun late and finished alone"


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
def test_a_bound_on_the_cache_holds_and_changes_no_token(family):
    from tunesmith.generation import generate
    from tunesmith_plugins.engines import Transformers

    lm = tiny_lm(family)
    lm.model.generation_config.eos_token_id = [1, *range(8, 14)]
    prompts = ["the cat " * n for n in (14, 1, 3, 9, 2, 2, 6, 1, 1, 1, 4, 2)]
    options = {"sampler": "temperature(temperature=1.5)", "max_new_tokens": 20, "completions": 2}
    free = generate(lm, prompts, **options)
    engine = Transformers(cache_tokens=150).build()
    engine.sync(lm)
    model, taken = engine.step_model, []
    step, engine.sync = model.step, lambda lm: None

    def watched(token, cache):
        logits, cache = step(token, cache)
        width = cache.mask.shape[1] + (cache.written.shape[1] if family != "decoder" else 0)
        taken.append(len(cache.mask) * width)
        return logits, cache

    model.step = watched
    bounded = generate(lm, prompts, engine=engine, **options)
    assert [c.token_ids for c in bounded] == [c.token_ids for c in free]
    assert 75 < max(taken) <= 150


def test_leaving_early_frees_the_cache():
    import gc
    import weakref

    from tunesmith.generation import generate
    from tunesmith_plugins.engines.decoder_only import DecoderOnly

    seen, step = [], DecoderOnly.step

    def watched(self, token, cache):
        logits, cache = step(self, token, cache)
        seen.extend(weakref.ref(layer) for layer in cache.past.layers)
        return logits, cache

    DecoderOnly.step = watched
    try:
        pieces = generate(tiny_lm(), ["the cat", "dog"], max_new_tokens=50, min_new_tokens=50, stream=True)
        next(pieces)
        assert any(ref() is not None for ref in seen)
        count = len(seen)
        pieces.close()
        gc.collect()
        assert not any(ref() is not None for ref in seen)
        assert len(seen) == count, "it went on"
    finally:
        DecoderOnly.step = step


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
def test_a_prompt_is_read_once_however_late_its_copies_enter(family):
    from tunesmith.generation import generate
    from tunesmith_plugins.engines import Transformers

    lm = tiny_lm(family)
    lm.model.generation_config.eos_token_id = [1, *range(8, 14)]
    prompts = ["the cat sees a tree", "one two red and", "dog"]
    options = {"sampler": "temperature(temperature=1.5)", "max_new_tokens": 9, "completions": 7}
    alone = generate(lm, prompts, engine=Transformers(batch_size=1, cache_tokens=1), **options)
    engine = Transformers(batch_size=3).build()
    engine.sync(lm)
    model, seen = engine.step_model, []
    read, engine.sync = model.read, lambda lm: None
    model.read = lambda some: seen.extend(some) or read(some)
    together = generate(lm, prompts, engine=engine, **options)
    assert sorted(seen) == sorted(prompt_ids(lm, prompts))
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]


def test_nothing_to_do_is_done():
    assert decode(Counting(2), []) == []


END = 29


@attrs.frozen(eq=False)
class Seen:
    """How often each row has drawn."""

    count: torch.Tensor

    def select(self, index):
        return Seen(self.count[index])

    def join(self, others):
        return Seen(torch.cat([self.count, *(o.count for o in others)]))


class Recount(Link):
    """A stateful link that leaves one token: how many were drawn so far, or the end when the prompt's first id says so."""

    truncates = True

    def apply(self, logits, rows):
        (state,) = rows.state.values()
        assert torch.equal(state.count, rows.position), "a row has another row's state"
        only = torch.full_like(logits, -torch.inf)
        token = torch.where(state.count + 1 >= rows.history[:, 0], END, 5 + state.count)
        return only.scatter_(1, token[:, None], 0.0)

    def initial_state(self, rows):
        return Seen(torch.zeros(len(rows), dtype=torch.int64))

    def advance(self, state, logits, draw, rows):
        return Seen(state.count + 1)


@attrs.frozen(kw_only=True)
class Recounting(SamplerConfig):
    name_in_chain = "recount"

    def build(self):
        return Recount(self)


class Uneven(Counting):
    """Leaves the tokens to the sampler."""

    vocab_size = 30
    eos_token_ids = frozenset({END})

    def logits(self, cache):
        return torch.zeros(len(cache), 30)

    def text(self, token_ids):
        return ""


def test_a_samplers_memory_goes_with_its_row():
    sampler = Chain(links=(Temperature(), Recounting())).build()
    lengths = [3, 1, 6, 2, 4, 5, 2]
    model = Uneven(3)
    found = decode(model, [Request(prompt_ids=(n,)) for n in lengths], sampler, max_new_tokens=9)
    assert len(model.began) > 3, "nobody entered a running batch"
    for completion in found:
        length = lengths[completion.request]
        assert completion.token_ids == (*range(5, 4 + length), END)


def test_bad_logits_are_an_error_that_names_the_request():
    class Broken(Counting):
        def logits(self, cache):
            table = super().logits(cache)
            for row, (length, done) in enumerate(cache):
                if length == 7 and done == 2:
                    table[row, 3] = float("nan")
            return table

    with pytest.raises(NumericError, match=r"request 1 'q', new token 2.*NaN"):
        decode(Broken(4), [Request(prompt_ids=(3,)), Request(prompt_ids=(7,), id="q")], max_new_tokens=9)

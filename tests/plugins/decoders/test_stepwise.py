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

"""Who enters a running batch, and when; by a step model that only counts."""

import pytest

from tunesmith.kinds.decoder import Limits, Request
from tunesmith_plugins.decoders.admission import AT_ONCE, Admission
from tunesmith_plugins.decoders.batch import Row
from tunesmith_plugins.decoders.reading import Reader


class Model:
    def __init__(self, batch_size, joins=True, cache_tokens=None):
        self.batch_size, self.joins, self.cache_tokens = batch_size, joins, cache_tokens


def rows(*lengths, most=None):
    # prompts are told apart: copies of one would be read once
    return [Row(n, Request(prompt_ids=(n,) * length, max_new_tokens=most)) for n, length in enumerate(lengths)]


def count(model, waiting, running=(), max_new_tokens=10):
    return Admission(model, Limits(max_new_tokens=max_new_tokens), Reader(model)).count(waiting, running)


def test_an_empty_batch_is_filled():
    assert count(Model(4), rows(*[9] * 10)) == 4
    assert count(Model(4), rows(9, 9)) == 2
    assert count(Model(4), []) == 0


def test_short_prompts_wait_until_an_eighth_of_the_places_is_free():
    assert count(Model(16), rows(*[9] * 10), rows(*[9] * 15)) == 0
    assert count(Model(16), rows(*[9] * 10), rows(*[9] * 14)) == 2
    assert count(Model(16), rows(*[9] * 10), rows(*[9] * 16)) == 0


def test_a_long_prompt_enters_at_once():
    assert count(Model(16), rows(64, 9), rows(*[9] * 15)) == 1
    assert count(Model(16), rows(63, 9), rows(*[9] * 15)) == 0
    # two of 32 are as much work as one of 64
    assert count(Model(32), rows(32, 32), rows(*[9] * 30)) == 2
    assert count(Model(32), rows(32, 31), rows(*[9] * 30)) == 0


def test_prompts_that_would_be_padded_much_are_read_apart():
    assert count(Model(8), rows(400, 390, 380, 40, 30)) == 3
    assert count(Model(8), rows(40, 30, 20, 10)) == 4, "some padding costs next to nothing"
    # the order is by prompt and limit together, so the first need not be the longest
    assert count(Model(8), rows(100, 400, 400)) == 1


def test_what_is_read_together_is_bounded():
    assert count(Model(16), rows(*[AT_ONCE // 4] * 9)) == 4
    assert count(Model(16), rows(2 * AT_ONCE)) == 1


def test_a_model_that_cannot_mix_ages_gets_whole_batches():
    assert count(Model(4, joins=False), rows(400, 100, 10, 1)) == 4
    assert count(Model(4, joins=False), rows(400, 100), rows(10)) == 0


@pytest.mark.parametrize(("places", "expected"), [(None, 8), (8 * 30, 8), (8 * 30 - 1, 7), (30, 1), (1, 1)])
def test_the_cache_bounds_the_rows_but_one_always_fits(places, expected):
    assert count(Model(8, cache_tokens=places), rows(*[20] * 9)) == expected


def test_rows_that_run_and_their_own_limits_count_in_the_bound():
    model = Model(8, cache_tokens=100)
    assert count(model, rows(70), [], max_new_tokens=30) == 1
    assert count(model, rows(70), rows(10), max_new_tokens=30) == 0
    # the widest among those that run and the next one counts for all
    assert count(model, rows(*[5] * 4, most=5), rows(40, most=10)) == 1
    assert count(model, rows(*[5] * 4, most=5), rows(15, most=10)) == 3
    assert count(model, rows(*[15] * 4, most=20), rows(15, most=10), max_new_tokens=10) == 3, "the call's limit holds"


def test_copies_of_a_prompt_count_once_and_enter_at_once_when_it_was_just_read():
    model = Model(16)
    many = [Row(n, Request(prompt_ids=(1,) * 40, stream=n)) for n in range(9)]
    assert count(Model(32), many, rows(*[9] * 30)) == 0, "two copies of 40 tokens are one reading of 40"
    assert count(model, many) == 9
    reader = Reader(model, prompt=(1,) * 40)
    admission = Admission(model, Limits(), reader)
    assert admission.count(many[:3], rows(*[9] * 15)) == 1
    assert admission.count([*many[:3], *rows(9, 9)], rows(*[9] * 9)) == 3

import pytest

from tunesmith.errors import ConfigError, MissingPower
from tunesmith.generation import generate
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.engines import Scripted


def texts(engine, prompts, **options):
    return [c.text for c in generate(tiny_lm(), prompts, engine=engine, **options)]


def test_answers_come_in_order_and_by_prompt():
    engine = Scripted(answers=("cat", "fish"), by_prompt={"the dog": "no"})
    assert texts(engine, ["one", "the dog", "two"]) == ["cat", "no", "fish"]


def test_a_script_that_is_too_short_is_an_error_unless_it_repeats():
    with pytest.raises(ConfigError, match="request 2 has no answer"):
        texts(Scripted(answers=("cat", "fish")), ["one", "two", "three"])
    assert texts(Scripted(answers=("cat", "fish"), repeat=True), ["one", "two", "three"]) == ["cat", "fish", "cat"]


def test_a_built_engine_goes_on_where_it_was():
    engine = Scripted(answers=("cat", "fish")).build()
    assert texts(engine, ["one"]) + texts(engine, ["one"]) == ["cat", "fish"]


def test_limits_hold():
    engine = Scripted(answers=("one two cat . fish",), repeat=True)
    (short,) = generate(tiny_lm(), ["dog"], engine=engine, max_new_tokens=2)
    assert (short.text, short.finish, len(short.token_ids)) == ("one two", "length", 2)
    own = generate(tiny_lm(), ["dog", "cat"], engine=engine, max_new_tokens=[1, 3])
    assert [(c.text, c.finish) for c in own] == [("one", "length"), ("one two cat", "length")]
    (stopped,) = generate(tiny_lm(), ["dog"], engine=engine, stop=(" .", "nothing"))
    assert (stopped.text, stopped.finish) == ("one two cat", "stop")


def test_it_scores_nothing():
    with pytest.raises(MissingPower, match="tunesmith/transformers"):
        Scripted().build().score([((1,), (2,))])

"""Values of a wrong kind, as command lines and files bring them, in the configs that hold more than numbers."""

import pytest

from tunesmith.errors import ConfigError
from tunesmith.spec import load
from tunesmith.kinds.sampler import SamplerConfig
from tunesmith_plugins.samplers import BiasedSequence, Dry, Format, SequenceBias, Structured


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Format(text=5), "Format: text: must be str, not int"),
        (lambda: Format(language="xml", text="a"), "Format: language: must be one of 'json_schema'"),
        (lambda: BiasedSequence(tokens=5, bias="2"), "BiasedSequence: tokens: must be a tuple.*; bias: must be float, not str"),
        (lambda: BiasedSequence(tokens=(True,), bias=1.0), r"tokens: \[0\] must be int, not bool"),
        (lambda: SequenceBias(sequences=({"tokens": (1,), "bias": 1.0},)), r"sequences: \[0\] must be a BiasedSequence"),
        (lambda: Structured(json_schema={"type": "object"}), "Structured: json_schema: must be str, not dict"),
        (lambda: Structured(formats=("a|b",)), r"Structured: formats: \[0\] must be a Format, not str"),
    ],
)
def test_the_class_the_field_and_the_value_are_named(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_a_breaker_is_an_id():
    with pytest.raises(ValueError, match="'breakers': token ids must not be negative"):
        Dry(breakers=(3, -1))


def test_a_list_of_formats_is_kept_as_a_tuple():
    """A list would be no value: configs are compared and are keys."""
    given = Structured(formats=[Format(text="a|b"), Format(text="c")])
    assert given == Structured(formats=(Format(text="a|b"), Format(text="c")))
    assert len({given, Structured(formats=(Format(text="a|b"), Format(text="c")))}) == 1


def test_files_say_where():
    wrong = {
        "use": "chain",
        "config": {
            "links": [
                {"use": "top_k", "config": {"k": "5"}},
                {"use": "sequence_bias", "config": {"sequences": [{"tokens": [1], "bias": "2"}]}},
                {"use": "structured", "config": {"formats": [{"language": "xml", "text": "a"}]}},
            ]
        },
    }
    with pytest.raises(ConfigError) as found:
        load(wrong, SamplerConfig)
    said = str(found.value)
    assert "must be int, not str ('5') @ sampler.links[0].k" in said
    assert "must be float, not str ('2') @ sampler.links[1].sequences[0].bias" in said
    assert "@ sampler.links[2].formats[0].language" in said

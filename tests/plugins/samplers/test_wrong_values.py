"""Values of a wrong kind, as command lines and files bring them, in the configs that hold more than numbers."""

import pytest

from tunesmith.errors import ConfigError
from tunesmith.kinds.sampler import SamplerConfig
from tunesmith.spec import load, parse
from tunesmith.testing.samplers import logits_of, rows_of
from tunesmith_plugins.samplers import BiasedSequence, Dry, ForcedTokens, Format, Mirostat, SequenceBias, Structured


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Format(text=5), "Format: text: must be str, not int"),
        (lambda: Format(language="xml", text="a"), "Format: language: must be one of 'json_schema'"),
        (
            lambda: BiasedSequence(tokens=5, bias="2"),
            "BiasedSequence: tokens: must be a tuple.*; bias: must be float, not str",
        ),
        (lambda: BiasedSequence(tokens=(True,), bias=1.0), r"tokens: \[0\] must be int, not bool"),
        (
            lambda: SequenceBias(sequences=({"tokens": (1,), "bias": 1.0},)),
            r"sequences: \[0\] must be a BiasedSequence",
        ),
        (lambda: Structured(json_schema={"type": "object"}), "Structured: json_schema: must be str, not dict"),
        (lambda: Structured(formats=("a|b",)), r"Structured: formats: \[0\] must be a Format, not str"),
    ],
)
def test_the_class_the_field_and_the_value_are_named(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(
    "spec", ["temperature(temperature={})", "repetition_penalty(penalty={})", "dynamic_temperature(low={0}, high={0})"]
)
def test_a_factor_is_what_the_logits_type_can_carry(spec):
    """Others were errors of the kernel at the first token."""
    for beyond in ("0.0", "1e-46", "1e39"):
        with pytest.raises(ConfigError, match="must be [<>]"):
            parse(spec.format(beyond), "sampler")
    for most in ("1.5e-45", "3.4e38"):
        parse(spec.format(most), "sampler").build().sample(logits_of(3), rows_of(3))


@pytest.mark.parametrize(
    "spec",
    [
        "top_k(k={})",
        "top_p(min_keep={})",
        "typical(min_keep={})",
        "top_h(candidates={})",
        "mirostat(candidates={})",
        "repetition_penalty(window={})",
        "presence_penalty(window={})",
        "frequency_penalty(window={})",
        "dry(window={})",
        "dry(allowed_length={})",
        "no_repeat_ngram(size={})",
        "no_repeat_ngram(window={})",
        "min_length(end=[1], tokens={})",
        "max_length(end=[1], tokens={})",
        "length_decay(end=[1], start={})",
    ],
)
def test_a_count_is_what_a_row_can_carry_and_the_largest_works(spec):
    """Larger ones were errors of torch or of the kernel at the first token."""
    for beyond in (2**53, 10**30):
        with pytest.raises(ConfigError, match="must be <= 9007199254740991"):
            parse(spec.format(beyond), "sampler")
    draw = parse(spec.format(2**53 - 1), "sampler").build().sample(logits_of(3), rows_of(3))
    assert draw.status.tolist() == [0, 0, 0] or spec.startswith("min_length")
    with pytest.raises(ValueError, match="positions"):
        ForcedTokens(at={10**30: 3})


def test_a_version_of_mirostat_that_is_not_there_is_named_plainly():
    with pytest.raises(TypeError, match="Mirostat: version: must be one of 1, 2, not 3"):
        Mirostat(version=3)


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

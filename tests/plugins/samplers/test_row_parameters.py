"""Per-row parameters: every number of every link by the rules of its config, and nothing else."""

import attrs
import pytest
import torch

from tunesmith.errors import ConfigError
from tunesmith.kinds.sampler import Link, seed_bits
from tunesmith.registry import samplers
from tunesmith.row_parameters import check, row_fields
from tunesmith.spec import parse
from tunesmith.testing.samplers import logits_of, rows_of

NEEDS = {
    "min_length": "end=[1]",
    "max_length": "end=[1]",
    "length_decay": "end=[1]",
    "structured": "",
}
FIXED = (
    "top_k.ties",
    "top_p.ties",
    "presence_penalty.prompt",
    "dry.breakers",
    "mirostat.version",
    "logit_bias.bias",
    "min_length.end",
)


def built(name, more=""):
    return parse(f"{name}({more or NEEDS.get(name, '')})", "sampler").build()


def links():
    names = [entry.id.removeprefix("tunesmith/") for entry in samplers.entries() if entry.id.startswith("tunesmith/")]
    return [name for name in names if issubclass(_class(name), Link) and name != "structured"]


def _class(name):
    from tunesmith.component import load_target

    return load_target(samplers.get(f"tunesmith/{name}").impl, name)


@pytest.mark.parametrize("name", links())
def test_what_the_config_refuses_is_refused_of_a_row(name):
    link = built(name)
    for field in row_fields(link):
        for value in (-1.0, 0.0, 0.5, 2.5, 1e30, float("nan"), float("inf")):
            try:
                whole = int(value) if value.is_integer() else value
                kind = {a.name: a.type for a in attrs.fields(type(link.config))}[field]
                attrs.evolve(link.config, **{field: whole if kind in (int, "int") else value})
            except (TypeError, ValueError):
                with pytest.raises(ConfigError, match=f"{name}.{field}="):
                    check(link, {f"{name}.{field}": [value]}, "test")
            else:
                check(link, {f"{name}.{field}": [value]}, "test")


@pytest.mark.parametrize("name", FIXED)
def test_what_a_link_does_not_read_by_row_is_refused(name):
    link = built(name.partition(".")[0])
    rows = attrs.evolve(rows_of(2), parameters={name: torch.ones(2, dtype=torch.float64)})
    with pytest.raises(ConfigError, match=f"'{name}' is the same for all rows"):
        link.sample(logits_of(2, 10), rows)


def test_values_of_one_row_are_looked_at_together():
    link = built("dynamic_temperature", "low=0.5, high=1.5")
    check(link, {"dynamic_temperature.low": [2.0], "dynamic_temperature.high": [3.0]}, "test")
    with pytest.raises(ConfigError, match="must not exceed"):
        check(link, {"dynamic_temperature.low": [0.5, 2.0]}, "test")


def test_parameters_are_tensors_with_a_number_a_row():
    link = built("top_k")
    for wrong in ([1, 2], 1, torch.tensor([1]), torch.tensor([[1], [2]])):
        with pytest.raises(ConfigError, match="'top_k.k' must be a tensor with a number a row"):
            link.sample(logits_of(2, 10), attrs.evolve(rows_of(2), parameters={"top_k.k": wrong}))


@pytest.mark.parametrize("spec", ["greedy", "top_k(k=3)", "chain(links=[top_k, min_p])"])
def test_names_shapes_and_types_that_are_none_are_said_to_be(spec):
    sampler, rows, logits = parse(spec, "sampler").build(), rows_of(2), logits_of(2, 10)
    for _ in range(2):  # the second call goes the quick way
        for names in (("procesed",), ("raw", "foo"), "foo"):
            with pytest.raises(ValueError, match="the log-probabilities of a token are raw, processed, truncated"):
                sampler.sample(logits, rows, logp=names)
        for wrong in (logits[0], logits.long(), logits.to(torch.complex64), logits.numpy()):
            with pytest.raises(ValueError, match=r"logits must be a tensor \(batch, vocab\)"):
                sampler.sample(wrong, rows)
        one = sampler.sample(logits, rows, logp="raw")
        assert torch.equal(one.logp_raw, sampler.sample(logits, rows).logp_raw)


def test_seeds_are_64_bits_and_no_more():
    assert seed_bits(2**64 - 1) == seed_bits(-1) == -1
    assert seed_bits(torch.tensor(5)) == 5
    for wrong in (2**64, -(2**63) - 1, 1.5, True, "1"):
        with pytest.raises(ConfigError):
            seed_bits(wrong)

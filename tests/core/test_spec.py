"""Configs as data: strict both ways, every problem at once, nothing evaluated."""

from __future__ import annotations

import enum
import json
import math
import tomllib
from contextlib import suppress
from typing import ClassVar, Literal

import pytest
from attrs import field, frozen
from attrs import validators as v
from hypothesis import given
from hypothesis import strategies as hs

import tunesmith as ts
from tunesmith import spec
from tunesmith.errors import ConfigError, UnknownName
from tunesmith.kinds.reward_model import RewardModelConfig
from tunesmith.kinds.sampler import SamplerConfig
from tunesmith.kinds.stage import Output, StageConfig
from tunesmith.spec.spelling import MAX_DEPTH, MAX_LENGTH, read_spelling


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@frozen(kw_only=True)
class Point:
    """A plain value."""

    x: float
    y: float = 0.0


@frozen(kw_only=True)
class Wide(SamplerConfig):
    """A config with a field of every type that is allowed."""

    impl: ClassVar[str] = "nowhere:Nothing"
    flag: bool = False
    count: int = field(default=1, validator=v.ge(0))
    share: float = field(default=0.5, validator=[v.ge(0), v.le(1)])
    text: str = ""
    choice: Literal["a", "b", 3] = "a"
    colour: Colour = Colour.RED
    maybe: int | None = None
    pair: tuple[int, str] = (1, "x")
    many: tuple[float, ...] = ()
    table: dict[str, tuple[int, ...]] = field(factory=dict)
    point: Point | None = None
    inner: SamplerConfig | None = None
    inners: dict[str, SamplerConfig] = field(factory=dict)
    scalar: bool | int | float | str = 0
    source: str | Output = ""
    reward: RewardModelConfig | Output | None = None


@pytest.fixture(autouse=True)
def wide(isolated_registry):
    ts.samplers.register("wide", Wide)


def problems(data, base=SamplerConfig) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        spec.load(data, base)
    return list(caught.value.problems)


def of_wide(**options) -> list[str]:
    return problems({"use": "wide", "config": options})


def test_a_dump_has_the_id_the_version_and_the_fields_that_differ():
    data = spec.dump(ts.samplers.create("top_p", p=0.8))
    assert data == {"use": "tunesmith/top_p", "version": ts.__version__, "config": {"p": 0.8}}


def test_a_default_is_told_from_an_equal_value_of_another_type():
    assert spec.dump(Wide(scalar=False))["config"] == {"scalar": False}
    assert spec.dump(Wide(scalar=0.0))["config"] == {"scalar": 0.0}
    assert spec.dump(Wide(scalar=0))["config"] == {}


def test_all_problems_come_at_once_with_their_paths():
    found = problems(
        {
            "use": "wide",
            "config": {
                "flag": "false",
                "count": -1,
                "share": 2,
                "sede": 1,
                "inner": {"use": "tpo_p"},
                "inners": {"first": {"use": "top_p", "config": {"p": 3, "q": 1}}},
                "many": [0.5, "x", True],
                "point": {"y": "z"},
            },
        }
    )
    assert sorted(found) == sorted(
        [
            "must be bool, not str ('false') @ sampler.flag",
            "'count' must be >= 0: -1 @ sampler",
            "'share' must be <= 1: 2.0 @ sampler",
            *[p for p in found if p.startswith("Wide has no field 'sede'")],
            *[p for p in found if p.startswith("no sampler named 'tpo_p'. Did you mean top_p")],
            "'p' must be <= 1: 3.0 @ sampler.inners['first']",
            "TopP has no field 'q'. Fields: p, min_keep, ties. @ sampler.inners['first']",
            "must be float, not str ('x') @ sampler.many[1]",
            "must be float, not bool (True) @ sampler.many[2]",
            "'x' is missing: Point needs it @ sampler.point",
            "must be float, not str ('z') @ sampler.point.y",
        ]
    )
    assert len(found) == 11
    assert next(p for p in found if "tpo_p" in p).endswith("@ sampler.inner")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flag", 1),
        ("flag", "true"),
        ("count", True),
        ("count", 1.0),
        ("count", "1"),
        ("share", "0.5"),
        ("share", False),
        ("share", math.nan),
        ("share", math.inf),
        ("text", 1),
        ("text", None),
        ("choice", "c"),
        ("choice", 3.0),
        ("colour", "green"),
        ("maybe", "1"),
        ("pair", [1]),
        ("pair", [1, "x", 2]),
        ("pair", "1x"),
        ("many", "12"),
        ("many", {"0": 1.0}),
        ("table", []),
        ("table", {"a": 1}),
        ("table", {1.5: [1]}),
        ("point", 3),
        ("inner", 3),
        ("inner", []),
        ("inner", {"config": {}}),
        ("inner", {"use": 3}),
        ("inner", {"use": "top_p", "confg": {}}),
        ("inner", {"use": "top_p", "config": 3}),
        ("inner", {"use": "top_p", "version": 3}),
        ("scalar", None),
        ("scalar", []),
        ("source", 3),
        ("source", {"stage": 3}),
        ("reward", {"use": "top_p"}),
        ("reward", {"stag": "x"}),
        ("reward", "nope"),
    ],
)
def test_a_wrong_value_is_one_or_two_problems_at_the_right_path(name, value):
    found = of_wide(**{name: value})
    assert 1 <= len(found) <= 2
    assert all(f"@ sampler.{name}" in problem for problem in found), found


@pytest.mark.parametrize("data", [None, 3, [], {}, "", "no such", {"use": "wide", "more": 1}, {"use": None}])
def test_what_is_no_config_at_all_is_a_config_error(data):
    assert problems(data)


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("share", 1, 1.0),
        ("many", [1, 0.5], (1.0, 0.5)),
        ("choice", 3, 3),
        ("colour", "blue", Colour.BLUE),
        ("pair", [2, "y"], (2, "y")),
        ("table", {"a": [1, 2]}, {"a": (1, 2)}),
        ("point", {"x": 1}, Point(x=1.0)),
        ("scalar", True, True),
        ("scalar", 1, 1),
        ("scalar", 1.0, 1.0),
        ("source", "text", "text"),
        ("source", {"stage": "a"}, Output(stage="a")),
        ("reward", {"stage": "a", "artifact": "reward_model"}, Output(stage="a", artifact="reward_model")),
        ("maybe", None, None),
    ],
)
def test_a_right_value_is_read_with_its_own_type(name, value, meant):
    config = spec.load({"use": "wide", "config": {name: value}}, SamplerConfig)
    found = getattr(config, name)
    assert found == meant
    assert type(found) is type(meant)


def test_a_component_in_a_file_may_be_given_by_its_short_spelling():
    config = spec.load({"use": "wide", "config": {"inner": "top_p(p=0.5)", "inners": {"g": "greedy"}}}, SamplerConfig)
    assert config.inner == ts.samplers.create("top_p", p=0.5)
    assert config.inners["g"] == ts.samplers.create("greedy")


def test_ints_as_keys_become_their_digits_everywhere():
    meant = ts.samplers.create("logit_bias", bias={"5": 2.0, "17": -1.0})
    assert meant.bias == {"5": 2.0, "17": -1.0}
    assert type(meant)(bias={5: 2, 17: -1.0}) == meant
    assert ts.samplers.create("logit_bias", bias={5: 2.0, 17: -1.0}) == meant
    assert spec.load({"use": "logit_bias", "config": {"bias": {5: 2.0, 17: -1.0}}}, SamplerConfig) == meant
    assert spec.parse("logit_bias(bias={5: 2.0, 17: -1})", "sampler") == meant
    assert spec.parse(spec.spell(meant), "sampler") == meant
    assert ts.samplers.create("forced_tokens", at={0: 7}).at == {"0": 7}


@pytest.mark.parametrize("key", [-5, True, 5.0])
def test_other_keys_are_refused_still(key):
    with pytest.raises(ConfigError):
        ts.samplers.create("logit_bias", bias={key: 2.0})


def test_a_key_twice_is_refused():
    with pytest.raises(ConfigError, match="the key '5' twice"):
        ts.samplers.create("logit_bias", bias={5: 2.0, "5": 1.0})
    for text in ("logit_bias(bias={1.5: 2.0})", "logit_bias(bias={-1: 2.0})", "logit_bias(bias={5: 2.0, 5: 1.0})"):
        with pytest.raises(ConfigError, match="key"):
            spec.parse(text, "sampler")


def test_a_mapping_with_use_is_looked_up_in_the_registry_of_the_field():
    (problem,) = of_wide(reward={"use": "no_such_reward"})
    assert problem.startswith("no reward_model named 'no_such_reward'")


def test_numbers_and_texts_that_no_file_can_hold_are_refused():
    for config in (Wide(many=(math.inf, math.nan)), Wide(text="\ud800"), Wide(scalar=math.nan)):
        with pytest.raises(ConfigError, match="cannot be stored"):
            spec.dump(config)


def test_a_config_that_is_not_registered_cannot_be_written():
    @frozen(kw_only=True)
    class Nowhere(SamplerConfig):
        """Nowhere."""

    with pytest.raises(UnknownName, match="not registered"):
        spec.dump(Nowhere())


def test_problems_of_a_file_written_by_another_version_say_so():
    with pytest.raises(ConfigError, match=r"written with version 9\.9, installed is 0\.1\.0"):
        spec.load({"use": "tunesmith/top_p", "version": "9.9", "config": {"nucleus": 1}}, SamplerConfig)


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_files_hold_ids_and_versions_and_read_back_equal(tmp_path, suffix):
    config = Wide(
        text='quo"te\n\t\\ ünï \u2028',
        inner=ts.samplers.create("top_p", p=0.25),
        inners={"a b": ts.samplers.create("greedy"), "": ts.samplers.create("top_k", k=3)},
        table={"x.y": (1, 2), "z": ()},
        point=Point(x=1e-300),
        source=Output(stage="s"),
        scalar=True,
        colour=Colour.BLUE,
    )
    path = tmp_path / f"config{suffix}"
    spec.write(config, path)
    assert spec.read(path, SamplerConfig) == config
    text = path.read_text(encoding="utf-8")
    data = json.loads(text) if suffix == ".json" else tomllib.loads(text)
    assert data["config"]["inner"] == {"use": "tunesmith/top_p", "version": ts.__version__, "config": {"p": 0.25}}
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name], "something was left beside the file"


def test_options_beside_config_are_told_their_place():
    with pytest.raises(ConfigError, match="no field 'p'. The sampler's own options stand under 'config'"):
        spec.load({"use": "top_p", "p": 0.5}, SamplerConfig)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", "not valid JSON.*line 1"),
        ("a.json", b'{"use": "top_p", "config": {"p": NaN}}', "NaN is not a finite number"),
        ("a.json", b'{"use": "top_p", "use": "top_k"}', "'use' stands twice"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.json", b"\xff\xfe", "not UTF-8"),
        ("a.toml", b"use = \nx = 1", "not valid TOML.*line 1"),
        ("a.toml", b'use = "top_p"\n[config]\np = inf', "must be a finite number"),
        ("a.toml", b'use = "top_p"\nuse = "top_k"', "not valid TOML"),
        ("a.yaml", b"use: top_p", "neither .json nor .toml"),
    ],
)
def test_a_bad_file_is_a_config_error_that_names_it(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        spec.read(path, SamplerConfig)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["a.json", "a.toml"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path, name):
    config = ts.samplers.create("top_p", p=0.5)
    spec.write(config, tmp_path / name)
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    assert spec.read(tmp_path / name, SamplerConfig) == config


def test_a_missing_file_is_a_config_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.json.*\n.*there is no such file"):
        spec.read(tmp_path / "nothing.json", SamplerConfig)


def test_a_name_that_no_file_can_have_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be read: File name too long"):
        spec.read_data(tmp_path / ("x" * 300) / "c.json")


def test_a_write_that_fails_leaves_nothing_beside(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(OSError):
        spec.write(Wide(), tmp_path / "config.json")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_toml_has_no_null_and_says_where(tmp_path):
    @frozen(kw_only=True)
    class Holder:
        """A value whose optional field does not default to None."""

        limit: int | None = 3

    with pytest.raises(ConfigError, match="no null.*@ limit"):
        spec.write(Holder(limit=None), tmp_path / "a.toml")
    assert not list(tmp_path.iterdir())


def test_data_that_refers_to_itself_ends():
    data: dict = {"use": "wide", "config": {}}
    data["config"]["inner"] = data
    assert problems(data) == ["nested deeper than 64 levels @ sampler"]


def test_a_config_made_in_a_script_names_all_wrong_types_before_any_validator_runs():
    with pytest.raises(TypeError) as caught:
        Wide(count="1", share="x", flag=0)
    assert str(caught.value) == (
        "Wide: flag: must be bool, not int (0); count: must be int, not str ('1'); share: must be float, not str ('x')"
    )
    with pytest.raises(ValueError, match="'count' must be >= 0: -1"):
        Wide(count=-1)
    assert Wide(many=[1, 2]).many == (1.0, 2.0)
    assert Wide(share=1).share == 1.0
    assert type(Wide(share=1).share) is float


SPELLINGS = [
    ("greedy", "greedy"),
    ("top_p(p=0.9)", {"use": "top_p", "config": {"p": 0.9}}),
    ("top_p()", {"use": "top_p", "config": {}}),
    ("tunesmith-minp/min_p(p=1e-3,)", {"use": "tunesmith-minp/min_p", "config": {"p": 1e-3}}),
    ("top_p.v2(p=-.5)", {"use": "top_p.v2", "config": {"p": -0.5}}),
    (
        "chain( links = [temperature(temperature=0.7), greedy] )",
        {"use": "chain", "config": {"links": [{"use": "temperature", "config": {"temperature": 0.7}}, "greedy"]}},
    ),
    ("a(b=true, c=False, d=none, e=null)", {"use": "a", "config": {"b": True, "c": False, "d": None, "e": None}}),
    ("a(b='it\\'s', c=\"q\\\"\\n\\u00e9\", d='\"')", {"use": "a", "config": {"b": "it's", "c": 'q"\né', "d": '"'}}),
    ("a(b={x: 1, 'y z': [1_000, +2]})", {"use": "a", "config": {"b": {"x": 1, "y z": [1000, 2]}}}),
]


@pytest.mark.parametrize(("text", "data"), SPELLINGS)
def test_the_short_spelling_is_read(text, data):
    assert read_spelling(text) == data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a value was expected"),
        ("top_p(0.9)", r"an option was expected, as in top_p\(name=value\)"),
        ("top_p(p=0.9", r"'\)' was expected"),
        ("top_p(p=0.9) x", "the end was expected"),
        ("top_p(p=)", "a value was expected"),
        ("top_p(p=0.9, p=1)", "'p' is given twice"),
        ("a(b={x: 1, x: 2})", "'x' is given twice"),
        ("a(b=1+1)", r"'\)' was expected"),
        ("a(b=c.d())(e)", "the end was expected"),
        ("a(b=lambda: 1)", r"'\)' was expected"),
        ("a(b=0x10)", "cannot be read"),
        ("a(b='\\x41')", "escape"),
        ("a(b='open)", "cannot be read"),
        ("a; b", "cannot be read"),
        ("a/b/c", "cannot be read"),
        ("é", "cannot be read"),
        ("[" * (MAX_DEPTH + 2), f"deeper than {MAX_DEPTH}"),
        ("a(b=" * (MAX_DEPTH + 2), f"deeper than {MAX_DEPTH}"),
        ("x" * (MAX_LENGTH + 1), f"longer than {MAX_LENGTH}"),
        ("9" * 5000, "number cannot be read"),
    ],
)
def test_a_wrong_short_spelling_says_where(text, message):
    with pytest.raises(ConfigError, match=message):
        read_spelling(text)


def test_parse_makes_the_config_and_reports_its_problems_with_the_text():
    config = spec.parse("chain(links=[temperature(temperature=0.7), top_p(p=0.9)])", "sampler")
    assert [link.kind for link in config.links] == ["sampler", "sampler"]
    assert spec.parse("greedy", "samplers") == ts.samplers.create("greedy")
    with pytest.raises(ConfigError, match=r"top_p\(p=3, k=1\): 2 problems"):
        spec.parse("top_p(p=3, k=1)", "sampler")
    for text in ("3", "[greedy]", "{use: 3}"):
        with pytest.raises(ConfigError):
            spec.parse(text, "sampler")


@given(hs.text(max_size=60))
def test_any_text_is_read_or_refused_and_nothing_else(text):
    with suppress(ConfigError):
        read_spelling(text)


JSON = hs.recursive(
    hs.none() | hs.booleans() | hs.integers() | hs.floats() | hs.text(max_size=8),
    lambda inner: hs.lists(inner, max_size=3) | hs.dictionaries(hs.sampled_from(["use", "config", "p", "x"]), inner),
    max_leaves=12,
)


@given(JSON, hs.sampled_from([SamplerConfig, StageConfig, ts.Data]))
def test_any_data_is_a_config_or_a_config_error(data, base):
    with suppress(ConfigError):
        spec.load(data, base)


@given(hs.deferred(lambda: WIDE))
def test_any_wide_config_survives_every_form(tmp_path_factory, config):
    plain = spec.dump(config)
    assert spec.load(plain, SamplerConfig) == config
    assert spec.load(json.loads(json.dumps(plain, allow_nan=False)), SamplerConfig) == config
    assert spec.parse(spec.spell(config), "sampler") == config
    path = tmp_path_factory.getbasetemp() / "any.toml"
    spec.write(config, path)
    assert spec.read(path, SamplerConfig) == config


FINITE = hs.floats(allow_nan=False, allow_infinity=False)
TEXT = hs.text(hs.characters(exclude_categories=("Cs",)), max_size=10)
WIDE = hs.builds(
    Wide,
    flag=hs.booleans(),
    count=hs.integers(min_value=0),
    share=hs.floats(0, 1),
    text=TEXT,
    choice=hs.sampled_from(["a", "b", 3]),
    colour=hs.sampled_from(Colour),
    maybe=hs.none() | hs.integers(),
    pair=hs.tuples(hs.integers(), TEXT),
    many=hs.lists(FINITE, max_size=3).map(tuple),
    table=hs.dictionaries(TEXT, hs.lists(hs.integers(), max_size=2).map(tuple), max_size=2),
    point=hs.none() | hs.builds(Point, x=FINITE, y=FINITE),
    inner=hs.none() | hs.just(Wide(share=0.25)),
    inners=hs.dictionaries(TEXT, hs.just(Wide(flag=True)), max_size=2),
    scalar=hs.booleans() | hs.integers() | FINITE | TEXT,
    source=TEXT | hs.builds(Output, stage=TEXT),
    reward=hs.none() | hs.builds(Output, stage=TEXT),
)

"""The conformance kit finds what is wrong: every common check fails for a component made to fail it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from attrs import Factory, define, field, frozen

import tunesmith as ts
from tunesmith import testing
from tunesmith.component import Config
from tunesmith.errors import ConfigError
from tunesmith.kinds import KINDS
from tunesmith.kinds.sampler import Sampler, SamplerConfig
from tunesmith.testing import checks_for, common, conformance, run_checks, when
from tunesmith.testing.examples import example
from tunesmith.testing.models import tiny_lm

HERE = __name__
pytestmark = pytest.mark.usefixtures("isolated_registry")


class Plain(Sampler):
    """A sampler that is never used."""

    def sample(self, logits: Any, rows: Any, *, top: int = 0, logp: Any = ()) -> Any:
        """Nothing."""


class Undocumented(Plain):
    pass


class Needy(Plain):
    """Wants more than a config."""

    def __init__(self, config: Any, more: int) -> None:
        super().__init__(config)


class Forgetful(Plain):
    """Keeps another config."""

    def __init__(self, config: Any) -> None:
        super().__init__(Good())


@frozen(kw_only=True)
class Good(SamplerConfig):
    """A config without faults.

    Attributes:
        share: A number.
    """

    impl: ClassVar[str] = f"{HERE}:Plain"
    share: float = 0.5


@define(kw_only=True)
class Mutable(SamplerConfig):
    """Not frozen. ``share`` is documented so:

    share: A number.
    """

    share: float = 0.5

    __setattr__ = object.__setattr__


class Undecorated(SamplerConfig):
    """The decorator was forgotten."""

    share: float = 0.5


@frozen(kw_only=True)
class Bare(SamplerConfig):
    """The type was forgotten."""

    share = 0.5


@dataclass(frozen=True, kw_only=True)
class OfDataclasses(SamplerConfig):
    """Decorated for another library: the field would not be stored."""

    share: float = 0.5


@frozen
class Positional(SamplerConfig):
    """Fields by position.

    Attributes:
        share: A number.
    """

    impl: ClassVar[str] = f"{HERE}:Plain"
    share: float = 0.5


@frozen(kw_only=True)
class Unstorable(SamplerConfig):
    """A set cannot be stored.

    Attributes:
        names: A set.
    """

    names: Any = frozenset()


@define(kw_only=True)
class Changeable:
    """A value of a config that is none: it can be changed behind the config's back.

    Attributes:
        share: A number.
    """

    share: float = 0.5


@frozen(kw_only=True)
class HoldsChangeable(SamplerConfig):
    """Itself frozen.

    Attributes:
        inner: What is not.
    """

    impl: ClassVar[str] = f"{HERE}:Plain"
    inner: Changeable = Factory(Changeable)


@frozen(kw_only=True)
class OptionalWithDefault(SamplerConfig):
    """None could not be told from the default in TOML.

    Attributes:
        limit: A number.
    """

    limit: int | None = 3


@frozen(kw_only=True)
class Silent(SamplerConfig):
    """No word about the field."""

    share: float = 0.5


@frozen(kw_only=True)
class Future(Good):
    """Of another version."""

    api: ClassVar[int] = 7


@frozen(kw_only=True)
class Unequal(SamplerConfig):
    """Comes back different: a field that is not part of __init__ is drawn anew.

    Attributes:
        number: Counts up.
    """

    impl: ClassVar[str] = f"{HERE}:Plain"
    number: int = field(init=False, default=Factory(iter(range(1000)).__next__))


@frozen(kw_only=True)
class Homeless(Good):
    """Its component is nowhere."""

    impl: ClassVar[str] = "nowhere_at_all:Nothing"


@frozen(kw_only=True)
class Wrong(Good):
    """Its component is of another kind."""

    impl: ClassVar[str] = f"{HERE}:Good"


@frozen(kw_only=True)
class OfUndocumented(Good):
    """Its component has no docstring."""

    impl: ClassVar[str] = f"{HERE}:Undocumented"


@frozen(kw_only=True)
class OfNeedy(Good):
    """Its component cannot be built."""

    impl: ClassVar[str] = f"{HERE}:Needy"


@frozen(kw_only=True)
class OfForgetful(Good):
    """Its component keeps another config."""

    impl: ClassVar[str] = f"{HERE}:Forgetful"


@frozen(kw_only=True)
class Lenient(SamplerConfig):
    """Takes anything.

    Attributes:
        thing: Anything.
    """

    impl: ClassVar[str] = f"{HERE}:Plain"
    thing: Any = 3


@pytest.fixture(autouse=True)
def registered(isolated_registry):
    for cls in list(globals().values()):
        if isinstance(cls, type) and issubclass(cls, SamplerConfig) and cls.__module__ == HERE and cls is not Future:
            ts.samplers.register(cls.__name__.lower(), cls)


@pytest.mark.parametrize(
    ("check", "config", "message"),
    [
        ("check_it_is_frozen", Mutable(), "can be set"),
        ("check_every_option_is_a_field", Undecorated(), "share of Undecorated; decorate"),
        ("check_every_option_is_a_field", Bare(), "share of Bare; write its type"),
        ("check_every_option_is_a_field", OfDataclasses(share=0.25), "share of OfDataclasses; decorate"),
        ("check_fields_are_keyword_only", Positional(), "share"),
        ("check_field_types_can_be_stored", Unstorable(), "cannot be stored"),
        ("check_field_types_can_be_stored", HoldsChangeable(), "Changeable can be changed"),
        ("check_field_types_can_be_stored", OptionalWithDefault(), "default to None"),
        ("check_every_field_is_documented", Silent(), "share"),
        ("check_it_is_registered", Good(), "in this process only"),
        ("check_versions_are_in_range", Future(), "api is 7"),
        ("check_round_trip_through_a_dict", Unequal(), "came back"),
        ("check_round_trip_through_json", Unequal(), "came back"),
        ("check_round_trip_through_toml", Unequal(), "came back"),
        ("check_round_trip_through_toml", OptionalWithDefault(limit=None), "null"),
        ("check_round_trip_through_the_short_spelling", Unequal(), "was read as"),
        ("check_a_wrong_type_is_rejected", Lenient(), "thing"),
        ("check_it_builds", Homeless(), "nowhere_at_all"),
        ("check_it_builds", Wrong(), "takes 1 positional"),
        ("check_it_builds", OfForgetful(), "not the config it was built from"),
        ("check_the_component_is_documented", OfUndocumented(), "no docstring"),
        ("check_the_constructor_takes_the_config", OfNeedy(), "more"),
    ],
)
def test_a_check_fails_where_its_sentence_is_not_true(check, config, message):
    with pytest.raises(Exception, match=message):
        getattr(common, check)(config)


def test_what_a_base_has_typed_may_be_set_without_a_type():
    @frozen(kw_only=True)
    class Sparing(SamplerConfig):
        """`impl` has its type from Config."""

        impl = f"{HERE}:Plain"

    common.check_every_option_is_a_field(Sparing())


def test_a_config_that_cannot_be_pickled_fails():
    @frozen(kw_only=True)
    class Inner(SamplerConfig):
        """Not at the top of a module."""

    with pytest.raises(Exception, match="pickle"):
        common.check_it_pickles(Inner())


def test_a_heavy_config_module_fails(fake_distribution):
    fake_distribution("heavy", modules={"heavy_config": "import numpy"})
    with pytest.raises(AssertionError, match="also imports numpy"):
        common.check_importing_the_config_is_light(type("C", (), {"__module__": "heavy_config"})())


def test_a_good_config_passes_all_common_checks_but_the_one_about_its_distribution():
    results = run_checks(Good(), {"check_it_is_registered": "it lives in a test"})
    common_names = {check.__name__ for check in common.CHECKS}
    assert {r.check for r in results if r.check in common_names and not r.ok} <= {"check_importing_the_config_is_light"}
    (announced,) = [r for r in results if r.check == "check_it_is_registered"]
    assert announced.status == "expected failure"


def test_an_announced_failure_that_passes_is_a_failure():
    (result,) = [r for r in run_checks(Good(), {"check_it_is_frozen": "why not"}) if r.check == "check_it_is_frozen"]
    assert result.status == "unexpected pass"
    assert not result.ok


@pytest.mark.parametrize("expected", [{"check_nothing_such": "reason"}, {"check_it_is_frozen": " "}])
def test_announcing_an_unknown_check_or_giving_no_reason_is_an_error(expected):
    with pytest.raises(ConfigError, match="expected_failures"):
        conformance(Good(), expected_failures=expected)
    with pytest.raises(ConfigError, match="expected_failures"):
        run_checks(Good(), expected)


def test_no_config_is_an_error():
    with pytest.raises(ConfigError, match="at least one config"):
        conformance()
    with pytest.raises(ConfigError, match="has the kind ''"):
        checks_for(Config())


def test_the_decorator_makes_a_test_of_every_check_of_every_config():
    configs = (Good(), Good(share=0.25))
    seen = []

    @conformance(*configs, expected_failures={"check_it_is_registered": "it lives in a test"})
    def test_conforms(check):
        seen.append(check)
        check()

    (mark,) = test_conforms.pytestmark
    cases = mark.args[1]
    assert [case.id for case in cases] == [
        f"{label}-{check.__name__}"
        for label, config in zip(("Good()", "Good(share=0.25)"), configs, strict=True)
        for check in checks_for(config)
    ]
    strict = {case.id: case.marks for case in cases if case.marks}
    assert set(strict) == {f"{label}-check_it_is_registered" for label in ("Good()", "Good(share=0.25)")}
    for (xfail,) in strict.values():
        assert xfail.name == "xfail"
        assert xfail.kwargs == {"reason": "it lives in a test", "strict": True}
    by_id = {case.id: case.values[0] for case in cases}
    test_conforms(by_id["Good(share=0.25)-check_it_is_frozen"])
    with pytest.raises(AssertionError, match="in this process only"):
        test_conforms(by_id["Good()-check_it_is_registered"])
    assert len(seen) == 2


def test_a_check_with_a_power_is_for_components_that_have_it(monkeypatch):
    @when(Undocumented)
    def check_undocumented(config):
        """Only for those."""

    @when(lambda component: component.config.share > 0.5)
    def check_large_share(config):
        """Only for large ones."""

    monkeypatch.setattr(common, "CHECKS", (check_undocumented, check_large_share))
    monkeypatch.setattr(testing.conformance.__globals__["importlib"].util, "find_spec", lambda name: None)
    assert checks_for(Good()) == ()
    assert checks_for(Good(share=0.75)) == (check_large_share,)
    assert checks_for(OfUndocumented(share=0.75)) == (check_undocumented, check_large_share)
    assert checks_for(Homeless()) == (), "a component that cannot be built has no powers"


@pytest.mark.parametrize("kind", KINDS)
def test_every_check_is_documented_and_named_as_one(kind):
    config = next(iter(example_of(kind)))
    checks = checks_for(config)
    assert len({check.__name__ for check in checks}) == len(checks), "two checks have one name"
    for check in checks:
        assert check.__name__.startswith("check_")
        assert (check.__doc__ or "").strip(), f"{check.__name__} does not say what it checks"


def example_of(kind):
    registry = ts.registry.registry_for(kind)
    for entry in registry.entries():
        try:
            yield example(registry.get(entry.id))
        except ConfigError:
            continue


def test_tiny_models_are_seeded_and_leave_the_random_state_alone():
    import torch

    before = torch.random.get_rng_state()
    for family in ("encoder", "decoder", "encoder-decoder"):
        first, again, other = tiny_lm(family), tiny_lm(family), tiny_lm(family, seed=1)
        assert first.fingerprint == again.fingerprint
        assert first.fingerprint != other.fingerprint
        assert tiny_lm(family, head="classification", labels=("a", "b", "c")).model.config.num_labels == 3
    assert torch.equal(before, torch.random.get_rng_state())

"""Which checks hold for a config, running them, and the pytest decorator."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from attrs import frozen

from tunesmith.component import Config
from tunesmith.errors import ConfigError
from tunesmith.kinds import KINDS

Check = Callable[[Any], None]
F = TypeVar("F", bound=Callable[..., Any])


@frozen(kw_only=True)
class CheckResult:
    """What came of one check.

    Attributes:
        check: The check's name.
        status: ``"expected failure"`` failed as announced; ``"unexpected pass"`` was announced to fail and did not,
            which is a failure too: the announcement is out of date.
        message: Why it failed, or the reason announced.
        seconds: How long it took.
    """

    check: str
    status: Literal["passed", "failed", "expected failure", "unexpected pass"]
    message: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """True unless something has to be done about it."""
        return self.status in ("passed", "expected failure")


def when(power: type | Callable[[Any], bool]) -> Callable[[F], F]:
    """Mark a check as meant for components with a power only.

    Args:
        power: A protocol or class that the component must be an instance of, or a function of the component.
    """

    def mark(check: F) -> F:
        check.powers = (*getattr(check, "powers", ()), power)  # type: ignore[attr-defined]
        return check

    return mark


def checks_for(config: Config) -> tuple[Check, ...]:
    """Return the checks for a config: the common ones, then its kind's, each sorted as its module lists them.

    If the component cannot be built, checks that ask for a power are left out and ``check_it_builds`` says why.

    Raises:
        ConfigError: If the config is of no kind.
    """
    from tunesmith.testing import common

    if config.kind not in KINDS:
        kinds = ", ".join(KINDS)
        raise ConfigError([f"{type(config).__name__} has the kind {config.kind!r}; kinds: {kinds}"], "conformance")
    checks: list[Check] = [*common.CHECKS, *_checks_of_kind(config.kind)]
    if not any(_powers(check) for check in checks):
        return tuple(checks)
    try:
        component = config.build()
    except Exception:  # check_it_builds reports it
        return tuple(check for check in checks if not _powers(check))
    return tuple(check for check in checks if all(_has(component, power) for power in _powers(check)))


def run_checks(
    config: Config, expected_failures: Mapping[str, str] | None = None, *, kind_checks: bool = True
) -> tuple[CheckResult, ...]:
    """Run every check of a config and return what came of each. Raises nothing for a failing check.

    Args:
        config: What is checked.
        expected_failures: Check to the reason why it fails.
        kind_checks: Also run those of the kind, which use the component; otherwise the common ones only.

    Raises:
        ConfigError: If ``expected_failures`` names a check that does not exist, or gives no reason.
    """
    from tunesmith.testing import common

    expected = expected_failures or {}
    checks = [check for check in checks_for(config) if kind_checks or check in common.CHECKS]
    _verify(expected, [config])
    return tuple(_run(check, config, expected.get(_name(check))) for check in checks)


def conformance(*configs: Config, expected_failures: Mapping[str, str] | None = None) -> Callable[[F], F]:
    """Make a pytest test of every check of every config; the test takes ``check`` and calls it.

    Args:
        configs: At least one; several with other options reach more of the component.
        expected_failures: Check to the reason why it fails. Strict: a check that passes after all fails the test.

    Raises:
        ConfigError: If ``expected_failures`` names a check that none of the configs has, or gives no reason.
    """
    import pytest

    if not configs:
        raise ConfigError(["at least one config is needed"], "conformance")
    expected = expected_failures or {}
    _verify(expected, configs)
    cases = []
    for config in configs:
        for check in checks_for(config):
            reason = expected.get(_name(check))
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
            cases.append(pytest.param(_Bound(check, config), id=f"{_label(config)}-{_name(check)}", marks=marks))

    def decorate(test: F) -> F:
        decorated: F = pytest.mark.parametrize("check", cases)(test)
        return decorated

    return decorate


class _Bound:
    """A check and the config it is for."""

    def __init__(self, check: Check, config: Config) -> None:
        self.check = check
        self.config = config

    def __call__(self) -> None:
        self.check(self.config)

    def __repr__(self) -> str:
        return f"{_name(self.check)}({self.config!r})"


def _checks_of_kind(kind: str) -> tuple[Check, ...]:
    module = f"tunesmith.testing.{KINDS[kind].group.removeprefix('tunesmith.')}"
    if importlib.util.find_spec(module) is None:
        return ()
    checks: tuple[Check, ...] = importlib.import_module(module).CHECKS
    return checks


def _run(check: Check, config: Config, reason: str | None) -> CheckResult:
    start = time.perf_counter()
    problem = ""
    try:
        check(config)
    except Exception as failure:
        problem = f"{type(failure).__name__}: {failure}"
    seconds = time.perf_counter() - start
    if reason is None:
        status: Any = "failed" if problem else "passed"
    else:
        status = "expected failure" if problem else "unexpected pass"
    return CheckResult(check=_name(check), status=status, message=reason or problem, seconds=seconds)


def _verify(expected: Mapping[str, str], configs: Any) -> None:
    known = sorted({_name(check) for config in configs for check in checks_for(config)})
    problems = []
    for name, reason in expected.items():
        if name not in known:
            problems.append(f"expected_failures names {name!r}, which is none of the checks: {', '.join(known)}")
        elif not (isinstance(reason, str) and reason.strip()):
            problems.append(f"expected_failures gives no reason for {name!r}")
    if problems:
        raise ConfigError(problems, "conformance")


def _powers(check: Check) -> tuple[Any, ...]:
    return getattr(check, "powers", ())


def _has(component: Any, power: Any) -> bool:
    return isinstance(component, power) if isinstance(power, type) else bool(power(component))


def _name(check: Check) -> str:
    return str(check.__name__)


def _label(config: Config) -> str:
    from tunesmith.spec.dumping import changed_fields

    options = ", ".join(f"{name}={value!r}" for name, value in changed_fields(config).items())
    text = f"{type(config).__name__}({options})"
    return text if len(text) <= 80 else f"{text[:77]}..."

"""Score a reward model on functional test cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Literal

from attrs import Attribute, evolve, field, frozen
from attrs import validators as v

from tunesmith.errors import ConfigError, DataError
from tunesmith.reward import check_scores
from tunesmith.reward_gate.cases import Case, Suite, built_in, names, read
from tunesmith.typecheck import Checked

if TYPE_CHECKING:
    from tunesmith.kinds.reward_model import RewardModel

EXAMPLES = 3
"""Failures of a category that are kept, the worst first."""


def _shares(_: object, attribute: Attribute[dict[str, float]], value: dict[str, float]) -> None:
    wrong = [f"{name} ({share})" for name, share in value.items() if not 0 <= share <= 1]
    if wrong:
        raise ValueError(f"'{attribute.name}' must be between 0 and 1: {', '.join(wrong)}")


def _known(_: object, attribute: Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    unknown = [name for name in value if name not in names()]
    if unknown:
        raise ValueError(f"'{attribute.name}': there is no suite {', '.join(unknown)}; there are {', '.join(names())}")


@frozen(kw_only=True)
class Gate(Checked):
    """What a reward model must be able to do before a policy is trained on it.

    Attributes:
        suites: Built-in suites: ``"civility"`` (civil words above insults), ``"sentiment"`` (approval above disapproval).
        cases: A JSONL file of further cases, see :func:`tunesmith.reward_gate.read`; "" for none.
        prompt: Prompt of the built-in cases; those of a file bring their own.
        threshold: Share of cases that must be right in every category.
        thresholds: Category to a threshold of its own.
        tolerance: Two scores are the same if they differ by at most this share of the standard deviation of all scores of
            the suite.
        confidence: Level of the intervals.
        on_failure: ``"stop"``: an error that says what failed; ``"warn"``: a sentence in the report.
    """

    suites: tuple[str, ...] = field(default=("civility",), validator=_known)
    cases: str = field(default="", metadata={"path": True})
    prompt: str = ""
    threshold: float = field(default=0.75, validator=[v.ge(0), v.le(1)])
    thresholds: dict[str, float] = field(factory=dict, validator=_shares)
    tolerance: float = field(default=0.5, validator=v.ge(0))
    confidence: float = field(default=0.95, validator=[v.gt(0), v.lt(1)])
    on_failure: Literal["stop", "warn"] = "stop"

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if not self.suites and not self.cases:
            raise ConfigError(["name at least one of the suites, or a file of cases @ suites"], "gate")


@frozen(kw_only=True)
class Failure:
    """A case that went wrong, with both scores; None where the model gave none."""

    case: Case
    better: float | None
    worse: float | None


@frozen(kw_only=True)
class Category:
    """What was found in one category of one suite.

    Attributes:
        suite: Name and version, e.g. ``"civility 1"``.
        name: Of the category.
        cases: How many.
        templates: How many independent templates they were made from.
        share: Share of cases that are right; a template counts once, whatever the number of its cases.
        low: Of its interval (Wilson 1927, with as many trials as templates).
        high: Likewise.
        threshold: What ``share`` must reach.
        failures: The worst ones.
    """

    suite: str
    name: str
    cases: int
    templates: int
    share: float
    low: float
    high: float
    threshold: float
    failures: tuple[Failure, ...]

    @property
    def passed(self) -> bool:
        """Whether the share reaches the threshold."""
        return self.share >= self.threshold


@frozen(kw_only=True)
class Result:
    """What the gate found.

    Attributes:
        categories: Suite by suite.
        about: What the suites expect, a sentence each.
    """

    categories: tuple[Category, ...]
    about: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every category reached its threshold."""
        return all(category.passed for category in self.categories)


def suites(gate: Gate) -> list[Suite]:
    """Return the suites of a gate, with its prompt in the built-in ones.

    Raises:
        DataError: If the file of cases cannot be read.
        ConfigError: If a threshold is for a category that there is not.
    """
    found = []
    for name in dict.fromkeys(gate.suites):
        suite = built_in(name)
        found.append(evolve(suite, cases=tuple(evolve(case, prompt=gate.prompt) for case in suite.cases)))
    if gate.cases:
        found.append(read(gate.cases))
    there = sorted({case.category for suite in found for case in suite.cases})
    unknown = sorted(set(gate.thresholds) - set(there))
    if unknown:
        raise ConfigError(
            [f"no category {', '.join(unknown)}; there are {', '.join(there)} @ thresholds"],
            "gate",
        )
    return found


def check(model: RewardModel, gate: Gate | None = None) -> Result:
    """Score a reward model on a gate's cases.

    A case without a score is not right. Of an ordered case the better completion must score strictly higher.

    Args:
        model: Ready to score.
        gate: None means the defaults.

    Raises:
        NumericError: If a score is not a finite number.
        DataError: If the model scores no case at all.
    """
    gate = gate or Gate()
    found: list[Category] = []
    about = []
    for suite in suites(gate):
        found += _categories(model, suite, gate)
        about.append(f"{_label(suite)}: {suite.about}")
    return Result(categories=tuple(found), about=tuple(about))


def _label(suite: Suite) -> str:
    return f"{suite.name} {suite.version}" if suite.version else suite.name


def _categories(model: RewardModel, suite: Suite, gate: Gate) -> list[Category]:
    prompts = [case.prompt for case in suite.cases]
    sides = [[case.better for case in suite.cases], [case.worse for case in suite.cases]]
    scores = check_scores(model, model.score(prompts * 2, [*sides[0], *sides[1]]), 2 * len(prompts))
    known = [score for score in scores if score is not None]
    if not known:
        raise DataError(
            f"{type(model).__name__} has no opinion on any of the {len(prompts)} cases of {suite.name}. A reward that needs more "
            "than prompt and completion cannot be checked by these; use cases of your own or no gate."
        )
    allowed = gate.tolerance * pstdev(known)
    rows = list(zip(suite.cases, scores[: len(prompts)], scores[len(prompts) :], strict=True))
    return [
        _category(_label(suite), name, [row for row in rows if row[0].category == name], allowed, gate)
        for name in dict.fromkeys(case.category for case in suite.cases)
    ]


def _category(
    suite: str, name: str, rows: Sequence[tuple[Case, float | None, float | None]], allowed: float, gate: Gate
) -> Category:
    by_template: dict[str, list[bool]] = {}
    wrong: list[tuple[float, Failure]] = []
    for case, better, worse in rows:
        lack = _lack(case, better, worse, allowed)
        by_template.setdefault(case.template, []).append(lack is None)
        if lack is not None:
            wrong.append((lack, Failure(case=case, better=better, worse=worse)))
    from tunesmith.statistics.proportion import wilson  # imports numpy with its package

    share = _share(by_template)
    low, high = wilson(share, len(by_template), gate.confidence)
    wrong.sort(key=lambda item: -item[0])
    return Category(
        suite=suite,
        name=name,
        cases=len(rows),
        templates=len(by_template),
        share=share,
        low=low,
        high=high,
        threshold=gate.thresholds.get(name, gate.threshold),
        failures=tuple(failure for _, failure in wrong[:EXAMPLES]),
    )


def _lack(case: Case, better: float | None, worse: float | None, allowed: float) -> float | None:
    """Return by how much a case is wrong, in units of the score; None if it is right."""
    if better is None or worse is None:
        return math.inf
    if case.expect == "order":
        return None if better > worse else worse - better
    return None if abs(better - worse) <= allowed else abs(better - worse)


def _share(by_template: Mapping[str, Sequence[bool]]) -> float:
    return fmean(fmean(right) for right in by_template.values())

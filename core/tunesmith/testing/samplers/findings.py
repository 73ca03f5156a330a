"""What a check of the kit says: one object a check, to be read by a person or asked by a test."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

ALPHA = 1e-6
"""Probability that a sound sampler fails anything in a whole suite."""


@frozen(kw_only=True)
class Finding:
    """What came of one check.

    Attributes:
        check: Its name.
        statistic: The number that was judged.
        measure: What number that is.
        p_value: Probability that a sound sampler gives such a statistic; of an exact check 1.0 or 0.0.
        alpha: The check fails below it.
        means: What that says of the sampler, in words.
        power: How small a fault would have been found.
    """

    check: str
    statistic: float
    measure: str
    p_value: float
    alpha: float
    means: str
    power: str = "exact: one counterexample is enough"

    @property
    def ok(self) -> bool:
        """Whether the check was passed."""
        return self.p_value >= self.alpha

    def __str__(self) -> str:
        verdict = "passes" if self.ok else "FAILS"
        return f"{verdict}: {self.check}: {self.measure} = {self.statistic:.6g}, p = {self.p_value:.2g}. {self.means}"


def exact(check: str, wrong: int, of: int, *, good: str, bad: str) -> Finding:
    """Return the finding of a check without chance in it: nothing may be wrong."""
    return Finding(
        check=check,
        statistic=float(wrong),
        measure=f"wrong of {of}",
        p_value=0.0 if wrong else 1.0,
        alpha=ALPHA,
        means=bad if wrong else good,
    )


def at_most(p_value: float, tests: int) -> float:
    """Return the p-value of the smallest of so many (Bonferroni)."""
    return min(1.0, p_value * tests)


def failures(findings: Iterable[Finding]) -> list[str]:
    """Return what failed, a line each; empty for a sampler that passes."""
    return [str(finding) for finding in findings if not finding.ok]


def table(findings: Iterable[Finding]) -> str:
    """Return findings as lines of text: verdict, check, statistic, p-value, meaning."""
    rows = [("", "check", "statistic", "p", "says")]
    for f in findings:
        rows.append(("ok" if f.ok else "FAIL", f.check, f"{f.measure} {f.statistic:.4g}", f"{f.p_value:.2g}", f.means))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join([*(cell.ljust(w) for cell, w in zip(r, widths, strict=False)), r[4]]) for r in rows)

"""The conformance kit: is a component what its kind promises? Public, for authors of plugins and for tunesmith's own.

With pytest, one line a config and one test a check::

    from tunesmith.testing import conformance
    from tunesmith_minp import MinP

    @conformance(MinP(), MinP(p=0.2), expected_failures={"check_every_field_is_documented": "docs come with 0.3"})
    def test_conforms(check):
        check()

Without pytest: ``tunesmith plugins check tunesmith-minp/min_p``, or :func:`run_checks`.

A check is a plain function ``check_<what holds>(config)`` that raises (``AssertionError`` by ``assert``, or
anything else) when its sentence is not true. Checks of all components are in :mod:`tunesmith.testing.common`.
Those of a kind are in the module named like the plural of the kind, ``tunesmith.testing.samplers`` for
``sampler``, which has a tuple ``CHECKS`` of them. Such a module may import torch at its top: it is imported
only when checks are chosen for a config of that kind. A check that asks for an optional power says so with
:func:`when`, and is chosen for components that have it::

    @when(SupportsMerge)
    def check_merging_changes_no_output(config): ...

    @when(lambda component: component.needs_data)
    def check_missing_data_is_an_error(config): ...

    CHECKS = (check_merging_changes_no_output, check_missing_data_is_an_error)

Tiny random models for checks are made by :func:`tunesmith.testing.models.tiny_lm`; fixtures that put fake distributions
beside the installed ones are in :mod:`tunesmith.testing.fixtures`.
"""

from __future__ import annotations

from tunesmith.testing.conformance import CheckResult as CheckResult
from tunesmith.testing.conformance import checks_for as checks_for
from tunesmith.testing.conformance import conformance as conformance
from tunesmith.testing.conformance import run_checks as run_checks
from tunesmith.testing.conformance import when as when

__all__ = ["CheckResult", "checks_for", "conformance", "run_checks", "when"]

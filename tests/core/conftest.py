"""Fake installed distributions and isolated registries for the tests of core."""

from __future__ import annotations

from tunesmith.testing.fixtures import fake_distribution, isolated_registry

__all__ = ["fake_distribution", "isolated_registry"]

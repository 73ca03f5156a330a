"""The public pytest fixtures do what they say, wherever a plugin's tests run."""

from __future__ import annotations

from tunesmith import registry


def test_the_isolated_registry_hides_what_the_environment_had_hidden_too(fake_distribution, monkeypatch, request):
    points = {"tunesmith.samplers": {"hidden": "hidden:Hidden"}}
    fake_distribution("tunesmith-hidden", entry_points=points)
    fake_distribution("tunesmith-seen", entry_points=points)
    monkeypatch.setenv("TUNESMITH_DISABLE_PLUGINS", "tunesmith-hidden")
    assert {e.dist for e in registry.samplers.entries() if not e.builtin} == {"tunesmith-seen"}
    request.getfixturevalue("isolated_registry")
    assert [e.id for e in registry.samplers.entries() if not e.builtin] == []

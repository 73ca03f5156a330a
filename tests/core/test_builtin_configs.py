"""Every config that tunesmith brings: its name, its entry point, and that it survives every form, whatever its values."""

from __future__ import annotations

import json
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as hs

from tunesmith import spec
from tunesmith.kinds import KINDS
from tunesmith.registry import name_of, registry_for
from tunesmith.testing import common, run_checks
from tunesmith.testing.examples import example
from tunesmith.testing.strategies import configs
from tunesmith_plugins.compressors import Magnitude
from tunesmith_plugins.metrics import Perplexity
from tunesmith_plugins.reward_models import LengthPenalty, RepetitionPenalty
from tunesmith_plugins.rl_algorithms import DPO
from tunesmith_plugins.stages import Compress

ROOT = Path(__file__).parents[2]
SNAPSHOT = Path(__file__).with_name("registered_names.json")
STARTS = {
    ("stage", "tunesmith/align"): {"algorithm": DPO(), "preferences": "pairs.jsonl"},
    ("reward_model", "tunesmith/ensemble"): {"models": {"a": LengthPenalty(), "b": RepetitionPenalty()}},
    ("reward_model", "tunesmith/function"): {"target": "package.module:function"},
    ("sampler", "tunesmith/structured"): {"regex": "a|b"},
    ("stage", "tunesmith/recipe"): {
        "steps": (Compress(name="pruned", compressor=Magnitude()),),
        "metrics": (Perplexity(),),
    },
}
BUILT_IN = [
    pytest.param(entry.kind, entry.id, id=f"{entry.kind}-{entry.name}")
    for kind in KINDS
    for entry in registry_for(kind).entries()
    if entry.builtin
]


@pytest.mark.parametrize(("kind", "use"), BUILT_IN)
def test_any_config_survives_dict_json_toml_and_short_spelling(kind, use, tmp_path):
    registry = registry_for(kind)
    cls = registry.get(use)
    assert name_of(cls) == use

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
    @given(hs.deferred(lambda: configs(cls, **STARTS.get((kind, use), {}))))
    def survives(config):
        plain = spec.dump(config)
        assert spec.load(json.loads(json.dumps(plain, allow_nan=False)), registry.base) == config
        assert spec.parse(spec.spell(config), kind) == config
        for suffix in (".json", ".toml"):
            path = tmp_path / f"config{suffix}"
            spec.write(config, path)
            assert spec.read(path, registry.base) == config

    survives()


@pytest.mark.parametrize(("kind", "use"), BUILT_IN)
def test_every_built_in_passes_the_common_checks(kind, use):
    """Those that use the component are with the tests of its kind."""
    config = example(registry_for(kind).get(use), **STARTS.get((kind, use), {}))
    results = run_checks(config, kind_checks=False)
    assert len(results) == len(common.CHECKS)
    assert not [f"{result.check}: {result.message}" for result in results if not result.ok]


def test_the_registered_names_are_those_of_the_snapshot():
    """A name that goes breaks saved files. After a deliberate change write the new snapshot, as the message says."""
    found = {kind: [e.name for e in registry_for(kind).entries() if e.builtin] for kind in KINDS}
    known = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    gone = {kind: sorted(set(known.get(kind, [])) - set(names)) for kind, names in found.items()}
    assert not any(gone.values()), (
        f"names that saved files may hold are gone: {gone}; keep them, or deprecate them first"
    )
    assert found == known, f"new names; write this to {SNAPSHOT.name}:\n{json.dumps(found, indent=2)}"


def test_installed_metadata_equals_pyproject():
    """Entry points are stale after an edit of pyproject.toml until the package is installed again."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    installed: dict[str, dict[str, str]] = {}
    for point in metadata.distribution("tunesmith").entry_points:
        if point.group.partition(".")[0] == "tunesmith":
            installed.setdefault(point.group, {})[point.name] = point.value
    assert installed == declared, (
        "run `pip install -e .` again: the installed entry points are those of an older pyproject"
    )


def test_entry_points_of_every_kind_are_sorted_in_pyproject():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    for group, points in declared.items():
        assert list(points) == sorted(points), f"the entry points of {group} are not sorted"
    assert set(declared) == {"tunesmith", *(kind.group for kind in KINDS.values())}

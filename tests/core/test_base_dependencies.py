"""Everything imports with the base dependencies alone: what the test extra and contrib packages bring is hidden first."""

from __future__ import annotations

import subprocess
import sys

FOR_TESTS = {
    "tunesmith.testing.conformance",
    "tunesmith.testing.fixtures",
    "tunesmith.testing.strategies",
    "tunesmith.testing",
}
"""Modules of the conformance kit that offer themselves to pytest and hypothesis."""

SCRIPT = """
import importlib, pkgutil, re, sys
from importlib import metadata

def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()

def needed(name, seen):
    if name in seen:
        return
    try:
        requirements = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return
    seen.add(name)
    from packaging.requirements import Requirement
    for text in requirements:
        requirement = Requirement(text)
        extras = requirement.extras or {""}
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed(canonical(requirement.name), seen)
            for extra in requirement.extras:
                for other in metadata.requires(requirement.name) or []:
                    inner = Requirement(other)
                    if inner.marker is not None and inner.marker.evaluate({"extra": extra}):
                        needed(canonical(inner.name), seen)

base = set()
needed("tunesmith", base)
assert "torch" in base and "pytest" not in base and "hypothesis" not in base, sorted(base)
owners = metadata.packages_distributions()
hidden = {top for top, dists in owners.items() if not {canonical(d) for d in dists} & base} - {"tunesmith", "tunesmith_plugins"}
assert "pytest" in hidden and "hypothesis" in hidden

class Hiding:
    # finds what another finder does, but nothing that is hidden
    def __init__(self, finder):
        self._finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self._finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self._finder, name)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
skipped = set(sys.argv[1:])
count, failed = 0, []
for package in ("tunesmith", "tunesmith_plugins"):
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, package + "."):
        if module.name in skipped or module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            failed.append(f"{module.name}: {error}")
        count += 1
print(count)
assert not failed, failed
"""


def test_every_module_imports_without_what_only_tests_and_contrib_packages_need():
    done = subprocess.run([sys.executable, "-c", SCRIPT, *FOR_TESTS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 150

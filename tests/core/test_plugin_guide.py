"""docs/plugins.md is true: its plugin is installed and run, and nothing that exists is missing from it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import tunesmith as ts
from tunesmith import registry
from tunesmith.cli import main
from tunesmith.component import load_target
from tunesmith.discovery import HOOK_GROUP
from tunesmith.hooks import Specs
from tunesmith.kinds import KINDS
from tunesmith.testing import run_checks

GUIDE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", GUIDE, re.DOTALL))


@pytest.fixture
def epsilon(fake_distribution):
    """Install the guide's plugin from the guide's text."""
    project = tomllib.loads(BLOCKS["pyproject.toml"])["project"]
    modules = {
        name.removeprefix("src/").removesuffix(".py").replace("/", "."): code
        for name, code in BLOCKS.items()
        if name.startswith("src/")
    }
    return fake_distribution(
        project["name"],
        version=project["version"],
        requires=project["dependencies"],
        entry_points=project["entry-points"],
        modules={"tunesmith_floor.__init__": "", **modules},
    )


def test_the_sampler_of_the_guide_passes_every_check(epsilon):
    cls = ts.samplers.get("tunesmith-floor/floor")
    for config in (cls(), cls(epsilon=0.1)):
        results = run_checks(config)
        assert len(results) > 17
        assert not [f"{r.check}: {r.message}" for r in results if not r.ok]


def test_the_sampler_of_the_guide_drops_what_it_says(epsilon):
    import torch

    from tunesmith.kinds.sampler import Rows

    one = torch.zeros(1, dtype=torch.int64)
    rows = Rows(seed=one, stream=one, position=one, history=one[None], history_lengths=one + 1, prompt_lengths=one + 1)
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    link = ts.samplers.create("floor", epsilon=0.1).build()
    assert link.apply(logits, rows).isfinite().tolist() == [[True, True, True, False]]
    link = ts.samplers.create("floor", epsilon=0.9).build()
    assert link.apply(logits, rows).isfinite().tolist() == [[True, False, False, False]]


def test_the_script_of_the_guide_runs(epsilon, tmp_path):
    script = tmp_path / "use.py"
    script.write_text(BLOCKS["use.py"], encoding="utf-8")
    path = ":".join([str(epsilon), *(p for p in sys.path if p)])
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_sampler_of_the_guide_is_as_short_as_it_claims():
    code = BLOCKS["src/tunesmith_floor/config.py"] + BLOCKS["src/tunesmith_floor/link.py"]
    assert len([line for line in code.splitlines() if line.strip()]) <= 25


def test_the_conformance_test_of_the_guide_is_valid():
    compile(BLOCKS["tests/test_conformance.py"], "guide", "exec")


@pytest.mark.usefixtures("isolated_registry")
def test_the_command_of_the_guide_says_hello(fake_distribution, capsys):
    (points,) = re.findall(r'```toml\n(\[project.entry-points."tunesmith"\]\n.*?)```', GUIDE, re.DOTALL)
    fake_distribution(
        "tunesmith-hello",
        entry_points=tomllib.loads(points)["project"]["entry-points"],
        modules={f"tunesmith_hello.{name}": BLOCKS.get(f"{name}.py", "") for name in ("__init__", "hooks", "cli")},
    )
    assert main(["--help"]) == 0
    assert re.search(r"hello +Say hello\.", capsys.readouterr().out)
    assert main(["hello"]) == 0
    assert capsys.readouterr().out == "Hello.\n"


def test_a_contract_has_as_many_methods_as_the_guide_says():
    counts = [len(load_target(kind.component, kind.name).__abstractmethods__) for kind in KINDS.values()]
    words = ("no", "one", "two", "three", "four", "five", "six")
    assert f"an abstract class of {words[min(counts)]} to {words[max(counts)]} methods" in GUIDE


def test_every_hook_kind_and_variable_is_in_the_guide():
    for name in vars(Specs):
        if name.startswith("tunesmith_"):
            arguments = [a for a in getattr(Specs, name).__code__.co_varnames if a != "self"]
            assert f"### `{name}({', '.join(arguments)})`" in GUIDE
    for kind in KINDS.values():
        assert f"| {kind.name} | `{kind.group}` | `tunesmith.kinds.{kind.name}` |" in GUIDE
    assert f"group `{HOOK_GROUP}`" in GUIDE
    source = "".join(p.read_text(encoding="utf-8") for p in Path(registry.__file__).parent.glob("*.py"))
    for variable in set(re.findall(r'environ\.get\("(TUNESMITH_[A-Z_]+)"', source)):
        assert variable in GUIDE or variable in ("TUNESMITH_DATA",), variable

"""What must not be imported, tested in fresh processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "transformers", "datasets", "peft", "trl", "evaluate", "matplotlib", "pandas")


def modules_after(code: str) -> set[str]:
    """Run ``code`` in a fresh Python and return the modules it has at the end."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", code + "\nimport sys, json\nprint('\\n' + json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.strip().splitlines()[-1]))


def command(*arguments: str) -> str:
    return f"from tunesmith.cli import main\nassert main({list(arguments)!r}) == 0"


LIGHT = {
    "import tunesmith": "import tunesmith; dir(tunesmith)",
    "import of every registry": "from tunesmith import adapters, metrics, samplers, stages; samplers.entries()",
    "--help": command("--help"),
    "exam --help": command("exam", "--help"),
    "compress --help": command("compress", "--help"),
    "--version": command("--version"),
    "plugins --help": command("plugins", "--help"),
    "plugins list": command("plugins", "list"),
    "plugins list --json": command("plugins", "list", "--json"),
    "plugins list --all": command("plugins", "list", "--all"),
    "plugins show": command("plugins", "show", "top_p"),
    "a spec": "from tunesmith import spec; spec.dump(spec.parse('chain(links=[top_p(p=0.5)])', 'sampler'))",
    "Pipeline.load": (
        "import tunesmith as ts, tempfile, pathlib\nfrom tunesmith_plugins import metrics, stages as st, adapters\n"
        "stages = (st.FineTune(name='t', adapter=adapters.LoRA()), st.Evaluate(name='e', metrics=(metrics.Rouge(),)))\n"
        "pipeline = ts.Pipeline(base='model', data=ts.Data(source='data.jsonl'), stages=stages)\n"
        "file = pathlib.Path(tempfile.mkdtemp()) / 'p.json'\n"
        "pipeline.save(file)\nassert ts.Pipeline.load(file) == pipeline"
    ),
    "every config": (
        "from tunesmith.registry import registry_for\nfrom tunesmith.kinds import KINDS\n"
        "for kind in KINDS:\n"
        "    for entry in registry_for(kind).entries():\n"
        "        if entry.builtin: registry_for(kind).get(entry.id)"
    ),
}


@pytest.mark.parametrize("what", LIGHT)
def test_this_imports_no_heavy_module(what):
    found = modules_after(LIGHT[what]) & set(HEAVY)
    assert not found, f"{what} imports {', '.join(sorted(found))}"


@pytest.mark.parametrize("what", ["import tunesmith", "--help", "plugins list"])
def test_this_imports_no_component(what):
    found = {name for name in modules_after(LIGHT[what]) if name.startswith("tunesmith_plugins.")}
    assert not {name for name in found if not name.endswith(".hooks") and name.count(".") > 1}, found


def test_listing_plugins_calls_no_hook_and_needs_no_cattrs():
    found = modules_after(LIGHT["plugins list"])
    assert not {name for name in found if name.startswith("tunesmith_plugins")}
    assert "cattrs" not in found


def test_registering_with_transformers_imports_no_code_of_models():
    """It takes most of a second, and scipy, which whoever loads a model pays anyway."""
    found = modules_after("import tunesmith.hf\nfrom tunesmith_plugins.compressors import int8_format")
    assert "transformers" in found
    assert not found & {"transformers.modeling_utils", "scipy"}


def test_the_test_itself_sees_a_heavy_import():
    assert "numpy" in modules_after("import numpy")


def test_the_packages_are_not_imported_through_their_folders(request):
    assert not {"core", "plugins", "core.tunesmith", "plugins.tunesmith_plugins"} & set(sys.modules)

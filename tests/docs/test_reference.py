"""The reference pages are what the docstrings say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith import spec
from tunesmith.kinds import KINDS
from tunesmith.registry import registry_for

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "generate_reference.py"
NAMES = [(kind, entry.name) for kind in KINDS for entry in registry_for(kind).entries() if entry.builtin]


def section(kind: str, name: str) -> str:
    page = (ROOT / "docs" / "reference" / f"{kind}.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(name)}\n(.*?)^## ", page, re.DOTALL | re.MULTILINE)
    assert found, f"{kind}.md has no section {name!r}"
    return found[1]


def test_committed_pages_are_those_that_the_script_writes():
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_check_notices_a_changed_page_a_missing_one_and_a_stray_one(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    for script in SCRIPT.parent.glob("*.py"):
        (docs / script.name).write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    run = [sys.executable, str(docs / SCRIPT.name)]
    subprocess.run(run, check=True, capture_output=True)
    assert subprocess.run([*run, "--check"], capture_output=True).returncode == 0
    pages = docs / "reference"
    (pages / "sampler.md").write_text(
        (pages / "sampler.md").read_text(encoding="utf-8").replace("0.9", "0.8"), encoding="utf-8"
    )
    (pages / "metric.md").unlink()
    (pages / "wizard.md").write_text("# wizard\n", encoding="utf-8")
    done = subprocess.run([*run, "--check"], capture_output=True, text=True)
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["metric.md", "sampler.md", "wizard.md"]


def test_writing_the_pages_imports_no_torch():
    code = f"import runpy, sys; sys.argv = ['x', '--check']; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
    code += f"try:\n    runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\nexcept SystemExit: pass\n"
    code += "assert 'tunesmith_plugins.stages.config' in sys.modules\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_every_builtin_component_has_its_section_with_both_spellings(kind, name, tmp_path):
    text = section(kind, name)
    short, toml = re.search(r"```\n(.+?)\n```", text), re.search(r"```toml\n(.+?)\n```", text, re.DOTALL)
    (tmp_path / "example.toml").write_text(toml[1], encoding="utf-8")
    cls = registry_for(kind).get(f"tunesmith/{name}")
    config = spec.parse(short[1], kind)
    assert type(config) is cls
    assert spec.read(tmp_path / "example.toml", cls) == config
    options = [row.split("`")[1] for row in text.splitlines() if row.startswith("| `")]
    if options:
        assert spec.dump(config)["config"], f"the example of {name} shows nothing but defaults"


def test_pages_show_names_types_defaults_and_meanings():
    row = "| `p` | `float` | `0.9` | Cumulative probability, in (0, 1]; 1 keeps every token. |"
    assert row in section("sampler", "top_p")

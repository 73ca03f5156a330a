"""docs/cli.md: every command has its section, and every example runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tunesmith.cli import cli

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|toml)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def command(path: list[str]) -> click.Command:
    found: click.Command = cli
    for name in path:
        assert isinstance(found, click.Group)
        found = found.get_command(click.Context(found), name)
        assert found is not None, f"there is no command {' '.join(path)}"
    return found


def test_every_command_has_its_section():
    names = set(cli.list_commands(click.Context(cli)))
    assert names == set(re.findall(r"^## (\S+)$", PAGE, re.MULTILINE))


def test_every_option_in_an_example_exists():
    seen = 0
    for language, text in BLOCKS:
        for line in re.findall(r"^tunesmith ((?:[^'\"\n]|'[^']*'|\"[^\"]*\")+)", text, re.MULTILINE) * (
            language == "sh"
        ):
            words = re.sub(r"'[^']*'|\"[^\"]*\"", "X", line).split()
            path = words[:2] if words[0] in ("plugins", "runs") else words[:1]
            options = {name for parameter in command(path).params for name in parameter.opts}
            used = {word for word in words if word.startswith("-")}
            assert used <= options, f"{' '.join(path)} has no {used - options}"
            seen += 1
    assert seen >= 12


@pytest.mark.exhaustive
def test_all_examples_run_in_order(tmp_path):
    script = "set -eu\n"
    for language, text in BLOCKS:
        script += text if language == "sh" else f"cat > first.toml <<'TOML'\n{text}TOML\n"
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "tunesmith").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tunesmith "$@"\n', encoding="utf-8")
    (tools / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    environment = os.environ | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "first.html" in {path.name for path in work.iterdir()}
    assert not (work / "runs" / "again").exists()

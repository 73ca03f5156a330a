"""``tunesmith plugins``, ``doctor`` and what all commands share."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import tunesmith as ts
from tunesmith.cli import _COMMANDS, main
from tunesmith.cli.doctor import _folders
from tunesmith.errors import TunesmithError
from tunesmith.kinds import KINDS

pytestmark = pytest.mark.usefixtures("isolated_registry")

CONFIG = """
from typing import ClassVar
from attrs import frozen
from tunesmith.kinds.sampler import SamplerConfig

@frozen(kw_only=True)
class Quadratic(SamplerConfig):
    '''A sampler.

    Attributes:
        mass: Share.
    '''

    impl: ClassVar[str] = "quadratic_impl:QuadraticLink"
    api: ClassVar[int] = 1
    mass: float = 0.9
    must: int
"""
IMPL = """
from tunesmith.kinds.sampler import Link

class QuadraticLink(Link):
    '''Does nothing.'''

    def apply(self, logits, rows):
        return logits.clone()
"""


@pytest.fixture
def quadratic(fake_distribution):
    return fake_distribution(
        "tunesmith-quadratic",
        entry_points={"tunesmith.samplers": {"quadratic": "quadratic_plugin:Quadratic"}},
        modules={"quadratic_plugin": CONFIG.replace("    must: int\n", ""), "quadratic_impl": IMPL},
    )


@pytest.fixture
def broken(fake_distribution):
    return fake_distribution(
        "tunesmith-broken",
        entry_points={"tunesmith.samplers": {"broken": "broken_plugin:Broken"}, "tunesmith": {"main": "broken_hooks"}},
        modules={
            "broken_plugin": "raise RuntimeError('no luck')",
            "broken_hooks": "raise RuntimeError('no hook luck')",
        },
    )


def lines(capsys) -> str:
    return capsys.readouterr().out


def test_help_names_every_command_with_a_line(capsys):
    assert main(["--help"]) == 0
    out = lines(capsys)
    for name, _, line in _COMMANDS:
        assert name in out
        assert line.split()[0] in out
    assert [name for name, *_ in _COMMANDS] == sorted(name for name, *_ in _COMMANDS)


@pytest.mark.parametrize("name", [name for name, *_ in _COMMANDS])
def test_every_command_of_the_table_is_there_and_explains_itself(name, capsys):
    assert main([name, "--help"]) == 0
    assert "Usage: tunesmith " + name in lines(capsys)


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert ts.__version__ in lines(capsys)


@pytest.mark.parametrize(
    "arguments", [["plugin"], ["plugins", "shw"], ["plugins", "list", "--nope"], ["plugins", "show"]]
)
def test_wrong_usage_is_status_2(arguments, capsys):
    assert main(arguments) == 2
    assert "Usage:" in capsys.readouterr().err


def test_what_the_encoding_of_the_output_lacks_is_written_as_an_escape(tmp_path):
    command = [sys.executable, "-m", "tunesmith", *"new-plugin cut --kind sampler --into".split(), str(tmp_path / "ŝ")]
    env = {**os.environ, "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "1"}
    done = subprocess.run(command, capture_output=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert rb"\u015d" in done.stdout


def test_a_near_command_is_suggested(capsys):
    assert main(["plugin"]) == 2
    assert "Did you mean 'plugins'?" in capsys.readouterr().err


def test_a_command_that_stands_elsewhere_is_named(capsys):
    assert main(["plugins", "new", "square-cut"]) == 2
    assert "Did you mean 'tunesmith new-plugin'?" in capsys.readouterr().err
    assert main(["list"]) == 2
    assert "Did you mean 'tunesmith plugins list'?" in capsys.readouterr().err


def test_a_name_without_its_kind_is_compared_with_those_of_every_kind(capsys):
    assert main(["plugins", "show", "tunesmith/ruge"]) == 1
    assert "no metric named 'tunesmith/ruge'. Did you mean tunesmith/rouge? " in capsys.readouterr().err
    # all that they have in common is the distribution
    assert main(["plugins", "show", "tunesmith/quadratic"]) == 1
    assert capsys.readouterr().err.startswith("error: no component is called 'tunesmith/quadratic'. Run `tunesmith")


def test_a_distribution_that_is_not_there_is_named_without_its_kind_too(quadratic, monkeypatch, capsys):
    assert main(["plugins", "check", "tunesmith-cubic/cubic"]) == 1
    assert "no plugin distribution 'tunesmith-cubic' is installed. If it exists, run `pip" in capsys.readouterr().err
    monkeypatch.setenv("TUNESMITH_DISABLE_PLUGINS", "tunesmith-quadratic")
    assert main(["plugins", "check", "tunesmith-quadratic/quadratic"]) == 1
    assert "TUNESMITH_DISABLE_PLUGINS disables tunesmith-quadratic" in capsys.readouterr().err


def test_an_error_is_one_message_and_status_1_and_a_traceback_with_debug(capsys):
    assert main(["plugins", "show", "tpo_p"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: no sampler named 'tpo_p'. Did you mean top_p")
    assert "Traceback" not in captured.err
    with pytest.raises(TunesmithError):
        main(["--debug", "plugins", "show", "tpo_p"])


COMMANDS = """
from tunesmith import hookimpl
from tunesmith.hooks import CommandRef

@hookimpl
def tunesmith_commands():
    return [CommandRef(name=n, target=f"hello_cli:{n}", help=f"Try {n}.") for n in ("hello", "stop", "full", "closed", "plugins", "odd")]
"""
HELLO = """
import click

@click.command()
@click.argument("name")
def hello(name):
    click.echo(f"hello {name}")

@click.command()
def stop():
    raise KeyboardInterrupt

@click.command()
def full():
    raise OSError(28, "No space left on device")

@click.command()
def closed():
    raise PermissionError(13, "Permission denied", "a/file")

def odd():
    pass
"""


def test_a_plugin_adds_commands_and_replaces_none(fake_distribution, capsys):
    fake_distribution(
        "hello",
        entry_points={"tunesmith": {"main": "hello_hooks"}},
        modules={"hello_hooks": COMMANDS, "hello_cli": HELLO},
    )
    assert main(["--help"]) == 0
    out = lines(capsys)
    assert "Try hello." in out
    assert "Try plugins." not in out
    assert "hello_cli" not in sys.modules, "--help imported a command"
    assert main(["hello", "world"]) == 0
    assert lines(capsys) == "hello world\n"
    assert main(["plugins", "--help"]) == 0
    assert "List, show and check components." in lines(capsys)
    assert main(["stop"]) == 130
    assert "stopped" in capsys.readouterr().err
    assert main(["full"]) == 1
    assert capsys.readouterr().err.startswith("error: the disk is full (")
    assert main(["closed"]) == 1
    assert capsys.readouterr().err == (
        "error: a/file cannot be used: Permission denied. Change its permissions or choose another folder.\n"
    )
    assert main(["odd"]) == 1
    assert "not a click command" in capsys.readouterr().err


def test_a_broken_hook_module_does_not_take_the_commands_away(broken, capsys):
    assert main(["--help"]) == 0
    assert "new-plugin" in lines(capsys)


def test_list_shows_short_names_distributions_and_versions(quadratic, capsys):
    assert main(["plugins", "list"]) == 0
    out = lines(capsys)
    for kind in KINDS.values():
        assert kind.group.removeprefix("tunesmith.") + "\n" in out
    assert "quadratic            tunesmith-quadratic 1.0" in out
    assert "from 2 distributions" in out


def test_list_shows_full_ids_where_a_short_name_would_not_do(fake_distribution, capsys):
    for dist in ("aaa", "bbb"):
        fake_distribution(dist, entry_points={"tunesmith.samplers": {"quadratic": "m:A", "top_p": "m:B"}})
    assert main(["plugins", "list", "--kind", "sampler"]) == 0
    out = lines(capsys)
    for shown in ("aaa/quadratic", "bbb/quadratic", "aaa/top_p", "  top_p "):
        assert shown in out


def test_list_shows_what_metadata_knows_to_be_wrong(fake_distribution, broken, capsys):
    fake_distribution("tunesmith-future", entry_points={"tunesmith.samplers": {"x": "m:A"}}, requires=["tunesmith>=99"])
    assert main(["plugins", "list"]) == 0
    out = lines(capsys)
    assert "PROBLEM: tunesmith-future 1.0 needs tunesmith>=99" in out
    assert "; 1 with a problem." in out, "an import was made to list plugins"


def test_list_all_shows_hook_modules_that_cannot_be_imported(broken, capsys):
    assert main(["plugins", "list"]) == 0
    assert "no hook luck" not in lines(capsys)
    assert main(["plugins", "list", "--all"]) == 0
    assert "PROBLEM: could not be imported: RuntimeError: no hook luck" in lines(capsys)


def test_list_as_json_holds_every_entry(quadratic, capsys):
    assert main(["plugins", "list", "--json", "--kind", "sampler"]) == 0
    entries = {entry["id"]: entry for entry in json.loads(lines(capsys))["entries"]}
    assert set(entries) == {entry.id for entry in ts.samplers.entries()}
    assert entries["tunesmith-quadratic/quadratic"]["target"] == "quadratic_plugin:Quadratic"


def test_list_all_adds_hook_modules_and_disabled_distributions(quadratic, monkeypatch, capsys):
    monkeypatch.setenv("TUNESMITH_DISABLE_PLUGINS", "tunesmith-quadratic")
    assert main(["plugins", "list", "--all"]) == 0
    out = lines(capsys)
    assert "hooks\n" in out
    assert "Disabled by TUNESMITH_DISABLE_PLUGINS: tunesmith-quadratic." in out


def test_show_prints_docstring_options_and_spelling(capsys):
    assert main(["plugins", "show", "top_p"]) == 0
    out = lines(capsys)
    for part in (
        "tunesmith/top_p",
        "sampler of tunesmith",
        "Cumulative probability",
        "p: float = 0.9",
        "Short spelling: top_p\n",
    ):
        assert part in out
    assert main(["plugins", "show", "compare", "--kind", "stage"]) == 0
    out = lines(capsys)
    assert "branches: dict[str, StageConfig]\n" in out
    assert "compare(branches=...)" in out
    assert "From StageConfig" in out, "inherited options are not explained"


def test_show_spells_the_members_of_an_enum_as_files_do(fake_distribution, capsys):
    fields = """
import enum
class Way(enum.Enum):
    UP = "upwards"
    DOWN = "down"
"""
    config = CONFIG.replace("@frozen", f"{fields}\n@frozen").rstrip() + (
        "\n    way: Way = Way.UP\n    other: Way | None = None\n"
    )
    fake_distribution(
        "tunesmith-ways",
        entry_points={"tunesmith.samplers": {"ways": "ways_config:Quadratic"}},
        modules={"ways_config": config},
    )
    assert main(["plugins", "show", "ways"]) == 0
    out = lines(capsys)
    assert "way: 'upwards' | 'down' = 'upwards'\n" in out
    assert "other: 'upwards' | 'down' | None = None\n" in out


def test_show_as_json(capsys):
    assert main(["plugins", "show", "top_p", "--json"]) == 0
    found = json.loads(lines(capsys))
    assert found["options"][0] == {"name": "p", "type": "float", "required": False, "default": "0.9"}


def test_a_name_that_several_kinds_have_needs_the_kind(fake_distribution, capsys):
    fake_distribution("aaa", entry_points={"tunesmith.samplers": {"twin": "m:A"}, "tunesmith.metrics": {"twin": "m:B"}})
    assert main(["plugins", "show", "twin"]) == 1
    assert "several kinds: metric, sampler. Add --kind" in capsys.readouterr().err


def test_check_of_an_id_runs_the_conformance_checks_and_counts_them(quadratic, capsys):
    assert main(["plugins", "check", "tunesmith-quadratic/quadratic", "quadratic(mass=0.5)"]) == 0
    out = lines(capsys)
    assert "2 imported, 0 with a problem." in out
    assert "ok   check_it_is_registered" in out
    assert "Quadratic(mass=0.5)" in out
    total = int(out.rsplit(" conformance checks", 1)[0].rsplit("\n", 1)[-1])
    assert total == out.count("ok   check_")
    assert total > 30


def test_check_says_what_to_give_where_no_config_can_be_guessed(capsys):
    assert main(["plugins", "check", "function"]) == 1
    out = lines(capsys)
    assert "plugins check 'tunesmith/function(...)'" in out
    assert "0 conformance checks" in out


def test_check_runs_only_the_common_checks_where_a_text_had_to_be_invented(capsys):
    from tunesmith.testing import common

    assert main(["plugins", "check", "classifier"]) == 0
    out = lines(capsys)
    assert f"{len(common.CHECKS)} checks, 0 failed" in out
    assert "plugins check 'tunesmith/classifier(model=..., label=...)'" in out


def test_check_of_a_component_that_breaks_its_promise_fails(fake_distribution, capsys):
    fake_distribution(
        "tunesmith-quadratic",
        entry_points={"tunesmith.samplers": {"quadratic": "quadratic_plugin:Quadratic"}},
        modules={
            "quadratic_plugin": "import numpy\n" + CONFIG.replace("mass: Share.", "").replace("    must: int\n", ""),
            "quadratic_impl": IMPL,
        },
    )
    assert main(["plugins", "check", "quadratic"]) == 1
    out = lines(capsys)
    assert "FAIL check_every_field_is_documented" in out
    assert "FAIL check_importing_the_config_is_light" in out
    assert "also imports numpy" in out
    assert "ok   check_it_is_frozen" in out


def test_check_of_everything_finds_what_only_an_import_shows(broken, quadratic, capsys):
    assert main(["plugins", "check", "--kind", "sampler"]) == 1
    out = lines(capsys)
    assert out.count("FAIL") == 1
    assert "FAIL sampler tunesmith-broken/broken: " in out
    assert "RuntimeError: no luck" in out


def test_check_finds_a_component_that_is_none(fake_distribution, capsys):
    fake_distribution(
        "tunesmith-quadratic",
        entry_points={"tunesmith.samplers": {"quadratic": "quadratic_plugin:Quadratic"}},
        modules={"quadratic_plugin": CONFIG, "quadratic_impl": "class QuadraticLink: pass"},
    )
    assert main(["plugins", "check", "--kind", "sampler"]) == 1
    assert "quadratic_impl:QuadraticLink is not a subclass of tunesmith.kinds.sampler.Sampler" in lines(capsys)


@pytest.mark.parametrize(
    ("config", "component", "message"),
    [
        ("QuadraticLinc", IMPL, "quadratic_impl has no 'QuadraticLinc' but 'QuadraticLink'. Correct the entry point"),
        (
            "QuadraticLink",
            IMPL.replace("apply", "aply"),
            "does not have apply, which tunesmith.kinds.sampler.Sampler asks",
        ),
    ],
)
def test_check_names_what_a_component_lacks_once(config, component, message, fake_distribution, capsys):
    fake_distribution(
        "tunesmith-quadratic",
        entry_points={"tunesmith.samplers": {"quadratic": "quadratic_plugin:Quadratic"}},
        modules={
            "quadratic_plugin": CONFIG.replace("    must: int\n", "").replace("QuadraticLink", config),
            "quadratic_impl": component,
        },
    )
    assert main(["plugins", "check", "quadratic"]) == 1
    out = lines(capsys)
    assert message in out
    assert out.count("FAIL") == 1, "each check that needs the component said it again"


def test_check_can_require_components(quadratic, broken, capsys):
    require = ["plugins", "check", "top_p", "--no-conformance", "--require"]
    assert main([*require, "tunesmith-quadratic/quadratic"]) == 0
    assert main([*require, "tunesmith-missing/thing"]) == 1
    assert main([*require, "tunesmith-broken/broken"]) == 1
    out = lines(capsys)
    assert "FAIL required tunesmith-missing/thing" in out
    assert "FAIL required tunesmith-broken/broken" in out


def test_doctor_reports_versions_plugins_and_problems(broken, capsys):
    assert main(["doctor"]) == 1
    out = lines(capsys)
    for part in (
        "tunesmith " + ts.__version__,
        "torch ",
        "tunesmith-broken 1.0: 1 sampler, 1 hook",
        "no luck",
        "no hook luck",
    ):
        assert part in out
    assert "kernels: " in out, "the native part says nothing"


def test_doctor_serves_a_user_without_a_home(monkeypatch):
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", str)  # what it gives then: the path as it was
    assert "hub cache: none (~/.cache/huggingface/hub)" in list(_folders())

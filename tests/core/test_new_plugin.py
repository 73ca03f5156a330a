"""``tunesmith new-plugin``: what it writes installs, passes its tests and serves; removing it is noticed."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

from tunesmith import registry
from tunesmith.cli import main
from tunesmith.cli.new_plugin import write_plugin
from tunesmith.errors import ConfigError
from tunesmith.kinds import KINDS
from tunesmith.testing import common, run_checks
from tunesmith.testing.fixtures import write_distribution

ROOT = Path(__file__).parents[2]


def installed(folder: Path, *, site: Path) -> dict[str, str]:
    """Install a generated distribution as an editable install does: metadata, and its ``src`` on the path."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    write_distribution(
        site,
        project["name"],
        version=project["version"],
        entry_points=project["entry-points"],
        requires=project["dependencies"],
    )
    path = [str(site), str(folder / "src"), *(entry for entry in sys.path if entry)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "TUNESMITH_STRICT": "0"}


def run(*command: str, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command], capture_output=True, text=True, env=env, cwd=cwd, timeout=600)


def tunesmith(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "import sys; from tunesmith.cli import main; sys.exit(main())", *arguments]


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_of_any_kind_is_what_its_kind_promises(kind, tmp_path, monkeypatch):
    """In this process, to be quick; the test that the template brings is run for the sampler below."""
    folder = write_plugin(f"top-{kind}", KINDS[kind], tmp_path)
    env = installed(folder, site=tmp_path / "site")
    for entry in env["PYTHONPATH"].split(os.pathsep)[:2]:
        monkeypatch.syspath_prepend(entry)
    registry.refresh()
    config = registry.registry_for(kind).create(f"tunesmith-top-{kind.replace('_', '-')}/top_{kind}")
    results = run_checks(config)
    assert len(results) > len(common.CHECKS), f"{kind} has no checks of its own"
    assert not [f"{result.check}: {result.message}" for result in results if not result.ok]
    left = [path.name for path in folder.rglob("*.py") if "$" in path.read_text(encoding="utf-8")]
    assert not left, f"words that were not filled in: {left}"
    monkeypatch.undo()
    registry.refresh()


def test_new_plugins_are_tidy_by_the_rules_they_bring(tmp_path):
    for kind in KINDS.values():
        write_plugin(f"square-{kind.name}", kind, tmp_path)
    for arguments in (["check"], ["check", "--select", "E,F,I,UP,B,C4,SIM,RUF,PT"], ["format", "--check"]):
        done = run(sys.executable, "-m", "ruff", *arguments, "--no-cache", ".", env=dict(os.environ), cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr


@pytest.mark.exhaustive
def test_new_plugins_are_strictly_typed(tmp_path):
    for kind in KINDS.values():
        write_plugin(f"square-{kind.name}", kind, tmp_path)
    options = ["--strict", "--namespace-packages", "--explicit-package-bases", "--follow-imports=silent"]
    packages = sorted(tmp_path.glob("*/src/*"))
    where = [ROOT / "core", ROOT / "plugins", *(package.parent for package in packages)]
    env = {**os.environ, "MYPYPATH": os.pathsep.join(map(str, where))}
    done = run(sys.executable, "-m", "mypy", *options, *map(str, packages), env=env, cwd=tmp_path)
    assert f"no issues found in {3 * len(KINDS)} source files" in done.stdout, done.stdout[-4000:] + done.stderr


@pytest.mark.parametrize(
    "kind", [k if k == "sampler" else pytest.param(k, marks=pytest.mark.exhaustive) for k in KINDS]
)
def test_the_test_in_a_new_plugin_passes(kind, tmp_path):
    folder = write_plugin("square-cut", KINDS[kind], tmp_path)
    env = installed(folder, site=tmp_path / "site")
    done = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", env=env, cwd=folder)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


PIPELINE = """
import sys, tunesmith as ts
from tunesmith_plugins import stages as st
mine = ts.samplers.create("square_cut", scale=0.5)
pipeline = ts.Pipeline(base="model", data=ts.Data(source="data.jsonl"), stages=(st.Generate(name="g", samplers={"mine": mine}),))
pipeline.save(sys.argv[1])
assert ts.Pipeline.load(sys.argv[1]) == pipeline
assert not {"torch", "numpy", "transformers"} & set(sys.modules)
"""


USE = """
import tunesmith as ts
from tunesmith.cli import main
from tunesmith.testing.models import tiny_lm

assert ts.generate(tiny_lm(), ["the cat"], sampler="square_cut(scale=0.1)", max_new_tokens=5)[0].token_ids
assert main(["plugins", "check", "tunesmith-square-cut/square_cut"]) == 0
"""


def test_a_new_sampler_is_listed_checked_and_serves_in_a_saved_pipeline_until_it_is_removed(tmp_path):
    folder = write_plugin("square-cut", KINDS["sampler"], tmp_path)
    env = installed(folder, site=tmp_path / "site")
    listed = run(*tunesmith("plugins", "list", "--kind", "sampler"), env=env, cwd=tmp_path)
    assert "square_cut" in listed.stdout
    assert "tunesmith-square-cut 0.1.0" in listed.stdout
    file = tmp_path / "pipeline.json"
    saved = run(sys.executable, "-c", PIPELINE, str(file), env=env, cwd=tmp_path)
    assert saved.returncode == 0, saved.stderr
    assert '"use": "tunesmith-square-cut/square_cut"' in file.read_text(encoding="utf-8")
    used = run(sys.executable, "-c", USE, env=env, cwd=tmp_path)
    assert used.returncode == 0, used.stdout + used.stderr
    assert " conformance checks, 0 failed" in used.stdout
    for path in (tmp_path / "site").rglob("*"):
        if path.is_file():
            path.unlink()
    gone = run(sys.executable, "-c", f"import tunesmith as ts; ts.Pipeline.load({str(file)!r})", env=env, cwd=tmp_path)
    assert gone.returncode == 1
    assert "no plugin distribution 'tunesmith-square-cut' is installed" in gone.stderr
    assert "pip install tunesmith-square-cut" in gone.stderr


@pytest.mark.parametrize(
    "name", ["", "Top", "top a", "../top", "top/a", "-top", "1top", "top--a", "tunesmith-", "none"]
)
def test_a_name_that_cannot_be_one_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match="cannot be a plugin's name|a class of the name None, a word of Python"):
        write_plugin(name, KINDS["sampler"], tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "tunesmith-square-cut").mkdir()
    assert main(["new-plugin", "tunesmith-square-cut", "--kind", "sampler", "--into", str(tmp_path)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert not list((tmp_path / "tunesmith-square-cut").iterdir())


@pytest.mark.parametrize("name", ["plugins", "tunesmith-plugins"])
def test_an_installed_package_is_not_hidden(name, tmp_path, capsys):
    assert main(["new-plugin", name, "--kind", "sampler", "--into", str(tmp_path)]) == 1
    assert "a package 'tunesmith_plugins' is there already" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_package_of_an_installed_plugin_of_that_name_is_not_replaced(fake_distribution, tmp_path, capsys):
    fake_distribution("tunesmith-other-cut", entry_points={}, modules={"tunesmith_other_cut": ""})
    assert main(["new-plugin", "tunesmith-other-cut", "--kind", "sampler", "--into", str(tmp_path / "new")]) == 1
    said = capsys.readouterr().err
    assert "a package 'tunesmith_other_cut' is there already" in said
    assert "tunesmith_other_cut.py" in said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "kind", "stem"),
    [("data", "stage", "Data"), ("mapping", "stage", "Mapping"), ("sampler-config", "sampler", "SamplerConfig")],
)
def test_a_class_that_would_hide_what_its_module_imports_is_refused(name, kind, stem, tmp_path):
    with pytest.raises(ConfigError, match=rf"a class of the name {stem}, which the module of an? [\w ]+ imports"):
        write_plugin(name, KINDS[kind], tmp_path)
    assert not list(tmp_path.iterdir())
    assert write_plugin("data-cut", KINDS[kind], tmp_path).is_dir()


def test_the_name_of_a_built_in_is_taken_with_a_word(tmp_path, capsys):
    assert main(["new-plugin", "top-a", "--kind", "sampler", "--into", str(tmp_path)]) == 0
    assert "tunesmith has a sampler 'top_a' of its own" in capsys.readouterr().out
    assert main(["new-plugin", "top-a", "--kind", "metric", "--into", str(tmp_path / "other")]) == 0
    assert "of its own" not in capsys.readouterr().out
    readme = (tmp_path / "tunesmith-top-a" / "README.md").read_text(encoding="utf-8")
    assert 'ts.samplers.create("tunesmith-top-a/top_a")' in readme


def test_the_command_says_what_to_do_next(tmp_path, capsys):
    assert main(["new-plugin", "square-cut", "--kind", "samplers", "--into", str(tmp_path / "my plugins")]) == 0
    out = capsys.readouterr().out
    assert "pip install -e" in out
    assert f"cd '{tmp_path}/my plugins/tunesmith-square-cut'" in out
    assert "Apache License" in (tmp_path / "my plugins" / "tunesmith-square-cut" / "LICENSE").read_text(
        encoding="utf-8"
    )


@pytest.mark.exhaustive
def test_a_new_sampler_installs_with_pip_into_a_fresh_environment(tmp_path):
    """The slow way round: a fresh venv that sees this one's libraries, tunesmith and the plugin both built by pip."""
    folder = write_plugin("square-cut", KINDS["sampler"], tmp_path)
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    site = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    (site / "outer.pth").write_text("\n".join(p for p in sys.path if "site-packages" in p), encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for target in (ROOT, folder):
        done = run(str(python), "-m", "pip", "install", "--no-deps", str(target), env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    done = run(str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", env=env, cwd=folder)
    assert done.returncode == 0, done.stdout[-4000:]
    listed = run(str(python), "-m", "tunesmith", "plugins", "list", env=env, cwd=tmp_path)
    assert "tunesmith-square-cut 0.1.0" in listed.stdout, listed.stderr
    made = run(str(python), "-m", "tunesmith", "new-plugin", "next", "--kind", "metric", env=env, cwd=tmp_path)
    assert made.returncode == 0, f"the templates are not in the wheel: {made.stderr}"
    done = run(str(python), "-m", "pip", "uninstall", "-y", "tunesmith-square-cut", env=env, cwd=tmp_path)
    assert done.returncode == 0
    gone = run(
        str(python), "-m", "tunesmith", "plugins", "show", "tunesmith-square-cut/square_cut", env=env, cwd=tmp_path
    )
    assert gone.returncode == 1
    assert "tunesmith-square-cut" in gone.stderr

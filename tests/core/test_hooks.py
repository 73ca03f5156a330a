"""Hooks: loaded in isolation, failures are data, misspelt hooks are found."""

from __future__ import annotations

import inspect
import sys

import pluggy
import pytest

import tunesmith as ts
from tunesmith import hooks, registry, spec
from tunesmith.discovery import Entry
from tunesmith.errors import PluginError, UnknownName
from tunesmith.hooks import CommandRef, Manager, Specs, hookimpl
from tunesmith.kinds.sampler import SamplerConfig

pytestmark = pytest.mark.usefixtures("isolated_registry")

IMPORTS = (
    "from tunesmith import hookimpl\nfrom tunesmith.hooks import CommandRef\nfrom tunesmith.discovery import Entry\n"
)


@pytest.fixture
def plugin(fake_distribution):
    """Install a distribution with one hook module."""

    def install(source: str, name: str = "tunesmith-hooked", modules: dict[str, str] | None = None):
        module = name.replace("-", "_") + "_hooks"
        return fake_distribution(
            name, entry_points={"tunesmith": {"main": module}}, modules={module: IMPORTS + source, **(modules or {})}
        )

    return install


def failures(of: str) -> list[str]:
    return [f.problem for f in hooks.manager().failures if f.plugin == f"{of}:main"]


COMMAND = """
@hookimpl
def tunesmith_commands():
    return [CommandRef(name="hello", target="m:f", help="Say hello.")]
"""


def test_a_hook_module_is_imported_at_the_first_hook_call_only(plugin):
    plugin(COMMAND)
    ts.samplers.get("top_p")
    assert "tunesmith_hooked_hooks" not in sys.modules
    assert CommandRef(name="hello", target="m:f", help="Say hello.") in hooks.commands()


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("raise RuntimeError('no luck')", "RuntimeError: no luck"),
        ("import sys\nsys.exit('no such option')", "SystemExit: no such option"),
        ("import missing_for_hooks", "No module named 'missing_for_hooks'"),
        ("@hookimpl\ndef tunesmith_comands(): return []", "there is no hook 'tunesmith_comands'"),
        ("@hookimpl\ndef tunesmith_commands(nonsense): return []", "nonsense"),
    ],
)
def test_a_broken_hook_module_is_recorded_and_the_others_serve(plugin, source, problem):
    plugin(COMMAND, "aaa-good")
    plugin(source, "bbb-bad")
    plugin(COMMAND.replace("hello", "bye"), "ccc-good")
    assert {"hello", "bye"} <= {ref.name for ref in hooks.commands()}
    (found,) = failures("bbb-bad")
    assert problem in found
    assert not failures("aaa-good")
    assert not failures("ccc-good")


def test_a_misspelt_hook_takes_the_whole_module_out(plugin):
    plugin(COMMAND + "\n@hookimpl\ndef tunesmith_stage_begun(): pass\n")
    assert "hello" not in {ref.name for ref in hooks.commands()}


def test_a_hook_that_raises_or_returns_nonsense_is_recorded_where_tunesmith_only_asks(plugin):
    plugin("@hookimpl\ndef tunesmith_commands(): raise ValueError('oops')", "aaa-raises")
    plugin("@hookimpl\ndef tunesmith_commands(): return ['hello']", "bbb-nonsense")
    plugin("@hookimpl\ndef tunesmith_commands(): return None", "ccc-none")
    plugin("@hookimpl\ndef tunesmith_doctor(): return 'all is well'", "eee-text")
    plugin(COMMAND, "ddd-good")
    assert "hello" in {ref.name for ref in hooks.commands()}
    hooks.commands()
    assert failures("aaa-raises") == ["tunesmith_commands raised ValueError: oops"]
    assert "no tunesmith.hooks.CommandRef" in failures("bbb-nonsense")[0]
    assert not failures("ccc-none")
    assert "all is well" not in "".join(hooks.doctor_lines())
    assert failures("eee-text") == ["tunesmith_doctor returned the text 'all is well', not a list."]


def test_of_two_commands_with_one_name_the_first_plugin_by_name_has_it(plugin):
    plugin(COMMAND.replace("m:f", "second:f"), "bbb-second")
    plugin(COMMAND.replace("m:f", "first:f"), "aaa-first")
    assert [ref.target for ref in hooks.commands() if ref.name == "hello"] == ["first:f"]
    assert "already there: first:f" in failures("bbb-second")[0]


DYNAMIC = """
@hookimpl
def tunesmith_components():
    return [Entry(kind="sampler", name=n, target="dynamic_configs:Sampler", dist="", version="") for n in ("later", "top_p")]
"""
CONFIG = """
from attrs import frozen
from tunesmith.kinds.sampler import SamplerConfig

@frozen(kw_only=True)
class Sampler(SamplerConfig):
    '''Known at run time.'''
"""


def test_a_dynamic_component_is_found_by_name_but_listed_only_on_request(plugin):
    plugin(DYNAMIC, modules={"dynamic_configs": CONFIG})
    assert "tunesmith-hooked/later" not in [e.id for e in ts.samplers.entries()]
    assert "tunesmith-hooked/later" in [e.id for e in ts.samplers.entries(dynamic=True)]
    assert ts.samplers.get("later").__module__ == "dynamic_configs"
    assert ts.samplers.get("tunesmith-hooked/later") is ts.samplers.get("later")
    assert ts.samplers.get("top_p").__module__ != "dynamic_configs", "a dynamic name shadowed a built-in"


def test_a_dynamic_component_is_stored_and_read_like_any_other(plugin):
    plugin(DYNAMIC, modules={"dynamic_configs": CONFIG})
    config = ts.samplers.create("tunesmith-hooked/later")
    data = spec.dump(config)
    assert data == {"use": "tunesmith-hooked/later", "version": "1.0", "config": {}}
    registry.refresh()
    assert spec.load(data, SamplerConfig) == config
    assert spec.parse(spec.spell(config), "sampler") == config


def test_a_dynamic_component_of_no_kind_is_recorded(plugin):
    plugin(DYNAMIC.replace('"sampler"', '"samplers"'), modules={"dynamic_configs": CONFIG})
    assert hooks.components() == []
    assert "of the kind 'samplers', which is none. Kinds: adapter, " in failures("tunesmith-hooked")[0]


def test_a_stage_hook_gets_what_it_asks_for_and_is_named_where_it_raises(plugin):
    plugin(
        "seen = []\n"
        "@hookimpl\ndef tunesmith_stage_started(stage): seen.append(stage)\n"
        "@hookimpl\ndef tunesmith_stage_finished(context, result): seen.append((context, result))\n"
        "@hookimpl\ndef tunesmith_stage_failed(error): raise RuntimeError('told of ' + str(error))\n"
    )
    hooks.stage_started("stage", "context")
    hooks.stage_finished("stage", "context", {"n": 1})
    assert sys.modules["tunesmith_hooked_hooks"].seen == ["stage", ("context", {"n": 1})]
    with pytest.raises(
        PluginError,
        match=r"tunesmith_stage_failed of the plugin tunesmith-hooked:\w+ raised RuntimeError: told of disk full\. "
        "To go on without it: TUNESMITH_DISABLE_PLUGINS=tunesmith-hooked",
    ) as caught:
        hooks.stage_failed("stage", "context", OSError("disk full"))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_of_several_plugins_the_one_that_raises_is_named():
    class Quiet:
        @ts.hookimpl
        def tunesmith_stage_started(self, context):
            pass

    class Loud(Quiet):
        @ts.hookimpl
        def tunesmith_stage_started(self, context):
            {}["missing"]

    manager = hooks.Manager()
    for name, one in {"first": Quiet(), "second": Loud(), "third": Quiet()}.items():
        manager.register(one, name)
    with pytest.raises(PluginError, match=r"of the plugin second raised KeyError: 'missing'\.$"):
        manager.tell("tunesmith_stage_started", stage=None, context=None)


def test_doctor_lines_come_from_plugins(plugin):
    plugin("@hookimpl\ndef tunesmith_doctor(): return ['hooked: 3 widgets']")
    assert "hooked: 3 widgets" in hooks.doctor_lines()


def test_an_object_can_be_registered_and_taken_back():
    class Mine:
        @hookimpl
        def tunesmith_doctor(self):
            return ["mine"]

    manager = Manager()
    manager.register(Mine(), "mine")
    assert manager.each("tunesmith_doctor") == [("mine", ["mine"])]
    manager.unregister("mine")
    assert manager.each("tunesmith_doctor") == []

    class Misspelt:
        @hookimpl
        def tunesmith_docter(self):
            return []

    with pytest.raises(pluggy.PluginValidationError, match="tunesmith_docter"):
        manager.register(Misspelt(), "misspelt")
    manager.register(Mine(), "misspelt")


def test_refresh_forgets_the_hooks_of_a_removed_plugin(plugin, monkeypatch):
    plugin(DYNAMIC, modules={"dynamic_configs": CONFIG})
    ts.samplers.get("later")
    monkeypatch.setenv("TUNESMITH_DISABLE_PLUGINS", "tunesmith-hooked")
    registry.refresh()
    with pytest.raises(UnknownName):
        ts.samplers.get("later")


def test_every_hook_is_documented_with_an_example():
    specs = [value for name, value in vars(Specs).items() if name.startswith("tunesmith_")]
    assert len(specs) == 6
    for one in specs:
        text = inspect.getdoc(one) or ""
        assert "Example:" in text, one
        assert f"def {one.__name__}(" in text, one


def test_an_entry_knows_its_id():
    entry = Entry(kind="sampler", name="a", target="m:A", dist="d", version="1")
    assert entry.id == "d/a"
    assert not entry.builtin

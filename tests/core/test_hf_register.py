"""Formats that compressors announce to transformers: a stranger's too, whenever it comes, and a broken one hurts nobody."""

from __future__ import annotations

import logging
import sys

import pytest

import tunesmith as ts
from tunesmith import hf, registry
from tunesmith_plugins.compressors.int8 import Int8Compressor

pytestmark = pytest.mark.usefixtures("isolated_registry")

CONFIG = """
from typing import ClassVar
from attrs import frozen
from tunesmith.kinds.compressor import CompressorConfig

@frozen(kw_only=True)
class Packed(CompressorConfig):
    impl: ClassVar[str] = "NAME:PackedCompressor"
"""
COMPONENT = """
from tunesmith.kinds.compressor import Compressor

class PackedCompressor(Compressor):
    calls = 0

    def compress(self, lm, *, data=None, teacher=None, runtime):
        raise NotImplementedError

    @staticmethod
    def register_with_transformers():
        PackedCompressor.calls += 1
        WORK
"""


@pytest.fixture
def plugin(fake_distribution):
    """Return a function that installs a compressor which does something when it is to announce its format."""

    def install(name, work):
        config, component = f"{name}_config", f"{name}_component"
        fake_distribution(
            f"tunesmith-{name}",
            entry_points={"tunesmith.compressors": {name: f"{config}:Packed"}},
            modules={config: CONFIG.replace("NAME", component), component: COMPONENT.replace("WORK", work)},
        )
        return __import__(component).PackedCompressor

    return install


def test_a_plugin_that_comes_later_is_announced_once(plugin):
    hf.register()
    later = plugin("later", "pass")
    for _ in range(3):
        hf.register()
    assert later.calls == 1


def test_a_class_of_this_process_is_announced(plugin):
    plugin("mine", "pass")
    component = __import__("mine_component").PackedCompressor
    hf.register()
    before = component.calls
    config = __import__("mine_config").Packed
    config.impl = "mine_component:Other"
    __import__("mine_component").Other = type("Other", (component,), {})
    ts.compressors.register("mine", config)
    try:
        hf.register()
    finally:
        ts.compressors.unregister("mine")
    assert component.calls == before + 1


def test_a_plugin_that_fails_is_named_and_the_others_serve(plugin, caplog):
    broken = plugin("aaa", "raise RuntimeError('of another transformers')")
    other = plugin("bbb", "pass")
    with caplog.at_level(logging.WARNING, "tunesmith"):
        hf.register()
        hf.register()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "tunesmith-aaa/aaa (tunesmith-aaa 1.0)" in said
    assert "RuntimeError: of another transformers" in said
    assert (broken.calls, other.calls) == (1, 1)


def test_a_class_that_is_defined_again_is_announced_too(plugin):
    first = plugin("cell", "pass")
    hf.register()
    again = type(first.__name__, (first,), {"__module__": first.__module__})
    calls = first.calls
    sys.modules[first.__module__].PackedCompressor = again
    hf.register()
    hf.register()
    assert again.calls == calls + 1


def test_a_built_in_that_fails_says_so_at_every_load_until_it_succeeds(monkeypatch):
    class Failing(Int8Compressor):
        calls = 0

        @staticmethod
        def register_with_transformers():
            Failing.calls += 1
            if Failing.calls < 3:
                raise RuntimeError("of another transformers")

    monkeypatch.setattr("tunesmith_plugins.compressors.int8.Int8Compressor", Failing)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="of another transformers"):
            hf.register()
    hf.register()
    hf.register()
    assert Failing.calls == 3


def test_a_module_that_cannot_be_imported_is_tried_again_after_a_refresh_only(fake_distribution, monkeypatch):
    count = "import builtins\nbuiltins.imports_of_lame.append(1)\nraise ImportError('of something else')\n"
    imports = []
    monkeypatch.setattr("builtins.imports_of_lame", imports, raising=False)
    fake_distribution(
        "tunesmith-lame",
        entry_points={"tunesmith.compressors": {"lame": "lame_config:Packed"}},
        modules={"lame_config": CONFIG.replace("NAME", "lame_component"), "lame_component": count},
    )
    for _ in range(3):
        hf.register()
    assert len(imports) == 1
    registry.refresh()
    hf.register()
    assert len(imports) == 2

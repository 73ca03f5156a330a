"""Names, versions and failures of plugins, with distributions that are installed for real in a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import ClassVar

import pytest
from attrs import frozen

import tunesmith as ts
from tunesmith import discovery, registry
from tunesmith.cli.plugins.find import find
from tunesmith.errors import (
    AmbiguousName,
    ConfigError,
    PluginError,
    PluginIncompatible,
    PluginLoadError,
    UnknownName,
)
from tunesmith.kinds.sampler import SamplerConfig

pytestmark = pytest.mark.usefixtures("isolated_registry")

GOOD = """
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
    mass: float = 0.9
"""


def sampler(name: str, target: str) -> dict[str, dict[str, str]]:
    return {"tunesmith.samplers": {name: target}}


@pytest.fixture
def quadratic(fake_distribution):
    return fake_distribution(
        "tunesmith-quadratic",
        entry_points=sampler("quadratic", "quadratic_plugin:Quadratic"),
        modules={"quadratic_plugin": GOOD},
    )


def test_a_third_party_sampler_is_found_by_short_name_and_by_id(quadratic):
    assert "tunesmith-quadratic/quadratic" in [entry.id for entry in ts.samplers.entries()]
    assert "quadratic_plugin" not in sys.modules, "looking at what there is imported a plugin"
    cls = ts.samplers.get("quadratic")
    assert cls.__name__ == "Quadratic"
    assert ts.samplers.get("tunesmith-quadratic/quadratic") is cls
    assert ts.samplers.get("Tunesmith_Quadratic/quadratic") is cls, (
        "distribution names are compared in their normal form"
    )
    assert registry.name_of(cls) == "tunesmith-quadratic/quadratic"
    assert registry.version_of("tunesmith-quadratic/quadratic") == "1.0"


def test_a_class_is_found_by_identity_where_the_entry_point_names_a_package_that_re_exports_it(fake_distribution):
    fake_distribution(
        "tunesmith-quadratic",
        entry_points=sampler("quadratic", "quadratic_package:Quadratic"),
        modules={
            "quadratic_package.__init__": "from quadratic_package.config import Quadratic",
            "quadratic_package.config": GOOD,
        },
    )
    assert registry.name_of(ts.samplers.get("quadratic")) == "tunesmith-quadratic/quadratic"


def test_removing_a_plugin_gives_an_error_that_names_it(quadratic):
    ts.samplers.get("quadratic")
    (quadratic / "tunesmith_quadratic-1.0.dist-info" / "METADATA").unlink()
    (quadratic / "tunesmith_quadratic-1.0.dist-info" / "entry_points.txt").unlink()
    (quadratic / "tunesmith_quadratic-1.0.dist-info").rmdir()
    registry.refresh()
    with pytest.raises(UnknownName, match=r"'tunesmith-quadratic' is installed.*pip install tunesmith-quadratic"):
        ts.samplers.get("tunesmith-quadratic/quadratic")


def test_a_plugin_whose_code_was_deleted_says_so_and_how_to_remove_it(quadratic):
    (quadratic / "quadratic_plugin.py").unlink()
    registry.refresh()
    with pytest.raises(PluginLoadError, match="not there") as caught:
        ts.samplers.get("quadratic")
    assert "pip uninstall tunesmith-quadratic" in str(caught.value)


def test_an_unknown_name_gets_near_names_and_what_is_installed(quadratic):
    with pytest.raises(UnknownName, match="Did you mean quadratic") as caught:
        ts.samplers.get("quadrtic")
    assert "top_p" in str(caught.value), "what is installed is not listed"


def test_a_name_of_another_kind_is_told_apart():
    with pytest.raises(UnknownName, match="'lora' is of the kind adapter, not sampler"):
        ts.samplers.get("lora")


def test_a_third_party_never_shadows_a_built_in(fake_distribution):
    fake_distribution(
        "aaa-shadow", entry_points=sampler("top_p", "shadow_plugin:Quadratic"), modules={"shadow_plugin": GOOD}
    )
    assert ts.samplers.get("top_p").__module__.startswith("tunesmith_plugins.")
    assert ts.samplers.get("aaa-shadow/top_p").__module__ == "shadow_plugin"
    assert registry.name_of(ts.samplers.get("aaa-shadow/top_p")) == "aaa-shadow/top_p"


def test_two_plugins_with_one_name_need_their_full_ids(fake_distribution):
    for dist in ("zzz-quadratic", "aaa-quadratic"):
        module = dist.replace("-", "_")
        fake_distribution(
            dist, version="2.1", entry_points=sampler("quadratic", f"{module}:Quadratic"), modules={module: GOOD}
        )
    with pytest.raises(AmbiguousName) as caught:
        ts.samplers.get("quadratic")
    text = str(caught.value)
    assert text.index("aaa-quadratic/quadratic (aaa-quadratic 2.1)") < text.index("zzz-quadratic/quadratic"), (
        "not sorted"
    )
    assert ts.samplers.get("zzz-quadratic/quadratic").__module__ == "zzz_quadratic"


def test_a_broken_plugin_is_silent_until_it_is_used(fake_distribution, recwarn, capfd):
    fake_distribution(
        "tunesmith-broken",
        version="0.3",
        entry_points=sampler("broken", "broken_plugin:Broken"),
        modules={"broken_plugin": "raise RuntimeError('no luck today')"},
    )
    assert "tunesmith-broken/broken" in [entry.id for entry in ts.samplers.entries()]
    ts.samplers.get("top_p")
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")
    for _ in range(2):
        with pytest.raises(PluginLoadError) as caught:
            ts.samplers.get("broken")
        for part in (
            "tunesmith-broken/broken",
            "tunesmith-broken 0.3",
            "broken_plugin:Broken",
            "RuntimeError: no luck today",
            "tunesmith plugins check",
        ):
            assert part in str(caught.value)
    assert [entry.id for entry in ts.samplers.problems()] == ["tunesmith-broken/broken"]


@pytest.mark.parametrize(
    "source",
    ["def (", "import quadratic_missing_thing", "x = 1/0", "from attrs import nothing_such", "raise SystemExit(2)"],
)
def test_whatever_a_module_raises_becomes_a_load_error(fake_distribution, source):
    fake_distribution("tunesmith-bad", entry_points=sampler("bad", "bad_plugin:Bad"), modules={"bad_plugin": source})
    with pytest.raises(PluginLoadError, match="tunesmith-bad/bad"):
        ts.samplers.get("bad")


def test_a_missing_extra_is_named(fake_distribution):
    fake_distribution(
        "tunesmith-fancy",
        entry_points=sampler("fancy", "fancy_plugin:Fancy"),
        modules={"fancy_plugin": GOOD.replace("from attrs", "import fancylib_not_installed.core\nfrom attrs")},
        extras={"gpu": ["other>=1"], "lib": ["fancylib-not-installed>=2"]},
    )
    with pytest.raises(PluginLoadError, match=r"pip install 'tunesmith-fancy\[lib\]'"):
        ts.samplers.get("fancy")


def test_a_missing_extra_of_the_implementation_is_named_too(fake_distribution):
    fake_distribution(
        "tunesmith-fancy",
        entry_points=sampler("fancy", "fancy_plugin:Quadratic"),
        modules={
            "fancy_plugin": GOOD.replace("quadratic_impl:QuadraticLink", "fancy_plugin_impl:Link"),
            "fancy_plugin_impl": "import fancylib_not_installed",
        },
        extras={"lib": ["fancylib-not-installed>=2"]},
    )
    config = ts.samplers.create("fancy")
    with pytest.raises(PluginLoadError, match=r"pip install 'tunesmith-fancy\[lib\]'"):
        config.build()


def test_a_plugin_for_another_tunesmith_is_known_without_importing_it(fake_distribution):
    fake_distribution(
        "tunesmith-future",
        entry_points=sampler("future", "future_plugin:Quadratic"),
        modules={"future_plugin": GOOD},
        requires=["attrs", "tunesmith>=99"],
    )
    (entry,) = ts.samplers.problems()
    assert entry.id == "tunesmith-future/future"
    with pytest.raises(
        PluginIncompatible, match=r"needs tunesmith>=99.*this is tunesmith 0\.1\.0.*pip install --upgrade"
    ):
        ts.samplers.get("future")
    assert "future_plugin" not in sys.modules


def test_a_requirement_that_holds_or_belongs_to_an_extra_is_no_problem(fake_distribution):
    fake_distribution(
        "tunesmith-fine",
        entry_points=sampler("fine", "fine_plugin:Quadratic"),
        modules={"fine_plugin": GOOD},
        requires=["tunesmith>=0.1,<1", "tunesmith>=99; python_version < '3'"],
        extras={"next": ["tunesmith>=99"]},
    )
    assert ts.samplers.get("fine").__name__ == "Quadratic"


@pytest.mark.parametrize(("api", "accepted"), [(0, True), (1, True), (2, False), (-1, False), ("1", False)])
def test_the_plugin_interface_accepts_its_version_and_the_one_before(fake_distribution, api, accepted):
    fake_distribution(
        "tunesmith-api",
        entry_points=sampler("api", "api_plugin:Quadratic"),
        modules={"api_plugin": GOOD.replace("    mass:", f"    api: ClassVar[int] = {api!r}\n    mass:")},
    )
    if accepted:
        assert ts.samplers.get("api").api == api
    else:
        with pytest.raises(PluginIncompatible, match="tunesmith-api/api.*version.*accepts 0 and 1.*pip install"):
            ts.samplers.get("api")


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("class Quadratic: pass", "the class Quadratic"),
        ("Quadratic = 3", "an object of type int"),
        (GOOD.replace("sampler", "metric").replace("Sampler", "Metric"), "the class Quadratic"),
    ],
)
def test_an_entry_point_that_names_no_config_of_the_kind_is_a_load_error(fake_distribution, source, what):
    fake_distribution(
        "tunesmith-odd", entry_points=sampler("odd", "odd_plugin:Quadratic"), modules={"odd_plugin": source}
    )
    with pytest.raises(PluginLoadError, match=f"{what}, not a subclass of tunesmith.kinds.sampler.SamplerConfig"):
        ts.samplers.get("odd")


def test_disabled_distributions_are_out_and_the_message_says_why(quadratic, monkeypatch):
    monkeypatch.setenv("TUNESMITH_DISABLE_PLUGINS", "something-else, Tunesmith_Quadratic")
    assert "tunesmith-quadratic/quadratic" not in [entry.id for entry in ts.samplers.entries()]
    for use in ("tunesmith-quadratic/quadratic", "quadratic"):
        with pytest.raises(UnknownName, match="TUNESMITH_DISABLE_PLUGINS disables tunesmith-quadratic"):
            ts.samplers.get(use)


def test_tunesmith_itself_cannot_be_disabled(monkeypatch):
    monkeypatch.setenv("TUNESMITH_DISABLE_PLUGINS", "tunesmith")
    with pytest.raises(PluginError, match="only other distributions"):
        ts.samplers.entries()


def test_strict_mode_makes_any_broken_plugin_an_error(fake_distribution, quadratic, monkeypatch):
    fake_distribution(
        "tunesmith-broken",
        entry_points=sampler("broken", "broken_plugin:Broken"),
        modules={"broken_plugin": "raise RuntimeError('no luck today')"},
    )
    monkeypatch.setenv("TUNESMITH_STRICT", "1")
    with pytest.raises(PluginError, match="TUNESMITH_STRICT is set") as caught:
        ts.samplers.get("quadratic")
    assert "no luck today" in str(caught.value)
    monkeypatch.setenv("TUNESMITH_STRICT", "0")
    assert ts.samplers.get("quadratic").__name__ == "Quadratic"


def test_an_unreadable_entry_points_file_hides_nobody_else(fake_distribution, quadratic):
    folder = fake_distribution("tunesmith-garbled", entry_points=sampler("x", "y:Z"))
    (folder / "tunesmith_garbled-1.0.dist-info" / "entry_points.txt").write_text(
        "[tunesmith.samplers]\nno equals sign\n"
    )
    registry.refresh()
    assert ts.samplers.get("quadratic").__name__ == "Quadratic"
    assert [entry.dist for entry in discovery.discover().of_kind("") if entry.problem] == ["tunesmith-garbled"]


@pytest.mark.parametrize("lines", [None, "", "Name: tunesmith-nameless\n", "Version: 1.0\n"])
def test_a_distribution_without_metadata_hides_nobody_else(fake_distribution, quadratic, recwarn, lines):
    folder = fake_distribution("tunesmith-nameless", entry_points=sampler("x", "y:Z"))
    about = folder / "tunesmith_nameless-1.0.dist-info" / "METADATA"
    about.unlink() if lines is None else about.write_text(f"Metadata-Version: 2.1\n{lines}")
    registry.refresh()
    assert ts.samplers.get("quadratic").__name__ == "Quadratic"
    (entry,) = discovery.discover().of_kind("")
    assert str(folder) in str(entry.problem)
    assert not [w for w in recwarn if issubclass(w.category, DeprecationWarning)], "a later Python would raise"


def test_a_distribution_whose_entry_points_are_no_text_hides_nobody_else(fake_distribution, quadratic):
    folder = fake_distribution("tunesmith-bytes", entry_points=sampler("x", "y:Z"))
    (folder / "tunesmith_bytes-1.0.dist-info" / "entry_points.txt").write_bytes(b"[tunesmith.samplers]\n\xff = a:B\n")
    registry.refresh()
    assert ts.samplers.get("quadratic").__name__ == "Quadratic"


def test_modules_that_ask_registries_while_they_are_imported_do_not_block_each_other(fake_distribution):
    """Two threads, each importing a plugin that asks the other's registry on the way."""
    slow = "import time\ntime.sleep(0.05)\nimport tunesmith as ts\nts.{}.get('{}')\n"
    metric = GOOD.replace("sampler", "metric").replace("Sampler", "Metric")
    fake_distribution(
        "tunesmith-crossed",
        entry_points={
            "tunesmith.samplers": {"one": "one_plugin:Quadratic"},
            "tunesmith.metrics": {"two": "two_plugin:Quadratic"},
        },
        modules={
            "one_plugin": slow.format("metrics", "bleu") + GOOD,
            "two_plugin": slow.format("samplers", "top_k") + metric,
        },
    )
    found = []
    threads = [
        threading.Thread(target=lambda r=r, n=n: found.append(r.get(n)), daemon=True)
        for r, n in ((ts.samplers, "one"), (ts.metrics, "two"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(found) == 2, "the threads block each other"


def test_a_misspelt_group_and_an_odd_name_are_reported(fake_distribution):
    fake_distribution(
        "tunesmith-misspelt",
        entry_points={"tunesmith.sampler": {"a": "m:A"}, "tunesmith.samplers": {"a b": "m:A"}},
        modules={"m": GOOD},
    )
    (unread,) = discovery.discover().of_kind("")
    assert "Did its author mean tunesmith.samplers?" in str(unread.problem)
    (odd,) = ts.samplers.problems()
    assert "'a b'" in str(odd.problem)


@pytest.mark.parametrize(
    ("entry_points", "message"),
    [
        ({}, "quadratic 1.0 is installed and offers no component. Name the config class"),
        ({"console_scripts": {"q": "q:main"}}, r'entry-points."tunesmith.samplers"\], and install it again'),
        (
            {"tunesmith.sampler": {"quadratic": "q:Q"}},
            "'tunesmith.sampler' is none of tunesmith's. Did its author mean",
        ),
    ],
)
def test_a_distribution_that_is_there_and_does_not_offer_the_name_says_why(entry_points, message, fake_distribution):
    fake_distribution("Quadratic", version="1.0", entry_points=entry_points)
    with pytest.raises(UnknownName, match=message):
        ts.samplers.get("quadratic/quadratic")
    with pytest.raises(UnknownName, match=message.replace("tunesmith.samplers", "tunesmith.<kind>s")):
        find("quadratic/quadratic", None)


def test_of_two_copies_of_a_distribution_the_first_on_the_path_counts(fake_distribution):
    for version, name in (("1.0", "Tunesmith_Quadratic"), ("2.0", "tunesmith-quadratic")):
        fake_distribution(  # what is made later stands earlier on the path
            name,
            version=version,
            entry_points=sampler("quadratic", "quadratic_plugin:Quadratic"),
            modules={"quadratic_plugin": GOOD},
        )
    assert [e.version for e in ts.samplers.entries() if e.name == "quadratic"] == ["2.0"]


@frozen(kw_only=True)
class Own(SamplerConfig):
    """A sampler that is registered in the process.

    Attributes:
        share: A number.
    """

    impl: ClassVar[str] = "nowhere:Nothing"
    share: float = 0.5


@frozen(kw_only=True)
class Other(Own):
    """Another."""


def test_a_class_registered_in_the_process_is_local():
    ts.samplers.register("own", Own)
    ts.samplers.register("own", Own)
    assert ts.samplers.get("own") is Own
    assert ts.samplers.get("local/own") is Own
    assert registry.name_of(Own) == "local/own"
    with pytest.raises(PluginError, match="already registered.*replace=True"):
        ts.samplers.register("own", Other)
    ts.samplers.register("own", Other, replace=True)
    assert ts.samplers.get("own") is Other
    registry.refresh()
    assert ts.samplers.get("own") is Other, "refresh() dropped what the process registered"
    ts.samplers.unregister("own")
    with pytest.raises(UnknownName, match=r"registered as 'local/own'.*register"):
        ts.samplers.get("local/own")


def test_a_class_that_is_defined_again_takes_its_own_place():
    cell = "@frozen(kw_only=True)\nclass Cell(SamplerConfig):\n    size: int = {}\n"
    for size in (1, 2):
        names = {"frozen": frozen, "SamplerConfig": SamplerConfig, "__name__": "__main__"}
        exec(cell.format(size), names)  # as a notebook runs a cell
        ts.samplers.register("cell", names["Cell"])
        assert ts.samplers.create("cell").size == size


def test_classes_that_a_function_makes_do_not_replace_each_other_unasked():
    def made(size):
        @frozen(kw_only=True)
        class Made(SamplerConfig):
            default: ClassVar[int] = size

        return Made

    one, two = made(1), made(2)
    ts.samplers.register("made", one)
    ts.samplers.register("made", one)
    with pytest.raises(PluginError, match="already registered.*Made.*replace=True"):
        ts.samplers.register("made", two)
    assert ts.samplers.get("made") is one
    ts.samplers.register("made", two, replace=True)
    assert ts.samplers.get("made") is two


def test_a_local_class_cannot_shadow_a_built_in():
    ts.samplers.register("top_p", Own)
    assert ts.samplers.get("top_p") is not Own
    assert ts.samplers.get("local/top_p") is Own


@pytest.mark.parametrize("name", ["", "a/b", "a b", "a(b)", "-a", 3])
def test_odd_names_cannot_be_registered(name):
    with pytest.raises(PluginError, match="cannot be the name of a sampler"):
        ts.samplers.register(name, Own)


def test_only_configs_of_the_kind_can_be_registered():
    with pytest.raises(PluginLoadError, match="not a subclass"):
        ts.adapters.register("own", Own)


def test_a_class_that_is_not_registered_cannot_be_named():
    with pytest.raises(UnknownName, match=r"entry-point group 'tunesmith.samplers'.*register"):
        registry.name_of(Own)


def test_create_checks_options_as_files_are_checked():
    assert ts.samplers.create("top_p", p=0.5).p == 0.5
    with pytest.raises(ConfigError) as caught:
        ts.samplers.create("top_p", q=0.5, min_keep=0)
    assert len(caught.value.problems) == 2


def test_a_kind_is_found_by_singular_and_plural_and_near_names_are_suggested():
    assert registry.registry_for("reward_model") is registry.registry_for("reward_models") is ts.reward_models
    with pytest.raises(ConfigError, match="Did you mean 'sampler'"):
        registry.registry_for("samler")


def test_entries_are_sorted_and_do_not_depend_on_the_hash_seed(fake_distribution):
    for dist in ("bbb", "aaa"):
        fake_distribution(dist, entry_points=sampler("zeta", "m:A"))
    names = [(e.name, e.dist) for e in ts.samplers.entries()]
    assert names == sorted(names)
    found = [(e.kind, e.name, e.dist) for e in discovery.discover().entries]
    assert found == sorted(found)
    code = "import tunesmith as ts; print([e.id for e in ts.samplers.entries()])"
    path = os.pathsep.join(p for p in sys.path if p)
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1


def test_many_threads_load_one_class(fake_distribution):
    fake_distribution(
        "tunesmith-slow",
        entry_points=sampler("slow", "slow_plugin:Quadratic"),
        modules={"slow_plugin": "import time\ntime.sleep(0.05)\n" + GOOD},
    )
    found = []
    threads = [threading.Thread(target=lambda: found.append(ts.samplers.get("slow"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1

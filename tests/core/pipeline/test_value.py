"""A pipeline is a value: equal, saved, loaded, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from pipeline_toys import Chosen, Fork, Number, Rewarded, Source

import tunesmith as ts
from tunesmith.errors import ConfigError


def example() -> ts.Pipeline:
    return ts.Pipeline(
        base="some/model",
        data=ts.Data(source="some/data", prompt="{text}"),
        seed=7,
        dtype="bfloat16",
        stages=(
            Number(name="a", value=3),
            Source(name="r"),
            Rewarded(name="e", reward=ts.output("r", "reward_model"), several=(Chosen(weight=0.5, inner=Chosen()),)),
            Fork(name="f", start=ts.output("a"), branches={"x": Number(value=2), "y": Number(start="base")}),
            Number(name="last", start=ts.output("f", "x")),
        ),
    )


@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_a_saved_pipeline_loads_equal(tmp_path, suffix):
    path = example().save(tmp_path / f"pipeline.{suffix}")
    assert ts.Pipeline.load(path) == example()
    assert ts.Pipeline.load(path).save(tmp_path / f"again.{suffix}").read_text() == path.read_text()


def test_pipelines_differ_when_an_option_does():
    assert example() == example()
    assert ts.Pipeline(base="b", stages=(Number(name="a"),)) != ts.Pipeline(
        base="b", stages=(Number(name="a", value=2),)
    )


def test_a_file_tells_all_its_problems_at_once(tmp_path):
    path = tmp_path / "p.json"
    data = example().dump()
    data["stages"][0]["config"]["valeu"] = 1
    data["stages"][1]["use"] = "local/sauce"
    data["seed"] = "7"
    data["dtpye"] = "float32"
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError) as caught:
        ts.Pipeline.load(path)
    text = str(caught.value)
    assert str(path) in text
    assert "valeu" in text
    assert "local/sauce" in text
    assert "seed" in text
    assert "a pipeline has no field 'dtpye'. Did you mean 'dtype'?" in text


def test_a_file_that_holds_no_mapping_is_no_pipeline(tmp_path):
    path = tmp_path / "p.json"
    path.write_text("[]")
    with pytest.raises(ConfigError, match=r"the fields of a pipeline must be a mapping, not list \(\[\]\)"):
        ts.Pipeline.load(path)


def test_a_file_tells_all_problems_of_its_graph_at_once(tmp_path):
    path = tmp_path / "p.json"
    data = example().dump()
    data["stages"][4]["config"]["start"] = {"stage": "g"}
    data["stages"][2]["config"]["reward"] = {"stage": "r", "artifact": "model"}
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError) as caught:
        ts.Pipeline.load(path)
    assert len(caught.value.problems) == 2
    assert str(path) in str(caught.value)


def test_making_loading_and_planning_import_neither_torch_nor_numpy_nor_transformers(tmp_path):
    example().save(tmp_path / "p.json")
    program = (
        "import sys, pipeline_toys; pipeline_toys.register(); import tunesmith as ts\n"
        f"p = ts.Pipeline.load({str(tmp_path / 'p.json')!r}); p == p; p.dump()\n"
        "ts.Pipeline(base='b', stages=p.stages[:1]).plan('nowhere', offline=True)\n"
        "bad = {'torch', 'numpy', 'transformers'} & set(sys.modules); assert not bad, bad"
    )
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr

"""README's code is real: the pipeline builds and saves, the plugin samples, and both are as short as promised."""

import re
import tomllib
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def block(word: str) -> str:
    found = [
        text for text in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S) if word in text
    ]
    assert len(found) == 1, word
    return found[0]


def test_the_pipeline_builds_and_comes_back_from_a_file(tmp_path):
    import tunesmith as ts

    code = block("ts.Pipeline(")
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    made, _, run = code.partition("pipeline.run(")
    assert run
    names: dict = {}
    exec(made, names)
    pipeline = names["pipeline"]
    assert [node.name for node in pipeline.nodes] == ["zero-shot", "tuned", "polite", "small", "final"]
    assert ts.Pipeline.load(pipeline.save(tmp_path / "p.toml")) == pipeline


def test_every_extra_is_named():
    project = tomllib.loads((README.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = README.read_text(encoding="utf-8")
    assert [extra for extra in project["optional-dependencies"] if f"`{extra}`" not in text] == []


def test_the_plugin_drops_what_it_says():
    torch = pytest.importorskip("torch")
    from typing import ClassVar

    from attrs import field, frozen
    from attrs import validators as v

    from tunesmith.kinds.sampler import Link, Rows, SamplerConfig

    code = block("FloorLink(Link)")
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    names = {
        "frozen": frozen,
        "field": field,
        "v": v,
        "ClassVar": ClassVar,
        "SamplerConfig": SamplerConfig,
        "Link": Link,
    }
    exec(code, names)
    config = names["Floor"](epsilon=0.1)
    one = torch.zeros(1, dtype=torch.int64)
    rows = Rows(seed=one, stream=one, position=one, history=one[:, None], history_lengths=one, prompt_lengths=one)
    logits = torch.tensor([[0.7, 0.25, 0.04, 0.01]]).log()
    kept = names["FloorLink"](config).apply(logits, rows).isfinite()
    assert kept.tolist() == [[True, True, False, False]]

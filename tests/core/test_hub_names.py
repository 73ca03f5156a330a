"""Hub names without a hub: a cache as `huggingface_hub` and `datasets` leave it, in a process that may ask nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.testing.models import WORDS, tiny_lm

COMMITS = ("1" * 40, "2" * 40)


def in_cache(home: Path, commit: str, *, seed: int = 0) -> None:
    """Put a model into the hub's cache: blobs by content, a snapshot of links to them, and the commit that main is."""
    import hashlib

    repo = home / "hub" / "models--org--tiny"
    snapshot = repo / "snapshots" / commit
    for part in (repo / "blobs", repo / "refs", snapshot):
        part.mkdir(parents=True, exist_ok=True)
    made = home / f"made-{commit[:4]}"
    tiny_lm("decoder", seed=seed).save(made)
    for file in made.iterdir():
        if file.name == "manifest.json" or not file.is_file():
            continue
        blob = repo / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    (repo / "refs" / "main").write_text(commit)


def data_in_cache(home: Path) -> None:
    """Put a data set of two splits into the cache of `datasets`, under its hub name."""
    from datasets.packaged_modules.json.json import Json

    files = {}
    for split, count in (("train", 3), ("test", 2)):
        rows = [{"x": WORDS[i], "y": WORDS[i + 1]} for i in range(count)]
        (home / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[split] = [str(home / f"{split}.jsonl")]
    builder = Json(
        cache_dir=str(home / "datasets"), dataset_name="pairs", config_name="default", hash="a" * 40, data_files=files
    )
    builder.download_and_prepare()
    config = Path(builder.cache_dir).parents[1]
    place = home / "datasets" / "org___pairs"
    place.mkdir()
    config.rename(place / "default")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hf")
    in_cache(folder, COMMITS[0])
    data_in_cache(folder)
    return folder


HEAD = "import json\nimport tunesmith as ts\nfrom tunesmith.errors import TunesmithError\n"

STAGE = """
from tunesmith_plugins.stages import Generate, Generation
data = ts.Data(source="org/pairs", prompt="{x}", target="{y}")
stage = Generate(name="g", generation=Generation(max_new_tokens=2))
pipeline = ts.Pipeline(base="org/tiny", data=data, stages=(stage,))
"""

READ = "from tunesmith.data import load_examples\nfrom tunesmith.runtime import Runtime\n"

SAYS = "try:\n    {}\nexcept TunesmithError as error:\n    answer = str(error)"

SCRIPTS = {
    "model": "lm = ts.load('org/tiny')\nanswer = [lm.family, lm.fingerprint, lm.origin]",
    "pipeline": STAGE
    + "run = pipeline.run('run', progress=False)\n"
    + "answer = [run.stages['g'].record['identity']['start'], run.summary['g']['prompts']]",
    "data": READ
    + "data = ts.Data(source='org/pairs', prompt='{x}', target='{y}')\n"
    + "answer = [[e.prompt for e in load_examples(data, s, Runtime())] for s in ('train', 'test')]",
    "org/unknown": SAYS.format("ts.load('org/unknown')"),
    "no name at all": SAYS.format("ts.load('no name at all')"),
    "unknown data": READ + SAYS.format("load_examples(ts.Data(source='org/unknown', prompt='{x}'), 'test', Runtime())"),
}
"""Name to code that sets `answer`."""

ALL = f"""
import traceback
found = {{}}
for name, code in {SCRIPTS!r}.items():
    names = {{"ts": ts, "TunesmithError": TunesmithError, "answer": None}}
    try:
        exec(code, names)
        found[name] = names["answer"]
    except Exception:
        found[name] = {{"failed": traceback.format_exc()}}
print(json.dumps(found))
"""


def offline(home: Path, code: str):
    """Run code in a process of its own that may ask no hub; return the JSON that it prints last."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_"))}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code], capture_output=True, text=True, env=environment, cwd=home, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def answers(home):
    """What every script answers, in one process: most of the time is the import of transformers."""
    return offline(home, ALL)


def test_a_cached_model_loads_by_its_hub_name(answers) -> None:
    assert answers["model"] == ["decoder", tiny_lm("decoder", seed=0).fingerprint, "org/tiny"]


def test_a_pipeline_of_hub_names_runs_from_the_cache_and_its_key_has_the_commit(answers) -> None:
    assert answers["pipeline"] == [{"name": "org/tiny", "commit": COMMITS[0]}, 2]


def test_another_commit_of_the_name_is_another_result(home, tmp_path) -> None:
    import shutil

    copy = tmp_path / "home"
    shutil.copytree(home, copy, symlinks=True)
    plan = f"print(json.dumps([[s.key, s.status, s.why] for s in pipeline.plan({str(tmp_path / 'run')!r}).steps]))"
    (before,) = offline(copy, STAGE + f"pipeline.run({str(tmp_path / 'run')!r}, progress=False)\n" + plan)
    in_cache(copy, COMMITS[1], seed=1)
    (after,) = offline(copy, STAGE + plan)
    assert before[1] == "done"
    assert after[0] != before[0]
    assert after[1:] == ["run", "changed since its last result: the content of start"]


def test_a_cached_data_set_is_read_by_its_hub_name(answers) -> None:
    assert answers["data"] == [list(WORDS[:3]), list(WORDS[:2])]


@pytest.mark.parametrize("name", ["org/unknown", "no name at all"])
def test_an_unknown_name_gives_a_clear_message_at_once(answers, name) -> None:
    said = answers[name]
    assert isinstance(said, str), f"no error was raised: {said}"
    assert name in said
    assert "no hub is asked" in said
    assert "cache does not have it" in said


def test_an_unknown_data_set_says_that_no_network_is_used(answers) -> None:
    said = answers["unknown data"]
    assert "hub data set 'org/unknown': no network is used (offline) and it is not in the cache" in said

"""What makes a stored result reusable, and what does not."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest
from attrs import evolve
from pipeline_toys import Chosen, Coded, Number, Rewarded, Source

import tunesmith as ts
from tunesmith.pipeline.graph import Ref
from tunesmith.pipeline.identity import Digests, differences, key_of, stage_identity


def identity(pipeline, *, device="cpu", artifact="0" * 64):
    node = pipeline.nodes[-1]
    digests = dict.fromkeys([Ref("r", "reward_model", "reward_model"), Ref("a", "model", "model")], artifact)
    return stage_identity(node, pipeline, device, digests, Digests(offline=True))


def key(pipeline, **options):
    return key_of(pipeline.nodes[-1].name, identity(pipeline, **options))


@pytest.fixture
def pipeline(tmp_path):
    """Return a pipeline whose last stage has a file, a component, an input, data and a local base."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "weights").write_text("w")
    (tmp_path / "words.txt").write_text("one")
    (tmp_path / "data.jsonl").write_text("{}")
    return ts.Pipeline(
        base=str(tmp_path / "base"),
        data=ts.Data(source=str(tmp_path / "data.jsonl")),
        stages=(
            Source(name="r"),
            Rewarded(
                name="e",
                reward=ts.output("r", "reward_model"),
                several=(Chosen(file=str(tmp_path / "words.txt"), weight=0.5),),
            ),
        ),
    )


def last(pipeline, **changes):
    return evolve(pipeline, stages=(pipeline.stages[0], evolve(pipeline.stages[1], **changes)))


def test_the_same_pipeline_has_the_same_key_and_in_another_process_too(pipeline, tmp_path):
    pipeline.save(tmp_path / "p.json")
    program = (
        "import pipeline_toys; pipeline_toys.register(); import tunesmith as ts, test_identity as t\n"
        f"print(t.key(ts.Pipeline.load({str(tmp_path / 'p.json')!r})))"
    )
    keys = {key(pipeline)}
    for hash_seed in "12":
        environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__), "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        keys.add(done.stdout.strip())
    assert len(keys) == 1


def test_a_default_written_out_changes_nothing(pipeline):
    assert key(last(pipeline, several=(evolve(pipeline.stages[1].several[0], inner=None),))) == key(pipeline)


def test_options_seeds_types_and_names_change_the_key(pipeline):
    changed = [
        last(pipeline, several=(evolve(pipeline.stages[1].several[0], weight=0.6),)),
        last(pipeline, several=()),
        last(pipeline, name="f"),
        evolve(pipeline, seed=1),
        evolve(pipeline, dtype="bfloat16"),
        evolve(pipeline, data=evolve(pipeline.data, prompt="{x}")),
        evolve(pipeline, data=None),
    ]
    keys = [key(pipeline), *map(key, changed)]
    assert len(set(keys)) == len(keys)


def test_the_type_of_device_counts_and_its_number_does_not(pipeline):
    assert key(pipeline, device="cuda") == key(pipeline, device="cuda:1") != key(pipeline, device="cpu")


def test_the_content_of_inputs_counts(pipeline):
    assert key(pipeline, artifact="1" * 64) != key(pipeline)


@pytest.mark.parametrize("name", ["base/weights", "words.txt", "data.jsonl"])
def test_the_content_of_files_counts(pipeline, tmp_path, name):
    before = key(pipeline)
    (tmp_path / name).write_text("changed")
    assert key(pipeline) != before


def test_where_a_file_lies_does_not_count(pipeline, tmp_path):
    before = key(pipeline)
    (tmp_path / "moved").mkdir()
    for name in ("base", "words.txt", "data.jsonl"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    moved = evolve(
        last(pipeline, several=(Chosen(file=str(tmp_path / "moved" / "words.txt"), weight=0.5),)),
        base=str(tmp_path / "moved" / "base"),
        data=ts.Data(source=str(tmp_path / "moved" / "data.jsonl")),
    )
    assert key(moved) == before


def test_a_plain_word_is_not_taken_for_the_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline = ts.Pipeline(stages=(Source(name="s"),), base="m", data=ts.Data(source="x", subset="train"))
    rewarded = evolve(pipeline, stages=(Rewarded(name="e"),))
    before = key(rewarded)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "file").write_text("x")
    assert key(rewarded) == before


@pytest.mark.parametrize(
    "text",
    ["Answer like a friendly clerk. " * 20, "./" + "and so on " * 40, "~20 words and/or fewer", "~no-such-user/x"],
    ids=["a sentence longer than a name", "a long part of a path", "a tilde that is none", "nobody's home"],
)
def test_a_text_that_no_file_can_be_called_is_a_text(text):
    data = ts.Data(source="x", instruction=text, prompt="{a}")
    pipeline = ts.Pipeline(stages=(Rewarded(name="e"),), base="m", data=data)
    assert identity(pipeline)["data"]["instruction"] == text


def test_where_results_go_to_is_no_input(tmp_path):
    from tunesmith_plugins.stages import Export

    pipeline = ts.Pipeline(base="b", stages=(Export(name="out", folder=str(tmp_path / "out")),))
    before = key(pipeline)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights").write_text("x")
    assert key(pipeline) == before


def test_a_raised_revision_makes_results_anew(pipeline, monkeypatch):
    before = key(pipeline)
    monkeypatch.setattr(Chosen, "revision", 2)
    inner = key(pipeline)
    monkeypatch.setattr(Rewarded, "revision", 2)
    assert len({before, inner, key(pipeline)}) == 3


def test_the_text_of_code_counts(tmp_path):
    code = tmp_path / "code.py"
    code.write_text("def f(): ...")
    pipeline = ts.Pipeline(base="b", stages=(Rewarded(name="e", reward=Coded(target=str(code))),))
    before = key(pipeline)
    code.write_text("def f(): return 1")
    assert key(pipeline) != before


def test_the_code_of_a_registered_component_counts_as_it_was_then(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    text = """
from attrs import frozen
from tunesmith.kinds.reward_model import RewardModel, RewardModelConfig

@frozen(kw_only=True)
class Own(RewardModelConfig):
    impl = "own_reward:OwnReward"

class OwnReward(RewardModel):
    def score(self, prompts, completions, columns=None):
        return [BONUS] * len(prompts)

BONUS = 1.0
"""
    rewards = ts.reward_models

    def found(text):
        (tmp_path / "own_reward.py").write_text(text)
        sys.modules.pop("own_reward", None)
        importlib.invalidate_caches()
        own = importlib.import_module("own_reward").Own
        rewards.register("own", own, replace=True)
        return ts.Pipeline(base="b", stages=(Rewarded(name="e", reward=own()),))

    try:
        first = found(text)
        before = identity(first)
        (tmp_path / "own_reward.py").write_text("broken(")
        assert identity(first) == before  # what runs is what was registered
        assert identity(found(text + "print('unrelated')  # said\n")) == before
        after = identity(found(text.replace("1.0", "2.0")))
        assert differences(before, after) == ["the code of reward"]
    finally:
        rewards.unregister("own")


def test_the_standard_components_that_run_code_say_so_and_count_it(tmp_path, monkeypatch):
    from tunesmith.pipeline.identity import runs_code
    from tunesmith_plugins.metrics import HFEvaluate
    from tunesmith_plugins.reward_models import Function
    from tunesmith_plugins.stages import Evaluate

    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rewarding").mkdir()
    for name in ("rewarding/__init__.py", "rewarding/rewarding.py"):
        (tmp_path / name).write_text("def f(prompts, completions): ...\n")
    function = Rewarded(name="e", reward=Function(target="rewarding.rewarding:f"))
    metric = Evaluate(name="e", metrics=(HFEvaluate(module=str(tmp_path / "rewarding")),))
    for stage, use in ((function, "tunesmith/function"), (metric, "tunesmith/hf_evaluate")):
        pipeline = ts.Pipeline(base="b", data=ts.Data(source="d"), stages=(stage,))
        assert runs_code(pipeline.nodes[0]) == [use]
        before = key(pipeline)
        (tmp_path / "rewarding" / "rewarding.py").write_text(f"def f(prompts, completions): return {use!r}\n")
        assert key(pipeline) != before


def test_data_that_a_stage_never_looks_at_does_not_count(pipeline):
    source = evolve(pipeline, stages=(Source(name="r"),))
    assert key(source) == key(evolve(source, data=None))


def test_a_hub_name_counts_by_its_cached_commit(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--some--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("a" * 40)
    pipeline = ts.Pipeline(base="some/model", stages=(Number(name="a"),))
    before = key(pipeline)
    assert identity(pipeline)["start"] == {"name": "some/model", "commit": "a" * 40}
    (refs / "main").write_text("b" * 40)
    assert key(pipeline) != before


def test_differences_are_said_in_words(pipeline, tmp_path):
    before = identity(pipeline)
    (tmp_path / "words.txt").write_text("two")
    changed = last(pipeline, several=(evolve(pipeline.stages[1].several[0], weight=0.6),))
    assert differences(before, identity(changed, artifact="1" * 64)) == [
        "the content of reward",
        "the content of several.0.file",
        "several.0.weight 0.5 → 0.6",
    ]


def test_an_option_beside_defaults_is_the_only_difference(pipeline):
    plain = last(pipeline, several=(Chosen(),))
    heavier = last(pipeline, several=(Chosen(weight=2.0),))
    assert differences(identity(plain), identity(heavier)) == ["several.0.weight (default) → 2.0"]
    assert differences(identity(heavier), identity(plain)) == ["several.0.weight 2.0 → (default)"]

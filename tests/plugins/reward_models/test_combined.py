"""Reward models made of others, penalties, and a scale that is fixed before training."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
from attrs import evolve

from tunesmith import reward
from tunesmith.data.config import Data
from tunesmith.errors import ArtifactError, ConfigError, DataError
from tunesmith.kinds.reward_model import Disagreeing, Fittable, ReferenceFitted, RewardModel
from tunesmith.kinds.stage import Output
from tunesmith.pipeline.walk import with_folders
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.reward_models import (
    Classifier,
    Ensemble,
    Function,
    LengthPenalty,
    Mix,
    Normalized,
    Pairwise,
    RepetitionPenalty,
    Trained,
)
from tunesmith_plugins.rl_algorithms import PPO
from tunesmith_plugins.stages import Align

CODE = Runtime(allow_code=True)
PROMPTS = ["p", "p", "p"]
COMPLETIONS = ["a", "bb bb", "cccc"]


@pytest.fixture
def functions(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "combined_rewards.py").write_text(
        "def length(prompts, completions):\n    return [float(len(c)) for c in completions]\n"
        "def double(prompts, completions):\n    return [2.0 * len(c) for c in completions]\n"
        "def zero(prompts, completions):\n    return [0.0 for _ in completions]\n"
        "def partly(prompts, completions):\n    return [None if ' ' in c else 1.0 for c in completions]\n"
    )
    sys.path.insert(0, str(tmp_path))
    yield "combined_rewards"
    sys.path.remove(str(tmp_path))
    sys.modules.pop("combined_rewards", None)


@pytest.fixture
def members(functions: str) -> dict[str, Any]:
    return {name: Function(target=f"{functions}:{name}") for name in ("length", "double", "zero")}


# --- ensembles


def test_an_ensemble_is_the_mean_the_worst_or_the_mean_less_its_spread(members: dict[str, Any]) -> None:
    rows = [[n, 2 * n, 0] for n in (1, 5, 4)]
    expected = {
        "mean": [fmean(row) for row in rows],
        "min": [0.0, 0.0, 0.0],
        "penalized": [fmean(row) - 0.5 * math.sqrt(fmean((x - fmean(row)) ** 2 for x in row)) for row in rows],
    }
    for combine, scores in expected.items():
        model = reward.ready(Ensemble(models=members, combine=combine, coefficient=0.5), CODE)
        assert model.score(PROMPTS, COMPLETIONS) == pytest.approx(scores), combine


def test_an_ensemble_says_how_far_its_members_are_apart(members: dict[str, Any]) -> None:
    model = reward.ready(Ensemble(models=members), CODE)
    assert isinstance(model, Disagreeing)
    assert model.disagreement(PROMPTS, COMPLETIONS) == pytest.approx([pstdev([n, 2 * n, 0]) for n in (1, 5, 4)])


def test_one_member_without_an_opinion_is_enough_for_none(functions: str, members: dict[str, Any]) -> None:
    model: Any = reward.ready(Ensemble(models={**members, "partly": Function(target=f"{functions}:partly")}), CODE)
    assert [score is None for score in model.score(PROMPTS, COMPLETIONS)] == [False, True, False]
    assert [value is None for value in model.disagreement(PROMPTS, COMPLETIONS)] == [False, True, False]


def test_an_ensemble_of_one_is_none(members: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="models"):
        Ensemble(models={"length": members["length"]})
    with pytest.raises(ValueError, match="coefficient"):
        Ensemble(models=members, coefficient=-1.0)


# --- penalties


def test_the_length_penalty_is_what_lies_outside_the_range() -> None:
    texts = ["", "one", "one two", "one two three", " a\tb\n c  d "]
    assert LengthPenalty().build().score(texts, texts) == [0, -1, -2, -3, -4]
    assert LengthPenalty(fewest=1, most=2).build().score(texts, texts) == [-1, 0, 0, -1, -2]
    assert LengthPenalty(unit="characters", most=4).build().score(texts, texts) == [0, 0, -3, -9, -7]
    with pytest.raises(ConfigError, match="'fewest' .3. must not exceed 'most' .2."):
        LengthPenalty(fewest=3, most=2)


def test_the_repetition_penalty_is_the_share_of_n_grams_that_were_there_before() -> None:
    texts = ["", "a", "a b c", "a a a a", "a b a b a b"]
    unigrams = RepetitionPenalty(n=1).build().score(texts, texts)
    assert unigrams == pytest.approx([0, 0, 0, -3 / 4, -4 / 6])
    bigrams = RepetitionPenalty(n=2).build().score(texts, texts)
    assert bigrams == pytest.approx([0, 0, 0, -2 / 3, -3 / 5])  # ab ba ab ba ab
    assert RepetitionPenalty(n=2, unit="characters").build().score([""], ["aaaa"]) == pytest.approx([-2 / 3])
    with pytest.raises(ValueError, match="n"):
        RepetitionPenalty(n=0)


# --- a fixed scale


def test_reference_samples_have_mean_0_and_variance_1_and_the_scale_stays(functions: str) -> None:
    model = reward.ready(Normalized(reward=Function(target=f"{functions}:length")), CODE)
    assert isinstance(model, ReferenceFitted)
    assert model.needs_reference()
    with pytest.raises(ConfigError, match="not measured yet"):
        model.score(PROMPTS, COMPLETIONS)
    found = model.fit_reference(PROMPTS, COMPLETIONS)[""]
    scores = model.score(PROMPTS, COMPLETIONS)
    assert fmean(scores) == pytest.approx(0, abs=1e-12)
    assert pstdev(scores) == pytest.approx(1)
    assert found["samples"] == 3
    assert found["mean"] == pytest.approx(10 / 3)
    # other completions are on the same scale, whatever they are: nothing runs along
    far = model.score(["p"] * 2, ["x" * 100, "x" * 101])
    assert far[1] - far[0] == pytest.approx(found["gain"])
    assert model.score(PROMPTS, COMPLETIONS) == scores


def test_the_scale_is_kept_in_the_artifact(functions: str, tmp_path: Path) -> None:
    model: Any = reward.ready(Normalized(reward=Function(target=f"{functions}:length")), CODE)
    model.fit_reference(PROMPTS, COMPLETIONS)
    reward.save(model, tmp_path / "rm")
    again = reward.load(tmp_path / "rm", CODE)
    assert again.score(PROMPTS, COMPLETIONS) == model.score(PROMPTS, COMPLETIONS)
    (tmp_path / "rm" / "weights" / "normalized.json").unlink()
    with pytest.raises(ArtifactError, match="gain and bias"):
        reward.load(tmp_path / "rm", CODE)


def test_a_scale_from_written_completions_or_by_hand(functions: str, tmp_path: Path) -> None:
    length = Function(target=f"{functions}:length")
    rows = [{"prompt": f"\u2028{p}", "text": c} for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]  # as stages write them
    (tmp_path / "generations.jsonl").write_text("".join(lines), encoding="utf-8")
    for where in (tmp_path, tmp_path / "generations.jsonl"):
        model: Any = reward.ready(Normalized(reward=length, generations=str(where)), CODE)
        assert not model.needs_reference()
        assert pstdev(model.score(PROMPTS, COMPLETIONS)) == pytest.approx(1)
        before = model.score(PROMPTS, COMPLETIONS)
        model.fit_reference(["p", "p"], ["z" * 50, "z" * 60])  # asked for, but the config says where the scale is from
        assert model.score(PROMPTS, COMPLETIONS) == before
    by_hand = reward.ready(Normalized(reward=length, gain=0.5, bias=-1.0), CODE)
    assert by_hand.score(PROMPTS, COMPLETIONS) == [-0.5, 1.5, 1.0]


def test_a_scale_that_cannot_be_measured_is_refused(functions: str, tmp_path: Path) -> None:
    zero = Normalized(reward=Function(target=f"{functions}:zero"))
    with pytest.raises(DataError, match="all 3 reference completions have the score 0"):
        reward.ready(zero, CODE).fit_reference(PROMPTS, COMPLETIONS)
    with pytest.raises(DataError, match="two are needed"):
        reward.ready(evolve(zero, reward=Function(target=f"{functions}:length")), CODE).fit_reference(["p"], ["a"])
    with pytest.raises(ConfigError, match="belong together"):
        evolve(zero, gain=1.0)
    with pytest.raises(ConfigError, match="'generations' has no use"):
        Normalized(reward=zero.reward, gain=1.0, bias=0.0, generations="x")
    with pytest.raises(DataError, match="no generations"):
        reward.ready(evolve(zero, generations=str(tmp_path / "nothing")), CODE)
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a", "text": "b"}\n{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"broken.jsonl:2: text must be there"):
        reward.ready(evolve(zero, generations=str(tmp_path / "broken.jsonl")), CODE)


def test_a_mix_measures_the_parts_that_need_it(functions: str) -> None:
    length = Function(target=f"{functions}:length")
    mix = Mix(models={"n": Normalized(reward=length), "l": LengthPenalty()}, weights={"l": 10.0})
    model: Any = reward.ready(mix, CODE)
    assert model.needs_reference()
    assert set(model.fit_reference(PROMPTS, COMPLETIONS)) == {"n"}
    assert not model.needs_reference()
    inner = [(n - 10 / 3) / pstdev([1, 5, 4]) for n in (1, 5, 4)]
    assert model.score(PROMPTS, COMPLETIONS) == pytest.approx([inner[0] - 10, inner[1] - 20, inner[2] - 10])


# --- parts that other stages made


def test_trained_models_are_parts_of_others_and_the_artifact_stands_alone(tmp_path: Path) -> None:
    tiny_lm("encoder").save(tmp_path / "bert")
    for seed in (0, 1):
        model = reward.ready(Pairwise(model=str(tmp_path / "bert")), Runtime(seed=seed))
        reward.save(model, tmp_path / f"rm{seed}")
    both = Ensemble(
        models={"0": Trained(reward_model=str(tmp_path / "rm0")), "1": Trained(reward_model=str(tmp_path / "rm1"))},
        combine="mean",
    )
    model = reward.ready(both, Runtime())
    assert not isinstance(model, Fittable)  # TrainReward trains its parts, one by one
    scores = model.score(PROMPTS, COMPLETIONS)
    alone = [reward.load(tmp_path / f"rm{i}", Runtime()).score(PROMPTS, COMPLETIONS) for i in (0, 1)]
    assert alone[0] != alone[1]
    assert scores == pytest.approx([(a + b) / 2 for a, b in zip(*alone, strict=True)])
    reward.save(model, tmp_path / "ensemble")
    for name in ("rm0", "rm1"):
        (tmp_path / name).rename(tmp_path / f"{name}-elsewhere")
    assert reward.load(tmp_path / "ensemble", Runtime()).score(PROMPTS, COMPLETIONS) == pytest.approx(scores)


def test_a_pipeline_puts_folders_in_the_place_of_outputs(tmp_path: Path) -> None:
    stage = Align(
        name="align",
        algorithm=PPO(),
        data=Data(source="x.jsonl", prompt="{text}"),
        reward=Mix(
            models={
                "a": Normalized(
                    reward=Trained(reward_model=Output(stage="judge", artifact="reward_model")),
                    generations=Output(stage="drafts", artifact="generations"),
                )
            }
        ),
    )
    folders = {
        "reward.models.a.reward.reward_model": Path("/judge"),
        "reward.models.a.generations": Path("/drafts"),
    }
    found = with_folders(stage, folders).reward.models["a"]
    assert (found.reward.reward_model, found.generations) == (str(Path("/judge")), str(Path("/drafts")))
    with pytest.raises(ConfigError, match="output judge:reward_model"):
        reward.ready(stage.reward.models["a"], Runtime())


def test_a_damaged_artifact_of_parts_is_named(tmp_path: Path) -> None:
    tiny_lm("encoder", head="classification").save(tmp_path / "model")
    yes = Classifier(model=str(tmp_path / "model"), label="yes")
    model: RewardModel = reward.ready(Ensemble(models={"a": yes, "b": yes}), Runtime())
    reward.save(model, tmp_path / "rm")
    import shutil

    shutil.rmtree(tmp_path / "rm" / "weights" / "1")
    with pytest.raises(ArtifactError, match="2 parts a, b"):
        reward.load(tmp_path / "rm", Runtime())

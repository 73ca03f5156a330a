"""Reward models: what they score, what they refuse, and that artifacts bring them back."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tunesmith import reward
from tunesmith.data.records import Preference
from tunesmith.errors import ArtifactError, CodeNotAllowed, ConfigError, DataError, NumericError, PluginLoadError
from tunesmith.kinds.reward_model import Fittable
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.reward_models import Classifier, Function, Mix, Pairwise
from tunesmith_plugins.reward_models.inputs import filled
from tunesmith_plugins.reward_models.pairwise_fit import pair_losses

PROMPTS = ["the cat", "who ?", "one two three"]
COMPLETIONS = ["good", "a very bad and sad dog", "yes"]


@pytest.fixture
def functions(tmp_path: Path) -> Iterator[str]:
    """A module of reward functions on Python's path."""
    (tmp_path / "my_rewards.py").write_text(
        "def length(prompts, completions):\n    return [len(c) for c in completions]\n"
        "def everything(prompts, completions, **columns):\n    return [float(len(columns)) for _ in completions]\n"
        "def wanted(prompts, completions, target):\n    return [float(c == t) for c, t in zip(completions, target)]\n"
        "def partly(prompts, completions):\n    return [None if 'bad' in c else 2 for c in completions]\n"
        "def broken(prompts, completions):\n    return [0.0, float('nan'), 0.0]\n"
        "def short(prompts, completions):\n    return [1.0]\n"
        "constant = 3\n"
    )
    sys.path.insert(0, str(tmp_path))
    yield "my_rewards"
    sys.path.remove(str(tmp_path))
    sys.modules.pop("my_rewards", None)


def function(module: str, name: str) -> Any:
    return reward.ready(Function(target=f"{module}:{name}"), Runtime(allow_code=True))


# --- functions


def test_a_function_scores_as_it_does_in_trl(functions: str) -> None:
    assert function(functions, "length").score(PROMPTS, COMPLETIONS) == [4, 22, 3]


def test_a_function_gets_the_columns_it_takes(functions: str) -> None:
    columns = {"target": ["good", "x", "yes"], "other": [1, 2, 3]}
    assert function(functions, "wanted").score(PROMPTS, COMPLETIONS, **columns) == [1, 0, 1]
    assert function(functions, "everything").score(PROMPTS, COMPLETIONS, **columns) == [2, 2, 2]
    assert function(functions, "length").score(PROMPTS, COMPLETIONS, **columns) == [4, 22, 3]


def test_no_code_runs_unless_the_caller_allows_it(functions: str) -> None:
    model = Function(target=f"{functions}:length").build()
    with pytest.raises(CodeNotAllowed, match="allow_code"):
        model.setup(Runtime())
    assert functions not in sys.modules


def test_the_digest_follows_the_source_and_runs_nothing(functions: str, tmp_path: Path) -> None:
    config = Function(target=f"{functions}:length")
    source = tmp_path / "my_rewards.py"
    before = config.code_digest()
    assert before == hashlib.sha256(source.read_bytes()).hexdigest()
    source.write_text(source.read_text() + "raise SystemExit\n")
    assert config.code_digest() != before
    assert functions not in sys.modules
    package = tmp_path / "inner_rewards"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit\n")
    (package / "deep.py").write_text("def f(): pass\n")
    assert Function(target="inner_rewards.deep:f").code_digest() == hashlib.sha256(b"def f(): pass\n").hexdigest()
    with pytest.raises(PluginLoadError, match="nowhere_at_all"):
        Function(target="nowhere_at_all:f").code_digest()


def test_a_wrong_function_is_named(functions: str) -> None:
    with pytest.raises(NumericError, match="row 1"):
        function(functions, "broken").score(PROMPTS, COMPLETIONS)
    with pytest.raises(NumericError, match="1 scores for 3 rows"):
        function(functions, "short").score(PROMPTS, COMPLETIONS)
    with pytest.raises(Exception, match="not a function"):
        function(functions, "constant")
    with pytest.raises(PluginLoadError, match="nothing_there"):
        function(functions, "nothing_there")
    for target in ("no_colon", "a:b:c", "os.system('x'):f", ":f", "m:"):
        with pytest.raises(ValueError, match="target"):
            Function(target=target)


# --- mixes


def test_a_mix_is_the_weighted_sum(functions: str) -> None:
    mix = Mix(
        models={"length": Function(target=f"{functions}:length"), "none": Function(target=f"{functions}:partly")},
        weights={"length": -0.5},
    )
    model = reward.ready(mix, Runtime(allow_code=True))
    assert model.score(PROMPTS, COMPLETIONS) == [0.0, -11.0, 0.5]
    from attrs import evolve

    strict = reward.ready(evolve(mix, missing="none"), Runtime(allow_code=True))
    assert strict.score(PROMPTS, COMPLETIONS) == [0.0, None, 0.5]


def test_a_row_on_which_no_model_of_a_mix_has_an_opinion_has_none(functions: str) -> None:
    mix = Mix(models={"only": Function(target=f"{functions}:partly")})
    assert reward.ready(mix, Runtime(allow_code=True)).score(PROMPTS, COMPLETIONS) == [2, None, 2]


def test_weights_for_models_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match="'weights' names typo"):
        Mix(models={"a": Function(target="m:f")}, weights={"typo": 1.0})


# --- classifiers


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_a_classifier_gives_the_logit_of_its_label(family: Any, tmp_path: Path) -> None:
    lm = tiny_lm(family, head="classification", labels=("polite", "rude", "odd"))
    lm.save(tmp_path)
    model = reward.ready(Classifier(model=str(tmp_path), label="rude", batch_size=2), Runtime())
    scores = model.score(PROMPTS, COMPLETIONS)
    with torch.no_grad():
        for text, score in zip(COMPLETIONS, scores, strict=True):
            logits = lm.model(**lm.tokenizer([text], return_tensors="pt").to("cpu")).logits[0]
            assert score == pytest.approx(float(logits[1]), abs=1e-5)
    by_index = reward.ready(Classifier(model=str(tmp_path), label="1"), Runtime())
    assert by_index.score(PROMPTS, COMPLETIONS) == pytest.approx(scores, abs=1e-5)


def test_a_classifier_reads_what_the_template_says(tmp_path: Path) -> None:
    tiny_lm("encoder", head="classification").save(tmp_path)
    plain = reward.ready(Classifier(model=str(tmp_path), label="yes"), Runtime())
    both = reward.ready(Classifier(model=str(tmp_path), label="yes", template="{prompt} : {completion}"), Runtime())
    joined = [f"{p} : {c}" for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert both.score(PROMPTS, COMPLETIONS) == pytest.approx(plain.score(PROMPTS, joined))
    assert both.score(PROMPTS, COMPLETIONS) != pytest.approx(plain.score(PROMPTS, COMPLETIONS))
    with pytest.raises(ValueError, match="completion"):
        Classifier(model="x", label="y", template="{prompt}")


def test_braces_in_texts_mean_nothing() -> None:
    assert filled("{prompt}|{completion}", ["{completion}"], ["{prompt} {0} {x}"]) == ["{completion}|{prompt} {0} {x}"]


def test_long_texts_keep_their_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_lm("encoder", head="classification").save(tmp_path)
    model = reward.ready(Classifier(model=str(tmp_path), label="yes", max_length=3), Runtime())
    long = model.score([""], ["bad bad bad bad the good dog"])
    assert long == pytest.approx(model.score([""], ["the good dog"]))
    assert "1 of 1 texts" in caplog.text
    everything = reward.ready(Classifier(model=str(tmp_path), label="yes"), Runtime())
    assert everything.score([""], ["good " * 500])[0] is not None  # more than the model's positions


def test_an_unknown_label_is_answered_with_those_there_are(tmp_path: Path) -> None:
    tiny_lm("encoder", head="classification", labels=("polite", "rude")).save(tmp_path)
    with pytest.raises(ConfigError, match="0: polite, 1: rude"):
        reward.ready(Classifier(model=str(tmp_path), label="hate"), Runtime())


# --- the pairwise model


GOOD = ["the good cat", "a happy dog", "good bird and fish", "one good tree", "happy house", "very good"]
BAD = ["the bad cat", "a sad dog", "bad bird and fish", "one bad tree", "sad house", "very bad"]


def preferences() -> list[Preference]:
    return [
        Preference(id=f"{i}-{j}", prompt="what runs ? ", chosen=good, rejected=bad)
        for i, good in enumerate(GOOD)
        for j, bad in enumerate(BAD)
    ]


@pytest.fixture(params=["encoder", "decoder"])
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    folder = tmp_path / "backbone"
    tiny_lm(request.param).save(folder)
    return str(folder)


def test_the_pair_loss_is_bradley_terry_with_margin_and_centering() -> None:
    chosen, rejected, margins, weights = [1.0, -0.5], [0.25, 2.0], [0.5, 0.0], [1.0, 3.0]
    expected = sum(
        w * (math.log(1 + math.exp(-(c - r - m))) + 0.01 * (c + r) ** 2)
        for c, r, m, w in zip(chosen, rejected, margins, weights, strict=True)
    )
    found = pair_losses(*(torch.tensor(x, dtype=torch.float64) for x in (chosen, rejected, margins, weights)), 0.01)
    assert float(found.sum()) == pytest.approx(expected)


def test_it_learns_which_completions_are_better_and_keeps_it(backbone: str, tmp_path: Path) -> None:
    config = Pairwise(model=backbone, epochs=6, learning_rate=3e-3, batch_size=12)
    model = reward.ready(config, Runtime(seed=3))
    assert isinstance(model, Fittable)
    report = model.fit(preferences(), Runtime(seed=3))
    json.dumps(report)
    assert report["steps"] == len(report["losses"]) == 18
    assert report["losses"][-1] < 0.3 < report["losses"][0]
    good, bad = (model.score(["what runs ? "] * 6, side) for side in (GOOD, BAD))
    assert min(good) > max(bad)
    reward.save(model, tmp_path / "artifact")
    again = reward.load(tmp_path / "artifact", Runtime())
    assert again.config == config
    assert again.score(PROMPTS, COMPLETIONS) == pytest.approx(model.score(PROMPTS, COMPLETIONS), abs=1e-6)


def test_scores_do_not_depend_on_the_batch(backbone: str) -> None:
    from attrs import evolve

    config = Pairwise(model=backbone, batch_size=3)
    together = reward.ready(config, Runtime()).score(PROMPTS, COMPLETIONS)
    alone = reward.ready(evolve(config, batch_size=1), Runtime()).score(PROMPTS, COMPLETIONS)
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_decoder_is_read_at_its_last_token_though_the_pad_token_ends_texts(tmp_path: Path) -> None:
    lm = tiny_lm("decoder")
    lm.tokenizer.pad_token = lm.tokenizer.eos_token
    lm.model.config.pad_token_id = lm.model.config.eos_token_id
    lm.save(tmp_path)
    model = reward.ready(Pairwise(model=str(tmp_path), template="{completion}", batch_size=2), Runtime())
    texts = ["good </s>", "a very bad and sad dog"]
    scores = model.score(["", ""], texts)
    with torch.no_grad():
        for text, score in zip(texts, scores, strict=True):
            state = lm.model.model(**lm.tokenizer([text], return_tensors="pt")).last_hidden_state[0, -1]
            assert score == pytest.approx(float(model.head(state)), abs=1e-5)


def test_a_margin_pushes_scores_further_apart(tmp_path: Path) -> None:
    tiny_lm("encoder").save(tmp_path)
    from attrs import evolve

    gaps = []
    for use in (True, False):
        model = reward.ready(Pairwise(model=str(tmp_path), epochs=6, learning_rate=3e-3, margin=use), Runtime())
        model.fit([evolve(p, margin=4.0) for p in preferences()], Runtime())
        good, bad = (model.score(["what runs ? "] * 6, side) for side in (GOOD, BAD))
        gaps.append(sum(good) - sum(bad))
    assert gaps[0] > gaps[1] + 3


def test_centering_keeps_scores_around_zero(tmp_path: Path) -> None:
    tiny_lm("encoder").save(tmp_path)
    from attrs import evolve

    config = Pairwise(model=str(tmp_path), epochs=6, learning_rate=3e-3)
    sums = []
    for weight in (0.0, 1.0):
        model = reward.ready(evolve(config, centering=weight), Runtime())
        with torch.no_grad():
            model.head.bias.fill_(5.0)
        model.fit(preferences(), Runtime())
        sums.append(abs(sum(model.score(["what runs ? "] * 12, GOOD + BAD))))
    assert sums[1] < 0.3 * sums[0]


def test_interrupted_fitting_goes_on_bit_for_bit(tmp_path: Path) -> None:
    lm = tiny_lm("encoder")
    lm.model.config.hidden_dropout_prob = 0.2  # random numbers matter for where it goes on
    lm.save(tmp_path / "backbone")
    config = Pairwise(model=str(tmp_path / "backbone"), epochs=3, learning_rate=1e-3, checkpoint_every=2)
    runtime = Runtime(seed=4, threads=1)

    def fitted(folder: Path, stop_after: int | None) -> Any:
        model = reward.ready(config, runtime)
        if stop_after is not None:
            calls = iter(range(stop_after))

            def dying(*_: Any) -> None:
                if next(calls, None) is None:
                    raise KeyboardInterrupt

            model.modules().register_forward_pre_hook(dying)
            with pytest.raises(KeyboardInterrupt):
                model.fit(preferences(), runtime.evolve(folder=folder))
            return None
        return model, model.fit(preferences(), runtime.evolve(folder=folder))

    whole, report = fitted(tmp_path / "a", None)
    fitted(tmp_path / "b", 5)
    assert [p.name for p in (tmp_path / "b").glob("checkpoint-*")]
    resumed, again = fitted(tmp_path / "b", None)
    assert report == again
    for a, b in zip(whole.modules().parameters(), resumed.modules().parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ArtifactError, match="another training"):
        reward.ready(config, runtime).fit(preferences()[:-1], runtime.evolve(folder=tmp_path / "b"))


def test_what_cannot_be_trained_is_said(tmp_path: Path) -> None:
    tiny_lm("encoder-decoder").save(tmp_path / "t5")
    with pytest.raises(ConfigError, match="encoder-decoder"):
        reward.ready(Pairwise(model=str(tmp_path / "t5")), Runtime())
    tiny_lm("encoder").save(tmp_path / "bert")
    model = reward.ready(Pairwise(model=str(tmp_path / "bert")), Runtime())
    with pytest.raises(DataError, match="no preferences"):
        model.fit([], Runtime())


# --- artifacts


def test_an_artifact_without_weights_is_its_config(functions: str, tmp_path: Path) -> None:
    config = Mix(models={"length": Function(target=f"{functions}:length")}, weights={"length": 2.0})
    reward.save(reward.ready(config, Runtime(allow_code=True)), tmp_path / "artifact")
    with pytest.raises(CodeNotAllowed):  # a file never allows code
        reward.load(tmp_path / "artifact", Runtime())
    again = reward.load(tmp_path / "artifact", Runtime(allow_code=True))
    assert again.config == config
    assert again.score(PROMPTS, COMPLETIONS) == [8, 44, 6]


def test_a_damaged_artifact_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no reward model"):
        reward.load(tmp_path, Runtime())
    tiny_lm("encoder").save(tmp_path / "bert")
    model = reward.ready(Pairwise(model=str(tmp_path / "bert")), Runtime())
    reward.save(model, tmp_path / "artifact")
    (tmp_path / "artifact" / "weights" / "head.safetensors").unlink()
    with pytest.raises(ArtifactError, match="train it again"):
        reward.load(tmp_path / "artifact", Runtime())

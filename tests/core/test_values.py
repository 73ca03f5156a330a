"""Values that are no configs: a wrong type is named, and not what a validator makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tunesmith as ts
from tunesmith.alarms import Alarms
from tunesmith.errors import ConfigError, DataError
from tunesmith.evaluation import Greedily, evaluate
from tunesmith.reward_gate import Gate
from tunesmith_plugins.compressors.config_int8 import Scheme
from tunesmith_plugins.stages import Generation


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ts.Data(source="x", shots="2", prompt=3), r"^Data: prompt: must be str, not int \(3\); shots: must be int, not str \('2'\)$"),
    (lambda: ts.Data(source="x", fractions={"train": "half"}), r"^Data: fractions: \['train'\] must be float, not str"),
    (lambda: ts.Data(source=Path("x")), r"^Data: source: .*must be str"),
    (lambda: Generation(max_new_tokens="8"), r"^Generation: max_new_tokens: must be int, not str \('8'\)$"),
    (lambda: Generation(sampler="greedy"), r"^Generation: sampler: must be a SamplerConfig, not str \('greedy'\), or must"),
    (lambda: Generation(stop="\n"), r"^Generation: stop: must be a tuple"),
    (lambda: Alarms(window="10", watch="kl"), r"^Alarms: watch: must be a tuple, not str \('kl'\); window: must be int"),
    (lambda: Gate(threshold="high"), r"^Gate: threshold: must be float, not str \('high'\)$"),
    (lambda: Scheme(threshold="6"), r"^Scheme: threshold: must be float, not str \('6'\)$"),
    (lambda: ts.Example(id="1", prompt=3), r"^Example: prompt: must be str, not int \(3\)$"),
    (lambda: ts.Example(id="1", prompt="a", targets="yes"), r"^Example: targets: must be a tuple of texts, not str \('yes'\)$"),
    (lambda: ts.Example(id="1", prompt="a", targets={"yes", "no"}), r"^Example: targets: must be a tuple of texts, not set \("),
    (lambda: ts.Example(id="1", prompt="a", targets=None), r"^Example: targets: must be a tuple of texts, not NoneType \(None\)$"),
    (lambda: ts.Example(id="1", prompt="a", targets=["b", None]), r"^Example: targets: must be str, not NoneType \(None\)$"),
    (lambda: ts.Preference(id="1", prompt="a", chosen="b", rejected=["c"]), r"^Preference: rejected: must be str, not list"),
])  # fmt: skip
def test_a_wrong_type_is_named(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("make", [Generation, Greedily])
def test_lengths_that_cannot_be_are_refused_when_they_are_given(make):
    assert make(max_new_tokens=4, min_new_tokens=4).min_new_tokens == 4
    with pytest.raises(ConfigError, match="min_new_tokens=5 is more than max_new_tokens=4; change one of them"):
        make(max_new_tokens=4, min_new_tokens=5)
    with pytest.raises(ConfigError, match="empty string"):
        make(stop=("",))


def test_a_runtime_takes_what_stands_for_its_fields():
    made = ts.Runtime(folder="work", device=torch.device("cuda", 1), seed=torch.tensor(3))
    assert made == ts.Runtime(folder=Path("work"), device="cuda:1", seed=3)
    assert type(ts.Runtime(threads=np.int64(2)).threads) is int


@pytest.mark.parametrize(("options", "message"), [
    ({"seed": 1.5}, "seed: a whole number was expected, not float 1.5"),
    ({"threads": "4"}, "threads: a whole number was expected, not str '4'"),
    ({"threads": -1}, "threads must be at least 0, not -1"),
    ({"device": None}, "device: must be str, not NoneType"),
    ({"device": 0}, r"device: must be str, not int \(0\)"),
    ({"folder": 5}, "folder: must be a Path, not int"),
    ({"dtype": torch.float16, "offline": 1}, "dtype: must be one of 'auto', 'float32'.*; offline: must be bool"),
])  # fmt: skip
def test_what_does_not_stand_for_a_runtimes_field_is_said(options, message):
    with pytest.raises(ConfigError, match=f"^runtime: 1 problem\n  - {message}"):
        ts.Runtime(**options)


@pytest.mark.parametrize("call", [
    lambda: ts.generate("no-model", "a", runtime="cuda"),
    lambda: ts.load("no-model", runtime="cuda"),
    lambda: ts.compress("no-model", runtime="cuda"),
    lambda: evaluate("no-model", [ts.Example(id="1", prompt="a")], ["rouge"], runtime="cuda"),
])  # fmt: skip
def test_the_name_of_a_device_is_no_runtime(call):
    with pytest.raises(
        ConfigError, match=r"runtime: a tunesmith.Runtime was expected, as Runtime\(device='cuda'\), not 'cuda'"
    ):
        call()


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ts.Example(id="7", prompt="a \ud83d"), r"^example '7': 'prompt' holds half of a character .* at place 2, which"),
    (lambda: ts.Example(id="7", prompt="a", targets=("b", "\ud83d")), "^example '7': 'targets' holds half"),
    (lambda: ts.Preference(id="7", prompt="a", chosen="\ude00", rejected=""), "^preference '7': 'chosen' holds half"),
])  # fmt: skip
def test_half_a_character_is_named_where_a_text_is_given(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_half_a_character_is_named_where_a_compressor_is_given_texts():
    lm = ts.LM(model=None, tokenizer=None, family="decoder")
    with pytest.raises(DataError, match="^example '1': 'targets' holds half of a character"):
        ts.compress(lm, "int8_static", data=["a", "a\ud83d"], runtime=ts.Runtime())


def test_whole_characters_beyond_the_first_plane_are_texts():
    assert ts.Example(id="1", prompt="\U0001f600", targets=["ä", "\U0001f600"]).targets == ("ä", "\U0001f600")

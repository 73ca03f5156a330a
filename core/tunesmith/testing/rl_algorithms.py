"""Checks of RL algorithms: what stays as it was, what is refused, and that training can be repeated and resumed.

Whether an algorithm reaches its optimum is another question; worlds with a known one are in :mod:`tunesmith.testing.world`.
The checks train tiny models for a few steps, so settings that are common (``steps``, ``epochs``, ``batch_size`` ...) are
made small where a config has them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from tunesmith.data.records import Preference
from tunesmith.errors import ConfigError, MissingPower
from tunesmith.kinds.adapter import SupportsDisable
from tunesmith.kinds.reward_model import RewardModel
from tunesmith.kinds.rl_algorithm import Offline, Online, RLAlgorithmConfig, TrainingReport
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith.testing.models import Family, tiny_lm

SMALL = {
    "steps": 2,
    "epochs": 1,
    "minibatches": 2,
    "group_size": 2,
    "batch_size": 4,
    "max_new_tokens": 4,
    "samples": 1,
    "max_steps": 2,
    "max_completion_length": 4,
}
FAMILIES: tuple[Family, ...] = ("decoder", "encoder-decoder", "encoder")


class _Length(RewardModel):
    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        return [float(len(text)) / 10 for text in completions]


def check_it_says_what_it_accepts(config: RLAlgorithmConfig) -> None:
    """``accepts`` is ``{"online"}``, ``{"offline"}`` or both, and the other task is a ConfigError."""
    algorithm = config.build()
    assert algorithm.accepts, "accepts is empty"
    assert algorithm.accepts <= {"online", "offline"}, f"accepts is {set(algorithm.accepts)}"
    assert config.accepts in (frozenset(), algorithm.accepts), (
        f"the config says that it accepts {set(config.accepts)}, and the algorithm {set(algorithm.accepts)}"
    )
    for name in {"online", "offline"} - algorithm.accepts:
        try:
            algorithm.train(tiny_lm("decoder"), _task(name), _runtime())
        except ConfigError:
            continue
        raise AssertionError(f"a task that is {name} was accepted")


def check_other_families_are_refused(config: RLAlgorithmConfig) -> None:
    """A model of a family that is not in ``families`` is a MissingPower, and is left as it was."""
    algorithm = config.build()
    assert algorithm.families <= set(FAMILIES), f"families is {set(algorithm.families)}"
    for family in sorted(set(FAMILIES) - algorithm.families):
        lm = tiny_lm(family)
        before = _weights(lm)
        try:
            algorithm.train(lm, _task(sorted(algorithm.accepts)[-1]), _runtime())
        except MissingPower:
            assert all(torch.equal(a, b) for a, b in zip(before, _weights(lm), strict=True)), (
                f"{family}: it has changed"
            )
            continue
        raise AssertionError(f"a model that is an {family} was accepted")


def check_only_the_last_adapter_changes(config: RLAlgorithmConfig) -> None:
    """With a fresh adapter on, training changes it, and the model without it computes what it did before."""
    for family in _families(config):
        lm = _with_lora(tiny_lm(family))
        before, other = _outputs(lm), _weights(lm)
        _train(config, lm)
        assert any(not torch.equal(a, b) for a, b in zip(other, _weights(lm), strict=True)), (
            f"{family}: nothing changed"
        )
        last = lm.adapters[-1]
        assert isinstance(last, SupportsDisable)
        with last.disabled():
            assert torch.equal(before, _outputs(lm)), f"{family}: the model without the adapter has changed"


def check_without_an_adapter_all_weights_are_trained(config: RLAlgorithmConfig) -> None:
    """A model without adapters changes, stays finite, and no longer claims to be the folder it came from."""
    for family in _families(config):
        lm = tiny_lm(family)
        lm.origin = "somewhere"
        before = _outputs(lm)
        _train(config, lm)
        after = _outputs(lm)
        assert bool(after.isfinite().all()), f"{family}: outputs are not finite"
        assert not torch.equal(before, after), f"{family}: nothing changed"
        assert lm.origin is None, f"{family}: origin is still {lm.origin!r}"


def check_kl_is_zero_at_the_first_step(config: RLAlgorithmConfig) -> None:
    """Where a report has ``kl``, its first value is 0: the reference is the model as it was given."""
    for family in _families(config):
        for lm in (tiny_lm(family), _with_lora(_tuned(_with_lora(tiny_lm(family))))):
            report = _train(config, lm)
            assert report.steps, "the report has no steps"
            kl = report.steps[0].get("kl", 0.0)
            assert abs(kl) < 1e-4, f"{family}: KL at the first step is {kl}"


def check_equal_runs_give_equal_weights(config: RLAlgorithmConfig) -> None:
    """The same model, task and seed give the same weights, bit for bit, and the same numbers."""
    first, second = tiny_lm("decoder"), tiny_lm("decoder")
    reports = [_train(config, lm).steps for lm in (first, second)]
    _equal_runs(first, second, reports)


def check_a_second_call_with_the_same_folder_ends_the_same(config: RLAlgorithmConfig) -> None:
    """With a ``runtime.folder`` a second call takes up what is there and ends with the same weights and numbers."""
    first, second = tiny_lm("decoder"), tiny_lm("decoder")
    with tempfile.TemporaryDirectory() as folder:
        reports = [_train(config, lm, Path(folder)).steps for lm in (first, second)]
    _equal_runs(first, second, reports)


def check_its_target_is_a_distribution(config: RLAlgorithmConfig) -> None:
    """``target`` gives None or log-probabilities that add up to 1."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.log_softmax(torch.randn(9, dtype=torch.float64, generator=generator), dim=0)
    reward = torch.randn(9, dtype=torch.float64, generator=generator)
    target = config.build().target(reference, reward, 0.3)
    if target is not None:
        total = float(target.exp().sum())
        assert abs(total - 1) < 1e-9, f"its probabilities add up to {total}"


def _equal_runs(first: LM, second: LM, steps: Sequence[Sequence[Mapping[str, float]]]) -> None:
    names = [name for name, _ in first.model.named_parameters()]
    pairs = zip(names, _weights(first), _weights(second), strict=True)
    other = [name for name, a, b in pairs if not torch.equal(a, b)]
    assert not other, f"{len(other)} of {len(names)} weights differ, {other[0]} first"
    assert len(steps[0]) == len(steps[1]), f"the reports have {len(steps[0])} and {len(steps[1])} steps"
    for number, (a, b) in enumerate(zip(*steps, strict=True)):
        assert a == b, f"step {number} reports {a} and {b}"


def _families(config: RLAlgorithmConfig) -> list[Family]:
    """The families it trains."""
    trained = config.build().families
    return [family for family in FAMILIES if family in trained]


def _small(config: RLAlgorithmConfig) -> RLAlgorithmConfig:
    """Return the config with common settings made small, one by one where they are not allowed together."""
    for name, value in SMALL.items():
        old = getattr(config, name, None)
        if type(old) is int and old > value:
            try:
                config = attrs.evolve(config, **{name: value})
            except ValueError:
                continue
    return config


def _task(name: str) -> Online | Offline:
    if name == "online":
        return Online(prompts=["the cat sees", "who ?", "yes"], reward=_Length(None))
    pairs = [("good", "bad"), ("the small cat", "a dog"), ("yes , here", "no"), ("happy", "sad sad")]
    return Offline(
        preferences=[Preference(id=str(i), prompt="who ?", chosen=c, rejected=r) for i, (c, r) in enumerate(pairs)]
    )


def _train(config: RLAlgorithmConfig, lm: LM, folder: Path | None = None) -> TrainingReport:
    algorithm = _small(config).build()
    runtime = _runtime().evolve(folder=folder)
    algorithm.setup(runtime)
    report: Any = algorithm.train(lm, _task(sorted(algorithm.accepts)[-1]), runtime)
    assert isinstance(report, TrainingReport), f"train gave {type(report).__name__}, not a TrainingReport"
    return report


def _runtime() -> Runtime:
    return Runtime(progress=False, threads=1, seed=1)


def _with_lora(lm: LM) -> LM:
    from tunesmith.registry import adapters

    attached: LM = adapters.create("tunesmith/lora").build().attach(lm, _runtime())
    return attached


def _tuned(lm: LM) -> LM:
    """Change the last adapter, as training would."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, parameter in lm.adapters[-1].trainable():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return lm


def _weights(lm: LM) -> list[torch.Tensor]:
    return [p.detach().clone() for p in lm.model.parameters()]


def _outputs(lm: LM) -> torch.Tensor:
    ids = lm.tokenizer(["the cat sees a dog"], return_tensors="pt").input_ids
    more = {"decoder_input_ids": ids[:, :3]} if lm.family == "encoder-decoder" else {}
    with lm.evaluating():
        logits: torch.Tensor = lm.model(input_ids=ids, **more).logits
    return logits


CHECKS = (
    check_it_says_what_it_accepts,
    check_other_families_are_refused,
    check_only_the_last_adapter_changes,
    check_without_an_adapter_all_weights_are_trained,
    check_kl_is_zero_at_the_first_step,
    check_equal_runs_give_equal_weights,
    check_a_second_call_with_the_same_folder_ends_the_same,
    check_its_target_is_a_distribution,
)

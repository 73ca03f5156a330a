"""What all online algorithms share: groups, micro-batches, early ends, observers, logs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from tunesmith.data.records import Preference
from tunesmith.errors import ConfigError
from tunesmith.kinds.rl_algorithm import Offline, Online, StepTexts
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.rl_algorithms import DPO, GRPO, KTO, PPO, RLOO, BestOfNDistillation, Reinforce

PROMPTS = ["the cat sees", "who likes the small red bird ?", "yes"]
SMALL = {"steps": 2, "batch_size": 6, "max_new_tokens": 5, "samples": 1}
ALGORITHMS = {
    "ppo": PPO(**SMALL, group_size=3, minibatches=2, epochs=2),
    "rloo": RLOO(**SMALL, group_size=3, epochs=2),
    "grpo dapo": GRPO(**SMALL, group_size=3, minibatches=2, normaliser="dapo"),
    "grpo original": GRPO(
        **SMALL, group_size=3, baseline="group_mean", deviation=True, normaliser="grpo",
        kl_estimator="k3", kl_place="loss", kl_coefficient=0.3, epochs=2, accept_bias=True,
    ),
    "gspo": GRPO(**SMALL, group_size=2, ratio="sequence", normaliser="luspo", epochs=2),
    "reinforce": Reinforce(**SMALL, baseline="value"),
}  # fmt: skip


def by_length(_: str, text: str) -> float:
    return len(text) / 10


def task(reward_by: Any, **options: Any) -> Online:
    return Online(prompts=PROMPTS, reward=reward_by(by_length), **options)


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_micro_batches_change_nothing_but_memory(family: Any, name: str, reward_by: Any) -> None:
    results = []
    for size in (0, 1, 4):
        lm = tiny_lm(family)
        lm.model.double()
        config = attrs.evolve(ALGORITHMS[name], micro_batch_size=size, entropy_coefficient=0.01, learning_rate=1e-3)
        report = config.build().train(lm, task(reward_by), Runtime(dtype="float64"))
        results.append((torch.cat([p.detach().flatten() for p in lm.model.parameters()]), report.steps))
    for weights, steps in results[1:]:
        assert torch.allclose(weights, results[0][0], rtol=0, atol=1e-6)
        assert steps[-1]["policy_loss"] == pytest.approx(results[0][1][-1]["policy_loss"], abs=1e-6)


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
@pytest.mark.parametrize("cls", [KTO, BestOfNDistillation])
def test_micro_batches_of_the_others_change_nothing_but_memory(cls: Any, family: Any, reward_by: Any) -> None:
    pairs = [
        Preference(id=str(i), prompt=prompt, chosen=chosen, rejected=rejected)
        for i, (prompt, chosen, rejected) in enumerate([("who", "the cat", "a dog"), ("yes", "good bird", "no")])
    ]
    more = {"max_new_tokens": 4, "completions": 3} if cls is BestOfNDistillation else {}
    results = []
    for size in (0, 1, 2):
        lm = tiny_lm(family)
        lm.model.double()
        algorithm = cls(steps=3, batch_size=4, learning_rate=1e-2, micro_batch_size=size, **more).build()
        what = task(reward_by) if "online" in algorithm.accepts else Offline(preferences=pairs)
        report = algorithm.train(lm, what, Runtime(dtype="float64"))
        results.append((torch.cat([p.detach().flatten() for p in lm.model.parameters()]), report.steps))
    for weights, steps in results[1:]:
        assert torch.allclose(weights, results[0][0], rtol=0, atol=1e-6)
        assert steps[-1]["loss"] == pytest.approx(results[0][1][-1]["loss"], abs=1e-6)


def test_a_group_is_several_completions_of_one_prompt(reward_by: Any) -> None:
    seen: list[StepTexts] = []

    class Watch:
        def step(self, index: int, numbers: Mapping[str, float], drawn: StepTexts) -> None:
            seen.append(drawn)
            assert numbers["distinct"] == len({*zip(drawn.rows, drawn.completions, strict=True)}) / 6
            assert numbers["kl"] == pytest.approx(sum(drawn.kl) / 6)

    ALGORITHMS["rloo"].build().train(tiny_lm("decoder", spread=0.3), task(reward_by, observers=[Watch()]), Runtime())
    assert len(seen) == 2
    for drawn in seen:
        assert drawn.rows[0] == drawn.rows[1] == drawn.rows[2] != drawn.rows[3] == drawn.rows[4] == drawn.rows[5]
        assert [PROMPTS[row] for row in drawn.rows] == list(drawn.prompts)
        assert list(drawn.scores) == [by_length("", text) for text in drawn.completions]
    with pytest.raises(ConfigError, match="multiple of 'group_size'"):
        RLOO(batch_size=6, group_size=4)


def test_an_observer_may_end_the_training(reward_by: Any, tmp_path: Path) -> None:
    class Third:
        def step(self, index: int, numbers: Mapping[str, float], drawn: StepTexts) -> str | None:
            return "enough" if index == 2 else None

    config = attrs.evolve(ALGORITHMS["rloo"], steps=6)
    outcomes = []
    for _ in range(2):  # the second time it is there already
        lm = tiny_lm("decoder")
        report = config.build().train(lm, task(reward_by, observers=[Third()]), Runtime(folder=tmp_path))
        outcomes.append(report)
        assert report.summary["stopped"] == "enough"
        assert len(report.steps) == report.summary["steps"] == 3
    assert outcomes[0].steps == outcomes[1].steps


def test_an_observer_that_remembers_gets_its_memory_back(reward_by: Any, tmp_path: Path) -> None:
    class Counts:
        def __init__(self) -> None:
            self.seen: list[int] = []

        def step(self, index: int, numbers: Mapping[str, float], drawn: StepTexts) -> str | None:
            self.seen.append(index)
            if len(self.seen) == 3 and self.fails:
                raise KeyboardInterrupt
            return None

        def state(self) -> Mapping[str, Any]:
            return {"seen": list(self.seen)}

        def restore(self, values: Mapping[str, Any]) -> None:
            self.seen = list(values["seen"])

        fails = False

    config = attrs.evolve(ALGORITHMS["reinforce"], steps=4, checkpoint_every=2)
    first, second = Counts(), Counts()
    first.fails = True
    with pytest.raises(KeyboardInterrupt):
        config.build().train(tiny_lm("decoder"), task(reward_by, observers=[first]), Runtime(folder=tmp_path))
    config.build().train(tiny_lm("decoder"), task(reward_by, observers=[second]), Runtime(folder=tmp_path))
    assert second.seen == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["ppo", "rloo", "reinforce"])
def test_training_ends_where_kl_is_too_large_and_says_so(name: str, reward_by: Any) -> None:
    config = attrs.evolve(ALGORITHMS[name], steps=20, learning_rate=0.05, max_kl=0.5, kl_coefficient=0)
    report = config.build().train(tiny_lm("decoder", spread=0.3), task(reward_by), Runtime())
    assert 1 < len(report.steps) < 20
    assert "above max_kl=0.5" in report.summary["stopped"]
    assert report.steps[-1]["kl"] > 0.5 >= report.steps[-2]["kl"]
    assert report.steps[-1]["updates"] == 0


def test_completions_that_the_limit_cut_are_left_out_if_asked(reward_by: Any) -> None:
    lm = tiny_lm("decoder")
    before = [p.detach().clone() for p in lm.model.parameters()]
    config = attrs.evolve(ALGORITHMS["grpo dapo"], max_new_tokens=1, mask_truncated=True, kl_coefficient=0.0)
    report = config.build().train(lm, task(reward_by), Runtime())
    for step in report.steps:
        assert step["left_out"] >= 6 * (1 - step["ended"])
    if all(step["ended"] == 0 for step in report.steps):
        assert all(torch.equal(a, b) for a, b in zip(before, lm.model.parameters(), strict=True))


def test_completions_are_logged_every_few_steps(reward_by: Any) -> None:
    config = attrs.evolve(ALGORITHMS["grpo dapo"], steps=5, samples=2, log_samples_every=2)
    report = config.build().train(tiny_lm("encoder-decoder"), task(reward_by), Runtime())
    assert [text["step"] for text in report.logged] == [0, 0, 2, 2, 4, 4]
    assert report.logged[0]["prompt"] != report.logged[1]["prompt"]
    for text in report.logged:
        assert text["reward"] == pytest.approx(by_length("", text["completion"]))


def test_numbers_and_texts_go_to_tensorboard(reward_by: Any, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = attrs.evolve(ALGORITHMS["rloo"], report_to=("tensorboard",), log_samples_every=1)
    report = config.build().train(tiny_lm("decoder"), task(reward_by), Runtime(folder=tmp_path))
    events = EventAccumulator(str(tmp_path / "logs" / "rloo")).Reload()
    for name in ("reward", "kl", "policy_loss"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(i, pytest.approx(step[name], rel=1e-6)) for i, step in enumerate(report.steps)]
    text = events.Tensors("completions/text_summary")[0].tensor_proto.string_val[0].decode()
    assert report.logged[0]["completion"] in text


@pytest.mark.parametrize(
    "config",
    [
        DPO(steps=3, report_to=("tensorboard",)),
        KTO(steps=3, report_to=("tensorboard",)),
        BestOfNDistillation(steps=3, batch_size=2, max_new_tokens=3, report_to=("tensorboard",)),
    ],
    ids=["dpo", "kto", "best_of_n_distillation"],
)
def test_numbers_of_the_others_go_to_tensorboard_too(config: Any, reward_by: Any, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    algorithm = config.build()
    pair = Preference(id="0", prompt="who", chosen="the cat", rejected="a dog")
    what = task(reward_by) if "online" in algorithm.accepts else Offline(preferences=[pair])
    report = algorithm.train(tiny_lm("decoder"), what, Runtime(folder=tmp_path))
    (folder,) = (tmp_path / "logs").iterdir()
    found = [(event.step, event.value) for event in EventAccumulator(str(folder)).Reload().Scalars("loss")]
    assert found == [(i, pytest.approx(step["loss"], rel=1e-6)) for i, step in enumerate(report.steps)]
    assert len(found) == 3


def test_a_tracker_that_is_not_there_is_said_with_what_to_install(reward_by: Any) -> None:
    from accelerate.tracking import get_available_trackers

    missing = next(name for name in ("swanlab", "aim", "wandb") if name not in map(str, get_available_trackers()))
    for name, message in ((missing, f"pip install {missing}"), ("nonsense", "there is no tracker 'nonsense'")):
        with pytest.raises(ConfigError, match=message):
            attrs.evolve(ALGORITHMS["rloo"], report_to=(name,)).build().train(
                tiny_lm("decoder"), task(reward_by), Runtime()
            )


@pytest.mark.parametrize(
    "config",
    [
        attrs.evolve(ALGORITHMS["rloo"], report_to=("nonsense",)),
        DPO(report_to=("nonsense",)),
        KTO(report_to=("nonsense",)),
        BestOfNDistillation(report_to=("nonsense",)),
    ],
    ids=["rloo", "dpo", "kto", "best_of_n_distillation"],
)
def test_an_unknown_tracker_is_said_before_anything_goes_through_the_model(config: Any, reward_by: Any) -> None:
    lm = tiny_lm("decoder")
    passes: list[str] = []
    lm.model.register_forward_pre_hook(lambda *_: passes.append("forward"))
    algorithm = config.build()
    pair = Preference(id="0", prompt="who", chosen="the cat", rejected="a dog")
    what = task(reward_by) if "online" in algorithm.accepts else Offline(preferences=[pair])
    with pytest.raises(ConfigError, match="there is no tracker 'nonsense'"):
        algorithm.train(lm, what, Runtime())
    assert passes == []


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_bfloat16_trains(name: str, reward_by: Any) -> None:
    lm = tiny_lm("decoder", spread=0.3)
    lm.model.bfloat16()
    report = attrs.evolve(ALGORITHMS[name], learning_rate=1e-3).build().train(lm, task(reward_by), Runtime())
    assert len(report.steps) == 2
    assert all(p.dtype == torch.bfloat16 and bool(p.isfinite().all()) for p in lm.model.parameters())

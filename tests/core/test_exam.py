"""The examiner itself is examined: by algorithms whose result is known exactly."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import scipy.stats
import torch
from attrs import evolve, frozen

from tunesmith.cli import main
from tunesmith.errors import ConfigError, MissingPower, NumericError
from tunesmith.kinds.rl_algorithm import Online, RLAlgorithm, RLAlgorithmConfig, TrainingReport
from tunesmith.lm import LM
from tunesmith.testing.exam import Exam, examine, mean, settings
from tunesmith.testing.exam_output import remarks, tables, verdict
from tunesmith.testing.exam_worlds import BETAS, HEADROOM, POLICIES, SEEDS, ceiling, draw, exam_world, search
from tunesmith.testing.world import World


def table_of(world: World, lm: LM, logps: torch.Tensor) -> None:
    """Make a tabular policy this distribution over the answers, (answers,)."""
    weight = lm.model.table.weight
    symbols, depth = lm.model.config.symbols, lm.model.config.depth
    beginnings = [b for n in range(depth) for b in itertools.product(range(1, symbols + 1), repeat=n)]
    with torch.no_grad():
        for row, beginning in enumerate(beginnings):
            for token in range(symbols + 1):
                wanted = (*beginning, token)
                inside = [answer[: len(wanted)] == wanted for answer in world.answers]
                weight[token, row] = torch.logsumexp(logps[torch.tensor(inside)], 0)


@frozen(kw_only=True)
class Perfect(RLAlgorithmConfig):
    """Knows the answer.

    Attributes:
        wrong: Multiple of beta at which it stops.
        steps: Of no use.
    """

    impl: ClassVar[str] = "none:none"
    wrong: float = 1.0
    steps: int = 5

    def build(self) -> Any:
        return PerfectAlgorithm(self)


class PerfectAlgorithm(RLAlgorithm):
    accepts: ClassVar[frozenset[str]] = frozenset({"online"})

    def train(self, policy: LM, task: Any, runtime: Any) -> TrainingReport:
        assert isinstance(task, Online)
        world: World = task.reward.world  # type: ignore[attr-defined]
        table_of(world, policy, self.target(world.reference, world.reward, world.beta))
        return TrainingReport()

    def target(self, ref_logp: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
        return torch.log_softmax(ref_logp + reward / (beta * self.config.wrong), dim=0)


@frozen(kw_only=True)
class Idle(Perfect):
    """Does nothing, and takes preferences."""

    def build(self) -> Any:
        return IdleAlgorithm(self)


class IdleAlgorithm(RLAlgorithm):
    accepts: ClassVar[frozenset[str]] = frozenset({"offline"})
    seen: ClassVar[list[int]] = []

    def train(self, policy: LM, task: Any, runtime: Any) -> TrainingReport:
        self.seen.append(len(task.preferences))
        return TrainingReport()


@frozen(kw_only=True)
class Prepared(Perfect):
    """Brings settings.

    Attributes:
        rate: Set for the exam.
    """

    rate: float = 0.5

    def exam_settings(self, policy: str, beta: float) -> Mapping[str, Any]:
        return {"steps": 77, "rate": beta if policy == "causal" else 0.25}


def test_the_tabular_worlds_are_the_first_seeds_with_enough_to_gain() -> None:
    assert tuple(search("tabular")) == SEEDS["tabular"]


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("policy", ["causal", "seq2seq"])
def test_the_worlds_of_networks_are_the_first_seeds_with_enough_to_gain_and_within_reach(policy: Any) -> None:
    assert tuple(search(policy)) == SEEDS[policy]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_world_has_enough_to_gain(policy: Any) -> None:
    for seed in SEEDS[policy]:
        world, lm = draw(policy, seed)
        assert len(world.answers) == 341
        assert float(world.reward.abs().max()) <= 1 + 1e-12
        assert min(world.with_beta(beta).headroom for beta in BETAS) >= HEADROOM
        assert world.check(world.logps(lm)) < 1e-6


def test_the_exact_gradient_climbs() -> None:
    assert ceiling(*draw("tabular", 0, 0.3), steps=150, learning_rate=0.1) > 0.99


def test_the_gap_to_the_optimum_is_beta_times_kl() -> None:
    world, _ = exam_world(3)
    generator = torch.Generator().manual_seed(1)
    for scale in (0.0, 1.0, 5.0):
        other = torch.log_softmax(scale * torch.randn(341, dtype=torch.float64, generator=generator), dim=0)
        assert world.check(other) < 1e-12
        assert world.best >= world.objective(other)
    assert world.objective(world.tilt) == pytest.approx(world.best)


@pytest.mark.parametrize("wrong", [0.01, -0.01])
def test_an_evaluation_that_is_not_exact_is_an_error(wrong: float) -> None:
    world, _ = exam_world(3)
    with pytest.raises(NumericError, match="does not hold"):
        world.check(world.tilt + wrong)
    kept = torch.arange(341) != int(world.tilt.argmax())
    missing = evolve(world, reference=world.reference[kept], reward=world.reward[kept])
    with pytest.raises(NumericError, match="add up to 0.73"):
        missing.check(world.tilt[kept])


def test_a_perfect_algorithm_gets_1_and_an_idle_one_0() -> None:
    for attempt in examine(Perfect(), seeds=2).attempts:
        assert attempt.score == pytest.approx(1, abs=1e-5)
        assert attempt.tilt_distance < 1e-5
        assert attempt.target_distance is not None
        assert attempt.target_distance < 1e-5
        assert attempt.kl == pytest.approx(attempt.best_kl, abs=1e-4)
    IdleAlgorithm.seen.clear()
    idle = examine(Idle(), seeds=1, betas=(0.3,))
    assert idle.attempts[0].score == pytest.approx(0, abs=1e-6)
    assert idle.attempts[0].target_distance is None
    assert not idle.passed(0.5)
    assert IdleAlgorithm.seen == [341 * 340]


def test_a_biased_algorithm_is_near_its_own_fixed_point_and_far_from_the_tilt() -> None:
    exam = examine(Perfect(wrong=2.0), seeds=2, betas=(0.1,))
    for attempt in exam.attempts:
        assert attempt.tilt_distance > 0.1
        assert attempt.target_distance is not None
        assert attempt.target_distance < 1e-5
        assert attempt.target_score == pytest.approx(attempt.score, abs=1e-5)
        assert attempt.score < 0.97
    assert exam.passed(0.5, distance=1e-3)
    assert not exam.passed(0.99, distance=1e-3)
    assert not examine(Perfect(), seeds=1, betas=(0.1,)).passed(0.5, distance=0.0)
    text = " ".join(remarks(exam))
    assert "not the tilt" in text
    assert verdict(exam, 0.99, None).startswith("FAILED")
    assert verdict(exam, 0.5, 1e-3).startswith("passed")


def test_preferences_are_the_population_under_bradley_terry() -> None:
    world, _ = exam_world(0, symbols=2, depth=2)
    found = {p.id: p for p in world.preferences()}
    assert len(found) == 7 * 6
    for a, b in itertools.permutations(range(7), 2):
        pair, other = found[f"{a}-{b}"], found[f"{b}-{a}"]
        assert (pair.chosen, pair.rejected) == (other.rejected, other.chosen)
        assert pair.weight + other.weight == pytest.approx(1)
        odds = torch.exp(world.reward[a] - world.reward[b])
        assert pair.weight / other.weight == pytest.approx(float(odds))


def test_what_the_user_set_wins_over_the_settings_for_the_exam() -> None:
    assert settings(Prepared(), "tabular", 0.1) == Prepared(steps=77, rate=0.25)
    assert settings(Prepared(steps=6), "causal", 0.1) == Prepared(steps=6, rate=0.1)
    assert settings(Perfect(), "tabular", 0.1) == Perfect()
    plain = settings("ppo", "tabular", 0.3)
    spelled = settings("ppo(steps=100,kl_coefficient=0.7)", "tabular", 0.3)
    assert plain.steps != 100, "or the next line says nothing"
    assert (spelled.steps, spelled.kl_coefficient) == (100, 0.7), "a default that is spelled out is the user's too"
    assert spelled.batch_size == plain.batch_size
    assert plain.kl_coefficient == 0.3


def test_settings_of_unknown_fields_are_an_error() -> None:
    class Wrong(Prepared):
        def exam_settings(self, policy: str, beta: float) -> Mapping[str, Any]:
            return {"stepz": 3}

    with pytest.raises(ConfigError, match="stepz"):
        settings(Wrong(), "tabular", 0.1)


@frozen(kw_only=True)
class Weighted(Perfect):
    """Aims at the tilt of its own KL weight.

    Attributes:
        weight: Of the KL term.
    """

    weight: float = 1.0

    def build(self) -> Any:
        return WeightedAlgorithm(self)

    def exam_settings(self, policy: str, beta: float) -> Mapping[str, Any]:
        return {"weight": beta, "steps": 7}


class WeightedAlgorithm(PerfectAlgorithm):
    def train(self, policy: LM, task: Any, runtime: Any) -> TrainingReport:
        world: World = task.reward.world
        table_of(world, policy, self.target(world.reference, world.reward, self.config.weight))
        return TrainingReport(summary={"optimises": "what it is told"})


def test_the_own_fixed_point_is_that_of_the_weight_that_the_user_set() -> None:
    (usual,) = examine(Weighted(), seeds=1, betas=(0.3,)).attempts
    assert usual.tilt_distance < 1e-5
    (other,) = examine(Weighted(weight=0.9), seeds=1, betas=(0.3,)).attempts
    assert other.tilt_distance > 0.1
    assert other.target_distance is not None
    assert other.target_distance < 1e-5
    (without,) = examine("rloo(kl_coefficient=0,steps=1)", seeds=1, betas=(0.3,)).attempts
    assert without.target_distance is None


def test_what_an_algorithm_says_of_itself_is_shown() -> None:
    exam = examine(Weighted(), seeds=2)
    assert "beta 0.1, 0.3: it says that it optimises what it is told" in remarks(exam)
    assert not any("says" in line for line in remarks(examine(Perfect(), seeds=1)))


def test_a_fixed_point_that_gives_answers_no_probability_has_a_score(tmp_path: Path) -> None:
    world, _ = exam_world(0)
    best = torch.where(world.reward == world.reward.max(), 0.0, -torch.inf).double()
    assert world.check(best) < 1e-9
    top = int(world.reward.argmax())
    expected = float(world.reward[top] + world.beta * world.reference[top])
    assert world.objective(best) == pytest.approx(expected)
    spelling = "rloo(kl_estimator='k1',kl_place='loss',accept_bias=true,steps=1)"
    command = [
        "exam",
        spelling,
        "--beta",
        "0.3",
        "--seeds",
        "1",
        "--threshold",
        "-9",
        "--json",
        str(tmp_path / "a.json"),
    ]
    assert main(command) == 0
    (attempt,) = json.loads((tmp_path / "a.json").read_text())["exams"][0]["attempts"]
    assert attempt["target_score"] == pytest.approx(world.score(best))


@pytest.mark.parametrize("wrong", [{"seeds": 9}, {"seeds": 0}, {"betas": (0.0,)}, {"betas": ()}, {"policy": "table"}])
def test_what_makes_no_sense_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        examine(Perfect(), **wrong)


@pytest.mark.parametrize("count", range(2, 9))
def test_intervals_are_those_of_students_t(count: int) -> None:
    values = torch.rand(count, generator=torch.Generator().manual_seed(count)).double().tolist()
    low, high = scipy.stats.t.interval(0.95, count - 1, loc=sum(values) / count, scale=scipy.stats.sem(values))
    found = mean(values)
    assert found.half_width is not None
    assert found.value - found.half_width == pytest.approx(low, abs=1e-3)
    assert found.value + found.half_width == pytest.approx(high, abs=1e-3)
    assert mean(values[:1]).half_width is None


def test_a_table_has_a_row_for_every_world() -> None:
    from rich.console import Console

    exam: Exam = examine(Perfect(), seeds=3, betas=(0.3,))
    console = Console(width=110)
    with console.capture() as capture:
        console.print(*tables(exam))
    rows = [line.split() for line in capture.get().splitlines()]
    assert [row[0] for row in rows if row and row[0].isdigit()] == [str(seed) for seed in SEEDS["tabular"][:3]]
    assert any(row[:1] == ["mean"] for row in rows)


def test_the_command_writes_numbers_and_a_plot_and_its_status_follows_the_threshold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, picture = tmp_path / "exam.json", tmp_path / "exam.svg"
    short = ["exam", "ppo(steps=2,batch_size=64)", "--beta", "0.3", "--seeds", "2"]
    assert main([*short, "--threshold", "-9", "--json", str(file), "--plot", str(picture)]) == 0
    assert "passed: lowest score" in capsys.readouterr().out
    (exam,) = json.loads(file.read_text())["exams"]
    assert exam["passed"] is True
    assert [a["seed"] for a in exam["attempts"]] == list(SEEDS["tabular"][:2])
    assert "<svg" in picture.read_text()
    assert main([*short, "--threshold", "1"]) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["trl_rloo", "--policy", "seq2seq"], "policy tabular or causal"),
        (["--plot", "exam.gifx"], "must end with one of"),
        (["--plot", "nowhere/exam.png"], "make it first"),
        (["--json", "nowhere/exam.json"], "make it first"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_trained(
    more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["exam", "ppo(steps=1,batch_size=8)", *more, "--beta", "0.3", "--seeds", "1"]) == 1
    output = capsys.readouterr()
    assert said in output.err
    assert "score" not in output.err + output.out


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="where the superuser cannot write is not known here")
@pytest.mark.parametrize("file", ["/proc/exam.json", "/proc/version"])
def test_a_file_that_may_not_be_written_is_refused_before_anything_is_trained(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["exam", "ppo(steps=1,batch_size=8)", "--seeds", "1", "--json", file]) == 1
    output = capsys.readouterr()
    assert f"'{file}' may not be written (" in output.err
    assert "score" not in output.err + output.out


def test_an_algorithm_of_the_other_family_is_refused() -> None:
    with pytest.raises(MissingPower, match=r"of the family decoder, and the policy seq2seq .*tabular or causal"):
        examine("trl_dpo", policy="seq2seq", seeds=1)


def test_the_command_refuses_what_there_is_not(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["exam", "pppo"]) == 1
    assert "ppo" in capsys.readouterr().err
    assert main(["exam", "ppo", "--policy", "other"]) == 2
    assert main(["exam", "ppo", "--seeds", "9"]) == 2

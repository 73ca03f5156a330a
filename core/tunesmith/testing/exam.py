"""The exam: an RL algorithm trains in worlds whose optimum is known, and is judged by how close it comes.

For authors of algorithms, in a test of one's own::

    from tunesmith.testing.exam import examine

    def test_it_optimises_what_it_claims():
        exam = examine(MyAlgorithm(learning_rate=0.05), betas=(0.3,), seeds=2)
        assert exam.passed(0.95), exam

or ``tunesmith exam 'my_algorithm(learning_rate=0.05)'``. What the numbers mean is in docs/exam.md; the worlds are in
:mod:`tunesmith.testing.exam_worlds`.

Imported at run time only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs
from attrs import field, frozen

from tunesmith.errors import ConfigError, MissingPower
from tunesmith.kinds.rl_algorithm import Examinable, Offline, Online, RLAlgorithm, RLAlgorithmConfig
from tunesmith.runtime import Runtime
from tunesmith.testing.exam_worlds import BETAS, COUNT, FAMILY_OF, POLICIES, SEEDS, Policy, draw
from tunesmith.testing.world import World, WorldReward

_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365)
"""Quantiles .975 of Student's t for 1 ... 7 degrees of freedom, which is all that eight worlds need."""


@frozen(kw_only=True)
class Attempt:
    """One training run in one world, judged exactly.

    Attributes:
        seed: Of the world and of the run.
        beta: Weight of the KL term.
        start: J of the reference.
        objective: J of the trained policy, ``E[r] - beta KL(pi || reference)``.
        best: J*, that of the optimum (the tilt).
        kl: KL(pi || reference), nats an answer.
        best_kl: The same of the optimum.
        score: Share of the attainable gain, ``(objective - start) / (best - start)``.
        tilt_distance: Total variation between the policy and the tilt, 0 to 1.
        target_distance: The same to the algorithm's own fixed point; None if it declares none.
        target_score: The score of that fixed point; None if it declares none.
        identity_error: By how much ``J* - J = beta KL(pi || pi*)`` failed: rounding.
        seconds: What the training took.
        processor_seconds: Processor time of it: what it would have taken on one idle core, if it ran on one thread.
        optimises: What the training's report says that it optimises; empty if it does not say.
    """

    seed: int
    beta: float
    start: float
    objective: float
    best: float
    kl: float
    best_kl: float
    score: float
    tilt_distance: float
    target_distance: float | None
    target_score: float | None
    identity_error: float
    seconds: float
    processor_seconds: float
    optimises: str = ""


@frozen(kw_only=True)
class Mean:
    """A mean over worlds with its 95 % interval (Student's t), which is None for a single world."""

    value: float
    half_width: float | None

    def __str__(self) -> str:
        return f"{self.value:.3f}" + ("" if self.half_width is None else f" ± {self.half_width:.3f}")


@frozen(kw_only=True)
class Exam:
    """What came out.

    Attributes:
        algorithm: The config's short spelling, as it was first examined.
        policy: Which kind of policy was trained.
        attempts: By beta, then by world.
    """

    algorithm: str
    policy: Policy
    attempts: tuple[Attempt, ...] = field(default=())

    @property
    def betas(self) -> tuple[float, ...]:
        """The weights of the KL term, in the order of the exam."""
        return tuple(dict.fromkeys(a.beta for a in self.attempts))

    def at(self, beta: float) -> tuple[Attempt, ...]:
        """Return the attempts at a beta."""
        return tuple(a for a in self.attempts if a.beta == beta)

    def passed(self, threshold: float, distance: float | None = None) -> bool:
        """Return whether every score reaches ``threshold``.

        Args:
            threshold: Least score.
            distance: Also demand that the total variation to the algorithm's own fixed point, where it declares one, is at
                most this.
        """
        near = distance is None or all(
            a.target_distance is None or a.target_distance <= distance for a in self.attempts
        )
        return near and all(a.score >= threshold for a in self.attempts)


def mean(values: Sequence[float]) -> Mean:
    """Return the mean of 1 to 8 values with its interval."""
    count = len(values)
    value = sum(values) / count
    if count == 1:
        return Mean(value=value, half_width=None)
    deviation = (sum((v - value) ** 2 for v in values) / (count - 1)) ** 0.5
    return Mean(value=value, half_width=_T_975[count - 2] * deviation / count**0.5)


def examine(
    algorithm: str | RLAlgorithmConfig,
    *,
    policy: Policy = "tabular",
    betas: Sequence[float] = BETAS,
    seeds: int | Sequence[int] = 5,
    runtime: Runtime | None = None,
    before: Callable[[int, float], None] | None = None,
    after: Callable[[Attempt], None] | None = None,
) -> Exam:
    """Train and judge an algorithm in every world at every beta.

    Args:
        algorithm: A config or its short spelling; see :func:`settings` for how it is completed.
        policy: ``"tabular"`` (can be any distribution; sharp, seconds), ``"causal"`` or ``"seq2seq"`` (tiny networks;
            realistic, minutes).
        betas: Weights of the KL term, each positive.
        seeds: How many of the exam's eight worlds, or the seeds of worlds.
        runtime: Threads and progress; its seed is replaced by the world's.
        before: Called with seed and beta before each run.
        after: Called with every attempt.

    Raises:
        ConfigError: For an unknown policy, a beta that is not positive or more than eight worlds.
        MissingPower: If the algorithm does not train models of the policy's family.
        NumericError: If the evaluation is not exact (:meth:`tunesmith.testing.world.World.check`).
        TunesmithError: Whatever the algorithm itself refuses.
    """
    if policy not in POLICIES:
        raise ConfigError([f"there is no policy {policy!r}; there are {', '.join(POLICIES)}"], "exam")
    if not betas or min(betas) <= 0:
        raise ConfigError(["every beta must be positive: without the KL term there is no single optimum"], "exam")
    worlds = SEEDS[policy][: max(seeds, 0)] if isinstance(seeds, int) else tuple(seeds)
    if not 1 <= len(worlds) <= COUNT or (isinstance(seeds, int) and seeds > COUNT):
        raise ConfigError([f"an exam has 1 to {COUNT} worlds; seeds is {seeds}"], "exam")
    check_family(algorithm, policy, betas[0])
    runtime = runtime or Runtime(progress=False)
    attempts = []
    for beta in betas:
        config = settings(algorithm, policy, beta)
        for seed in worlds:
            if before is not None:
                before(seed, beta)
            attempts.append(attempt(config, policy, seed, beta, runtime))
            if after is not None:
                after(attempts[-1])
    return Exam(algorithm=name_of(algorithm, policy, betas[0]), policy=policy, attempts=tuple(attempts))


def settings(algorithm: str | RLAlgorithmConfig, policy: Policy, beta: float) -> RLAlgorithmConfig:
    """Return the config that is examined.

    A config with ``exam_settings`` (:class:`tunesmith.kinds.rl_algorithm.Examinable`) is completed with them; what the user
    set wins: the fields that a spelling names, or those of a config that are not at their default.

    Raises:
        ConfigError: If the spelling is wrong, or the settings name a field that there is not.
    """
    config, own = _read(algorithm)
    if not isinstance(config, Examinable):
        return config
    wanted = {name: value for name, value in config.exam_settings(policy, beta).items() if name not in own}
    unknown = wanted.keys() - {a.name for a in attrs.fields(type(config))}
    if unknown:
        raise ConfigError([f"exam_settings of {type(config).__name__} names unknown fields: {sorted(unknown)}"], "exam")
    return attrs.evolve(config, **wanted)


def check_family(algorithm: str | RLAlgorithmConfig, policy: Policy, beta: float) -> None:
    """Check that an algorithm trains such policies, without training anything.

    Raises:
        ConfigError: If the spelling is wrong (:func:`settings`).
        MissingPower: If it does not train them; the message names the policies that it does train.
    """
    families = settings(algorithm, policy, beta).build().families
    if FAMILY_OF[policy] in families:
        return
    others = [name for name in POLICIES if FAMILY_OF[name] in families]
    way_out = f"examine it with the policy {' or '.join(others)}" if others else "it cannot be examined"
    raise MissingPower(
        f"{name_of(algorithm, policy, beta)} trains models of the family {' and '.join(sorted(families)) or '(none)'}, and the "
        f"policy {policy} is of the family {FAMILY_OF[policy]}; {way_out}."
    )


def name_of(algorithm: str | RLAlgorithmConfig, policy: Policy, beta: float) -> str:
    """Return the short spelling of what is examined, or the class's name where the config is not registered."""
    from tunesmith.errors import PluginError
    from tunesmith.spec import spell

    if isinstance(algorithm, str):
        return algorithm
    try:
        return str(spell(algorithm))
    except PluginError:
        return type(algorithm).__name__


def attempt(config: RLAlgorithmConfig, policy: Policy, seed: int, beta: float, runtime: Runtime) -> Attempt:
    """Train in one world and judge the result.

    Online algorithms get the world's reward, the others the whole population of preferences: every ordered pair of answers,
    weighted by Bradley-Terry, so that there is no sampling error.
    """
    world, lm = draw(policy, seed, beta)
    algorithm: RLAlgorithm = config.build()
    runtime = runtime.evolve(seed=seed)
    algorithm.setup(runtime)
    task = (
        Online(prompts=[world.prompt], reward=WorldReward(world))
        if "online" in algorithm.accepts
        else Offline(preferences=world.preferences())
    )
    began, used = time.perf_counter(), time.process_time()
    report = algorithm.train(lm, task, runtime)
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    found = judge(
        world,
        world.logps(lm),
        algorithm,
        seed=seed,
        own_beta=kl_weight(config, policy, beta),
        seconds=seconds,
        processor_seconds=processor,
    )
    return attrs.evolve(found, optimises=str(report.summary.get("optimises", "")))


def kl_weight(config: RLAlgorithmConfig, policy: Policy, beta: float) -> float:
    """Return the weight of the KL term that a config has in an exam at ``beta``: another one where the user set it.

    Which field holds it is known from ``exam_settings``: it is the one that follows ``beta``.
    """
    if not isinstance(config, Examinable):
        return beta
    here, there = config.exam_settings(policy, beta), config.exam_settings(policy, 2 * beta)
    followed = [name for name, value in here.items() if value == beta and there.get(name) == 2 * beta]
    return float(getattr(config, followed[0])) if len(followed) == 1 else beta


def judge(
    world: World,
    logps: Any,
    algorithm: RLAlgorithm,
    *,
    seed: int,
    own_beta: float | None = None,
    seconds: float = 0.0,
    processor_seconds: float = 0.0,
) -> Attempt:
    """Judge a policy by its log-probabilities of all answers, (answers,) float64.

    Args:
        world: In which it was trained.
        logps: See above.
        algorithm: Whose fixed point it is compared with.
        seed: For the record, as are ``seconds`` and ``processor_seconds``.
        own_beta: The KL weight that the algorithm trained with, if it is not the world's; with 0 it has no fixed point here.
    """
    error = world.check(logps)
    weight = world.beta if own_beta is None else own_beta
    target = algorithm.target(world.reference, world.reward, weight) if weight > 0 else None
    return Attempt(
        seed=seed,
        beta=world.beta,
        start=world.objective(world.reference),
        objective=world.objective(logps),
        best=world.best,
        kl=world.kl(logps),
        best_kl=world.kl(world.tilt),
        score=world.score(logps),
        tilt_distance=world.distance(logps, world.tilt),
        target_distance=None if target is None else world.distance(logps, target),
        target_score=None if target is None else world.score(target),
        identity_error=error,
        seconds=seconds,
        processor_seconds=processor_seconds,
    )


def _read(algorithm: str | RLAlgorithmConfig) -> tuple[RLAlgorithmConfig, set[str]]:
    """Return the config and the names of the fields that the user set."""
    from tunesmith.spec.dumping import changed_fields

    if isinstance(algorithm, str):
        from tunesmith.spec import parse
        from tunesmith.spec.spelling import read_spelling

        config = parse(algorithm, "rl_algorithm")
        data = read_spelling(algorithm)
        return config, set() if isinstance(data, str) else set(data.get("config", {}))
    return algorithm, set(changed_fields(algorithm))

"""trl's GRPO and RLOO trainers; see :class:`tunesmith_plugins.rl_algorithms.TrlGRPO`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer import grpo_trainer, rloo_trainer

from tunesmith.generation import prompt_ids
from tunesmith.kinds.rl_algorithm import Offline, Online
from tunesmith.lm import LM
from tunesmith.reward import check_scores
from tunesmith.runtime import derive_seed
from tunesmith_plugins.rl_algorithms.config_policy_gradient import GRPO
from tunesmith_plugins.rl_algorithms.kl_rules import OBJECTIVE
from tunesmith_plugins.rl_algorithms.progress import shuffled
from tunesmith_plugins.rl_algorithms.targets import tilt
from tunesmith_plugins.rl_algorithms.task import check_online
from tunesmith_plugins.rl_algorithms.trl_run import OwnCheckpoints, TrlAlgorithm, renamed

NAMES = {
    "completions/mean_length": "length",
    "completions/clipped_ratio": "cut",
    "grad_norm": "gradient_norm",
}

LOSSES = frozenset({"grpo", "bnpo", "dr_grpo", "dapo", "sapo"})
"""trl's GRPO losses whose gradient is GRPO's as long as the policy is the one that drew."""


class _SamePrompts(OwnCheckpoints):
    """Prompts become the ids that all algorithms here read, in the order of the data set."""

    policy: LM

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(ids) for ids in prompt_ids(self.policy, prompts)], None, {}


class _GRPO(_SamePrompts, GRPOTrainer):  # type: ignore[misc, unused-ignore]
    """trl's trainer with our checkpoints."""


class _RLOO(_SamePrompts, RLOOTrainer):  # type: ignore[misc, unused-ignore]
    """trl's trainer with our checkpoints."""


class TrlOnline(TrlAlgorithm):
    """A trainer that draws completions and takes a reward function."""

    cls: ClassVar[type]
    module: ClassVar[Any]
    """Where trl looks up how a reference is loaded."""

    def check(self, task: Online | Offline) -> None:
        """See :meth:`TrlAlgorithm.check`."""
        check_online(task, self.name)

    def content(self, task: Online) -> list[str]:
        """See :meth:`TrlAlgorithm.content`."""
        return list(task.prompts)

    def trainer(
        self, policy: LM, reference: torch.nn.Module, task: Online, arguments: Any, options: Mapping[str, Any]
    ) -> Any:
        """See :meth:`TrlAlgorithm.trainer`."""
        rows = _order(arguments, len(task.prompts))
        data = Dataset.from_dict({"prompt": [task.prompts[row] for row in rows], "row": rows})
        with _instead_of_loading(self.module, reference):
            trainer = self.cls(model=policy.model, reward_funcs=_function(task), train_dataset=data, **options)
        trainer.policy = policy
        return trainer

    def numbers(self, logged: Mapping[str, float], beta: float) -> dict[str, float]:
        """See :meth:`TrlAlgorithm.numbers`."""
        found = renamed({n: x for n, x in logged.items() if not n.startswith("rewards/")}, NAMES)
        if "kl" in found:
            self.kl(found)
            found["objective"] = found["reward"] - beta * found["kl"]
        return found

    def kl(self, found: dict[str, float]) -> None:
        """Make ``kl`` nats a completion."""

    def notes(self, trainer: Any, task: Online) -> dict[str, Any]:
        """Say that nobody watched, if somebody wanted to."""
        return {"observers": "not called; trl does not say what each completion's KL is"} if task.observers else {}


class TrlGRPOAlgorithm(TrlOnline):
    """See the config."""

    name: ClassVar[str] = "trl_grpo"
    ours: ClassVar[str] = "grpo"
    arguments: ClassVar[type] = GRPOConfig
    cls: ClassVar[type] = _GRPO
    module: ClassVar[Any] = grpo_trainer

    def optimises(self, arguments: Any) -> str:
        """See :meth:`TrlAlgorithm.optimises`: in the words of our GRPO with the same settings."""
        scaled = arguments.scale_rewards
        ours = GRPO(
            batch_size=arguments.num_generations,
            group_size=arguments.num_generations,
            max_new_tokens=arguments.max_completion_length,
            kl_coefficient=arguments.beta,
            kl_estimator="k2" if arguments.use_bias_correction_kl else "k3",  # k3 times the ratio has k2's gradient
            kl_place="loss",
            baseline="group_mean",
            deviation=scaled == "group",
            normaliser="grpo" if arguments.loss_type in ("grpo", "sapo") else "dapo",
            accept_bias=True,
        )
        found = [*ours.biases().values()]
        if arguments.loss_type not in LOSSES:
            found.append(f"trl's loss {arguments.loss_type!r}, which is not one of GRPO's")
        if arguments.sync_ref_model:
            found.append("the reference follows the policy")
        if scaled == "batch":
            found.append("the reward, but not a KL term, is divided by the batch's deviation")
        if not arguments.beta:
            found.append("E[reward] without a KL term, since beta is 0")
        return "; ".join(found)

    def kl(self, found: dict[str, float]) -> None:
        """trl reports the mean over tokens."""
        found["kl_per_token"] = found["kl"]
        found["kl"] = found["kl"] * found["length"]


class TrlRLOOAlgorithm(TrlOnline):
    """See the config."""

    name: ClassVar[str] = "trl_rloo"
    ours: ClassVar[str] = "rloo"
    arguments: ClassVar[type] = RLOOConfig
    cls: ClassVar[type] = _RLOO
    module: ClassVar[Any] = rloo_trainer

    def optimises(self, arguments: Any) -> str:
        """See :meth:`TrlAlgorithm.optimises`."""
        found = OBJECTIVE
        if arguments.reward_clip_range is not None:
            found += f" with rewards clipped to {arguments.reward_clip_range}"
        if arguments.normalize_advantages:
            found += ", with advantages divided by the deviation of their batch"
        if arguments.sync_ref_model:
            found += ", with a reference that follows the policy"
        return found

    def target(self, ref_logp: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor | None:
        """Return the tilt ``ref exp(reward / beta)``.

        None if advantages are normalised, rewards clipped, or the reference follows the policy.
        """
        options = self.config.options
        if self.config.normalize_advantages or options.get("reward_clip_range") is not None:
            return None
        if options.get("sync_ref_model"):
            return None
        return tilt(ref_logp, reward, beta)


def _order(arguments: Any, count: int) -> list[int]:
    """Return the prompts of all updates: every prompt once in an order of its own, then again.

    trl leaves out prompts that do not fill a batch, and starts its order anew when it resumes in a later pass; with the
    whole run written out as one pass neither matters. Also sets the number of updates.
    """
    groups = arguments.generation_batch_size // arguments.num_generations
    draws_an_update = arguments.gradient_accumulation_steps / (
        arguments.steps_per_generation * arguments.num_iterations
    )
    if arguments.max_steps <= 0:
        draws = max(1, math.ceil(arguments.num_train_epochs * count / groups))
        arguments.max_steps = math.ceil(draws / draws_an_update)
    needed = math.ceil(arguments.max_steps * draws_an_update) * groups
    rows: list[int] = []
    while len(rows) < needed:
        rows += shuffled(count, derive_seed(arguments.seed, "prompts", len(rows) // count))
    arguments.shuffle_dataset = False
    return rows[:needed]


def _function(task: Online) -> Callable[..., list[float | None]]:
    """Return the task's reward as a function of trl's kind."""

    def reward(
        prompts: Sequence[str], completions: Sequence[str], row: Sequence[int], **rest: Any
    ) -> list[float | None]:
        columns = {name: [values[i] for i in row] for name, values in task.columns.items()}
        scores = task.reward.score([task.prompts[i] for i in row], list(completions), **columns)
        return check_scores(task.reward, scores, len(completions))

    return reward


@contextmanager
def _instead_of_loading(module: Any, reference: torch.nn.Module) -> Iterator[None]:
    """Let a trainer take this reference where it would load one by the name that the policy came from.

    The trainers take no reference, and load from a hub or folder what may not be the model that was given.
    """
    before = module.create_model_from_path
    module.create_model_from_path = lambda *args, **options: reference
    try:
        yield
    finally:
        module.create_model_from_path = before

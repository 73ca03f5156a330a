"""Config of best-of-n distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from tunesmith.kinds.rl_algorithm import RLAlgorithmConfig

IMPLEMENTATIONS = "tunesmith_plugins.rl_algorithms"


@frozen(kw_only=True)
class BestOfNDistillation(RLAlgorithmConfig):
    """Train the policy on the best of n completions drawn from the frozen reference, so that one draw does for n (rejection
    sampling fine-tuning; RAFT, Dong et al. 2023).

    At every step each prompt gets ``completions`` completions from the reference; the policy's loss is the negative log-
    likelihood of the one with the highest reward. Its optimum is the best-of-n distribution, which knows only the order of
    rewards, not their size: there is no ``beta``, and its KL to the reference is at most ``log n - (n - 1) / n`` nats (Beirami
    et al. 2024). A further round draws from the policy as the round before left it: the best of ``n^rounds``.

    Attributes:
        completions: n, completions of a prompt.
        rounds: See above.
        steps: Updates a round.
        batch_size: Prompts a step; each gets ``completions`` completions and one place in the loss.
        micro_batch_size: Completions that go through the model at once; 0: all of an update when training, ``batch_size``
            when drawing. Only memory depends on it.
        max_new_tokens: Most tokens of a completion.
        temperature: Of drawing and of all log-probabilities.
        learning_rate: Peak learning rate (Adam).
        schedule: ``"linear"`` goes down to zero over all rounds.
        max_grad_norm: Gradients are clipped to this norm; 0: never.
        missing_eos_penalty: Taken off the reward of a completion that the length limit cut.
        allow_start_kl: Go on with an adapter that was trained before; an error otherwise.
        checkpoint_every: Steps between checkpoints.
        samples: Prompts whose completions before and after are in the report.
        report_to: Trackers that get every step's numbers, by their names in accelerate: ``"tensorboard"``, ``"wandb"`` ...
    """

    revision: ClassVar[int] = 3
    accepts: ClassVar[frozenset[str]] = frozenset({"online"})
    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.best_of_n:BestOfNAlgorithm"
    completions: int = field(default=4, validator=v.ge(2))
    rounds: int = field(default=1, validator=v.ge(1))
    steps: int = field(default=100, validator=v.ge(1))
    batch_size: int = field(default=16, validator=v.ge(1))
    micro_batch_size: int = field(default=0, validator=v.ge(0))
    max_new_tokens: int = field(default=64, validator=v.ge(1))
    temperature: float = field(default=1.0, validator=v.gt(0))
    learning_rate: float = field(default=1e-4, validator=v.gt(0))
    schedule: Literal["constant", "linear"] = "linear"
    max_grad_norm: float = field(default=1.0, validator=v.ge(0))
    missing_eos_penalty: float = field(default=0.0, validator=v.ge(0))
    allow_start_kl: bool = False
    checkpoint_every: int = field(default=10, validator=v.ge(1))
    samples: int = field(default=4, validator=v.ge(0))
    report_to: tuple[str, ...] = ()

    def exam_settings(self, policy: str, beta: float) -> Mapping[str, Any]:
        """Return the values with which the exam runs it; ``beta`` means nothing to it.

        Args:
            policy: ``"tabular"``, ``"causal"`` or ``"seq2seq"``.
            beta: Weight of the KL term.
        """
        return {
            "completions": 4,
            "steps": 300,
            "batch_size": 256,
            "max_new_tokens": 4,
            "learning_rate": 0.05 if policy == "tabular" else 1e-3,
            "samples": 0,
            "checkpoint_every": 1_000_000,
        }

"""RLAlgorithm: improve a policy from a reward (online) or from preferences (offline), with a frozen reference."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import Factory, field, frozen

from tunesmith.component import Component, Config

if TYPE_CHECKING:
    import torch

    from tunesmith.data.records import Preference
    from tunesmith.kinds.reward_model import RewardModel
    from tunesmith.lm import LM
    from tunesmith.runtime import Runtime


@frozen(kw_only=True)
class RLAlgorithmConfig(Config):
    """Base of every algorithm's config."""

    kind: ClassVar[str] = "rl_algorithm"


@frozen(kw_only=True, eq=False)
class Online:
    """A task with a reward.

    Attributes:
        prompts: Prompt texts.
        reward: Already set up.
        columns: Further fields of the prompts, handed to the reward; each as long as ``prompts``.
    """

    prompts: Sequence[str]
    reward: RewardModel
    columns: Mapping[str, Sequence[Any]] = Factory(dict)


@frozen(kw_only=True, eq=False)
class Offline:
    """A task with preferences."""

    preferences: Sequence[Preference]


@frozen(kw_only=True, eq=False)
class TrainingReport:
    """What a training run says of itself.

    Attributes:
        steps: One mapping of numbers per step (``"reward"``, ``"kl"``, ``"loss"`` ...), in order.
        summary: Numbers of the whole run.
        samples: Texts worth reading: mappings with ``prompt``, ``before``, ``after``.
    """

    steps: list[dict[str, float]] = field(factory=list)
    summary: dict[str, Any] = field(factory=dict)
    samples: list[dict[str, str]] = field(factory=list)


class RLAlgorithm(Component[Any]):
    """Improve a policy.

    The reference is the model exactly as it was given. If the policy's last adapter is trainable, it was put on by the
    caller for this training and the reference is the same model with only that one off; otherwise every parameter is
    trained and the algorithm keeps a frozen copy. KL is 0 at step 0 either way.

    Attributes:
        accepts: ``{"online"}``, ``{"offline"}`` or both.
        families: Which models it trains; others are a MissingPower.
    """

    accepts: ClassVar[frozenset[str]] = frozenset()
    families: ClassVar[frozenset[str]] = frozenset({"decoder", "encoder-decoder"})

    @abstractmethod
    def train(self, policy: LM, task: Online | Offline, runtime: Runtime) -> TrainingReport:
        """Train ``policy`` in place.

        With a ``runtime.folder`` it checkpoints there and a second call with the same arguments resumes and ends with the
        same weights, bit for bit on the CPU.

        Raises:
            ConfigError: If the task is of a kind that the algorithm does not accept.
        """

    def target(self, ref_logp: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor | None:
        """Return the log-probabilities of the algorithm's own fixed point over an enumerated world, or None if unknown.

        Args:
            ref_logp: (answers,) log-probabilities under the reference, float64.
            reward: (answers,).
            beta: Weight of the KL term.
        """
        return None

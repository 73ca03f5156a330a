"""RLAlgorithm: improve a policy from a reward (online) or from preferences (offline), with a frozen reference."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

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
    """Base of every algorithm's config.

    Attributes:
        accepts: What the algorithm learns from: ``{"online"}`` (a reward), ``{"offline"}`` (preferences) or both. Said here, a
            stage that gives it something else is refused when it is made; where only the implementation says it, when it runs.
    """

    kind: ClassVar[str] = "rl_algorithm"
    accepts: ClassVar[frozenset[str]] = frozenset()


@runtime_checkable
class Examinable(Protocol):
    """A config that knows with which settings it sits the exam (:mod:`tunesmith.testing.exam`).

    A config without this method is examined as it is spelled.
    """

    def exam_settings(self, policy: str, beta: float) -> Mapping[str, Any]:
        """Return field values for the exam; fields that the user set win over them.

        One prompt, answers of at most four tokens, the shorter ones ended by the end of sequence: penalties of completions
        without an end have to be off.

        Args:
            policy: ``"tabular"`` (a table of 425 logits), ``"causal"`` (a Llama of 83k parameters) or ``"seq2seq"`` (a T5 of
                93k parameters).
            beta: Weight of the KL term; the optimum is ``reference * exp(reward / beta)``, rewards being in [-1, 1].
        """


@frozen(kw_only=True, eq=False)
class StepTexts:
    """What was drawn at one step of an online training; all sequences have one entry a completion.

    Attributes:
        prompts: Prompt texts.
        completions: Completion texts, in the order of the prompts.
        scores: The task reward, before penalties; None where the reward had no opinion.
        kl: Log-ratio to the reference, summed over the completion's tokens, nats.
        rows: Which of the task's prompts each one has.
    """

    prompts: Sequence[str]
    completions: Sequence[str]
    scores: Sequence[float | None]
    kl: Sequence[float]
    rows: Sequence[int]


class Observer(Protocol):
    """Watches an online training, and may end it.

    An observer that also has ``state() -> Mapping[str, Any]`` (plain JSON values) and ``restore(values)``
    (:class:`ResumableObserver`) gets back what it knew when an interrupted training goes on, so that training ends where it
    would have ended uninterrupted. Others see the remaining steps only. One that does not derive from ``Observer`` will do.
    """

    def step(self, index: int, numbers: Mapping[str, float], drawn: StepTexts) -> str | None:
        """Take up one step, after its updates.

        Args:
            index: Of the step, from 0.
            numbers: What :attr:`TrainingReport.steps` holds of it; at least ``reward``, ``kl``, ``length``, ``entropy`` and
                ``distinct`` (share of the step's completions that differ from all others before them).
            drawn: The completions.

        Returns:
            A reason to stop training here, one sentence for the report; None to go on.
        """


@runtime_checkable
class ResumableObserver(Protocol):
    """An observer that remembers."""

    def step(self, index: int, numbers: Mapping[str, float], drawn: StepTexts) -> str | None:
        """See :class:`Observer`."""

    def state(self) -> Mapping[str, Any]:
        """Return what it knows, as plain JSON values; saved with every checkpoint."""

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` returned."""


@frozen(kw_only=True, eq=False)
class Online:
    """A task with a reward.

    Attributes:
        prompts: Prompt texts.
        reward: Already set up.
        columns: Further fields of the prompts, handed to the reward; each as long as ``prompts``.
        observers: Called after every step, in order; all are called even if one asks to stop.
    """

    prompts: Sequence[str]
    reward: RewardModel
    columns: Mapping[str, Sequence[Any]] = Factory(dict)
    observers: Sequence[Observer] = ()


@frozen(kw_only=True, eq=False)
class Offline:
    """A task with preferences."""

    preferences: Sequence[Preference]


@frozen(kw_only=True, eq=False)
class TrainingReport:
    """What a training run says of itself.

    Attributes:
        steps: One mapping of numbers per step (``"reward"``, ``"kl"``, ``"loss"`` ...), in order.
        summary: Numbers of the whole run; ``"stopped"`` says in words why training ended early, if it did.
        samples: Texts worth reading: mappings with ``prompt``, ``before``, ``after``.
        logged: Texts of single steps: mappings with ``step``, ``prompt``, ``completion``, ``reward``.
    """

    steps: list[dict[str, float]] = field(factory=list)
    summary: dict[str, Any] = field(factory=dict)
    samples: list[dict[str, str]] = field(factory=list)
    logged: list[dict[str, Any]] = field(factory=list)


class RLAlgorithm(Component[Any]):
    """Improve a policy.

    The reference is the model exactly as it was given. If the policy's last adapter is trainable, it was put on by the
    caller for this training and the reference is the same model with only that one off; otherwise every parameter is
    trained and the algorithm keeps a frozen copy. KL is 0 at step 0 either way.

    Attributes:
        families: Which models it trains; others are a MissingPower.
    """

    families: ClassVar[frozenset[str]] = frozenset({"decoder", "encoder-decoder"})

    @property
    def accepts(self) -> frozenset[str]:
        """``{"online"}``, ``{"offline"}`` or both: what the config says, unless the class says it itself."""
        accepts: frozenset[str] = self.config.accepts
        return accepts

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

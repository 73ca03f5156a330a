"""Configs of the standard reward models."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from attrs import Attribute, field, frozen
from attrs import validators as v

from tunesmith.errors import ConfigError
from tunesmith.kinds.reward_model import RewardModelConfig
from tunesmith.kinds.stage import Output
from tunesmith.training.stopping import needs_validation

IMPLEMENTATIONS = "tunesmith_plugins.reward_models"


def _names_completion(_: Any, attribute: Attribute[str], value: str) -> None:
    if "{completion}" not in value:
        raise ValueError(f"'{attribute.name}' must contain {{completion}}: {value!r}")


def _names_a_function(_: Any, attribute: Attribute[str], value: str) -> None:
    module, colon, name = value.partition(":")
    if not (colon and name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise ValueError(f"'{attribute.name}' must read 'package.module:function': {value!r}")


@frozen(kw_only=True)
class Classifier(RewardModelConfig):
    """The logit of one label of a sequence classifier.

    A logit, not a probability: it does not flatten where the classifier is sure (ranges of roughly -10 to 10; choose the
    KL coefficient to match).

    Attributes:
        model: Folder or hub name of a sequence-classification model.
        label: The label's name, or its index in digits; of a model with a single output, ``"0"``.
        template: What the classifier reads, made of ``{prompt}`` and ``{completion}``.
        batch_size: Rows at once.
        max_length: Longest input in tokens; longer ones lose their beginning. 0: what the model can read.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.classifier:ClassifierReward"
    model: str = field(validator=v.min_len(1))
    label: str = field(validator=v.min_len(1))
    template: str = field(default="{completion}", validator=_names_completion)
    batch_size: int = field(default=32, validator=v.ge(1))
    max_length: int = field(default=0, validator=v.ge(0))


@frozen(kw_only=True)
class Pairwise(RewardModelConfig):
    """A scalar head on an encoder or decoder, trained on preference pairs (Bradley and Terry 1952; Ouyang et al. 2022).

    The loss of a pair is ``-log sigmoid(r_chosen - r_rejected - margin) + centering (r_chosen + r_rejected)^2``, weighted by
    ``Preference.weight``. All pairs of one ranking (one ``Preference.group``) are one element of a batch, each completion is
    scored once, and the ranking counts as the mean of its C(K, 2) pairs (Ouyang et al. 2022, equation 1): the weights of its
    pairs are scaled down where they sum to more than 1. The score is read at the first token of an encoder and at the last
    one of a decoder.

    Attributes:
        model: Folder or hub name of the backbone.
        template: What is scored, made of ``{prompt}`` and ``{completion}``.
        epochs: Passes over the rankings; ignored where ``steps`` is set. One is usual; more overfits (Ouyang et al. 2022).
        steps: Updates; 0 means by epochs.
        batch_size: Rankings (or pairs without a group) an update and device, and rows at once when scoring.
        learning_rate: Peak learning rate (AdamW), linearly to zero.
        weight_decay: Of all weights but biases and norms.
        centering: Weight of the term that keeps scores around 0 (Eisenstein et al. 2023); differences alone would leave
            them anywhere.
        margin: Whether ``Preference.margin`` is used.
        max_length: Longest input in tokens; longer ones lose their beginning. 0: what the model can read.
        max_grad_norm: Gradients are clipped to this norm; 0: never.
        checkpoint_every: Updates between checkpoints, and between evaluations.
        validation: Share of the rankings kept for a validation loss; 0 for none.
        early_stopping: Stop after so many evaluations without a better validation loss; 0 means never.
        arguments: Further ``TrainingArguments`` (bf16, gradient_checkpointing, report_to ...), passed through, and
            ``device_map``.
    """

    revision: ClassVar[int] = 2

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.pairwise:PairwiseReward"
    model: str = field(validator=v.min_len(1))
    template: str = field(default="{prompt}{completion}", validator=_names_completion)
    epochs: int = field(default=1, validator=v.ge(1))
    steps: int = field(default=0, validator=v.ge(0))
    batch_size: int = field(default=16, validator=v.ge(1))
    learning_rate: float = field(default=1e-4, validator=v.gt(0))
    weight_decay: float = field(default=0.0, validator=v.ge(0))
    centering: float = field(default=0.01, validator=v.ge(0))
    margin: bool = True
    max_length: int = field(default=0, validator=v.ge(0))
    max_grad_norm: float = field(default=1.0, validator=v.ge(0))
    checkpoint_every: int = field(default=50, validator=v.ge(1))
    validation: float = field(default=0.0, validator=[v.ge(0), v.lt(1)])
    early_stopping: int = field(default=0, validator=[v.ge(0), needs_validation])
    arguments: dict[str, bool | int | float | str] = field(factory=dict)


@frozen(kw_only=True)
class Function(RewardModelConfig):
    """A Python function ``f(prompts, completions, **columns) -> list[float | None]``, as trl's reward functions are.

    Runs the code it names, and therefore needs ``allow_code`` from the caller. Columns that the function does not take are
    not given to it.

    Attributes:
        target: ``"package.module:function"``.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.function:FunctionReward"
    target: str = field(validator=_names_a_function)

    def code_digest(self) -> str:
        """Return the SHA-256 of the module's source, without running it, so that stored results follow the code.

        Raises:
            PluginLoadError: If there is no such module or its source cannot be read.
        """
        from tunesmith.source import source_digest

        return source_digest(self.target)


@frozen(kw_only=True)
class Mix(RewardModelConfig):
    """The weighted sum of several reward models.

    Attributes:
        models: Label to reward model; at least one.
        weights: Label to weight, negative ones allowed; a label that is not named has weight 1.
        missing: What a row without an opinion of one of the models gets: ``"skip"``: the sum of the others (none if none
            has one), as in trl; ``"none"``: no opinion. Skipping changes the scale of such rows.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.mix:MixReward"
    models: dict[str, RewardModelConfig] = field(validator=v.min_len(1))
    weights: dict[str, float] = field(factory=dict)
    missing: Literal["skip", "none"] = "skip"

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        unknown = sorted(set(self.weights) - set(self.models))
        if unknown:
            known = ", ".join(self.models)
            raise ConfigError([f"'weights' names {', '.join(unknown)}, but the models are {known}"], "mix")


@frozen(kw_only=True)
class Trained(RewardModelConfig):
    """A reward model that is already an artifact: what TrainReward made, as a part of a mix, an ensemble or a normalization.

    Attributes:
        reward_model: The artifact's folder, or the ``reward_model`` of an earlier stage.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.trained:TrainedReward"
    reward_model: str | Output = field(metadata={"path": True})


@frozen(kw_only=True)
class Ensemble(RewardModelConfig):
    """Several reward models of the same thing, so that where they disagree less is believed (Coste et al. 2024).

    Members must be on one scale, as those of one training recipe are; put others in ``normalized`` first. A row on which one
    member has no opinion gets none.

    Attributes:
        models: Label to member; at least two.
        combine: ``"mean"``, ``"min"``, or ``"penalized"``: ``mean - coefficient * std``, with the standard deviation of the
            members as a population (divided by their number).
        coefficient: See ``combine``; used by ``"penalized"`` only.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.ensemble:EnsembleReward"
    models: dict[str, RewardModelConfig] = field(validator=v.min_len(2))
    combine: Literal["mean", "min", "penalized"] = "penalized"
    coefficient: float = field(default=1.0, validator=v.ge(0))


@frozen(kw_only=True)
class LengthPenalty(RewardModelConfig):
    """Minus the length outside a range: ``-(max(0, length - most) + max(0, fewest - length))``. For use in a ``mix``.

    Attributes:
        unit: ``"words"`` (what white space separates) or ``"characters"``.
        most: Free of charge up to this length.
        fewest: Free of charge from this length; not above ``most``.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.penalties:LengthPenaltyReward"
    unit: Literal["words", "characters"] = "words"
    most: int = field(default=0, validator=v.ge(0))
    fewest: int = field(default=0, validator=v.ge(0))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.fewest > self.most:
            raise ConfigError([f"'fewest' ({self.fewest}) must not exceed 'most' ({self.most})"], "length_penalty")


@frozen(kw_only=True)
class RepetitionPenalty(RewardModelConfig):
    """Minus the share of n-grams that were there before: ``-(1 - different n-grams / n-grams)``, between -1 and 0.

    This is the seq-rep-n of Welleck et al. 2020. A completion shorter than ``n`` repeats nothing. For use in a ``mix``.

    Attributes:
        n: Length of the n-grams.
        unit: ``"words"`` (what white space separates) or ``"characters"``.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.penalties:RepetitionPenaltyReward"
    n: int = field(default=3, validator=v.ge(1))
    unit: Literal["words", "characters"] = "words"


@frozen(kw_only=True)
class Normalized(RewardModelConfig):
    """``gain * reward + bias`` with mean 0 and variance 1 on completions of the reference (Ziegler et al. 2019).

    Both numbers are fixed before training. A running deviation would change the weight of the KL term as the policy
    changes; with a fixed gain ``g`` the optimum is that of the raw reward with the KL coefficient divided by ``g``.

    Where they come from: ``gain`` and ``bias``; or completions in ``generations``; or, if neither is given, whoever trains
    with it measures them: the Align stage draws completions of the model that it starts from.

    Attributes:
        reward: What is normalized.
        gain: Above 0; given together with ``bias`` or not at all.
        bias: Added after the gain.
        generations: The ``generations`` of an earlier stage, their folder, or a JSONL file with ``prompt`` and ``text``.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.normalized:NormalizedReward"
    reward: RewardModelConfig
    gain: float | None = field(default=None, validator=v.optional(v.gt(0)))
    bias: float | None = None
    generations: str | Output | None = field(default=None, metadata={"path": True})

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if (self.gain is None) != (self.bias is None):
            raise ConfigError(["'gain' and 'bias' belong together: give both or neither"], "normalized")
        if self.gain is not None and self.generations is not None:
            raise ConfigError(["'gain' and 'bias' are given, so 'generations' has no use: leave it out"], "normalized")

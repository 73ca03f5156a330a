"""Configs of the standard compressors."""

from __future__ import annotations

from typing import ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from tunesmith.kinds.compressor import CompressorConfig

IMPLEMENTATIONS = "tunesmith_plugins.compressors"


@frozen(kw_only=True)
class Magnitude(CompressorConfig):
    """Set the smallest weights of linear layers to zero (Han et al. 2015, section 3).

    The zeros are stored like any other number: the model is sparse, not smaller on disk and not faster.

    Attributes:
        sparsity: Share of the weights that become zero.
        scope: ``"layer"``: that share in every layer; ``"global"``: that share of all layers together, by one threshold.
        skip: Layers to leave alone, as in ``Int8``.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.magnitude:MagnitudeCompressor"
    sparsity: float = field(default=0.5, validator=[v.ge(0), v.lt(1)])
    scope: Literal["layer", "global"] = "layer"
    skip: tuple[str, ...] = ()


@frozen(kw_only=True)
class Distill(CompressorConfig):
    """Train a smaller student on a teacher's output distributions and on the data's own answers.

    Loss per target token: ``soft * T^2 * KL(teacher_T || student_T) + (1 - soft) * cross-entropy`` (Hinton et al. 2015,
    section 2), where ``_T`` are distributions at temperature T. The factor T^2 keeps the gradient's scale when T changes.

    Attributes:
        keep_every: Where no teacher is given, the student is made of every so many-th layer of the model itself (the first
            layer always stays) and the model is the teacher. 1 keeps all layers.
        temperature: T.
        soft: Weight of the teacher's distributions; 0 trains on the data's answers only, 1 on the teacher only.
        steps: Optimizer steps.
        batch_size: Examples a step.
        learning_rate: Peak learning rate of AdamW; falls linearly to 0.
        max_length: Longest input in tokens; what is cut is reported.
        max_target_length: Longest target in tokens (encoder-decoder).
        mask_share: Share of masked tokens (encoders).
        mask_prompt: Only the answer's tokens are in the loss (decoders).
        packing: Put several examples in one row (decoders).
        validation: Share of the examples kept for a validation loss; 0 for none.
        early_stopping: Stop after so many evaluations without a better validation loss; 0 means never.
        arguments: Further ``TrainingArguments`` (bf16, gradient_checkpointing, report_to, weight_decay ...), passed through.
    """

    revision: ClassVar[int] = 2
    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.distill:DistillCompressor"
    keep_every: int = field(default=2, validator=v.ge(1))
    temperature: float = field(default=2.0, validator=v.gt(0))
    soft: float = field(default=0.5, validator=[v.ge(0), v.le(1)])
    steps: int = field(default=200, validator=v.ge(1))
    batch_size: int = field(default=16, validator=v.ge(1))
    learning_rate: float = field(default=1e-3, validator=v.gt(0))
    max_length: int = field(default=512, validator=v.ge(1))
    max_target_length: int = field(default=128, validator=v.ge(1))
    mask_share: float = field(default=0.15, validator=[v.gt(0), v.lt(1)])
    mask_prompt: bool = True
    packing: bool = False
    validation: float = field(default=0.0, validator=[v.ge(0), v.lt(1)])
    early_stopping: int = field(default=0, validator=v.ge(0))
    arguments: dict[str, bool | int | float | str] = field(factory=dict)

"""Config of distillation."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from attrs import Attribute, field, fields, frozen
from attrs import validators as v

from tunesmith.kinds.compressor import CompressorConfig
from tunesmith.training.stopping import needs_validation

IMPLEMENTATIONS = "tunesmith_plugins.compressors"


def _layer_numbers(_: Any, attribute: Attribute[Any], value: tuple[int, ...]) -> None:
    if any(number < 0 for number in value):
        raise ValueError(f"'{attribute.name}' must have numbers of teacher layers, 0 for the embeddings, not {value}")


@frozen(kw_only=True)
class Distill(CompressorConfig):
    """Train a smaller student on a teacher's output distributions, hidden states or texts, and on the data's own answers.

    Loss per target token: ``soft * T^2 * D(teacher_T, student_T) + (1 - soft) * cross-entropy + hidden * MSE`` (Hinton et al.
    2015, section 2; Romero et al. 2015), where ``_T`` are distributions at temperature T. The factor T^2 keeps the
    gradient's scale when T changes. Logits are never held for all tokens at once, see ``chunk``.

    Attributes:
        keep_every: Where no teacher is given, the student is made of every so many-th layer of the model itself (the first
            layer always stays) and the model is the teacher. 1 keeps all layers.
        student: Where no teacher is given: fields of the student's config that differ from the model's, such as
            ``{"num_hidden_layers": 2, "hidden_size": 32}``. The student then begins with random weights. With a ``"model_type"`` it
            is of that architecture.
        temperature: T.
        soft: Weight of the teacher's distributions; 0 trains on the data's answers only, 1 on the teacher only.
        divergence: D: ``"forward_kl"`` KL(teacher || student), ``"reverse_kl"`` KL(student || teacher), or ``"jensen_shannon"``:
            ``beta * KL(teacher || m) + (1 - beta) * KL(student || m)`` with ``m = beta * teacher + (1 - beta) * student`` (Agarwal et al.
            2024, equation 1).
        beta: Of the Jensen-Shannon divergence.
        hidden: Weight of the mean squared difference of hidden states at target tokens, summed over mapped layers; of an
            encoder-decoder's encoder too, at all of its tokens. Where widths differ, trained projections stand between them.
        layer_map: For student layer 1, 2, ...: the number of the teacher layer it is to resemble (0: the embeddings). Empty:
            spread evenly, the last to the last. Of an encoder-decoder for both stacks.
        decoder_layer_map: The same for the decoder of an encoder-decoder; ``layer_map`` is then the encoder's alone. Empty: as
            ``layer_map``.
        keep_zeros: Zeros of the student's matrices stay zero, as pruning left them. Not with FSDP or DeepSpeed, which cut
            parameters up.
        texts: ``"data"``: the data's answers. ``"teacher"``: what the teacher writes for their prompts (sequence-level distillation,
            Kim & Rush 2016, section 3.2).
        beams: Of the teacher's beam search for ``texts="teacher"``; 1 is greedy.
        on_policy: Probability that a batch has answers which the student itself draws, with the teacher's distributions
            only (Agarwal et al. 2024, algorithm 1). Then each example counts equally, whatever its length.
        sampling_temperature: Of the student's own answers.
        max_new_tokens: Of answers that teacher or student write.
        chunk: Tokens whose logits exist at one time, forwards and backwards (they are computed again in the backward
            pass); 0 holds all of them.
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

    revision: ClassVar[int] = 5
    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.distill:DistillCompressor"
    keep_every: int = field(default=2, validator=v.ge(1))
    student: dict[str, bool | int | float | str] = field(factory=dict)
    temperature: float = field(default=2.0, validator=v.gt(0))
    soft: float = field(default=0.5, validator=[v.ge(0), v.le(1)])
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl"
    beta: float = field(default=0.5, validator=[v.gt(0), v.lt(1)])
    hidden: float = field(default=0.0, validator=v.ge(0))
    layer_map: tuple[int, ...] = field(default=(), validator=_layer_numbers)
    decoder_layer_map: tuple[int, ...] = field(default=(), validator=_layer_numbers)
    keep_zeros: bool = False
    texts: Literal["data", "teacher"] = "data"
    beams: int = field(default=1, validator=v.ge(1))
    on_policy: float = field(default=0.0, validator=[v.ge(0), v.le(1)])
    sampling_temperature: float = field(default=1.0, validator=v.gt(0))
    max_new_tokens: int = field(default=64, validator=v.ge(1))
    chunk: int = field(default=1024, validator=v.ge(0))
    steps: int = field(default=200, validator=v.ge(1))
    batch_size: int = field(default=16, validator=v.ge(1))
    learning_rate: float = field(default=1e-3, validator=v.gt(0))
    max_length: int = field(default=512, validator=v.ge(1))
    max_target_length: int = field(default=128, validator=v.ge(1))
    mask_share: float = field(default=0.15, validator=[v.gt(0), v.lt(1)])
    mask_prompt: bool = True
    packing: bool = False
    validation: float = field(default=0.0, validator=[v.ge(0), v.lt(1)])
    early_stopping: int = field(default=0, validator=[v.ge(0), needs_validation])
    arguments: dict[str, bool | int | float | str] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.on_policy and not self.soft:
            raise ValueError("'on_policy' needs 'soft' > 0: the student's own answers have no loss but the teacher's")
        if self.on_policy and (self.packing or not self.mask_prompt):
            raise ValueError("'on_policy' needs prompts apart from answers: mask_prompt=True and no packing")
        for name in ("layer_map", "decoder_layer_map"):
            if getattr(self, name) and not self.hidden:
                raise ValueError(f"'{name}' is for hidden states; give their weight, 'hidden'")
        if self.student and self.keep_every != fields(type(self)).keep_every.default:
            raise ValueError("'keep_every' would change nothing: 'student' says what the student is")
        writes = bool(self.on_policy) or self.texts == "teacher"
        for name, used, needs in (
            ("beta", self.divergence == "jensen_shannon", 'divergence="jensen_shannon"'),
            ("beams", self.texts == "teacher", 'texts="teacher"'),
            ("sampling_temperature", bool(self.on_policy), "on_policy above 0"),
            ("max_new_tokens", writes, 'texts="teacher" or on_policy above 0'),
        ):
            if not used and getattr(self, name) != getattr(fields(type(self)), name).default:
                raise ValueError(f"'{name}' would change nothing; it needs {needs}")

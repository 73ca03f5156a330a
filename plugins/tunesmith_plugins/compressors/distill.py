"""Distillation with soft and hard labels."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from tunesmith.data.encoding import IGNORED, Lengths, Row, Truncation
from tunesmith.data.records import Example
from tunesmith.errors import ConfigError
from tunesmith.kinds.compressor import CompressionReport, Compressor
from tunesmith.lm import LM
from tunesmith.runtime import Runtime, derive_seed
from tunesmith.training import packing
from tunesmith.training.arguments import Settings, accumulation, check, training_arguments
from tunesmith.training.stream import Fixed, Stream
from tunesmith.training.task import Limits, Task, objective_of
from tunesmith_plugins.compressors.layers import merged, stored_bytes
from tunesmith_plugins.compressors.student import every_nth


class DistillCompressor(Compressor):
    """Train a student on a teacher's distributions."""

    needs_data = True

    def compress(
        self, lm: LM, *, data: Sequence[Example] | None = None, teacher: LM | None = None, runtime: Runtime
    ) -> tuple[LM, CompressionReport]:
        """Return the trained student: ``lm`` itself if a teacher is given, else every n-th layer of ``lm``.

        Raises:
            ConfigError: Without data, or if teacher and student do not share vocabulary and family, or for arguments that
                the trainer does not take.
        """
        if not data:
            raise ConfigError(
                ["distillation needs examples to train on; give the stage data with at least one example"]
            )
        check(self._settings())
        lm = merged(lm, "distillation")
        teacher = lm if teacher is None else teacher
        with runtime.activated():
            student = lm if teacher is not lm else every_nth(lm, self.config.keep_every)
            _check_pair(teacher, student)
            summary = self._train(teacher, student, data, runtime)
        report = CompressionReport(
            parameters=(teacher.parameter_count(), student.parameter_count()),
            bytes=(stored_bytes(teacher.model), stored_bytes(student.model)),
            summary=summary,
        )
        return LM(model=student.model, tokenizer=student.tokenizer, family=student.family), report

    def _settings(self) -> Settings:
        config = self.config
        return Settings(
            where="distill",
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            given=config.arguments,
            validates=config.validation > 0,
            early_stopping=config.early_stopping,
            owners={"device_map": "the Compress stage, which loads the model"},
        )

    def _train(self, teacher: LM, student: LM, data: Sequence[Example], runtime: Runtime) -> dict[str, Any]:
        from tunesmith.training.trainer import Job, train

        config = self.config
        task = Task(
            objective=objective_of(student.family, "auto"),
            lm=student,
            limits=Limits(
                lengths=Lengths(input=config.max_length, target=config.max_target_length),
                packing=config.packing,
                mask_prompt=config.mask_prompt,
                mask_share=config.mask_share,
            ),
        )
        if config.packing:
            packing.check(student.model, ())
            packing.check(teacher.model, teacher.adapters)
        examples, held_out = _split(data, config.validation, runtime.seed)
        cut = Truncation()
        rows = task.rows(examples, cut)
        validation = task.rows(held_out, Truncation()) if held_out else []
        student.model.requires_grad_(True)
        with ExitStack() as stack:
            folder = runtime.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            job = Job(
                model=student.model,
                arguments=training_arguments(self._settings(), folder, runtime, config.steps),
                items=_stream(rows, task, config.steps * config.batch_size * accumulation(config.arguments), runtime),
                collate=task.collate(),
                validation=Fixed(validation, runtime.seed, task.noise) if validation else None,
                loss=DistillationLoss(teacher.model, config.temperature, config.soft, task.objective == "causal"),
                early_stopping=config.early_stopping,
            )
            trained = train(job, runtime)
        student.model.to(runtime.device if not hasattr(student.model, "hf_device_map") else student.device)
        student.model.eval()
        return {
            "steps": trained.steps,
            "loss": trained.losses,
            "loss_steps": trained.loss_steps,
            "validation_loss": [list(entry) for entry in trained.validation],
            "examples": len(examples),
            "validation_examples": len(held_out),
            "cut_inputs": cut.inputs.shortened,
            "cut_targets": cut.targets.shortened,
            "cut_token_share": cut.share,
        }


class DistillationLoss:
    """:func:`distillation_loss` summed over the labelled tokens of a batch (a ``tunesmith.training.trainer.Loss``).

    Args:
        teacher: Frozen here; used without gradients and without dropout.
        temperature: T.
        soft: Weight of the teacher's part.
        shifted: Whether the logits at a token are those of the next one (decoders).
    """

    def __init__(self, teacher: Any, temperature: float, soft: float, shifted: bool) -> None:
        self.teacher = teacher.requires_grad_(False).eval()
        self.temperature, self.soft, self.shifted = temperature, soft, shifted
        takes = inspect.signature(teacher.forward).parameters
        self.options = {"use_cache": False} if "use_cache" in takes else {}

    def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum over the labelled tokens."""
        student = model(**batch).logits
        with torch.no_grad():
            teacher = self.teacher(**batch, **self.options).logits.to(student.device)
        if self.shifted:
            student, teacher = student[:, :-1], teacher[:, :-1]
        labels = self._labels(batch).to(student.device)
        mean = distillation_loss(student, teacher, labels, self.temperature, self.soft)
        return mean * (labels != IGNORED).sum()

    def items(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the number of labelled tokens."""
        return (self._labels(batch) != IGNORED).sum()

    def _labels(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["labels"][:, 1:] if self.shifted else batch["labels"]


def distillation_loss(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float, soft: float
) -> torch.Tensor:
    """Return ``soft * T^2 * KL(teacher_T || student_T) + (1 - soft) * cross-entropy``, averaged over labelled tokens.

    Hinton et al. (2015), "Distilling the Knowledge in a Neural Network", section 2.

    Args:
        student: Logits (batch, time, vocab).
        teacher: Logits (batch, time, vocab), without gradient.
        labels: (batch, time); ``-100`` where a token is not in the loss.
        temperature: T.
        soft: Weight of the first term.
    """
    valid = labels != IGNORED
    if not valid.any():  # a batch without a token to predict; a mean over none is NaN
        return student.sum() * 0.0
    student, teacher, labels = student[valid].float(), teacher[valid].float(), labels[valid]
    log_student = functional.log_softmax(student / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=-1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return soft * temperature**2 * divergence + (1 - soft) * functional.cross_entropy(student, labels)


def _stream(rows: Sequence[Row], task: Task, items: int, runtime: Runtime) -> Stream:
    return Stream({"": rows}, {}, items, runtime.seed, task.noise)


def _split(data: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Return examples for training and about ``share`` of them for validation; which ones depends on ids and seed alone."""
    if not share:
        return list(data), []
    if len(data) < 2:
        raise ConfigError(["a validation share needs at least two examples @ validation"], "distill")
    ids = sorted((example.id for example in data), key=lambda name: derive_seed(seed, "validation", name))
    held = set(ids[: min(max(1, round(share * len(ids))), len(ids) - 1)])
    return [e for e in data if e.id not in held], [e for e in data if e.id in held]


def _check_pair(teacher: LM, student: LM) -> None:
    problems = []
    if teacher.family != student.family:
        problems.append(
            f"the teacher is a(n) {teacher.family}, the student a(n) {student.family}; they must be of one family"
        )
    if teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        problems.append(
            "teacher and student have different vocabularies; distillation compares distributions over one vocabulary"
        )
    if getattr(student.model, "is_quantized", False):
        problems.append("the student's weights are quantized and cannot be trained; distill first, then quantize")
    if problems:
        raise ConfigError(problems, "distill")

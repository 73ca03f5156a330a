"""Distillation with soft and hard labels."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional

from tunesmith.checkpoints import newest_sealed, sealing_callback
from tunesmith.data.encoding import IGNORED, Encoded, encode, pad
from tunesmith.data.records import Example
from tunesmith.errors import ConfigError
from tunesmith.kinds.compressor import CompressionReport, Compressor
from tunesmith.lm import LM
from tunesmith.runtime import Runtime, derive_seed
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
            ConfigError: Without data, or if teacher and student do not share vocabulary and family.
        """
        if not data:
            raise ConfigError(
                ["distillation needs examples to train on; give the stage data with at least one example"]
            )
        lm = merged(lm, "distillation")
        teacher = lm if teacher is None else teacher
        with runtime.activated():
            student = lm if teacher is not lm else every_nth(lm, self.config.keep_every)
            _check_pair(teacher, student)
            rows = [self._encode(example, student) for example in data]
            losses = self._train(teacher, student, rows, runtime)
        report = CompressionReport(
            parameters=(teacher.parameter_count(), student.parameter_count()),
            bytes=(stored_bytes(teacher.model), stored_bytes(student.model)),
            summary={
                "steps": self.config.steps,
                "loss": losses,
                "examples": len(rows),
                "cut_inputs": sum(row.cut_input > 0 for row in rows),
                "cut_targets": sum(row.cut_target > 0 for row in rows),
            },
        )
        return LM(model=student.model, tokenizer=student.tokenizer, family=student.family), report

    def _encode(self, example: Example, lm: LM) -> Encoded:
        return encode(
            example,
            lm.tokenizer,
            lm.family,
            max_length=self.config.max_length,
            max_target_length=self.config.max_target_length,
        )

    def _train(self, teacher: LM, student: LM, rows: list[Encoded], runtime: Runtime) -> list[float]:
        config = self.config
        with ExitStack() as stack:
            folder = runtime.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            arguments = transformers.TrainingArguments(
                output_dir=str(folder),
                max_steps=config.steps,
                per_device_train_batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                lr_scheduler_type="linear",
                seed=runtime.seed % 2**32,
                logging_steps=1,
                save_steps=max(1, config.steps // 10) if runtime.folder else config.steps + 1,
                save_total_limit=2,
                report_to=[],
                remove_unused_columns=False,
                disable_tqdm=True,
                use_cpu=runtime.device == "cpu",
            )
            trainer = DistillationTrainer(
                teacher=teacher.model,
                temperature=config.temperature,
                soft=config.soft,
                model=student.model,
                args=arguments,
                train_dataset=rows,
                mask=_Masking(student, config.mask_share, runtime.seed) if student.family == "encoder" else None,
                data_collator=functools.partial(pad, tokenizer=student.tokenizer),
                callbacks=[sealing_callback()] if runtime.folder else [],
            )
            trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
            newest = newest_sealed(folder)
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
            student.model.eval()
            return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class DistillationTrainer(transformers.Trainer):
    """A trainer whose loss is :func:`distillation_loss`.

    Args:
        teacher: Frozen here; used without gradients and without dropout.
        temperature: T.
        soft: Weight of the teacher's part.
        mask: Makes a masked batch of a batch and the number of the step; None where nothing is masked.
        options: Of ``transformers.Trainer``.
    """

    def __init__(
        self, *, teacher: Any, temperature: float, soft: float, mask: Callable[..., Any] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.teacher = teacher.requires_grad_(False).eval()
        self.temperature, self.soft, self.mask = temperature, soft, mask

    def compute_loss(
        self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of one batch, averaged over its target tokens."""
        if self.mask is not None:
            inputs = self.mask(inputs, self.state.global_step)
        labels = inputs["labels"]
        output = model(**inputs)
        with torch.no_grad():
            guide = self.teacher(**inputs).logits
        shifted = not (model.config.is_encoder_decoder or _is_masked(model))
        student = output.logits[:, :-1] if shifted else output.logits
        guide = guide[:, :-1] if shifted else guide
        loss = distillation_loss(student, guide, labels[:, 1:] if shifted else labels, self.temperature, self.soft)
        return (loss, output) if return_outputs else loss


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
    if not valid.any():  # no token of a short encoder batch was hidden; a mean over none is NaN
        return student.sum() * 0.0
    student, teacher, labels = student[valid].float(), teacher[valid].float(), labels[valid]
    log_student = functional.log_softmax(student / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=-1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return soft * temperature**2 * divergence + (1 - soft) * functional.cross_entropy(student, labels)


class _Masking:
    """Hides tokens of an encoder's batch. Which ones depends on the seed and the step alone: the state of a generator in a
    checkpoint would be that after batches which were fetched ahead, and a resumed run would hide others."""

    def __init__(self, lm: LM, share: float, seed: int) -> None:
        self._hide = transformers.DataCollatorForLanguageModeling(lm.tokenizer, mlm_probability=share)
        self._seed = seed

    def __call__(self, batch: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
        device = batch["input_ids"].device
        self._hide.generator = torch.Generator().manual_seed(derive_seed(self._seed, "mask", step))
        ids, labels = self._hide.torch_mask_tokens(batch["input_ids"].cpu())
        labels = labels.to(device).masked_fill(batch["attention_mask"] == 0, IGNORED)
        return {**batch, "input_ids": ids.to(device), "labels": labels}


def _is_masked(model: Any) -> bool:
    return type(model).__name__.endswith("ForMaskedLM")


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
    if problems:
        raise ConfigError(problems, "distill")

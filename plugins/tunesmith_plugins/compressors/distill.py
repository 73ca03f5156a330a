"""Distillation: the compressor."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import evolve

from tunesmith.continuation import UNLIMITED, writable
from tunesmith.data.encoding import IGNORED, Lengths, Row, Truncation
from tunesmith.data.records import Example
from tunesmith.errors import ConfigError
from tunesmith.kinds.compressor import CompressionReport, Compressor
from tunesmith.lm import LM
from tunesmith.processes import cutting
from tunesmith.runtime import Runtime, derive_seed
from tunesmith.training import packing
from tunesmith.training.arguments import Settings, accumulation, check, training_arguments
from tunesmith.training.stream import Fixed, Stream
from tunesmith.training.task import Limits, Task, objective_of
from tunesmith_plugins.compressors import distill_heads as heads
from tunesmith_plugins.compressors.distill_divergence import Divergence
from tunesmith_plugins.compressors.distill_hidden import PROJECTIONS, Pairing, pairings, project
from tunesmith_plugins.compressors.distill_loss import DistillationLoss, OnPolicy
from tunesmith_plugins.compressors.distill_texts import teacher_texts
from tunesmith_plugins.compressors.examples import needed_examples
from tunesmith_plugins.compressors.half_precision import to_float32
from tunesmith_plugins.compressors.layers import merged, stored_bytes
from tunesmith_plugins.compressors.prune_calibration import attention_kept, is_classifier, most_tokens
from tunesmith_plugins.compressors.student import every_nth, from_config
from tunesmith_plugins.stages.training.memory import peak_bytes

NO_FLOAT16 = (
    "the squares of gradients that Adam keeps vanish in %s, so the student becomes float32; dtype=torch.bfloat16 takes half the "
    "memory. The teacher stays as it is."
)


class DistillCompressor(Compressor):
    """Train a student on a teacher's distributions."""

    needs_data = True

    def compress(
        self, lm: LM, *, data: Sequence[Example] | None = None, teacher: LM | None = None, runtime: Runtime
    ) -> tuple[LM, CompressionReport]:
        """Return the trained student: ``lm`` itself if a teacher is given, else one made after ``lm``.

        Raises:
            ConfigError: Without data, or if teacher and student do not share vocabulary and family, or for arguments that
                the trainer does not take, or where a method does not fit the models.
        """
        data = needed_examples(lm, data, "distillation", "to train on")
        check(self._settings())
        lm = merged(lm, "distillation")
        teacher = lm if teacher is None or teacher.model is lm.model else teacher
        if teacher.tokenizer is None:
            teacher = evolve(teacher, tokenizer=lm.tokenizer)
        with runtime.activated():
            student = self._student(lm, teacher)
            to_float32(student.model, (torch.float16,), NO_FLOAT16)
            _check_pair(teacher, student, self.config.soft)
            if is_classifier(student.model):
                _check_classes(teacher, student, self.config)
            if self.config.texts == "teacher":
                data, cut_texts = teacher_texts(
                    teacher, data, beams=self.config.beams, max_new_tokens=self.config.max_new_tokens, runtime=runtime
                )
            with _as_it_was(teacher.model):
                summary = self._train(teacher, student, data, runtime)
        if self.config.texts == "teacher":
            summary["teacher_texts_cut"] = cut_texts
        report = CompressionReport(
            parameters=(teacher.parameter_count(nonzero=True), student.parameter_count(nonzero=True)),
            bytes=(stored_bytes(teacher.model), stored_bytes(student.model)),
            summary=summary,
        )
        return LM(model=student.model, tokenizer=student.tokenizer, family=student.family), report

    def _student(self, lm: LM, teacher: LM) -> LM:
        if teacher is lm:
            return (
                from_config(lm, self.config.student) if self.config.student else every_nth(lm, self.config.keep_every)
            )
        given = [
            name
            for name in ("student", "keep_every")
            if getattr(self.config, name) != getattr(type(self.config)(), name)
        ]
        if given:
            raise ConfigError(
                [
                    f"with a teacher of its own the model that comes in is the student, as it is; leave this out @ {name}"
                    for name in given
                ],
                "distill",
            )
        return lm

    def _settings(self) -> Settings:
        config = self.config
        return Settings(
            where="distill",
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            # the output layer and projections run after the forward pass, and would be taken for unused at its end
            given={"ddp_find_unused_parameters": False, **config.arguments},
            validates=config.validation > 0,
            early_stopping=config.early_stopping,
            owners={
                "device_map": "the Compress stage, which loads the model",
                "label_smoothing_factor": "'soft': the labels of a distillation are as smooth as the teacher's distributions",
            },
        )

    def _train(self, teacher: LM, student: LM, data: Sequence[Example], runtime: Runtime) -> dict[str, Any]:
        from tunesmith.training.trainer import Job, train
        from tunesmith_plugins.adapters.kept_zeros import hold  # imports peft, and tunesmith.hf all this

        config = self.config
        classes = tuple(student.model.config.id2label.values()) if is_classifier(student.model) else ()
        if classes and config.soft == 1:  # no label is in the loss, so none need be right
            data = [evolve(example, targets=classes[:1]) for example in data]
        if config.on_policy == 1 and not config.validation:  # nobody reads the data's answers
            data = [example if example.targets else evolve(example, targets=("",)) for example in data]
        read = min(most_tokens(lm, UNLIMITED) for lm in (teacher, student))
        written = min(writable(lm) or UNLIMITED for lm in (teacher, student))
        task = Task(
            objective="classification" if classes else objective_of(student.family, "auto"),
            lm=student,
            labels=classes,
            limits=Limits(
                lengths=Lengths(input=min(config.max_length, read), target=min(config.max_target_length, written)),
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
        if config.on_policy:
            _check_prompts(student, rows)
        maps = {"layer_map": config.layer_map, "decoder_layer_map": config.decoder_layer_map}
        layers = pairings(teacher.model, student.model, classes=bool(classes), **maps) if config.hidden else []
        if config.chunk and not classes and not cutting():
            longest = max(range(len(rows)), key=lambda index: len(rows[index].input_ids))
            some = task.collate()([Fixed(rows, runtime.seed, task.noise)[longest]])
            heads.check(heads.Headless(teacher.model), some, "teacher")
            heads.check(heads.Headless(student.model), some, "student")
        with ExitStack() as stack:
            for held in hold(student.model) if config.keep_zeros else ():
                stack.callback(held.remove)
            stack.enter_context(_projected(teacher, student, layers))
            folder = runtime.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            loss = self._loss(teacher, student, layers)
            job = Job(
                model=student.model,
                arguments=training_arguments(self._settings(), folder, runtime, config.steps),
                items=_stream(rows, task, config.steps * config.batch_size * accumulation(config.arguments), runtime),
                collate=task.collate(),
                validation=Fixed(validation, runtime.seed, task.noise) if validation else None,
                loss=loss,
                early_stopping=config.early_stopping,
                whole=self._whole(),
                infinite=loss.infinite,
            )
            trained = train(job, runtime)
        student.model.to(runtime.device if not hasattr(student.model, "hf_device_map") else student.device)
        student.model.eval()
        return {
            "steps": trained.steps,
            "peak_bytes": peak_bytes(),
            "loss": trained.losses,
            "loss_steps": trained.loss_steps,
            "validation_loss": [list(entry) for entry in trained.validation],
            "examples": len(examples),
            "validation_examples": len(held_out),
            "cut_inputs": cut.inputs.shortened,
            "cut_targets": cut.targets.shortened,
            "cut_token_share": cut.share,
        }

    def _whole(self) -> list[str]:
        """Return what reads or runs parts of the student outside of its forward pass, where FSDP and DeepSpeed have only pieces."""
        config = self.config
        found = {
            "keep_zeros": config.keep_zeros,
            "chunk": config.chunk and not cutting(),
            "hidden": config.hidden,
            "on_policy": config.on_policy,
        }
        return [name for name, there in found.items() if there]

    def _loss(self, teacher: LM, student: LM, layers: Sequence[Pairing]) -> DistillationLoss:
        config, tokenizer = self.config, student.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
        policy = OnPolicy(
            share=config.on_policy,
            temperature=config.sampling_temperature,
            max_new_tokens=config.max_new_tokens,
            pad=pad,
            end=tokenizer.eos_token_id,
            room=min(writable(lm) or UNLIMITED for lm in (teacher, student)),
        )
        classes = is_classifier(student.model)
        return DistillationLoss(
            teacher.model,
            Divergence(
                kind=config.divergence,
                beta=config.beta,
                temperature=config.temperature,
                soft=config.soft,
                hard=1 - config.soft,
            ),
            shifted=student.family == "decoder" and not classes,
            chunk=0 if classes or cutting() else config.chunk,  # the output layer cannot be run apart from the rest
            classes=classes,
            hidden=config.hidden,
            layers=layers,
            virtual=sum(adapter.virtual_tokens for adapter in teacher.adapters),
            on_policy=policy if config.on_policy else None,
        )


@contextmanager
def _as_it_was(model: Any) -> Iterator[None]:
    """Let a model be frozen, put into evaluation and made to read short texts within, and not for ever: it may be somebody's who
    goes on training it."""
    trained, training = [p for p in model.parameters() if p.requires_grad], model.training
    try:
        with attention_kept(model):
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        model.train(training)


@contextmanager
def _projected(teacher: LM, student: LM, layers: Sequence[Pairing]) -> Iterator[None]:
    """Let projections be part of the student within, so that they are trained and kept in checkpoints, and drop none of its layers,
    as M2M100 does at random: hidden states behind one would be those of another."""
    dropping = {
        module: module.layerdrop for module in student.model.modules() if layers and hasattr(module, "layerdrop")
    }
    if layers:
        project(teacher.model, student.model, layers)
    try:
        for module in dropping:
            module.layerdrop = 0.0
        yield
    finally:
        for module, share in dropping.items():
            module.layerdrop = share
        if hasattr(student.model, PROJECTIONS):
            delattr(student.model, PROJECTIONS)


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


def _check_prompts(student: LM, rows: Sequence[Row]) -> None:
    if student.family == "encoder":
        raise ConfigError(["an encoder writes no answers of its own @ on_policy"], "distill")
    if student.family == "decoder" and any(row.labels[0] != IGNORED for row in rows):
        raise ConfigError(["there are examples without a prompt that the student could answer @ on_policy"], "distill")


def _check_pair(teacher: LM, student: LM, soft: float) -> None:
    problems = []
    if teacher.family != student.family:
        problems.append(
            f"the teacher is a(n) {teacher.family}, the student a(n) {student.family}; they must be of one family"
        )
    if teacher.tokenizer.get_vocab() != student.tokenizer.get_vocab():
        problems.append(
            "teacher and student have different vocabularies; distillation compares distributions over one vocabulary"
        )
    for who, lm in (("teacher", teacher), ("student", student)):
        if not is_classifier(lm.model) and lm.model.get_output_embeddings() is None:
            problems.append(
                f"the {who} is a {type(lm.model).__name__}, which has neither logits over its vocabulary nor over classes of "
                "texts; distillation needs one of them"
            )
    if is_classifier(teacher.model) != is_classifier(student.model):
        problems.append("one of teacher and student is a classifier and the other is not; both must have the same head")
    sizes = teacher.model.config.vocab_size, student.model.config.vocab_size
    compared = soft > 0 and not is_classifier(student.model)
    if sizes[1] < min(len(student.tokenizer), sizes[0]) or (compared and sizes[0] != sizes[1]):
        problems.append(
            f"the teacher has embeddings for {sizes[0]} tokens and the student for {sizes[1]}; give the student as many"
        )
    if getattr(student.model, "is_quantized", False):
        problems.append("the student's weights are quantized and cannot be trained; distill first, then quantize")
    if problems:
        raise ConfigError(problems, "distill")


def _check_classes(teacher: LM, student: LM, config: Any) -> None:
    """Check what is peculiar to sequence classifiers."""
    problems = []
    theirs, ours = (lm.model.config for lm in (teacher, student))
    if theirs.id2label != ours.id2label:
        problems.append(
            f"the teacher's classes are {', '.join(theirs.id2label.values())}, the student's "
            f"{', '.join(ours.id2label.values())}; they must be the same, in one order"
        )
    if len(ours.id2label) == 1 or ours.problem_type not in (None, "single_label_classification"):
        problems.append(
            "a regression, or classes of which several hold, is no distribution over classes; it cannot be taught"
        )
    if config.on_policy:
        problems.append("a classifier writes no answers of its own @ on_policy")
    if config.texts == "teacher":
        problems.append("a classifier writes no text, so it cannot teach by it @ texts")
    if problems:
        raise ConfigError(problems, "distill")

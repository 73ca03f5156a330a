"""The fine-tuning stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import evolve

from tunesmith.data import Example, load_examples
from tunesmith.data.config import Data
from tunesmith.data.encoding import Lengths, Row, Truncation, first_target
from tunesmith.errors import ConfigError
from tunesmith.kinds.adapter import whole_parameters
from tunesmith.kinds.stage import Stage, StageContext
from tunesmith.lm import LM, load
from tunesmith.processes import cutting, is_main
from tunesmith.runtime import Runtime
from tunesmith.training import arguments as training_arguments
from tunesmith.training import packing
from tunesmith.training.arguments import Settings
from tunesmith.training.stream import Fixed, Stream
from tunesmith.training.task import Limits, Task, objective_of
from tunesmith_plugins.stages.needs import data_to, model_to
from tunesmith_plugins.stages.training.content import Outcome
from tunesmith_plugins.stages.training.losses import Loss, OwnLoss, loss_of
from tunesmith_plugins.stages.training.memory import peak_bytes

VALIDATION = "validation"


class FineTuneStage(Stage):
    """Train a model or an adapter on it; see the config."""

    def run(self, context: StageContext) -> dict[str, Any]:
        """Write ``model`` and ``report``; return counts, times, memory and losses."""
        self._check(context)
        if self.config.measure_in_child or self.config.launch:
            from tunesmith_plugins.stages.training.child import run_in_child

            return run_in_child(self.config, context)
        with context.runtime.activated():
            outcome, lm = self._train(context)
        if is_main():
            lm.save(context.artifact("model"))
            outcome.content().write(context.artifact("report"))
        return outcome.summary()

    def _check(self, context: StageContext) -> None:
        model_to("train", context)
        data_to("train on", self, context)
        training_arguments.check(self._settings())

    def _settings(self) -> Settings:
        config = self.config
        return Settings(
            where="fine_tune",
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            given=config.arguments,
            validates=bool(config.validation),
            early_stopping=config.early_stopping,
        )

    def _train(self, context: StageContext) -> tuple[Outcome, LM]:
        config, runtime = self.config, context.runtime
        data = data_to("train on", self, context)
        # what is cut up for the devices of several processes need not fit on one whole
        whole = runtime.evolve(device="cpu") if cutting() else runtime
        lm = self._model(model_to("train", context), data, whole)
        objective = objective_of(lm.family, config.objective)
        lm = self._adapted(lm, whole)
        limits = Limits(
            lengths=Lengths(input=config.max_length, target=config.max_target_length),
            packing=config.packing,
            mask_prompt=config.mask_prompt,
        )
        task = Task(
            objective=objective, lm=lm, limits=limits, labels=_labels(lm) if objective == "classification" else ()
        )
        if config.packing:
            packing.check(lm.model, lm.adapters)
        cut = Truncation()
        tasks = {"": task.rows(self._examples(data, config.split, runtime, lm), cut)}
        for label, other in sorted(config.mix.items()):
            tasks[label] = task.rows(self._examples(other, config.split, runtime, lm), cut)
        held_out = self._held_out(task, data, runtime)
        before = self._losses(lm, task, held_out, runtime)

        items = self._items(len(tasks[""]))
        stream = Stream(tasks, config.mix_weights, items, runtime.seed, task.noise)
        size = config.batch_size * training_arguments.accumulation(config.arguments)
        seq2seq = task.objective in ("seq2seq", "span_corruption")
        given = training_arguments.training_arguments(
            self._settings(), context.folder / "trainer", runtime, math.ceil(items / size), seq2seq
        )
        # transformers 5 renamed it; the old name still works
        recompute = getattr(given, "activation_checkpointing", False) or given.gradient_checkpointing
        if recompute and lm.adapters:
            lm.model.enable_input_require_grads()  # or nothing of a frozen first layer asks for a gradient
        trainable = lm.parameter_count(trainable=True)
        validation = Fixed(held_out[VALIDATION], runtime.seed, task.noise) if config.validation else None
        if runtime.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        # trainers import slowly; nothing above needs them
        from tunesmith.training.trainer import Job, train

        job = Job(
            model=lm.model,
            arguments=given,
            items=stream,
            collate=task.collate(),
            validation=validation,
            loss=OwnLoss(shifted=task.objective == "causal", smoothing=given.label_smoothing_factor),
            early_stopping=config.early_stopping,
            whole=whole_parameters(lm),
        )
        trained = train(job, runtime)
        lm.model.to(whole.device)
        lm.model.eval()
        after = self._losses(lm, task, held_out, runtime) if is_main() else {}
        outcome = Outcome(
            trained=trained,
            trainable=trainable,
            parameters=lm.parameter_count(),
            peak=peak_bytes(),
            device_peak=torch.cuda.max_memory_allocated() if runtime.device.startswith("cuda") else 0,
            examples=sum(len(rows) for rows in tasks.values()),
            truncation=cut,
            before=before,
            after=after,
        )
        return outcome, self._finished(lm)

    def _model(self, start: str, data: Data, runtime: Runtime) -> LM:
        """Load the model; for classification with a head for the data's classes."""
        options: dict[str, Any] = training_arguments.device_map(self.config.arguments)
        if self.config.objective != "classification":
            return load(start, runtime=runtime, head="lm", **options)
        examples = load_examples(evolve(data, chat=False), self.config.split, runtime, shots=0)
        names = sorted({first_target(example) for example in examples})
        if len(names) < 2:
            raise ConfigError(
                [f"classification needs at least two classes, and the data has {names} @ data.target"], "fine_tune"
            )
        lm = load(start, runtime=runtime, head="classification", labels=names, **options)
        if lm.model.config.pad_token_id is None:  # a decoder's head looks for the last token before padding
            lm.model.config.pad_token_id = lm.tokenizer.pad_token_id or lm.tokenizer.eos_token_id
        return lm

    def _adapted(self, lm: LM, runtime: Runtime) -> LM:
        """Attach what is to be trained; with a classification head, the head and a pooler before it too."""
        from tunesmith.registry import adapters

        adapter = (self.config.adapter or adapters.create("tunesmith/full")).build()
        adapter.setup(runtime)
        attached: LM = adapter.attach(lm, runtime)
        if self.config.objective == "classification":
            prefix = f"{attached.model.base_model_prefix}."
            for name, parameter in attached.model.named_parameters():
                head = not name.startswith(prefix) or ".pooler." in name
                if head and all(other.base_name(name) for other in _renaming(attached)):
                    parameter.requires_grad_(True)
                    attached.origin = None
        return attached

    def _finished(self, lm: LM) -> LM:
        """Return the model without an adapter that is nothing but its own weights."""
        from tunesmith.registry import adapters

        last = lm.adapters[-1]
        if type(last.config) is adapters.get("tunesmith/full"):
            return last.merge(lm)  # type: ignore[attr-defined]
        return lm

    def _examples(self, data: Data, split: str, runtime: Runtime, lm: LM) -> list[Example]:
        return load_examples(data, split, runtime, tokenizer=lm.tokenizer)

    def _held_out(self, task: Task, data: Data, runtime: Runtime) -> dict[str, list[Row]]:
        """Return the rows of the validation split and of the tasks that must not be forgotten; their cuts are not counted."""
        config = self.config
        found: dict[str, list[Row]] = {}
        if config.validation:
            found[VALIDATION] = task.rows(self._examples(data, config.validation, runtime, task.lm), Truncation())
        for label, other in sorted(config.held_out.items()):
            found[label] = task.rows(self._examples(other, config.held_out_split, runtime, task.lm), Truncation())
        return found

    def _losses(self, lm: LM, task: Task, rows: Mapping[str, Sequence[Row]], runtime: Runtime) -> dict[str, Loss]:
        return {label: loss_of(lm, task, some, self.config.batch_size, runtime.seed) for label, some in rows.items()}

    def _items(self, rows: int) -> int:
        """Return how many items are drawn in all: an epoch is a pass over the main data, other tasks come on top."""
        if self.config.steps:
            size = self.config.batch_size * training_arguments.accumulation(self.config.arguments)
            return int(self.config.steps) * size
        return max(1, round(self.config.epochs * rows * (1 + sum(self.config.mix_weights.values()))))


def _labels(lm: LM) -> tuple[str, ...]:
    names = lm.model.config.id2label
    return tuple(str(names[number]) for number in range(len(names)))


def _renaming(lm: LM) -> list[Any]:
    return [adapter for adapter in lm.adapters if hasattr(adapter, "base_name")]

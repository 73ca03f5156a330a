"""What a fine-tuning shows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen

from tunesmith.data.encoding import Truncation
from tunesmith.report.content import Content, Series, Table
from tunesmith_plugins.stages.training.losses import Loss

if TYPE_CHECKING:
    from tunesmith.training.trainer import Trained


@frozen(kw_only=True)
class Outcome:
    """The numbers of one training.

    Attributes:
        trained: What the trainer says.
        trainable: Parameters trained.
        parameters: Parameters of the model with its adapters.
        peak: Most resident memory of the process, bytes.
        device_peak: Most memory of an accelerator, bytes; 0 on a CPU.
        examples: Rows of the training data.
        truncation: What was cut.
        before: Label to loss before training; the validation split is ``"validation"``.
        after: The same afterwards.
    """

    trained: Trained
    trainable: int
    parameters: int
    peak: int
    device_peak: int
    examples: int
    truncation: Truncation
    before: Mapping[str, Loss]
    after: Mapping[str, Loss]

    def summary(self) -> dict[str, Any]:
        """Return the short form."""
        losses, seconds = self.trained.losses, self.trained.seconds
        held_out = {
            label: {"before": self.before[label].value, "after": loss.value} for label, loss in self.after.items()
        }
        found: dict[str, Any] = {
            "trainable_parameters": self.trainable,
            "parameters": self.parameters,
            "steps": self.trained.steps,
            "examples": self.examples,
            "first_loss": losses[0] if losses else None,
            "last_loss": losses[-1] if losses else None,
            "median_step_seconds": statistics.median(seconds) if seconds else None,
            "peak_memory_bytes": self.peak,
            "truncated_inputs": self.truncation.inputs.shortened,
            "truncated_targets": self.truncation.targets.shortened,
            "truncated_token_share": self.truncation.share,
            "validation_loss": held_out.pop("validation", None),
            "forgetting": held_out,
        }
        if self.device_peak:
            found["peak_device_memory_bytes"] = self.device_peak
        return found

    def content(self) -> Content:
        """Return the report."""
        tables = [self._training(), self._cuts()]
        if self.after:
            tables.append(self._losses())
        return Content(verdicts=tuple(self._verdicts()), tables=tuple(tables), series=tuple(self._curves()))

    def _training(self) -> Table:
        seconds = self.trained.seconds
        rows: list[tuple[Any, ...]] = [
            ("trainable parameters", self.trainable),
            ("all parameters", self.parameters),
            ("trainable share", self.trainable / self.parameters),
            ("optimizer steps", self.trained.steps),
            ("training rows", self.examples),
            ("median step, seconds", statistics.median(seconds) if seconds else None),
            ("peak memory, MiB", self.peak / 2**20),
        ]
        if self.device_peak:
            rows.append(("peak memory of the device, MiB", self.device_peak / 2**20))
        note = "Memory is the largest resident size of the training process."
        if not seconds:
            note += " No step was timed: the training was complete already when this process resumed it."
        return Table(title="Training", columns=("", "value"), rows=tuple(rows), note=note)

    def _cuts(self) -> Table:
        cuts = (("inputs", self.truncation.inputs), ("targets", self.truncation.targets))
        return Table(
            title="Truncation",
            columns=("", "texts", "cut", "tokens", "tokens lost", "share lost"),
            rows=tuple((name, c.texts, c.shortened, c.tokens, c.lost, c.share) for name, c in cuts),
        )

    def _losses(self) -> Table:
        rows = [
            (label, self.before[label].value, loss.value, loss.value - self.before[label].value, loss.count)
            for label, loss in self.after.items()
        ]
        return Table(
            title="Held-out loss before and after",
            columns=("data", "before", "after", "change", "tokens"),
            rows=tuple(rows),
            note="Mean negative log-likelihood in nats. A rise on data other than the validation split is forgetting.",
        )

    def _curves(self) -> list[Series]:
        losses = dict(zip(self.trained.loss_steps, self.trained.losses, strict=True))
        validation = dict(self.trained.validation)
        steps = sorted({*losses, *validation})
        y: dict[str, tuple[float | None, ...]] = {"training": tuple(losses.get(step) for step in steps)}
        if validation:
            y["validation"] = tuple(validation.get(step) for step in steps)
        if not steps:
            return []
        return [Series(title="Loss", x_label="step", x=tuple(map(float, steps)), y=y, y_label="nats a token")]

    def _verdicts(self) -> list[str]:
        found = [
            f"{self.trainable:,} of {self.parameters:,} parameters ({self.trainable / self.parameters:.2%}) were trained."
        ]
        for label, loss in self.after.items():
            before, after = self.before[label].value, loss.value
            word = "fell" if after < before else "rose" if after > before else "stayed the same"
            what = "The validation loss" if label == "validation" else f"The loss on {label!r}"
            end = "." if label == "validation" or after <= before else ": the model forgot some of it."
            found.append(
                f"{what} {word} from {before:.4f} to {after:.4f}{end}" if after != before else f"{what} {word}."
            )
        inputs, targets = self.truncation.inputs, self.truncation.targets
        if inputs.shortened or targets.shortened:
            found.append(
                f"{inputs.shortened} of {inputs.texts} inputs and {targets.shortened} of {targets.texts} targets were cut: "
                f"{self.truncation.share:.2%} of all tokens were not seen."
            )
        return found

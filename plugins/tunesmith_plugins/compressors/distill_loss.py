"""The loss of a distillation, as trainers call it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import evolve, frozen
from torch import nn

from tunesmith.data.encoding import IGNORED
from tunesmith.errors import ConfigError
from tunesmith_plugins.compressors.distill_chunked import chunked_loss
from tunesmith_plugins.compressors.distill_divergence import Divergence
from tunesmith_plugins.compressors.distill_heads import Headless, arguments, unwrapped
from tunesmith_plugins.compressors.distill_hidden import Pairing, difference
from tunesmith_plugins.compressors.distill_texts import own_answers


@frozen(kw_only=True)
class OnPolicy:
    """Answers that the student draws itself.

    Attributes:
        share: Probability that a batch has them.
        temperature: Of the draws.
        max_new_tokens: Most tokens of an answer.
        pad: Padding id.
        end: End-of-sequence id.
        room: Most tokens of prompt and answer that the models can read (of an answer, for encoder-decoders).
    """

    share: float
    temperature: float
    max_new_tokens: int
    pad: int
    end: int | None
    room: int = 2**30


class DistillationLoss:
    """The loss summed over a batch's target tokens, or over its examples (a ``tunesmith.training.trainer.Loss``).

    Args:
        teacher: Frozen here; used without gradients and without dropout. It is not run where nothing asks for it.
        divergence: Of a token.
        shifted: Whether the logits at a token are those of the next one (decoders).
        chunk: Tokens whose logits exist at one time; 0: all.
        classes: Whether the models are sequence classifiers: an item is a text, its one label (batch,) a class, and its one
            row of logits (batch, classes).
        hidden: Weight of the hidden states.
        layers: Which layers are to resemble which.
        virtual: Tokens that the teacher's adapters put before every text.
        on_policy: The student's own answers; None: the data's only. With them an item is an example, whose loss is the mean
            over its target tokens (Agarwal et al. 2024, equation 2), since the number of tokens is not known beforehand.
    """

    def __init__(
        self,
        teacher: Any,
        divergence: Divergence,
        shifted: bool,
        *,
        chunk: int = 0,
        classes: bool = False,
        hidden: float = 0.0,
        layers: Sequence[Pairing] = (),
        virtual: int = 0,
        on_policy: OnPolicy | None = None,
    ) -> None:
        self.teacher = teacher.requires_grad_(False).eval()
        self.divergence, self.shifted, self.chunk = divergence, shifted, chunk
        self.classes, self.hidden, self.layers, self.virtual = classes, hidden, layers, virtual
        self.on_policy = on_policy

    def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum over the items."""
        if self.chunk and isinstance(model, nn.DataParallel):
            raise ConfigError(
                ["several GPUs in one process cannot work in chunks; use accelerate launch, or set chunk=0"], "distill"
            )
        divergence = self.divergence
        policy = self.on_policy
        if policy is not None and model.training and float(torch.rand(())) < policy.share:
            batch = own_answers(
                model,
                batch,
                temperature=policy.temperature,
                max_new_tokens=policy.max_new_tokens,
                pad=policy.pad,
                end=policy.end,
                room=policy.room,
            )
            divergence = evolve(divergence, hard=0.0)
        labels = self._labels(batch)
        valid = labels != IGNORED
        per_token = torch.ones(len(labels), device=labels.device)
        if policy is not None:
            per_token = per_token / valid.sum(1).clamp_min(1)
        return self._sum(model, batch, labels, valid, per_token, divergence)

    @property
    def infinite(self) -> str:
        """What an infinite loss comes from, and what to do."""
        student = "the student has no probability (logits of -inf) for a token for which the teacher, or an answer of the data, has some"
        teacher = (
            "the teacher has no probability (logits of -inf) for a token for which the student has some, or the student none for an "
            "answer of the data"
        )
        return (
            f"{teacher if self.divergence.kind == 'reverse_kl' else student}. Mask the same tokens in both, or take soft=1 and "
            "divergence='jensen_shannon', which is finite then."
        )

    def items(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the number of target tokens, or of examples that have any."""
        valid = self._labels(batch) != IGNORED
        return valid.any(1).sum() if self.on_policy is not None else valid.sum()

    def _labels(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.classes:
            return batch["labels"][:, None]
        return batch["labels"][:, 1:] if self.shifted else batch["labels"]

    def _sum(
        self,
        model: Any,
        batch: dict[str, torch.Tensor],
        labels: torch.Tensor,
        valid: torch.Tensor,
        per_token: torch.Tensor,
        divergence: Divergence,
    ) -> torch.Tensor:
        states = {"output_hidden_states": True} if self.hidden else {}
        student = Headless(model)
        given = {**arguments(student.core, batch), **states}
        if self.chunk:
            mine, ours = student(given)
        else:
            ours = model(**given)
            mine = self._logits(ours)
        theirs, teaching = None, None
        if divergence.soft or self.hidden:
            theirs, teaching = self._teacher(batch, states)
        width = labels.shape[1]
        mine, scale = mine[:, :width][valid], per_token[:, None].expand_as(valid)[valid]
        if not valid.any():  # a batch without a token to predict; every weight still needs a gradient
            return sum((p.sum() for p in student.core.parameters() if p.requires_grad), mine.sum()) * 0.0
        wanted = labels[valid]
        if self.chunk:
            other = None
            if divergence.soft and theirs is not None:
                head = Headless(self.teacher)
                other = (theirs[:, :width][valid.to(theirs.device)], head.logits)
            weight: Any = student.head.weight
            total = chunked_loss(mine, weight, student.bias, wanted, divergence, self.chunk, teacher=other, scale=scale)
        else:
            logits = None if theirs is None else theirs[:, :width][valid.to(theirs.device)].to(mine.device)
            total = (divergence(mine, logits, wanted) * scale).sum()
        if self.hidden:
            core = unwrapped(model)
            mask = batch.get("attention_mask")
            apart = difference(core, ours, teaching, self.layers, valid, per_token, mask, self.virtual)
            total = total + self.hidden * apart
        return total

    def _teacher(self, batch: dict[str, torch.Tensor], states: dict[str, bool]) -> tuple[torch.Tensor, Any]:
        """Return what enters the teacher's output layer (or its logits, without chunks), and its outputs."""
        head = Headless(self.teacher)
        with torch.no_grad():
            given = {**arguments(self.teacher, batch), **states}
            given = {name: v.to(self.teacher.device) if isinstance(v, torch.Tensor) else v for name, v in given.items()}
            if self.chunk:
                return head(given)
            outputs = self.teacher(**given)
        return self._logits(outputs), outputs

    def _logits(self, outputs: Any) -> torch.Tensor:
        """Return (batch, time, vocabulary), or (batch, 1, classes)."""
        logits: torch.Tensor = outputs.logits
        return logits[:, None] if self.classes else logits

"""Logits on their way through a chain, part by part: what the kernel does in one go, and single links."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from attrs import frozen

from tunesmith.kinds.sampler import Applied, Fusable, Link, Rows, Stateful
from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import reference


@frozen(kw_only=True, eq=False)
class Fused:
    """Neighbouring links as one kernel call."""

    steps: tuple[kernels.Step, ...]
    rows: Rows

    @property
    def truncates(self) -> bool:
        return any(step.op not in reference.EDITS for step in self.steps)

    def apply(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the changed logits and, if the kernel was called, its status a row."""
        if not self.steps:
            return logits, None
        return kernels.apply_chain(logits, self.steps, **history_of(self.rows))

    def edit(self, logits: torch.Tensor) -> torch.Tensor:
        """Do only what edits."""
        edits = tuple(step for step in self.steps if step.op in reference.EDITS)
        return kernels.apply_chain(logits, edits, **history_of(self.rows)).logits if edits else logits


@frozen(kw_only=True, eq=False)
class Single:
    """One link, done by its own ``apply``."""

    link: Link
    rows: Rows

    @property
    def truncates(self) -> bool:
        return self.link.truncates

    def apply(self, logits: torch.Tensor) -> tuple[torch.Tensor, None]:
        return self.link.apply(logits, self.rows).float(), None

    def edit(self, logits: torch.Tensor) -> torch.Tensor:
        return logits if self.truncates else self.apply(logits)[0]


def parts_of(
    links: Mapping[str, Link],
    own: Mapping[str, Rows],
    step_of: Callable[[str, Link, Rows], kernels.Step | None] | None = None,
) -> list[Fused | Single]:
    """Return the chain as parts; ``own`` are the rows as each link sees them, ``step_of`` may know steps from before."""
    parts: list[Fused | Single] = []
    for name, link in links.items():
        step = lowered(link, own[name]) if step_of is None else step_of(name, link, own[name])
        if step is None:
            parts.append(Single(link=link, rows=own[name]))
        elif parts and isinstance(parts[-1], Fused):
            parts[-1] = Fused(steps=(*parts[-1].steps, step), rows=own[name])
        else:
            parts.append(Fused(steps=(step,), rows=own[name]))
    return parts


def is_stateful(link: object) -> TypeGuard[Stateful]:
    """What isinstance says of the protocol; asked for every token, and that takes ten microseconds."""
    return hasattr(link, "initial_state") and hasattr(link, "advance")


def is_fusable(link: object) -> TypeGuard[Fusable]:
    """What isinstance says of the protocol."""
    return hasattr(link, "lower")


def varies(link: Link) -> bool:
    """Whether a link's step may be another one for every token."""
    return link.varies or is_stateful(link)


def lowered(link: Link, rows: Rows) -> kernels.Step | None:
    """Return a link as a kernel step for these rows, or None where its ``apply`` must do it."""
    # A link that learns from the logits would not be told what the kernel did.
    if not is_fusable(link) or (is_stateful(link) and getattr(link, "reads_logits", True)):
        return None
    step = link.lower(rows)
    if step is None or step.op not in kernels.supported_steps():
        return None
    values = step.values if step.values.dtype in (torch.float64, torch.int64) else step.values.double()
    second = None if step.second is None else step.second.double()
    return kernels.Step(step.op, values, step.ids, step.amounts, second)


def history_of(rows: Rows) -> dict[str, Any]:
    """Return the history as the kernels' keyword arguments."""
    return {"history": rows.history, "history_lengths": rows.history_lengths}


class Walk:
    """Rows of logits (batch, vocab) on their way through the parts of a chain.

    Attributes:
        logits: float32 after the parts so far; zeros in rows that are given up, so that they disturb nothing.
        processed: The same after everything that edits and nothing that truncates.
        status: (batch,) uint8.
    """

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = self.processed = logits.float()
        self.status = torch.zeros(len(logits), dtype=torch.uint8, device=logits.device)
        self._look()

    def take(self, part: Fused | Single) -> None:
        """Take one part of the chain."""
        before = self.logits
        self.logits, status = part.apply(before)
        # While nothing was dropped the processed logits are the logits, and an edit need not be done twice.
        together = self.processed is before and not part.truncates
        self.processed = self.logits if together else part.edit(self.processed)
        if status is not None:  # of rows that are not fine the kernel gives NaN: it alone knows why
            self.status = torch.where(self.status == reference.OK, status, self.status)
        self._look()

    def _look(self) -> None:
        together = self.processed is self.logits
        maximum = self.logits.amax(-1)
        found = torch.zeros_like(self.status)
        found[maximum == -torch.inf] = reference.EMPTY
        found[maximum == torch.inf] = reference.POSINF
        found[self.logits.isnan().any(-1)] = reference.NAN
        self.status = torch.where(self.status == reference.OK, found, self.status)
        fine = (self.status == reference.OK)[:, None]
        self.logits = torch.where(fine, self.logits, 0.0)
        self.processed = self.logits if together else torch.where(fine, self.processed, 0.0)


def applied(parts: Sequence[Fused | Single], logits: torch.Tensor) -> Applied:
    """Return logits (batch, vocab) after the parts of a chain; one part that the kernel does is one look at them, or two."""
    if len(parts) == 1 and isinstance(parts[0], Fused):
        (part,) = parts
        after, status = part.apply(logits)
        assert status is not None  # a part has steps
        return Applied(logits=after, processed=part.edit(logits).float() if part.truncates else after, status=status)
    walk = Walk(logits)
    for part in parts:
        walk.take(part)
    return Applied(logits=walk.logits, processed=walk.processed, status=walk.status)

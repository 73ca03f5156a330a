"""Losses of tokens between a student's and a teacher's logits."""

from __future__ import annotations

import torch
from attrs import frozen
from torch.nn import functional


@frozen(kw_only=True)
class Divergence:
    """What a token costs: ``soft * T^2 * D + (1 - soft) * cross-entropy``.

    Attributes:
        kind: ``"forward_kl"``, ``"reverse_kl"`` or ``"jensen_shannon"``.
        beta: Of the last.
        temperature: T.
        soft: Weight of D.
        hard: Weight of the cross-entropy with the label.
    """

    kind: str = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0
    soft: float = 1.0
    hard: float = 0.0

    def __call__(self, student: torch.Tensor, teacher: torch.Tensor | None, labels: torch.Tensor) -> torch.Tensor:
        """Return (tokens,) losses, in float32 at least.

        Args:
            student: Logits (tokens, vocab).
            teacher: Logits (tokens, vocab); None where ``soft`` is 0.
            labels: (tokens,).
        """
        dtype = torch.promote_types(student.dtype, torch.float32)
        student = student.to(dtype)
        loss = torch.zeros(len(labels), dtype=dtype, device=student.device)
        if self.soft and teacher is not None:
            log_p = functional.log_softmax(teacher.to(dtype) / self.temperature, dim=-1)
            log_q = functional.log_softmax(student / self.temperature, dim=-1)
            loss = loss + self.soft * self.temperature**2 * divergence(log_p, log_q, self.kind, self.beta)
        if self.hard:
            loss = loss + self.hard * functional.cross_entropy(student, labels, reduction="none")
        return loss


def divergence(log_p: torch.Tensor, log_q: torch.Tensor, kind: str, beta: float = 0.5) -> torch.Tensor:
    """Return (...,) divergences of log-probabilities (..., vocab) of teacher and student.

    Jensen-Shannon is that of Agarwal et al. (2024), equation 1: divided by ``beta`` it goes to the forward KL as beta goes to 0,
    divided by ``1 - beta`` to the reverse KL as beta goes to 1.

    A log-probability may be ``-inf``, as where tokens are masked: ``0 log 0`` is 0, and its gradient 0. The forward KL is ``inf``
    where the student has no probability and the teacher has some, the reverse KL where it is the other way round;
    Jensen-Shannon is finite.
    """
    if kind == "forward_kl":
        return _kl(log_p, log_q)
    if kind == "reverse_kl":
        return _kl(log_q, log_p)
    share = torch.tensor(beta, dtype=log_p.dtype, device=log_p.device)
    # logaddexp has no gradient where neither has any probability
    neither = log_p.isneginf() & log_q.isneginf()
    theirs, mine = log_p.masked_fill(neither, 0), log_q.masked_fill(neither, 0)
    log_m = torch.logaddexp(theirs + share.log(), mine + (1 - share).log())
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def _kl(log_a: torch.Tensor, log_b: torch.Tensor) -> torch.Tensor:
    """Return ``sum a (log a - log b)`` over the last dimension, with ``0 log 0 = 0``."""
    return (log_a.exp() * (log_a - log_b).masked_fill(log_a.isneginf(), 0)).sum(-1)

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
    """
    if kind == "forward_kl":
        return (log_p.exp() * (log_p - log_q)).sum(-1)
    if kind == "reverse_kl":
        return (log_q.exp() * (log_q - log_p)).sum(-1)
    share = torch.tensor(beta, dtype=log_p.dtype, device=log_p.device)
    log_m = torch.logaddexp(log_p + share.log(), log_q + (1 - share).log())
    to_teacher, to_student = (log_p.exp() * (log_p - log_m)).sum(-1), (log_q.exp() * (log_q - log_m)).sum(-1)
    return beta * to_teacher + (1 - beta) * to_student

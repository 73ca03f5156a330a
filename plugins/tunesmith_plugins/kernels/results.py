"""What the sampling chain gives back."""

from __future__ import annotations

import enum
from typing import NamedTuple

from torch import Tensor

from . import reference


class Status(enum.IntEnum):
    """What became of a row of logits."""

    OK = reference.OK
    NAN = reference.NAN
    """The row holds a NaN."""
    POSINF = reference.POSINF
    """The row's maximum is +inf, in the logits or after an edit."""
    EMPTY = reference.EMPTY
    """Every token of the row is at -inf."""


class SampleResult(NamedTuple):
    """One drawn token a row, all tensors ``(batch,)``.

    Attributes:
        token: int64; -1 where the status is not OK.
        status: uint8, see :class:`Status`.
        logp_raw: float32 log-probability of the token under softmax of the logits as given; NaN where the status
            is not OK; None if not asked for. So are the other two.
        logp_processed: after every step that edits values (penalties, temperature, bias), before any truncation.
        logp_truncated: among the tokens that the whole chain kept.
    """

    token: Tensor
    status: Tensor
    logp_raw: Tensor | None
    logp_processed: Tensor | None
    logp_truncated: Tensor | None


class TopResult(NamedTuple):
    """One drawn token a row, and the likeliest tokens: pairs of ids int64 and log-probabilities float32.

    All pairs are ``(batch, min(top, vocab))``, the likeliest first, equals by id; -1 and NaN where the status is not OK. A
    token that is not possible has -inf. None if not asked for.

    Attributes:
        sample: what :func:`sample_chain` returns.
        raw: the likeliest under the logits as given.
        processed: after all edits, before truncation.
        truncated: among the tokens kept.
    """

    sample: SampleResult
    raw: tuple[Tensor, Tensor] | None
    processed: tuple[Tensor, Tensor] | None
    truncated: tuple[Tensor, Tensor] | None


class ChainResult(NamedTuple):
    """Rows after the steps, without a draw.

    Attributes:
        logits: ``(batch, vocab)`` float32; -inf where a token was dropped, NaN in rows whose status is not OK.
        status: ``(batch,)`` uint8, see :class:`Status`.
    """

    logits: Tensor
    status: Tensor

"""What ``torch.library`` knows of the sampling chain: definitions, bodies and fakes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .chain import _chain, _check_chain, _Given, _steps_only
from .steps import _expanded, _named

_library = torch.library.Library("tunesmith", "FRAGMENT")
_library.define(
    "sample_chain(Tensor logits, int[] ops, Tensor values, Tensor[] tables, Tensor? seed, Tensor? stream, "
    "Tensor? position, Tensor? history, Tensor? history_lengths, bool greedy, int draw, bool logp_raw, bool logp_processed, "
    "bool logp_truncated) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "sample_chain_top(Tensor logits, int[] ops, Tensor values, Tensor[] tables, Tensor? seed, Tensor? stream, "
    "Tensor? position, Tensor? history, Tensor? history_lengths, bool greedy, int draw, bool logp_raw, "
    "bool logp_processed, bool logp_truncated, int top, bool top_raw, bool top_processed, bool top_truncated) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "apply_chain(Tensor logits, int[] ops, Tensor values, Tensor[] tables, Tensor? history, Tensor? history_lengths) "
    "-> (Tensor, Tensor)"
)


def _sample_chain_op(
    logits: Tensor, ops: list[int], values: Tensor, tables: list[Tensor], *rest: Any
) -> tuple[Tensor, ...]:
    """The body of both operations that draw: what the one has more are outputs that nobody asked the other for."""
    given, (greedy, draw), flags, (top, *wanted) = (
        _Given(*rest[:5]),
        rest[5:7],
        rest[7:10],
        rest[10:] or (0, *[False] * 3),
    )
    steps = _named(ops, values, tables)
    _check_chain(logits, steps, given)
    token, status, logps, tops = _chain(logits, _expanded(steps, len(logits)), given, greedy, draw, flags, top, wanted)
    found = [*logps, *(part for pair in tops for part in pair or (None, None))] if top else logps
    kinds = (torch.float32,) * 3 + (torch.int64, torch.float32) * 3
    # each a tensor of its own: an operation must not return one twice
    parts = (logits.new_empty(0, dtype=k) if t is None else t for t, k in zip(found, kinds, strict=False))
    return token, status, *parts


def _sample_chain_fake(logits: Tensor, ops: list[int], values: Tensor, *rest: object) -> tuple[Tensor, ...]:
    batch = logits.shape[0]
    logps = (logits.new_empty(batch if flag else 0, dtype=torch.float32) for flag in rest[-3:])
    return logits.new_empty(batch, dtype=torch.int64), logits.new_empty(batch, dtype=torch.uint8), *logps


def _sample_chain_top_fake(logits: Tensor, ops: list[int], values: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *_, raw, processed, truncated, top, first, second, third = rest
    drawn = _sample_chain_fake(logits, ops, values, raw, processed, truncated)
    width, parts = min(top, logits.shape[1]), []
    for wanted in (first, second, third):
        shape = (logits.shape[0], width) if wanted else (0,)
        parts += [logits.new_empty(shape, dtype=torch.int64), logits.new_empty(shape, dtype=torch.float32)]
    return *drawn, *parts


def _apply_chain_op(
    logits: Tensor, ops: list[int], values: Tensor, tables: list[Tensor], history: Tensor | None,
    history_lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    steps, given = _named(ops, values, tables), _Given(history=history, history_lengths=history_lengths)
    _check_chain(logits, steps, given)
    return _steps_only(logits, _expanded(steps, len(logits)), given)


def _apply_chain_fake(
    logits: Tensor, ops: list[int], values: Tensor, tables: list[Tensor], history: Tensor | None,
    history_lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return (
        logits.new_empty(logits.shape, dtype=torch.float32),
        logits.new_empty(logits.shape[0], dtype=torch.uint8),
    )


for _name, _body, _fake in (
    ("sample_chain", _sample_chain_op, _sample_chain_fake),
    ("sample_chain_top", _sample_chain_op, _sample_chain_top_fake),
    ("apply_chain", _apply_chain_op, _apply_chain_fake),
):
    _library.impl(_name, _body, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tunesmith::{_name}", _fake, lib=_library)

"""Attention of a few queries over keys and values in float32: of a step of decoding in one call with what stands before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import attention_reference as reference
from . import loader
from .quick import set_up_calls
from .tensors import _plain, _pointer
from .words import _WORTH_RELEASING, _call_on

_NO_MASK, _ADDED_MASK, _SEEN_MASK = range(3)
_KINDS = {torch.float32: _ADDED_MASK, torch.bool: _SEEN_MASK}


def _first_attend(*arguments: Any) -> Any:
    """Stand in for the quick call until attention is asked for; None where there is none."""
    _choose_attend()
    return None if _quick_attend is _first_attend else _quick_attend(*arguments)


def _choose_attend() -> None:
    global _quick_attend
    calls = set_up_calls()
    _quick_attend = _first_attend if calls is None or calls.attend is None else calls.attend


_quick_attend: Any = (
    _first_attend  # (q, k, v, keys, values, mask, scale, rotary): None where anything is out of the ordinary
)
loader.when_chosen(_choose_attend)
_compiling = torch.compiler.is_dynamo_compiling  # as for the int8 layers


def float_attention(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Return ``softmax(q keys^T scale + mask) values`` for a few queries, as decoding has them.

    The sums are made in a stated order: a row of the result depends neither on the batch nor on threads or instruction
    set. The native library reads keys and values once, values while it multiplies keys; without one, and on other devices,
    torch gives the same bits. Has no gradient.

    Args:
        q: ``(batch, heads, queries, size)`` float32.
        keys: ``(batch, kv_heads, time, size)`` float32, a head's tokens behind one another; kv_heads divides heads (Ainslie et al., 2023).
        values: like ``keys``.
        mask: boolean (False: not seen) or float32 (added to the scores), broadcast to ``(batch, heads, queries, time)``; or None.
        scale: of the scores; None is ``size ** -0.5``.

    Returns:
        ``(batch, heads, queries, size)`` float32, a query's heads behind one another. A query that sees no token gives 0, as in
        torch; one with a score that is NaN or +infinite gives NaN.

    Raises:
        ValueError: wrong shapes, types or layout.
    """
    if not _compiling():
        quick: Tensor | None = _quick_attend(q, None, None, keys, values, mask, scale, None)
        if quick is not None:
            return quick.transpose(1, 2)
    if q.ndim != 4:
        raise ValueError(f"q must be (batch, heads, queries, size), not {tuple(q.shape)}")
    found = _attend(q, None, None, keys, values, mask, scale, None)
    return found.transpose(1, 2)


def cached_attention_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Write new keys and values to the last places of a cache, and attend to all of it as :func:`float_attention` does.

    Every query sees all places that the mask leaves it, those of later new tokens too.

    Args:
        q: ``(batch, new, heads * size)`` float32.
        k: ``(batch, new, kv_heads * size)`` float32.
        v: like ``k``.
        keys: ``(batch, kv_heads, time, size)`` float32; the last ``new`` places are written to.
        values: like ``keys``.
        mask: as of :func:`float_attention`.
        scale: of the scores; None is ``size ** -0.5``.
        rotary: cos and sin, ``(batch or 1, new, size)`` float32, that turn queries and new keys by their positions
            (Su et al., 2021; halves of a head are paired).

    Returns:
        ``(batch, new, heads * size)`` float32.

    Raises:
        ValueError: wrong shapes, types or layout.
    """
    if k is not None and not _compiling():
        quick: Tensor | None = _quick_attend(q, k, v, keys, values, mask, scale, rotary)
        if quick is not None:
            return quick
    if q.ndim != 3 or keys.ndim != 4 or not keys.shape[3] or q.shape[2] % keys.shape[3]:
        raise ValueError(
            "q must be (batch, new, heads * size) and keys (batch, kv_heads, time, size), "
            f"not {tuple(q.shape)} and {tuple(keys.shape)}"
        )
    (batch, new, width), size = q.shape, keys.shape[3]
    found = _attend(q.view(batch, new, width // size, size).transpose(1, 2), k, v, keys, values, mask, scale, rotary)
    return found.reshape(batch, new, width)


def _attend(
    q: Tensor, k: Tensor | None, v: Tensor | None, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float | None,
    rotary: tuple[Tensor, Tensor] | None,
) -> Tensor:  # fmt: skip
    """Return ``(batch, queries, heads, size)``; ``q`` is ``(batch, heads, queries, size)``."""
    cos, sin = rotary or (None, None)
    given = [t for t in (q, k, v, keys, values, cos, sin) if t is not None]
    batch, heads, queries, size = q.shape
    if not _fit(q, k, v, keys, values, cos, sin) or any(t.dtype is not torch.float32 for t in given):
        shown = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in given)
        raise ValueError(f"queries, keys and values must be float32 of shapes that fit one another, not {shown}")
    kv_heads, time = keys.shape[1:3]
    keys_row, keys_head, keys_token, keys_number = keys.stride()
    values_row, values_head, values_token, values_number = values.stride()
    if (size > 1 and keys_number * values_number != 1) or (time > 1 and not keys_token == values_token == size):
        raise ValueError(
            f"a head's tokens must lie behind one another, not at strides {keys.stride()}, {values.stride()}"
        )
    if k is not None and batch > 1 and not (keys_row and values_row):
        raise ValueError("rows of a cache that share their memory cannot be written to")
    kind, mask_row, mask_head, mask_query = _NO_MASK, 0, 0, 0
    if mask is not None:
        kind = _KINDS.get(mask.dtype, _NO_MASK)
        try:
            mask = mask.expand(batch, heads, queries, time)
        except RuntimeError:
            kind = _NO_MASK
        if kind == _NO_MASK:
            raise ValueError(
                f"the mask must be bool or float32 and fit {(batch, heads, queries, time)}, not {tuple(mask.shape)} {mask.dtype}"
            )
        mask_row, mask_head, mask_query, last = mask.stride()
        if last != 1 and time > 1:
            mask = mask.contiguous()
            mask_row, mask_head, mask_query, _ = mask.stride()
        given.append(mask)
    scale = size**-0.5 if scale is None else float(scale)
    library = None
    if _plain(*given) and all(t.is_cpu and not t.is_neg() for t in given):
        library = loader.cpu()
    if library is None:
        return reference.attention(q, k, v, keys, values, mask, scale, rotary)
    if size > 1 and q.stride(3) != 1:
        q = q.contiguous()
    q_row, q_head, q_token, _ = q.stride()
    (k, k_stride), (v, v_stride) = _tokens(k), _tokens(v)
    tables = 0
    if cos is not None and sin is not None:
        cos, sin, tables = cos.contiguous(), sin.contiguous(), cos.shape[0] * queries
    out = q.new_empty((batch, queries, heads, size))
    words = (
        q.data_ptr(), out.data_ptr(), batch, heads, queries, kv_heads, time, size, q_row, q_head, q_token,
        _pointer(k), _pointer(v), k_stride, v_stride,
        keys.data_ptr(), values.data_ptr(), keys_row, keys_head, values_row, values_head,
        _pointer(cos), _pointer(sin), tables, _pointer(mask), kind, mask_row, mask_head, mask_query, scale, torch.get_num_threads(),
    )  # fmt: skip
    _call_on(library, "float_attention_words", q, words, batch * heads * queries * time * size > _WORTH_RELEASING)
    return out


def _fit(
    q: Tensor, k: Tensor | None, v: Tensor | None, keys: Tensor, values: Tensor, cos: Tensor | None, sin: Tensor | None
) -> bool:
    """Whether the shapes fit one another."""
    batch, heads, queries, size = q.shape
    if keys.ndim != 4 or keys.shape != values.shape:
        return False
    rows, kv_heads, time, width = keys.shape
    if (rows, width) != (batch, size) or not kv_heads or heads % kv_heads or not time or not size:
        return False
    if k is not None and (queries > time or v is None or not k.shape == v.shape == (batch, queries, kv_heads * size)):
        return False
    if cos is None or sin is None:
        return True
    return size % 2 == 0 and cos.shape == sin.shape and cos.shape in ((1, queries, size), (batch, queries, size))


def _tokens(x: Tensor | None) -> tuple[Tensor | None, int]:
    """Return a tensor (batch, new, width) as one with a single stride from token to token, and the stride."""
    if x is None:
        return None, 0
    batch, new, width = x.shape
    row, token, number = x.stride()
    if (number != 1 and width > 1) or (new > 1 and batch > 1 and row != new * token):
        return x.contiguous(), width
    return x, token if new > 1 else row

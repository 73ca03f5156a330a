"""Keys and values in 8 bits that pass for the floats they stand for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tunesmith_plugins import kernels

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What queries may be; attention over integers works in float32."""

MOST_QUERIES = 8
"""Attention with more queries than this is left to torch, on a float copy."""


class Int8States(Tensor):
    """A tensor (batch, heads, time, size) that holds integers and scales.

    ``scaled_dot_product_attention`` with few queries on the CPU reads the integers where they are. Any other operation gets a
    float copy, so models need to know nothing of it; it cannot be written to. numpy and lists want ``dense()``.

    Attributes:
        integers: (batch, heads, time, size) int8.
        scales: (batch, heads, time, 1) float32.
    """

    integers: Tensor
    scales: Tensor

    @staticmethod
    def __new__(cls, integers: Tensor, scales: Tensor, dtype: torch.dtype) -> Int8States:
        """Wrap integers and scales; ``dtype`` is what the floats they stand for are."""
        made: Int8States = Tensor._make_wrapper_subclass(cls, integers.shape, dtype=dtype, device=integers.device)
        made.integers, made.scales = integers, scales
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Name the shape alone."""
        return f"Int8States({tuple(self.shape)}, {self.dtype})"

    def dense(self) -> Tensor:
        """Return the floats."""
        return (self.integers * self.scales).to(self.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Return the floats."""
        return self.dense()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.nn.functional.scaled_dot_product_attention:
                found = _attention(*args, **kwargs)
                if found is not None:
                    return found
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | (kwargs or {})
        for argument in func._schema.arguments:
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            written = given.get(argument.name)
            if any(
                isinstance(one, Int8States) for one in (written if isinstance(written, (list, tuple)) else [written])
            ):
                raise RuntimeError(f"keys and values in 8 bits cannot be written to, as {func} wants; copy them first")
        args, kwargs = tree_map(_dense, (args, kwargs or {}))
        return func(*args, **kwargs)


def _dense(x: Any) -> Any:
    return x.dense() if isinstance(x, Int8States) else x


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor | None:  # fmt: skip
    """Attend in integers; None where that cannot stand for torch's attention."""
    if (
        type(key) is not Int8States
        or type(value) is not Int8States
        or type(query) is not Tensor
        or query.dtype not in DTYPES
        or query.dtype is not key.dtype
        or query.ndim != 4
        or query.shape[2] > MOST_QUERIES
        or (query.shape[0], query.shape[3]) != (key.shape[0], key.shape[3])
        or value.shape != key.shape
        or not key.shape[2]
        or (query.shape[1] != key.shape[1] and not enable_gqa)
        or is_causal
        or dropout_p
        or (torch.is_grad_enabled() and query.requires_grad)
        or (attn_mask is not None and (attn_mask.requires_grad or attn_mask.ndim != 4))
    ):
        return None
    found = kernels.int8_attention(
        query.float(), key.integers, key.scales, value.integers, value.scales, attn_mask, scale
    )
    return found.to(query.dtype)

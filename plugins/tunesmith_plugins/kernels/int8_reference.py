"""The int8 arithmetic in torch: what every native version must equal, bit for bit.

Products are sums of integers, so no order of summation enters; around them stand only IEEE float32 additions,
multiplications and divisions in a fixed order. Weights are packed as the native kernels read them: ``(n/64, k/4, 64, 4)``,
four steps of k side by side for each of 64 output channels, both padded with zeros.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_K = 65792
"""Longest row of an int8 linear layer: 255 * 128 * MAX_K < 2^31, so no int32 sum can overflow."""

MAX_K_12 = 8192
"""Up to here a sum of 12-bit times 8-bit products is exact in int32 (2048 * 128 * 8192 = 2^31); above, it is put together in float32."""

MIXED_SQUARE = 512
"""Rows whose 8-bit codes have a mean square below this get 12 bits: 10 log10(12 * 512) = 37.9 dB of signal over rounding."""

MIXED_K = 128
"""Rows of at most so many numbers get 12 bits without being asked: there the call takes the time, not the product."""

ACTIVATIONS = ("", "relu", "silu", "gelu", "gelu_tanh")
"""Names of the fused activations; the index is the code the native library knows one by."""

PANEL = 64
"""Output channels of a panel of packed weights; rows are padded to a multiple of it too."""

_SMALLEST_SCALE = 2.0**-126
_LARGEST_12 = 2047


def _finite(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x in float32 with rows that hold a NaN or an infinity set to 0, and which rows those are."""
    x = x.float()
    bad = ~x.isfinite().all(-1)
    return torch.where(bad[:, None], 0.0, x), bad


def quantize_rows(x: Tensor, static: tuple[float, int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise every row of ``x (rows, k)`` to u8; see :func:`int8_rows.quantize_rows`.

    With ``static`` every row has that scale and zero point, and what lies outside is clamped.
    """
    safe, bad = _finite(x)
    if static is None:
        lowest, highest = safe.amin(-1).clamp(max=0.0), safe.amax(-1).clamp(min=0.0)
        by = torch.full_like(highest, 255.0)
        scale = (highest / by - lowest / by).clamp(min=_SMALLEST_SCALE)
        inverse = torch.ones_like(scale) / scale
        zero_point = torch.round(-lowest * inverse).to(torch.int32).clamp(max=255)
    else:
        scale = torch.full_like(safe[:, 0], static[0])
        inverse = torch.ones_like(scale) / scale
        zero_point = torch.full_like(scale, static[1], dtype=torch.int32)
    steps = torch.round((safe * inverse[:, None]).clamp(-512.0, 512.0)).to(torch.int32)
    q = torch.where(bad[:, None], 0, (steps + zero_point[:, None]).clamp(0, 255)).to(torch.uint8)
    return q, torch.where(bad, math.nan, scale), torch.where(bad, 0, zero_point)


def quantize_rows_12(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise every row of ``x (rows, k)`` to [-2047, 2047], symmetric; returns int32 ``(rows, k)`` and float32 ``(rows,)``.

    A row with a NaN or an infinity gets scale NaN and zeros.
    """
    safe, bad = _finite(x)
    largest = safe.abs().amax(-1)
    scale = (largest / torch.full_like(largest, float(_LARGEST_12))).clamp(min=_SMALLEST_SCALE)
    inverse = torch.ones_like(scale) / scale
    q = torch.round(safe * inverse[:, None]).to(torch.int32).clamp(-_LARGEST_12, _LARGEST_12)
    return q, torch.where(bad, math.nan, scale)


def pack(q: Tensor) -> Tensor:
    """Return int8 ``q (n, k)`` as ``(ceil(n/64), ceil(k/64)*16, 64, 4)``."""
    n, k = q.shape
    padded = torch.nn.functional.pad(q, (0, -k % PANEL, 0, -n % PANEL))
    panels = padded.reshape(padded.shape[0] // PANEL, PANEL, padded.shape[1] // 4, 4)
    return panels.permute(0, 2, 1, 3).contiguous()


def unpack(data: Tensor, n: int, k: int) -> Tensor:
    """Undo :func:`pack`."""
    panels, steps, _, _ = data.shape
    return data.permute(0, 2, 1, 3).reshape(panels * PANEL, steps * 4)[:n, :k].contiguous()


def product(a: Tensor, w: Tensor) -> Tensor:
    """Return ``a @ w.T`` of integers as float64, exactly: partial sums stay far below 2^53, and torch is fast at it."""
    return a.double() @ w.double().t()


def int8_linear(
    x: Tensor,
    qweight: Tensor,
    scale: Tensor,
    wsum: Tensor,
    bias: Tensor | None,
    activation: str = "",
    static: tuple[float, int] | None = None,
) -> Tensor:
    """Quantise the rows of ``x (rows, k)`` to u8, multiply with ``qweight (n, k)``, dequantise; see :func:`int8_ops.int8_linear`."""
    q, row_scale, zero_point = quantize_rows(x, static)
    acc = product(q, qweight).to(torch.int32)
    dot = (acc - zero_point[:, None] * wsum[None, :]).float()
    y = dot * (row_scale[:, None] * scale[None, :])
    return _finish(y, bias, activation, x.dtype)


def needs_12_bits(x: Tensor) -> Tensor:
    """Return which rows of ``x (rows, k)`` 8 bits are too few for, as bool ``(rows,)``.

    A row's codes stand for it with a signal of their mean square and a noise of 1/12. Gaussian rows of any length have mean
    squares far above :data:`MIXED_SQUARE`; a row with one number far larger than the others falls below. Rows of zeros,
    which are exact in 8 bits, and rows that are not finite stay there.
    """
    if x.shape[1] <= MIXED_K:
        return torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
    q, _, zero_point = quantize_rows(x)
    squares = (q.to(torch.int64) - zero_point[:, None]).square().sum(-1)
    return (squares > 0) & (squares < MIXED_SQUARE * x.shape[1])


def mixed_linear(
    x: Tensor, qweight: Tensor, scale: Tensor, wsum: Tensor, bias: Tensor | None, activation: str = ""
) -> Tensor:
    """Multiply rows in 8 bits, or in 12 where :func:`needs_12_bits` says so; arguments as of :func:`int8_linear`."""
    wide = needs_12_bits(x)
    y = int8_linear(x, qweight, scale, wsum, bias, activation)
    if not wide.is_meta and bool(wide.any()):  # there are shapes and no numbers on "meta"
        y[wide] = weight_only_linear(x[wide], qweight, scale, 0, bias, activation)
    return y


def weight_only_linear(
    x: Tensor, qweight: Tensor, scale: Tensor, group_size: int, bias: Tensor | None, activation: str = ""
) -> Tensor:
    """Multiply rows in 12 bits with ``qweight (n, k)``; see :func:`int8_ops.weight_only_linear`.

    Args:
        x: ``(rows, k)``.
        qweight: ``(n, k)`` int8.
        scale: ``(n,)``, or ``(groups, n)`` where ``group_size`` is not 0.
        group_size: steps of k that share a scale; 0 for one scale a channel.
        bias: ``(n,)`` or None.
        activation: one of :data:`ACTIVATIONS`.
    """
    q, row_scale = quantize_rows_12(x)
    if group_size:
        y = torch.zeros(x.shape[0], qweight.shape[0], dtype=torch.float32, device=x.device)
        for group, scales in enumerate(scale):
            part = slice(group * group_size, (group + 1) * group_size)
            y = y + product(q[:, part], qweight[:, part]).float() * scales[None, :]
        y = y * row_scale[:, None]
    elif x.shape[1] <= MAX_K_12:
        y = product(q, qweight).float() * (row_scale[:, None] * scale[None, :])
    else:
        # Above it int32 holds the upper and the lower 6 bits of the row by themselves.
        upper, lower = (q + 2048) >> 6, (q + 2048) & 63
        high = product(upper - 32, qweight).float()
        y = (high * 64.0 + product(lower, qweight).float()) * (row_scale[:, None] * scale[None, :])
    return _finish(y, bias, activation, x.dtype)


def _finish(y: Tensor, bias: Tensor | None, activation: str, dtype: torch.dtype) -> Tensor:
    if bias is not None:
        y = y + bias.float()
    return activate(y, activation).to(dtype)


def normalise(x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """Return RMSNorm of ``x (..., k)``, or LayerNorm where there is a bias.

    Sums run in float64 over eight lanes, each in order, so that they have the same bits wherever they are computed.
    """
    k = x.shape[-1]
    values = x.float()
    wide = values.double()
    mean = torch.zeros_like(wide[..., :1])
    if bias is not None:
        mean = lane_sum(wide)[..., None] / k
    square = lane_sum((wide - mean) * (wide - mean))[..., None]
    factor = (torch.ones_like(square) / torch.sqrt(square / k + epsilon)).float()
    y = (values - mean.float()) * factor * weight.float()
    return (y if bias is None else y + bias.float()).to(x.dtype)


def lane_sum(x: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % 8))
    # cumsum adds in order, sum does not say how it adds.
    lanes = padded.reshape(*x.shape[:-1], padded.shape[-1] // 8, 8).cumsum(-2)[..., -1, :]
    total = lanes[..., 0]
    for lane in range(1, 8):
        total = total + lanes[..., lane]
    return total


def quantize_states(states: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 ``(..., size)`` and float32 scales ``(..., 1)`` of absmax / 127 over the last axis, rounded half to even.

    Rows that are not finite have a scale that is not, and zeros.
    """
    states = states.detach().float()
    most = states.abs().amax(-1, keepdim=True)
    scales = (most / torch.full_like(most, 127.0)).clamp(min=_SMALLEST_SCALE)
    rounded = torch.round(torch.where(most.isfinite(), states, 0.0) / torch.where(most.isfinite(), scales, 1.0))
    return rounded.clamp(-127, 127).to(torch.int8), scales


def attention(
    q: Tensor, k: Tensor, k_scale: Tensor, v: Tensor, v_scale: Tensor, mask: Tensor | None, scale: float
) -> Tensor:  # fmt: skip
    """Attend with ``q`` to keys and values in 8 bits; shapes as of :func:`attention.int8_attention`."""
    batch, heads, queries, size = q.shape
    groups = heads // k.shape[1]
    k, k_scale, v, v_scale = (part.repeat_interleave(groups, dim=1) for part in (k, k_scale, v, v_scale))
    rows, row_scale = quantize_rows_12(q.detach().reshape(-1, size))
    rows, row_scale = rows.reshape(q.shape), row_scale.reshape(batch, heads, queries, 1)
    dots = (rows.double() @ k.double().transpose(-1, -2)).float()
    scores = dots * (row_scale * k_scale.transpose(-1, -2)) * torch.full_like(dots, scale)
    if mask is not None:
        scores = scores + mask
    most = scores.amax(-1, keepdim=True)
    weights = torch.where(scores == -math.inf, 0.0, exp(scores - most))
    total = lane_sum(weights.double())[..., None]
    weights = weights * v_scale.transpose(-1, -2)
    largest = weights.amax(-1, keepdim=True)
    step = (largest / torch.full_like(largest, 32767.0)).clamp(min=_SMALLEST_SCALE)
    rounded = torch.round(weights * (torch.ones_like(step) / step)).clamp(max=32767)
    mixed = (rounded.double() @ v.double()) * (step.double() / total)
    mixed = torch.where(most == -math.inf, 0.0, torch.where(most.isfinite(), mixed, math.nan))
    known = (k_scale.isfinite() & v_scale.isfinite()).all(-2, keepdim=True)
    return torch.where(known, mixed, math.nan).float()


_LOG2E = float.fromhex("0x1.715476p+0")
_LN2_HIGH = float.fromhex("0x1.62e4p-1")
_LN2_LOW = float.fromhex("0x1.7f7d1cp-20")
_EXP = (1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0)
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def _f32(value: float, like: Tensor) -> Tensor:
    return torch.full_like(like, value)


def exp(x: Tensor) -> Tensor:
    """Return exp of float32 ``x``, clamped to [-87, 87], by a polynomial of degree 7 (relative error below 2e-7); NaN stays NaN."""
    x = x.clamp(-87.0, 87.0)
    n = torch.round(x * _f32(_LOG2E, x))
    r = (x - n * _f32(_LN2_HIGH, x)) - n * _f32(_LN2_LOW, x)
    p = _f32(_EXP[0], x)
    for c in _EXP[1:]:
        p = p * r + _f32(c, x)
    power = ((torch.nan_to_num(n).to(torch.int32) + 127) << 23).view(torch.float32)
    return p * power


def sigmoid(x: Tensor) -> Tensor:
    """Return ``1 / (1 + exp(-x))`` of float32 ``x``."""
    one = torch.ones_like(x)
    return one / (one + exp(-x))


def activate(x: Tensor, name: str) -> Tensor:
    """Return one of :data:`ACTIVATIONS` of float32 ``x``, within 1e-6 of torch's (absolute, or relative above 1).

    Raises:
        ValueError: for another name.
    """
    if name == "":
        return x
    if name == "relu":
        return torch.where(x < 0, torch.zeros_like(x), x)
    if name == "silu":
        return x * sigmoid(x)
    if name == "gelu_tanh":
        cubic = x + (x * x * x) * _f32(0.044715, x)
        return x * sigmoid(cubic * _f32(2.0 * 0.7978845608028654, x))
    if name == "gelu":
        # erf by Abramowitz and Stegun 7.1.26 (error below 1.5e-7)
        one, z = torch.ones_like(x), x.abs() * _f32(0.7071067811865476, x)
        t = one / (one + z * _f32(0.3275911, x))
        p = _f32(_ERF[0], x)
        for c in _ERF[1:]:
            p = p * t + _f32(c, x)
        tail = (p * t) * exp(-(z * z))
        half = x * _f32(0.5, x)
        return torch.where(x < 0, half * tail, half * (_f32(2.0, x) - tail))
    raise ValueError(f"unknown activation {name!r}; there are {', '.join(filter(None, ACTIVATIONS))}")

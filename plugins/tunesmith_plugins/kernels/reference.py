"""The meaning of every kernel, written in torch: fallback where the native library is absent, and its oracle.

The native kernels give the same bits. To make that possible the arithmetic is float32 where transformers'
processors work in float32 (dividing by a temperature, penalising), float32 add and multiply in a fixed order for exp,
float64 for log, and sums over integers everywhere else; no result depends on an order of summation.

A row goes through these stages:

1. logits to float32; a NaN gives status NAN, a maximum of +inf POSINF, of -inf EMPTY (the maximum is looked at
   again after every edit). Such a row gets token -1 and NaN everywhere else.
2. the steps, in the caller's order. Edits (repetition_penalty, temperature, bias ...) change values; truncations (top_k,
   top_p, ban ...) drop tokens. Weights are ``rint(exp(x - max) * 2^44)`` (fewer bits above 2^18 tokens, so that a sum
   stays below 2^63), exp in float32: a token less likely than 2^-45 of the likeliest has weight 0.
3. greedy: the first of the largest. Categorical: one 64-bit Philox number r a row, target = floor(r * total / 2^64),
   and the first token, in index order, at which the running sum of the weights exceeds target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunesmith import philox

from . import reference_edits

OK, NAN, POSINF, EMPTY = range(4)
"""Values of a row's status."""

OPS = (
    "repetition_penalty", "temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "bias",
    "length_decay", "ban", "allow", "mask", "epsilon", "eta", "top_a", "top_n_sigma", "typical", "top_h", "xtc",
    "dynamic_temperature", "watermark", "top_k_low", "top_p_ties", "mirostat",
)  # fmt: skip
"""Names of the steps; the index is the code the native library knows a step by."""
EDITS = (
    "repetition_penalty", "temperature", "presence_penalty", "frequency_penalty", "bias", "length_decay",
    "dynamic_temperature", "watermark",
)  # fmt: skip
"""Steps that change values; the others drop tokens."""
NEED_HISTORY = ("repetition_penalty", "presence_penalty", "frequency_penalty")
"""Steps that look at the token ids so far unless they have a list of their own."""
NEED_IDS = ("bias", "length_decay", "ban", "allow", "mask", "watermark")
"""Steps that cannot do without a list."""
READ_HISTORY = ("watermark",)
"""Steps that look at the token ids so far and have something else in place of a list."""
REMOVALS = ("ban", "allow", "mask")
"""Truncations that may leave a row without a token, or take its likeliest one."""
ON_CUDA = OPS[: OPS.index("mirostat") + 1]
"""Steps that the CUDA library has kernels for: on a CUDA device this module does the chains that have another."""
MOST_ON_CUDA = 32
"""Steps of a chain that the CUDA library takes; this module does longer ones."""
NEED_SECOND = ("typical", "top_h", "xtc", "dynamic_temperature", "watermark", "top_p_ties", "mirostat")
"""Steps with a second parameter."""
TWO_SECONDS = ("dynamic_temperature", "top_p_ties")
"""Steps whose second parameter is a pair of numbers a row."""
TIES = ("hf", "low", "all")
"""Rules for ties of ``top_p_ties``, by number: with the highest ids, with the lowest, all of them."""
POSITIONS = 2**32
"""A position, and the number of a draw, is a word of Philox's counter: below this."""

_LOG2E = float.fromhex("0x1.715476p+0")
_EXP = tuple(
    map(float.fromhex, ("0x1.0fa7dap-7", "0x1.573adp-5", "0x1.555a6ep-3", "0x1.fffdc4p-2", "0x1.fffff6p-1", "1"))
)
_LN2_HI = float.fromhex("0x1.63p-1")
_LN2_LO = float.fromhex("-0x1.bd0106p-13")
EXP_FLOOR = -86.0
_LN2 = float.fromhex("0x1.62e42fefa39efp-1")
_SQRT2 = float.fromhex("0x1.6a09e667f3bcdp+0")
_MANTISSA = (1 << 52) - 1


class Chained(NamedTuple):
    """Rows after the steps: ``logits (batch, vocab)`` float32, ``status (batch,)`` uint8, and the processed rows."""

    logits: Tensor
    status: Tensor
    processed: Tensor


def exp(d: Tensor) -> Tensor:
    """Return exp(d) for float32 ``d <= 0`` or -inf as the kernels do; below -86 it is taken as exp(-86).

    ``2^n exp(r)`` with d = n ln(2) + r and a polynomial of degree 5 for ``exp(r)``: relative error below 2.5e-7.
    """
    d = d.clamp(min=EXP_FLOOR)
    n = torch.round(d * _LOG2E)
    r = (d - n * _LN2_HI) - n * _LN2_LO
    p = torch.full_like(r, _EXP[0])
    for coefficient in _EXP[1:]:
        p = p * r + coefficient
    return (p.view(torch.int32) + (n.to(torch.int32) << 23)).view(torch.float32)


def log(v: Tensor) -> Tensor:
    """Return ln(v) for normal float64 ``v > 0``: the kernels' atanh series."""
    bits = v.view(torch.int64)
    exponent = (bits >> 52) - 1023
    m = ((bits & _MANTISSA) | (1023 << 52)).view(torch.float64)
    high = m >= _SQRT2
    m = torch.where(high, m * 0.5, m)
    exponent = exponent + high.to(torch.int64)
    s = (m - 1.0) / (m + 1.0)
    q = s * s
    p = torch.full_like(s, 1.0 / 23.0)
    for k in range(21, 0, -2):
        p = p * q + 1.0 / k
    return exponent.double() * _LN2 + (2.0 * s) * p


def weight_bits(vocab: int) -> int:
    """Return how many bits the largest weight has: 44 up to 2^18 tokens, then fewer, so that sums stay below 2^63."""
    log2 = (vocab - 1).bit_length()
    return 44 if log2 <= 18 else 62 - log2


def weights(e: Tensor) -> Tensor:
    """Return the integer weights of ``e = exp(x - max)``, the vocabulary last."""
    return torch.round(e.double() * 2.0 ** weight_bits(e.shape[-1])).to(torch.int64)


def _relative(z: Tensor) -> Tensor:
    """Return exp(z - max) of every row, float32 ``(batch, vocab)``."""
    return exp(z - z.amax(-1, keepdim=True))


def _order_key(z: Tensor) -> Tensor:
    bits = (z + 0.0).view(torch.int32).to(torch.int64)
    return torch.where(bits < 0, -1 - (bits & 0x7FFFFFFF), bits)


def top_k(z: Tensor, k: Tensor) -> Tensor:
    """Drop what is smaller than the k-th largest, so that all ties with it stay; ``k < 1`` keeps the row."""
    vocab = z.shape[1]
    k = k.to(torch.int64)
    ordered = z.sort(-1, descending=True).values
    kth = ordered.gather(1, (k.clamp(1, vocab) - 1)[:, None])
    return torch.where((z < kth) & (k[:, None] >= 1), -math.inf, z)


def top_p(z: Tensor, p: Tensor) -> Tensor:
    """Drop tokens in ascending order (ties: lowest index first) while their mass is at most 1 - p of the whole.

    The last token in that order always stays; ``p >= 1`` keeps the row (Holtzman et al., 2020).
    """
    p = p.double()
    masses = weights(_relative(z))
    limit = ((1.0 - p) * masses.sum(-1).double()).to(torch.int64)
    vocab = z.shape[1]
    # One integer key for value and index: no sort needs to be stable.
    order = (_order_key(z) * vocab + torch.arange(vocab, device=z.device)).argsort(-1)
    dropped = masses.gather(1, order).cumsum(-1) <= limit[:, None]
    dropped[:, -1] = False
    dropped = torch.zeros_like(dropped).scatter_(1, order, dropped)
    return torch.where(dropped & (p[:, None] < 1), -math.inf, z)


def min_p(z: Tensor, p: Tensor) -> Tensor:
    """Drop tokens less likely than ``p`` times the likeliest (Nguyen et al., 2024)."""
    return torch.where(_relative(z).double() < p.double()[:, None], -math.inf, z)


def check_second(op: str, second: Tensor | None) -> None:
    """Check the second parameter of one step.

    Raises:
        ValueError: a value is outside the range of the step, or missing.
    """
    if second is None:
        if op in NEED_SECOND:
            raise ValueError(f"{op} needs its second parameter")
        return
    if second.ndim == 2:
        first, other = second.unbind(-1)
    count = (second == second.floor()) & (second >= 1) & (second < 2.0**53)
    if op == "xtc":
        fits, allowed = (second == 0) | (second == 1), "0 or 1"
    elif op == "watermark":
        fits, allowed = (second >= 0) & (second <= 1), "0 to 1"
    elif op == "dynamic_temperature":
        high = first.float()
        fits = (high > 0) & (high < math.inf) & (other > 0) & (other < math.inf)
        allowed = "a temperature above 0 and finite in float32, and an exponent above 0"
    elif op == "top_p_ties":
        fits = count[:, 0] & (other == other.floor()) & (other >= 0) & (other < len(TIES))
        allowed = "an integer of 1 or more, and a rule for ties, 0, 1 or 2"
    else:
        fits, allowed = count, "an integer of 1 or more"
    if not bool(fits.all()):
        row = int((~fits).nonzero()[0, 0])
        raise ValueError(
            f"{op}, row {row}: {second[row].tolist()} is outside the allowed range of its second parameter, {allowed}"
        )


def check_values(op: str, values: Tensor, amounts: Tensor | None = None) -> None:
    """Check the parameters of one step.

    Raises:
        ValueError: a value is outside the range of the step.
    """
    v = values.double()
    if op in ("top_k", "top_k_low"):
        fits, allowed = (v == v.floor()) & (v.abs() < 2.0**53), "an integer"
    elif op == "mirostat":
        fits, allowed = v.isfinite(), "finite"
    elif op in ("presence_penalty", "frequency_penalty", "bias", "watermark"):
        fits, allowed = v.float().isfinite(), "finite in float32"
    elif op == "top_n_sigma":
        fits, allowed = (v >= 0) & (v < math.inf), "0 or more and finite"
    elif op == "length_decay":
        fits, allowed = (v >= -1) & (v < math.inf), "at least -1 and finite"
    elif op in REMOVALS:
        fits, allowed = (v == 0) | (v == 1), "0 or 1"
    elif op in EDITS:
        v32 = v.float()
        fits, allowed = (v32 > 0) & (v32 < math.inf), "above 0 and finite in float32"
    else:
        fits, allowed = (v >= 0) & (v <= 1), "0 to 1"
    if not bool(fits.all()):
        row = int((~fits).nonzero()[0, 0])
        raise ValueError(f"{op}, row {row}: {v[row].item():g} is outside the allowed range, {allowed}")
    if amounts is not None and not bool(amounts.isfinite().all()):
        raise ValueError(f"{op}: amounts must be finite")


def check_contexts(contexts: Tensor) -> None:
    """Check how many ids before a token decide, of a watermark.

    Raises:
        ValueError: fewer than one.
    """
    if bool((contexts < 1).any()):
        raise ValueError("watermark: the number of ids before must be 1 or more")


def check_range(name: str, numbers: Tensor, end: int, bounds: str, exact: Tensor) -> None:
    """Check one number a row.

    Args:
        name: what they are.
        numbers: ``(batch,)``, wherever they are quickly read.
        end: what all are below; none is below 0.
        bounds: the same in words.
        exact: the numbers themselves, which are read where one is wrong.

    Raises:
        ValueError: a number is out of range; the message names the row.
    """
    wrong = (numbers < 0) | (numbers >= end)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(f"row {row}: {name} {int(exact[row])} is outside {bounds}")


def chain(
    logits: Tensor,
    steps: Sequence[tuple[Any, ...]],
    history: Tensor | None = None,
    history_lengths: Tensor | None = None,
) -> Chained:
    """Run the steps over every row (stages 1 and 2 of the module's description).

    Args:
        logits: ``(batch, vocab)`` float32, bfloat16 or float16; not written.
        steps: a name of :data:`OPS`, its values ``(batch,)`` and, of steps that name tokens, their ids and amounts.
        history: ``(batch, width)`` int64 token ids, needed by penalties without ids.
        history_lengths: ``(batch,)`` int64 or None.

    Raises:
        ValueError: a value is outside the range of its step.
    """
    from . import reference_entropy, reference_watermark  # which stand on this module

    raw = logits.float()
    status = torch.zeros(raw.shape[0], dtype=torch.uint8, device=raw.device)
    status[raw.isnan().any(-1)] = NAN

    def look_at_maximum(z: Tensor) -> Tensor:
        maximum = z.amax(-1)
        status[(status == OK) & (maximum == math.inf)] = POSINF
        status[(status == OK) & (maximum == -math.inf)] = EMPTY
        # Rows that are given up go on as zeros, so that they disturb nothing.
        return torch.where((status == OK)[:, None], z, 0.0)

    z = processed = look_at_maximum(raw)
    for op, values, *listed in steps:
        ids, amounts, second = (*listed, None, None, None)[:3]
        check_values(op, values, amounts)
        check_second(op, second)
        if op in READ_HISTORY or (ids is None and op in NEED_HISTORY):
            if history is None:
                raise ValueError(f"{op} needs history")
            if history_lengths is not None:
                width = history.shape[1]
                check_range("history length", history_lengths, width + 1, f"[0, {width}]", history_lengths)
            if op in READ_HISTORY:
                check_contexts(ids[:, 1])
            else:
                ids = reference_edits.own_ids(history, history_lengths)
        if op in REMOVALS:
            z = reference_edits.remove(op, z, values, ids)
        elif op == "temperature":
            z, processed = (t / values.float()[:, None] for t in (z, processed))
        elif op == "dynamic_temperature":
            z, processed = reference_entropy.dynamic_temperatures(z, processed, values, second)
        elif op == "watermark":
            assert history is not None
            marked = reference_watermark.green(ids, second, history, history_lengths, z.shape[1])
            z, processed = (reference_watermark.mark(t, values, marked) for t in (z, processed))
        elif op in EDITS:
            z, processed = (reference_edits.edit(op, t, values, ids, amounts) for t in (z, processed))
        elif op in OPS:
            z = _truncation(op)(z, *((values,) if second is None else (values, second)))
        else:
            raise ValueError(f"unknown step {op!r}; supported: {', '.join(OPS)}")
        if op in EDITS or op in REMOVALS or op == "xtc":
            z = look_at_maximum(z)
    return Chained(z, status, processed)


def _truncation(op: str) -> Callable[..., Tensor]:
    from . import reference_ties, reference_truncations  # which stand on this module

    own = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    ties = {name: getattr(reference_ties, name) for name in ("top_k_low", "top_p_ties", "mirostat")}
    found: Callable[..., Tensor] = {**own, **ties}.get(op) or getattr(reference_truncations, op)
    return found


def logp(rows: Tensor, token: Tensor) -> Tensor:
    """Return the log-probability of ``token (batch,)`` in ``rows (batch, vocab)`` float32, as float32 ``(batch,)``."""
    total = weights(_relative(rows)).sum(-1)
    mass = total.double() / 2.0 ** weight_bits(rows.shape[-1])
    x = rows.gather(1, token[:, None])[:, 0].double()
    result = ((x - rows.amax(-1).double()) - log(mass)).float() + 0.0  # never -0
    return torch.where(rows.amax(-1) == math.inf, math.nan, result)


def likeliest(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return ids int64 and log-probabilities float32 of the likeliest tokens, ``(batch, min(count, vocab))``, equals by id."""
    ids = rows.sort(dim=-1, descending=True, stable=True).indices[:, :count]
    total = weights(_relative(rows)).sum(-1, keepdim=True)
    mass = total.double() / 2.0 ** weight_bits(rows.shape[-1])
    largest = rows.amax(-1, keepdim=True)
    values = rows.gather(1, ids)
    logps = ((values.double() - largest.double()) - log(mass)).float() + 0.0  # never -0
    logps = torch.where(values == -math.inf, -math.inf, logps)  # of a row without a possible token, too
    return ids, torch.where(largest == math.inf, math.nan, logps)


def sample_chain(
    logits: Tensor,
    steps: Sequence[tuple[Any, ...]],
    seed: Tensor | None,
    stream: Tensor | None,
    position: Tensor | None,
    *,
    history: Tensor | None = None,
    history_lengths: Tensor | None = None,
    greedy: bool = False,
    draw: int = 0,
    logp_raw: bool = False,
    logp_processed: bool = False,
    logp_truncated: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Run the chain and draw one token a row; arguments as in :func:`ops.sample_chain`.

    Returns:
        token int64, status uint8, and the log-probabilities asked for (float32), all ``(batch,)``.
    """
    found, _ = sample_chain_top(
        logits, steps, seed, stream, position, history=history, history_lengths=history_lengths, greedy=greedy, draw=draw,
        logp_raw=logp_raw, logp_processed=logp_processed, logp_truncated=logp_truncated,
    )  # fmt: skip
    return found


def sample_chain_top(
    logits: Tensor,
    steps: Sequence[tuple[Any, ...]],
    seed: Tensor | None,
    stream: Tensor | None,
    position: Tensor | None,
    *,
    top: int = 0,
    top_of: Sequence[bool] = (False, False, False),
    history: Tensor | None = None,
    history_lengths: Tensor | None = None,
    greedy: bool = False,
    draw: int = 0,
    logp_raw: bool = False,
    logp_processed: bool = False,
    logp_truncated: bool = False,
) -> tuple[tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None], list[tuple[Tensor, Tensor] | None]]:
    """Do what :func:`sample_chain` does, and find the ``top`` likeliest tokens.

    Returns:
        What :func:`sample_chain` returns, and ids and log-probabilities ``(batch, top)`` under the raw, the processed and the
        truncated logits, each if ``top_of`` asks for it.
    """
    if not 0 <= draw < POSITIONS:
        raise ValueError("draw must be in [0, 2^32)")
    z, status, processed = chain(logits, steps, history, history_lengths)
    vocab = z.shape[1]
    bad = status != OK
    if greedy:
        index = torch.arange(vocab, device=z.device)
        token = torch.where(z == z.amax(-1, keepdim=True), index, vocab).amin(-1)
    else:
        if seed is None or stream is None or position is None:
            raise ValueError("a categorical draw needs seed, stream and position")
        check_range("position", position, POSITIONS, "[0, 2^32)", position)
        running = weights(_relative(z)).cumsum(-1)
        target = philox.mulhi(philox.uniform_bits(seed, stream, position, draw), running[:, -1].contiguous())
        token = torch.searchsorted(running, target[:, None], right=True)[:, 0]

    def of(rows: Tensor, wanted: bool) -> Tensor | None:
        return torch.where(bad, math.nan, logp(rows, token)) if wanted else None

    raw = torch.where(bad[:, None], 0.0, logits.float())
    values = of(raw, logp_raw), of(processed, logp_processed), of(z, logp_truncated)
    tops: list[tuple[Tensor, Tensor] | None] = []
    for rows, wanted in zip((raw, processed, z), top_of, strict=True):
        if not wanted:
            tops.append(None)
            continue
        ids, logps = likeliest(torch.where(bad[:, None], 0.0, rows), top)
        tops.append((torch.where(bad[:, None], -1, ids), torch.where(bad[:, None], math.nan, logps)))
    return (torch.where(bad, -1, token), status, *values), tops

"""The operations: what callers use.

In eager mode on plain tensors the library is called directly. Under ``torch.compile``, export, fake tensors,
dispatch modes or function transforms the call goes through ``torch.ops.tunesmith.*``, which has the same body.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tunesmith import philox

from . import chain_library as chain_library  # torch.ops.tunesmith.sample_chain and its kin
from . import loader, quick
from .chain import _chain, _check_chain, _Given, _steps_only
from .quick import quick_sample as quick_sample
from .results import ChainResult as ChainResult
from .results import SampleResult as SampleResult
from .results import Status as Status
from .results import TopResult as TopResult
from .steps import Plan as Plan
from .steps import Step as Step
from .steps import _expanded, _packed
from .steps import supported_steps as supported_steps
from .tensors import _plain

_TOPS = ("raw", "processed", "truncated")


def sample_chain(
    logits: Tensor,
    steps: Sequence[Step] | Plan,
    seed: Tensor | None = None,
    stream: Tensor | None = None,
    position: Tensor | None = None,
    *,
    history: Tensor | None = None,
    history_lengths: Tensor | None = None,
    greedy: bool = False,
    draw: int = 0,
    logp_raw: bool = False,
    logp_processed: bool = False,
    logp_truncated: bool = False,
) -> SampleResult:
    """Run a chain of steps over every row of logits and draw one token a row, in one call.

    The token is a pure function of the row's logits, parameters, seed, stream, position and draw: it depends on no
    other row, no instruction set and not on whether the native library or the torch reference computes it. The
    steps run in the order given; see docs/sampling-kernels.md for ties and for the meaning of each.

    Args:
        logits: ``(batch, vocab)`` float32, bfloat16 or float16, any row stride; never written.
        steps: the chain, in order; as a :class:`Plan` the call costs least.
        seed: ``(batch,)`` int64, the Philox key (read as unsigned). Seed, stream and position may only be left
            out when greedy.
        stream: ``(batch,)`` int64, which completion of a prompt.
        position: ``(batch,)`` int64 in [0, 2^32), index of the generated token.
        history: ``(batch, width)`` int64 token ids so far, for penalties without ids of their own; ids outside the
            vocabulary (padding) are ignored.
        history_lengths: ``(batch,)`` int64, how many of a row's ids count; all of them if left out.
        greedy: take the largest (on ties the lowest index) instead of drawing.
        draw: number of this random value among those one position needs.
        logp_raw: return the token's log-probability under the logits as given.
        logp_processed: return it after all edits, before truncation.
        logp_truncated: return it among the tokens kept.

    Returns:
        The tokens, a status a row, and the log-probabilities asked for. Rows with NaN, +inf or nothing but -inf
        raise nothing: see :class:`Status`.

    Raises:
        ValueError: a shape, dtype or parameter is wrong; the message names the step and row.
    """
    if type(steps) is Plan and not quick._compiling():
        found: SampleResult | None = quick._sample(
            steps.address, logits, seed, stream, position, history, history_lengths, greedy, draw,
            logp_raw, logp_processed, logp_truncated, SampleResult,
        )  # fmt: skip
        if found is not None:
            return found
    given = _Given(seed, stream, position, history, history_lengths)
    return _draw(logits, steps, given, greedy, draw, (logp_raw, logp_processed, logp_truncated))[0]


def _draw(
    logits: Tensor,
    steps: Sequence[Step] | Plan,
    given: _Given,
    greedy: bool,
    draw: int,
    flags: Sequence[bool],
    top: int = 0,
    wanted: Sequence[bool] = (False, False, False),
) -> tuple[SampleResult, list[tuple[Tensor, Tensor] | None]]:
    """Check everything, and draw here or through the dispatcher; with the pairs that :class:`TopResult` holds."""
    steps = tuple(steps)
    _check_chain(logits, steps, given)
    if not greedy and (given.seed is None or given.stream is None or given.position is None):
        raise ValueError("a categorical draw needs seed, stream and position; pass greedy=True for the largest logit")
    if _plain(logits, *given, *(t for step in steps for t in step[1:])):
        token, status, logps, tops = _chain(
            logits, _expanded(steps, logits.shape[0]), given, greedy, draw, flags, top, wanted
        )
        return SampleResult(token, status, *logps), tops
    packed = _packed(steps, logits)
    if not top:
        token, status, *found = torch.ops.tunesmith.sample_chain(logits, *packed, *given, greedy, draw, *flags)
    else:
        token, status, *found = torch.ops.tunesmith.sample_chain_top(
            logits, *packed, *given, greedy, draw, *flags, top, *wanted
        )
    logps = [value if flag else None for value, flag in zip(found, flags, strict=False)]
    tops = [(found[3 + 2 * n], found[4 + 2 * n]) if one else None for n, one in enumerate(wanted)]
    return SampleResult(token, status, *logps), tops


def sample_chain_top(
    logits: Tensor,
    steps: Sequence[Step] | Plan,
    seed: Tensor | None = None,
    stream: Tensor | None = None,
    position: Tensor | None = None,
    *,
    top: int,
    of: Sequence[str] = ("processed",),
    history: Tensor | None = None,
    history_lengths: Tensor | None = None,
    greedy: bool = False,
    draw: int = 0,
    logp_raw: bool = False,
    logp_processed: bool = False,
    logp_truncated: bool = False,
) -> TopResult:
    """Do what :func:`sample_chain` does, with the same arguments, and give the likeliest tokens, in one call.

    Args:
        top: how many tokens, 1 or more; all of them if there are fewer.
        of: under which logits they are the likeliest: some of ``raw``, ``processed`` and ``truncated``. Each costs a look at
            the whole row or less.

    Raises:
        ValueError: as :func:`sample_chain`; ``top`` below 1, or another name in ``of``.
    """
    unknown = [name for name in of if name not in _TOPS]
    if unknown or top < 1:
        raise ValueError(f"top must be 1 or more, not {top}, and of names of {_TOPS}, not {list(of)}")
    given, flags = _Given(seed, stream, position, history, history_lengths), (logp_raw, logp_processed, logp_truncated)
    sample, pairs = _draw(logits, steps, given, greedy, draw, flags, top, [name in of for name in _TOPS])
    return TopResult(sample, *pairs)


def apply_chain(
    logits: Tensor,
    steps: Sequence[Step] | Plan,
    *,
    history: Tensor | None = None,
    history_lengths: Tensor | None = None,
) -> ChainResult:
    """Run a chain of steps over every row without drawing; arguments and errors as in :func:`sample_chain`.

    Returns:
        New logits ``(batch, vocab)`` in float32, -inf where a token was dropped, and a status a row.
    """
    steps, given = tuple(steps), _Given(history=history, history_lengths=history_lengths)
    _check_chain(logits, steps, given)
    if _plain(logits, *given, *(t for step in steps for t in step[1:])):
        return ChainResult(*_steps_only(logits, _expanded(steps, logits.shape[0]), given))
    packed = _packed(steps, logits)
    return ChainResult(*torch.ops.tunesmith.apply_chain(logits, *packed, history, history_lengths))


def uniform(seed: Tensor, stream: Tensor, position: Tensor, *, draw: int) -> Tensor:
    """Return what ``tunesmith.philox.uniform`` does, ``(batch,)`` float64 in [0, 1), on the CPU in one call of the library.

    Args:
        seed: ``(batch,)`` int64, as stream and position.
        stream: Which completion of a prompt.
        position: Index of the generated token.
        draw: Number of this random value among those one position needs.
    """
    library = loader.cpu() if seed.device.type == "cpu" and _plain(seed, stream, position) else None
    rows = [t.contiguous() for t in (seed, stream, position)]
    if library is None or any(t.dtype != torch.int64 or t.shape != seed.shape or t.ndim != 1 for t in rows):
        return philox.uniform(seed, stream, position, draw)
    out = torch.empty(len(seed), dtype=torch.float64, device=seed.device)
    library.check(library.uniform(*(t.data_ptr() for t in rows), draw, out.data_ptr(), len(seed)))
    return out

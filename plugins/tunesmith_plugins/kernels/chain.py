"""The sampling chain done: by the native library where there is one, else by the torch reference."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import loader, reference
from .cuda_calls import device_of, stream_of
from .steps import Step, _check_step, _links, _reads_history
from .tensors import _native, _pointer, _rows

_LOGITS = {torch.float32: loader.F32, torch.bfloat16: loader.BF16, torch.float16: loader.F16}


class _Given(NamedTuple):
    """What a call gives for every row beside its logits; see :func:`sample_chain`."""

    seed: Tensor | None = None
    stream: Tensor | None = None
    position: Tensor | None = None
    history: Tensor | None = None
    history_lengths: Tensor | None = None


def _check_given(given: _Given, logits: Tensor) -> None:
    for name, tensor in zip(_Given._fields, given, strict=True):
        if tensor is None:
            continue
        ndim, shape = (2, "(batch, width)") if name == "history" else (1, "(batch,)")
        if tensor.dtype != torch.int64 or tensor.ndim != ndim or tensor.shape[0] != logits.shape[0]:
            raise ValueError(
                f"{name} must be int64 {shape} with batch {logits.shape[0]}, not {tensor.dtype} {tuple(tensor.shape)}"
            )
        if tensor.device != logits.device:
            raise ValueError(f"{name} is on {tensor.device}, the logits are on {logits.device}")


def _check_chain(logits: Tensor, steps: Sequence[Step], given: _Given) -> None:
    if logits.ndim != 2 or logits.shape[1] < 1 or logits.dtype not in _LOGITS:
        raise ValueError(
            f"logits must be (batch, vocab) in float32, bfloat16 or float16, not {logits.dtype} {tuple(logits.shape)}"
        )
    for index, step in enumerate(steps):
        _check_step(index, step, logits.shape[0])
        for what, tensor in zip(("values", "ids", "amounts", "second values"), step[1:], strict=True):
            if tensor is not None and tensor.device != logits.device:
                raise ValueError(
                    f"step {index} ({step.op}): {what} are on {tensor.device}, the logits on {logits.device}"
                )
        if given.history is None and _reads_history(step):
            raise ValueError(f"step {index} ({step.op}) needs history, the token ids so far")
    _check_given(given, logits)


def _library_for(device: torch.device, steps: Sequence[Step]) -> loader.Library | None:
    """Return the library for a chain, or None where the reference must do it: a step or a length that CUDA lacks."""
    if device.type == "cuda" and (
        len(steps) > reference.MOST_ON_CUDA or any(step.op not in reference.ON_CUDA for step in steps)
    ):
        return None
    return _native(device)


def _chain(
    logits: Tensor,
    steps: Sequence[Step],
    given: _Given,
    greedy: bool,
    draw: int,
    flags: Sequence[bool],
    top: int = 0,
    top_of: Sequence[bool] = (False, False, False),
) -> tuple[Tensor, Tensor, list[Tensor | None], list[tuple[Tensor, Tensor] | None]]:
    """Draw with the library if there is one, else with the reference; values are ``(batch,)`` with any stride."""
    library = _library_for(logits.device, steps)
    if library is None:
        (token, status, *logps), tops = reference.sample_chain_top(
            logits, steps, **given._asdict(), greedy=greedy, draw=draw, logp_raw=flags[0], logp_processed=flags[1],
            logp_truncated=flags[2], top=top, top_of=top_of,
        )  # fmt: skip
        return token, status, logps, tops
    batch, count = logits.shape[0], min(top, logits.shape[1])
    ids, values = (
        functools.partial(torch.empty, batch, count, dtype=t, device=logits.device)
        for t in (torch.int64, torch.float32)
    )
    tops = [(ids(), values()) if wanted else None for wanted in top_of]
    token = torch.empty(batch, dtype=torch.int64, device=logits.device)
    status = torch.empty(batch, dtype=torch.uint8, device=logits.device)
    logps = [torch.empty(batch, dtype=torch.float32, device=logits.device) if flag else None for flag in flags]
    _call_sample(
        library, logits, steps, given, greedy=greedy, draw=draw, token=token, status=status, logps=logps, tops=tops,
        top=count,
    )  # fmt: skip
    return token, status, logps, tops


def _steps_only(logits: Tensor, steps: Sequence[Step], given: _Given) -> tuple[Tensor, Tensor]:
    library = _library_for(logits.device, steps)
    if library is None:
        rows, status, _ = reference.chain(logits, steps, given.history, given.history_lengths)
        return torch.where((status != reference.OK)[:, None], torch.nan, rows), status
    status = torch.empty(logits.shape[0], dtype=torch.uint8, device=logits.device)
    out = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    _call_sample(library, logits, steps, given, status=status, out=out)
    return out, status


def _call_sample(
    library: loader.Library,
    logits: Tensor,
    steps: Sequence[Step],
    given: _Given,
    *,
    status: Tensor,
    token: Tensor | None = None,
    logps: Sequence[Tensor | None] = (None, None, None),
    out: Tensor | None = None,
    greedy: bool = False,
    draw: int = 0,
    tops: Sequence[tuple[Tensor, Tensor] | None] = (None, None, None),
    top: int = 0,
) -> None:
    logits = _rows(logits.detach())
    seed, stream, position, history, lengths = (t if t is None else t.contiguous() for t in given)
    batch, vocab = logits.shape
    width = 0 if history is None else history.shape[1]
    links = _links(steps)
    workspace = None
    if library.on_device:
        size = library.sample_workspace(batch, vocab, width)
        workspace = torch.empty(size, dtype=torch.uint8, device=logits.device)
    arguments = loader.SampleArgs(
        logits=logits.data_ptr(), batch=batch, vocab=vocab, row_stride=logits.stride(0), dtype=_LOGITS[logits.dtype],
        greedy=greedy, steps=links, step_count=len(steps), seed=_pointer(seed), stream=_pointer(stream),
        position=_pointer(position), draw=draw, history=_pointer(history), history_lengths=_pointer(lengths),
        history_width=width, token=_pointer(token), status=status.data_ptr(), logp_raw=_pointer(logps[0]),
        logp_processed=_pointer(logps[1]), logp_truncated=_pointer(logps[2]), out_logits=_pointer(out),
        workspace=_pointer(workspace), cuda_stream=stream_of(logits), threads=torch.get_num_threads(),
    )  # fmt: skip
    if top:
        arguments.top_count = top
        for name, pair in zip(("raw", "processed", "truncated"), tops, strict=True):
            if pair is not None:
                setattr(arguments, f"top_{name}_ids", pair[0].data_ptr())
                setattr(arguments, f"top_{name}", pair[1].data_ptr())
    with device_of(logits):
        code = library.sample(ctypes.byref(arguments))
    if code and library.on_device:  # it knows the row; which parameter it is, is said here
        _check_from_device(steps, lengths, width, position if token is not None and not greedy else None)
    library.check(code)


def _check_from_device(
    steps: Sequence[Step], history_lengths: Tensor | None, width: int, position: Tensor | None
) -> None:
    """Say what is wrong with parameters that the library refused; they are copied to the CPU together.

    Args:
        steps: the chain.
        history_lengths: ``(batch,)`` or None.
        width: of the history.
        position: ``(batch,)`` where it decides a draw, or None.
    """
    looked_at = [(step.values, step.amounts, step.second, _contexts(step)) for step in steps]
    given = [t for each in looked_at for t in each if t is not None]
    lengths = history_lengths if any(map(_reads_history, steps)) else None
    ranges = [
        (name, t, end, bounds)
        for name, t, end, bounds in (
            ("position", position, reference.POSITIONS, "[0, 2^32)"),
            ("history length", lengths, width + 1, f"[0, {width}]"),
        )
        if t is not None
    ]
    given += [t for _, t, _, _ in ranges]
    if not given:
        return
    copied = torch.cat([t.reshape(-1).double() for t in given]).cpu().split([t.numel() for t in given])
    here = (part.reshape(t.shape) for part, t in zip(copied, given, strict=True))
    for step, (_, *others) in zip(steps, looked_at, strict=True):
        values = next(here)
        amounts, second, contexts = (None if t is None else next(here) for t in others)
        reference.check_values(step.op, values.reshape(-1), amounts)
        reference.check_second(step.op, None if second is None else torch.atleast_1d(second))
        if contexts is not None:
            reference.check_contexts(contexts)
    for (name, t, end, bounds), numbers in zip(ranges, here, strict=True):
        reference.check_range(name, numbers, end, bounds, t)


def _contexts(step: Step) -> Tensor | None:
    return step.ids[:, 1] if step.op == "watermark" and step.ids is not None else None

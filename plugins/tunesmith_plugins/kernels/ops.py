"""The operations: what callers use, what ``torch.library`` knows of them, and the calls into the native library.

In eager mode on plain tensors the library is called directly. Under ``torch.compile``, export, fake tensors,
dispatch modes or function transforms the call goes through ``torch.ops.tunesmith.*``, which has the same body.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunesmith import philox

from . import loader, reference


class Status(enum.IntEnum):
    """What became of a row of logits."""

    OK = reference.OK
    NAN = reference.NAN
    """The row holds a NaN."""
    POSINF = reference.POSINF
    """The row's maximum is +inf, in the logits or after an edit."""
    EMPTY = reference.EMPTY
    """Every token of the row is at -inf."""


class Step(NamedTuple):
    """One step of a fused chain, with a parameter for every row.

    A plain tuple, so that torch.compile can trace a function that makes one.

    Attributes:
        op: one of :func:`supported_steps`.
        values: ``(batch,)`` float64 or int64; a tensor of one element serves all rows. repetition_penalty and
            temperature: above 0, applied as float32; top_k: an integer, below 1 keeps every token; top_p and
            min_p: 0 to 1; presence_penalty, frequency_penalty and bias: finite, applied as float32; length_decay: -1
            or more; ban, allow and mask: 1 for rows where the step is done, 0 where it is not; epsilon, eta, top_a,
            typical, top_h, xtc and top_p_ties: 0 to 1; top_n_sigma: 0 or more; top_k_low: as top_k; dynamic_temperature:
            the lower of its temperatures; watermark: what is added; mirostat: the bound on the surprise, bits.
        ids: ``(1 or batch, width)`` int64, the tokens that a step names, padded with -1; one row serves all. The
            penalties may leave it out: they then take the history. mask: int32 words, bit i of word w for token 32 w + i.
            watermark: ``(1 or batch, 2)``, its key and how many ids before a token decide.
        amounts: of a bias, float32 of the shape of ``ids``: each is multiplied by the row's value; 1 each if left out.
        second: ``(batch,)`` or one element, float64. typical: how many tokens stay at least; top_h: how many candidates it
            looks at; xtc: 1 for rows where it happens, 0 where it does not; watermark: share of green tokens; mirostat: how
            many candidates it looks at. ``(1 or batch, 2)`` of dynamic_temperature: the higher temperature and the exponent;
            of top_p_ties: how many tokens stay at least, and the number of a rule in ``reference.TIES``.
    """

    op: str
    values: Tensor
    ids: Tensor | None = None
    amounts: Tensor | None = None
    second: Tensor | None = None


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


class Plan:
    """A chain whose steps are checked and packed once, for callers that use the same one again and again.

    Pass it as ``steps``. The tensors of the steps are read anew at every call, so their values may change; their
    shapes may not. Lists whose rows are not dense in memory are copied, once.
    """

    __slots__ = ("_keep", "address", "batch", "history", "steps")

    def __init__(self, steps: Sequence[Step]) -> None:
        """Check and pack steps.

        Args:
            steps: the chain, in order; values of one element, or ``(batch,)`` for one and the same batch.

        Raises:
            ValueError: an unknown step, or values of another dtype or shape.
        """
        self.steps = tuple(steps)
        self.batch: int | None = None
        for index, step in enumerate(self.steps):
            if self.batch is None:
                sizes = (step.values.numel(), *(len(t) for t in step[2:] if t is not None and t.ndim))
                self.batch = next((size for size in sizes if size != 1), None)
            _check_step(index, step, self.batch)
        self.history = any(map(_reads_history, self.steps))
        self._keep, self.address = None, 0
        if all(t.device.type == "cpu" and not t.is_neg() for step in self.steps for t in step[1:] if t is not None):
            self.steps = tuple(map(_dense, self.steps))
            self._keep = _plan_links(self.steps, self.batch, self.history)
            self.address = ctypes.addressof(self._keep) + _PLAN_HEAD

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def supported_steps() -> tuple[str, ...]:
    """Return the names a :class:`Step` can have."""
    return reference.OPS


_LOGITS = {torch.float32: loader.F32, torch.bfloat16: loader.BF16, torch.float16: loader.F16}
_VALUES = {torch.float64: loader.F64, torch.int64: loader.I64}
_CODES = {op: code for code, op in enumerate(reference.OPS)}


def _plain(*tensors: Tensor | None) -> bool:
    """Whether the data of these tensors may be read right here, past the dispatcher."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return False
    return all(t is None or type(t) is Tensor or type(t) is torch.nn.Parameter for t in tensors)


def _team_of_torch() -> int | None:
    """Return where the OpenMP library that torch runs on divides work among its threads, None where there is none."""
    if sys.platform != "linux":
        return None
    try:
        opened = ctypes.CDLL(
            str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"), os.RTLD_NOLOAD | os.RTLD_LAZY
        )
        return ctypes.cast(opened.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


loader.use_team(_team_of_torch())


def _native(device: torch.device) -> loader.Library | None:
    library = loader.cpu() if device.type == "cpu" else loader.cuda() if device.type == "cuda" else None
    if library is None:
        loader.warn_fallback(device.type)
    return library


def _library_for(device: torch.device, steps: Sequence[Step]) -> loader.Library | None:
    """Return the library for a chain, or None where the reference must do it: a step or a length that CUDA lacks."""
    if device.type == "cuda" and (
        len(steps) > reference.MOST_ON_CUDA or any(step.op not in reference.ON_CUDA for step in steps)
    ):
        return None
    return _native(device)


def _stream(device: torch.device) -> int | None:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None


def _rows(x: Tensor) -> Tensor:
    """Return x as memory shows it: each row dense, and no sign that only torch knows of (as of a conjugate's imaginary part)."""
    x = x.resolve_neg()
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


# ---- sampling ---------------------------------------------------------------------------------------------------


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


def _reads_history(step: Step) -> bool:
    return (step.ids is None and step.op in reference.NEED_HISTORY) or step.op in reference.READ_HISTORY


def _dense(step: Step) -> Step:
    """Return the step with lists and pairs whose rows lie dense in memory."""
    if step.second is not None and step.second.ndim == 2:
        step = step._replace(second=_rows(step.second))
    if step.ids is None:
        return step
    return step._replace(ids=_rows(step.ids), amounts=None if step.amounts is None else _rows(step.amounts))


def _check_second(index: int, step: Step, batch: int | None) -> None:
    second, where = step.second, f"step {index} ({step.op})"
    if (second is None) == (step.op in reference.NEED_SECOND):
        raise ValueError(
            f"{where} needs its second parameter" if second is None else f"{where} has no second parameter"
        )
    if second is None:
        return
    rows: int | str = "batch" if batch is None else batch
    if step.op in reference.TWO_SECONDS:
        fits = second.ndim == 2 and second.shape[1] == 2 and (batch is None or second.shape[0] in (1, batch))
        shape = f"(1 or {rows}, 2)"
    else:
        fits = second.ndim <= 1 and (second.numel() == 1 or batch is None or second.numel() == batch)
        shape = f"({rows},) or one element"
    if second.dtype != torch.float64 or not fits:
        raise ValueError(
            f"{where}: the second parameter must be float64 of shape {shape}, not {second.dtype} {tuple(second.shape)}"
        )


def _check_list(index: int, step: Step, batch: int | None) -> None:
    ids, amounts, where = step.ids, step.amounts, f"step {index} ({step.op})"
    if ids is None:
        if step.op in reference.NEED_IDS:
            raise ValueError(f"{where} needs ids, the tokens that it names")
        if amounts is not None:
            raise ValueError(f"{where}: amounts without ids")
        return
    if step.op not in reference.NEED_IDS and step.op not in reference.NEED_HISTORY:
        raise ValueError(f"{where} names no tokens: leave out ids")
    dtype = torch.int32 if step.op == "mask" else torch.int64
    if ids.dtype != dtype or ids.ndim != 2 or (ids.shape[0] != 1 and batch is not None and ids.shape[0] != batch):
        raise ValueError(
            f"{where}: ids must be {dtype} of shape (1 or {'batch' if batch is None else batch}, width), "
            f"not {ids.dtype} {tuple(ids.shape)}"
        )
    if step.op == "watermark" and ids.shape[1] != 2:
        raise ValueError(f"{where}: ids must be a key and a number of ids before, not {tuple(ids.shape)}")
    if amounts is not None and step.op != "bias":
        raise ValueError(f"{where} takes no amounts")
    if amounts is not None and (amounts.dtype != torch.float32 or amounts.shape != ids.shape):
        raise ValueError(
            f"{where}: amounts must be float32 of the shape of ids {tuple(ids.shape)}, "
            f"not {amounts.dtype} {tuple(amounts.shape)}"
        )


def _check_step(index: int, step: Step, batch: int | None) -> None:
    values = step.values
    if step.op not in _CODES:
        raise ValueError(f"step {index}: unknown step {step.op!r}; supported: {', '.join(reference.OPS)}")
    if (
        values.dtype not in _VALUES
        or values.ndim > 1
        or (values.numel() != 1 and batch is not None and values.numel() != batch)
    ):
        raise ValueError(
            f"step {index} ({step.op}): values must be float64 or int64 of shape ({'batch' if batch is None else batch},) "
            f"or one element, not {values.dtype} {tuple(values.shape)}"
        )
    if step.ids is not None or step.amounts is not None or step.op in reference.NEED_IDS:
        _check_list(index, step, batch)
    if step.second is not None or step.op in reference.NEED_SECOND:
        _check_second(index, step, batch)


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
        _check_from_device(steps, lengths, width, position if token is not None and not greedy else None)
        size = library.sample_workspace(batch, vocab, width)
        workspace = torch.empty(size, dtype=torch.uint8, device=logits.device)
    arguments = loader.SampleArgs(
        logits=logits.data_ptr(), batch=batch, vocab=vocab, row_stride=logits.stride(0), dtype=_LOGITS[logits.dtype],
        greedy=greedy, steps=links, step_count=len(steps), seed=_pointer(seed), stream=_pointer(stream),
        position=_pointer(position), draw=draw, history=_pointer(history), history_lengths=_pointer(lengths),
        history_width=width, token=_pointer(token), status=status.data_ptr(), logp_raw=_pointer(logps[0]),
        logp_processed=_pointer(logps[1]), logp_truncated=_pointer(logps[2]), out_logits=_pointer(out),
        workspace=_pointer(workspace), cuda_stream=_stream(logits.device), threads=torch.get_num_threads(),
    )  # fmt: skip
    if top:
        arguments.top_count = top
        for name, pair in zip(("raw", "processed", "truncated"), tops, strict=True):
            if pair is not None:
                setattr(arguments, f"top_{name}_ids", pair[0].data_ptr())
                setattr(arguments, f"top_{name}", pair[1].data_ptr())
    library.check(library.sample(ctypes.byref(arguments)))


def _check_from_device(
    steps: Sequence[Step], history_lengths: Tensor | None, width: int, position: Tensor | None
) -> None:
    """Check what the library cannot look at; it is copied to the CPU together, which waits once.

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


def _links(steps: Sequence[Step]) -> ctypes.Array[loader.StepArgs]:
    links: ctypes.Array[loader.StepArgs] = (loader.StepArgs * len(steps))()
    for link, (op, values, ids, amounts, second) in zip(links, steps, strict=True):
        link.op, link.dtype = _CODES[op], _VALUES[values.dtype]
        link.values, link.stride = values.data_ptr(), values.stride(0) if values.numel() > 1 else 0
        if second is not None:
            link.second, link.second_stride = (
                second.data_ptr(),
                second.stride(0) if second.ndim and len(second) > 1 else 0,
            )
        if ids is None:
            continue
        # A list without entries has no place in memory, and null would stand for the history.
        link.ids = ids.data_ptr() or ctypes.addressof(links)
        link.width, link.ids_stride = ids.shape[1], ids.stride(0) if ids.shape[0] > 1 else 0
        if amounts is not None:
            link.amounts, link.amounts_stride = amounts.data_ptr(), amounts.stride(0) if amounts.shape[0] > 1 else 0
    return links


def _second_rows(second: Tensor, batch: int) -> Tensor:
    second = second.resolve_neg()
    return second.reshape(-1).expand(batch) if second.ndim < 2 else second.expand(batch, 2)


def _expanded(steps: Sequence[Step], batch: int) -> list[Step]:
    return [
        _dense(
            step._replace(
                values=step.values.resolve_neg().reshape(-1).expand(batch),
                second=None if step.second is None else _second_rows(step.second, batch),
            )
        )
        for step in steps
    ]


def _packed(steps: Sequence[Step], logits: Tensor) -> tuple[list[int], Tensor, list[Tensor]]:
    """Return the steps as the dispatcher takes them.

    Returns:
        Codes, values float64 ``(steps, batch)``, and ids, amounts and second parameters ``(1, 1 or batch)``, or of pairs
        ``(1, 1 or batch, 2)``, of every step, where ``(0,)`` means none; nothing at all if no step has any.
    """
    batch = logits.shape[0]
    if not steps:
        return [], logits.new_empty((0, batch), dtype=torch.float64), []
    values = [step.values.reshape(-1).expand(batch).double() for step in steps]
    tables = [
        t
        for step in steps
        for t in (step.ids, step.amounts, None if step.second is None else torch.atleast_1d(step.second)[None])
    ]
    if all(t is None for t in tables):
        tables = []
    # each a tensor of its own: the dispatcher must not be given one twice
    full = [logits.new_empty(0, dtype=torch.float32) if t is None else t for t in tables]
    return [_CODES[step.op] for step in steps], torch.stack(values), full


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
    steps run in the order given; see docs/kernels.md for ties and for the meaning of each.

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
    if type(steps) is Plan and not _compiling():
        quick: SampleResult | None = _sample(
            steps.address, logits, seed, stream, position, history, history_lengths, greedy, draw,
            logp_raw, logp_processed, logp_truncated, SampleResult,
        )  # fmt: skip
        if quick is not None:
            return quick
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


_TOPS = ("raw", "processed", "truncated")


# ---- the quick way ----------------------------------------------------------------------------------------------


def quick_sample(
    plan: Plan,
    logits: Tensor,
    seed: Tensor | None,
    stream: Tensor | None,
    position: Tensor | None,
    history: Tensor | None,
    history_lengths: Tensor | None,
    greedy: bool,
    logp_raw: bool,
    logp_processed: bool,
    logp_truncated: bool,
) -> SampleResult | None:
    """Do what :func:`sample_chain` does where everything is as usual, without its checks.

    Returns:
        None, and nothing done, for anything that the library cannot read as it is (another device or dtype, ids that are
        not dense, a subclass, an empty batch, a dispatch mode, a compiler at work): call :func:`sample_chain` then.

    Raises:
        ValueError: a parameter is out of range; the message names the step and row.
    """
    if _compiling():
        return None
    found: SampleResult | None = _sample(
        plan.address, logits, seed, stream, position, history, history_lengths, greedy, 0,
        logp_raw, logp_processed, logp_truncated, SampleResult,
    )  # fmt: skip
    return found


def _plan_links(steps: Sequence[Step], batch: int | None, history: bool) -> ctypes.Structure:
    """Return the steps, and before them what ``sample`` of call.cpp needs to know of them."""
    return _plan_type(len(steps))((len(steps), -1 if batch is None else batch, history), _links(steps))


@functools.cache
def _plan_type(count: int) -> type[ctypes.Structure]:
    fields = [("head", ctypes.c_int64 * 3), ("links", loader.StepArgs * count)]
    return type("PlanLinks", (ctypes.Structure,), {"_fields_": fields})


_PLAN_HEAD = ctypes.sizeof(ctypes.c_int64 * 3)


def _first_sample(*arguments: Any) -> Any:
    """Stand in for the quick call until something is drawn; None where there is none."""
    global _sample
    calls = set_up_calls()
    if calls is None or calls.sample is None:
        return None
    _sample = calls.sample
    return _sample(*arguments)


def set_up_calls() -> loader.WordsCall | None:
    """Return the calls of the library that read tensors themselves, ready for use; None where there are none."""
    library, calls = loader.cpu(), loader.words_call()
    if library is None or calls is None or calls.setup is None:
        return None
    calls.setup(
        Tensor, torch.nn.Parameter, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.get_num_threads,
        vars(torch.utils._python_dispatch), torch._C._len_torch_dispatch_stack, torch._C._are_functorch_transforms_active,
        torch.is_grad_enabled, torch.empty, library.check, torch.is_inference_mode_enabled,
        getattr(Tensor, "__dlpack_c_exchange_api__", None),
        library.address("ts_sample_words"), library.address("ts_int8_linears_words"), library.address("ts_warm_code"),
        library.address("ts_int8_warm_code"),
    )  # fmt: skip
    return calls


def _forget_sample() -> None:
    global _sample
    _sample = _first_sample


_sample: Any = _first_sample
loader.when_chosen(_forget_sample)
_compiling = torch.compiler.is_dynamo_compiling  # export without dynamo hands in fake tensors, which are never quick


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


# ---- torch.library ----------------------------------------------------------------------------------------------

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


def _named(ops: Sequence[int], values: Tensor, tables: Sequence[Tensor]) -> list[Step]:
    if any(not 0 <= op < len(reference.OPS) for op in ops) or len(ops) != len(values):
        raise ValueError(
            f"ops must be {len(values)} numbers in [0, {len(reference.OPS)}), a row of values each, not {ops}"
        )
    if not tables:
        return [Step(reference.OPS[op], row) for op, row in zip(ops, values, strict=True)]
    lists = [None if t.ndim == 1 else t for t in tables]
    if len(lists) != 3 * len(ops):
        raise ValueError(
            f"tables must be ids, amounts and second parameters of {len(ops)} steps, not {len(tables)} tensors"
        )
    return [
        Step(reference.OPS[op], row, ids, amounts, None if second is None else second[0])
        for op, row, ids, amounts, second in zip(ops, values, lists[::3], lists[1::3], lists[2::3], strict=True)
    ]


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

"""The operations: what callers use, what ``torch.library`` knows of them, and the calls into the native library.

In eager mode on plain tensors the library is called directly. Under ``torch.compile``, export, fake tensors,
dispatch modes or function transforms the call goes through ``torch.ops.tunesmith.*``, which has the same body.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

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
            min_p: 0 to 1.
    """

    op: str
    values: Tensor


class SampleResult(NamedTuple):
    """One drawn token a row, all tensors ``(batch,)``.

    Attributes:
        token: int64; -1 where the status is not OK.
        status: uint8, see :class:`Status`.
        logp_raw: float32 log-probability of the token under softmax of the logits as given; NaN where the status
            is not OK; None if not asked for. So are the other two.
        logp_processed: after every repetition_penalty and temperature step, before any truncation.
        logp_truncated: among the tokens that the whole chain kept.
    """

    token: Tensor
    status: Tensor
    logp_raw: Tensor | None
    logp_processed: Tensor | None
    logp_truncated: Tensor | None


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
    shapes may not.
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
            _check_step(index, step, self.batch)
            if step.values.numel() != 1:
                self.batch = step.values.numel()
        self.history = any(step.op in reference.NEED_HISTORY for step in self.steps)
        self._keep, self.address = None, 0
        if all(step.values.device.type == "cpu" for step in self.steps):
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


def _native(device: torch.device) -> loader.Library | None:
    library = loader.cpu() if device.type == "cpu" else loader.cuda() if device.type == "cuda" else None
    if library is None:
        loader.warn_fallback(device.type)
    return library


def _stream(device: torch.device) -> int | None:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


# ---- sampling ---------------------------------------------------------------------------------------------------


def _check_batch(name: str, tensor: Tensor | None, logits: Tensor, ndim: int = 1) -> None:
    if tensor is None:
        return
    if tensor.dtype != torch.int64 or tensor.ndim != ndim or tensor.shape[0] != logits.shape[0]:
        shape = "(batch,)" if ndim == 1 else "(batch, width)"
        raise ValueError(
            f"{name} must be int64 {shape} with batch {logits.shape[0]}, not {tensor.dtype} {tuple(tensor.shape)}"
        )
    if tensor.device != logits.device:
        raise ValueError(f"{name} is on {tensor.device}, the logits are on {logits.device}")


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


def _check_chain(
    logits: Tensor,
    steps: Sequence[Step],
    seed: Tensor | None,
    stream: Tensor | None,
    position: Tensor | None,
    history: Tensor | None,
    history_lengths: Tensor | None,
) -> None:
    if logits.ndim != 2 or logits.shape[1] < 1 or logits.dtype not in _LOGITS:
        raise ValueError(
            f"logits must be (batch, vocab) in float32, bfloat16 or float16, not {logits.dtype} {tuple(logits.shape)}"
        )
    for index, step in enumerate(steps):
        _check_step(index, step, logits.shape[0])
        if step.values.device != logits.device:
            raise ValueError(
                f"step {index} ({step.op}): values are on {step.values.device}, the logits on {logits.device}"
            )
        if step.op == "repetition_penalty" and history is None:
            raise ValueError(f"step {index} (repetition_penalty) needs history, the token ids so far")
    for name, tensor in (
        ("seed", seed),
        ("stream", stream),
        ("position", position),
        ("history_lengths", history_lengths),
    ):
        _check_batch(name, tensor, logits)
    _check_batch("history", history, logits, ndim=2)


def _chain(
    logits: Tensor,
    steps: Sequence[tuple[str, Tensor]],
    seed: Tensor | None,
    stream: Tensor | None,
    position: Tensor | None,
    history: Tensor | None,
    history_lengths: Tensor | None,
    greedy: bool,
    draw: int,
    flags: Sequence[bool],
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Draw with the library if there is one, else with the reference; values are ``(batch,)`` with any stride."""
    library = _native(logits.device)
    if library is None:
        token, status, *logps = reference.sample_chain(
            logits, steps, seed, stream, position, history=history, history_lengths=history_lengths, greedy=greedy,
            draw=draw, logp_raw=flags[0], logp_processed=flags[1], logp_truncated=flags[2],
        )  # fmt: skip
        return token, status, logps
    batch = logits.shape[0]
    token = torch.empty(batch, dtype=torch.int64, device=logits.device)
    status = torch.empty(batch, dtype=torch.uint8, device=logits.device)
    logps = [torch.empty(batch, dtype=torch.float32, device=logits.device) if flag else None for flag in flags]
    keep = [t if t is None else t.contiguous() for t in (seed, stream, position, history, history_lengths)]
    _call_sample(library, logits, steps, *keep, greedy=greedy, draw=draw, token=token, status=status, logps=logps)
    return token, status, logps


def _steps_only(
    logits: Tensor, steps: Sequence[tuple[str, Tensor]], history: Tensor | None, history_lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    library = _native(logits.device)
    if library is None:
        rows, status, _ = reference.chain(logits, steps, history, history_lengths)
        return torch.where((status != reference.OK)[:, None], torch.nan, rows), status
    status = torch.empty(logits.shape[0], dtype=torch.uint8, device=logits.device)
    out = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    keep = [t if t is None else t.contiguous() for t in (history, history_lengths)]
    _call_sample(library, logits, steps, None, None, None, *keep, status=status, out=out)
    return out, status


def _call_sample(
    library: loader.Library,
    logits: Tensor,
    steps: Sequence[tuple[str, Tensor]],
    seed: Tensor | None,
    stream: Tensor | None,
    position: Tensor | None,
    history: Tensor | None,
    history_lengths: Tensor | None,
    *,
    status: Tensor,
    token: Tensor | None = None,
    logps: Sequence[Tensor | None] = (None, None, None),
    out: Tensor | None = None,
    greedy: bool = False,
    draw: int = 0,
) -> None:
    logits = _rows(logits.detach())
    batch, vocab = logits.shape
    width = 0 if history is None else history.shape[1]
    links = _links(steps)
    workspace = None
    if logits.device.type == "cuda":
        for op, values in steps:
            reference.check_values(op, values)
        size = library.sample_workspace(batch, vocab, width)
        workspace = torch.empty(size, dtype=torch.uint8, device=logits.device)
    arguments = loader.SampleArgs(
        logits=logits.data_ptr(), batch=batch, vocab=vocab, row_stride=logits.stride(0), dtype=_LOGITS[logits.dtype],
        greedy=greedy, steps=links, step_count=len(steps), seed=_pointer(seed), stream=_pointer(stream),
        position=_pointer(position), draw=draw, history=_pointer(history), history_lengths=_pointer(history_lengths),
        history_width=width, token=_pointer(token), status=status.data_ptr(), logp_raw=_pointer(logps[0]),
        logp_processed=_pointer(logps[1]), logp_truncated=_pointer(logps[2]), out_logits=_pointer(out),
        workspace=_pointer(workspace), cuda_stream=_stream(logits.device), threads=torch.get_num_threads(),
    )  # fmt: skip
    library.check(library.sample(ctypes.byref(arguments)))


def _links(steps: Sequence[tuple[str, Tensor]]) -> ctypes.Array[loader.StepArgs]:
    links: ctypes.Array[loader.StepArgs] = (loader.StepArgs * len(steps))()
    for link, (op, values) in zip(links, steps, strict=True):
        link.op, link.dtype = _CODES[op], _VALUES[values.dtype]
        link.values, link.stride = values.data_ptr(), values.stride(0) if values.numel() > 1 else 0
    return links


def _expanded(steps: Sequence[Step], batch: int) -> list[tuple[str, Tensor]]:
    return [(step.op, step.values.reshape(-1).expand(batch)) for step in steps]


def _packed(steps: Sequence[Step], logits: Tensor) -> tuple[list[int], Tensor]:
    """Return the steps as the dispatcher takes them: codes and float64 ``(steps, batch)``."""
    batch = logits.shape[0]
    if not steps:
        return [], logits.new_empty((0, batch), dtype=torch.float64)
    values = [values.double() for _, values in _expanded(steps, batch)]
    return [_CODES[step.op] for step in steps], torch.stack(values)


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
        history: ``(batch, width)`` int64 token ids so far, for repetition_penalty; ids outside the vocabulary
            (padding) are ignored.
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
    steps = tuple(steps)
    _check_chain(logits, steps, seed, stream, position, history, history_lengths)
    if not greedy and (seed is None or stream is None or position is None):
        raise ValueError("a categorical draw needs seed, stream and position; pass greedy=True for the largest logit")
    flags = (logp_raw, logp_processed, logp_truncated)
    tensors = (logits, seed, stream, position, history, history_lengths, *(step.values for step in steps))
    if _plain(*tensors):
        token, status, logps = _chain(
            logits, _expanded(steps, logits.shape[0]), seed, stream, position, history, history_lengths, greedy, draw,
            flags,
        )  # fmt: skip
        return SampleResult(token, status, *logps)
    codes, values = _packed(steps, logits)
    token, status, *found = torch.ops.tunesmith.sample_chain(
        logits, codes, values, seed, stream, position, history, history_lengths, greedy, draw, *flags
    )
    return SampleResult(token, status, *(value if flag else None for value, flag in zip(found, flags, strict=True)))


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
    links = _links([(step.op, step.values) for step in steps])
    kind = type("PlanLinks", (ctypes.Structure,), {"_fields_": [("head", ctypes.c_int64 * 3), ("links", type(links))]})
    return cast(ctypes.Structure, kind((len(steps), -1 if batch is None else batch, history), links))


_PLAN_HEAD = ctypes.sizeof(ctypes.c_int64 * 3)


def _first_sample(*arguments: Any) -> Any:
    """Stand in for the quick call until something is drawn; None where there is none."""
    global _sample
    library, calls = loader.cpu(), loader.words_call()
    if library is None or calls is None or calls.setup is None or calls.sample is None:
        return None
    calls.setup(
        Tensor, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.get_num_threads,
        vars(torch.utils._python_dispatch), torch._C._len_torch_dispatch_stack, torch._C._are_functorch_transforms_active,
        torch.empty, library.check, getattr(Tensor, "__dlpack_c_exchange_api__", None), library.address("ts_sample_words"),
    )  # fmt: skip
    _sample = calls.sample
    return _sample(*arguments)


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
    steps = tuple(steps)
    _check_chain(logits, steps, None, None, None, history, history_lengths)
    if _plain(logits, history, history_lengths, *(step.values for step in steps)):
        return ChainResult(*_steps_only(logits, _expanded(steps, logits.shape[0]), history, history_lengths))
    codes, values = _packed(steps, logits)
    return ChainResult(*torch.ops.tunesmith.apply_chain(logits, codes, values, history, history_lengths))


# ---- torch.library ----------------------------------------------------------------------------------------------

_library = torch.library.Library("tunesmith", "FRAGMENT")
_library.define(
    "sample_chain(Tensor logits, int[] ops, Tensor values, Tensor? seed, Tensor? stream, Tensor? position, "
    "Tensor? history, Tensor? history_lengths, bool greedy, int draw, bool logp_raw, bool logp_processed, "
    "bool logp_truncated) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "apply_chain(Tensor logits, int[] ops, Tensor values, Tensor? history, Tensor? history_lengths) -> (Tensor, Tensor)"
)


def _named(ops: Sequence[int], values: Tensor) -> list[Step]:
    if any(not 0 <= op < len(reference.OPS) for op in ops) or len(ops) != len(values):
        raise ValueError(
            f"ops must be {len(values)} numbers in [0, {len(reference.OPS)}), a row of values each, not {ops}"
        )
    return [Step(reference.OPS[op], row) for op, row in zip(ops, values, strict=True)]


def _sample_chain_op(
    logits: Tensor, ops: list[int], values: Tensor, seed: Tensor | None, stream: Tensor | None,
    position: Tensor | None, history: Tensor | None, history_lengths: Tensor | None, greedy: bool, draw: int,
    *flags: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    steps = _named(ops, values)
    _check_chain(logits, steps, seed, stream, position, history, history_lengths)
    token, status, logps = _chain(
        logits, _expanded(steps, len(logits)), seed, stream, position, history, history_lengths, greedy, draw, flags
    )
    return token, status, *(logits.new_empty(0, dtype=torch.float32) if t is None else t for t in logps)


def _sample_chain_fake(logits: Tensor, ops: list[int], values: Tensor, *rest: object) -> tuple[Tensor, ...]:
    batch = logits.shape[0]
    logps = (logits.new_empty(batch if flag else 0, dtype=torch.float32) for flag in rest[-3:])
    return logits.new_empty(batch, dtype=torch.int64), logits.new_empty(batch, dtype=torch.uint8), *logps


def _apply_chain_op(
    logits: Tensor, ops: list[int], values: Tensor, history: Tensor | None, history_lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    steps = _named(ops, values)
    _check_chain(logits, steps, None, None, None, history, history_lengths)
    return _steps_only(logits, _expanded(steps, len(logits)), history, history_lengths)


def _apply_chain_fake(
    logits: Tensor, ops: list[int], values: Tensor, history: Tensor | None, history_lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    return (
        logits.new_empty(logits.shape, dtype=torch.float32),
        logits.new_empty(logits.shape[0], dtype=torch.uint8),
    )


for _name, _body, _fake in (
    ("sample_chain", _sample_chain_op, _sample_chain_fake),
    ("apply_chain", _apply_chain_op, _apply_chain_fake),
):
    _library.impl(_name, _body, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tunesmith::{_name}", _fake, lib=_library)

"""Steps of a sampling chain: what they are, whether they are right, and how the library and the dispatcher take them."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import loader, reference
from .tensors import _rows


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


_VALUES = {torch.float64: loader.F64, torch.int64: loader.I64}
_CODES = {op: code for code, op in enumerate(reference.OPS)}


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


def _plan_links(steps: Sequence[Step], batch: int | None, history: bool) -> ctypes.Structure:
    """Return the steps, and before them what ``sample`` of call.cpp needs to know of them."""
    return _plan_type(len(steps))((len(steps), -1 if batch is None else batch, history), _links(steps))


@functools.cache
def _plan_type(count: int) -> type[ctypes.Structure]:
    fields = [("head", ctypes.c_int64 * 3), ("links", loader.StepArgs * count)]
    return type("PlanLinks", (ctypes.Structure,), {"_fields_": fields})


_PLAN_HEAD = ctypes.sizeof(ctypes.c_int64 * 3)


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

"""Which weights a model's own code reads past their layers: found by running it on a few tokens, once, and once more
for each kind of layer whose type is read.

A layer that is int8 multiplies by itself and has no float weight for others. Mamba multiplies with ``dt_proj.weight``, gives its
head numbers of the type of ``lm_head.weight``; such layers stay as they are.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from tunesmith_plugins.compressors.experts import is_fused
from tunesmith_plugins.compressors.int8_shown import DESCRIBES, DTYPE, SAME
from tunesmith_plugins.compressors.prune_calibration import forward
from tunesmith_plugins.compressors.random_tokens import tokens_of

logger = logging.getLogger("tunesmith.compressors")
TOKENS = 4
"""That the model is run on."""
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
NEAR = 0.02
"""Relative difference of outputs up to which they are the same but for the rounding of half precision."""


@define
class _Log:
    """What was read past its layer.

    Attributes:
        data: Modules whose numbers were.
        types: Modules whose type was.
        cast: Whether a layer was given whole numbers.
        shown_int8: Modules that say that their weight is int8, as their integer layers would.
    """

    data: set[nn.Module] = field(factory=set)
    types: set[nn.Module] = field(factory=set)
    cast: bool = False
    shown_int8: frozenset[nn.Module] = frozenset()


def read_apart(model: Any, modules: Mapping[str, nn.Module]) -> frozenset[str]:
    """Return the names of those of ``modules`` whose weight the model's code reads past the layer, to compute with it or to give
    other numbers its type in a way that integers would not bear.

    A copy without numbers is run, on the device ``"meta"``, which takes no memory and leaves the model alone; the model itself only
    where its code needs numbers. What only some ways to call it read is not found, and nothing where the model wants more than token
    ids; an int8 layer whose weight is then read says so (see ``int8_shown``).
    """
    own = set(model.modules())
    names = [name for name, module in modules.items() if module in own]
    twin = _without_numbers(model)
    found = None if twin is None else _read_apart(twin, names)
    if found is None and not next(model.parameters()).is_meta:
        found = _read_apart(model, names)
    return found or frozenset()


def _without_numbers(model: nn.Module) -> nn.Module | None:
    """Return a copy of the model on the device ``"meta"``, None if it cannot be copied."""
    tensors: dict[int, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        own = isinstance(tensor, nn.Parameter)
        tensors[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if own else empty
    try:
        return copy.deepcopy(model, dict(tensors))
    except Exception as error:  # of any model's own code
        logger.debug("%s cannot be copied: %r", type(model), error)
        return None


def _read_apart(model: nn.Module, names: Sequence[str]) -> frozenset[str] | None:
    """Do what :func:`read_apart` does by running this very model; None if it does not run."""
    watched = {name: model.get_submodule(name) for name in names}
    log = _Log()
    experts = {module: _Unasked for module in model.modules() if is_fused(module)}
    with _watching({**experts, **dict.fromkeys(watched.values(), _Watched)}, log), _as_it_is_used(model):
        before = _run(model)
        if before is None:
            return None
        apart = set(log.data)
        for last in sorted(
            {name.rpartition(".")[2] for name, module in watched.items() if module in log.types - apart}
        ):
            read = {m for name, m in watched.items() if m in log.types and name.rpartition(".")[2] == last}
            log.shown_int8, log.cast = frozenset(read), False
            after = _run(model)
            if log.cast or not _same(before, after):
                apart |= read
    return frozenset(name for name, module in watched.items() if module in apart)


class _Watched(nn.Module):
    """Mixed into the class of a layer for the time of a run."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        log: _Log = self.__dict__["_log"]
        asked = None
        if self in log.shown_int8 and given and isinstance(self, (nn.Linear, Conv1D)):
            asked, dtype = given[0].dtype, nn.Module.__getattr__(self, "weight").dtype
            log.cast |= not asked.is_floating_point
            given = (given[0].to(dtype), *given[1:])
        self.__dict__["_inside"] = True
        try:
            found = super().__call__(*given, **named)
        finally:
            self.__dict__["_inside"] = False
        return found if asked is None else found.to(asked)  # as an integer layer takes and gives what it is given

    @property
    def weight(self) -> Tensor:
        """The weight itself for the layer, and one that tells who reads it for all others."""
        own: Any = nn.Module.__getattr__(self, "weight")
        if self.__dict__["_inside"]:
            return own
        seen: _SeenWeight = own.as_subclass(_SeenWeight)
        seen.__dict__.update(own.__dict__, layer=self)
        return seen


class _Unasked(nn.Module):
    """Mixed into the class of a module of experts: these read only their own, and on the device ``"meta"`` they cannot run."""

    def __call__(self, x: Tensor, *rest: Any, **named: Any) -> Tensor:
        return x


class _SeenWeight(Tensor):
    """A weight that is read past its layer."""

    layer: _Watched

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in SAME:
            return args[0]
        for value in _seen((*args, *(kwargs or {}).values())):
            log: _Log = value.layer.__dict__["_log"]
            if func == DTYPE:
                log.types.add(value.layer)
                if value.layer in log.shown_int8:
                    return torch.int8
            elif func in (Tensor.is_floating_point, torch.is_floating_point) and value.layer in log.shown_int8:
                return False
            elif func not in DESCRIBES:
                log.data.add(value.layer)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def _seen(values: Any) -> Iterator[_SeenWeight]:
    for value in values:
        if isinstance(value, _SeenWeight):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _seen(value)


@contextmanager
def _watching(mixed_in: Mapping[nn.Module, type[nn.Module]], log: _Log) -> Iterator[None]:
    kinds = {module: type(module) for module in mixed_in}
    try:
        for module, kind in kinds.items():
            module.__dict__.update(_log=log, _inside=False)
            module.__class__ = type(kind.__name__, (mixed_in[module], kind), {"__module__": kind.__module__})
        yield
    finally:
        for module, kind in kinds.items():
            module.__class__ = kind
            module.__dict__.pop("_log", None)
            module.__dict__.pop("_inside", None)


class _NoNumbers(TorchDispatchMode):
    """Answers 0, or no, where code asks a tensor on the device ``"meta"`` for its number, as it does for whether there is padding."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.zeros((), dtype=args[0].dtype).item()
        return func(*args, **(kwargs or {}))


@contextmanager
def _as_it_is_used(model: nn.Module) -> Iterator[None]:
    """In evaluation mode and without hooks, which are for the calls of whoever set them; the model is as it was afterwards.

    Models keep things from a run: BigBird takes other attention for short texts from then on, Phi-3 rotary frequencies on the
    device ``"meta"``.
    """
    kept = [_Kept(module) for module in model.modules()]
    configs = {id(own.config): own.config for own in model.modules() if hasattr(own, "config")}
    settings = [(config, dict(vars(config))) for config in configs.values() if hasattr(config, "__dict__")]
    try:
        for module in list(model.modules()):
            vars(module).update({name: OrderedDict() for name in _HOOKS})
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _NoNumbers():
            model.eval()
            yield
    finally:
        for each in kept:
            each.put_back()
        for config, own in settings:
            vars(config).clear()
            vars(config).update(own)


class _Kept:
    """What a module has at one time: its attributes, and by name its submodules, parameters and buffers."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.own = module, dict(vars(module))
        self.inner = {name: dict(self.own[name]) for name in ("_modules", "_parameters", "_buffers")}

    def put_back(self) -> None:
        """Give the module that again, in the dictionaries that it had."""
        vars(self.module).clear()
        vars(self.module).update(self.own)
        for name, inner in self.inner.items():
            self.own[name].clear()
            self.own[name].update(inner)


def _run(model: Any) -> list[Tensor] | None:
    """Return the tensors that the model gives for a few tokens, None if it cannot read them."""
    torch.default_generator.manual_seed(0)
    try:
        ids = (torch.arange(TOKENS, device=next(model.parameters()).device) + TOKENS).remainder(tokens_of(model))[None]
        names = ("input_ids", "decoder_input_ids")
        batch = {name: ids for name in names if name in inspect.signature(model.forward).parameters}
        return [value for value in forward(model, batch).values() if isinstance(value, Tensor)]
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of any model's own code
        logger.debug(
            "%s does not read token ids alone, so weights read past layers are not found: %r", type(model), error
        )
        return None


def _same(first: list[Tensor] | None, second: list[Tensor] | None) -> bool:
    """Whether a model gave the same but for the rounding of another type."""
    if first is None or second is None:
        return first is second
    return len(first) == len(second) and all(
        a.shape == b.shape and (a.is_meta or _near(a.double().nan_to_num(), b.double().nan_to_num()))
        for a, b in zip(first, second, strict=True)
    )


def _near(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).norm() <= NEAR * first.norm())

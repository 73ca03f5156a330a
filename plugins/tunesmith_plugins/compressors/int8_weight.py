"""An int8 weight in a module: packed for the kernels once it is used, plain in files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, Self

import torch
from torch import Tensor, nn

from tunesmith.errors import ConfigError
from tunesmith_plugins import kernels
from tunesmith_plugins.compressors.int8_shown import ShownWeight, read_past
from tunesmith_plugins.compressors.mapped_pages import let_go

BLOCK = 2**20
"""Numbers that are quantized at a time."""
RUNS_IN = (torch.float32, torch.bfloat16)
"""Types that the kernels take and give."""


class Int8Weight(nn.Module):
    """The part that linear layers and embeddings share.

    The first use packs the integers into the layout of the kernels and frees the plain ones, so that never both are kept.
    Files hold the plain ones: ``weight`` (rows, columns) int8 in [-127, 127] and ``weight_scale`` float32, (rows,) or
    (rows, groups).

    Attributes:
        weight_scale: As in files; it stays float32 whatever type the model is cast to.
        place: Its name in the model, once it is there.
    """

    weight_scale: Tensor
    place: str = ""

    def __init__(self, rows: int, columns: int, group_size: int = 0, device: Any = None) -> None:
        super().__init__()
        self.rows, self.columns, self.group_size = rows, columns, group_size
        self.register_buffer("weight", torch.zeros(rows, columns, dtype=torch.int8, device=device))
        shape = (rows, -(-columns // group_size)) if group_size else (rows,)
        self.register_buffer("weight_scale", torch.zeros(shape, dtype=torch.float32, device=device))
        self._packed: kernels.PackedWeight | None = None

    @property
    def weight(self) -> Tensor:
        """The plain integers (rows, columns), or, once packed, a tensor of their shape and type without data (on the device
        ``"meta"``).

        In a model it tells its shape, type and device (T5 asks for them) and raises a ConfigError for whoever computes with it.
        """
        plain = self._buffers.get("weight")
        if plain is None:
            raise AttributeError("weight")
        return ShownWeight.of(self, plain) if self.place and not torch.compiler.is_compiling() else plain

    @weight.setter
    def weight(self, value: Tensor) -> None:
        """For type checkers: torch puts tensors among the buffers without asking."""
        self._buffers["weight"] = value

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ShownWeight):  # models tie their weights again and again
            if name == "weight" and value.layer is self:
                return
            raise ConfigError([read_past(value.layer.place, f"ties {self.place or name} to its weight")], "int8")
        super().__setattr__(name, value)

    def packed(self) -> kernels.PackedWeight:
        """Return the weight as the kernels want it; the plain integers are gone afterwards.

        Raises:
            ConfigError: If the first call is one of ``torch.export``.
        """
        if self._packed is None:
            if torch.compiler.is_exporting():  # what a call keeps is lost there, the integers with it
                raise ConfigError(
                    ["was never called; call the model once, then export it"], self.place or "an int8 layer"
                )
            plain = self.weight_int8()
            made = kernels.pack_weight(plain, self.weight_scale, self.group_size or None)
            if type(made.data) is not Tensor:  # a fake one, which has no numbers to keep
                return made
            self._packed = made
            self.weight = torch.empty_like(plain, device="meta")
            let_go([plain])
        return self._packed

    def weight_int8(self) -> Tensor:
        """Return the plain integers (rows, columns)."""
        if self._packed is not None:
            return kernels.unpack_weight(self._packed)
        plain = self._buffers["weight"]
        assert plain is not None
        return plain

    def held_weights(self, nonzero: bool) -> int:
        """See :class:`tunesmith.lm.HoldsWeights`."""
        return int(self.weight_int8().count_nonzero()) if nonzero else self.rows * self.columns

    def dequantized(self, rows: slice = slice(None)) -> Tensor:
        """Return the float32 weight (rows, columns) that the integers stand for, of all rows or some."""
        plain, scale = self.weight_int8()[rows].float(), self.weight_scale[rows]
        if not self.group_size:
            return plain * scale[:, None]
        return plain * scale.repeat_interleave(self.group_size, dim=1)[:, : self.columns]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight_int8()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        self._unpack()
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._unpack()  # other devices have other layouts
        scale = self.weight_scale
        super()._apply(fn, recurse)
        if self.weight_scale.dtype != torch.float32:  # a cast of the model: the scales do not follow
            self.weight_scale = scale.to(self.weight_scale.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Pickles hold plain integers as files do: they may be loaded on another device."""
        if self._packed is None:
            return self.__dict__
        return self.__dict__ | {"_packed": None, "_buffers": self._buffers | {"weight": self.weight_int8()}}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies stay packed."""
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update(deepcopy(self.__dict__, memo))
        return made

    def _unpack(self) -> None:
        if self._packed is not None:
            self.weight, self._packed = self.weight_int8(), None


def float_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    """Return a linear layer with copies of ``weight`` (outputs, inputs) and ``bias`` in a type."""
    outputs, inputs = weight.shape
    made = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.to(dtype, copy=True))
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().to(dtype, copy=True))
    return made


def in_float32(layer: nn.Module, place: str, x: Tensor) -> Tensor:
    """Return what a layer gives for numbers of a type that its kernels do not take, in that type; ``place`` is its name.

    Raises:
        ConfigError: For whole numbers.
    """
    if not x.is_floating_point():
        what = f"gives it numbers of type {str(x.dtype).removeprefix('torch.')}, as if they had to be of the type of its weight"
        raise ConfigError([read_past(place or type(layer).__name__, what)], "int8")
    found: Tensor = layer.forward(x.float())
    return found.to(x.dtype)


def quantize(weight: Tensor, group_size: int = 0) -> tuple[Tensor, Tensor]:
    """Quantize ``weight`` (rows, columns) symmetrically to int8: absmax / 127 of a row, or of a group of columns in it.

    Works on a few rows at a time: an embedding is a large part of a model, and temporary copies of it would be, too.

    Returns:
        Integers (rows, columns) and float32 scales, (rows,) or (rows, groups).

    Raises:
        ValueError: For weights that are not finite or rows too long for the accumulators.
    """
    weight = weight.detach()
    rows, columns = weight.shape
    integers = torch.empty(rows, columns, dtype=torch.int8, device=weight.device)
    shape = (rows, -(-columns // group_size)) if group_size else (rows,)
    scales = torch.empty(shape, dtype=torch.float32, device=weight.device)
    for part in row_blocks(rows, columns):
        _check_finite(weight, part)
        integers[part], scales[part] = _quantized(weight[part], group_size)
    return integers, scales


def check(weight: Tensor) -> None:
    """Check that ``weight`` (rows, columns) can be quantized, without doing it.

    Raises:
        ValueError: As :func:`quantize` does.
    """
    if weight.shape[1] > kernels.int8_reference.MAX_K:
        raise ValueError(
            f"its rows of {weight.shape[1]} are longer than {kernels.int8_reference.MAX_K}, what sums have room for"
        )
    for part in row_blocks(*weight.shape):
        _check_finite(weight, part)


def _check_finite(weight: Tensor, part: slice) -> None:
    finite = weight[part].isfinite().all(-1)
    if not bool(finite.all()):
        row = part.start + int((~finite).nonzero()[0, 0])
        raise ValueError(f"row {row} of the weight has a NaN or infinite value")


def row_blocks(rows: int, columns: int, *, numbers: int = BLOCK) -> Iterator[slice]:
    """Yield slices of rows that hold about so many numbers together."""
    step = max(1, numbers // columns)
    return (slice(start, min(rows, start + step)) for start in range(0, rows, step))


def _quantized(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    if not group_size:
        found = kernels.quantize_weight(weight)
        return found.q, found.scale
    rows, columns = weight.shape
    groups = -(-columns // group_size)
    wide = nn.functional.pad(weight.float(), (0, groups * group_size - columns))
    found = kernels.quantize_weight(wide.reshape(rows * groups, group_size))
    return found.q.reshape(rows, -1)[:, :columns], found.scale.reshape(rows, groups)

"""Linear layers with int8 weights, one class for each way to treat the activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from tunesmith_plugins import kernels
from tunesmith_plugins.compressors.config_int8 import Kind, Scheme
from tunesmith_plugins.compressors.int8_held import without
from tunesmith_plugins.compressors.int8_outliers import outlier_product, outliers
from tunesmith_plugins.compressors.int8_weight import RUNS_IN, Int8Weight, float_linear, in_float32, quantize

Mode = str | tuple[float, int]


class Int8Linear(Int8Weight):
    """``y = x W^T + b`` with int8 weights and activations quantized row by row, to 8 bits or, where those are too few, to 12.

    Attributes:
        bias: (out_features,) or None.
        smooth: (in_features,) float32 or None: what inputs are multiplied by first, where SmoothQuant's division could not be
            folded into the layer before.
        held_index: (2, held) int32 or None: outputs and inputs of weights that the integers leave out (see ``int8_held``).
        held_value: (held,) float32 or None: those weights.
    """

    kind: ClassVar[Kind] = "dynamic"
    exact: ClassVar[tuple[str, ...]] = ("smooth", "held_value")
    """Buffers that stay float32, as scales do, whatever the model is cast to."""
    bias: nn.Parameter | None
    smooth: Tensor | None
    held_index: Tensor | None
    held_value: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        scheme: Scheme | None = None,
        smooth: bool = False,
        held: int = 0,
        device: Any = None,
    ) -> None:
        self.scheme = Scheme(kind=self.kind) if scheme is None else scheme
        super().__init__(out_features, in_features, self.scheme.group_size, device)
        self.in_features, self.out_features = in_features, out_features
        empty = torch.zeros(out_features, dtype=torch.float32, device=device) if bias else None
        self.bias = None if empty is None else nn.Parameter(empty, requires_grad=False)
        # float32 whatever torch's default is
        ones = torch.ones(in_features, dtype=torch.float32, device=device) if smooth else None
        self.register_buffer("smooth", ones)
        index = torch.zeros(2, held, dtype=torch.int32, device=device) if held else None
        self.register_buffer("held_index", index)
        self.register_buffer("held_value", torch.zeros(held, dtype=torch.float32, device=device) if held else None)

    @classmethod
    def from_float(
        cls,
        weight: Tensor,
        bias: Tensor | None,
        scheme: Scheme | None = None,
        rounded: tuple[Tensor, Tensor] | None = None,
        held: Tensor | None = None,
    ) -> Self:
        """Quantize ``weight`` (out_features, in_features); the largest absolute weight of a channel or group becomes 127.

        Args:
            weight: See above.
            bias: (out_features,) or None.
            scheme: See the class.
            rounded: The integers and scales to take, if not the nearest.
            held: (2, held) places of weights that are kept in float32; ``rounded`` is of the weight with zeros there.
        """
        outputs, inputs = weight.shape
        layer = cls(inputs, outputs, bias=bias is not None, scheme=scheme, device="meta")
        if held is not None and held.shape[1]:
            layer.held_index = held
            layer.held_value = weight.detach()[held[0].long(), held[1].long()].float()
            weight = without(weight, held) if rounded is None else weight
        layer.weight, layer.weight_scale = quantize(weight, layer.group_size) if rounded is None else rounded
        if bias is not None:
            layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        return layer

    @property
    def mode(self) -> Mode:
        """What the kernels have to know about activations: a name, or scale and zero point of a static range."""
        smoothed = self._buffers["smooth"] is not None  # asked at every call, and an attribute takes torch longer
        return f"{self.kind}, smoothed" if smoothed else self.kind

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out_features) for (..., in_features), in the input's dtype."""
        if x.dtype not in RUNS_IN:
            return in_float32(self, self.place, x)
        x = x if self.smooth is None else x * self.smooth.to(x.dtype)
        return self.add_held(self.multiply(x), x)

    def add_held(self, y: Tensor, x: Tensor, own: bool = True) -> Tensor:
        """Return ``y`` (..., out_features) plus what the held weights make of ``x`` (..., in_features).

        ``own``: ``y`` is nobody else's and may change.
        """
        index = self._buffers["held_index"]
        if index is None or self.held_value is None:
            return y
        rows, columns = index.unbind()
        products = (x.index_select(-1, columns).float() * self.held_value).to(y.dtype)
        if own and not y.requires_grad and not products.requires_grad:
            return y.index_add_(-1, rows, products)
        return y.index_add(-1, rows, products)

    def dequantized(self, rows: slice = slice(None)) -> Tensor:
        """See :class:`Int8Weight`; with the held weights."""
        found = super().dequantized(rows)
        if self.held_index is not None and self.held_value is not None:
            places = torch.arange(self.rows, device=found.device)[rows]
            for row, column, value in zip(*self.held_index.tolist(), self.held_value, strict=True):
                found[places == row, column] += value
        return found

    def as_float(self, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """Return a float layer that computes the same but for what happens to activations."""
        weight = self.dequantized()
        return float_linear(weight if self.smooth is None else weight * self.smooth, self.bias, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        exact = {name: self._buffers[name] for name in self.exact}
        super()._apply(fn, recurse)
        for name, before in exact.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != torch.float32:
                self._buffers[name] = before.to(after.device)
        return self

    def multiply(self, x: Tensor) -> Tensor:
        """Return the product with the integers alone."""
        return kernels.int8_linear(x, self.packed(), self.bias, mixed=True)

    def extra_repr(self) -> str:
        grouped = f", group_size={self.group_size}" if self.group_size else ""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}{grouped}"
        )


class Int8WeightOnlyLinear(Int8Linear):
    """Activations keep 12 bits a row; sums are integers all the same."""

    kind = "weight_only"

    def multiply(self, x: Tensor) -> Tensor:
        """See :meth:`Int8Linear.multiply`."""
        return kernels.weight_only_linear(x, self.packed(), self.bias)


class Int8StaticLinear(Int8Linear):
    """Activations in one range that calibration found; what lies outside is clamped.

    The range is also kept as numbers, which are read when it is assigned, loaded or moved, and not at every call. So a range is
    changed by assigning tensors or loading a state, not by writing into the tensors.

    Attributes:
        input_scale: () float32, the size of a step; it stays so whatever type the model is cast to.
        input_zero_point: () int32, the step that stands for 0.
    """

    kind = "static"
    exact = (*Int8Linear.exact, "input_scale")
    input_scale: Tensor
    input_zero_point: Tensor
    _range: tuple[float, int] | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        device = options.get("device")
        self.register_buffer("input_scale", torch.ones((), dtype=torch.float32, device=device))
        self.register_buffer("input_zero_point", torch.zeros((), dtype=torch.int32, device=device))
        for name in [name for name, buffer in self._buffers.items() if buffer is None]:
            self._buffers[name] = self._buffers.pop(name)  # torch's export counts them, and must not before the others

    @property
    def mode(self) -> Mode:
        """Scale and zero point, or a name where inputs are multiplied first."""
        return self.range if self.smooth is None else "static, smoothed"

    @property
    def range(self) -> tuple[float, int]:
        """Scale and zero point."""
        if self._range is None:
            self._read_range()
        assert self._range is not None
        return self._range

    def _read_range(self) -> None:
        """Keep the range as numbers, where there are any yet: a compiler could not read them off the tensors."""
        scale, zero_point = self._buffers.get("input_scale"), self._buffers.get("input_zero_point")
        if scale is None or zero_point is None or scale.is_meta or zero_point.is_meta:
            self._range = None
        else:
            self._range = float(scale), int(zero_point)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in ("input_scale", "input_zero_point"):
            self._read_range()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._read_range()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._read_range()
        return self

    def multiply(self, x: Tensor) -> Tensor:
        """See :meth:`Int8Linear.multiply`."""
        return kernels.int8_linear(x, self.packed(), self.bias, static=self.range)


class Int8OutlierLinear(Int8Linear):
    """Entries of a row above the threshold are multiplied in floating point, the rest as in :class:`Int8Linear`.

    The weights of both parts are the same integers.
    """

    kind = "outlier_split"

    def multiply(self, x: Tensor) -> Tensor:
        """See :meth:`Int8Linear.multiply`."""
        threshold = self.scheme.threshold
        if torch.compiler.is_compiling() or x.is_meta:
            small = super().multiply(torch.where(x.detach().abs() > threshold, 0, x))
            return small + outlier_product(x, self.packed(), threshold)
        large, columns, weight = outliers(x.detach(), self.packed(), threshold)
        if not len(columns):
            return super().multiply(x)
        return super().multiply(torch.where(large, 0, x)) + torch.where(large, x, 0)[..., columns] @ weight

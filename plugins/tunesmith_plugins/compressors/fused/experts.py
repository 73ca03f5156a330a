"""Experts of a mixture: gate and up in one call, and the activation in it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tunesmith_plugins.compressors.fused.parts import (
    ACTIVATIONS,
    FusedLayer,
    can,
    fused_linears,
    parts,
    watched,
    with_held,
)


class FusedExpert(FusedLayer):
    """Rows are quantized once for gate and up, which come out as one product."""

    def forward(self, x: Tensor, experts: Any) -> Tensor:
        """See :class:`tunesmith_plugins.compressors.experts.Expert`."""
        layers: Any = self._modules
        activation = ACTIVATIONS.get(experts.activation)
        first = [layers[name] for name in ("gate_proj", "up_proj") if name in layers]
        found: Any = activation is not None and can(self, x, None) and not watched(self)
        if not found:
            return super().forward(x, experts)
        up, down = parts(*first), parts(layers["down_proj"], held=True)
        if up is None or down is None:
            return super().forward(x, experts)
        gated = len(first) == 2
        (wide,) = fused_linears(x, *up, (activation, None) if gated else (activation,), gated=gated)
        (y,) = fused_linears(wide, *down)
        return with_held(y, layers["down_proj"], wide, own=True)

"""Who takes part in the layer benchmark: torch in float32 and bfloat16, and every int8 layer a CPU offers in eager mode."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tunesmith_plugins import kernels

Call = Callable[[Tensor], Tensor]

FLOATS = ("fp32", "bf16")
VNNI = "tunesmith avx512"
OURS = ("tunesmith", "tunesmith weight-only", VNNI)


def _quantize_dynamic(layer: nn.Linear, engine: str) -> Call:
    torch.backends.quantized.engine = engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(copy.deepcopy(layer)), {nn.Linear}, dtype=torch.qint8
        )[0]
    return quantized  # type: ignore[no-any-return]


def _int_mm(layer: nn.Linear) -> Call:
    weight = kernels.quantize_weight(layer.weight)
    transposed, scale, bias = weight.q.t(), weight.scale, layer.bias

    def call(x: Tensor) -> Tensor:
        row = x.abs().amax(-1, keepdim=True) / 127.0
        q = torch.round(x / row).to(torch.int8)
        return torch._int_mm(q, transposed).to(torch.float32).mul_(row).mul_(scale).add_(bias)

    return call


def _torchao(layer: nn.Linear, weight_only: bool, compiled: bool) -> Call:
    from torchao import quantization

    name = "Int8WeightOnlyConfig" if weight_only else "Int8DynamicActivationInt8WeightConfig"
    model = nn.Sequential(copy.deepcopy(layer)).eval()
    quantization.quantize_(model, getattr(quantization, name)())
    return torch.compile(model) if compiled else model  # type: ignore[no-any-return]


def _bitsandbytes(layer: nn.Linear) -> Call:
    from bitsandbytes.nn import Linear8bitLt

    made = Linear8bitLt(layer.in_features, layer.out_features, has_fp16_weights=False, threshold=0.0)
    made.load_state_dict(layer.state_dict())
    return made.to("cpu")  # type: ignore[no-any-return]


@contextmanager
def forced(isa: str) -> Iterator[None]:
    """Have our layers run on one instruction set, as ``TUNESMITH_ISA`` does for a process."""
    before = kernels.info()["isa"]
    kernels.set_isa(isa)
    try:
        yield
    finally:
        kernels.set_isa(before)


def ours(layer: nn.Linear, weight_only: bool) -> Call:
    weight = kernels.quantize_weight(layer.weight)
    packed, bias = kernels.pack_weight(weight.q, weight.scale), layer.bias.detach()
    if weight_only:
        return lambda x: kernels.weight_only_linear(x, packed, bias)
    return lambda x: kernels.int8_linear(x, packed, bias, mixed=True)  # as the layers of models do


def contenders(layer: nn.Linear, compiled: bool) -> tuple[dict[str, Call], dict[str, str]]:
    """Return the calls that can be made here, and of the others why not.

    Args:
        layer: float32, with bias.
        compiled: take in what needs ``torch.compile`` (a C++ compiler and half a minute a shape).
    """
    half = copy.deepcopy(layer).to(torch.bfloat16)
    makers: dict[str, Callable[[], Call]] = {
        "fp32": lambda: lambda x: torch.nn.functional.linear(x, layer.weight, layer.bias),
        "bf16": lambda: lambda x: torch.nn.functional.linear(x.bfloat16(), half.weight, half.bias),
        "quantize_dynamic x86": lambda: _quantize_dynamic(layer, "x86"),
        "quantize_dynamic onednn": lambda: _quantize_dynamic(layer, "onednn"),
        "_int_mm": lambda: _int_mm(layer),
    }
    if importlib.util.find_spec("torchao"):
        makers["torchao dynamic"] = lambda: _torchao(layer, False, False)
        makers["torchao weight-only"] = lambda: _torchao(layer, True, False)
        if compiled:
            makers["torchao dynamic compiled"] = lambda: _torchao(layer, False, True)
            makers["torchao weight-only compiled"] = lambda: _torchao(layer, True, True)
    if importlib.util.find_spec("bitsandbytes"):
        makers["bitsandbytes"] = lambda: _bitsandbytes(layer)
    makers["tunesmith"] = lambda: ours(layer, False)
    makers["tunesmith weight-only"] = lambda: ours(layer, True)
    if "amx" in kernels.info()["isa_available"]:  # called with the instruction set forced, see forced()
        makers[VNNI] = lambda: ours(layer, False)
    ready: dict[str, Call] = {}
    absent = {name: "not installed" for name in ("torchao", "bitsandbytes") if importlib.util.find_spec(name) is None}
    for name, make in makers.items():
        try:
            call = make()
            with torch.inference_mode():
                call(torch.randn(4, layer.in_features))
            ready[name] = call
        except Exception as error:  # a contender that cannot run here is named, and the others go on
            absent[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
    return ready, absent

"""Every built-in adapter passes the public conformance kit."""

from tunesmith.testing import conformance
from tunesmith_plugins.adapters import IA3, Bottleneck, Full, LoRA, Prefix, Prompt, PTuning, QuantizationAware
from tunesmith_plugins.compressors import Int8WeightOnly


@conformance(
    Full(),
    QuantizationAware(),
    QuantizationAware(compressor=Int8WeightOnly(group_size=32)),
    LoRA(rank=2),
    LoRA(rank=4, alpha=4.0, rslora=True, dropout=0.1),
    IA3(),
    Prompt(tokens=3),
    Prompt(tokens=3, init="text", text="summarize the answer"),
    Prompt(tokens=3, init="random"),
    PTuning(tokens=3),
    PTuning(tokens=3, hidden=8, network="lstm", layers=1),
    Prefix(tokens=3),
    Prefix(tokens=3, projection=8),
    Bottleneck(reduction=8),
    Bottleneck(style="pfeiffer", reduction=8, activation="gelu"),
    Bottleneck(style="parallel", reduction=8),
)
def test_conforms(check):
    check()

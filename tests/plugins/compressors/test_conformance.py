"""Every built-in compressor passes the public kit."""

from tunesmith.testing import conformance
from tunesmith_plugins.compressors import (
    GPTQ,
    Distill,
    Int8,
    Int8Static,
    Int8WeightOnly,
    Magnitude,
    OutlierSplit,
    SmoothQuant,
    SparseGPT,
    Structured,
    Wanda,
)


@conformance(
    Int8(),
    Int8WeightOnly(group_size=32),
    Int8Static(ranges="percentile"),
    SmoothQuant(activations="static", measure_rows=0),
    GPTQ(measure_rows=0),
    OutlierSplit(threshold=2.0),
    Magnitude(sparsity=0.3),
    Magnitude(scope="global"),
    Magnitude(pattern="2:4"),
    Distill(steps=2, batch_size=4),
)
def test_conforms(check):
    check()


@conformance(
    Wanda(),
    Wanda(pattern="1:4"),
    SparseGPT(block_size=16),
    SparseGPT(pattern="2:4"),
    Structured(ffn=0.5, layers=0.5),
    Structured(ffn=0.25, score="gradient"),
)
def test_pruners_conform(check):
    check()

"""Compressors that need examples say so in the same words."""

import pytest
from attrs import evolve

from tunesmith.data.records import Example
from tunesmith.errors import ConfigError
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors import (
    GPTQ,
    Distill,
    Int8Static,
    SmoothQuant,
    SparseGPT,
    Structured,
    Wanda,
)

CASES = [
    (Distill(), "distillation needs examples to train on"),
    (GPTQ(), "GPTQ needs examples to calibrate on"),
    (Int8Static(), "int8 with calibration needs examples to calibrate on"),
    (SmoothQuant(), "int8 with calibration needs examples to calibrate on"),
    (SparseGPT(), "SparseGPT needs examples to calibrate on"),
    (Structured(ffn=0.5, score="activation"), "score='activation' needs examples to calibrate on"),
    (Structured(vocabulary="used"), 'vocabulary="used" needs examples that show what is used'),
    (Wanda(), "Wanda needs examples to calibrate on"),
]


@pytest.mark.parametrize("data", [None, []])
@pytest.mark.parametrize(("config", "needs"), CASES)
def test_it_says_what_the_examples_are_for_and_where_to_give_them(make, config, needs, data):
    compressor = config.build()
    assert compressor.needs_data
    with pytest.raises(ConfigError) as raised:
        compressor.compress(make("llama"), data=data, runtime=Runtime(progress=False))
    assert f"{needs}; give the stage data with at least one example @ data" in str(raised.value)


@pytest.mark.parametrize("config", [config for config, _ in CASES], ids=lambda c: type(c).__name__)
def test_examples_need_a_tokenizer(make, config):
    lm = evolve(make("llama"), tokenizer=None)
    data = [Example(id="0", prompt="a b", targets=("c",))]
    with pytest.raises(ConfigError, match="came without its tokenizer; give the LM one"):
        config.build().compress(lm, data=data, runtime=Runtime(progress=False))

"""Checks of compressors: the smaller model saves, loads and answers the same, and the report tells the truth."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.records import Example
from tunesmith.kinds.compressor import CompressionReport, CompressorConfig
from tunesmith.lm import LM, load
from tunesmith.model_folder import weight_bytes
from tunesmith.runtime import Runtime
from tunesmith.testing.conformance import when
from tunesmith.testing.models import WORDS, Family, tiny_lm

FAMILIES: tuple[Family, ...] = ("encoder", "decoder", "encoder-decoder")


def check_every_family_saves_and_loads_with_equal_outputs(config: CompressorConfig) -> None:
    """``LM.save`` and ``tunesmith.load`` (in the type that was saved) give a model with the same logits bit for bit."""
    for family in FAMILIES:
        smaller, _ = _compress(config, tiny_lm(family))
        before = _logits(smaller)
        assert bool(before.isfinite().all()), f"{family}: logits are not finite"
        with tempfile.TemporaryDirectory() as folder:
            smaller.save(Path(folder))
            after = _logits(load(folder, runtime=Runtime(dtype="auto", progress=False)))
        assert torch.equal(before, after), (
            f"{family}: logits change by {float((before - after).abs().max())} on the way through a file"
        )


def check_family_and_tokenizer_stay(config: CompressorConfig) -> None:
    """The smaller model is of the same family and reads the same vocabulary."""
    lm = tiny_lm("encoder-decoder")
    vocabulary = lm.tokenizer.get_vocab()
    smaller, _ = _compress(config, lm)
    assert smaller.family == "encoder-decoder", f"an encoder-decoder became a model of family {smaller.family!r}"
    assert smaller.tokenizer.get_vocab() == vocabulary, "the tokenizer has another vocabulary"


def check_it_no_longer_claims_to_be_the_folder_it_came_from(config: CompressorConfig) -> None:
    """``origin`` is None after weights have changed; else ``LM.save`` may write a reference to the uncompressed ones."""
    lm = tiny_lm("decoder")
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    lm.origin = "somewhere"
    smaller, _ = _compress(config, lm)
    after = smaller.model.state_dict()
    if before.keys() != after.keys() or any(not torch.equal(before[name], after[name]) for name in before):
        assert smaller.origin is None, f"origin is still {smaller.origin!r}, and the weights are others"


def check_report_says_what_is_on_disk(config: CompressorConfig) -> None:
    """``bytes`` after is what the saved weights take, up to the files' headers, ``parameters`` are those that are not zero,
    and nothing has grown."""
    lm = tiny_lm("decoder")
    parameters = lm.parameter_count(nonzero=True)
    smaller, report = _compress(config, lm)
    with tempfile.TemporaryDirectory() as folder:
        smaller.save(Path(folder))
        on_disk = weight_bytes(Path(folder))
    header = 200 * len(smaller.model.state_dict()) + 1000
    assert report.bytes[1] <= on_disk <= report.bytes[1] + header, f"report {report.bytes[1]}, on disk {on_disk}"
    assert report.bytes[1] <= report.bytes[0], "the model became larger"
    counted = (parameters, smaller.parameter_count(nonzero=True))
    assert report.parameters == counted, (
        f"report.parameters is {report.parameters}; LM.parameter_count(nonzero=True) was {counted[0]} and is {counted[1]}"
    )
    assert report.parameters[1] <= report.parameters[0], "there are more parameters than before"


def check_equal_runs_give_equal_models(config: CompressorConfig) -> None:
    """The same model, data and seed give the same weights."""
    first, _ = _compress(config, tiny_lm("decoder"))
    second, _ = _compress(config, tiny_lm("decoder"))
    difference = float((_logits(first) - _logits(second)).abs().max())
    assert torch.equal(_logits(first), _logits(second)), f"two equal runs differ by {difference} in the logits"


@when(lambda component: component.needs_data)
def check_missing_data_is_an_error_that_says_so(config: CompressorConfig) -> None:
    """Without data a compressor that needs it raises, and the message has the word."""
    from tunesmith.errors import TunesmithError

    message = ""
    try:
        config.build().compress(tiny_lm("decoder"), runtime=Runtime(progress=False))
    except TunesmithError as error:
        message = str(error)
    assert message, "no error without data"
    assert "data" in message or "example" in message, f"the message does not say what is missing: {message}"


def _compress(config: CompressorConfig, lm: LM) -> tuple[LM, CompressionReport]:
    component = config.build()
    runtime = Runtime(progress=False)
    component.setup(runtime)
    words = WORDS[:12]
    examples = [
        Example(id=str(i), prompt=" ".join(words[i % 6 : i % 6 + 4]), targets=(" ".join(words[i % 5 : i % 5 + 3]),))
        for i in range(8)
    ]
    result: Any = component.compress(lm, data=examples, runtime=runtime)
    assert isinstance(result, tuple), f"compress gave {type(result).__name__}, not a pair of LM and CompressionReport"
    kinds = [type(part).__name__ for part in result]
    assert kinds == ["LM", "CompressionReport"], f"compress gave ({', '.join(kinds)}), not (LM, CompressionReport)"
    return result[0], result[1]


def _logits(lm: LM) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7, 8, 9, 1], [10, 11, 12, 13, 14, 1]])
    extra: dict[str, Any] = {"decoder_input_ids": ids[:, :3]} if lm.family == "encoder-decoder" else {}
    with lm.evaluating():
        found: torch.Tensor = lm.model(input_ids=ids, **extra).logits
    return found


CHECKS = (
    check_every_family_saves_and_loads_with_equal_outputs,
    check_family_and_tokenizer_stay,
    check_it_no_longer_claims_to_be_the_folder_it_came_from,
    check_report_says_what_is_on_disk,
    check_equal_runs_give_equal_models,
    check_missing_data_is_an_error_that_says_so,
)

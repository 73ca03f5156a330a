"""Adapters on models in half precision are float32, as peft's are, and what they give is of the model's type."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import tunesmith as ts
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.adapters import IA3, Bottleneck, LoRA, Prefix, Prompt, PTuning

RUNTIME = Runtime(seed=1, threads=1, progress=False)
ADAPTERS = (
    LoRA(rank=2),
    LoRA(rank=2, keep_zeros=True),
    IA3(),
    Bottleneck(),
    Prompt(tokens=2),
    PTuning(tokens=2),
    Prefix(tokens=2),
)
HALF = (torch.bfloat16, torch.float16)
FAMILIES = ("decoder", "encoder-decoder", "encoder")


def on_half(family: Any, dtype: torch.dtype) -> Any:
    lm = tiny_lm(family)
    lm.model.to(dtype)
    return lm


@pytest.mark.parametrize(
    "config", ADAPTERS, ids=lambda c: f"{type(c).__name__}{c.keep_zeros if hasattr(c, 'keep_zeros') else ''}"
)
def test_they_are_float32_and_learn_what_bfloat16_could_not_hold(config: Any, tmp_path: Path) -> None:
    for family in FAMILIES:
        for dtype in HALF:
            lm = config.build().attach(on_half(family, dtype), RUNTIME)
            (adapter,) = lm.adapters
            own = dict(adapter.trainable())
            assert {p.dtype for p in own.values()} == {torch.float32}
            ids = torch.tensor([[5, 6, 7, 8]])
            out = lm.model(input_ids=ids, **({} if family == "encoder" else {"labels": ids}))
            assert out.logits.dtype == dtype
            assert {p.dtype for n, p in lm.model.named_parameters() if adapter.base_name(n)} == {dtype}
            (out.logits.float().square().mean() * 100).backward()
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in own.values())
            with torch.no_grad():
                for parameter in own.values():
                    parameter += 2e-5  # less than a step of bfloat16 beside a weight of 1
            adapter.save(tmp_path / family)
            again = config.build().load(on_half(family, dtype), tmp_path / family, RUNTIME)
            (loaded,) = again.adapters
            assert all(torch.equal(p, own[name]) for name, p in loaded.trainable())
            if family != "encoder":
                with_it = ts.generate(again, ["the cat"], max_new_tokens=4)[0].token_ids
                assert with_it == ts.generate(lm, ["the cat"], max_new_tokens=4)[0].token_ids
                with loaded.disabled():
                    plain = ts.generate(on_half(family, dtype), ["the cat"], max_new_tokens=4)[0].token_ids
                    assert ts.generate(again, ["the cat"], max_new_tokens=4)[0].token_ids == plain


@pytest.mark.parametrize(("ours", "theirs"), [(LoRA(rank=2), peft.LoraConfig(r=2)), (IA3(), peft.IA3Config())])
def test_so_are_those_of_peft(ours: Any, theirs: Any) -> None:
    lm = on_half("decoder", torch.bfloat16)
    found = peft.get_peft_model(copy.deepcopy(lm.model), theirs)
    types = {p.dtype for p in found.parameters() if p.requires_grad}
    lm = ours.build().attach(lm, RUNTIME)
    assert {p.dtype for _, p in lm.adapters[0].trainable()} == types

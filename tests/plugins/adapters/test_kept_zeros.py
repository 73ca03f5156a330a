"""Recovery after pruning that keeps the zeros."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_batches import batch

import tunesmith as ts
from tunesmith.errors import TunesmithError
from tunesmith.lm import load
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins import stages as st
from tunesmith_plugins.adapters import Full, LoRA, QuantizationAware
from tunesmith_plugins.compressors import Int8, Magnitude
from tunesmith_plugins.compressors.int8_weight import Int8Weight

RUNTIME = Runtime(seed=1, threads=1, progress=False)
FAMILIES = ("encoder", "decoder", "encoder-decoder")


def pruned(family: Any) -> Any:
    lm, _ = Magnitude(pattern="2:4").build().compress(tiny_lm(family), runtime=RUNTIME)
    return lm


def zeros(lm: Any) -> dict[str, torch.Tensor]:
    """Where the matrices are zero; names without what adapters add."""
    return {name: p == 0 for name, p in lm.model.named_parameters() if p.dim() > 1 and "lora_" not in name}


def trained(lm: Any, config: Any, optimizer: Any) -> Any:
    adapter = config.build()
    adapter.setup(RUNTIME)
    lm = adapter.attach(lm, RUNTIME)
    steps = optimizer([p for _, p in adapter.trainable()])
    losses = []
    for _ in range(6):
        steps.zero_grad()
        loss = lm.model(**batch(lm)).loss
        loss.backward()
        steps.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    return lm


def logits(lm: Any) -> torch.Tensor:
    with lm.evaluating():
        found: torch.Tensor = lm.model(**batch(lm)).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "optimizer",
    [lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)],
    ids=["adamw", "sgd"],
)
def test_all_weights_but_the_zeros_are_trained(family: Any, optimizer: Any) -> None:
    lm = pruned(family)
    before, old = zeros(lm), {n: p.detach().clone() for n, p in lm.model.named_parameters()}
    lm = trained(lm, Full(keep_zeros=True), optimizer)
    now = dict(lm.model.named_parameters())
    assert any(mask.any() for mask in before.values())
    assert all(bool((now[name][mask] == 0).all()) for name, mask in before.items())
    assert sum(not torch.equal(now[name], old[name]) for name in before) > len(before) / 2
    assert any(not torch.equal(p, old[n]) for n, p in now.items() if p.dim() == 1)
    free = trained(pruned(family), Full(), optimizer)
    assert any(bool((p != 0)[before[n]].any()) for n, p in free.model.named_parameters() if n in before)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_for_int8_keeps_the_zeros_and_compressing_lets_go_of_them(family: Any) -> None:
    lm = pruned(family)
    before = zeros(lm)
    lm = trained(lm, QuantizationAware(keep_zeros=True), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1))
    now = dict(lm.model.named_parameters())
    assert all(bool((now[name][mask] == 0).all()) for name, mask in before.items())
    small, _ = Int8().build().compress(lm, runtime=RUNTIME)
    weights = {name: m.weight_int8() for name, m in small.model.named_modules() if isinstance(m, Int8Weight)}
    masks = {name: before[f"{name}.weight"] for name in weights}
    assert sum(bool(mask.any()) for mask in masks.values()) > 4
    assert all(bool((weights[name][mask] == 0).all()) for name, mask in masks.items())
    assert not any(p._backward_hooks for p in small.model.parameters())
    free = trained(pruned(family), QuantizationAware(), lambda p: torch.optim.AdamW(p, lr=0.01))
    assert any(bool((p != 0)[before[n]].any()) for n, p in free.model.named_parameters() if n in before)


def test_merging_lets_go_of_the_zeros() -> None:
    adapter = Full(keep_zeros=True).build()
    lm = adapter.merge(adapter.attach(pruned("decoder"), RUNTIME))
    assert not any(p._backward_hooks for p in lm.model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_an_update_is_masked_in_training_and_merging_changes_nothing(family: Any, tmp_path: Path) -> None:
    lm = pruned(family)
    before = zeros(lm)
    config = LoRA(rank=4, alpha=8, keep_zeros=True)
    lm = trained(lm, config, lambda p: torch.optim.AdamW(p, lr=0.05))
    found = logits(lm)
    lm.save(tmp_path)
    assert torch.allclose(logits(load(tmp_path)), found, atol=1e-6)
    adapter = lm.adapters[-1]
    with adapter.disabled():
        assert not torch.allclose(logits(lm), found, atol=1e-3)
    whole = adapter.merge(lm)
    assert torch.allclose(logits(whole), found, atol=1e-5)
    after = zeros(whole)
    assert all(bool(after[name][mask].all()) for name, mask in before.items())


def test_weights_that_stand_the_other_way_round_are_masked_too() -> None:
    torch.manual_seed(0)
    lm = tiny_lm("decoder")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=len(lm.tokenizer), n_positions=32)
    lm.model = transformers.GPT2LMHeadModel(config).eval()
    lm, _ = Magnitude(pattern="2:4").build().compress(lm, runtime=RUNTIME)
    before = zeros(lm)
    lm = trained(lm, LoRA(rank=2, targets=("c_attn",), keep_zeros=True), lambda p: torch.optim.AdamW(p, lr=0.05))
    found = logits(lm)
    whole = lm.adapters[-1].merge(lm)
    assert torch.allclose(logits(whole), found, atol=1e-5)
    after = zeros(whole)
    assert all(bool(after[name][mask].all()) for name, mask in before.items())


def test_integers_are_refused() -> None:
    lm, _ = Int8().build().compress(pruned("decoder"), runtime=RUNTIME)
    with pytest.raises(TunesmithError, match="keep_zeros=True.*before it is quantized"):
        LoRA(keep_zeros=True).build().attach(lm, RUNTIME)


@pytest.mark.parametrize(
    "adapter", [Full(keep_zeros=True), LoRA(rank=2, keep_zeros=True)], ids=lambda a: type(a).__name__
)
def test_a_pipeline_prunes_recovers_and_exports_what_is_pruned(adapter: Any, tmp_path: Path) -> None:
    tiny_lm("encoder-decoder").save(tmp_path / "start")
    rows = [{"x": "the cat sees a bird", "y": "good dog"}, {"x": "who ?", "y": "yes"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ts.Pipeline(
        base=str(tmp_path / "start"),
        data=ts.Data(source=str(tmp_path / "train.jsonl"), prompt="{x}", target="{y}"),
        stages=(
            st.Compress(name="small", compressor=Magnitude(pattern="2:4")),
            st.FineTune(name="recovered", adapter=adapter, steps=3, batch_size=2),
            st.Export(name="out", folder=str(tmp_path / "out")),
        ),
    ).run(tmp_path / "run", threads=1, progress=False)
    whole = load(tmp_path / "out")
    first = dict(tiny_lm("encoder-decoder").model.named_parameters())
    pairs = [(n, p) for n, p in whole.model.named_parameters() if n.endswith(("q.weight", "wo.weight"))]
    assert pairs
    assert all(bool(((weight == 0).view(-1, 4).sum(1) >= 2).all()) for _, weight in pairs)
    changed = [n for n, p in pairs if not torch.equal(p[p != 0], first[n][p != 0])]
    assert changed

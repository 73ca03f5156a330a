"""Several adapters of different kinds on one model."""

import itertools

import pytest
import torch

from tunesmith.errors import TunesmithError
from tunesmith.lm import load
from tunesmith.runtime import Runtime
from tunesmith.testing.adapters import move, outputs
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.adapters import IA3, Bottleneck, Full, LoRA, Prefix, Prompt

KINDS = [LoRA(rank=2), LoRA(rank=3, alpha=4.0), IA3(), Bottleneck(reduction=8), Prompt(tokens=2), Prefix(tokens=2)]


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder", "encoder"])
@pytest.mark.parametrize(("below", "above"), list(itertools.permutations(KINDS, 2)), ids=lambda c: type(c).__name__)
def test_the_upper_one_trains_alone_and_comes_off_alone(family, below, above, tmp_path):
    lm = below.build().attach(tiny_lm(family), Runtime())
    move(lm.adapters[0])
    first = outputs(lm)
    lm = above.build().attach(lm, Runtime())
    if lm.adapters[1].identity:
        assert torch.equal(outputs(lm), first)
    assert {id(p) for p in lm.model.parameters() if p.requires_grad} == {id(p) for _, p in lm.adapters[1].trainable()}
    move(lm.adapters[1], 0.2)
    both = outputs(lm)
    with lm.adapters[1].disabled():
        assert torch.equal(outputs(lm), first)
        with lm.adapters[0].disabled():
            assert torch.equal(outputs(lm), outputs(tiny_lm(family)))
    lm.save(tmp_path)
    again = load(tmp_path)
    assert torch.equal(outputs(again), both)
    assert [a.config for a in again.adapters] == [below, above]
    assert again.fingerprint == lm.fingerprint


def test_three_adapters_on_the_same_layers_merge_from_below():
    lm = tiny_lm("decoder")
    for config in (IA3(), LoRA(rank=2, targets=("k_proj", "v_proj")), LoRA(rank=2, targets=("v_proj", "down_proj"))):
        lm = config.build().attach(lm, Runtime())
        move(lm.adapters[-1], 0.2)
    before = outputs(lm)
    with pytest.raises(TunesmithError, match="merge that one first"):
        lm.adapters[1].merge(lm)
    for adapter in lm.adapters:
        lm = adapter.merge(lm)
        assert torch.allclose(outputs(lm), before, rtol=1e-4, atol=1e-4)
    assert lm.model.state_dict().keys() == tiny_lm("decoder").model.state_dict().keys()


def test_after_a_merge_a_new_adapter_gets_a_free_name():
    lm = tiny_lm("decoder")
    for _ in range(2):
        lm = LoRA(rank=2).build().attach(lm, Runtime())
        move(lm.adapters[-1])
    lm = lm.adapters[0].merge(lm)
    before = outputs(lm)
    lm = LoRA(rank=2).build().attach(lm, Runtime())
    assert torch.equal(outputs(lm), before)
    assert len({a.name for a in lm.adapters}) == 2


def test_all_weights_do_not_train_over_adapters():
    lm = LoRA(rank=2).build().attach(tiny_lm("decoder"), Runtime())
    with pytest.raises(TunesmithError, match="merge them first"):
        Full().build().attach(lm, Runtime())

"""Magnitude pruning against its definition."""

import pytest
import torch

from tunesmith.lm import load
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors import Magnitude, magnitude
from tunesmith_plugins.compressors.layers import linear_layers
from tunesmith_plugins.compressors.prune import smallest

RUNTIME = Runtime(progress=False)


def test_exactly_the_smallest_go_and_the_first_among_equals():
    assert smallest(torch.tensor([3.0, 1.0, 2.0, 1.0]), 0.5).tolist() == [False, True, False, True]
    assert smallest(torch.ones(4), 0.5).tolist() == [True, True, False, False]
    assert not smallest(torch.ones(4), 0.0).any()


def test_output_error_of_a_gaussian_layer_is_what_the_truncated_normal_says():
    # sum of the squares of the smaller half of N(0,1), relative to all: 2 * int_0^m x^2 phi(x) dx = 1/2 - 2 m phi(m), m = 0.67449
    weight = torch.randn(400, 400, generator=torch.Generator().manual_seed(0))
    mask = smallest(weight.abs().flatten(), 0.5)
    assert float(weight.flatten()[mask].square().sum() / weight.square().sum()) == pytest.approx(0.07129, abs=0.001)


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2", "bert"])
def test_every_layer_loses_its_share_and_the_model_loads_back(make, tmp_path, kind):
    small, report = Magnitude(sparsity=0.4).build().compress(make(kind), runtime=RUNTIME)
    for _, layer in linear_layers(small.model):
        assert int((layer.weight == 0).sum()) == round(0.4 * layer.weight.numel())
    assert report.parameters[0] - report.parameters[1] == report.summary["zeros"] > 0
    assert report.bytes[0] == report.bytes[1]  # dense zeros: said plainly
    small.save(tmp_path)
    for (_, a), (_, b) in zip(linear_layers(small.model), linear_layers(load(tmp_path).model), strict=True):
        assert torch.equal(a.weight, b.weight)


def test_the_global_scope_uses_one_threshold(make):
    lm = make("llama")
    lm.model.model.layers[0].mlp.up_proj.weight.data.mul_(1e-3)
    small, report = Magnitude(sparsity=0.1, scope="global").build().compress(lm, runtime=RUNTIME)
    shares = {row["name"]: row["sparsity"] for row in report.layers}
    assert shares["model.layers.0.mlp.up_proj"] == 1.0
    total = sum(layer.weight.numel() for _, layer in linear_layers(small.model))
    assert report.summary["zeros"] == round(0.1 * total)


def test_masks_are_made_one_after_the_other(make, monkeypatch):
    """Those of all layers together, with what they are sorted by, would be as large as the model several times over."""
    lm = make("bert")
    layers = [layer for _, layer in linear_layers(lm.model)]
    pruned = []

    def noted(*given):
        pruned.append(sum(bool((layer.weight == 0).any()) for layer in layers))
        return smallest(*given)

    monkeypatch.setattr(magnitude, "smallest", noted)
    Magnitude(sparsity=0.4).build().compress(lm, runtime=RUNTIME)
    assert pruned == list(range(len(layers)))


def test_what_is_kept_is_untouched(make):
    lm = make("bert")
    before = {n: layer.weight.detach().clone() for n, layer in linear_layers(lm.model)}
    small, _ = Magnitude(sparsity=0.5).build().compress(lm, runtime=RUNTIME)
    for name, layer in linear_layers(small.model):
        kept = layer.weight != 0
        assert torch.equal(layer.weight[kept], before[name][kept])
        assert before[name][~kept].abs().max() <= before[name][kept].abs().min()

"""Products of few rows: the same numbers as torch's own, whichever way they are asked for."""

import pytest
import torch
from torch.nn.functional import linear

from tunesmith.generation import generate
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.engines import narrow


@pytest.fixture
def small(monkeypatch):
    """Let small weights take every way, on any machine."""
    monkeypatch.setattr(narrow, "LEAST", 1)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


@pytest.fixture
def ways(monkeypatch):
    """Return which ways were taken."""
    taken = []

    def watch(name, own):
        def call(*args, **options):
            taken.append(name)
            return own(*args, **options)

        monkeypatch.setattr(torch, name, call)

    watch("bmm", torch.bmm)
    watch("mm", torch.mm)
    return taken


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 8, 15, 16, 24, 25])
@pytest.mark.parametrize("size", [1, 63, 64, 192, 200])
@pytest.mark.parametrize("shifted", [False, True])
def test_equals_float64(small, rows, size, shifted):
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, 1, 40), torch.randn(size, 40)
    bias = torch.randn(size) if shifted else None
    exact = linear(x.double(), weight.double(), bias.double() if shifted else None)
    found = narrow.product(x, weight, bias)
    assert found.shape == (rows, 1, size)
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [5, 10])
def test_rows_that_lie_apart(small, rows):
    x, weight = torch.randn(2, 80, rows).transpose(1, 2)[..., ::2], torch.randn(130, 40)
    torch.testing.assert_close(narrow.product(x, weight, None), linear(x, weight), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "expected"), [(3, []), (4, ["bmm"]), (15, ["bmm"]), (16, ["mm"]), (24, ["mm"]), (25, [])]
)
def test_which_way(small, ways, rows, expected):
    narrow.product(torch.randn(rows, 8), torch.randn(128, 8), None)
    assert ways == expected


def test_small_weights_go_the_usual_way(ways):
    narrow.product(torch.randn(8, 8), torch.randn(128, 8), None)
    assert ways == []


def test_layers_are_put_back(small, ways):
    model = torch.nn.Sequential(torch.nn.Linear(8, 128), torch.nn.ReLU())
    (layer,), seen, x = narrow.layers(model), [], torch.randn(4, 8)
    layer.register_forward_hook(lambda *_: seen.append(1))

    def broken():
        with narrow.quick([layer]):
            model(x)
            raise ArithmeticError("stop")

    with torch.no_grad():
        with pytest.raises(ArithmeticError, match="stop"):
            broken()
        assert (ways, seen) == (["bmm"], [1])
        assert "forward" not in vars(layer)
        model(x)
    assert (ways, seen) == (["bmm"], [1, 1])


def test_calls_may_overlap_and_leave_what_others_have_put_there(small, ways):
    layer, other, x = torch.nn.Linear(8, 128), torch.nn.Linear(8, 128), torch.randn(4, 8)
    found = narrow.layers(torch.nn.Sequential(layer, other))
    assert found == [layer, other]
    other.forward = own = lambda x: x  # since then, as accelerate's hooks do
    with torch.no_grad(), narrow.quick(found):
        with narrow.quick(found):
            assert narrow.layers(layer) == [layer]
            assert other(x) is x
        layer(x)
        assert ways == ["bmm"]
    assert "forward" not in vars(layer)
    assert vars(other)["forward"] is own


def test_weights_that_change_in_place_are_followed(small):
    layer, x = torch.nn.Linear(8, 128, bias=False), torch.randn(4, 8)
    with torch.no_grad(), narrow.quick([layer]):
        before = layer(x)
        layer.weight.mul_(2)
        assert torch.equal(layer(x), 2 * before)


def test_gradients_other_dtypes_and_autocast_go_the_usual_way(small, ways):
    layer, x = torch.nn.Linear(8, 128), torch.randn(4, 8)
    with narrow.quick([layer]):
        layer(x).sum().backward()
        assert layer.weight.grad is not None
        with torch.no_grad():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert layer(x).dtype == torch.bfloat16
            assert layer.double()(x.double()).dtype == torch.float64
            layer.float().weight.data = torch.randn(8, 128).t()  # not contiguous
            layer(x)
    assert ways == []


def test_layers_of_another_kind_are_left_alone(small):
    class Own(torch.nn.Linear):
        pass

    wrapped = torch.nn.Linear(8, 128)
    wrapped.forward = lambda x: x
    assert not narrow.layers(torch.nn.Sequential(Own(8, 128), wrapped, torch.nn.Conv1d(1, 1, 1)))
    assert not narrow.layers(torch.compile(torch.nn.Linear(8, 128)))
    compiled = torch.nn.Linear(8, 128)
    compiled.compile()
    assert not narrow.layers(torch.nn.Sequential(compiled))


def test_none_without_what_was_measured(small, monkeypatch):
    layer = torch.nn.Linear(8, 128)
    assert narrow.layers(layer) == [layer]
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not narrow.layers(layer)


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
def test_generation_writes_the_same(small, ways, monkeypatch, family):
    lm = tiny_lm(family)

    def write():
        found = generate(lm, ["the cat sees a tree"], sampler="top_p(p=0.9)", completions=6, max_new_tokens=6)
        return [completion.token_ids for completion in found]

    quick = write()
    assert "bmm" in ways
    assert not any("forward" in vars(module) for module in lm.model.modules())
    monkeypatch.setattr(narrow, "LEAST", 1 << 30)
    assert quick == write()

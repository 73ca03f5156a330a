"""torch knows the operations: opcheck, fake tensors, torch.compile without graph breaks, export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Step
from tunesmith_plugins.kernels import steps as chain_steps


def sampling_arguments(greedy: bool) -> tuple[Any, ...]:
    torch.manual_seed(0)
    values = torch.tensor([[0.7, 1.3], [5.0, 9.0], [1.1, 1.2]], dtype=torch.float64)
    ids = torch.zeros(2, dtype=torch.int64)
    history, lengths = torch.randint(0, 40, (2, 5)), torch.tensor([5, 2])
    return (torch.randn(2, 40), [1, 2, 0], values, [], ids, ids, ids, history, lengths, greedy, 0, True, False, True)


@pytest.mark.parametrize("greedy", [False, True])
def test_opcheck_of_the_sampling_chain(native: dict[str, Any], greedy: bool) -> None:
    arguments = sampling_arguments(greedy)
    torch.library.opcheck(torch.ops.tunesmith.sample_chain.default, arguments)
    torch.library.opcheck(torch.ops.tunesmith.apply_chain.default, (*arguments[:4], *arguments[7:9]))


def listing_arguments() -> tuple[Any, ...]:
    """Steps with lists, amounts, a mask and second parameters, as the dispatcher takes them."""
    torch.manual_seed(1)
    ops = ["bias", "frequency_penalty", "mask", "typical", "ban"]
    none = torch.empty(0)
    tables = [
        torch.randint(-1, 41, (2, 5)), torch.randn(2, 5), none.clone(), none.clone(), none.clone(), none.clone(),
        torch.randint(-(2**31), 2**31, (2, 2)).int(), none.clone(), none.clone(), none.clone(), none.clone(),
        torch.tensor([[2.0, 3.0]], dtype=torch.float64), torch.randint(0, 40, (1, 3)), none.clone(), none.clone(),
    ]  # fmt: skip
    values = torch.tensor([[0.7, 1.3], [0.5, 0.1], [1, 0], [0.9, 0.5], [0, 1]], dtype=torch.float64)
    codes = [kernels.supported_steps().index(op) for op in ops]
    logits, *_, ids, _, _, history, lengths, greedy, draw, a, b, c = sampling_arguments(False)
    return (logits, codes, values, tables, ids, ids, ids, history, lengths, greedy, draw, a, b, c)


def test_opcheck_of_chains_with_lists_and_of_the_likeliest(native: dict[str, Any]) -> None:
    arguments = listing_arguments()
    torch.library.opcheck(torch.ops.tunesmith.sample_chain.default, arguments)
    torch.library.opcheck(torch.ops.tunesmith.apply_chain.default, (*arguments[:4], *arguments[7:9]))
    torch.library.opcheck(torch.ops.tunesmith.sample_chain_top.default, (*arguments, 3, True, False, True))


def test_opcheck_of_steps_with_pairs_and_a_key(native: dict[str, Any]) -> None:
    logits, *_, ids, _, _, history, lengths, greedy, draw, a, b, c = sampling_arguments(False)
    pair = torch.tensor([[1.5, 2.0]], dtype=torch.float64)
    one = torch.ones(2, dtype=torch.float64)
    steps = [
        Step("dynamic_temperature", one * 0.5, second=pair.expand(2, 2)),
        Step("watermark", one, torch.tensor([[7, 1], [9, 2]]), second=one * 0.5),
        Step("top_p_ties", one * 0.9, second=torch.tensor([[3.0, 1.0]], dtype=torch.float64)),
        Step("mirostat", one * 4, second=one * 20),
    ]
    packed = chain_steps._packed(steps, logits)
    arguments = (logits, *packed, ids, ids, ids, history, lengths, greedy, draw, a, b, c)
    torch.library.opcheck(torch.ops.tunesmith.sample_chain.default, arguments)
    torch.library.opcheck(torch.ops.tunesmith.apply_chain.default, (logits, *packed, history, lengths))
    kept = {"history": history, "history_lengths": lengths}
    assert torch.equal(
        torch.ops.tunesmith.sample_chain(*arguments)[0],
        kernels.sample_chain(logits, steps, ids, ids, ids, **kept).token,
    )


def with_lists(logits: Tensor, seed: Tensor, ids: Tensor, amounts: Tensor) -> tuple[Tensor, ...]:
    one = torch.ones_like(seed).double()
    steps = [
        Step("bias", one * 0.5, ids, amounts),
        Step("allow", (seed % 2).double(), ids),
        Step("dynamic_temperature", one * 0.6, second=torch.stack([one * 1.5, one], 1)),
        Step("top_p_ties", one * 0.99, second=torch.stack([one * 2, one], 1)),
        Step("top_h", one * 0.6, second=one * 10),
    ]
    drawn = kernels.sample_chain(logits, steps, seed, seed, seed)
    best = kernels.sample_chain_top(logits, steps, seed, seed, seed, top=4, of=("truncated",))
    assert best.truncated is not None
    return drawn.token + 0, kernels.apply_chain(logits, steps).logits, *best.truncated


def test_chains_with_lists_compile_whole_export_and_draw_the_same(native: dict[str, Any]) -> None:
    torch.manual_seed(2)
    compiled = torch.compile(with_lists, fullgraph=True, backend="aot_eager")
    arguments = (torch.randn(3, 60), torch.arange(3), torch.randint(-1, 60, (3, 7)), torch.randn(3, 7))
    expected = with_lists(*arguments)
    for found, each in zip(compiled(*arguments), expected, strict=True):
        assert torch.equal(found, each)

    class Module(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
            return with_lists(*inputs)

    for found, each in zip(torch.export.export(Module(), arguments).module()(*arguments), expected, strict=True):
        assert torch.equal(found, each)


def test_chains_that_cuda_has_no_kernels_for_go_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    library = object()
    monkeypatch.setattr(kernels.loader, "cuda", lambda: library)
    one = torch.ones(1, dtype=torch.float64)
    cuda = torch.device("cuda")
    assert kernels.chain._library_for(cuda, [Step(op, one) for op in kernels.reference.ON_CUDA]) is library
    assert kernels.chain._library_for(cuda, [Step("top_p", one), Step("a later step", one)]) is None
    longest = [Step("top_p", one)] * kernels.reference.MOST_ON_CUDA
    assert kernels.chain._library_for(cuda, longest) is library
    assert kernels.chain._library_for(cuda, [*longest, Step("top_p", one)]) is None


@pytest.mark.parametrize("grad", [False, True])
def test_opcheck_of_the_int8_layer(native: dict[str, Any], grad: bool) -> None:
    weight = kernels.quantize_weight(torch.randn(7, 9))
    x, bias = torch.randn(2, 3, 9, requires_grad=grad), torch.randn(7, requires_grad=grad)
    packed = kernels.pack_weight(weight.q, weight.scale)
    for mode in range(4):
        torch.library.opcheck(torch.ops.tunesmith.int8_linear.default, (x, *packed, bias, "", mode, 0.02, 128))
    torch.library.opcheck(torch.ops.tunesmith.quantize_rows.default, (torch.randn(4, 9),))


def sample(logits: Tensor, heat: Tensor, seed: Tensor) -> tuple[Tensor | None, ...]:
    steps = [Step("temperature", heat), Step("top_p", torch.full_like(heat, 0.9))]
    result = kernels.sample_chain(logits, steps, seed, seed, seed, logp_processed=True)
    return result.token + 0, result.logp_processed


def test_sampling_compiles_whole_and_draws_the_same(native: dict[str, Any]) -> None:
    torch.manual_seed(1)
    compiled = torch.compile(sample, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (3, 5):
        arguments = (torch.randn(batch, 60), torch.rand(batch).double() + 0.5, torch.arange(batch))
        for found, expected in zip(compiled(*arguments), sample(*arguments), strict=True):
            assert torch.equal(found, expected)


def test_an_int8_model_compiles_whole_exports_and_trains(native: dict[str, Any]) -> None:
    weight = kernels.quantize_weight(torch.randn(8, 6))
    packed = kernels.pack_weight(weight.q, weight.scale)

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first, second = kernels.int8_linears(x * 2, [packed, packed], activations=["relu", None])
            return first + second + kernels.weight_only_linear(x, packed)

    x = torch.randn(4, 6)
    expected = Layer()(x)
    assert torch.equal(torch.compile(Layer(), fullgraph=True, backend="aot_eager")(x), expected)
    assert torch.equal(torch.export.export(Layer(), (x,)).module()(x), expected)
    learning = x.clone().requires_grad_()
    torch.compile(Layer(), fullgraph=True, backend="aot_eager")(learning).sum().backward()
    again = x.clone().requires_grad_()
    Layer()(again).sum().backward()
    assert learning.grad is not None
    assert torch.equal(learning.grad, again.grad)


def test_fake_tensors_get_shapes_without_data(native: dict[str, Any]) -> None:
    with FakeTensorMode():
        rows = torch.randn(3, 50)
        ids = torch.zeros(3, dtype=torch.int64)
        result = kernels.sample_chain(rows, [Step("top_k", ids + 5)], ids, ids, ids, logp_raw=True)
        assert result.token.shape == result.logp_raw.shape == (3,)
        assert result.logp_truncated is None
        assert kernels.apply_chain(rows, []).logits.shape == (3, 50)


def test_the_eager_path_and_the_dispatcher_agree(native: dict[str, Any]) -> None:
    arguments = sampling_arguments(False)
    logits, codes, values, _, seed, stream, position, history, lengths, *_ = arguments
    ops = kernels.supported_steps()
    steps = [Step(ops[code], row) for code, row in zip(codes, values, strict=True)]
    direct = kernels.sample_chain(
        logits,
        steps,
        seed,
        stream,
        position,
        history=history,
        history_lengths=lengths,
        logp_raw=True,
        logp_truncated=True,
    )
    through = torch.ops.tunesmith.sample_chain(*arguments)
    assert torch.equal(direct.token, through[0])
    assert torch.equal(direct.logp_raw, through[2])
    assert through[3].numel() == 0
    assert torch.equal(direct.logp_truncated, through[4])


def test_a_plan_and_the_dispatcher_refuse_what_they_cannot_read(native: dict[str, Any]) -> None:
    logits, ids = torch.randn(1, 8), torch.zeros(1, dtype=torch.int64)
    elsewhere = kernels.Plan([Step("temperature", torch.ones(1, dtype=torch.float64, device="meta"))])
    with pytest.raises(ValueError, match="values are on meta"):
        kernels.sample_chain(logits, elsewhere, ids, ids, ids)
    plan = kernels.Plan([Step("repetition_penalty", torch.ones(1, dtype=torch.float64))])
    with pytest.raises(ValueError, match="history_lengths is on meta"):
        kernels.sample_chain(logits, plan, ids, ids, ids, history=ids[None], history_lengths=ids.to("meta"))
    sample = torch.ops.tunesmith.sample_chain
    with pytest.raises(ValueError, match="seed must be int64"):
        sample(
            logits, [1], torch.ones(1, 1).double(), [], ids.int(), ids, ids, None, None, False, 0, False, False, False
        )
    with pytest.raises(ValueError, match="ops must be 1 numbers"):
        sample(logits, [-4], torch.ones(1, 1).double(), [], ids, ids, ids, None, None, False, 0, False, False, False)


def test_a_plan_is_seen_by_dispatch_modes_and_kept_from_tensors_under_a_transform(native: dict[str, Any]) -> None:
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    logits, ids = torch.randn(2, 8), torch.arange(2)
    plan = kernels.Plan([Step("temperature", torch.tensor([0.7]).double())])
    expected = kernels.sample_chain(logits, plan, ids, ids, ids)
    with Watch():
        found = kernels.sample_chain(logits, plan, ids, ids, ids)
    assert any("tunesmith.sample_chain" in name for name in seen)
    assert torch.equal(found.token, expected.token)

    quick = []

    def under(rows: Tensor) -> Tensor:
        quick.append(
            kernels.quick._sample(plan.address, rows, ids, ids, ids, None, None, False, 0, *[False] * 3, tuple)
        )
        return rows.sum()

    torch.func.vmap(under)(torch.randn(3, 2, 8))
    torch.func.grad(under)(logits)
    torch.func.jvp(under, (logits,), (logits,))
    under(logits.to_sparse())
    assert quick == [None] * 4
    under(logits)
    assert torch.equal(quick[4][0], expected.token)


def test_compiled_code_may_hold_a_plan(native: dict[str, Any]) -> None:
    logits, ids = torch.randn(2, 8), torch.arange(2)
    plan = kernels.Plan([Step("temperature", torch.tensor([0.7]).double())])
    compiled = torch.compile(lambda x: kernels.sample_chain(x, plan, ids, ids, ids).token + 0, backend="aot_eager")
    assert torch.equal(compiled(logits), kernels.sample_chain(logits, plan, ids, ids, ids).token)

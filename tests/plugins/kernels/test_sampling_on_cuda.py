"""The sampling chain of the CUDA library: the bits of the CPU library, on a GPU or, without one, run on CPU threads."""

from __future__ import annotations

import ctypes
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Step, chain, loader, reference

TRUNCATIONS = (
    "top_k", "top_p", "min_p", "epsilon", "eta", "top_a", "top_n_sigma", "typical", "top_h", "xtc", "top_k_low",
    "top_p_ties", "mirostat",
)  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
Sample = Callable[..., kernels.TopResult]


def rows(kind: str, batch: int, vocab: int, dtype: torch.dtype) -> Tensor:
    """Rows of one kind; ``odd`` ones have ties, removed tokens, both zeros, denormals, the largest numbers, NaN and infinity."""
    if kind == "flat":
        return (torch.randn(batch, vocab) * 0.5).to(dtype)
    if kind == "wide":
        return (torch.randn(batch, vocab) * 3).to(dtype)
    if kind == "tied":
        return torch.randn(batch, vocab).mul(2).round().to(dtype)
    if kind == "peaked":
        logits = torch.randn(batch, vocab) * 3
        some = torch.randint(vocab, (batch, min(40, vocab)))
        return logits.scatter_(1, some, 12 + torch.rand(some.shape).log().neg()).to(dtype)
    logits = torch.randn(batch, vocab).round()
    special = torch.tensor([-torch.inf, -torch.inf, 0.0, -0.0, 1e-42, 3e38, -3e38, torch.nan, torch.inf])
    there = torch.rand(batch, vocab) < 0.2
    drawn = torch.randint(len(special) - (2 if random.random() < 0.7 else 0), (batch, vocab))
    return torch.where(there, special[drawn], logits).to(dtype)


def step(op: str, batch: int, vocab: int) -> Step:
    """A step of one kind with random parameters for every row."""
    share = torch.where(torch.rand(batch) < 0.8, torch.rand(batch), torch.rand(batch).round()).double()
    if op in TRUNCATIONS:
        second: Tensor | None = None
        values = {
            "top_k": torch.randint(-1, vocab + 3, (batch,)),
            "top_k_low": torch.randint(-1, vocab + 3, (batch,)),
            "mirostat": torch.randn(batch).double() * 4 + 4,
            "top_n_sigma": share * 3,
            "epsilon": share**4,
            "eta": share**8,
            "xtc": share**4,
        }.get(op, share)
        fewest = torch.randint(1, random.choice([3, 60, vocab + 4]), (batch,))
        if op == "xtc":
            second = torch.randint(0, 2, (batch,)) | torch.randint(0, 2, (batch,))
        elif op in ("typical", "top_h", "mirostat"):
            second = fewest
        elif op == "top_p_ties":
            second = torch.stack([torch.where(torch.rand(batch) < 0.5, fewest, 1), torch.randint(0, 3, (batch,))], 1)
        return Step(op, values, second=None if second is None else second.double())
    heat = 10 ** (torch.rand(batch, 3, dtype=torch.float64) * 2 - 1)
    if op in ("temperature", "repetition_penalty"):
        return Step(op, heat[:, 0])
    if op == "dynamic_temperature":
        return Step(op, heat[:, 0], second=heat[:, 1:])
    if op == "watermark":
        keys = torch.stack([torch.randint(-(2**63), 2**63 - 1, (batch,)), torch.randint(1, 4, (batch,))], 1)
        return Step(op, torch.randn(batch, dtype=torch.float64), keys[: random.choice([1, batch])], second=share)
    if op in reference.REMOVALS:
        values = torch.randint(0, 2, (batch,))
    else:
        values = torch.randn(batch, dtype=torch.float64).clamp(-1)
    if op == "mask":
        return Step(op, values, torch.randint(-(2**31), 2**31, (batch, (vocab + 31) // 32), dtype=torch.int32))
    ids = torch.randint(-1, vocab + 1, (batch, 9))
    return Step(op, values, ids, torch.randn(batch, 9) if op == "bias" else None)


def inputs(batch: int, vocab: int) -> dict[str, Any]:
    return {
        "seed": torch.randint(-(2**63), 2**63 - 1, (batch,)),
        "stream": torch.randint(-(2**63), 2**63 - 1, (batch,)),
        "position": torch.randint(0, 2**32, (batch,)),
        "history": torch.randint(-2, vocab + 2, (batch, 6)),
        "history_lengths": torch.randint(0, 7, (batch,)),
        "draw": random.randrange(4),
        "greedy": random.random() < 0.15,
        "logp_raw": True,
        "logp_processed": True,
        "logp_truncated": True,
    }


def bits(tensor: Tensor) -> Tensor:
    """Integers that tell -0 from 0 and, however a NaN is written, equal it to itself."""
    tensor = tensor.cpu()
    return torch.where(tensor.isnan(), 0x7FC00000, tensor.view(torch.int32)) if tensor.is_floating_point() else tensor


def parts(result: kernels.TopResult) -> list[Tensor]:
    return [t for part in result if part is not None for t in part if t is not None]


def assert_equal_to_cpu(
    sample: Sample, logits: Tensor, steps: list[Step], given: dict[str, Any], top: int
) -> kernels.TopResult:
    arguments: dict[str, Any] = given | {"top": top, "of": ("raw", "processed", "truncated")}
    expected = kernels.sample_chain_top(logits, steps, **arguments)
    found = sample(logits, steps, **arguments)
    assert len(parts(found)) == len(parts(expected)) == 11
    for name, one, other in zip(
        ("token", "status", "raw", "processed", "truncated", *("top",) * 6), parts(found), parts(expected), strict=True
    ):
        message = f"{name} of {[s.op for s in steps]} over {tuple(logits.shape)} {logits.dtype}"
        assert torch.equal(bits(one), bits(other)), message
    return expected


def random_chains(sample: Sample, trials: range, vocabs: tuple[int, ...]) -> None:
    statuses: set[int] = set()
    for trial in trials:
        random.seed(trial)
        torch.manual_seed(trial)
        batch, vocab = random.randint(1, 4), random.choice(vocabs)
        logits = rows(random.choice(["flat", "wide", "tied", "peaked", "odd"]), batch, vocab, random.choice(DTYPES))
        if random.random() < 0.3:
            logits = torch.cat([logits, logits], 1)[:, :vocab]  # rows that lie apart
        steps = [step(random.choice(reference.ON_CUDA), batch, vocab) for _ in range(random.randint(0, 6))]
        found = assert_equal_to_cpu(sample, logits, steps, inputs(batch, vocab), random.choice([1, 3, 20, 3000]))
        statuses |= set(found.sample.status.tolist())
    assert statuses == {int(status) for status in kernels.Status}


def one_by_one(sample: Sample, vocab: int) -> None:
    """Steps that look at a whole row, on every kind and type of it: alone, after a temperature, a cut, or before another."""
    for number, op in enumerate((*TRUNCATIONS, "dynamic_temperature", "watermark")):
        for kind in ("flat", "wide", "tied", "peaked", "odd"):
            random.seed(kind + op)
            torch.manual_seed(number)
            logits = rows(kind, 3, vocab, DTYPES[(number + len(kind)) % 3])
            around = random.choice([(), ("temperature",), ("ban", "top_k"), ("typical",), ("mask",), ("bias", "xtc")])
            after = random.choice([(), ("dynamic_temperature",), ("top_p",), ("bias",)])
            steps = [step(name, 3, vocab) for name in (*around, op, *after)]
            assert_equal_to_cpu(sample, logits, steps, inputs(3, vocab), 20)


def many_candidates(sample: Sample, vocab: int) -> None:
    """Mirostat with more candidates than fit into a block's room, so that they are looked at in parts; some all alike."""
    sizes: set[int] = set()
    for number, kind in enumerate(("flat", "wide", "tied", "peaked", "odd")):
        torch.manual_seed(number)
        logits = rows(kind, 4, vocab, DTYPES[number % 3])
        logits[1, : vocab * 3 // 4] = 7.5
        logits[1, vocab // 2] = 0
        for candidates in (2048, 2049, 4095, vocab - 1, vocab):
            second = torch.tensor([candidates, candidates, candidates - 1, vocab + 9]).double()
            steps = [Step("mirostat", torch.rand(4).double() * 3 + 0.72 * math.log2(vocab), second=second)]
            found = assert_equal_to_cpu(sample, logits, steps, inputs(4, vocab), 20)
            kept = kernels.apply_chain(logits, steps).logits > -torch.inf
            sizes |= set(kept.sum(1)[found.sample.status == kernels.Status.OK].tolist())
    assert len(sizes) > 20


def every_rule(sample: Sample) -> None:
    """Every k, every fewest number and every rule for ties, on rows with ties and with tokens that weigh nothing."""
    vocab = 12
    shares = (0.0, 0.3, 0.7, 1 - 2**-53, 1.0)
    cases = torch.cartesian_prod(
        torch.tensor(shares).double(), torch.arange(1, vocab + 3).double(), torch.arange(3).double()
    )
    for number in range(3):
        torch.manual_seed(number)
        row = torch.randn(vocab).mul(1 + number).round()
        row[torch.randperm(vocab)[: 1 + number]] = (-90.0, -torch.inf, -90.0)[number]
        ties = Step("top_p_ties", cases[:, 0].contiguous(), second=cases[:, 1:].contiguous())
        count = torch.arange(-1, vocab + 3)
        bits_asked = torch.linspace(-4, 14, 40).double()
        candidates = (torch.arange(40) % (vocab + 2) + 1).double()
        for each in (ties, Step("top_k_low", count), Step("mirostat", bits_asked, second=candidates)):
            logits = row.expand(len(each.values), vocab).contiguous().to(DTYPES[number])
            assert_equal_to_cpu(sample, logits, [each], inputs(len(logits), vocab), vocab)


# ---- without a GPU ------------------------------------------------------------------------------------------------


@pytest.fixture
def on_threads(native: dict[str, Any], emulated: loader.Library, monkeypatch: pytest.MonkeyPatch) -> Sample:
    """``sample_chain_top`` with the emulated library in the place of the CPU's."""

    def sample(*arguments: Any, **more: Any) -> kernels.TopResult:
        with monkeypatch.context() as patch:
            patch.setattr(kernels.chain, "_library_for", lambda device, steps: emulated)
            return kernels.sample_chain_top(*arguments, **more)

    return sample


@pytest.mark.parametrize("block", range(2))
def test_random_chains_have_the_bits_of_the_cpu(on_threads: Sample, block: int) -> None:
    random_chains(on_threads, range(block * 150, block * 150 + 150), (1, 2, 31, 32, 33, 64, 65, 100, 257, 1000))


def test_every_step_over_a_row_has_the_bits_of_the_cpu(on_threads: Sample) -> None:
    one_by_one(on_threads, 3001)


def test_every_rule_for_ties_has_the_bits_of_the_cpu(on_threads: Sample) -> None:
    every_rule(on_threads)


def test_mirostat_with_many_candidates_has_the_bits_of_the_cpu(on_threads: Sample) -> None:
    many_candidates(on_threads, 5000)


@pytest.mark.parametrize("place", ["threads", "reference"])
def test_processed_rows_beyond_all_floats_take_the_temperature_of_the_row(
    on_threads: Sample, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def by_reference(*arguments: Any, **more: Any) -> kernels.TopResult:
        with monkeypatch.context() as patch:
            patch.setattr(kernels.chain, "_library_for", lambda device, steps: None)
            return kernels.sample_chain_top(*arguments, **more)

    sample = on_threads if place == "threads" else by_reference
    one, first = torch.ones(1, dtype=torch.float64), torch.tensor([[0]])
    ban, heat = Step("ban", one, first), Step("temperature", one / 10)
    pair = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    dynamic = Step("dynamic_temperature", one / 10, second=pair)
    bias = Step("bias", one * 3, torch.arange(5)[None], torch.tensor([[0.0, 1.0, 0.0, 2.0, -1.0]]))
    # the banned token goes to infinity, then all but it are edited
    high = torch.tensor([[3e38, 0.1, 0.2, -0.3, 1.0]]).expand(2, 5)
    found = assert_equal_to_cpu(sample, high, [ban, heat, dynamic, bias], inputs(2, 5), 5)
    assert found.sample.status.tolist() == [0, 0]
    assert found.processed is not None
    assert found.processed[1].isnan().all()
    # the processed row is certain of the banned token and gets the low temperature, by which all of it goes to -inf
    low = torch.tensor([[-2e38, -3e38, -3e38]]).expand(2, 3)
    found = assert_equal_to_cpu(sample, low, [ban, dynamic, dynamic], inputs(2, 3), 3)
    assert found.sample.status.tolist() == [0, 0]
    assert found.processed is not None
    assert found.processed[0].tolist() == [[0, 1, 2]] * 2
    assert (found.processed[1] == -torch.inf).all()


def test_rows_without_a_draw_have_the_bits_of_the_cpu(
    native: dict[str, Any], emulated: loader.Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, op in enumerate(TRUNCATIONS):
        torch.manual_seed(number)
        logits, steps = rows("tied", 3, 200, torch.float32), [step("temperature", 3, 200), step(op, 3, 200)]
        expected = kernels.apply_chain(logits, steps)
        with monkeypatch.context() as patch:
            patch.setattr(kernels.chain, "_library_for", lambda device, steps: emulated)
            found = kernels.apply_chain(logits, steps)
        assert torch.equal(bits(found.logits), bits(expected.logits)), op
        assert torch.equal(found.status, expected.status)


def test_parameters_are_checked_before_the_device_has_them(on_threads: Sample) -> None:
    logits, half = torch.randn(2, 9), torch.tensor([0.5], dtype=torch.float64)
    given = inputs(2, 9) | {"top": 1}
    with pytest.raises(ValueError, match=r"epsilon, row 0: 1\.5 is outside the allowed range, 0 to 1"):
        on_threads(logits, [Step("epsilon", half + 1)], **given)
    with pytest.raises(ValueError, match=r"top_h, row 1: 0(\.0)? is outside the allowed range of its second parameter"):
        on_threads(logits, [Step("top_h", half, second=torch.tensor([3.0, 0.0]).double())], **given)
    amounts = torch.tensor([[1.0, torch.inf]])
    biased = [Step("top_p", half), Step("bias", half, torch.zeros(1, 2).long(), amounts), Step("epsilon", half)]
    with pytest.raises(ValueError, match="bias: amounts must be finite"):
        on_threads(logits, biased, **given)
    with pytest.raises(ValueError, match=r"xtc, row 0: 2(\.0)? is outside the allowed range of its second parameter"):
        on_threads(logits, [Step("xtc", half, second=half * 4)], **given)
    pair = torch.tensor([[2.0, 1.0], [3.0, 3.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"top_p_ties, row 1: \[3.0, 3.0\] is outside .* a rule for ties"):
        on_threads(logits, [Step("top_p_ties", half, second=pair)], **given)
    with pytest.raises(ValueError, match=r"dynamic_temperature, row 0: \[2.0, 0.0\] is outside .* an exponent above 0"):
        on_threads(logits, [Step("dynamic_temperature", half, second=pair[:1] * torch.tensor([1.0, 0.0]))], **given)
    keys = [Step("watermark", half, torch.tensor([[5, 1], [2**62, 0]]), second=half)]
    with pytest.raises(ValueError, match="watermark: the number of ids before must be 1 or more"):
        on_threads(logits, keys, **given)
    for steps in ([Step("presence_penalty", half)], [keys[0]._replace(ids=torch.tensor([[5, 1]]))]):
        with pytest.raises(ValueError, match=r"row 1: history length 7 is outside \[0, 6\]"):
            on_threads(logits, steps, **given | {"history_lengths": torch.tensor([6, 7])})


def test_a_step_without_a_kernel_is_refused(emulated: loader.Library) -> None:
    assert tuple(reference.OPS[: len(reference.ON_CUDA)]) == reference.ON_CUDA
    steps = (loader.StepArgs * 1)()
    steps[0].op = len(reference.ON_CUDA)
    room = torch.zeros(1000)
    arguments = loader.SampleArgs(
        logits=room.data_ptr(), batch=1, vocab=9, row_stride=9, steps=steps, step_count=1, status=room.data_ptr(),
        workspace=room.data_ptr(),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=f"step 0: unknown operation {len(reference.ON_CUDA)}"):
        emulated.check(emulated.sample(ctypes.byref(arguments)))


# ---- on a GPU -----------------------------------------------------------------------------------------------------


def to_gpu(value: Any) -> Any:
    if isinstance(value, Step):
        return Step(value.op, *map(to_gpu, value[1:]))
    return value.cuda() if isinstance(value, Tensor) else value


def on_gpu(logits: Tensor, steps: list[Step], **given: Any) -> kernels.TopResult:
    assert kernels.info()["cuda"], kernels.info()["cuda_reason"]
    assert chain._library_for(torch.device("cuda"), steps) is loader.cuda()
    there = {name: to_gpu(value) for name, value in given.items()}
    return kernels.sample_chain_top(logits.cuda(), [to_gpu(each) for each in steps], **there)


@pytest.mark.gpu
def test_random_chains_on_a_gpu_have_the_bits_of_the_cpu() -> None:
    random_chains(on_gpu, range(600), (1, 2, 31, 32, 33, 100, 255, 256, 257, 1000, 5000))


@pytest.mark.gpu
def test_every_rule_for_ties_on_a_gpu_has_the_bits_of_the_cpu() -> None:
    every_rule(on_gpu)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab", [5000, 32000])
def test_mirostat_with_many_candidates_on_a_gpu_has_the_bits_of_the_cpu(vocab: int) -> None:
    many_candidates(on_gpu, vocab)


@pytest.mark.gpu
@pytest.mark.parametrize("vocab", [3001, 32000, 151936, 300_000])
def test_every_step_over_a_row_on_a_gpu_has_the_bits_of_the_cpu(vocab: int) -> None:
    one_by_one(on_gpu, vocab)

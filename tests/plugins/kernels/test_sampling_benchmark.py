"""The benchmark's contenders draw from the distribution that the kernel draws from, so their times can be compared."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Step

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def contenders() -> ModuleType:
    """The file of the contenders, which is no package."""
    spec = importlib.util.spec_from_file_location("sampling_contenders", FOLDER / "sampling_contenders.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sampling_contenders"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a file of the benchmarks."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_every_slot_comes_right_after_all_the_others(load: Callable[[str], ModuleType]) -> None:
    seen: list[str] = []
    slots = {name: (lambda name=name: seen.append(name)) for name in ("read", "tiny")}

    def last() -> None:
        seen.append("last")

    def first() -> None:
        seen.append("first")

    last.uncounted = lambda: seen.append("fill")  # type: ignore[attr-defined]
    first.uncounted = None  # type: ignore[attr-defined]
    times = load("sampling_timing").in_place(slots, [first, last], 7, 60.0)
    assert seen == ["first", "last", "fill", "read", "first", "last", "fill", "tiny"] * 7
    assert {name: len(each) for name, each in times.items()} == {"read": 7, "tiny": 7}


def test_a_late_call_stops_after_five_turns(load: Callable[[str], ModuleType]) -> None:
    timing = load("sampling_timing")
    assert len(timing.in_turn({"one": lambda: None}, 20, 0.0)["one"]) == 5
    assert len(timing.in_place({"one": lambda: None}, [], 20, 0.0)["one"]) == 5


def test_what_does_not_count_is_taken_off_by_its_low_percentile(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = load("sampling_timing")

    def call() -> None: ...

    def fill() -> None: ...

    call.uncounted = fill  # type: ignore[attr-defined]
    fills = iter([1.0, 1.0, 90.0, 1.0, 1.0])  # one was interrupted
    monkeypatch.setattr(timing, "seconds", lambda one: next(fills) if one is fill else 3.0)
    assert timing.in_turn({"filled": call}, 5, 60.0)["filled"] == [2.0] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_floor_is_the_slower_of_the_fastest_read_and_the_smallest_call(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    floors = load("sampling_floor")
    logits = torch.randn(2, 513).to(dtype)
    reads = floors.reads(logits)
    assert {"torch amax", "numpy max"} <= set(reads)
    if dtype == torch.float32:
        assert float(reads["torch amax"]()) == float(reads["numpy max"]()) == float(logits.max())
    else:  # read as the integers that they are made of
        assert int(reads["torch amax"]()) == int(reads["numpy max"]()) == int(logits.view(torch.int16).max())
    monkeypatch.setattr(floors, "in_place", lambda slots, *_: {name: [float(i + 2)] for i, name in enumerate(slots)})
    found = floors.floor("a", logits, torch.zeros(2, 4, dtype=torch.int64), [], 5, 1.0)
    assert (found.tiny, found.read, found.reader, found.time) == (2.0, 3.0, "torch amax", 3.0)


@pytest.mark.parametrize(
    ("read", "floor", "own", "held", "beyond"),
    [
        (119.0, 118.0, 50.0, False, "beyond reading the logits once on this machine"),
        (140.0, 118.0, 50.0, False, "beyond what our call costs without a row"),
        (140.0, 130.0, 50.0, False, ""),
        (140.0, 130.0, 125.0, True, ""),
        (110.0, 100.0, 125.0, True, "beyond reading the logits once on this machine"),  # said of what was measured
    ],
)
def test_a_goal_out_of_reach_is_told_from_one_that_is_missed(
    load: Callable[[str], ModuleType], read: float, floor: float, own: float, held: bool, beyond: str
) -> None:
    ratios = {"ratios": own, "floor_ratios": floor, "read_ratios": read}
    where = {"chain": "a", "batch": 1, "vocab": 32_000, "dtype": "float32", "ours_us": 10.0, "floor_us": 9.0}
    (row,) = load("sampling").table([where | {name: {"transformers": ratio} for name, ratio in ratios.items()}])
    assert (row["goal"], row["held"], row["beyond"]) == (120, held, beyond)


def test_the_loop_that_reads_comes_back_on_one_thread_and_on_two(load: Callable[[str], ModuleType]) -> None:
    floors = load("sampling_floor")
    data = torch.randn(3, 50_001)
    calls = [floors.reading(data, threads) for threads in (1, 2)]
    if None in calls:
        pytest.skip("no compiler")
    assert [call() for call in calls * 50] == [0] * 100


@pytest.mark.parametrize("chain", ["a", "b", "c"])
def test_every_contender_draws_only_what_the_kernel_keeps_and_most_of_it(contenders: ModuleType, chain: str) -> None:
    torch.manual_seed(0)
    row = torch.randn(1, 2000) * 2
    history = torch.randint(0, 2000, (1, 256))
    value = {
        name: torch.tensor([v]).double()
        for name, v in (("t", 0.8), ("k", 50), ("p", 0.9), ("q", 0.95), ("m", 0.05), ("r", 1.1))
    }
    heat = Step("temperature", value["t"])
    steps = {
        "a": [heat, Step("top_k", value["k"])],
        "b": [heat, Step("top_p", value["p"])],
        "c": [
            Step("repetition_penalty", value["r"]),
            heat,
            Step("top_k", value["k"]),
            Step("top_p", value["q"]),
            Step("min_p", value["m"]),
        ],
    }[chain]
    kept = kernels.apply_chain(row, steps, history=history).logits[0]
    probabilities = kept.double().softmax(-1)
    rows, histories = row.expand(4000, -1).contiguous(), history.expand(4000, -1).contiguous()
    for name, contender in contenders.CONTENDERS.items():
        drawn = torch.as_tensor(contender(chain, rows, histories)()).flatten()
        assert bool((probabilities[drawn] > 0).all()), name
        counts = torch.bincount(drawn, minlength=2000).double()
        # half the sum of differences between what was drawn and what should be: about sqrt(kept / 4000) / 2.5 by chance
        distance = float((counts / 4000 - probabilities).abs().sum() / 2)
        assert distance < float((int((probabilities > 0).sum()) / 4000) ** 0.5), name
    drawn = contenders.ours(chain, rows, histories)().token
    assert bool((probabilities[drawn] > 0).all())

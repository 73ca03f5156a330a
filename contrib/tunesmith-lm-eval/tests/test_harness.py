"""tunesmith's models in lm_eval, and both libraries' numbers side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
import tunesmith_lm_eval.harness as harness
from lm_eval.api.instance import Instance
from tunesmith_lm_eval import Task

from tunesmith import load
from tunesmith.benchmarking import run
from tunesmith.registry import benchmarks
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm

OFFLINE = Runtime(offline=True, progress=False)


def requests(pairs: list[tuple[str, str]]) -> list[Instance]:
    return [Instance(request_type="loglikelihood", doc={}, arguments=p, idx=i) for i, p in enumerate(pairs)]


def test_the_harness_and_the_runner_agree_on_accuracy(tasks: Path) -> None:
    lm = tiny_lm("decoder", seed=3)
    theirs = harness.evaluate(lm, ["animals"], folder=str(tasks), runtime=OFFLINE)["results"]["animals"]
    ours = run(lm, Task(task="animals", folder=str(tasks)), runtime=OFFLINE).results
    assert ours["accuracy"].main.value == pytest.approx(theirs["acc,none"])
    assert 0 < theirs["acc,none"] < 1


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
def test_greedy_continuations_are_known(family: str) -> None:
    """What the model writes itself is greedy; the same with another last word is not."""
    from tunesmith import generate

    lm = tiny_lm(family, seed=1)  # type: ignore[arg-type]
    (written,) = generate(lm, ["the cat"], max_new_tokens=4, min_new_tokens=4, runtime=OFFLINE)
    text = " " + written.text
    other = text.rsplit(" ", 1)[0] + (" bird" if not text.endswith("bird") else " tree")
    answers = harness.TunesmithLM(lm, runtime=OFFLINE).loglikelihood(requests([("the cat", text), ("the cat", other)]))
    assert answers[0][0] > answers[1][0]
    assert [greedy for _, greedy in answers] == [True, False]


def test_the_model_writes_in_the_harness(tasks: Path) -> None:
    found = harness.evaluate(tiny_lm("decoder"), ["stories"], folder=str(tasks), limit=2, runtime=OFFLINE)
    assert 0 <= found["results"]["stories"]["exact_match,none"] <= 1


@pytest.mark.realdata
def test_log_likelihoods_of_every_item_equal_the_harness_own_model(real: Path, tasks: Path) -> None:
    """A local task on stories260k, through the runner and through lm_eval's model for transformers."""
    from lm_eval.models.huggingface import HFLM

    folder = real / "models" / "stories260k"
    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)
    found = run(load(folder, runtime=OFFLINE), Task(task="animals", folder=str(tasks), shots=3), runtime=OFFLINE)
    pairs = [(item.context, choice) for item in found.items for choice in item.choices or ()]
    expected = [value for value, _ in theirs.loglikelihood(requests(pairs))]
    ours = [value for item in found.items for value in found.answers[item.id].logprobs]
    assert len(ours) == 30
    assert ours == pytest.approx(expected, abs=1e-4)


@pytest.mark.realdata
def test_so_do_those_of_real_items_that_must_be_cut(real: Path) -> None:
    """MMLU's five shots are longer than 512 positions, so that the rule of truncation is compared too."""
    from lm_eval.models.huggingface import HFLM

    folder = real / "models" / "stories260k"
    config = benchmarks.create("tunesmith/mmlu", source=str(real / "data" / "mmlu"))
    found = run(load(folder, runtime=OFFLINE), config, items=18, runtime=OFFLINE)
    assert found.truncated > 9
    pairs = [(item.context, choice) for item in found.items for choice in item.choices or ()]
    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)
    expected = [value for value, _ in theirs.loglikelihood(requests(pairs))]
    ours = [value for item in found.items for value in found.answers[item.id].logprobs]
    assert ours == pytest.approx(expected, abs=1e-4)

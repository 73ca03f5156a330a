"""lm_eval's tasks as benchmarks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import attrs

from tunesmith.errors import TunesmithError
from tunesmith.kinds.benchmark import Benchmark, Item
from tunesmith.kinds.decoder import Limits
from tunesmith.kinds.metric import MetricConfig
from tunesmith.registry import metrics
from tunesmith_lm_eval.loading import load

if TYPE_CHECKING:
    from tunesmith.runtime import Runtime

WRITTEN = {
    "exact_match": "tunesmith/exact_match",
    "bleu": "tunesmith/bleu",
    "chrf": "tunesmith/chrf",
    "ter": "tunesmith/ter",
}
"""lm_eval's metrics of written answers, and tunesmith's of the same meaning."""

INSTEAD = "Run it with tunesmith_lm_eval.harness.evaluate, which leaves everything but the model to lm_eval."


class TaskBenchmark(Benchmark):
    """One task whose items are choices in one context, or written answers without filters."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._task: Any = None
        self._items: tuple[Item, ...] = ()

    def setup(self, runtime: Runtime) -> None:
        """Load the task and its data, and build the requests."""
        if self._task is None:
            config = self.config
            self._task = load(config.task, config.folder, config.shots, config.seed, runtime)
            self._items = tuple(self._read())

    @property
    def _loaded(self) -> Any:
        if self._task is None:
            raise TunesmithError(f"lm_eval's task {self.config.task!r} is not loaded yet; call setup(runtime) first.")
        return self._task

    @property
    def part(self) -> str:
        """The task, for the name in reports."""
        return str(self.config.task)

    @property
    def scoring(self) -> Literal["loglikelihood", "generation"]:
        """By the task's output type."""
        if self._task is None:
            return "loglikelihood"  # asked before the data is there, only to choose the model's head
        return "loglikelihood" if self._task.OUTPUT_TYPE == "multiple_choice" else "generation"

    @property
    def metrics(self) -> tuple[MetricConfig, ...]:
        """Accuracy plain and by length for choices; the task's own, where tunesmith has them, for written answers."""
        if self.scoring == "loglikelihood":
            return tuple(
                metrics.create("tunesmith/accuracy", of=of)
                for of in ("choices", "choices_by_characters", "choices_by_bytes")
            )
        names = [entry["metric"] for entry in self._loaded.config.metric_list or ()]
        known = [WRITTEN[name] for name in names if name in WRITTEN]
        if not known:
            raise TunesmithError(
                f"{self.config.task}: tunesmith has none of its metrics ({', '.join(map(str, names))}). {INSTEAD}"
            )
        return tuple(metrics.create(use) for use in known)

    @property
    def limits(self) -> Limits:
        """The task's ``until`` and ``max_gen_toks``."""
        options = self._loaded.config.generation_kwargs or {}
        until = options.get("until") or ()
        stop = (until,) if isinstance(until, str) else tuple(until)
        return Limits(max_new_tokens=int(options.get("max_gen_toks", 256)), stop=stop)

    def items(self, runtime: Runtime) -> Sequence[Item]:
        """Return the items that the task's requests were built of."""
        self.setup(runtime)
        return self._items

    def _read(self) -> list[Item]:
        kind = self._task.OUTPUT_TYPE
        if kind not in ("multiple_choice", "generate_until"):
            raise TunesmithError(
                f"{self.config.task} has the output type {kind}, which no benchmark item can hold. {INSTEAD}"
            )
        groups: dict[int, list[Any]] = {}
        for request in self._task.instances:
            groups.setdefault(request.doc_id, []).append(request)
        make = self._choices if kind == "multiple_choice" else self._written
        return [make(number, groups[number]) for number in sorted(groups)]

    def _choices(self, number: int, requests: Sequence[Any]) -> Item:
        doc = requests[0].doc
        names = list(self._task.doc_to_choice(doc))
        asked = sorted(requests, key=lambda request: request.idx)[: len(names)]
        contexts = {request.args[0] for request in asked}
        if len(contexts) != 1 or len(asked) != len(names):
            raise TunesmithError(f"{self.config.task} has several contexts in one item. {INSTEAD}")
        gold = self._task.doc_to_target(doc)
        gold = names.index(gold) if isinstance(gold, str) and gold in names else gold
        if not isinstance(gold, int):
            raise TunesmithError(f"{self.config.task}, document {number}: no single right choice ({gold!r}). {INSTEAD}")
        return Item(
            id=f"{self.config.task}/{number:06d}",
            context=contexts.pop(),
            choices=tuple(request.args[1] for request in asked),
            target=gold,
        )

    def _written(self, number: int, requests: Sequence[Any]) -> Item:
        config = self._task.config
        if config.filter_list or config.process_results:
            raise TunesmithError(f"{self.config.task} filters what is written in ways of its own. {INSTEAD}")
        if (config.generation_kwargs or {}).get("do_sample"):
            raise TunesmithError(f"{self.config.task} samples its answers. {INSTEAD}")
        gold = self._task.doc_to_target(requests[0].doc)
        target = tuple(map(str, gold)) if isinstance(gold, list) else str(gold)
        return Item(id=f"{self.config.task}/{number:06d}", context=requests[0].args[0], target=target)

    @property
    def signature(self) -> str:
        """Task, its version, shots, lm_eval's version, and a hash of the items once they are read."""
        config = self.config
        head = f"lm_eval|task:{config.task}|shots:{config.shots}|seed:{config.seed}|lm_eval:{version('lm_eval')}"
        if self._task is None:
            return f"{head}|data:unread"
        text = json.dumps([attrs.asdict(item) for item in self._items], sort_keys=True, ensure_ascii=False)
        return f"{head}|task_version:{self._task.VERSION}|data:{hashlib.sha256(text.encode()).hexdigest()[:16]}"

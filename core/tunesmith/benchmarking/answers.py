"""What a model answers to a benchmark's items, kept by item id so that an interrupted run goes on where it was.

Imported at run time only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import attrs
from attrs import frozen

from tunesmith import continuation
from tunesmith.errors import ConfigError, DataError
from tunesmith.evaluation import classification
from tunesmith.evaluation.journal import Journal

if TYPE_CHECKING:
    from tunesmith.kinds.benchmark import Benchmark, Item
    from tunesmith.kinds.engine import Engine
    from tunesmith.lm import LM
    from tunesmith.runtime import Runtime

BLOCK = 128
"""Items between two writes of the file from which a run resumes."""


@frozen(kw_only=True)
class Answer:
    """The model's answer to one item.

    Attributes:
        text: What it wrote, or the choice or class it prefers (the first among equals).
        logprobs: Log-likelihood of each choice, or log-probability of each class; empty where the model wrote.
        cut: Tokens of the context that did not fit.
        seconds: What the item took by itself; None where items were answered together.
        new_tokens: Tokens written, or tokens of all choices.
    """

    text: str
    logprobs: tuple[float, ...] = ()
    cut: int = 0
    seconds: float | None = None
    new_tokens: int = 0


def answer(
    lm: LM,
    benchmark: Benchmark,
    items: Sequence[Item],
    *,
    engine: Engine | None,
    runtime: Runtime,
    seed: int,
    alone: bool,
    kept: Journal,
) -> dict[str, Answer]:
    """Return item id to answer.

    Args:
        lm: The model.
        benchmark: Says how items are scored.
        items: The items.
        engine: Set up and holding the model; None for classification.
        runtime: Device and progress.
        seed: Seed of generation.
        alone: Answer every item by itself and take its time.
        kept: Answers to go on from and to add to.
    """
    ask = _asker(lm, benchmark, engine, runtime, seed)
    size = 1 if alone else BLOCK
    with kept:
        missing = [item for item in items if item.id not in kept.known]
        starts = range(0, len(missing), size)
        for start in runtime.track(starts, "benchmark", len(starts)):
            block = missing[start : start + size]
            begin = time.perf_counter()
            found = ask(block)
            if alone:
                found = [attrs.evolve(found[0], seconds=time.perf_counter() - begin)]
            for item, one in zip(block, found, strict=True):
                kept.add(item.id, attrs.asdict(one))
        records = {item.id: kept.known[item.id] for item in items}
    return {key: Answer(**{**record, "logprobs": tuple(record["logprobs"])}) for key, record in records.items()}


def _asker(
    lm: LM, benchmark: Benchmark, engine: Engine | None, runtime: Runtime, seed: int
) -> Callable[[Sequence[Item]], list[Answer]]:
    if benchmark.scoring == "classification":
        return lambda block: _classify(lm, block, runtime)
    if engine is None:
        raise ConfigError([f"scoring by {benchmark.scoring} needs an engine"], "benchmark")
    ready = engine
    if benchmark.scoring == "loglikelihood":
        return lambda block: _prefer(lm, block, ready)
    return lambda block: _write(lm, benchmark, block, ready, runtime, seed)


def _choices(item: Item) -> tuple[str, ...]:
    if not item.choices:
        raise DataError(f"item {item.id!r} has no choices, and the benchmark scores choices.")
    return item.choices


def _prefer(lm: LM, block: Sequence[Item], engine: Engine) -> list[Answer]:
    pairs = [[continuation.encode(lm, item.context, choice) for choice in _choices(item)] for item in block]
    scored = iter(continuation.score(engine, [pair for several in pairs for pair in several]))
    answers = []
    for item, several in zip(block, pairs, strict=True):
        logprobs = tuple(math.fsum(next(scored)) for _ in several)
        answers.append(
            Answer(
                text=_choices(item)[logprobs.index(max(logprobs))],
                logprobs=logprobs,
                cut=max(pair.cut for pair in several),
                new_tokens=sum(len(pair.ids) for pair in several),
            )
        )
    return answers


def _write(
    lm: LM, benchmark: Benchmark, block: Sequence[Item], engine: Engine, runtime: Runtime, seed: int
) -> list[Answer]:
    from tunesmith.generation import generate

    limits = benchmark.limits
    written = generate(
        lm,
        [item.context for item in block],
        ids=[item.id for item in block],
        engine=engine,
        decoder="tunesmith/stepwise",  # whatever the model's generation config says
        sampler="tunesmith/greedy",
        max_new_tokens=limits.max_new_tokens,
        min_new_tokens=limits.min_new_tokens,
        stop=limits.stop,
        seed=seed,
        runtime=runtime,
    )
    positions = continuation.positions(lm)
    answers = []
    for item, completion in zip(block, written, strict=True):
        room = None if positions is None else positions - limits.max_new_tokens * (lm.family == "decoder")
        cut = 0 if room is None else max(0, len(lm.tokenizer.encode(item.context)) - room)
        answers.append(Answer(text=benchmark.extract(completion.text), cut=cut, new_tokens=len(completion.token_ids)))
    return answers


def _classify(lm: LM, block: Sequence[Item], runtime: Runtime) -> list[Answer]:
    found, _ = classification.probabilities(lm, [item.context for item in block], runtime)
    limit = continuation.positions(lm)
    answers = []
    for item, row in zip(block, found, strict=True):
        ordered = [row[place] for place in class_places(lm, _choices(item))]
        logprobs = tuple(math.log(max(p, 1e-300)) for p in ordered)
        cut = 0 if limit is None else max(0, len(lm.tokenizer.encode(item.context)) - limit)
        answers.append(Answer(text=_choices(item)[logprobs.index(max(logprobs))], logprobs=logprobs, cut=cut))
    return answers


def class_places(lm: LM, names: Sequence[str]) -> list[int]:
    """Return the model's class for each of a benchmark's labels: by name where the model has these names, else by place.

    Raises:
        ConfigError: If the model has other names and another number of classes.
    """
    own = {str(name).lower(): int(index) for name, index in (lm.model.config.label2id or {}).items()}
    plain = [name.strip().lower() for name in names]
    if all(name in own for name in plain):
        return [own[name] for name in plain]
    if int(lm.model.config.num_labels) != len(names):
        raise ConfigError(
            [f"the benchmark has {len(names)} labels ({', '.join(plain)}), the model {lm.model.config.num_labels}"],
            "benchmark",
        )
    return list(range(len(names)))


def spread(ids: Sequence[str], count: int) -> Iterator[str]:
    """Yield ``count`` of the ids, evenly spaced, so that few items still are of all parts of a benchmark; 0 means all."""
    if not count or count >= len(ids):
        yield from ids
        return
    for k in range(count):
        yield ids[k * len(ids) // count]

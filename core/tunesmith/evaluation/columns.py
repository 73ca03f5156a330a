"""Provide the columns that metrics need, from a model and examples.

Imported at run time only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from attrs import asdict, field, fields, frozen

from tunesmith.errors import ConfigError, DataError
from tunesmith.evaluation import classification
from tunesmith.evaluation.journal import journal
from tunesmith.evaluation.losses import token_losses
from tunesmith.kinds.decoder import Limits

if TYPE_CHECKING:
    from tunesmith.data.records import Example
    from tunesmith.kinds.decoder import Completion, DecoderConfig
    from tunesmith.kinds.engine import Engine, EngineConfig
    from tunesmith.kinds.sampler import SamplerConfig
    from tunesmith.lm import LM
    from tunesmith.runtime import Runtime

BENCHMARK_ONLY = frozenset({"choice_logprobs", "choice_lengths", "choice_grades"})
"""Columns that need items with choices, which only benchmarks have."""
BLOCK = 256
"""Prompts that are generated together; between two blocks an interruption loses nothing."""


class Generating(Protocol):
    """How text is generated; None means the built-in engine, decoder and sampler, ``"model"`` the generation config's."""

    @property
    def engine(self) -> EngineConfig | None: ...
    @property
    def decoder(self) -> DecoderConfig | Literal["model"] | None: ...
    @property
    def sampler(self) -> SamplerConfig | Literal["model"] | None: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def min_new_tokens(self) -> int: ...
    @property
    def stop(self) -> tuple[str, ...]: ...


@frozen(kw_only=True)
class Greedily:
    """The default way of generating: greedy, at most 64 new tokens."""

    engine: Any = None
    decoder: Any = None
    sampler: Any = None
    max_new_tokens: int = 64
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        # what cannot be is said before anything is read
        Limits(max_new_tokens=self.max_new_tokens, min_new_tokens=self.min_new_tokens, stop=self.stop)


@frozen(kw_only=True, eq=False)
class Columns:
    """What was found out about examples.

    Attributes:
        batch: Column to one entry an example.
        completions: What the model wrote, in the order of the examples; empty if no metric needs it.
        truncated: What was cut, to the number of examples that it was cut of.
    """

    batch: dict[str, list[Any]]
    completions: tuple[Completion, ...] = ()
    truncated: dict[str, int] = field(factory=dict)


def collect(
    lm: LM, examples: Sequence[Example], needs: frozenset[str], generation: Generating, runtime: Runtime, seed: int
) -> Columns:
    """Return the columns ``needs`` (and ``id`` and ``group``) of ``examples``.

    Latency is measured one prompt at a time, so that a number is about one request; the text is the same.

    Raises:
        ConfigError: If a column is one that only a benchmark can provide, or none that is known.
        DataError: If an example lacks what a column is made of; it names the example.
    """
    if needs & BENCHMARK_ONLY:
        raise ConfigError(
            [
                f"{', '.join(sorted(needs & BENCHMARK_ONLY))}: only a benchmark's items have choices; "
                "use a Benchmark stage for this metric"
            ],
            "evaluate",
        )
    batch = _known(lm, examples, needs)
    completions: tuple[Completion, ...] = ()
    truncated: dict[str, int] = {}
    if needs & {"prediction", "latency"}:
        completions, seconds = generate_timed(lm, examples, generation, runtime, seed, alone="latency" in needs)
        batch["prediction"] = [c.text for c in completions]
        if seconds:
            batch["latency"] = [
                {"seconds": s, "new_tokens": len(c.token_ids)} for s, c in zip(seconds, completions, strict=True)
            ]
        truncated["prompts"] = _too_long(lm, examples, generation)
    if "token_losses" in needs:
        engine = None if lm.family == "encoder" else ready_engine(lm, generation.engine, runtime)
        losses = token_losses(lm, examples, engine)
        batch["token_losses"] = list(losses.losses)
        truncated["texts with losses"] = losses.truncated
    if "probabilities" in needs:
        found, cut = classification.probabilities(lm, [e.prompt for e in examples], runtime)
        batch["probabilities"] = list(found)
        truncated["classified texts"] = cut
    unknown = sorted(needs - set(batch))
    if unknown:
        raise ConfigError([f"no column {name!r} is known" for name in unknown], "evaluate")
    return Columns(batch=batch, completions=completions, truncated={k: v for k, v in truncated.items() if v})


def of_texts(
    lm: LM, examples: Sequence[Example], completions: Sequence[Completion], needs: frozenset[str]
) -> dict[str, list[Any]]:
    """Return the columns ``needs`` of completions that were written before, one entry each.

    Where an example has several completions, its id gets the number of the stream and they are a group, since they are
    no independent evidence.

    Args:
        lm: The model that wrote them.
        examples: What they complete; ``completion.request`` is the place in it.
        completions: At least one.
        needs: Columns about texts, examples and labels.

    Raises:
        ConfigError: If a column is about the model, not about the text it wrote.
        DataError: If an example lacks what a column is made of; it names the example.
    """
    told = [examples[c.request] for c in completions]
    batch = _known(lm, told, needs)
    batch["prediction"] = [c.text for c in completions]
    if len({c.request for c in completions}) < len(completions):
        batch["group"] = [group or e.id for group, e in zip(batch["group"], told, strict=True)]
        batch["id"] = [f"{e.id}#{c.stream}" for e, c in zip(told, completions, strict=True)]
    unknown = sorted(needs - set(batch))
    if unknown:
        raise ConfigError(
            [f"{name}: nothing that a written text could tell; measure it by an Evaluate stage" for name in unknown],
            "metrics of texts",
        )
    return batch


def _known(lm: LM, examples: Sequence[Example], needs: frozenset[str]) -> dict[str, list[Any]]:
    """Return the columns that examples have without the model's doing."""
    batch: dict[str, list[Any]] = {
        "id": [e.id for e in examples],
        "group": [str(e.columns.get("group", "") or "") for e in examples],
        "source": [e.prompt for e in examples],
    }
    if "references" in needs:
        batch["references"] = [_references(e) for e in examples]
    if "label" in needs:
        batch["label"] = [_label(lm, e) for e in examples]
    return batch


def ready_engine(lm: LM, config: EngineConfig | None, runtime: Runtime) -> Engine:
    """Return an engine (None: ``tunesmith/transformers``) that is set up and holds the model."""
    from tunesmith.registry import engines

    engine: Engine = (config or engines.create("tunesmith/transformers")).build()
    engine.setup(runtime)
    engine.sync(lm)
    return engine


def generate_timed(
    lm: LM, examples: Sequence[Example], generation: Generating, runtime: Runtime, seed: int, *, alone: bool
) -> tuple[tuple[Completion, ...], list[float]]:
    """Return one completion an example, and with ``alone`` the seconds that each took by itself.

    With ``runtime.folder``, what was written before an interruption is kept.
    """
    from tunesmith.generation import generate

    engine = ready_engine(lm, generation.engine, runtime)
    how = [repr(getattr(generation, a.name)) for a in fields(Greedily)]
    size = 1 if alone else BLOCK
    with journal(lm, runtime, "generations", how, seed, alone) as kept:
        missing = [e for e in examples if kept.known.get(e.id, {}).get("prompt") != e.prompt]
        for start in range(0, len(missing), size):
            block = missing[start : start + size]
            begin = time.perf_counter()
            written = generate(
                lm,
                [e.prompt for e in block],
                ids=[e.id for e in block],
                engine=engine,
                decoder=generation.decoder,
                sampler=generation.sampler,
                max_new_tokens=generation.max_new_tokens,
                min_new_tokens=generation.min_new_tokens,
                stop=generation.stop,
                seed=seed,
                runtime=runtime,
            )
            seconds = time.perf_counter() - begin
            for example, completion in zip(block, written, strict=True):
                kept.add(example.id, {"prompt": example.prompt, "seconds": seconds, "completion": asdict(completion)})
        found = [kept.known[e.id] for e in examples]
    completions = tuple(_completion(place, record["completion"]) for place, record in enumerate(found))
    return completions, [float(record["seconds"]) for record in found] if alone else []


def _completion(place: int, record: dict[str, Any]) -> Completion:
    from tunesmith.kinds.decoder import Completion

    lists = {"token_ids": tuple(record["token_ids"]), "logp": tuple(record["logp"])}
    return Completion(**{**record, **lists, "request": place})


def _references(example: Example) -> tuple[str, ...]:
    if not example.targets:
        raise DataError(f"example {example.id!r} has no reference; give the data a target template.")
    return example.targets


def _label(lm: LM, example: Example) -> Any:
    label = example.columns["label"] if "label" in example.columns else (example.targets or (None,))[0]
    if label is None:
        raise DataError(f"example {example.id!r} has neither a field 'label' nor a target that could be its label.")
    return (
        classification.class_number(lm, label, f"example {example.id!r}") if classification.is_classifier(lm) else label
    )


def _too_long(lm: LM, examples: Sequence[Example], generation: Generating) -> int:
    """Return how many prompts do not fit into the model together with the new tokens."""
    from tunesmith.continuation import positions

    limit = positions(lm)
    if limit is None:
        return 0
    room = limit - (generation.max_new_tokens if lm.family == "decoder" else 0)
    return sum(len(lm.tokenizer.encode(e.prompt)) > room for e in examples)

"""The stage that writes completions with several samplers side by side."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from attrs import asdict, frozen

from tunesmith import generation, manifest
from tunesmith.data import Example, load_examples
from tunesmith.evaluation import Evaluation, evaluate_texts, write_completions
from tunesmith.kinds.decoder import Completion
from tunesmith.kinds.engine import Engine
from tunesmith.kinds.sampler import SamplerConfig
from tunesmith.kinds.stage import Stage, StageContext
from tunesmith.lm import LM, load
from tunesmith.report.content import Content, Samples, Table
from tunesmith.runtime import derive_seed
from tunesmith_plugins.stages import side_by_side
from tunesmith_plugins.stages.needs import data_to, model_to
from tunesmith_plugins.stages.side_by_side import Compared, Evaluations

logger = logging.getLogger("tunesmith.stages.generate")

SHOWN = 8
"""Prompts whose completions are shown in the report."""


@frozen(kw_only=True)
class _Written:
    """What one sampler wrote."""

    label: str
    completions: list[Completion]
    seconds: float
    cut: int


class GenerateStage(Stage):
    """Write completions of a split's prompts. All samplers get the same prompts and the same seeds."""

    def run(self, context: StageContext) -> dict[str, Any]:
        """See :meth:`tunesmith.kinds.stage.Stage.run`. Samplers that were finished before an interruption are kept."""
        config = self.config
        data = data_to("take prompts from", self, context)
        lm = load(model_to("write with", context), runtime=context.runtime)
        examples = load_examples(data, config.split, context.runtime, items=config.items, tokenizer=lm.tokenizer)
        engine: Engine = generation.component(config.generation.engine, "engine")
        engine.setup(context.runtime)
        samplers = config.samplers or {"sampler": config.generation.sampler}
        written = [
            self._write(context, lm, engine, examples, context.folder / f"written-{number}.json", label, sampler)
            for number, (label, sampler) in enumerate(samplers.items())
        ]
        folder = context.artifact("generations")
        write_completions(folder, ((w.label, examples[c.request], c) for w in written for c in w.completions))
        _report(context.name, written, examples).write(folder)
        evaluations = self._evaluations(context, lm, written, examples)
        labels = list(evaluations)
        compared = side_by_side.compare(evaluations, [(label, labels[0]) for label in labels[1:]])
        scores = context.artifact("scores")
        side_by_side.write(scores, evaluations, compared)
        told = _told(evaluations, compared)
        told.write(scores)
        return {
            "prompts": len(examples),
            "completions": sum(len(w.completions) for w in written),
            "cut_prompts": max((w.cut for w in written), default=0),
            "samplers": {w.label: _numbers(w) for w in written},
            "scores": {
                label: {name: result.main.as_json()["value"] for name, result in evaluation.results.items()}
                for label, evaluation in evaluations.items()
            },
            "verdicts": list(told.verdicts),
        }

    def _evaluations(
        self, context: StageContext, lm: LM, written: list[_Written], examples: list[Example]
    ) -> dict[str, Evaluation]:
        if not self.config.metrics:
            return {}
        runtime = context.runtime
        return {
            one.label: evaluate_texts(
                lm, examples, one.completions, self.config.metrics, runtime=runtime, seed=runtime.seed
            )
            for one in written
        }

    def _write(
        self,
        context: StageContext,
        lm: LM,
        engine: Engine,
        examples: list[Example],
        done: Path,
        label: str,
        sampler: SamplerConfig | Literal["model"] | None,
    ) -> _Written:
        if done.is_file():
            return _read(done, label)
        how = self.config.generation
        before = getattr(engine, "truncated", 0)
        start = time.perf_counter()
        completions = generation.generate(
            lm,
            [example.prompt for example in examples],
            ids=[example.id for example in examples],
            engine=engine,
            decoder=how.decoder,
            sampler=sampler,
            max_new_tokens=how.max_new_tokens,
            min_new_tokens=how.min_new_tokens,
            stop=how.stop,
            seed=derive_seed(context.runtime.seed, "generate"),
            completions=self.config.completions,
            runtime=context.runtime,
        )
        seconds = time.perf_counter() - start
        written = _Written(
            label=label, completions=completions, seconds=seconds, cut=getattr(engine, "truncated", 0) - before
        )
        _keep(done, written)
        return written


def _keep(path: Path, written: _Written) -> None:
    """Write what a sampler wrote so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {**asdict(written), "completions": [asdict(c) for c in written.completions]}
    manifest.write_text(path, json.dumps(record, ensure_ascii=False))


def _read(path: Path, label: str) -> _Written:
    record = json.loads(path.read_text(encoding="utf-8"))
    completions = [
        Completion(**{**c, "token_ids": tuple(c["token_ids"]), "logp": tuple(c["logp"])}) for c in record["completions"]
    ]
    return _Written(label=label, completions=completions, seconds=record["seconds"], cut=record["cut"])


def _numbers(written: _Written) -> dict[str, float | None]:
    """Return what is said of one sampler; None where there is nothing to count."""
    completions = written.completions
    tokens = [token for c in completions for token in c.token_ids]
    logp = [value for c in completions for value in c.logp]
    pairs = [pair for c in completions for pair in zip(c.token_ids, c.token_ids[1:], strict=False)]
    return {
        "mean_length": fmean(len(c.token_ids) for c in completions) if completions else None,
        "distinct_texts": len({c.text for c in completions}) / len(completions) if completions else None,
        "distinct_bigrams": len(set(pairs)) / len(pairs) if pairs else None,
        "mean_logp": fmean(logp) if logp else None,
        "tokens_per_second": len(tokens) / written.seconds if written.seconds > 0 else None,
    }


def _report(name: str, written: list[_Written], examples: list[Example]) -> Content:
    numbers = [(w.label, _numbers(w)) for w in written]
    table = Table(
        title=f"{name}: samplers",
        columns=("sampler", "mean length", "distinct texts", "distinct bigrams", "mean log-probability", "tokens/s"),
        rows=tuple(
            (
                label,
                n["mean_length"],
                n["distinct_texts"],
                n["distinct_bigrams"],
                n["mean_logp"],
                n["tokens_per_second"],
            )
            for label, n in numbers
        ),
        note="Length in tokens. Distinct: different ones as a share of all. Log-probability: mean over tokens, in nats, "
        "after temperature and penalties. Tokens per second include reading the prompts.",
    )
    cut = max((w.cut for w in written), default=0)
    verdicts = (f"{cut} of {len(examples)} prompts were longer than the model allows and were cut.",) if cut else ()
    return Content(verdicts=verdicts, tables=(table,), samples=(_samples(name, written, examples),))


def _told(evaluations: Evaluations, compared: Compared) -> Content:
    if not evaluations:
        return Content()
    return Content(
        verdicts=side_by_side.verdicts(evaluations, compared),
        tables=tuple(side_by_side.tables(evaluations, compared, "sampler")),
    )


def _samples(name: str, written: list[_Written], examples: list[Example]) -> Samples:
    rows = []
    for place, example in enumerate(examples[:SHOWN]):
        row = {"prompt": example.prompt}
        for one in written:
            row[one.label] = next((c.text for c in one.completions if c.request == place), "")
        if example.targets:
            row["reference"] = example.targets[0]
        rows.append(row)
    labels = [w.label for w in written]
    columns = ["prompt", *labels, *(["reference"] if any("reference" in row for row in rows) else [])]
    return Samples(title=f"{name}: completions", columns=tuple(columns), rows=tuple(rows))

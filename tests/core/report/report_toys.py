"""A run that shows everything a report can hold, made of stages that only write what they are told."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from attrs import evolve, field, frozen

import tunesmith as ts
from tunesmith.kinds.stage import Stage, StageConfig
from tunesmith.report.content import Content, Point, Samples, Scatter, Series, Table


@frozen(kw_only=True)
class Measured(StageConfig):
    """An evaluation that gives these scores."""

    impl: ClassVar[str] = "report_toys:MeasuredStage"
    produces: ClassVar[Mapping[str, str]] = {"scores": "scores"}
    rouge: float = 0.2
    verdict: str = ""


@frozen(kw_only=True)
class Learned(StageConfig):
    """A training with curves."""

    impl: ClassVar[str] = "report_toys:LearnedStage"
    produces: ClassVar[Mapping[str, str]] = {"model": "model", "report": "report"}
    steps: int = 40
    reinforcement: bool = False


@frozen(kw_only=True)
class Written(StageConfig):
    """Generations of two samplers."""

    impl: ClassVar[str] = "report_toys:WrittenStage"
    produces: ClassVar[Mapping[str, str]] = {"generations": "generations"}


@frozen(kw_only=True)
class Shrunk(StageConfig):
    """A compression with a scatter plot."""

    impl: ClassVar[str] = "report_toys:ShrunkStage"
    produces: ClassVar[Mapping[str, str]] = {"model": "model", "report": "report"}


@frozen(kw_only=True)
class Several(StageConfig):
    """Branches and a table over them."""

    impl: ClassVar[str] = "report_toys:SeveralStage"
    produces: ClassVar[Mapping[str, str]] = {"scores": "scores"}
    branches: dict[str, StageConfig] = field(factory=dict)

    def expand(self) -> tuple[StageConfig, ...]:
        return tuple(evolve(stage, name=key, start=self.start) for key, stage in self.branches.items())


@frozen(kw_only=True)
class Hostile(StageConfig):
    """Texts that would break a page which trusts them."""

    impl: ClassVar[str] = "report_toys:HostileStage"
    produces: ClassVar[Mapping[str, str]] = {"report": "report"}
    text: str


def register() -> None:
    for cls in (Measured, Learned, Written, Shrunk, Several, Hostile):
        ts.stages.register(f"shown_{cls.__name__.lower()}", cls)


def interval(value: float, width: float = 0.03) -> dict[str, float]:
    return {"value": value, "low": value - width, "high": value + width}


def record(name: str, value: float, **more: Any) -> dict[str, Any]:
    scores = {"rouge1": interval(value), "rouge2": interval(value / 2, 0.02), "rougeL": interval(value * 0.8)}
    return {"name": name, "signature": "rouge|v1", "n": 200, "scores": scores, "versus": None, **more}


def bleu(name: str, value: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "signature": "bleu|v1",
        "n": 200,
        "scores": {"bleu": interval(value, 2.1)},
        "versus": None,
        **more,
    }


PROMPTS = (
    "Summarize the following conversation.\n\nAnna: Are you coming to the lake on Saturday?\nBen: If it does not rain. "
    "I still have to fix the bike.\nAnna: I can take you in the car.\nBen: Perfect, thank you!\n\nSummary: ",
    "Summarize the following conversation.\n\nClara: The meeting is moved to four.\nDan: Again? Fine, I will tell "
    "the others.\n\nSummary: ",
    "Summarize the following conversation.\n\nEve: Did you feed the cat?\nFinn: Twice, she asked so nicely.\n\nSummary: ",
    "Summarize the following conversation.\n\nGina: The printer is broken.\nHugo: It is always broken.\n\nSummary: ",
)


class MeasuredStage(Stage):
    def run(self, context):
        folder = context.artifact("scores")
        value = self.config.rouge
        (folder / "scores.json").write_text(json.dumps([record("rouge", value), bleu("bleu", value * 50)]))
        rows = [("rouge", name, s, 200) for name, s in record("rouge", value)["scores"].items()]
        rows.append(("bleu", "bleu", interval(value * 50, 2.1), 200))
        note = "95% bootstrap intervals over examples. rouge: rouge|v1. bleu: bleu|v1."
        table = Table(title="Scores", columns=("metric", "score", "value", "n"), rows=tuple(rows), note=note)
        verdicts = (self.config.verdict,) if self.config.verdict else ()
        Content(verdicts=verdicts, tables=(table,)).write(folder)
        return {"rouge1": value}


class LearnedStage(Stage):
    def run(self, context):
        (context.artifact("model") / "weights").write_text("w")
        noise, steps = random.Random(1), self.config.steps
        x = tuple(float(step + 1) for step in range(steps))
        if self.config.reinforcement:
            reward = tuple(2.4 * (1 - math.exp(-step / 60)) - 0.6 + noise.gauss(0, 0.35) for step in range(steps))
            kl = tuple(6 * (1 - math.exp(-step / 90)) + noise.gauss(0, 0.4) for step in range(steps))
            curves = (
                Series(title="Reward", x_label="step", x=x, y={"mean reward": reward}, y_label="logit of 'polite'"),
                Series(title="KL to the reference", x_label="step", x=x, y={"KL": kl}, y_label="nats a completion"),
            )
            samples = Samples(
                title="Before and after",
                columns=("prompt", "before", "after"),
                rows=tuple(
                    {
                        "prompt": p,
                        "before": "He says it is broken, you fool.",
                        "after": "He kindly says that it is broken.",
                    }
                    for p in PROMPTS
                ),
            )
            verdict = "The reward rose from -0.58 to 1.79 at a KL of 5.9 nats a completion."
            Content(verdicts=(verdict,), series=curves, samples=(samples,)).write(context.artifact("report"))
            return {"reward": 1.79, "kl": 5.9}
        loss = tuple(4 * math.exp(-step / 12) + 1.2 + noise.gauss(0, 0.05) for step in range(steps))
        validation = tuple(value + 0.15 if step % 10 == 9 else None for step, value in enumerate(loss))
        curve = Series(
            title="Loss", x_label="step", x=x, y={"training": loss, "validation": validation}, y_label="nats a token"
        )
        table = Table(
            title="Training",
            columns=("", "value"),
            rows=(("trainable parameters", 12288), ("median step, seconds", 0.0421)),
        )
        Content(
            verdicts=("12,288 of 640,000 parameters (1.92%) were trained.",), tables=(table,), series=(curve,)
        ).write(context.artifact("report"))
        return {"trainable_parameters": 12288, "median_step_seconds": 0.0421, "peak_memory_bytes": 412_000_000}


class WrittenStage(Stage):
    def run(self, context):
        lines = []
        for number, prompt in enumerate(PROMPTS):
            for sampler, text in (
                ("greedy", "Anna drives Ben to the lake."),
                ("top_p", "Ben and a car, and the lake!"),
            ):
                lines.append(
                    json.dumps({"id": str(number), "prompt": prompt, "sampler": sampler, "stream": 0, "text": text})
                )
        (context.artifact("generations") / "generations.jsonl").write_text("\n".join(lines) + "\n")
        return {}


class ShrunkStage(Stage):
    def run(self, context):
        (context.artifact("model") / "weights").write_text("w")
        points = (
            Point(label="full", x=2.6e6, y=0.41, y_low=0.38, y_high=0.44),
            Point(label="int8", x=0.8e6, y=0.40, y_low=0.37, y_high=0.43),
            Point(label="50 % pruned", x=1.4e6, y=0.36, y_low=0.33, y_high=0.39),
            Point(label="distilled", x=0.6e6, y=0.33, y_low=0.30, y_high=0.36),
        )
        Content(
            verdicts=("int8 is 3.3 times smaller on disk, and at this size 1.4 times slower.",),
            scatters=(
                Scatter(title="Quality against size", x_label="bytes on disk", y_label="ROUGE-1", points=points),
            ),
        ).write(context.artifact("report"))
        return {"bytes": 800_000}


class SeveralStage(Stage):
    def run(self, context):
        folder = context.artifact("scores")
        values = {"start": 0.21, "full": 0.41, "lora": 0.4}
        (folder / "scores.json").write_text(
            json.dumps(
                [record(f"{of}.rouge", value, metric="rouge", of=of) for of, value in values.items()]
                + [bleu(f"{of}.bleu", value * 50, metric="bleu", of=of) for of, value in values.items()]
            )
        )
        rows = tuple(
            (of, interval(v), interval(v * 50, 2.1), 640000 if of == "full" else 12288) for of, v in values.items()
        )
        table = Table(title="Branches", columns=("model", "rouge1", "bleu", "trainable parameters"), rows=rows)
        Content(
            verdicts=(
                "lora, rouge1: no effect seen against full: -0.0100 [-0.0310, 0.0110], p = 0.38, n = 200.",
                "full, rouge1: better than the start by 0.2000 [0.1700, 0.2300], p = 0.0001, n = 200.",
            ),
            tables=(table,),
        ).write(folder)
        return {}


class HostileStage(Stage):
    def run(self, context):
        text = self.config.text
        Content(
            verdicts=(text,),
            tables=(
                Table(title=text, columns=(text, "b"), rows=((text, interval(1.0)), (text, interval(2.0))), note=text),
            ),
            series=(
                Series(title=text, x_label=text, y_label=text, x=(1.0, 2.0), y={text: (1.0, None), "b": (2.0, 3.0)}),
            ),
            scatters=(Scatter(title=text, x_label=text, y_label=text, points=(Point(label=text, x=1.0, y=2.0),)),),
            samples=(Samples(title=text, columns=(text,), rows=({text: text},)),),
        ).write(context.artifact("report"))
        return {"text": text}


def course(folder: Path) -> ts.Run:
    """Run a pipeline that looks like the course."""
    pipeline = ts.Pipeline(
        base="starter/tiny-dialogue-model",
        stages=(
            Measured(name="zero-shot", rouge=0.21),
            Written(name="samplers"),
            Several(name="tuned", branches={"full": Learned(), "lora": Learned(steps=30)}),
            Learned(name="polite", start=ts.output("tuned", "lora"), steps=200, reinforcement=True),
            Shrunk(name="small"),
            Measured(
                name="final",
                rouge=0.395,
                verdict="final, rouge1: better than zero-shot by 0.1850 [0.1520, 0.2180], p = 0.0001, n = 200.",
            ),
        ),
    )
    return pipeline.run(folder, progress=False)

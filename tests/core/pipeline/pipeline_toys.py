"""Tiny stages that behave like real ones: they read, write, train with checkpoints, sample, fail."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from attrs import field, frozen

import tunesmith as ts
from tunesmith.checkpoints import Checkpoints, load_random, load_tree, save_random, save_tree
from tunesmith.kinds.reward_model import RewardModelConfig
from tunesmith.kinds.stage import Output, Stage, StageConfig, StageContext
from tunesmith.report.content import Content, Series


@frozen(kw_only=True)
class Number(StageConfig):
    """A model that is a number: ``value`` added to the one it starts from."""

    impl: ClassVar[str] = "pipeline_toys:NumberStage"
    produces: ClassVar[Mapping[str, str]] = {"model": "model"}
    value: int = 1


@frozen(kw_only=True)
class Source(StageConfig):
    """A reward model out of nothing."""

    impl: ClassVar[str] = "pipeline_toys:SourceStage"
    produces: ClassVar[Mapping[str, str]] = {"reward_model": "reward_model"}
    uses_model: ClassVar[bool] = False
    uses_data: ClassVar[bool] = False


@frozen(kw_only=True)
class Records(StageConfig):
    """A data set."""

    impl: ClassVar[str] = "pipeline_toys:RecordsStage"
    produces: ClassVar[Mapping[str, str]] = {"dataset": "dataset"}
    uses_model: ClassVar[bool] = False
    uses_data: ClassVar[bool] = False


@frozen(kw_only=True)
class Chosen(RewardModelConfig):
    """A component with a component and a file inside."""

    impl: ClassVar[str] = "pipeline_toys:Unused"
    file: str = ""
    weight: float = 1.0
    inner: RewardModelConfig | Output | None = None


@frozen(kw_only=True)
class Coded(RewardModelConfig):
    """A component that runs code from a file."""

    impl: ClassVar[str] = "pipeline_toys:Unused"
    target: str

    def code_digest(self) -> str:
        return hashlib.sha256(Path(self.target).read_bytes()).hexdigest()


@frozen(kw_only=True)
class Rewarded(StageConfig):
    """Looks at its inputs and says what it was given."""

    impl: ClassVar[str] = "pipeline_toys:RewardedStage"
    produces: ClassVar[Mapping[str, str]] = {"report": "report"}
    reward: RewardModelConfig | Output | None = None
    several: tuple[RewardModelConfig | Output, ...] = ()
    data: ts.Data | None = None
    mix: dict[str, ts.Data] = field(factory=dict)


@frozen(kw_only=True)
class Misbehaving(StageConfig):
    """Does what stages must not do."""

    impl: ClassVar[str] = "pipeline_toys:MisbehavingStage"
    produces: ClassVar[Mapping[str, str]] = {"model": "model"}
    how: str = "raise"
    once: bool = False


@frozen(kw_only=True)
class Bytes(StageConfig):
    """A model of so many bytes."""

    impl: ClassVar[str] = "pipeline_toys:BytesStage"
    produces: ClassVar[Mapping[str, str]] = {"model": "model"}
    count: int = 1


@frozen(kw_only=True)
class Slow(StageConfig):
    """Waits, and says so first."""

    impl: ClassVar[str] = "pipeline_toys:SlowStage"
    produces: ClassVar[Mapping[str, str]] = {"model": "model"}
    seconds: float = 60.0


@frozen(kw_only=True)
class Train(StageConfig):
    """Train a small network with dropout and AdamW, a checkpoint every few steps."""

    impl: ClassVar[str] = "pipeline_toys:TrainStage"
    produces: ClassVar[Mapping[str, str]] = {"model": "model", "report": "report"}
    steps: int = 24
    every: int = 4


@frozen(kw_only=True)
class Reinforce(StageConfig):
    """Improve a policy over ten answers by its own samples, with a generator of its own and torch's global one."""

    impl: ClassVar[str] = "pipeline_toys:ReinforceStage"
    produces: ClassVar[Mapping[str, str]] = {"model": "model", "report": "report"}
    steps: int = 24
    every: int = 4


@frozen(kw_only=True)
class Fork(StageConfig):
    """A stage of several, like Compare."""

    impl: ClassVar[str] = "pipeline_toys:ForkStage"
    produces: ClassVar[Mapping[str, str]] = {"report": "report"}
    branches: dict[str, StageConfig] = field(factory=dict)

    def expand(self) -> tuple[StageConfig, ...]:
        from attrs import evolve

        return tuple(
            evolve(stage, name=key, start=self.start if stage.start == "previous" else stage.start)
            for key, stage in self.branches.items()
        )


def register() -> None:
    """Register everything above, as a notebook would."""
    for cls in (Number, Source, Records, Rewarded, Misbehaving, Bytes, Slow, Train, Reinforce, Fork):
        ts.stages.register(cls.__name__.lower(), cls)
    for cls in (Chosen, Coded):
        ts.reward_models.register(cls.__name__.lower(), cls)


class _Noted(Stage):
    def run(self, context: StageContext) -> dict[str, Any]:
        if "TOYS_CALLS" in os.environ:
            with open(os.environ["TOYS_CALLS"], "a") as stream:
                stream.write(f"{context.name}\n")
        return self.work(context)

    def work(self, context: StageContext) -> dict[str, Any]:
        raise NotImplementedError


class NumberStage(_Noted):
    def work(self, context):
        value = self.config.value
        before = Path(context.start, "value") if context.start else None
        if before is not None and before.exists():
            value += int(before.read_text())
        (context.artifact("model") / "value").write_text(str(value))
        return {"value": value, "seed": context.runtime.seed}


class SourceStage(_Noted):
    def work(self, context):
        (context.artifact("reward_model") / "reward").write_text("1")
        return {"start": context.start, "data": context.data is not None}


class RecordsStage(_Noted):
    def work(self, context):
        (context.artifact("dataset") / "train.jsonl").write_text(json.dumps({"text": "one"}) + "\n")
        return {}


class RewardedStage(_Noted):
    def work(self, context):
        (context.artifact("report") / "seen").write_text("x")
        return {
            "inputs": {
                path: (folder / "reward").read_text()
                for path, folder in context.inputs.items()
                if not path.endswith("source")
            },
            "source": None if context.data is None else context.data.source,
            "own": None if self.config.data is None else self.config.data.source,
            "mix": {label: data.source for label, data in self.config.mix.items()},
            "start": context.start,
        }


class MisbehavingStage(_Noted):
    def work(self, context):
        marker = context.folder / "marker"
        if self.config.once and marker.exists():
            (context.artifact("model") / "value").write_text("1")
            return {"second": True}
        marker.write_text("here")
        how = self.config.how
        if how == "raise":
            raise ValueError("the toy broke")
        if how != "nothing":
            (context.artifact("model") / "value").write_text("1")
        if how == "extra":
            (context.out / "loose.txt").write_text("x")
        if how == "link":
            (context.artifact("model") / "link").symlink_to("/etc/hostname")
        return {"x": float("nan")} if how == "nan" else {}


class BytesStage(_Noted):
    def work(self, context):
        with (context.artifact("model") / "bytes").open("wb") as stream:
            for _ in range(self.config.count // 65536 + 1):
                stream.write(b"\1" * min(65536, self.config.count))
        return {}


class SlowStage(_Noted):
    def work(self, context):
        (context.folder / "kept").write_text("x")
        time.sleep(self.config.seconds)
        (context.artifact("model") / "value").write_text("1")
        return {}


class ForkStage(_Noted):
    def work(self, context):
        (context.artifact("report") / "inputs").write_text("\n".join(sorted(context.inputs)))
        return {"inputs": sorted(context.inputs)}


class _Trained(_Noted):
    """A training loop as a real stage would write it; the subclasses say what a step is."""

    def work(self, context):
        import torch
        from safetensors.torch import load_file, save_file

        model = self.model()
        if context.start and Path(context.start, "weights.safetensors").exists():
            model.load_state_dict(load_file(Path(context.start, "weights.safetensors")))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        losses: list[float] = []
        step = 0
        checkpoints = Checkpoints(context.folder)
        found = checkpoints.newest()
        if found is not None:
            step = found.step
            model.load_state_dict(load_file(found.folder / "weights.safetensors"))
            state = load_tree(found.folder, "state")
            optimizer.load_state_dict(state["optimizer"])
            losses = list(state["losses"])
            load_random(found.folder)

        def write(folder: Path) -> None:
            save_file(model.state_dict(), folder / "weights.safetensors")
            time.sleep(0.01)  # so that a kill can fall into the writing
            save_tree(folder, "state", {"optimizer": optimizer.state_dict(), "losses": losses})
            time.sleep(0.01)
            save_random(folder)

        while step < self.config.steps:
            optimizer.zero_grad()
            loss = self.loss(model)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
            time.sleep(0.005)
            if step % self.config.every == 0:
                checkpoints.save(step, write)
        save_file(model.state_dict(), context.artifact("model") / "weights.safetensors")
        series = Series(title="loss", x_label="step", x=tuple(range(step)), y={"loss": tuple(losses)})
        Content(series=(series,)).write(context.artifact("report"))
        return {"last": losses[-1], "resumed_at": found.step if found else 0}


class TrainStage(_Trained):
    def model(self):
        import torch

        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def loss(self, model):
        import torch

        x = torch.randn(16, 4)
        return ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()


class ReinforceStage(_Trained):
    def model(self):
        import torch

        return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def loss(self, model):
        import random

        import numpy as np
        import torch

        # all three global generators take part, since a resumed run has to restore each of them
        answers = torch.randn(8, 10, 4) + float(np.random.rand()) + random.random()
        logits = torch.log_softmax(model(answers).squeeze(-1), -1)
        chosen = torch.multinomial(logits.exp().detach(), 1)
        reward = answers.gather(1, chosen[..., None].expand(-1, -1, 4)).sum((1, 2))
        return -(logits.gather(1, chosen).squeeze(1) * (reward - reward.mean())).mean()


def training_pipeline(root: Path) -> ts.Pipeline:
    """A pipeline with training and RL stages; needs no files."""
    return ts.Pipeline(
        seed=3,
        base="no-such-model",
        stages=(
            Train(name="tune"),
            Reinforce(name="align"),
            Number(name="after", start=ts.output("align")),
        ),
    )


def run_factory(target: str, root: str, folder: str) -> None:
    """Run the pipeline that ``"module:function"`` makes of ``root``. For processes that tests start."""
    import gc
    import importlib

    gc.freeze()  # each stage ends in a collection, which need not go through all modules (and copy what a fork shares)
    register()
    module, _, function = target.partition(":")
    getattr(importlib.import_module(module), function)(Path(root)).run(folder, threads=1, progress=False)

"""What test_sharding.py runs, alone and under ``accelerate launch``: ``in_pieces.py RESULTS``.

Everything that trains in pieces is trained for four steps on four rows a step, however many processes share them, and taken up
again from its second step.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import state
from accelerate.utils import DistributedType

from tunesmith.data import Data
from tunesmith.data.records import Example, Preference
from tunesmith.kinds.stage import StageContext
from tunesmith.processes import is_main, world_size
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith.training.callbacks import StepTimes
from tunesmith_plugins.adapters import LoRA, Prefix
from tunesmith_plugins.compressors import Distill
from tunesmith_plugins.reward_models import Pairwise
from tunesmith_plugins.stages import FineTune

ROWS = [
    ("the cat", "runs"),
    ("a dog", "sees a bird"),
    ("good", "bad bird"),
    ("yes", "no"),
    ("red fish", "eats"),
    ("tree", "house"),
]
SIZE = 4 // world_size()
ADAM = {
    "adam_epsilon": 1e-3,
    "save_steps": 2,
}  # with the usual one, rounding decides which way a weight without gradient goes


def on_cpus() -> None:
    """Let accelerate use FSDP and DeepSpeed on CPUs too. It looks at the kind of device first; what it does then works there."""
    made = state.AcceleratorState.__init__

    def init(self: Any, *given: Any, fsdp_plugin: Any = None, deepspeed_plugin: Any = None, **options: Any) -> None:
        made(self, *given, fsdp_plugin=fsdp_plugin, deepspeed_plugin=deepspeed_plugin, **options)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
        elif deepspeed_plugin is not None:
            self.distributed_type, self._mixed_precision = DistributedType.DEEPSPEED, "no"
            self.deepspeed_plugins = deepspeed_plugin
            for plugin in deepspeed_plugin.values() if isinstance(deepspeed_plugin, dict) else [deepspeed_plugin]:
                plugin.set_mixed_precision("no")
                plugin.select(_from_accelerator_state=True)
        state.PartialState._shared_state["distributed_type"] = self.distributed_type

    state.AcceleratorState.__init__ = init


STEPS: list[int] = []
"""Those of the latest training, by their numbers."""


def count_steps() -> None:
    """Have every optimizer step of this process noted."""
    ends = StepTimes.on_step_end

    def on_step_end(self: Any, args: Any, trained: Any, control: Any, **given: Any) -> None:
        STEPS.append(trained.global_step)
        ends(self, args, trained, control, **given)

    StepTimes.on_step_end = on_step_end


def tune(folder: Path, work: Path, out: Path, runtime: Runtime, adapter: Any = None) -> None:
    stage = FineTune(
        name="tuned",
        adapter=adapter,
        data=Data(source=str(folder.parent / "rows.jsonl"), prompt="{x} ", target="{y}"),
        steps=4,
        batch_size=SIZE,
        learning_rate=1e-2,
        validation="train",
        arguments=ADAM,
    )
    start = str(folder.parent / "start")
    context = StageContext(name="t", start=start, data=stage.data, inputs={}, folder=work, out=out, runtime=runtime)
    stage.build().run(context)


def distil(folder: Path, work: Path, out: Path, runtime: Runtime) -> None:
    examples = [Example(id=str(n), prompt=f"{x} ", targets=(y,)) for n, (x, y) in enumerate(ROWS)]
    rule = Distill(steps=4, batch_size=SIZE, learning_rate=1e-2, validation=0.5, arguments=ADAM)
    student, _ = rule.build().compress(tiny_lm("decoder"), data=examples, runtime=runtime)
    if is_main():
        student.save(out / "student")


def prefer(folder: Path, work: Path, out: Path, runtime: Runtime) -> None:
    pairs = [Preference(id=str(n), prompt=f"{x} ", chosen=y, rejected="bad sad") for n, (x, y) in enumerate(ROWS)]
    config = Pairwise(
        model=str(folder.parent / "start"),
        steps=4,
        batch_size=SIZE,
        learning_rate=1e-2,
        checkpoint_every=2,
        arguments={"adam_epsilon": 1e-3},
    )
    model = config.build()
    model.setup(runtime)
    model.fit(pairs, runtime)
    if is_main():
        model.save(out / "reward")


KINDS: dict[str, Callable[..., None]] = {
    "full": tune,
    "lora": lambda *given: tune(*given, adapter=LoRA(rank=2)),
    "prefix": lambda *given: tune(*given, adapter=Prefix(tokens=2)),
    "distilled": distil,
    "reward": prefer,
}


def main(folder: Path) -> None:
    count_steps()
    if world_size() > 1:
        on_cpus()
    for name, kind in KINDS.items():
        work = folder / "work" / name
        runtime = Runtime(folder=work, seed=1, threads=1, progress=False)
        for result in (name, f"{name} again"):
            work.mkdir(parents=True, exist_ok=True)
            (folder / result).mkdir(exist_ok=True)
            STEPS.clear()
            kind(folder, work, folder / result, runtime)
            assert len(STEPS) == (2 if result.endswith("again") else 4), f"{result}: {len(STEPS)} steps"
            if world_size() > 1:
                state.PartialState().wait_for_everyone()
            if is_main():
                for newest in list(work.rglob("checkpoint-4")):
                    shutil.rmtree(newest)
            if world_size() > 1:
                state.PartialState().wait_for_everyone()


if __name__ == "__main__":
    where = Path(sys.argv[1])
    if is_main() and world_size() == 1:
        tiny_lm("decoder").save(where.parent / "start")
        (where.parent / "rows.jsonl").write_text("".join(json.dumps({"x": x, "y": y}) + "\n" for x, y in ROWS))
    main(where)

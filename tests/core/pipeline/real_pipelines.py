"""Pipelines of the standard stages on tiny models, for the tests that kill them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import tunesmith as ts
from tunesmith.reward_gate import Gate
from tunesmith_plugins.adapters import LoRA
from tunesmith_plugins.compressors import Distill
from tunesmith_plugins.metrics import TokenF1
from tunesmith_plugins.reward_models import Pairwise
from tunesmith_plugins.rl_algorithms import PPO
from tunesmith_plugins.stages import Align, Compare, Compress, Evaluate, FineTune, Generation, TrainReward


def course(root: Path) -> ts.Pipeline:
    """Fine-tuning of all weights and of an adapter, a reward model, distillation, PPO and an evaluation.

    Args:
        root: Models and data are made in its folder ``given``, once.
    """
    given = root / "given"
    if not given.exists():
        _make(given)
    short = Generation(max_new_tokens=6)
    training = {"batch_size": 4, "learning_rate": 5e-3, "arguments": {"save_steps": 3, "logging_steps": 1}}
    return ts.Pipeline(
        base=str(given / "model"),
        data=ts.Data(source=str(given / "data"), prompt="{x} ?", target="{y}"),
        seed=5,
        stages=(
            Compare(
                name="tuned",
                branches={"full": FineTune(steps=9, **training), "lora": FineTune(steps=9, adapter=LoRA(), **training)},
                metrics=(TokenF1(),),
                generation=short,
                items=6,
            ),
            TrainReward(
                name="reward",
                reward=Pairwise(
                    model=str(given / "encoder"), steps=9, batch_size=4, checkpoint_every=3, template="{completion}"
                ),
                preferences=str(given / "pairs.jsonl"),
            ),
            Compress(
                name="smaller",
                start=ts.output("tuned", "full"),
                compressor=Distill(
                    steps=9, batch_size=4, learning_rate=5e-3, max_length=16, arguments={"save_steps": 3}
                ),
            ),
            Align(
                name="aligned",
                start=ts.output("tuned", "lora"),
                algorithm=PPO(
                    steps=9, batch_size=6, minibatches=2, epochs=2, max_new_tokens=5, checkpoint_every=2, samples=2
                ),
                adapter=LoRA(rank=2),
                reward=ts.output("reward", "reward_model"),
                gate=Gate(on_failure="warn"),  # six updates teach it nothing
            ),
            Evaluate(name="final", metrics=(TokenF1(),), generation=short, items=6),
        ),
    )


def _make(given: Path) -> None:
    from tunesmith.testing.models import WORDS, tiny_lm

    beside = given.with_name("given.writing")
    shutil.rmtree(beside, ignore_errors=True)
    (beside / "data").mkdir(parents=True)
    for split in ("train", "test"):
        rows = [{"x": f"{WORDS[i % 20]} {WORDS[(i * 7 + len(split)) % 20]}", "y": WORDS[i % 20]} for i in range(24)]
        (beside / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [
        {"prompt": f"{WORDS[i]} ?", "chosen": f"good {WORDS[i]}", "rejected": f"bad {WORDS[(i * 3) % 20]}"}
        for i in range(20)
    ]
    (beside / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    tiny_lm("encoder-decoder").save(beside / "model")
    tiny_lm("encoder").save(beside / "encoder")
    beside.rename(given)

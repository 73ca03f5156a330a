"""The demo's pipeline: prompt, tune, measure, align, shrink.

Its settings were chosen on the validation split (``tunesmith demo --split validation``); what it reports is the test split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from attrs import evolve, field, frozen

from tunesmith.data.config import Data
from tunesmith.pipeline.value import Pipeline, output
from tunesmith.reward_gate import Gate
from tunesmith_plugins.adapters.config import Bottleneck, LoRA, Prompt
from tunesmith_plugins.compressors import Distill, Int8, Magnitude
from tunesmith_plugins.metrics.config import Accuracy, Bleu, DistinctN, Latency, Reward, Rouge, Toxicity
from tunesmith_plugins.reward_models.config import Pairwise, Trained
from tunesmith_plugins.rl_algorithms.config import PPO
from tunesmith_plugins.samplers.config import Chain, Greedy, MinP, Temperature, TopP
from tunesmith_plugins.stages.config import (
    Align,
    Compare,
    Compress,
    Evaluate,
    Export,
    FineTune,
    Generate,
    Generation,
    TrainReward,
)

from . import dialogues as dg
from .carried import model_path
from .demo_data import Sizes

TOKENS = 44
"""Most new tokens of a summary; the longest reference has fewer."""


@frozen(kw_only=True)
class Budget:
    """How much of everything, in counts: on another machine the time differs, the work does not.

    Attributes:
        sizes: Of the data.
        items: Dialogues that texts are written for and scored on.
        tune: Optimizer steps of each way of tuning.
        judge: Optimizer steps of the judge.
        reward: Updates of the reward model.
        ppo: Steps of PPO.
        rollouts: Completions of a PPO step.
        distill: Optimizer steps of the student.
        child: Whether each way of tuning has a process of its own, so that its peak memory is its own.
    """

    sizes: Sizes = field(factory=Sizes)
    items: int = 150
    tune: int = 150
    judge: int = 300
    reward: int = 100
    ppo: int = 50
    rollouts: int = 32
    distill: int = 200
    child: bool = True


FULL = Budget()
QUICK = Budget(
    sizes=Sizes(train=48, validation=8, test=8, pairs=32, tone=32),
    items=6,
    tune=2,
    judge=2,
    reward=2,
    ppo=2,
    rollouts=4,
    distill=2,
    child=False,
)
"""A few steps of everything: it shows that all runs, and results that mean nothing."""


def pipeline(
    data: Path, budget: Budget = FULL, *, split: Literal["test", "validation"] = "test", seed: int = 0
) -> Pipeline:
    """Return the demo's pipeline.

    Args:
        data: The folder that :func:`tunesmith_plugins.starter.demo_data.write` wrote into.
        budget: How much of everything.
        split: What is reported on.
        seed: All randomness follows from it.
    """
    encoder = str(model_path("encoder"))
    dialogues = Data(
        source=str(data / "dialogues"),
        instruction=f"{dg.INSTRUCTION}\n\n",
        prompt="{dialogue}\nSummary:",
        target="{summary}",
        id="id",
        seed=seed,
    )
    named = evolve(dialogues, instruction=f"{dg.INSTRUCTIONS[dg.TARGET.form]}\n\n")
    shown = evolve(dialogues, target=" {summary}")  # examples read "Summary: ...", as prompts in the pre-training did
    tone = Data(source=str(data / "tone"), prompt="{text}", target="{label}", seed=seed)
    rouge = Rouge(types=("1", "2", "L"))
    texts = (rouge, Bleu())
    generation = Generation(max_new_tokens=TOKENS)
    ask: dict[str, Any] = {"split": split, "items": budget.items, "generation": generation}
    zero = output("zero-shot", "scores")
    lengths: dict[str, Any] = {"max_length": 256, "max_target_length": 64}
    tune: dict[str, Any] = {"steps": budget.tune, "batch_size": 16, "measure_in_child": budget.child, **lengths}
    classify: dict[str, Any] = {
        "objective": "classification",
        "batch_size": 16,
        "learning_rate": 1e-3,
        "max_length": 96,
    }
    judged = (rouge, Toxicity(model=output("judge", "long"), label="rude"))
    aligned = (*judged, Reward(model=Trained(reward_model=output("reward", "reward_model"))))
    return Pipeline(
        base=str(model_path("seq2seq")),
        data=dialogues,
        seed=seed,
        stages=(
            Evaluate(name="zero-shot", metrics=texts, start="base", **ask),
            Evaluate(name="form-named", metrics=texts, start="base", data=named, versus=zero, **ask),
            Evaluate(name="one-shot", metrics=texts, start="base", data=shown, shots=1, versus=zero, **ask),
            Evaluate(name="three-shot", metrics=texts, start="base", data=shown, shots=3, versus=zero, **ask),
            Evaluate(name="five-shot", metrics=texts, start="base", data=shown, shots=5, versus=zero, **ask),
            Generate(
                name="samplers",
                start="base",
                split=split,
                items=budget.items,
                metrics=(rouge, DistinctN()),
                samplers={
                    "greedy": Greedy(),
                    "temperature 0.7": Temperature(temperature=0.7),
                    "top-p 0.9": TopP(p=0.9),
                    "min-p 0.1 at 1.5": Chain(links=(MinP(p=0.1), Temperature(temperature=1.5))),
                },
                generation=generation,
            ),
            Compare(
                name="tuned",
                start="base",
                branches={
                    "full": FineTune(learning_rate=1e-3, **tune),
                    "lora": FineTune(adapter=LoRA(rank=8, alpha=16), learning_rate=5e-3, **tune),
                    "bottleneck": FineTune(adapter=Bottleneck(reduction=4), learning_rate=5e-3, **tune),
                    "soft-prompt": FineTune(adapter=Prompt(tokens=16), learning_rate=0.3, **tune),
                },
                metrics=texts,
                **ask,
            ),
            Compare(
                name="judge",
                start=encoder,
                branches={
                    "brief": FineTune(steps=max(1, budget.judge // 30), **classify),
                    "long": FineTune(steps=budget.judge, **classify),
                },
                metrics=(Accuracy(of="classes"),),
                data=tone,
                split=split,
            ),
            TrainReward(
                name="reward",
                reward=Pairwise(
                    model=encoder,
                    template="{prompt} {completion}",
                    steps=budget.reward,
                    batch_size=16,
                    learning_rate=5e-4,
                ),
                preferences=str(data / "preferences.jsonl"),
                held_out=0.2,
            ),
            Evaluate(name="before-ppo", metrics=aligned, start=output("tuned", "full"), **ask),
            Align(
                name="ppo",
                start=output("tuned", "full"),
                adapter=LoRA(rank=8, alpha=16),
                algorithm=PPO(
                    steps=budget.ppo,
                    batch_size=budget.rollouts,
                    minibatches=2,
                    epochs=2,
                    max_new_tokens=TOKENS,
                    learning_rate=1e-3,
                    kl_coefficient=0.6,
                    entropy_coefficient=0.005,
                ),
                reward=output("reward", "reward_model"),
                gate=Gate(on_failure="warn"),  # in a tiny world of its own, the reward knows no insults
            ),
            Evaluate(name="after-ppo", metrics=aligned, versus=output("before-ppo", "scores"), **ask),
            Export(name="merged"),
            Compare(
                name="smaller",
                branches={
                    "student": Compress(
                        compressor=Distill(
                            steps=budget.distill,
                            learning_rate=2e-3,
                            soft=0.9,
                            batch_size=16,
                            **lengths,
                        )
                    ),
                    "pruned": Compress(compressor=Magnitude(sparsity=0.5)),
                    "int8": Compress(compressor=Int8()),
                },
                metrics=(*judged, Latency()),
                **ask,
            ),
        ),
    )

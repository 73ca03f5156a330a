"""Two classifiers of the same labels that share nothing else: one to be trained towards, one that judges.

A policy that is trained towards a classifier learns what this classifier likes, its mistakes included. So the judge reads
other rows, starts from other weights, and nothing is ever trained towards it. `toxicity_ppo.py` and `stories_sentiment.py`
use this module.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scratch_models
from attrs import field, frozen

import tunesmith as ts
from tunesmith.data import load_examples
from tunesmith.evaluation.classification import class_number, probabilities
from tunesmith_plugins import metrics
from tunesmith_plugins import stages as st


@frozen(kw_only=True)
class Settings:
    """How a classifier is made.

    Attributes:
        data: Texts as prompts, labels as targets.
        split: The rows it is trained on.
        test: What its accuracy is measured on.
        test_split: The split of that.
        backbone: Folder or hub name of an encoder; "": a small one from scratch, which first learns masked words.
        width: Of the encoder from scratch.
        layers: Likewise.
        words: Updates on masked words.
        steps: Updates on the labels.
        learning_rate: On the labels.
        items: Most test items; 0: all.
        seed: Of everything.
    """

    data: ts.Data
    split: str
    test: ts.Data
    test_split: str
    backbone: str = ""
    vocab: int = 4000
    width: int = 96
    layers: int = 2
    words: int = 300
    steps: int = 600
    learning_rate: float = 1e-3
    items: int = 0
    seed: int = 0


QUICK: dict[str, Any] = {"vocab": 400, "width": 32, "layers": 1, "words": 4, "steps": 4, "items": 50}


def train(folder: Path, settings: Settings, threads: int) -> ts.Run:
    """Train one in ``folder``; its model is ``run.output("classifier")``."""
    common = {"data": settings.data, "split": settings.split, "batch_size": 32, "max_length": 64}
    base, stages = settings.backbone, []
    if not base:
        rows = [example.prompt for example in load_examples(settings.data, settings.split, ts.Runtime())]
        size = {"vocab": settings.vocab, "width": settings.width, "layers": settings.layers}
        base = str(scratch_models.encoder(folder / "scratch", rows, seed=settings.seed, **size))
        stages.append(st.FineTune(name="words", steps=settings.words, learning_rate=2e-3, **common))
    stages += [
        st.FineTune(
            name="classifier",
            objective="classification",
            steps=settings.steps,
            learning_rate=settings.learning_rate,
            **common,
        ),
        st.Evaluate(
            name="accuracy",
            metrics=(metrics.Accuracy(of="classes"),),
            data=settings.test,
            split=settings.test_split,
            items=settings.items,
        ),
    ]
    return ts.Pipeline(base=base, seed=settings.seed, stages=tuple(stages)).run(folder / "run", threads=threads)


def accuracy(run: ts.Run) -> str:
    """Return the accuracy on the test rows with its interval and their number."""
    record = json.loads((run.output("accuracy", "scores") / "scores.json").read_text(encoding="utf-8"))[0]
    score = record["scores"]["accuracy"]
    return f"{score['value']:.4f} [{score['low']:.4f}, {score['high']:.4f}] (n = {record['n']})"


@frozen
class Judge:
    """A classifier that says how probable a label is, in a batch of any size."""

    model: Path
    label: str
    runtime: ts.Runtime
    lm: ts.LM = field(init=False)

    @lm.default
    def _load(self) -> ts.LM:
        return ts.load(self.model, runtime=self.runtime, head="classification")

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return the label's probability for every text."""
        found, _ = probabilities(self.lm, list(texts), self.runtime)
        return np.array([row[class_number(self.lm, self.label, "judge")] for row in found])


def log_odds(probability: np.ndarray) -> np.ndarray:
    """Return the logit: it does not flatten where the judge is sure."""
    p = np.clip(probability, 1e-7, 1 - 1e-7)
    return np.log(p) - np.log1p(-p)

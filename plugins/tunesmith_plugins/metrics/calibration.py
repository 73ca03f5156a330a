"""Expected calibration error."""

from __future__ import annotations

import math

import numpy as np

from tunesmith.kinds.metric import Batch, Metric
from tunesmith_plugins.metrics.choices import softmax


class ECEMetric(Metric):
    """Rows: the highest probability, and whether it is the right answer's."""

    resampling = "exchange"
    higher_is_better = False
    columns = ("confidence", "correct")
    scores = ("ece",)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Log-likelihoods of choices, or probabilities of classes."""
        return frozenset({"choice_logprobs" if self.config.of == "choices" else "probabilities", "label"})

    def rows(self, batch: Batch) -> np.ndarray:
        """Take each example's most probable answer."""
        if self.config.of == "choices":
            found = [softmax(logprobs) for logprobs in batch["choice_logprobs"]]
        else:
            found = [np.asarray(p, dtype=np.float64) for p in batch["probabilities"]]
        pairs = zip(found, batch["label"], strict=True)
        return np.array([[p.max(), int(np.argmax(p)) == int(label)] for p, label in pairs], dtype=np.float64)

    def score(self, rows: np.ndarray) -> dict[str, float]:
        """Return the mean over examples of their bin's distance between confidence and accuracy.

        Examples of equal confidence stay in the order of their ids.
        """
        ordered = rows[np.argsort(rows[:, 0], kind="stable")]
        bins = np.array_split(ordered, min(self.config.bins, len(ordered)))
        gaps = [abs(math.fsum(part[:, 0] - part[:, 1])) for part in bins]
        return {"ece": math.fsum(gaps) / len(rows)}

    @property
    def signature(self) -> str:
        """What the probabilities are of, and the bins."""
        return f"ece|of:{self.config.of}|bins:{self.config.bins}|mass:equal|norm:l1"

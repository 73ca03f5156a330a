"""Exact match and token F1 of short answers."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable

import numpy as np

from tunesmith.kinds.metric import Batch
from tunesmith_plugins.metrics.means import MeanMetric

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def squad(text: str) -> str:
    """Return SQuAD's normal form: lower case, no ASCII punctuation, no English articles, single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def token_f1(prediction: str, reference: str) -> float:
    """Return the F1 of the bags of words of two texts in SQuAD's normal form; of two empty ones it is 1."""
    written, wanted = squad(prediction).split(), squad(reference).split()
    if not written or not wanted:
        return float(written == wanted)
    shared = sum((Counter(written) & Counter(wanted)).values())
    return 2 * shared / (len(written) + len(wanted))


class ExactMatchMetric(MeanMetric):
    """One column: 1 where the prediction equals a reference."""

    columns = ("match",)
    scores = ("exact_match",)
    shares = frozenset(scores)

    def rows(self, batch: Batch) -> np.ndarray:
        """Compare in the normal form."""
        forms: dict[str, Callable[[str], str]] = {"none": str, "strip": str.strip, "squad": squad}
        form = forms[self.config.normalize]
        pairs = zip(batch["prediction"], batch["references"], strict=True)
        return np.array([[form(p) in {form(r) for r in references}] for p, references in pairs], dtype=np.float64)

    @property
    def signature(self) -> str:
        """The normal form; the best of several references counts."""
        return f"exact_match|norm:{self.config.normalize}|refs:best"


class TokenF1Metric(MeanMetric):
    """One column: the F1 with the best reference."""

    columns = ("f1",)
    scores = ("f1",)

    def rows(self, batch: Batch) -> np.ndarray:
        """Take the best reference."""
        pairs = zip(batch["prediction"], batch["references"], strict=True)
        return np.array([[max(token_f1(p, r) for r in references)] for p, references in pairs], dtype=np.float64)

    @property
    def signature(self) -> str:
        """SQuAD's normal form, the best of several references."""
        return "token_f1|norm:squad|refs:best|agg:mean"

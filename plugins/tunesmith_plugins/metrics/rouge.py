"""ROUGE: rouge-score's counts, our rules for several references."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from rouge_score import rouge_scorer, tokenizers
from rouge_score.scoring import Score, fmeasure

from tunesmith.kinds.metric import Batch, Metric
from tunesmith_plugins.metrics import means
from tunesmith_plugins.metrics.words import words

PARTS = ("f", "precision", "recall")


class UnicodeTokenizer(tokenizers.Tokenizer):
    """Words of any script; the stemmer, which is English, sees ASCII words only."""

    def __init__(self, stemmer: bool) -> None:
        self._ascii = tokenizers.DefaultTokenizer(use_stemmer=True) if stemmer else None

    def tokenize(self, text: str) -> list[str]:
        found = words(text)
        if self._ascii is None:
            return found
        return [self._ascii.tokenize(word)[0] if word.isascii() else word for word in found]


class RougeMetric(Metric):
    """One row an example: F, precision and recall of every type."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        ascii_only = config.tokenizer == "ascii"
        self._tokenizer = (
            tokenizers.DefaultTokenizer(config.stemmer) if ascii_only else UnicodeTokenizer(config.stemmer)
        )
        self._types = [f"rouge{t}" for t in config.types]
        self._scorer = rouge_scorer.RougeScorer(self._types, tokenizer=self._tokenizer)

    @property
    def columns(self) -> tuple[str, ...]:
        """Type and part: ``rouge1_f`` ..."""
        return tuple(f"{t}_{part}" for t in self._types for part in PARTS)

    @property
    def scores(self) -> tuple[str, ...]:
        """``rouge1`` for F, ``rouge1_precision``, ``rouge1_recall``."""
        return tuple(t if m == "f" else f"{t}_{m}" for m in self.config.measures for t in self._types)

    @property
    def _places(self) -> list[int]:
        return [self._types.index(t) * len(PARTS) + PARTS.index(m) for m in self.config.measures for t in self._types]

    def rows(self, batch: Batch) -> np.ndarray:
        """Score every prediction against its references by the rule."""
        rows = np.zeros((len(batch["id"]), len(self.columns)))
        for i, (prediction, references) in enumerate(zip(batch["prediction"], batch["references"], strict=True)):
            each = [self._scorer.score(reference, prediction) for reference in references]
            for j, kind in enumerate(self._types):
                scored = [s[kind] for s in each]
                chosen = self._combined(kind, scored, references, prediction)
                rows[i, 3 * j : 3 * j + 3] = chosen.fmeasure, chosen.precision, chosen.recall
        return rows

    def _combined(self, kind: str, scored: Sequence[Score], references: Sequence[str], prediction: str) -> Score:
        rule = self.config.references
        if rule == "max_f":
            return scored[int(np.argmax([s.fmeasure for s in scored]))]
        if rule == "best_recall":
            return scored[int(np.argmax([s.recall for s in scored]))]
        if rule == "mean":
            return Score(*(sum(s[part] for s in scored) / len(scored) for part in range(3)))
        sizes = [self._units(kind, reference) for reference in references]
        hits = sum(round(s.recall * size) for s, size in zip(scored, sizes, strict=True))
        written = self._units(kind, prediction) * len(references)
        precision = hits / written if written else 0.0
        recall = hits / sum(sizes) if sum(sizes) else 0.0
        return Score(precision=precision, recall=recall, fmeasure=fmeasure(precision, recall))

    def _units(self, kind: str, text: str) -> int:
        """Return how many n-grams or, for the subsequence types, words a text has."""
        count = len(self._tokenizer.tokenize(text))
        return max(0, count - int(kind[5:]) + 1) if kind[5:].isdigit() else count

    def score(self, rows: np.ndarray) -> dict[str, float]:
        """Return means."""
        return means.score(rows[:, self._places], self.scores)

    def score_sums(self, sums: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Return means of resamples."""
        return means.score_sums(sums[:, self._places], count)

    @property
    def signature(self) -> str:
        """``rouge|types:..|stem:..|tok:..|refs:..|agg:mean|rouge-score:..``"""
        stem = "porter_nltk" if self.config.stemmer else "no"
        return (
            f"rouge|types:{','.join(self.config.types)}|measures:{','.join(self.config.measures)}|stem:{stem}"
            f"|tok:{self.config.tokenizer}|refs:{self.config.references}|agg:mean|rouge-score:{version('rouge-score')}"
        )

"""BLEU, chrF and TER: sacrebleu's statistics of each segment are the row, their sum gives the corpus score exactly.

sacrebleu has no public way to ask for the statistics, though its own significance tests rest on them. If a later
version hides them, BLEU and TER still come from what its public sentence scores carry; chrF's do not carry enough,
and say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF, TER

from tunesmith.errors import TunesmithError
from tunesmith.kinds.metric import Batch, Metric
from tunesmith_plugins.metrics import means


def statistics(scorer: Any, batch: Batch, width: int) -> np.ndarray | None:
    """Return the statistics (examples, width) of every segment, or None where sacrebleu does not offer them.

    Raises:
        TunesmithError: If it gives another number of them.
    """
    if not hasattr(scorer, "_extract_corpus_statistics") or not hasattr(scorer, "_compute_score_from_stats"):
        return None
    found = scorer._extract_corpus_statistics(list(batch["prediction"]), reference_streams(batch["references"]))
    rows = np.asarray(found, dtype=np.float64).reshape(len(batch["id"]), -1)
    if rows.shape[1] != width:
        raise TunesmithError(
            f"sacrebleu {version('sacrebleu')} gives {rows.shape[1]} numbers a segment, {width} were expected; "
            "install sacrebleu 2.6."
        )
    return rows


def reference_streams(references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """Return references as sacrebleu wants them: one stream for each reference, None where a segment has fewer."""
    most = max((len(r) for r in references), default=0)
    return [[r[k] if k < len(r) else None for r in references] for k in range(most)]


def plain(totals: Sequence[float]) -> list[float]:
    """Return whole numbers as int, which sacrebleu's formulas expect of counts."""
    return [int(t) if t == int(t) else t for t in totals]


class SacrebleuMetric(Metric):
    """What the three have in common."""

    name = ""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._scorer = self.scorer()

    def scorer(self) -> Any:
        """Return sacrebleu's metric."""
        raise NotImplementedError

    def public_rows(self, batch: Batch) -> np.ndarray:
        """Return rows from public methods only."""
        raise NotImplementedError

    def final(self, totals: list[float]) -> float:
        """Return the corpus score of summed statistics."""
        return float(self._scorer._compute_score_from_stats(totals).score)

    @property
    def scores(self) -> tuple[str, ...]:
        """One score."""
        return (self.name,)

    def rows(self, batch: Batch) -> np.ndarray:
        """Return the statistics of every segment."""
        found = statistics(self._scorer, batch, len(self.columns))
        return self.public_rows(batch) if found is None else found

    def score(self, rows: np.ndarray) -> dict[str, float]:
        """Return the corpus score."""
        return {self.name: self.final(plain(means.sums(rows)))}

    def score_sums(self, sums: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Return the corpus scores of resamples."""
        return np.array([[self.final(plain(row))] for row in sums.tolist()])

    @property
    def signature(self) -> str:
        """sacrebleu's own, but for the number of references, which is the data's."""
        scorer = self.scorer()
        scorer.corpus_score(["a"], [["a"]])  # there is no signature before the first score
        found = scorer.get_signature()
        found.info.pop("nrefs", None)
        return f"{self.name}|{found.format()}"


class BleuMetric(SacrebleuMetric):
    """Rows: lengths of system and reference, then matches and totals of each order."""

    name = "bleu"

    def scorer(self) -> BLEU:
        """Return sacrebleu's BLEU."""
        return BLEU(
            lowercase=self.config.lowercase,
            force=True,  # its warning about tokenized text belongs to test sets
            tokenize=self.config.tokenize,
            smooth_method=self.config.smooth,
            smooth_value=self.config.smooth_value,
            max_ngram_order=self.config.order,
            effective_order=self.config.effective_order,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """2 + 2 * order names."""
        orders = range(1, self.config.order + 1)
        return ("length", "reference_length", *(f"match_{n}" for n in orders), *(f"total_{n}" for n in orders))

    def public_rows(self, batch: Batch) -> np.ndarray:
        """Sentence scores without smoothing carry the counts."""
        scorer = BLEU(
            lowercase=self.config.lowercase,
            force=True,
            tokenize=self.config.tokenize,
            smooth_method="none",
            max_ngram_order=self.config.order,
        )
        found = [
            scorer.sentence_score(p, list(r)) for p, r in zip(batch["prediction"], batch["references"], strict=True)
        ]
        return np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in found], dtype=np.float64)

    def final(self, totals: list[float]) -> float:
        """sacrebleu's public formula."""
        order = self.config.order
        found = BLEU.compute_bleu(
            correct=totals[2 : 2 + order],
            total=totals[2 + order :],
            sys_len=totals[0],
            ref_len=totals[1],
            smooth_method=self.config.smooth,
            smooth_value=self.config.smooth_value,
            effective_order=self.config.effective_order,
            max_ngram_order=order,
        )
        return float(found.score)


class ChrFMetric(SacrebleuMetric):
    """Rows: n-grams of system and reference and their matches, for each order."""

    name = "chrf"

    def scorer(self) -> CHRF:
        """Return sacrebleu's chrF."""
        return CHRF(
            char_order=self.config.char_order,
            word_order=self.config.word_order,
            beta=self.config.beta,
            lowercase=self.config.lowercase,
            whitespace=self.config.whitespace,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Three names an order."""
        orders = [f"char_{n}" for n in range(1, self.config.char_order + 1)]
        orders += [f"word_{n}" for n in range(1, self.config.word_order + 1)]
        return tuple(f"{part}_{order}" for order in orders for part in ("system", "reference", "match"))

    def public_rows(self, batch: Batch) -> np.ndarray:
        """There is no public way."""
        raise TunesmithError(
            f"sacrebleu {version('sacrebleu')} does not give chrF's statistics of a segment; install sacrebleu 2.6."
        )


class TerMetric(SacrebleuMetric):
    """Rows: edits to the closest reference, mean length of the references."""

    name = "ter"
    higher_is_better = False

    def scorer(self) -> TER:
        """Return sacrebleu's TER."""
        return TER(
            normalized=self.config.normalized,
            no_punct=self.config.no_punct,
            asian_support=self.config.asian_support,
            case_sensitive=self.config.case_sensitive,
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Edits and reference length."""
        return ("edits", "reference_length")

    def public_rows(self, batch: Batch) -> np.ndarray:
        """Sentence scores carry both numbers."""
        pairs = zip(batch["prediction"], batch["references"], strict=True)
        found = [self._scorer.sentence_score(p, list(r)) for p, r in pairs]
        return np.array([[s.num_edits, s.ref_length] for s in found], dtype=np.float64)

    def final(self, totals: list[float]) -> float:
        """Percent of edits; all edits of an empty reference are 100 %."""
        edits, length = totals
        return 100 * (edits / length) if length > 0 else 100.0 * (edits > 0)

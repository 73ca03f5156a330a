"""Perplexity of a token, word or byte."""

from __future__ import annotations

import math

import numpy as np

from tunesmith.errors import DataError
from tunesmith.kinds.metric import Batch, Metric
from tunesmith_plugins.metrics import means


class PerplexityMetric(Metric):
    """Rows: summed loss, and how many units it is of."""

    columns = ("loss", "units")
    scores = ("perplexity", "loss")
    higher_is_better = False

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        """Losses; words and bytes are counted in the text itself."""
        return frozenset({"token_losses"}) if self.config.per == "token" else frozenset({"token_losses", "references"})

    @property
    def counts_tokens(self) -> bool:  # type: ignore[override]
        """A text has other tokens in another vocabulary; words and bytes are the same in all."""
        return bool(self.config.per == "token")

    def rows(self, batch: Batch) -> np.ndarray:
        """Add up each example's losses and count its units."""
        losses = batch["token_losses"]
        texts = [r[0] for r in batch["references"]] if self.config.per != "token" else [""] * len(losses)
        return np.array(
            [[math.fsum(found), self._units(found, text)] for found, text in zip(losses, texts, strict=True)],
            dtype=np.float64,
        ).reshape(-1, 2)

    def _units(self, losses: object, text: str) -> int:
        if self.config.per == "token":
            return len(losses)  # type: ignore[arg-type]
        return len(text.split()) if self.config.per == "word" else len(text.encode())

    def score(self, rows: np.ndarray) -> dict[str, float]:
        """Return exp(loss / units) and loss / units in nats.

        Raises:
            DataError: If there is not one unit.
        """
        loss, units = means.sums(rows)
        if units == 0:
            raise DataError(f"the texts have no {self.config.per}s, so there is no perplexity.")
        mean = loss / units
        return {"perplexity": math.exp(mean) if mean < 700 else math.inf, "loss": mean}

    def score_sums(self, sums: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Return the scores of resamples."""
        mean = sums[:, 0] / np.maximum(sums[:, 1], 1)
        with np.errstate(over="ignore"):
            return np.stack([np.exp(mean), mean], axis=1)

    @property
    def signature(self) -> str:
        """The unit; words lie between whitespace."""
        return f"perplexity|per:{self.config.per}|agg:corpus"

"""The score that a reward model gives what a model wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from tunesmith import reward
from tunesmith.errors import DataError, TunesmithError
from tunesmith.kinds.metric import Batch, Metric
from tunesmith.manifest import file_digest
from tunesmith_plugins.metrics import means

if TYPE_CHECKING:
    from tunesmith.runtime import Runtime

NOT_THE_MODEL = frozenset({"manifest.json", "report.json"})
"""Files of an artifact that say how it came about, times among it."""


class RewardMetric(Metric):
    """Rows: the reward, and 1; twice 0 where the reward model has no opinion."""

    needs = frozenset({"source", "prediction"})
    columns = ("reward", "scored")
    scores = ("reward",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._model: Any = None
        self._identity = ""

    def setup(self, runtime: Runtime) -> None:
        """Load the reward model."""
        self._model = reward.ready(self.config.model, runtime)
        digest = hashlib.sha256()
        _update(digest, self.config.model)
        self._identity = digest.hexdigest()[:12]

    def rows(self, batch: Batch) -> np.ndarray:
        """Score the texts, one by one: in a batch the last bits would depend on the others.

        Raises:
            NumericError: If the reward model gives a NaN or an infinity.
        """
        self._ready()
        rows = []
        for prompt, text in zip(batch["source"], batch["prediction"], strict=True):
            (score,) = reward.check_scores(self._model, self._model.score([prompt], [text]), 1)
            rows.append([0.0, 0.0] if score is None else [score, 1.0])
        return np.array(rows, dtype=np.float64).reshape(-1, 2)

    def score(self, rows: np.ndarray) -> dict[str, float]:
        """Return the mean over the texts that were scored.

        Raises:
            DataError: If the reward model has no opinion on any.
        """
        total, count = means.sums(rows)
        if count == 0:
            raise DataError("reward: the reward model has no opinion on any of the texts.")
        return {"reward": total / count}

    def score_sums(self, sums: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Return the means of resamples."""
        return sums[:, :1] / np.maximum(sums[:, 1:], 1)

    def _ready(self) -> None:
        if self._model is None:
            raise TunesmithError("the reward metric has no reward model yet; call setup(runtime) first.")

    @property
    def signature(self) -> str:
        """What the reward model is: its files, or its config; known after :meth:`setup`."""
        self._ready()
        return f"reward|model:{self._identity}|agg:mean"


def _update(digest: Any, value: Any, *, path: bool = False) -> None:
    """Take a config into a digest: its values, and of a folder that it names the files, since the folder is a place and not
    what is in it."""
    if attrs.has(type(value)):
        digest.update(type(value).__qualname__.encode() + b"\0")
        for field in attrs.fields(type(value)):
            digest.update(field.name.encode() + b"\0")
            _update(digest, getattr(value, field.name), path=field.metadata.get("path", False))
    elif isinstance(value, Mapping):
        for name in sorted(value):
            digest.update(name.encode() + b"\0")
            _update(digest, value[name])
    elif path and isinstance(value, str) and Path(value).expanduser().is_dir():
        folder = Path(value).expanduser()
        for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in NOT_THE_MODEL):
            inside = file.relative_to(folder)
            if not any(part.startswith(".") for part in inside.parts):  # what systems and downloads leave
                digest.update(f"{inside.as_posix()}\0{file_digest(file)}\n".encode())
    else:
        digest.update(repr(value).encode() + b"\0")

"""Modules of the ``evaluate`` library."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tunesmith.errors import CodeNotAllowed, ConfigError, DataError, TunesmithError
from tunesmith.kinds.metric import Batch, Metric
from tunesmith_plugins.metrics import means

if TYPE_CHECKING:
    from tunesmith.runtime import Runtime

Text = tuple[str, tuple[str, ...]]


class HFEvaluateMetric(Metric):
    """With ``mean``, rows are the module's scores of each example. With ``corpus``, a row is the number under which this
    object remembers the texts, since no fixed number of floats can hold what an unknown module needs."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._module: Any = None
        self._code = ""
        self._texts: dict[int, Text] = {}

    def setup(self, runtime: Runtime) -> None:
        """Load the module.

        Raises:
            CodeNotAllowed: Unless the runtime allows code.
            ConfigError: If there is no such module.
        """
        if not runtime.allow_code:
            raise CodeNotAllowed(
                f"hf_evaluate would run the Python code of {self.config.module!r}. Pass allow_code=True to the runtime "
                "(--allow-code on the command line) if you trust it."
            )
        import evaluate

        try:
            self._module = evaluate.load(self.config.module)
        except (OSError, ImportError, ValueError) as cause:
            problem = (
                f"evaluate cannot load {self.config.module!r}: {cause}. Give a local folder or install what it needs"
            )
            raise ConfigError([problem], "hf_evaluate") from cause
        local = any(Path(self.config.module).glob("*.py"))
        self._code = (self.config.code_digest() if local else str(getattr(self._module, "hash", "")))[:12]

    @property
    def resampling(self) -> Literal["additive", "none"]:  # type: ignore[override]
        """Means have intervals; what a module does with a corpus is unknown."""
        return "additive" if self.config.aggregation == "mean" else "none"

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        """As configured."""
        return bool(self.config.higher_is_better)

    @property
    def scores(self) -> tuple[str, ...]:
        """Keys of the module's result."""
        return self.config.scores or (Path(self.config.module).name,)

    @property
    def columns(self) -> tuple[str, ...]:
        """The scores of one example, or the number of its texts."""
        return self.scores if self.config.aggregation == "mean" else ("texts",)

    def rows(self, batch: Batch) -> np.ndarray:
        """Score each example, or remember its texts."""
        texts = [(str(p), tuple(r)) for p, r in zip(batch["prediction"], batch["references"], strict=True)]
        if self.config.aggregation == "mean":
            found = [self._compute([text]) for text in texts]
            return np.array([[one[name] for name in self.scores] for one in found]).reshape(-1, len(self.scores))
        keys = [_number(text) for text in texts]
        self._texts.update(zip(keys, texts, strict=True))
        return np.array(keys, dtype=np.float64).reshape(-1, 1)

    def _compute(self, texts: list[Text]) -> dict[str, float]:
        if self._module is None:
            raise TunesmithError("hf_evaluate has no module yet; call setup(runtime) first.")
        result = self._module.compute(
            predictions=[p for p, _ in texts],
            references=[r[0] if self.config.references == "first" else list(r) for _, r in texts],
            **self.config.options,
        )
        missing = [name for name in self.scores if not isinstance(result.get(name), (int, float, np.number))]
        if missing:
            raise ConfigError(
                [
                    f"{self.config.module!r} gives no number {name!r}; it gives {', '.join(sorted(result))}"
                    for name in missing
                ],
                "hf_evaluate.scores",
            )
        return {name: float(result[name]) for name in self.scores}

    def score(self, rows: np.ndarray) -> dict[str, float]:
        """Return the means, or what the module says of the whole corpus.

        Raises:
            DataError: If rows are of texts that this object has not read.
        """
        if self.config.aggregation == "mean":
            return means.score(rows, self.scores)
        keys = [int(key) for key in rows[:, 0]]
        if any(key not in self._texts for key in keys):
            raise DataError(
                f"{self.signature}: a corpus score needs the texts, and these rows were made by another process. "
                "Evaluate again here, or use aggregation='mean'."
            )
        return self._compute([self._texts[key] for key in keys])

    def score_sums(self, sums: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Return the means of resamples."""
        return means.score_sums(sums, count)

    @property
    def signature(self) -> str:
        """Module, code, options, aggregation; the code is known after :meth:`setup`."""
        config = self.config
        options = ",".join(f"{k}={v}" for k, v in sorted(config.options.items()))
        return (
            f"hf_evaluate|module:{Path(config.module).name}|code:{self._code}|options:{options}"
            f"|scores:{','.join(self.scores)}|refs:{config.references}|agg:{config.aggregation}"
            f"|evaluate:{version('evaluate')}"
        )


def _number(text: Text) -> int:
    """Return a number below 2**53 for a prediction and its references."""
    content = "\0".join([text[0], *text[1]]).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 11

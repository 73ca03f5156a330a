"""Which head of a model metrics need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunesmith.errors import ConfigError

if TYPE_CHECKING:
    from tunesmith.kinds.metric import MetricConfig
    from tunesmith.lm import Head

LM_COLUMNS = frozenset({"prediction", "token_losses", "latency", "choice_logprobs"})


def head_for(metrics: Sequence[MetricConfig]) -> Head:
    """Return ``"classification"`` where a metric needs class probabilities, else ``"lm"``.

    Raises:
        ConfigError: If the metrics need both heads.
    """
    needs = [(type(config).__name__, config.build().needs) for config in metrics]
    classes = [name for name, columns in needs if "probabilities" in columns]
    texts = [name for name, columns in needs if columns & LM_COLUMNS]
    if classes and texts:
        raise ConfigError(
            [
                f"{', '.join(classes)} need a classification head, {', '.join(texts)} a language-model head; "
                "use two Evaluate stages"
            ],
            "evaluate",
        )
    return "classification" if classes else "lm"

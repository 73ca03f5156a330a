"""A reward on a scale that the reference fixes; see :class:`tunesmith_plugins.reward_models.Normalized`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from tunesmith.data.readers import lines
from tunesmith.errors import ArtifactError, ConfigError, DataError
from tunesmith.kinds.reward_model import RewardModelConfig
from tunesmith.runtime import Runtime
from tunesmith_plugins.reward_models.config import Normalized
from tunesmith_plugins.reward_models.members import MembersReward

LABEL = "reward"
RECORD = "normalized.json"
FILE = "generations.jsonl"


class NormalizedReward(MembersReward):
    """See the config. Measured on the reference: ``tunesmith.kinds.reward_model.ReferenceFitted``."""

    config: Normalized

    def parts(self) -> Mapping[str, RewardModelConfig]:
        """Return the one reward."""
        return {LABEL: self.config.reward}

    def setup(self, runtime: Runtime) -> None:
        """Set the reward up and, if completions are named, measure gain and bias on them.

        Raises:
            ConfigError: If they are a stage's output and there is no pipeline.
            DataError: If the completions cannot be read or all have one score.
        """
        super().setup(runtime)
        self.scale = (self.config.gain, self.config.bias)
        where = self.config.generations
        if where is None:
            return
        if not isinstance(where, str):
            raise ConfigError(
                [f"'generations' is the output {where.stage}:{where.artifact}; outside a pipeline give its folder"],
                "normalized",
            )
        rows = read_generations(Path(where))
        prompts, completions = ([row[name] for row in rows] for name in ("prompt", "text"))
        super().fit_reference(prompts, completions)
        self._measure(prompts, completions, {})

    def needs_reference(self) -> bool:
        """See :class:`tunesmith.kinds.reward_model.ReferenceFitted`."""
        return self.scale[0] is None or super().needs_reference()

    def fit_reference(
        self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]
    ) -> Mapping[str, Mapping[str, float]]:
        """Measure what is inside, then gain and bias, unless the config gives them.

        Raises:
            DataError: With fewer than two scores, or if all are the same.
        """
        inner = super().fit_reference(prompts, completions, **columns)
        if self.config.gain is None and self.config.generations is None:
            measured = self._measure(prompts, completions, columns)
        else:
            gain, bias = self.fixed()
            measured = {"gain": gain, "bias": bias}
        return {"": measured, **inner}

    def _measure(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> dict[str, float]:
        known = [score for score in self.scores(prompts, completions, columns)[LABEL] if score is not None]
        if len(known) < 2:
            raise DataError(f"normalized: {len(known)} of {len(completions)} completions have a score; two are needed.")
        mean, deviation = fmean(known), pstdev(known)
        if not deviation > 1e-12 * max(1.0, abs(mean)):
            raise DataError(
                f"normalized: all {len(known)} reference completions have the score {mean:g}, so there is no deviation to "
                "divide by. Draw more of them, or give gain and bias."
            )
        self.scale = (1 / deviation, -mean / deviation)
        return {
            "gain": 1 / deviation,
            "bias": -mean / deviation,
            "mean": mean,
            "deviation": deviation,
            "samples": float(len(known)),
        }

    def fixed(self) -> tuple[float, float]:
        """Return gain and bias.

        Raises:
            ConfigError: If they were never measured.
        """
        gain, bias = self.scale
        if gain is None or bias is None:
            raise ConfigError(
                [
                    "gain and bias are not measured yet: the Align stage does it before training; elsewhere call "
                    "fit_reference(prompts, completions) or give 'generations', or 'gain' and 'bias'"
                ],
                "normalized",
            )
        return gain, bias

    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[float | None]:
        """See :class:`tunesmith.kinds.reward_model.RewardModel`."""
        gain, bias = self.fixed()
        raw = self.scores(prompts, completions, columns)[LABEL]
        return [None if score is None else gain * score + bias for score in raw]

    def save(self, folder: Path) -> None:
        """Write the reward, gain and bias."""
        super().save(folder)
        gain, bias = self.scale
        text = json.dumps({"format": 1, "gain": gain, "bias": bias}, allow_nan=False)
        (folder / RECORD).write_text(text + "\n", encoding="utf-8")

    def load(self, folder: Path, runtime: Runtime) -> None:
        """Take up what :meth:`save` wrote.

        Raises:
            ArtifactError: If gain and bias are missing.
        """
        super().load(folder, runtime)
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            self.scale = (record["gain"], record["bias"])
        except (OSError, ValueError, KeyError) as cause:
            raise ArtifactError(f"{folder} holds no gain and bias ({cause}); write the reward model again.") from cause


def read_generations(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a ``generations`` artifact (its folder or its file).

    Raises:
        DataError: Naming file, line and field.
    """
    path = path / FILE if path.is_dir() else path
    try:
        given = lines(path)
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"{path}: there are no generations to read ({cause}).") from cause
    rows = []
    for number, line in enumerate(given, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as cause:
            raise DataError(f"{path}:{number}: no JSON: {cause}.") from cause
        missing = [
            name for name in ("prompt", "text") if not (isinstance(row, dict) and isinstance(row.get(name), str))
        ]
        if missing:
            raise DataError(f"{path}:{number}: {' and '.join(missing)} must be there, as text.")
        rows.append(row)
    return rows

"""Numbers and texts for TensorBoard, Weights & Biases and whatever else accelerate has a tracker for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tunesmith.errors import ConfigError

DEFAULT_FOLDER = "runs"
"""Where trackers that write files do so if the training has no folder of its own, as is their custom."""


class Trackers:
    """Open trackers; nothing happens if there are none.

    Args:
        names: As in accelerate.
        folder: Of the training; ``logs`` in it, for trackers that write files.
        run: Name of the run.
        settings: Logged at the start.

    Raises:
        ConfigError: For an unknown tracker, or one that is not installed; it names what to install.
    """

    def __init__(self, names: Sequence[str], folder: Path | None, run: str, settings: Mapping[str, Any]) -> None:
        self._open: list[Any] = []
        if not names:
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        known = {str(name): tracker for name, tracker in LOGGER_TYPE_TO_CLASS.items()}
        available = {str(name) for name in get_available_trackers()}
        problems = [_problem(name, known) for name in names if name not in available]
        if problems:
            raise ConfigError(problems, run)
        where = Path(DEFAULT_FOLDER) if folder is None else folder / "logs"
        for name in names:
            tracker = (
                known[name](run, logging_dir=where) if known[name].requires_logging_directory else known[name](run)
            )
            tracker.start()
            tracker.store_init_configuration({key: _plain(value) for key, value in settings.items()})
            self._open.append(tracker)

    def log(self, numbers: Mapping[str, float], step: int, texts: Sequence[Mapping[str, Any]] = ()) -> None:
        """Hand a step's numbers and completions to every tracker."""
        values: dict[str, Any] = dict(numbers)
        if texts:
            values["completions"] = "\n\n".join(
                f"{t['prompt']}\n\n**{t['completion']}** (reward {t['reward']})" for t in texts
            )
        for tracker in self._open:
            tracker.log(values, step=step)

    def finish(self) -> None:
        """Close them."""
        for tracker in self._open:
            tracker.finish()


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)


def _problem(name: str, known: Mapping[str, Any]) -> str:
    if name not in known:
        return f"there is no tracker {name!r}; there are {', '.join(sorted(known))} @ report_to"
    extras = metadata.metadata("tunesmith").get_all("Provides-Extra") or []
    install = f"'tunesmith[{name}]'" if name in extras else name
    return f"the tracker {name!r} is not installed: pip install {install} @ report_to"

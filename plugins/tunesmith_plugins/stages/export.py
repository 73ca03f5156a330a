"""The stage that writes a model for use elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tunesmith.errors import PipelineError, TunesmithError
from tunesmith.kinds.adapter import merged
from tunesmith.kinds.stage import Stage, StageContext
from tunesmith.lm import load
from tunesmith.model_folder import weight_bytes
from tunesmith_plugins.stages.model_card import card, record_of
from tunesmith_plugins.stages.needs import model_to

CARD = "README.md"


class ExportStage(Stage):
    """Merge what can be merged, save, and say in a model card what it is and how to load it."""

    def run(self, context: StageContext) -> dict[str, Any]:
        """Write ``model`` (and a copy into the config's folder, which must be empty or not there)."""
        start, target = model_to("export", context), self._target(context)
        lm = load(start, runtime=context.runtime)
        had = [type(adapter.config).__name__ for adapter in lm.adapters]
        if self.config.merge:
            lm = merged(lm)
        folder = context.artifact("model")
        lm.save(folder)
        left = [type(adapter.config).__name__ for adapter in lm.adapters]
        text = card(lm, record_of(start), had, left)
        (folder / CARD).write_text(text, encoding="utf-8")
        if target is not None:
            _copy(folder, target)
        return {
            "parameters": lm.parameter_count(),
            "bytes": weight_bytes(folder),
            "adapters": had,
            "left_unmerged": left,
            "loads_with": "tunesmith.load" if left else "from_pretrained",
        }

    def restore(self, context: StageContext) -> None:
        """Copy the stored model into the config's folder again."""
        target = self._target(context)
        if target is not None:
            _copy(context.artifact("model"), target)

    def _target(self, context: StageContext) -> Path | None:
        target = Path(self.config.folder).expanduser() if self.config.folder else None
        if target is not None and target.exists() and not _ours(target):
            raise PipelineError(
                f"{context.name}: {target} exists and is no export of tunesmith; name another folder or empty it."
            )
        return target


def _ours(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    card_file = folder / CARD
    return not any(folder.iterdir()) or (
        card_file.is_file() and "Exported by tunesmith" in card_file.read_text(encoding="utf-8")
    )


def _copy(source: Path, target: Path) -> None:
    """Copy into place as a whole: an interruption leaves the old folder or none, never half of one."""
    beside = target.with_name(target.name + ".writing")
    old = target.with_name(target.name + ".old")
    try:
        for leftover in (beside, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, beside, ignore=shutil.ignore_patterns("manifest.json"))
        if target.exists():
            target.rename(old)
        beside.rename(target)
        if old.exists():
            shutil.rmtree(old)
    except OSError as cause:
        raise TunesmithError(f"the export could not be copied to {target}: {cause}") from cause

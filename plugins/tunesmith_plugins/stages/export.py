"""The stage that writes a model for use elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.errors import PipelineError, TunesmithError
from tunesmith.kinds.adapter import SupportsMerge
from tunesmith.kinds.stage import Stage, StageContext
from tunesmith.lm import LM, load

CARD = "README.md"


class ExportStage(Stage):
    """Merge what can be merged, save, and say in a model card what it is and how to load it."""

    def run(self, context: StageContext) -> dict[str, Any]:
        """Write ``model`` (and a copy into the config's folder, which must be empty or not there)."""
        if context.start is None:
            raise PipelineError(
                f"{context.name}: there is no model to export; give the pipeline a base or the stage a start."
            )
        target = Path(self.config.folder).expanduser() if self.config.folder else None
        if target is not None and target.exists() and not _ours(target):
            raise PipelineError(
                f"{context.name}: {target} exists and is no export of tunesmith; name another folder or empty it."
            )
        lm = load(context.start, runtime=context.runtime)
        had = [type(adapter.config).__name__ for adapter in lm.adapters]
        if self.config.merge:
            lm = merged(lm)
        folder = context.artifact("model")
        lm.save(folder)
        left = [type(adapter.config).__name__ for adapter in lm.adapters]
        (folder / CARD).write_text(card(lm, context.start, had, left), encoding="utf-8")
        if target is not None:
            _copy(folder, target)
        return {
            "parameters": lm.parameter_count(),
            "bytes": sum(f.stat().st_size for f in folder.rglob("*.safetensors")),
            "adapters": had,
            "left_unmerged": left,
            "loads_with": "tunesmith.load" if left else "from_pretrained",
        }


def merged(lm: LM) -> LM:
    """Return the model with every adapter folded in that can be, in the order in which they were attached."""
    for adapter in lm.adapters:
        if isinstance(adapter, SupportsMerge):
            lm = adapter.merge(lm)
    return lm


def card(lm: LM, start: str, had: list[str], left: list[str]) -> str:
    """Return a model card as Markdown."""
    name = type(lm.model).__name__
    origin = _origin(Path(start))
    lines = [
        "---",
        "library_name: transformers" if not left else "library_name: tunesmith",
        "tags:",
        "- tunesmith",
        "---",
        "",
        f"# {getattr(lm.model.config, 'model_type', name)} ({name})",
        "",
        f"Exported by tunesmith {__version__}. {lm.parameter_count():,} parameters, family: {lm.family}.",
        "",
        "## How to load it",
        "",
    ]
    if left:
        lines += [
            f"This folder holds a base model and adapters that cannot be merged into its weights ({', '.join(left)}). "
            "`from_pretrained` on this folder does **not** give this model; tunesmith does:",
            "",
            "```python",
            "import tunesmith",
            "",
            'lm = tunesmith.load("this/folder")  # lm.model, lm.tokenizer',
            "```",
            "",
            "The base model alone is in `base/`, the adapters are in `adapter-*/`.",
        ]
    else:
        auto = (
            "AutoModelForSequenceClassification"
            if name.endswith("ForSequenceClassification")
            else {
                "encoder": "AutoModelForMaskedLM",
                "decoder": "AutoModelForCausalLM",
                "encoder-decoder": "AutoModelForSeq2SeqLM",
            }[lm.family]
        )
        custom = ["import tunesmith.hf  # registers the model's number format with transformers"] if _custom(lm) else []
        lines += [
            "```python",
            f"from transformers import AutoTokenizer, {auto}",
            *custom,
            "",
            f'model = {auto}.from_pretrained("this/folder")',
            'tokenizer = AutoTokenizer.from_pretrained("this/folder")',
            "```",
        ]
    lines += ["", "## How it was made", ""]
    gone = [kind for kind in had if kind not in left]
    if gone:
        lines.append(f"- Adapters folded into the weights: {', '.join(gone)}.")
    if left:
        lines.append(f"- Adapters kept beside the weights: {', '.join(left)}.")
    lines += [f"- {line}" for line in origin] or ["- Taken over as it was; what came before is not recorded beside it."]
    lines += [
        "",
        "## Evaluation",
        "",
        *_scores(Path(start)),
        "",
        "## Licence",
        "",
        "The licence of the base model and of the data it was trained on applies; tunesmith adds none. Fill it in here before you "
        "publish this folder.",
        "",
    ]
    return "\n".join(lines)


def _custom(lm: LM) -> bool:
    return getattr(lm.model.config, "quantization_config", None) is not None


def _origin(start: Path) -> list[str]:
    """Return what the manifest of the artifact that was exported says about its making."""
    try:
        manifest = json.loads((start / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [] if start.is_dir() else [f"Base model: `{start}`."]
    producer = manifest.get("producer")
    if not producer:
        return []
    return ["Produced by this stage:", "", "```json", json.dumps(producer, indent=1, ensure_ascii=False), "```"]


def _scores(start: Path) -> list[str]:
    """Return the scores that stand beside the exported artifact, if its stage made any."""
    file = start.parent / "scores" / "scores.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        rows = [
            f"| {entry['name']} | {label} | {score['value']:.4f} | {entry['n']} |"
            for entry in found
            for label, score in entry["scores"].items()
        ]
    except (OSError, ValueError, KeyError, TypeError):
        rows = []
    if not rows:
        return ["The stage that made this model recorded no scores; see the run's report."]
    return ["| metric | score | value | items |", "|---|---|---|---|", *rows]


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

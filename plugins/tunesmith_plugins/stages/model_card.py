"""The model card of an exported model: how to load it, how it was made, what it scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attrs import field, frozen

from tunesmith import __version__
from tunesmith.lm import LM

AUTO = {
    "encoder": "AutoModelForMaskedLM",
    "decoder": "AutoModelForCausalLM",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
}


@frozen(kw_only=True)
class Record:
    """What is known about a model's making.

    Attributes:
        base: Hub name or folder, where the model was taken over as it was; "" if a stage made it.
        stage: The ``result.json`` of the stage that made it; empty if none did.
        pipeline: The pipeline that the stage belongs to; empty if not known.
        scores: Contents of ``scores.json`` of stages that evaluated exactly this model.
    """

    base: str = ""
    stage: dict[str, Any] = field(factory=dict)
    pipeline: dict[str, Any] = field(factory=dict)
    scores: tuple[dict[str, Any], ...] = ()


def record_of(start: str) -> Record:
    """Collect what the run folder around an artifact says; an artifact outside of one says nothing but its name."""
    artifact = Path(start)
    stage = _read(artifact.parent / "result.json")
    if not stage:
        return Record(base=start)
    made = stage.get("artifacts", {}).get(artifact.name, {}).get("digest")
    scores: list[dict[str, Any]] = []
    for other in sorted(artifact.parent.parent.glob("*/result.json")):
        begun = _read(other).get("identity", {}).get("start")  # a stage that uses no model has none
        if made and isinstance(begun, dict) and begun.get("artifact") == made:
            scores += _read_list(other.parent / "scores" / "scores.json")
    return Record(stage=stage, pipeline=_read(artifact.parent.parent.parent / "pipeline.json"), scores=tuple(scores))


def card(lm: LM, record: Record, had: list[str], left: list[str]) -> str:
    """Return the card as Markdown.

    Args:
        lm: The exported model.
        record: Of its making.
        had: Names of the adapters before the export.
        left: Those that are still adapters.
    """
    name = type(lm.model).__name__
    parts = [
        f"---\nlibrary_name: {'tunesmith' if left else 'transformers'}\ntags:\n- tunesmith\n---",
        f"# {getattr(lm.model.config, 'model_type', name)} ({name})",
        f"Exported by tunesmith {__version__}. {lm.parameter_count():,} parameters, family: {lm.family}.",
        "## How to load it",
        _with_tunesmith(left) if left else _with_transformers(lm, name),
        "## How it was made",
        *_making(record, [kind for kind in had if kind not in left], left),
        "## Evaluation",
        _evaluation(record),
        "## Licence",
        "The licences of the base model and of the data it was trained on apply; tunesmith adds none. Write them here before "
        "you publish this folder.",
    ]
    return "\n\n".join(parts) + "\n"


def _with_tunesmith(left: list[str]) -> str:
    return (
        f"This folder holds a base model and adapters that are not merged into its weights ({', '.join(left)}). "
        "`from_pretrained` on this folder does **not** give this model; tunesmith does:\n\n"
        '```python\nimport tunesmith\n\nlm = tunesmith.load("this/folder")  # lm.model, lm.tokenizer\n```\n\n'
        "The base model alone is in `base/`, the adapters are in `adapter-*/`."
    )


def _with_transformers(lm: LM, name: str) -> str:
    classifier = name.endswith("ForSequenceClassification")
    auto = "AutoModelForSequenceClassification" if classifier else AUTO[lm.family]
    quantised = getattr(lm.model.config, "quantization_config", None) is not None
    lines = [
        f"from transformers import AutoTokenizer, {auto}",
        *(["import tunesmith.hf  # registers the model's number format with transformers"] if quantised else []),
        "",
        f'model = {auto}.from_pretrained("this/folder")',
        'tokenizer = AutoTokenizer.from_pretrained("this/folder")',
    ]
    return "```python\n" + "\n".join(lines) + "\n```"


def _making(record: Record, gone: list[str], left: list[str]) -> list[str]:
    said = []
    if gone:
        said.append(f"Adapters folded into the weights: {', '.join(gone)}.")
    if left:
        said.append(f"Adapters kept beside the weights: {', '.join(left)}.")
    if record.stage:
        made = {key: record.stage[key] for key in ("name", "use", "version", "config", "seed") if key in record.stage}
        versions = ", ".join(f"{k} {v}" for k, v in sorted(record.stage.get("versions", {}).items()))
        said.append(f"The stage that made it:\n\n{_json(made)}")
        said.append(f"Versions: {versions}.")
    else:
        said.append(f"The model was taken over as it was from `{record.base}`.")
    if record.pipeline:
        said.append(
            f"The whole pipeline (`tunesmith run` takes it as a file; it names paths as they were given):\n\n{_json(record.pipeline)}"
        )
    return said


def _evaluation(record: Record) -> str:
    rows = []
    for entry in record.scores:
        for label, score in entry.get("scores", {}).items():
            value, low, high = (score.get(name) for name in ("value", "low", "high"))
            shown = "not finite" if value is None else f"{value:.4f}"
            interval = f"{low:.4f} to {high:.4f}" if low is not None and high is not None else "none"
            rows.append(f"| {entry.get('name')} | {label} | {shown} | {interval} | {entry.get('n')} |")
    if not rows:
        return "No stage of the run evaluated exactly this model; see the run's report for what was measured."
    return "\n".join(["| metric | score | value | interval | items |", "|---|---|---|---|---|", *rows])


def _json(value: Any) -> str:
    return "```json\n" + json.dumps(value, indent=1, ensure_ascii=False) + "\n```"


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_list(file: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []

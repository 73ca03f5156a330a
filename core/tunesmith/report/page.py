"""The report: one self-contained HTML page of a run, without scripts and without a network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from tunesmith.errors import ArtifactError
from tunesmith.report import cells, content, plots
from tunesmith.report.content import Content, Samples

if TYPE_CHECKING:
    from pathlib import Path

    from tunesmith.pipeline.run import Run, StageResult

TEMPLATE = "page.html.j2"
SAMPLES = 12
"""Most rows of a table of texts."""

_NO_EFFECT = re.compile(r"\bno (clear |measurable )?(effect|difference)\b", re.IGNORECASE)
_WORDS = re.compile(r"\b(better|faster|more varied|worse|slower|less varied)\b(?= (than|by)\b|[.,;:]|$)", re.IGNORECASE)
_DENIAL = re.compile(r"\b(not|no|never|neither|cannot)\b|n't\b", re.IGNORECASE)
_TONES = {
    "better": "good",
    "faster": "good",
    "more varied": "good",
    "worse": "bad",
    "slower": "bad",
    "less varied": "bad",
}


@frozen(kw_only=True)
class Verdict:
    """A sentence.

    Attributes:
        text: The sentence.
        stage: The stage that says it.
        word: What it comes to in a word: ``"better"``, ``"worse"``, ``"slower"``, ``"no effect"``; "" for none of them.
        tone: ``"good"``, ``"bad"`` or ``"even"``, as the word is.
    """

    text: str
    stage: str
    word: str
    tone: str


@frozen(kw_only=True)
class Section:
    """What the page says of a stage.

    Attributes:
        result: The stage.
        anchor: Its place in the page.
        short: Its name without the names of what it is a part of.
        verdicts: Its sentences.
        tables: Title, columns, rows of cells, note.
        plots: Title, SVG and a remark on how it is drawn.
        samples: Title, columns, rows.
        options: Option to value, as configured.
        summary: What it returned.
        facts: Seed, time, versions and the like.
        artifacts: Name, kind, size, digest.
        parts: The stages it consists of.
    """

    result: StageResult
    anchor: str
    short: str
    verdicts: list[Verdict]
    tables: list[dict[str, Any]]
    plots: list[dict[str, str]]
    samples: list[dict[str, Any]]
    options: dict[str, str]
    summary: dict[str, str]
    facts: dict[str, str]
    artifacts: list[dict[str, str]]
    parts: list[Section] = field(factory=list)


def render(run: Run) -> str:
    """Return the page of a run as HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tunesmith.report", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"duration": cells.duration, "size": cells.size, "number": cells.number}
    sections = _tree([_section(stage) for stage in run.stages.values()])
    verdicts = [verdict for section in sections for verdict in section.verdicts]
    seconds = sum(stage.seconds or 0.0 for stage in run.stages.values())
    page: str = environment.get_template(TEMPLATE).render(
        title=run.folder.name,
        run=run,
        record=run.record,
        sections=sections,
        stages=list(run.stages.values()),
        verdicts=verdicts,
        journeys=journeys(run),
        seconds=seconds,
        longest=max((stage.seconds or 0.0 for stage in run.stages.values()), default=0.0),
        anchors={stage.name: _anchor(stage.name) for stage in run.stages.values()},
    )
    return page


def journeys(run: Run) -> list[dict[str, str]]:
    """Return plots of the scores that were measured alike in several places, in the order of the run.

    One plot for the main score of each metric.
    """
    found: dict[tuple[str, str, str, int], list[plots.Mark]] = {}
    for stage in run.stages.values():
        for label, entry in _scores(stage):
            for name, score in list(entry["scores"].items())[:1]:
                metric = str(entry.get("metric", entry["name"]))
                title = cells.score_name(metric, name)
                if score["value"] is None:
                    continue
                mark = plots.Mark(label=label, value=score["value"], low=score.get("low"), high=score.get("high"))
                found.setdefault((title, name, entry["signature"], entry["n"]), []).append(mark)
    return [
        {"title": title, "svg": plots.dots(title, marks), "note": f"{n} examples; {_bars(marks)}"}
        for (title, _, _, n), marks in found.items()
        if len(marks) > 1
    ]


def _bars(marks: list[plots.Mark]) -> str:
    return "no intervals" if all(mark.low is None for mark in marks) else "bars are intervals"


def stage_content(stage: StageResult) -> Content:
    """Return everything that a stage's artifacts want shown, as one content."""
    parts = [content.read(folder) for folder in stage.artifacts.values() if (folder / content.FILE).is_file()]
    whole = Content(
        verdicts=tuple(v for part in parts for v in part.verdicts),
        tables=tuple(t for part in parts for t in part.tables),
        series=tuple(s for part in parts for s in part.series),
        scatters=tuple(s for part in parts for s in part.scatters),
        samples=tuple(s for part in parts for s in part.samples),
    )
    if whole.samples:
        return whole
    written = [stage.artifacts[name] for name, kind in stage.kinds.items() if kind == "generations"]
    return Content(
        verdicts=whole.verdicts,
        tables=whole.tables,
        series=whole.series,
        scatters=whole.scatters,
        samples=tuple(_generations(folder) for folder in written if (folder / "generations.jsonl").is_file()),
    )


def _section(stage: StageResult) -> Section:
    try:
        shown = stage_content(stage) if stage.status == "done" else Content()
    except (OSError, ValueError, KeyError, TypeError) as cause:
        raise ArtifactError(
            f"the report of stage {stage.name!r} in {stage.folder} cannot be read ({type(cause).__name__}: {cause}). "
            "Run the pipeline again: it checks stored results and makes damaged ones anew."
        ) from cause
    record = stage.record
    return Section(
        result=stage,
        anchor=_anchor(stage.name),
        short=stage.name.rpartition("/")[2],
        verdicts=[verdict(text, stage.name) for text in shown.verdicts],
        tables=[
            {
                "title": t.title,
                "columns": t.columns,
                "rows": cells.rows(t),
                "note": t.note,
                "numbers": cells.number_columns(t),
            }
            for t in shown.tables
            if t.rows
        ],
        plots=[_curves(s) for s in shown.series if s.x]
        + [{"title": s.title, "svg": plots.scatter(s), "note": ""} for s in shown.scatters if s.points],
        samples=[
            {"title": s.title, "columns": s.columns, "rows": s.rows[:SAMPLES], "left": max(0, len(s.rows) - SAMPLES)}
            for s in shown.samples
            if s.rows
        ],
        options=_options(record.get("config", {})),
        summary={name: _value(value) for name, value in _flat(stage.summary).items()},
        facts=_facts(stage),
        artifacts=[
            {"name": name, "kind": entry["kind"], "size": cells.size(entry["bytes"]), "digest": entry["digest"][:16]}
            for name, entry in record.get("artifacts", {}).items()
        ],
    )


def _curves(series: content.Series) -> dict[str, str]:
    longest = max((sum(y is not None for y in values) for values in series.y.values()), default=0)
    note = ""
    if longest >= plots.SMOOTH_FROM:
        note = f"Pale: every step. Strong: mean of the last {plots.window(longest)} steps."
    return {"title": series.title, "svg": plots.series(series), "note": note}


def _tree(sections: list[Section]) -> list[Section]:
    """Return the top sections, each with its parts in it."""
    by_name = {section.result.name: section for section in sections}
    top: list[Section] = []
    for section in sections:
        parent = by_name.get(section.result.name.rpartition("/")[0])
        (parent.parts if parent is not None else top).append(section)
    return top


def _scores(stage: StageResult) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name, kind in stage.kinds.items():
        path: Path = stage.artifacts[name] / "scores.json"
        if kind == "scores" and path.is_file():
            for entry in json.loads(path.read_text(encoding="utf-8")):
                found.append((f"{stage.name}/{entry['of']}" if entry.get("of") else stage.name, entry))
    return found


def _generations(folder: Path) -> Samples:
    """Return the first texts that were generated, side by side by sampler."""
    rows: dict[str, dict[str, str]] = {}
    columns = ["prompt"]
    with (folder / "generations.jsonl").open(encoding="utf-8") as stream:
        for line in stream:
            record = json.loads(line)
            if record["id"] not in rows and len(rows) == SAMPLES:
                continue
            label = record.get("sampler") or "text"
            if record.get("stream"):
                label = f"{label} {record['stream'] + 1}"
            if label not in columns:
                columns.append(label)
            rows.setdefault(record["id"], {"prompt": record["prompt"]})[label] = record["text"]
    return Samples(title="Texts", columns=tuple(columns), rows=tuple(rows.values()))


def _facts(stage: StageResult) -> dict[str, str]:
    record = stage.record
    if not record:
        return {}
    return {
        "component": f"{record['use']} {record['version']}",
        "seed": str(record["seed"]),
        "device": record["device"],
        "threads": str(record["threads"]) if record["threads"] else "torch's choice",
        "time": cells.duration(record["seconds"]) + (" (resumed: of the last attempt)" if record["resumed"] else ""),
        "finished": record["finished"].replace("T", " ").replace("Z", " UTC"),
        "result": record["key"],
    }


def _options(config: Mapping[str, Any]) -> dict[str, str]:
    return {name: spelled(value) for name, value in config.items() if name != "name"}


def spelled(value: Any) -> str:
    """Return a value of a dumped config as people write it: ``lora(rank=8)``."""
    if isinstance(value, Mapping) and "use" in value:
        options = ", ".join(f"{name}={spelled(item)}" for name, item in value.get("config", {}).items())
        name = str(value["use"]).removeprefix("tunesmith/")
        return f"{name}({options})" if options else name
    if isinstance(value, Mapping) and set(value) <= {"stage", "artifact"} and "stage" in value:
        return f'output("{value["stage"]}", "{value.get("artifact", "model")}")'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {spelled(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(spelled, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {
            k: v for name, item in value.items() for k, v in _flat(item, f"{path}.{name}" if path else name).items()
        }
    if isinstance(value, list) and len(value) > 8:
        return {path: f"{len(value)} values"}
    return {path: value}


def _value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–" if value is None else (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return cells.number(value)


def verdict(text: str, stage: str) -> Verdict:
    """Return a sentence with the word that sums it up, where it plainly says one and denies nothing."""
    if _NO_EFFECT.search(text):
        return Verdict(text=text, stage=stage, word="no effect", tone="even")
    found = _WORDS.search(text)
    if found is None or _DENIAL.search(text):
        return Verdict(text=text, stage=stage, word="", tone="even")
    word = found[1].lower()
    return Verdict(text=text, stage=stage, word=word, tone=_TONES[word])


def _anchor(name: str) -> str:
    return "stage-" + re.sub(r"[^A-Za-z0-9_-]", "-", name)

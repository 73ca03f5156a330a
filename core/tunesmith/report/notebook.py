"""What notebooks show of pipelines, plans and runs: small tables that need no style sheet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from tunesmith.report.cells import duration

if TYPE_CHECKING:
    from tunesmith.pipeline.plan import Plan
    from tunesmith.pipeline.run import Run
    from tunesmith.pipeline.value import Pipeline


def pipeline_html(pipeline: Pipeline) -> str:
    """Return a pipeline as a table of its stages."""
    from tunesmith.report.page import spelled
    from tunesmith.spec import dump

    rows = []
    for node in pipeline.nodes:
        try:
            data = dump(node.config)
            use, options = (
                data["use"],
                {k: v for k, v in data["config"].items() if k not in ("name", "start", "branches")},
            )
        except Exception:  # a component that was not registered can be run nowhere, but looked at
            use, options = type(node.config).__name__, {}
        text = ", ".join(f"{name}={spelled(value)}" for name, value in options.items())
        rows.append((node.name, use, node.start or "–", ", ".join(dict.fromkeys(map(str, node.inputs.values()))), text))
    head = f"Pipeline over {pipeline.base or 'no base model'}, seed {pipeline.seed}, {pipeline.dtype}"
    return _table(head, ("stage", "component", "starts from", "reads", "options"), rows)


def plan_html(plan: Plan) -> str:
    """Return a plan as a table."""
    rows = [(step.name, step.use, step.status, step.why) for step in plan.steps]
    return _table(f"Plan for {plan.folder}", ("stage", "component", "status", "why"), rows)


def run_html(run: Run) -> str:
    """Return a run as a table of stages and what they returned."""
    rows = [
        (
            stage.name,
            stage.status,
            "–" if stage.seconds is None else duration(stage.seconds),
            ", ".join(f"{name} {_short(value)}" for name, value in list(stage.summary.items())[:6]),
        )
        for stage in run.stages.values()
    ]
    return _table(f"Run in {run.folder}", ("stage", "status", "time", "summary"), rows)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _table(head: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    names = "".join(f'<th style="text-align:left">{escape(name)}</th>' for name in columns)
    lines = "".join(
        "<tr>" + "".join(f'<td style="text-align:left">{escape(str(cell))}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    caption = f'<caption style="text-align:left;font-weight:bold">{escape(head)}</caption>'
    return f"<table>{caption}<thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>"

"""``tunesmith exam``: RL algorithms in worlds whose optimum is known."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="exam")
@click.argument("algorithms", nargs=-1, required=True, metavar="ALGORITHM...")
@click.option(
    "--policy", type=click.Choice(("tabular", "causal", "seq2seq")), default="tabular", show_default=True,
    help="A table, which can be any distribution (seconds), or a tiny Llama or T5 (minutes).",
)  # fmt: skip
@click.option(
    "--beta", "betas", type=click.FloatRange(min=0, min_open=True), multiple=True, default=(0.1, 0.3), show_default=True,
    help="Weight of the KL term; repeatable.",
)  # fmt: skip
@click.option("--seeds", type=click.IntRange(1, 8), default=5, show_default=True, help="How many of the eight worlds.")
@click.option(
    "--threshold", type=float, default=0.95, show_default=True, help="The status is 1 if a score is below this."
)
@click.option(
    "--distance", type=click.FloatRange(0, 1), default=None,
    help="Also if the total variation to the algorithm's own fixed point, where it declares one, is above this.",
)  # fmt: skip
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Write every number here.")
@click.option(
    "--plot", "plot_file", type=click.Path(path_type=Path, dir_okay=False), help="Write a plot here (.png, .svg, .pdf)."
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.pass_context
def command(
    ctx: click.Context,
    algorithms: tuple[str, ...],
    policy: str,
    betas: tuple[float, ...],
    seeds: int,
    threshold: float,
    distance: float | None,
    json_file: Path | None,
    plot_file: Path | None,
    threads: int,
) -> None:
    """Train each ALGORITHM in worlds of 341 answers whose optimum is known, and print how close it came.

    ALGORITHM is a name or a short spelling, e.g. ppo or 'ppo(batch_size=512)'; what it leaves open is set as the algorithm
    says it should be for the exam. The score is the share of the attainable gain in E[reward] - beta KL: 0 is the reference,
    1 the optimum.
    """
    from rich.console import Console

    from tunesmith.runtime import Runtime
    from tunesmith.testing.exam import check_family, examine
    from tunesmith.testing.exam_output import check_plot, plot, remarks, tables, verdict
    from tunesmith.writable import check_file

    # what cannot be done is found before anything is trained
    for algorithm in algorithms:
        check_family(algorithm, policy, betas[0])  # type: ignore[arg-type]
    if plot_file is not None:
        check_plot(plot_file)
    if json_file is not None:
        check_file(json_file, "--json")
    console = Console() if Console().is_terminal else Console(width=110)
    exams = []
    for algorithm in algorithms:
        exam = examine(
            algorithm,
            policy=policy,  # type: ignore[arg-type]
            betas=betas,
            seeds=seeds,
            runtime=Runtime(threads=threads),
            after=lambda a: click.echo(
                f"beta {a.beta:g}, seed {a.seed}: score {a.score:.3f}, {a.seconds:.1f} s", err=True
            ),
        )
        exams.append(exam)
        for table in tables(exam):
            console.print(table)
        for line in [*remarks(exam), verdict(exam, threshold, distance)]:
            console.print(line, markup=False, highlight=False)
        if json_file is not None:  # after each, since the next one may fail
            _write(json_file, exams, threshold, distance)
    if plot_file is not None:
        plot(exams, plot_file, threshold)
    ctx.exit(0 if all(exam.passed(threshold, distance) for exam in exams) else 1)


def _write(file: Path, exams: list, threshold: float, distance: float | None) -> None:  # type: ignore[type-arg]
    import json

    import attrs

    record = {
        "threshold": threshold,
        "distance": distance,
        "exams": [{**attrs.asdict(exam), "passed": exam.passed(threshold, distance)} for exam in exams],
    }
    file.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")

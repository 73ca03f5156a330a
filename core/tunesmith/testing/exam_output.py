"""An exam as a table and as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ConfigError
from tunesmith.testing.exam import Attempt, Exam, Mean, mean
from tunesmith.writable import check_file

if TYPE_CHECKING:
    from rich.table import Table

COLOURS = ("#2a6fbb", "#d1602b", "#3a8f5c", "#8a4fa3", "#b8912a", "#5a6b7b")


def tables(exam: Exam) -> Iterator[Table]:
    """Yield one rich table a beta: a row a world, and their means with intervals."""
    from rich import box
    from rich.table import Table

    for beta in exam.betas:
        table = Table(
            title=f"{exam.algorithm}, {exam.policy} policy, beta {beta:g}", box=box.SIMPLE_HEAD, title_justify="left"
        )
        for name in ("seed", "J ref", "J", "J*", "KL", "KL*", "score", "TV tilt", "TV own", "s"):
            table.add_column(name, justify="right", no_wrap=True)
        attempts = exam.at(beta)
        for a in attempts:
            table.add_row(
                str(a.seed),
                *(f"{value:.3f}" for value in (a.start, a.objective, a.best, a.kl, a.best_kl, a.score)),
                _distance(a.tilt_distance),
                "-" if a.target_distance is None else _distance(a.target_distance),
                f"{a.seconds:.1f}",
            )
        table.add_section()
        table.add_row("mean", *("" for _ in range(5)), *_means(attempts))
        yield table


def _means(attempts: Sequence[Attempt]) -> tuple[str, ...]:
    own = [a.target_distance for a in attempts if a.target_distance is not None]
    return (
        str(mean([a.score for a in attempts])),
        _distance(mean([a.tilt_distance for a in attempts]).value),
        _distance(mean(own).value) if own else "-",
        f"{mean([a.seconds for a in attempts]).value:.1f}",
    )


def _distance(value: float) -> str:
    return f"{value:.3f}" if value >= 0.01 else f"{value:.1e}"


def remarks(exam: Exam) -> list[str]:
    """Return in words what the algorithm's own fixed point is worth, and how exact the evaluation was."""
    found = []
    for said in dict.fromkeys(a.optimises for a in exam.attempts if a.optimises):
        where = ", ".join(f"{beta:g}" for beta in exam.betas if any(a.optimises == said for a in exam.at(beta)))
        found.append(f"beta {where}: it says that it optimises {said}")
    for beta in exam.betas:
        targets = [a.target_score for a in exam.at(beta)]
        known = [score for score in targets if score is not None]
        if not known:
            found.append(f"beta {beta:g}: it declares no fixed point of its own")
        elif min(known) > 1 - 1e-9:
            found.append(f"beta {beta:g}: its own fixed point is the tilt")
        else:
            found.append(f"beta {beta:g}: its own fixed point is not the tilt; that point scores {mean(known)}")
    error = max(a.identity_error for a in exam.attempts)
    return [*found, f"J* - J = beta KL(pi || pi*) held to {error:.0e} at every evaluation"]


def verdict(exam: Exam, threshold: float, distance: float | None) -> str:
    """Return in words whether the exam was passed, and what was worst."""
    worst = min(exam.attempts, key=lambda a: a.score)
    where = f"{worst.score:.3f} (beta {worst.beta:g}, seed {worst.seed})"
    text = f"lowest score {where}; {threshold:g} is demanded"
    known = [a.target_distance for a in exam.attempts if a.target_distance is not None]
    if distance is not None and known:
        text += f"; largest distance to its own fixed point {max(known):.1e}; {distance:g} is allowed"
    return f"{'passed' if exam.passed(threshold, distance) else 'FAILED'}: {text}"


def check_plot(file: Path) -> None:
    """Check that a plot can be written to such a file, before hours of work are to be drawn.

    Raises:
        ConfigError: If it cannot be written, or matplotlib does not know its ending.
    """
    from matplotlib.figure import Figure

    known = Figure().canvas.get_supported_filetypes()
    if file.suffix.lstrip(".").lower() not in known:
        raise ConfigError([f"{str(file)!r} must end with one of .{', .'.join(sorted(known))}"], "--plot")
    check_file(file, "--plot")


def plot(exams: Sequence[Exam], file: Path, threshold: float | None = None) -> None:
    """Draw J, KL against KL*, score and seconds of every world; the file's ending decides the format.

    Raises:
        ConfigError: See :func:`check_plot`.
    """
    check_plot(file)
    from matplotlib.figure import Figure  # without pyplot, which would choose a window system

    figure = Figure(figsize=(9.6, 6.6), layout="constrained")
    gain, kl, score, seconds = figure.subplots(2, 2).flat
    groups = [(exam, beta) for exam in exams for beta in exam.betas]
    labels = [f"{exam.algorithm}\n{exam.policy}, beta {beta:g}" for exam, beta in groups]
    for place, (exam, beta) in enumerate(groups):
        colour, attempts = COLOURS[place % len(COLOURS)], exam.at(beta)
        spots = [place + 0.1 * (i - (len(attempts) - 1) / 2) for i in range(len(attempts))]
        for spot, a in zip(spots, attempts, strict=True):
            gain.plot([spot, spot], [a.start, a.best], color="0.8", linewidth=3, zorder=1)
            gain.plot([spot], [a.objective], "o", color=colour, markersize=5)
        kl.plot([a.best_kl for a in attempts], [a.kl for a in attempts], "o", color=colour, label=labels[place])
        _points(score, spots, [a.score for a in attempts], mean([a.score for a in attempts]), place, colour)
        seconds.bar(spots, [a.seconds for a in attempts], width=0.08, color=colour)
    top = max(max(a.kl, a.best_kl) for exam in exams for a in exam.attempts) * 1.05
    kl.plot([0, top], [0, top], color="0.6", linewidth=1, zorder=0)
    score.axhline(1, color="0.6", linewidth=1)
    if threshold is not None:
        score.axhline(threshold, color="0.6", linewidth=1, linestyle="--")
    gain.set_ylabel("J (grey: from the reference to J*)")
    kl.set(xlabel="KL*, nats", ylabel="KL, nats")
    score.set_ylabel("score")
    seconds.set_ylabel("seconds")
    kl.legend(frameon=False, fontsize=7)
    for axes in (gain, score, seconds):
        axes.set_xticks(range(len(groups)), labels, fontsize=7)
    figure.savefig(file)


def _points(axes: Any, spots: Sequence[float], values: Sequence[float], middle: Mean, place: int, colour: str) -> None:
    axes.plot(spots, values, "o", color=colour, markersize=5)
    axes.errorbar([place + 0.35], [middle.value], yerr=[middle.half_width or 0.0], fmt="_", color=colour, capsize=3)

"""What is shown of the alarms of a training."""

from __future__ import annotations

from tunesmith.alarms.watch import Watch
from tunesmith.report.content import Content, Series, Table

TITLES = {
    "held_out": ("Held-out score", ""),
    "diversity": ("Diversity", "share of different n-grams"),
    "perplexity": ("Cross-entropy under the reference", "nats a token"),
    "length": ("Watched length", "tokens"),
    "kl": ("Distance to the reference", "square root of nats"),
    "disagreement": ("Disagreement of the ensemble", "units of the score"),
}


def content(watch: Watch) -> Content:
    """Return a sentence an alarm, a table with a row for every one that was on, and the series they looked at."""
    seen = len(watch.series["reward"])
    if not seen:
        return Content(verdicts=("No alarm could go off: the algorithm does not tell observers of its steps.",))
    went_off = {alarm.name: alarm for alarm in watch.fired}
    rows: list[tuple[str | float | None, ...]] = []
    for name in watch.names:
        alarm = went_off.get(name)
        if alarm is None:
            known = any(value is not None for value in watch.series[name])
            rows.append((name, "silent" if known else "nothing to look at", None, None, None, None))
        else:
            rows.append((name, f"step {alarm.step + 1}", alarm.before, alarm.after, alarm.statistic, alarm.threshold))
    rate = watch.config.false_alarms
    table = Table(
        title="Alarms",
        columns=("alarm", "went off", "from", "to", "standard errors", "threshold"),
        rows=tuple(rows),
        note=f"Thresholds are such that at most {rate:.0%} of trainings in which nothing gets worse than tolerated set off any "
        f"of these. Windows of {watch.config.window} steps.",
    )
    return Content(verdicts=_verdicts(watch), tables=(table,), series=_series(watch))


def _verdicts(watch: Watch) -> tuple[str, ...]:
    told = [alarm.told() for alarm in sorted(watch.fired, key=lambda alarm: alarm.step)]
    short = len(watch.series["reward"]) < 2 * watch.config.window
    if short:
        told.append(
            f"The training has fewer than {2 * watch.config.window} steps, too few for any alarm; use a shorter window."
        )
    return tuple(told) or (f"No alarm went off ({', '.join(watch.names)}).",)


def _series(watch: Watch) -> tuple[Series, ...]:
    x = tuple(float(step + 1) for step in range(len(watch.series["reward"])))
    return tuple(
        Series(title=TITLES[name][0], x_label="step", x=x, y={name: tuple(watch.series[name])}, y_label=TITLES[name][1])
        for name in watch.names
        if any(value is not None for value in watch.series[name])
    )

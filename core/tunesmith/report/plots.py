"""Plots as inline SVG whose colours are the page's own, so that they follow its light and dark theme.

matplotlib draws with stand-in colours, which become CSS variables afterwards.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import count
from typing import Any, ParamSpec

from attrs import frozen

from tunesmith.report.content import Point, Scatter, Series

P = ParamSpec("P")

SERIES_COLOURS = 8
SMOOTH_FROM = 60
"""A curve of at least so many points is also drawn as a running mean."""

_VARIABLES = {
    "#0f0e01": "--ink",
    "#0f0e02": "--soft",
    "#0f0e03": "--line",
    **{f"#0f0a{index:02x}": f"--c{index}" for index in range(SERIES_COLOURS)},
}
_INK, _SOFT, _LINE, *_COLOURS = _VARIABLES
_STYLE: dict[str, Any] = {
    "axes.edgecolor": _LINE,
    "axes.grid": True,
    "axes.labelcolor": _SOFT,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 9.5,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.labelcolor": _INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "tunesmith",
    "text.color": _INK,
    "text.parse_math": False,  # a dollar sign in someone's label is a dollar sign
    "xtick.color": _LINE,
    "xtick.labelcolor": _SOFT,
    "ytick.color": _LINE,
    "ytick.labelcolor": _SOFT,
}
_numbers = count(1)


@frozen(kw_only=True)
class Mark:
    """A labelled value with its interval, for :func:`dots`."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


def _styled(draw: Callable[P, str]) -> Callable[P, str]:
    """Let a function draw in our style; other drawings of the process keep theirs."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> str:
        import matplotlib

        with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
            # the browser has the fonts for what matplotlib's own font lacks
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            return draw(*args, **kwargs)

    return styled


@_styled
def series(content: Series) -> str:
    """Return curves over a shared x axis as SVG."""
    figure, axes = _figure(6.4, 3.1)
    for index, (label, values) in enumerate(content.y.items()):
        known = [(x, y) for x, y in zip(content.x, values, strict=True) if y is not None]
        if not known:
            continue
        x, y = [x for x, _ in known], [y for _, y in known]
        colour = _COLOURS[index % SERIES_COLOURS]
        marker = "o" if len(known) <= 25 else None
        if len(known) < SMOOTH_FROM:
            axes.plot(x, y, color=colour, linewidth=1.8, marker=marker, markersize=3.5, label=label)
        else:
            axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.3)
            axes.plot(x, running_mean(y, window(len(y))), color=colour, linewidth=2.0, label=label)
    axes.set_xlabel(content.x_label)
    axes.set_ylabel(content.y_label)
    if len(content.y) > 1:
        axes.legend(loc="best")
    return _svg(figure, content.title)


@_styled
def scatter(content: Scatter) -> str:
    """Return labelled points with their intervals as SVG; an axis over more than a decade and a half is logarithmic.

    A frontier is a dashed line, and points that are not on it are hollow.
    """
    figure, axes = _figure(6.4, 3.6)
    joined = sorted((point.x, point.y) for point in content.points if point.label in content.frontier)
    if joined:
        axes.plot(*zip(*joined, strict=True), color=_SOFT, linewidth=1.2, linestyle="--", zorder=1)
    for index, point in enumerate(content.points):
        colour = _COLOURS[index % SERIES_COLOURS]
        hollow = {"markerfacecolor": "none"} if content.frontier and point.label not in content.frontier else {}
        axes.errorbar(
            [point.x], [point.y], yerr=_errors(point), fmt="o", color=colour, markersize=7, elinewidth=1.4, **hollow
        )
        axes.annotate(
            point.label, (point.x, point.y), xytext=(7, 5), textcoords="offset points", fontsize=9, color=_INK
        )
    xs = [point.x for point in content.points]
    if xs and min(xs) > 0 and max(xs) / min(xs) > 30:
        axes.set_xscale("log")
    if xs and max(xs) >= 1e4:
        from matplotlib.ticker import EngFormatter

        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(0.14, 0.16)
    axes.set_xlabel(content.x_label)
    axes.set_ylabel(content.y_label)
    return _svg(figure, content.title)


@_styled
def dots(title: str, marks: Sequence[Mark]) -> str:
    """Return one row a mark, each a dot with its interval, as SVG."""
    figure, axes = _figure(6.4, 0.62 + 0.31 * len(marks))
    for row, mark in enumerate(marks):
        colour = _COLOURS[0]
        if mark.low is not None and mark.high is not None:
            axes.plot([mark.low, mark.high], [row, row], color=colour, linewidth=5, alpha=0.28, solid_capstyle="round")
        axes.plot([mark.value], [row], "o", color=colour, markersize=7)
    axes.set_yticks(range(len(marks)), [mark.label for mark in marks])
    axes.tick_params(axis="y", labelcolor=_INK, length=0)
    axes.set_ylim(len(marks) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    return _svg(figure, title)


def window(points: int) -> int:
    """Return over how many points the running mean of a curve goes."""
    return max(2, points // 20)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Return the mean of each value and up to ``width - 1`` before it."""
    return [math.fsum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))]


def _errors(point: Point) -> list[list[float]] | None:
    if point.y_low is None or point.y_high is None:
        return None
    return [[max(0.0, point.y - point.y_low)], [max(0.0, point.y_high - point.y)]]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    # figures of their own, without pyplot: that would keep a global list of them and choose a window system
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    from markupsafe import escape

    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'font: ([\d.]+px) [^;"]*', r"font-size: \1", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    # several drawings share a page, so their names must not clash
    own = f"p{next(_numbers)}-"
    text = re.sub(r'\bid="', f'id="{own}', text)
    text = text.replace("url(#", f"url(#{own}").replace('xlink:href="#', f'xlink:href="#{own}')
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    opening = (
        f'<svg class="plot" role="img" aria-label="{escape(title)}" viewBox="0 0 {size[1]} {size[2]}"'
        if size
        else "<svg"
    )
    links = 'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg"'
    return re.sub(r"<svg[^>]*>", lambda _: f"{opening} {links}>", text, count=1)

"""Numbers and drawings."""

from __future__ import annotations

import pytest

from tunesmith.report import cells, plots
from tunesmith.report.content import Content, Point, Scatter, Series, Table, read


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234567, "1\u202f234\u202f567"),
        (0.041, "0.04100"),
        (41.26, "41.26"),
        (20.0, "20"),
        (12345.6, "12\u202f346"),
        (0.00001234, "1.23e-05"),
        (-0.5, "-0.5000"),
        (1e20, "1e+20"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_have_four_digits(value, text):
    assert cells.number(value) == text


def test_intervals_have_the_digits_that_their_width_allows():
    assert cells.interval(0.41234, 0.38011, 0.44551) == ("0.412", "0.380", "0.446")
    assert cells.interval(20.512, 18.4, 22.6) == ("20.5", "18.4", "22.6")
    assert cells.interval(1234.5, 1100.0, 1300.0) == ("1\u202f234", "1\u202f100", "1\u202f300")
    assert cells.interval(1.0, 1.0, 1.0) == ("1", "1", "1")


def interval(value, low, high):
    return {"value": value, "low": low, "high": high}


def test_bars_share_a_scale_within_a_column():
    table = Table(title="", columns=("model", "s"), rows=(("a", interval(2, 1, 3)), ("b", interval(4, 3, 5))))
    first, second = (row[1].bar for row in cells.rows(table))
    assert (first.left, first.width, first.dot) == (0, 50, 25)
    assert (second.left, second.width, second.dot) == (50, 50, 75)


def test_scores_of_different_metrics_share_no_scale():
    rows = (
        ("rouge", interval(0.2, 0.1, 0.3)),
        ("rouge", interval(0.4, 0.3, 0.5)),
        ("perplexity", interval(20, 10, 30)),
    )
    shown = cells.rows(Table(title="", columns=("metric", "value"), rows=rows))
    assert shown[0][1].bar.dot == 25
    assert shown[2][1].bar is None  # it has no neighbour


def test_missing_values_are_dashes():
    assert cells.cell(None).text == "–"
    assert cells.cell({"value": None, "low": None, "high": None}).text == "–"
    assert cells.cell({"value": 0.5, "low": None, "high": None}).text == "0.5000"


def test_times_and_sizes_are_for_people():
    assert [cells.duration(s) for s in (0.0123, 5, 200, 7300)] == ["12 ms", "5.0 s", "3 min 20 s", "2 h 01 min"]
    assert [cells.size(n) for n in (12, 2048, 5 * 2**20, 3 * 2**40)] == ["12 B", "2.0 KiB", "5.0 MiB", "3.0 TiB"]


def test_the_running_mean_is_of_the_last_values():
    assert plots.running_mean([1.0, 2.0, 3.0, 6.0], 2) == [1.0, 1.5, 2.5, 4.5]


def test_plots_use_the_colours_of_the_page_and_only_names_of_their_own():
    curve = Series(title="t", x_label="x", x=(1.0, 2.0, 3.0), y={"a": (1.0, None, 2.0), "b": (None, None, None)})
    first, second = plots.series(curve), plots.series(curve)
    assert "var(--c0)" in first
    assert "var(--ink)" in first
    assert "#0f0" not in first
    import re

    assert not set(re.findall(r'\bid="([^"]+)"', first)) & set(re.findall(r'\bid="([^"]+)"', second))


def test_a_wide_range_is_logarithmic():
    points = tuple(Point(label=str(x), x=x, y=1.0) for x in (1.0, 1000.0))
    narrow = tuple(Point(label=str(x), x=x, y=1.0) for x in (1.0, 10.0))
    assert plots.scatter(Scatter(title="", x_label="", y_label="", points=points)).count("matplotlib.axis_") > 0
    wide, plain = (
        plots.scatter(Scatter(title="", x_label="", y_label="", points=p)).count('id="') for p in (points, narrow)
    )
    assert wide != plain  # a logarithmic axis has minor ticks


def test_content_comes_back_equal(tmp_path):
    whole = Content(
        verdicts=("v",),
        tables=(Table(title="t", columns=("a", "b"), rows=(("x", interval(1.0, 0.5, 1.5)), ("y", None))),),
        series=(Series(title="s", x_label="x", x=(1.0, 2.0), y={"a": (None, 2.0)}),),
        scatters=(Scatter(title="c", x_label="x", y_label="y", points=(Point(label="p", x=1.0, y=2.0),)),),
    )
    whole.write(tmp_path)
    assert read(tmp_path) == whole


def test_content_refuses_nan(tmp_path):
    with pytest.raises(ValueError):
        Content(tables=(Table(title="", columns=("a",), rows=((float("nan"),),)),)).write(tmp_path)


@pytest.mark.parametrize(
    ("metric", "score", "name"),
    [
        ("rouge", "rouge1", "rouge1"),
        ("distinct_n", "distinct_2", "distinct_2"),
        ("token_f1", "f1", "token_f1"),
        ("exact_match", "exact_match", "exact_match"),
        ("latency", "tokens_per_second", "latency tokens_per_second"),
    ],
)
def test_a_score_has_one_name(metric: str, score: str, name: str) -> None:
    assert cells.score_name(metric, score) == name

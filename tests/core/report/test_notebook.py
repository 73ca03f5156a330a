"""What notebooks show."""

from __future__ import annotations

from report_toys import Hostile, Learned, Measured

import tunesmith as ts


def test_pipelines_plans_and_runs_show_themselves(course, tmp_path):
    pipeline = ts.Pipeline(base="b<i>", stages=(Learned(name="a", steps=7), Measured(name="e", rouge=0.5)))
    assert "b&lt;i&gt;" in pipeline._repr_html_()
    assert "steps=7" in pipeline._repr_html_()
    assert "it has not run here yet" in pipeline.plan(tmp_path / "r")._repr_html_()
    shown = course._repr_html_()
    assert shown.count("<tr>") == len(course.stages) + 1
    assert "kl 5.9" in shown


def test_texts_are_escaped(tmp_path):
    pipeline = ts.Pipeline(base="b", stages=(Hostile(name="h", text="<script>"),))
    run = pipeline.run(tmp_path / "r", progress=False)
    for shown in (pipeline._repr_html_(), run._repr_html_()):
        assert "&lt;script&gt;" in shown
        assert "<script>" not in shown

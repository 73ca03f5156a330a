"""The page: complete, self-contained, and safe with texts from anywhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from report_toys import Hostile, Learned, Measured

import tunesmith as ts
from tunesmith.errors import ArtifactError, PipelineError
from tunesmith.report.page import journeys, render, spelled, verdict

VOID = {"meta", "input", "br", "hr", "img", "link", "use", "path"}


class Reader(HTMLParser):
    """Collects tags, attributes and texts, and checks that tags are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.problems: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)


@pytest.fixture(scope="module")
def page(course):
    return render(course)


@pytest.fixture(scope="module")
def reader(page):
    return Reader(page)


def test_it_is_well_formed_and_no_name_stands_twice(reader):
    assert reader.problems == []
    assert reader.open == []
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"][1:] for tag, a in reader.tags if tag == "a" and (a.get("href") or "").startswith("#")}
    assert targets <= set(ids)
    uses = re.findall(r"url\(#([^)]+)\)", " ".join(str(a) for _, a in reader.tags))
    assert set(uses) <= set(ids)


def test_it_asks_for_nothing_and_runs_nothing(page, reader):
    assert {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "img", "object", "embed", "form"} == set()
    for tag, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "default-src 'none'" in page
    addresses = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert addresses <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}  # names of formats, not places


def test_it_shows_what_the_stages_wanted_shown(reader):
    text = " ".join(reader.texts)
    for part in (
        "zero-shot",
        "lora, rouge1: no effect seen against full",
        "The reward rose from -0.58 to 1.79",
        "0.410",
        "0.380 – 0.440",
        "Pale: every step. Strong: mean of the last 10 steps.",
        "Anna drives Ben to the lake.",
        "He kindly says that it is broken.",
        "12 288",
        "50 % pruned",
        "8 of 8 stages done",
        "seed",
        "torch",
    ):
        assert part in re.sub(r"\s+", " ", text), part


def test_configuration_seed_and_digests_of_every_stage_are_there(course, page):
    for stage in course.stages.values():
        assert str(stage.record["seed"]) in page
        assert stage.key in page
        for artifact in stage.record["artifacts"].values():
            assert artifact["digest"][:16] in page
    assert "reinforcement" in page
    assert "output(&#34;tuned&#34;, &#34;lora&#34;)" in page


def test_parts_stand_inside_the_stage_they_belong_to(page):
    whole, part, following = (page.index(f'id="stage-{name}"') for name in ("tuned", "tuned-lora", "polite"))
    assert whole < part < following


def test_blank_lines_of_texts_stay(reader):
    assert any("conversation.\n\nAnna" in text for text in reader.texts)


def test_scores_measured_alike_are_drawn_together_and_others_are_not(course, tmp_path):
    found = journeys(course)
    assert [plot["title"] for plot in found] == ["rouge1", "bleu"]
    for label in ("zero-shot", "tuned/start", "tuned/lora", "final"):
        assert f">{label}<" in found[0]["svg"]
    one = ts.Pipeline(base="b", stages=(Measured(name="only"),)).run(tmp_path / "one", progress=False)
    assert journeys(one) == []


EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% for x in y %}",
    "$\\frac{1}{$ & <b> ' \" ]]> --> </style></svg>",
    "\u202e\u0000\ud7ff zero\u200b",
)


@pytest.mark.parametrize("text", EVIL)
def test_hostile_texts_stay_texts(tmp_path, text):
    run = ts.Pipeline(base=text, stages=(Hostile(name="h", text=text),)).run(tmp_path / "h", progress=False)
    page = render(run)
    reader = Reader(page)
    assert reader.problems == []
    assert {tag for tag, _ in reader.tags} & {"script", "img", "b"} <= {"b"}
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert "49" not in [part.strip() for part in reader.texts]
    assert any(text.replace("\u0000", "\ufffd") in part or text in part for part in reader.texts)


def test_an_unfinished_run_has_a_page_too(tmp_path):
    from report_toys import MeasuredStage

    pipeline = ts.Pipeline(base="b", stages=(Learned(name="a"), Measured(name="e"), Learned(name="z")))
    original = MeasuredStage.run
    MeasuredStage.run = lambda self, context: 1 / 0
    try:
        with pytest.raises(PipelineError):
            pipeline.run(tmp_path / "r", progress=False)
    finally:
        MeasuredStage.run = original
    page = render(ts.Run.open(tmp_path / "r"))
    assert "failed" in page
    assert "waiting" in page
    assert Reader(page).problems == []


def test_a_damaged_content_is_named(tmp_path):
    run = ts.Pipeline(base="b", stages=(Learned(name="a"),)).run(tmp_path / "r", progress=False)
    (run.output("a", "report") / "report.json").write_text("{")
    with pytest.raises(ArtifactError, match="the report of stage 'a'"):
        run.report()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("lora, rouge1: better than start by 0.2 [0.1, 0.3], p = 0.001, n = 200.", "better"),
        ("lora, rouge1: worse by 0.2 [0.1, 0.3], p = 0.001, n = 200.", "worse"),
        ("rouge1: no effect seen against full: -0.01 [-0.03, 0.01], p = 0.4, n = 200.", "no effect"),
        ("No effect on the reward: 0.1 in the first 5 steps.", "no effect"),
        ("int8 is 3 times smaller, and at this size 1.4 times slower.", "slower"),
        ("It is not shown to be better than length alone.", ""),
        ("On held-out pairs the better completion gets the higher score.", ""),
        ("The mean reward rose from 0.1 to 0.9.", ""),
    ],
)
def test_a_verdict_is_summed_up_only_where_it_plainly_says_so(text, word):
    assert verdict(text, "s").word == word


def test_configs_are_spelled_as_people_write_them():
    data = {"use": "tunesmith/lora", "version": "0", "config": {"rank": 8, "targets": ["q", "v"]}}
    assert spelled(data) == 'lora(rank=8, targets=["q", "v"])'
    assert spelled({"use": "other/thing", "config": {}}) == "other/thing"
    assert spelled({"stage": "a"}) == 'output("a", "model")'


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_it(course, tmp_path):
    page = course.report(tmp_path / "page.html")
    for width in (1200, 400):
        shot = tmp_path / f"{width}.png"
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},1600"]
        done = subprocess.run(
            [*command, f"--screenshot={shot}", "--dump-dom", f"file://{page}"],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert shot.stat().st_size > 20_000, done.stderr
        assert "Refused to" not in done.stderr  # what the content security policy would have blocked

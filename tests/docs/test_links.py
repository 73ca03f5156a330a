"""Links lead somewhere, paths exist, and no document names a place that is not public."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").glob("*.md"),
        *(ROOT / "benchmarks").glob("*.md"),
        *(ROOT / "tests").glob("*.md"),
        *(ROOT / "contrib").glob("*/README.md"),
    ]
)
HOSTS = {"github.com", "arxiv.org", "doi.org", "aclanthology.org", "www.apache.org", "keepachangelog.com", "semver.org"}
"""The only hosts that documents may name."""
HOST = re.compile(r"(?<![\w./@-])(?:https?://)?((?:[a-z0-9-]+\.)+(?:org|com|net|io|co|dev|ai))\b(?!\()", re.IGNORECASE)
MACHINE = re.compile(r"(?<![\w.~>/-])/(?:work|home|root|Users|tmp|mnt|data|opt)\b")


def prose(text: str) -> str:
    """Return Markdown without its code blocks."""
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)


def links(text: str) -> list[str]:
    without_code = re.sub(r"`[^`\n]*`", "code", prose(text))
    return re.findall(r"\]\(([^)\s]+)\)", without_code) + re.findall(
        r"^\[[^\]]+\]:\s*(\S+)", without_code, re.MULTILINE
    )


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    made = set()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", prose(text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = found.get(slug, 0)
        made.add(f"{slug}-{count}" if count else slug)
        found[slug] = count + 1
    return made


def broken(page: Path) -> list[str]:
    """Return the relative links of a page that lead nowhere."""
    problems = []
    for link in links(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            problems.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            problems.append(f"{link}: {target.name} has no such heading")
    return problems


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files_and_headings(page):
    assert broken(page) == []


def test_a_broken_link_and_a_broken_anchor_are_noticed(tmp_path):
    (tmp_path / "other.md").write_text("# Two words, `code`\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md) [b](other.md#two-words-code) [c](other.md#nothing) [d](missing.md) `[e](not-a-link.md)`\n"
        "```\n[f](missing.md)\n```\n",
        encoding="utf-8",
    )
    assert broken(page) == ["other.md#nothing: other.md has no such heading", "missing.md: no such file"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_of_the_repository_that_are_named_exist(page):
    spans = re.findall(
        r"`((?:core|plugins|docs|examples|tests|benchmarks|contrib|\.ci)/[\w./-]*)`", prose(page.read_text("utf-8"))
    )
    assert [span for span in spans if not (ROOT / span).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_names_a_place_on_a_machine_or_an_unexpected_host(page):
    text = page.read_text(encoding="utf-8")
    assert MACHINE.findall(text) == []
    assert sorted({host.lower() for host in HOST.findall(text)} - HOSTS) == []


@pytest.mark.parametrize("text", ["see /work/it", "cd /home/me", "(/root/.cache)", "`/tmp/x`"])
def test_machine_paths_are_recognised(text):
    assert MACHINE.search(text)


@pytest.mark.parametrize(
    "text", ["at https://example.org/simple", "from packages.example.com", "pip -i http://x.example.io"]
)
def test_hosts_are_recognised(text):
    assert set(HOST.findall(text)) - HOSTS


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_table_of_contents_has_every_page(page):
    if page.name != "index.md":
        assert f"]({page.name})" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def test_the_rooms_of_the_map_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:4] for line in text.splitlines() if re.match(r"\| `", line)]
    assert len(rows) > 15
    for rooms, _, start in rows:
        paths = re.findall(r"`([^`]+)`", rooms.replace("<kind>", "samplers"))
        base = ROOT / paths[0]
        home = base.parent if base.is_file() or len(paths) > 1 else base
        for path in paths[1:]:
            assert (home / path).exists() or (ROOT / path).exists(), path
        for path in re.findall(r"`([\w./-]+)`", start):
            assert any((folder / path).exists() for folder in (home, home.parent, ROOT)), path


def test_every_part_of_core_has_a_room():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    core = ROOT / "core" / "tunesmith"
    own = {"__init__.py", "__main__.py", "py.typed", "__pycache__", "errors.py", "runtime.py", "typecheck.py"}
    parts = [path.name + "/" * path.is_dir() for path in core.iterdir() if path.name not in own]
    assert [part for part in sorted(parts) if f"`{part}`" not in text and f"core/tunesmith/{part}`" not in text] == []

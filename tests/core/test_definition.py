"""The hash of a class's code: what changes it, and what does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tunesmith.definition import definition_digest

MODULE = """
import math

SCALE = 2
TABLE = {}
TABLE["a"] = 1
other = 1


def helper(x):
    return math.sqrt(x) * SCALE


def unused():
    return other


class Base:
    def apply(self):
        other = 3  # a name of its own
        return helper(other) + TABLE["a"]


class Link(Base):
    pass


print(Link)
"""


@pytest.fixture
def digest(tmp_path, monkeypatch):
    """Return the digest of ``Link`` in a module of a given text."""
    monkeypatch.syspath_prepend(tmp_path)

    def of(text: str, *targets: str) -> str | None:
        (tmp_path / "own_module.py").write_text(text)
        return definition_digest(*(targets or ("own_module:Link",)))

    return of


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 2", "SCALE = 3"),
        ("math.sqrt(x)", "math.exp(x)"),
        ('TABLE["a"] = 1', 'TABLE["a"] = 2'),
        ("helper(other)", "helper(2 * other)"),
        ("import math", "import cmath as math"),
        ("    pass", "    weight = 1"),
    ],
)
def test_what_a_class_uses_counts(digest, old, new):
    assert MODULE.count(old) == 1
    assert digest(MODULE) != digest(MODULE.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("other = 1", "other = 2"),
        ("return other", "return None"),
        ("print(Link)", "Link()"),
        ("  # a name of its own", ""),
        ("\n\n\n", "\n\n# said\n"),
    ],
)
def test_the_rest_of_the_module_does_not(digest, old, new):
    assert digest(MODULE) == digest(MODULE.replace(old, new)) is not None


def test_both_classes_of_a_component_count(digest):
    both = "own_module:Base", "own_module:Link.inner"
    assert digest("class Base: pass\nclass Link: pass", *both) != digest("class Base: pass\nclass Link: a = 1", *both)
    assert digest("class Link: pass", "own_module:Link", "") == digest("class Link: pass")


@pytest.mark.parametrize("text", ["", "class Other: pass", "class Link(", "class Link: '\0'"])
def test_without_a_source_there_is_no_digest(digest, text):
    assert digest(text) is None
    assert definition_digest("no_such_module:Link") is None
    assert definition_digest("own_module") is None


CELLS = """
from tunesmith.definition import definition_digest
def digest(*cells):
    globals()["In"] = ["", *cells]
    return definition_digest("__main__:Link")
"""


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (["x = 1", "class Link: a = x"], ["class Link: a = x", "x = 1"], False),  # in the order of the cells
        (["x = 2", "class Link: a = x", "x = 1"], ["class Link: a = x", "x = 1"], True),  # the last counts
        (["class Link: a = 0", "class Link: a = 1"], ["class Link: a = 1", "not Python!"], True),
        (["class Link: a = 1"], ["class Link: a = 1", "class Link: a = 2"], False),
        (["class Link: a = 1", "print(1)"], ["class Link: a = 1", "await Link"], True),
        (["t = {}", "class Link: a = t", "t[1] = 2"], ["t = {}", "class Link: a = t", "t[1] = 3"], False),
        (["t = {}", "t[1] = 2", "t = {}", "class Link: a = t"], ["t = {}", "class Link: a = t"], True),
    ],
)
def test_in_a_notebook_the_last_cells_count(first, second, same):
    program = f"{CELLS}\na, b = digest(*{first!r}), digest(*{second!r})\nassert a and b\nprint(a == b)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(same)


def test_what_was_typed_at_a_prompt_has_none():
    program = "from tunesmith.definition import definition_digest as d\nclass Link: pass\nprint(d('__main__:Link'))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "None"

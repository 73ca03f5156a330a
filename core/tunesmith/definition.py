"""The code that a class was defined by, as text: what results of a component depend on that no distribution brings."""

from __future__ import annotations

import ast
import dis
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

from attrs import frozen

from tunesmith.errors import PluginLoadError
from tunesmith.source import source_file

_READS = ("LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS")
_WRITES = ("STORE_NAME", "STORE_GLOBAL")
_AWAITS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT  # as notebooks do


def definition_digest(*targets: str) -> str | None:
    """Return a hash of the code of ``"package.module:Class"`` and of everything in its module that it uses.

    Names are followed from the class to functions, constants and other classes of the module; of what it imports, the import
    statement counts. Comments, layout and the rest of the module do not. Nothing is imported. In a notebook the module is what
    was run in the cells, a later definition taking the place of an earlier one.

    Args:
        targets: Classes that make one component; a target without an attribute (``impl`` of a config without one) is left out.

    Returns:
        SHA-256 in hexadecimal digits; None if their source cannot be found, as of what was typed at a prompt.
    """
    texts: list[str] = []
    for target in targets:
        module, _, attribute = target.partition(":")
        if not attribute:
            continue
        found = _Module.of(module)
        texts += found.used_by(attribute.partition(".")[0]) if found is not None else []
    if not texts:
        return None
    return hashlib.sha256("\n".join(dict.fromkeys(texts)).encode(errors="surrogatepass")).hexdigest()


@frozen
class _Statement:
    """A statement of a module: the cell it stands in, its text, the names that it gives, changes and uses."""

    cell: int
    text: str
    gives: frozenset[str]
    changes: frozenset[str]
    uses: frozenset[str]


@frozen
class _Module:
    statements: tuple[_Statement, ...]

    @classmethod
    def of(cls, name: str) -> _Module | None:
        """Return the statements of a module; None if its source is not to be had."""
        cells = _cells(name)
        return None if cells is None else cls(tuple(s for i, text in enumerate(cells) for s in _statements(text, i)))

    def places(self, name: str) -> list[int]:
        """Return the statements that make up what a name stands for: in a notebook from its last definition on."""
        given = [s.cell for s in self.statements if name in s.gives]
        if not given:
            return []
        last = max(given)
        return [i for i, s in enumerate(self.statements) if s.cell >= last and name in s.gives | s.changes]

    def used_by(self, name: str) -> list[str]:
        """Return the texts of all statements that a name depends on, in the order of the module."""
        seen: set[str] = set()
        waiting, needed = [name], set()
        while waiting:
            one = waiting.pop()
            if one in seen:
                continue
            seen.add(one)
            for place in self.places(one):
                needed.add(place)
                waiting.extend(self.statements[place].uses)
        return [self.statements[place].text for place in sorted(needed)]


def _cells(module: str) -> list[str] | None:
    """Return the source of a module: of a file as one text, of a notebook one text a cell that was run."""
    loaded = sys.modules.get(module)
    file = getattr(loaded, "__file__", None)
    run = getattr(loaded, "In", None)  # IPython's history
    if file is None and module == "__main__":
        return [text for text in run if isinstance(text, str)] if isinstance(run, list) else None
    try:
        return [Path(file or source_file(module)).read_text(encoding="utf-8")]
    except (OSError, ValueError, PluginLoadError):
        return None


def _statements(text: str, cell: int) -> Iterator[_Statement]:
    """Yield the statements of a text; none if it is no Python, as a cell of another language."""
    try:
        tree = ast.parse(text)
        codes = [compile(ast.Module([each], []), "", "exec", _AWAITS, dont_inherit=True) for each in tree.body]
    except (SyntaxError, ValueError):
        return
    for statement, code in zip(tree.body, codes, strict=True):
        yield _Statement(
            cell=cell,
            text=ast.unparse(statement),
            gives=frozenset(_names(code, _WRITES, inner=False)),
            changes=frozenset(_changed(statement)),
            uses=frozenset(_names(code, _READS)),
        )


def _names(code: CodeType, operations: tuple[str, ...], *, inner: bool = True) -> Iterator[str]:
    """Yield the global names that code reads or writes, with the code of functions and classes in it."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in operations:
            yield str(instruction.argval)
    if inner:
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                yield from _names(constant, operations)


def _changed(statement: ast.stmt) -> Iterator[str]:
    """Yield the names whose elements or attributes a statement sets: ``TABLE["a"] = 1``."""
    targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
    for target in targets if isinstance(statement, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Delete)) else ():
        while isinstance(target, (ast.Attribute, ast.Subscript)):
            target = target.value
        if isinstance(target, ast.Name):
            yield target.id

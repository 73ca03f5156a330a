"""One file to records. Every error names file, line and, where it can, column."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from attrs import frozen

from tunesmith.errors import DataError
from tunesmith.given import half_a_character

TEXT = "text"
"""The only field of a record of a text file."""
_HALF = "a text holds half of a character (one of two surrogates, as \\ud83d alone)"
_SHOWN = 5  # malformed lines named in one message


@frozen
class Record:
    """A record as it was read, and where it stood (``"train.jsonl, line 7"``)."""

    columns: dict[str, Any]
    place: str


def is_data_file(path: Path) -> bool:
    """Say whether a file's name ends like data that can be read here."""
    return path.is_file() and _suffix(path) in _READERS and not path.name.startswith(".")


def stem(path: Path) -> str:
    """Return a data file's name without its endings: ``"glue_train"`` of ``glue_train.tsv.gz``."""
    name = path.name[:-3] if path.suffix == ".gz" else path.name
    return name[: -len(_suffix(path))]


def read_file(path: Path, document_separator: str) -> list[Record]:
    """Return all records of a file.

    Raises:
        DataError: If it cannot be read, is malformed (naming lines) or holds no record.
    """
    reader = _READERS.get(_suffix(path))
    if reader is None:
        raise DataError(f"{path}: files of this kind cannot be read; give one of {', '.join(sorted(_READERS))}.")
    try:
        records = list(reader(path, document_separator))
    except UnicodeDecodeError as cause:
        raise DataError(
            f"{path}: not UTF-8 text (byte {cause.start}: {cause.reason}); convert the file to UTF-8."
        ) from cause
    except OSError as cause:
        raise DataError(f"{path}: cannot be read: {cause.strerror or cause}.") from cause
    if not records:
        raise DataError(f"{path}: holds no record.")
    return records


def lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file, gzipped or not, without their ends and without a byte order mark.

    ``str.splitlines`` is not for JSON lines: it also cuts at line separators that may stand inside a JSON text.

    Raises:
        OSError: If it cannot be read.
        UnicodeDecodeError: If it is no UTF-8.
    """
    return _text(path).split("\n")


def _suffix(path: Path) -> str:
    return Path(path.name[:-3]).suffix.lower() if path.suffix == ".gz" else path.suffix.lower()


def _text(path: Path) -> str:
    raw = path.read_bytes()
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (EOFError, zlib.error) as cause:  # of a file that was cut or damaged; gzip's other errors are OSErrors
            raise gzip.BadGzipFile(str(cause)) from cause
    return raw.decode("utf-8-sig")


def _jsonl(path: Path, _: str) -> Iterator[Record]:
    problems: list[str] = []
    for number, line in enumerate(lines(path), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_object)
        except ValueError as error:
            # its own line number is always 1 here, and would contradict the file's
            place = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            problems.append(f"line {number}: {getattr(error, 'msg', error)}{place}")
            continue
        if not isinstance(value, dict):
            problems.append(f"line {number}: a record must be an object, not {type(value).__name__}")
            continue
        if _may_be_cut(line) and _has_half_a_character(value):
            problems.append(f"line {number}: {_HALF}")
            continue
        yield Record(value, f"{path}, line {number}")
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(f"{path}: malformed JSON lines: {'; '.join(problems[:_SHOWN])}{more}. Correct the file.")


def _json(path: Path, _: str) -> Iterator[Record]:
    whole = _text(path)
    try:
        value = json.loads(whole, object_pairs_hook=_object)
    except ValueError as error:
        raise DataError(f"{path}: malformed JSON: {error}.") from error
    if not isinstance(value, list):
        raise DataError(
            f"{path}: must be a list of objects, not {type(value).__name__}; or write one object a line (.jsonl)."
        )
    suspicious = _may_be_cut(whole)
    for number, item in enumerate(value, start=1):
        if not isinstance(item, dict):
            raise DataError(f"{path}, item {number}: a record must be an object, not {type(item).__name__}.")
        if suspicious and _has_half_a_character(item):
            raise DataError(f"{path}, item {number}: {_HALF}. Correct the file.")
        yield Record(item, f"{path}, item {number}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, which Python would make of the last of two fields of one name, without a word."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in made if names.count(name) > 1)
        raise ValueError(f"field {twice!r} stands there twice; rename or remove one")
    return made


def _may_be_cut(written: str) -> bool:
    """Return whether JSON writes down a surrogate anywhere; asked of a text once, since most have none."""
    return "\\ud" in written.lower()


def _has_half_a_character(value: Any) -> bool:
    """Return whether a text in ``value`` holds one of two surrogates, which JSON can write down and no tokenizer reads."""
    return half_a_character(json.dumps(value, ensure_ascii=False)) is not None


def _delimited(delimiter: str, quoting: Literal[0, 3]) -> Callable[[Path, str], Iterator[Record]]:
    def read(path: Path, _: str) -> Iterator[Record]:
        limit = csv.field_size_limit(2**31 - 1)  # a dialogue may be longer than the module's 128 KiB
        try:
            rows = csv.reader(io.StringIO(_text(path), newline=""), delimiter=delimiter, quoting=quoting, strict=True)
            header: list[str] | None = None
            for row in rows:
                if not row:
                    continue
                if header is None:
                    header = row
                    twice = sorted({name for name in header if header.count(name) > 1})
                    if twice:
                        raise DataError(f"{path}, line 1: column {twice[0]!r} stands there twice; rename one.")
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{path}, line {rows.line_num}: {len(row)} fields, but the header has {len(header)}."
                    )
                yield Record(dict(zip(header, row, strict=True)), f"{path}, line {rows.line_num}")
        except csv.Error as error:
            raise DataError(f"{path}, line {rows.line_num}: {error}.") from error
        finally:
            csv.field_size_limit(limit)

    return read


def _parquet(path: Path, _: str) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as cause:
        raise DataError(f"{path}: no readable parquet file: {cause}.") from cause
    for number, row in enumerate(table.to_pylist(), start=1):
        yield Record(row, f"{path}, row {number}")


def _documents(path: Path, separator: str) -> Iterator[Record]:
    whole = _text(path).replace("\r\n", "\n")  # as Windows ends lines: a model would read each \r
    documents = whole.split(separator.replace("\r\n", "\n")) if separator else [whole]
    for number, document in enumerate(documents, start=1):
        if document.strip():
            yield Record({TEXT: document.strip("\n") if len(documents) > 1 else document}, f"{path}, document {number}")


_READERS: dict[str, Callable[[Path, str], Iterator[Record]]] = {
    ".csv": _delimited(",", csv.QUOTE_MINIMAL),
    ".json": _json,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
    ".raw": _documents,
    ".tsv": _delimited("\t", csv.QUOTE_NONE),  # GLUE's files hold single quotation marks
    ".txt": _documents,
}

"""What has been found out about each item, line by line, so that an interrupted evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tunesmith.lm import LM
    from tunesmith.runtime import Runtime


class Journal:
    """A JSONL file of records by id. Without a file it keeps everything in memory only.

    Args:
        path: The file, which is made if it is not there; None for none.

    Attributes:
        known: Id to record. A last line that a crash cut short is dropped, and its item is worked on anew.
    """

    def __init__(self, path: Path | None) -> None:
        self.known: dict[str, dict[str, Any]] = {}
        self._path = path
        self._file: TextIO | None = None

    def __enter__(self) -> Journal:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            whole = self._path.read_bytes().rpartition(b"\n")[0] if self._path.is_file() else b""
            for line in whole.splitlines():
                record = json.loads(line)
                self.known[str(record.pop("id"))] = record
            self._path.write_bytes(whole + b"\n" if whole else b"")
            self._file = self._path.open("a", encoding="utf-8")
        return self

    def add(self, key: str, record: Mapping[str, Any]) -> None:
        """Keep a record and write its line."""
        self.known[key] = dict(record)
        if self._file is not None:
            self._file.write(json.dumps({**record, "id": key}, ensure_ascii=False) + "\n")
            self._file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()


def journal(lm: LM, runtime: Runtime, folder: str, *parts: object) -> Journal:
    """Return the journal of a model and of everything else that its records depend on, in ``runtime.folder``.

    Args:
        lm: Its weights and tokenizer are part of the key, so another model never reads these records.
        runtime: Without a folder nothing is kept.
        folder: Name of the folder in ``runtime.folder``.
        parts: What else the records depend on; ``repr`` says all of it.
    """
    if runtime.folder is None:
        return Journal(None)
    inner = getattr(lm.tokenizer, "backend_tokenizer", None)
    vocabulary = inner.to_str() if inner is not None else repr(sorted(lm.tokenizer.get_vocab().items()))
    tokens = hashlib.sha256(vocabulary.encode()).hexdigest()
    text = "\0".join([lm.fingerprint, tokens, runtime.dtype, *map(repr, parts)])
    return Journal(runtime.folder / folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.jsonl")

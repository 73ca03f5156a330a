"""A source and a split to records: files, folders with one file a split, hub names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from tunesmith.data.readers import Record, is_data_file, read_file, stem
from tunesmith.data.template import suggest
from tunesmith.errors import DataError
from tunesmith.mistyped import did_you_mean

if TYPE_CHECKING:
    from tunesmith.data.config import Data
    from tunesmith.runtime import Runtime

ALL = "all"
"""The split that is the whole of a source with one file."""
_ALIASES = ({"validation", "valid", "val", "dev"},)
_KNOWN = ("train", "test", "validation", "valid", "val", "dev")
_NOT_DATA = {
    "manifest.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "report.json",
    "config.json",
}
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


@frozen
class Found:
    """Records of a source. ``whole`` means that they are all there is, and no split of their own."""

    records: list[Record]
    whole: bool


def find(data: Data, split: str, runtime: Runtime) -> Found:
    """Read a split, or the whole source if it has no splits.

    Raises:
        DataError: If there is no such source or split, or it cannot be read.
    """
    if not isinstance(data.source, str):
        raise DataError(
            f"{data.source} stands for what a stage makes, and only a pipeline that is run can tell where that is."
        )
    path = Path(os.path.expanduser(data.source))
    if os.path.isfile(path):  # a text in place of a path may be longer than a file's name
        return _from_file(path, data, split)
    if os.path.isdir(path):
        return _from_folder(path, data, split)
    if (problem := missing(data.source)) is not None:
        raise DataError(problem)
    return _from_hub(data, split, runtime)


def missing(source: str) -> str | None:
    """Return what to say of a source that can only be a file or folder and is not there; None of every other. Reads nothing."""
    there = os.path.exists(os.path.expanduser(source))
    return None if there or not _looks_like_path(source) else _nothing_there(source)


def same_split(first: str, second: str) -> bool:
    """Say whether two names mean one split: ``dev`` and ``validation`` do."""
    return first == second or any({first, second} <= group for group in _ALIASES)


def split_of(path: Path) -> str | None:
    """Return the split that a file's name tells: ``name.train.jsonl``, ``glue_dev.tsv``, ``test.csv``."""
    last = re.split(r"[._-]", _SHARD.sub("", stem(path)))[-1]
    return last if last in _KNOWN else None


def _from_file(path: Path, data: Data, split: str) -> Found:
    told = split_of(path)
    if told is None or split == ALL or data.fractions or same_split(told, split):
        return Found(read_file(path, data.document_separator), whole=told is None or bool(data.fractions))
    raise DataError(
        f"{path} is the split {told!r} by its name, and {split!r} was asked for; give the folder with all splits, or divide "
        f"this file with fractions={{'train': 0.9, 'test': 0.1}}."
    )


def _from_folder(folder: Path, data: Data, split: str) -> Found:
    files = sorted(p for p in folder.iterdir() if is_data_file(p) and p.name not in _NOT_DATA)
    if not files and (folder / "data").is_dir():
        files = sorted(p for p in (folder / "data").iterdir() if is_data_file(p))
    if not files:
        raise DataError(f"{folder}: no data files in it (.jsonl, .json, .csv, .tsv, .parquet, .txt).")
    matching = [p for p in files if _names(p, split)]
    if matching and not data.fractions:
        if len({_SHARD.sub("", stem(p)) + p.suffix for p in matching}) > 1:
            names = ", ".join(p.name for p in matching)
            raise DataError(
                f"{folder}: several files could be the split {split!r}: {names}; give one file as the source."
            )
        return Found(_read_all(matching, data), whole=False)
    told = sorted({name for p in files if (name := split_of(p)) is not None})
    texts = all(".txt" in p.suffixes for p in files)
    if len(files) == 1 or (texts and not told):  # a folder of documents is one source
        return Found(_read_all(files, data), whole=True)
    if data.fractions:
        raise DataError(
            f"{folder}: fractions divide a source of one file, and this folder has {len(files)}; name the file."
        )
    hint = suggest(split, told or [stem(p) for p in files])
    raise DataError(f"{folder}: no file for the split {split!r}{hint}")


def _names(path: Path, split: str) -> bool:
    name = _SHARD.sub("", stem(path))
    told = split_of(path)
    return (
        name == split
        or re.search(rf"[._-]{re.escape(split)}$", name) is not None
        or (told is not None and same_split(told, split))
    )


def _read_all(files: Iterable[Path], data: Data) -> list[Record]:
    return [record for path in files for record in read_file(path, data.document_separator)]


def _looks_like_path(source: str) -> bool:
    endings = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".gz")
    return source.startswith((".", "/", "~")) or source.endswith(endings) or "\\" in source or source.count("/") > 1


def _nothing_there(source: str) -> str:
    path = Path(os.path.expanduser(source))
    return f"there is no file or folder {source!r} (looked from {Path.cwd()}).{did_you_mean(path)}"


def _from_hub(data: Data, split: str, runtime: Runtime) -> Found:
    import datasets

    where = f"hub data set {data.source!r}" + (f" ({data.subset})" if data.subset else "")
    try:
        with _offline(runtime.offline):
            sets = datasets.load_dataset(data.source, data.subset or None, revision=data.revision or None)
    except Exception as cause:  # the library raises its own, the hub's, requests' and plain OS errors here
        state = (
            "no network is used (offline) and it is not in the cache" if runtime.offline else "it could not be loaded"
        )
        told = str(cause).splitlines()[0].rstrip(".") if str(cause) else ""
        raise DataError(
            f"{where}: {state}: {type(cause).__name__}: {told}. If it is a file or folder of this machine: "
            f"{_nothing_there(str(data.source))}"
        ) from cause
    names = sorted(map(str, sets))
    named = [name for name in names if same_split(name, split)]
    if named and not data.fractions:
        return Found(_rows(sets[split if split in named else named[0]], where), whole=False)
    if len(names) == 1:
        return Found(_rows(sets[names[0]], where), whole=True)
    if data.fractions:
        raise DataError(f"{where}: fractions divide a source of one split, and this one has {', '.join(names)}.")
    raise DataError(f"{where}: no split {split!r}{suggest(split, names)}")


def _rows(dataset: Any, where: str) -> list[Record]:
    found = [Record(dict(row), f"{where}, row {number}") for number, row in enumerate(dataset, start=1)]
    if not found:
        raise DataError(f"{where}: the split holds no record.")
    return found


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Keep ``datasets`` and ``huggingface_hub`` from asking a hub; both read their switch when they are about to."""
    import datasets
    import huggingface_hub.constants as hub

    before = datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE
    if wanted:
        datasets.config.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE = before

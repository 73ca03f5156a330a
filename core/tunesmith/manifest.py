"""Manifests: what a finished folder holds, file by file, so that a later reader can tell whether it still does.

A folder is whole when its ``manifest.json`` is there, because the manifest is written last and everything it names has
been flushed to the disk before.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.errors import ArtifactError

FILE = "manifest.json"
FORMAT = 1


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield ``(relative posix path, path)`` of all files under ``folder`` except its own manifest, sorted.

    Raises:
        ArtifactError: If there is a symbolic link, whose target could change behind the manifest's back.
    """
    found: list[tuple[str, Path]] = []
    for base, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(base, name)
            if path.is_symlink():
                raise ArtifactError(f"{path} is a symbolic link; an artifact must hold its files itself.")
        found += [(Path(base, name).relative_to(folder).as_posix(), Path(base, name)) for name in names]
    yield from sorted(item for item in found if item[0] != FILE)


def content_digest(path: Path) -> str:
    """Return one SHA-256 over a file, or over the names and contents of all files under a folder (links followed)."""
    if path.is_file():
        return file_digest(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{file_digest(file)}\n".encode())
    return digest.hexdigest()


def fsync_folder(folder: Path) -> None:
    """Flush a folder's own entries to the disk, where the system can (Windows cannot)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a file's content so that a reader sees the old or the new one, never a part.

    Args:
        path: The file.
        text: Its new content.
        durable: Wait until the disk has it. Otherwise a power cut, though no kill, may lose it.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with beside.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if durable:
        fsync_folder(path.parent)


def write(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Flush all files of ``folder`` to the disk, then write its manifest; returns what was written.

    Args:
        folder: A folder in which nothing will change any more.
        record: Further JSON-able entries, e.g. ``{"kind": "model"}``.
    """
    files: dict[str, Any] = {}
    folders = {folder}
    for name, path in files_of(folder):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files[name] = {"size": path.stat().st_size, "sha256": digest}
        folders.add(path.parent)
    for each in sorted(folders):
        fsync_folder(each)
    manifest = {"format": FORMAT, **record, "files": files}
    write_text(folder / FILE, json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False) + "\n")
    return manifest


def read(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder.

    Raises:
        ArtifactError: If there is none, it cannot be read, or it names files outside the folder.
    """
    path = folder / FILE
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = manifest["files"]
        if manifest["format"] != FORMAT:
            raise ArtifactError(f"{path} has format {manifest['format']!r}; this tunesmith reads format {FORMAT}.")
        for name, entry in files.items():
            parts = Path(name).parts
            if not parts or Path(name).is_absolute() or ".." in parts or "\\" in name:
                raise ArtifactError(f"{path} names a file outside its folder: {name!r}.")
            if not isinstance(entry["size"], int) or not isinstance(entry["sha256"], str):
                raise ArtifactError(f"{path} is damaged: {name!r} has no size or hash.")
    except FileNotFoundError as cause:
        raise ArtifactError(f"{folder} has no {FILE}; it was not finished.") from cause
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise ArtifactError(f"{path} is damaged ({type(cause).__name__}: {cause}).") from cause
    found: dict[str, Any] = manifest
    return found


def problems(folder: Path, *, hashes: bool = True) -> list[str]:
    """Return what is wrong with a folder by its manifest, one sentence a problem; none if it is whole.

    Args:
        folder: A folder that :func:`write` finished.
        hashes: Also read every file; otherwise only names and sizes are compared.
    """
    try:
        files = read(folder)["files"]
        there = dict(files_of(folder))
    except ArtifactError as error:
        return [str(error)]
    found = [f"{name} is missing" for name in files if name not in there]
    found += [f"{name} was added" for name in there if name not in files and not Path(name).name.startswith(".")]
    for name, entry in files.items():
        if name not in there:
            continue
        size = there[name].stat().st_size
        if size != entry["size"]:
            found.append(f"{name} has {size} bytes instead of {entry['size']}")
        elif hashes and file_digest(there[name]) != entry["sha256"]:
            found.append(f"{name} was changed after it was written")
    return found


def digest(folder: Path) -> str:
    """Return the SHA-256 of what a finished folder holds, by its manifest (no file is read)."""
    text = json.dumps(read(folder)["files"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def build(target: Path, fill: Callable[[Path], None], record: Mapping[str, Any]) -> None:
    """Make a finished folder at ``target`` in one step: fill one beside, write its manifest, rename.

    Whatever interrupts it, ``target`` is whole or not there. One that is there already is removed first. What an
    interruption leaves is named ``.<name>.writing-...`` and can be removed.
    """
    import shutil
    import tempfile

    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.writing-", dir=target.parent))
    try:
        beside.chmod(0o777 & ~_umask())  # mkdtemp makes private folders, results are not secret
        fill(beside)
        write(beside, record)
        if target.exists():
            remove(target)
        beside.rename(target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    fsync_folder(target.parent)


def remove(folder: Path) -> None:
    """Remove a finished folder; interrupted half way, what is left is no longer a finished one."""
    import shutil

    (folder / FILE).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

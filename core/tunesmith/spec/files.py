"""Configs in JSON and TOML files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

from tunesmith.errors import ConfigError
from tunesmith.manifest import write_text
from tunesmith.mistyped import did_you_mean
from tunesmith.spec.dumping import dump
from tunesmith.spec.loading import load

T = TypeVar("T")

MAX_BYTES = 16 * 1024 * 1024
"""Largest file that is read."""


def read(path: str | os.PathLike[str], base: type[T]) -> T:
    """Return the config in a ``.json`` or ``.toml`` file.

    Raises:
        ConfigError: If the file cannot be read or what it says is wrong; all problems at once.
    """
    return load(read_data(path), base, where=str(path))


def read_data(path: str | os.PathLike[str]) -> Any:
    """Return the plain data in a ``.json`` or ``.toml`` file.

    Raises:
        ConfigError: If the file cannot be read; the message names the line.
    """
    path = Path(os.path.expanduser(path))
    try:
        if path.is_dir():
            raise ConfigError(["is a folder; give the file"], str(path))
        if not path.exists():
            looked = "" if path.is_absolute() else f" (looked from {Path.cwd()})"
            raise ConfigError([f"there is no such file{looked}.{did_you_mean(path)}"], str(path))
        suffix = _suffix(path)
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError([f"larger than {MAX_BYTES} bytes; is it the right file?"], str(path))
        text = path.read_text(encoding="utf-8-sig")
    except OSError as cause:
        raise ConfigError([f"cannot be read: {cause.strerror or cause}"], str(path)) from cause
    except UnicodeDecodeError as cause:
        raise ConfigError([f"is not UTF-8 text: {cause}"], str(path)) from cause
    try:
        if suffix == ".toml":
            import tomllib

            return tomllib.loads(text)
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_unique)
    except RecursionError:
        raise ConfigError(["nested too deeply"], str(path)) from None
    except ValueError as cause:  # the errors of both parsers are ValueErrors and name the line
        raise ConfigError([f"is not valid {suffix[1:].upper()}: {cause}"], str(path)) from cause


def write(config: Any, path: str | os.PathLike[str]) -> None:
    """Write a config to a ``.json`` or ``.toml`` file, replacing it in one step.

    Raises:
        ConfigError: For what the file cannot hold (NaN and infinity; None inside TOML), or a suffix that is neither.
        UnknownName: If a config class is not registered.
        OSError: If the file cannot be written.
    """
    path = Path(os.path.expanduser(path))
    suffix = _suffix(path)
    data = dump(config)
    if suffix == ".toml":
        import tomli_w

        if nones := list(_nones(data, "")):
            raise ConfigError([f"TOML has no null; write JSON instead @ {place}" for place in nones], str(path))
        text = tomli_w.dumps(data)
    else:
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text, durable=False)


def _suffix(path: Path) -> str:
    if path.suffix.lower() not in (".json", ".toml"):
        raise ConfigError([f"{str(path)!r} is neither .json nor .toml; give a file of one of these"], str(path))
    return path.suffix.lower()


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a finite number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice in one object")
    return found


def _nones(value: Any, place: str) -> Any:
    if value is None:
        yield place
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _nones(item, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _nones(item, f"{place}[{index}]")

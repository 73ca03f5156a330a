"""Numbers and token ids as callers give them: of Python, numpy or torch, one for all prompts or one each."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from tunesmith.errors import ConfigError

T = TypeVar("T", int, float)


def whole(value: Any, what: str, where: str) -> int:
    """Return a whole number as an int.

    Args:
        value: An int of Python or numpy, or a tensor that holds one.
        what: How a message calls it.
        where: Who was asked.

    Raises:
        ConfigError: For anything else: a float is not cut, and True is no number.
    """
    try:
        if type(value) is bool:
            raise TypeError
        return operator.index(value)
    except (TypeError, ValueError):
        raise ConfigError([f"{what}: a whole number was expected, not {_shown(value)}"], where) from None


def real(value: Any, what: str, where: str) -> float:
    """Return a number as a float.

    Args:
        value: A number of Python or numpy, or a tensor that holds one.
        what: How a message calls it.
        where: Who was asked.

    Raises:
        ConfigError: For anything else, and for an int that a float cannot hold.
    """
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        found = float(value)
        if isinstance(value, int) and int(found) != value:
            raise OverflowError
    except OverflowError:
        raise ConfigError([f"{what}: float64 cannot hold {_shown(value)}"], where) from None
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError([f"{what}: a number was expected, not {_shown(value)}"], where) from None
    return found


def half_a_character(text: str) -> int | None:
    """Return where a text holds one of two surrogates, half of a character that no tokenizer reads; None if nowhere."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as cause:
            return cause.start
    return None


def token_ids(value: Any, size: int | None, what: str, where: str) -> tuple[int, ...]:
    """Return token ids as a tuple of ints.

    Args:
        value: A list, an array or a tensor of whole numbers; True is none.
        size: How many ids the model can read, None for any.
        what: How a message calls them.
        where: Who was asked.

    Raises:
        ConfigError: If they are no ids, or the model lacks one.
    """
    try:
        # a mask that was taken for ids, or a text's bytes, would be read as whole numbers
        if isinstance(value, (bytes, bytearray)) or str(getattr(value, "dtype", "")).endswith("bool"):
            raise TypeError
        if isinstance(value, (list, tuple)) and any(type(token) is bool for token in value):
            raise TypeError
        ids = tuple(map(operator.index, value))
    except (TypeError, ValueError):
        problem = (
            f"{what} is neither a text nor a list of token ids, but {_shown(value)}; give a list of them, one each"
        )
        raise ConfigError([problem], where) from None
    if ids and (min(ids) < 0 or (size is not None and max(ids) >= size)):
        wrong = next(token for token in ids if token < 0 or (size is not None and token >= size))
        known = "ids begin at 0" if size is None else f"the model has {size} ids"
        raise ConfigError([f"{what} has the id {wrong}, and {known}"], where)
    return ids


def mapping(value: Any, what: str, where: str) -> Mapping[str, Any]:
    """Return values by their names as they are.

    Raises:
        ConfigError: For anything but a mapping.
    """
    if not isinstance(value, Mapping):
        raise ConfigError([f"{what}: values by name were expected, not {_shown(value)}"], where)
    return value


def is_one(value: Any) -> bool:
    """Whether a value is a single one (a number, or an array or tensor without dimensions) and no list of them."""
    try:
        len(value)
    except TypeError:
        return True
    return isinstance(value, (str, bytes))


def each(values: Any, count: int, what: str, where: str, read: Callable[[Any, str, str], T]) -> list[T]:
    """Return one number for each of ``count`` prompts.

    Args:
        values: One number for all, or a list, array or tensor of one each.
        count: How many prompts there are.
        what: How messages call the numbers.
        where: Who was asked.
        read: :func:`whole` or :func:`real`.

    Raises:
        ConfigError: If there are more or fewer, or something among them is no such number.
    """
    if is_one(values):
        return [read(values, what, where)] * count
    return one_each(values, count, what, where, read)


def one_each(values: Sequence[Any], count: int, what: str, where: str, read: Callable[[Any, str, str], T]) -> list[T]:
    """Return the numbers of a list, as :func:`each` does.

    Raises:
        ConfigError: For one number instead of a list, or a list of another length.
    """
    if is_one(values):
        raise ConfigError([f"{what}: a list of {count} numbers was expected, not {_shown(values)}"], where)
    if len(values) != count:
        raise ConfigError([f"{len(values)} {what} for {count} prompts"], where)
    return [read(value, what, where) for value in values]


def _shown(value: Any) -> str:
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 60 else shown[:57] + '...'}"

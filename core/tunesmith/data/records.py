"""What data becomes once it is read: examples and preferences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import Factory, field, frozen

from tunesmith.errors import DataError
from tunesmith.given import half_a_character


def _answers(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):  # a text's elements are letters, and a set's come in any order
        raise TypeError(f"Example: targets: must be a tuple of texts, not {type(value).__name__} ({value!r})")
    return tuple(value)


def _check_texts(record: Any, texts: Mapping[str, Iterable[Any]]) -> None:
    kind = type(record).__name__
    for name, several in texts.items():
        for text in several:
            if not isinstance(text, str):
                raise TypeError(f"{kind}: {name}: must be str, not {type(text).__name__} ({text!r})")
            place = half_a_character(text)
            if place is not None:
                half = f"{name!r} holds half of a character (one of two surrogates) at place {place}"
                raise DataError(f"{kind.lower()} {record.id!r}: {half}, which no tokenizer reads.")


@frozen(kw_only=True)
class Example:
    """One example.

    Attributes:
        id: Unique in its data set and stable: the record's own id if it has one, else a hash of its content.
        prompt: What the model reads; "" for plain text.
        targets: Reference answers, the first of which is trained on; for plain text the text itself. May be empty.
        columns: The record's fields as they were read.

    Raises:
        TypeError: If a text is none, or ``targets`` is neither a tuple nor a list: of one text each character would be an answer.
        DataError: If a text holds half of a character (one of two surrogates), which no tokenizer reads.
    """

    id: str
    prompt: str
    targets: tuple[str, ...] = field(default=(), converter=_answers)
    columns: Mapping[str, Any] = Factory(dict)

    def __attrs_post_init__(self) -> None:
        _check_texts(self, {"id": (self.id,), "prompt": (self.prompt,), "targets": self.targets})


@frozen(kw_only=True)
class Preference:
    """One comparison: ``chosen`` is better than ``rejected`` for ``prompt`` (trl's column names).

    Attributes:
        id: Unique and stable.
        margin: How much better, in units of reward; 0 if unknown.
        weight: Weight in the loss: 1/C(K,2) for one pair of a ranking of K.
        group: Pairs of one ranking share it, and stay on one side of a split.

    Raises:
        TypeError, DataError: As :class:`Example`.
    """

    id: str
    prompt: str
    chosen: str
    rejected: str
    margin: float = 0.0
    weight: float = 1.0
    group: str = ""

    def __attrs_post_init__(self) -> None:
        _check_texts(self, {name: (getattr(self, name),) for name in ("id", "prompt", "chosen", "rejected")})

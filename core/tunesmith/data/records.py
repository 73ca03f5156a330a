"""What data becomes once it is read: examples and preferences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import Factory, frozen


@frozen(kw_only=True)
class Example:
    """One example.

    Attributes:
        id: Unique in its data set and stable: the record's own id if it has one, else a hash of its content.
        prompt: What the model reads; "" for plain text.
        targets: Reference answers, the first of which is trained on; for plain text the text itself. May be empty.
        columns: The record's fields as they were read.
    """

    id: str
    prompt: str
    targets: tuple[str, ...] = ()
    columns: Mapping[str, Any] = Factory(dict)


@frozen(kw_only=True)
class Preference:
    """One comparison: ``chosen`` is better than ``rejected`` for ``prompt`` (trl's column names).

    Attributes:
        id: Unique and stable.
        margin: How much better, in units of reward; 0 if unknown.
        weight: Weight in the loss: 1/C(K,2) for one pair of a ranking of K.
        group: Pairs of one ranking share it, and stay on one side of a split.
    """

    id: str
    prompt: str
    chosen: str
    rejected: str
    margin: float = 0.0
    weight: float = 1.0
    group: str = ""

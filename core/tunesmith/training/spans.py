"""Span corruption (Raffel et al. 2020, section 3.1.4): holes are replaced by sentinels, and written out by the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tunesmith.errors import ConfigError

DENSITY = 0.15
"""Share of the tokens that are in holes."""
MEAN = 3.0
"""Mean tokens of a hole."""


def counts(length: int) -> tuple[int, int]:
    """Return how many of ``length`` (at least 2) raw tokens are in holes, and how many holes there are."""
    noise = min(max(round(length * DENSITY), 1), length - 1)
    spans = min(max(round(noise / MEAN), 1), noise, length - noise)
    return noise, spans


def sizes(length: int) -> tuple[int, int]:
    """Return the tokens of input and target, each with one end token, made of ``length`` raw ones."""
    noise, spans = counts(length)
    return length - noise + spans + 1, noise + spans + 1


def raw_length(longest_input: int, longest_target: int) -> int:
    """Return the most raw tokens whose input and target still fit.

    Raises:
        ConfigError: If not even two raw tokens do.
    """
    length = 2
    if sizes(length)[0] > longest_input or sizes(length)[1] > longest_target:
        raise ConfigError(["max_length and max_target_length are too small for span corruption"], "training")
    while sizes(length + 1)[0] <= longest_input and sizes(length + 1)[1] <= longest_target:
        length += 1
    return length


def holes(length: int, random: np.random.Generator) -> np.ndarray:
    """Return a mask (length,) of the tokens in holes.

    Tokens outside and inside holes are each split into as many parts of random sizes, and the parts alternate; the text
    begins outside and ends in a hole.
    """
    noise, spans = counts(length)
    inside, outside = _parts(noise, spans, random), _parts(length - noise, spans, random)
    mask = np.zeros(length, dtype=bool)
    position = 0
    for kept, lost in zip(outside, inside, strict=True):
        mask[position + kept : position + kept + lost] = True
        position += kept + lost
    return mask


def corrupt(
    ids: Sequence[int], sentinels: Sequence[int], end: int, random: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Return input and target made of raw ids; each hole is one sentinel in the input and opens with it in the target."""
    mask = holes(len(ids), random)
    source: list[int] = []
    target: list[int] = []
    number = -1
    for position, (token, hidden) in enumerate(zip(ids, mask, strict=True)):
        if hidden and (position == 0 or not mask[position - 1]):
            number += 1
            source.append(sentinels[number])
            target.append(sentinels[number])
        (target if hidden else source).append(int(token))
    return [*source, end], [*target, end]


def sentinel_ids(tokenizer: Any, length: int) -> list[int]:
    """Return the ids of ``<extra_id_0>``, ``<extra_id_1>`` ... that rows of ``length`` raw tokens can need.

    Raises:
        ConfigError: If the tokenizer has too few.
    """
    _, spans = counts(length)
    vocabulary = tokenizer.get_vocab()
    names = [f"<extra_id_{number}>" for number in range(spans)]
    missing = [name for name in names if name not in vocabulary]
    if missing:
        raise ConfigError(
            [
                f"span corruption of {length} tokens needs {spans} sentinels, and the tokenizer has no {missing[0]} @ objective"
            ],
            "training",
        )
    return [vocabulary[name] for name in names]


def _parts(total: int, count: int, random: np.random.Generator) -> np.ndarray:
    """Split ``total`` into ``count`` parts of at least 1, all ways equally likely."""
    borders = np.sort(random.choice(total - 1, size=count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], borders, [total]]))

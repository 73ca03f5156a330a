"""Changes of a text that leave its meaning, as in HELM's robustness scenarios; a text's seed decides each.

A perturbation is a function of text and generator.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from random import Random
from types import MappingProxyType

NEIGHBOURS = MappingProxyType(
    {
        **{a: b for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm") for a, b in pairwise(row)},
        "p": "o",
        "l": "k",
        "m": "n",
    }
)
"""A key beside each letter on an English keyboard."""

WORD_SHARE = 0.1
"""Share of the words of four letters or more that get a typing error."""

CONTRACTED = MappingProxyType(
    {
        "is not": "isn't",
        "are not": "aren't",
        "was not": "wasn't",
        "were not": "weren't",
        "do not": "don't",
        "does not": "doesn't",
        "did not": "didn't",
        "has not": "hasn't",
        "have not": "haven't",
        "had not": "hadn't",
        "can not": "can't",
        "cannot": "can't",
        "could not": "couldn't",
        "should not": "shouldn't",
        "would not": "wouldn't",
        "will not": "won't",
        "it is": "it's",
        "that is": "that's",
        "what is": "what's",
        "i am": "I'm",
        "you are": "you're",
        "they are": "they're",
        "we are": "we're",
    }
)
_LONG = re.compile(r"\b(" + "|".join(map(re.escape, CONTRACTED)) + r")\b", re.IGNORECASE)
_SHORT = {short.lower(): long for long, short in reversed(list(CONTRACTED.items()))}
_CONTRACTIONS = re.compile(r"\b(" + "|".join(map(re.escape, _SHORT)) + r")\b", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z]{4,}")
_WORDS = re.compile(r"[^\W\d_]{2,}")
_SPACE = re.compile(r"(?<=\S) (?=\S)")


def typos(text: str, random: Random) -> str:
    """Hit the neighbouring key, or two letters the wrong way round, in some words."""

    def hit(found: re.Match[str]) -> str:
        word = found.group(0)
        if random.random() >= WORD_SHARE:
            return word
        place = random.randrange(len(word) - 1)
        if random.random() < 0.5:
            return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
        letter = NEIGHBOURS[word[place].lower()]
        return word[:place] + (letter.upper() if word[place].isupper() else letter) + word[place + 1 :]

    return _WORD.sub(hit, text)


def case(text: str, random: Random) -> str:
    """Write words in lower case; letters that stand by themselves (``A.``) may name an answer and stay."""
    return _WORDS.sub(lambda found: found.group(0).lower(), text)


def contractions(text: str, random: Random) -> str:
    """Contract what is written out; where nothing is, write out what is contracted."""
    pattern, table = (_LONG, dict(CONTRACTED)) if _LONG.search(text) else (_CONTRACTIONS, _SHORT)

    def swap(found: re.Match[str]) -> str:
        other = table[found.group(0).lower()]
        return other[0].upper() + other[1:] if found.group(0)[0].isupper() else other

    return pattern.sub(swap, text)


def spaces(text: str, random: Random) -> str:
    """Make one to three spaces of each between words."""
    return _SPACE.sub(lambda _: " " * random.randint(1, 3), text)


PERTURBATIONS: Mapping[str, Callable[[str, Random], str]] = MappingProxyType(
    {"typos": typos, "case": case, "contractions": contractions, "spaces": spaces}
)
"""All of them by name."""

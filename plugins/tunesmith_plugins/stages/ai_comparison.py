"""Which of two answers a model finds better, by the likelihood of its choice."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tunesmith.continuation import Pair, encode, score
from tunesmith.errors import DataError
from tunesmith.kinds.engine import Engine
from tunesmith.lm import LM

QUESTION = "{prompt}\n\n({left}) {a}\n\n({right}) {b}\n\n{question}\n\nThe better answer is ("

LABELS = (("A", "B"), ("1", "2"), ("one", "two"))
"""Names of the two answers; the first two that the tokenizer can tell apart are used."""


def compare_both_orders(
    engine: Engine,
    lm: LM,
    prompts: Sequence[str],
    first: Sequence[str],
    second: Sequence[str],
    questions: Sequence[str],
) -> list[float]:
    """Return, for each pair, the mean log-odds that the first answer is the better one.

    Every pair is asked about in both orders, and the log-odds are averaged: a liking for "A", or for whatever stands first,
    adds the same number with either sign and drops out.

    Raises:
        MissingPower: If the engine cannot score.
        DataError: If the tokenizer cannot tell any two labels apart.
    """
    left, right = labels(lm)
    texts: list[Pair] = []
    for prompt, one, two, question in zip(prompts, first, second, questions, strict=True):
        for a, b in ((one, two), (two, one)):
            context = fill(QUESTION, prompt=prompt, a=a, b=b, question=question, left=left, right=right)
            texts += [encode(lm, context, left), encode(lm, context, right)]
    totals = [sum(logps) for logps in score(engine, texts)]
    found = []
    for i in range(0, len(totals), 4):
        first_on_left, second_on_right, second_on_left, first_on_right = totals[i : i + 4]
        found.append(((first_on_left - second_on_right) + (first_on_right - second_on_left)) / 2)
    return found


def labels(lm: LM) -> tuple[str, str]:
    """Return two labels that the tokenizer gives different ids.

    Raises:
        DataError: If there are none.
    """
    for pair in LABELS:
        ids = [tuple(lm.tokenizer.encode(label, add_special_tokens=False)) for label in pair]
        if ids[0] != ids[1] and all(ids):
            return pair
    raise DataError("the tokenizer cannot tell A from B nor 1 from 2, so the model cannot name the better answer.")


def fill(template: str, **parts: str) -> str:
    """Fill in a template of ``{names}`` in one pass, so that braces in the parts mean nothing."""
    return re.sub(r"\{(\w+)\}", lambda found: parts[found[1]], template)

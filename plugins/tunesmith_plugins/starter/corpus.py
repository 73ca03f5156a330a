"""What the demo's models are pre-trained on: prompts in many styles with examples, and texts with holes.

Only the "pretrain" split is read, so nothing that the demo trains, tunes or tests on has been seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from . import dialogues as dg

MAX_SHOTS = 5


def summarising(rng: Random, pool: Sequence[dg.Dialogue], shots: int) -> tuple[str, str]:
    """A prompt and its answer: one style for all examples and the answer, a tone of their own for each.

    Half of the prompts name the form in their instruction; the others leave the style to the examples, and without
    examples to a guess.
    """
    style = dg.any_style(rng)
    instruction = dg.INSTRUCTIONS[style.form] if rng.random() < 0.5 else dg.INSTRUCTION
    *shown, item = rng.sample(pool, shots + 1)
    return dg.prompt(item.text, [(x.text, write(rng, x, style)) for x in shown], instruction=instruction), write(
        rng, item, style
    )


def write(rng: Random, item: dg.Dialogue, style: dg.Style) -> str:
    """A summary in a tone that follows the dialogue's only loosely, as in the data of the demo."""
    polite = rng.random() < (0.65 if item.polite else 0.35)
    return dg.summary(item.facts, style, dg.tone(rng, polite=polite))


def passage(rng: Random, pool: Sequence[dg.Dialogue]) -> str:
    """A dialogue with a summary in any style: the text that models with a masking objective read."""
    item = rng.choice(pool)
    return f"{item.text}\nSummary: {write(rng, item, dg.any_style(rng))}"


def rewriting(rng: Random, pool: Sequence[dg.Dialogue]) -> tuple[str, str]:
    """A summary to repeat as it stands, a turn to repeat, or a summary to write in another form.

    Short texts in which names and things go from one side to the other: a model that starts with them learns to copy
    within a few hundred steps, and would need thousands to learn it from summarising alone.
    """
    item = rng.choice(pool)
    kind = rng.randrange(4)
    if kind == 0:
        turn = rng.choice(item.turns)[0]
        return turn, turn
    before = dg.any_style(rng)
    while kind > 1 and before.form == "diary":  # a diary does not name its author, so no other form follows from it
        before = dg.any_style(rng)
    after = before if kind == 1 else replace(before, form=dg.any_style(rng).form)
    tone = dg.tone(rng, polite=rng.random() < 0.5)
    text = dg.summary(item.facts, before, tone)
    ask = "" if kind == 1 else f"{dg.INSTRUCTIONS[after.form]}\n\n"
    return ask + text, dg.summary(item.facts, after, tone)


def corrupt(rng: Random, ids: Sequence[int], sentinels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Span corruption (Raffel et al., 2020, section 3.1.4): 15 % of the tokens, spans of 3 on average.

    Args:
        rng: source of the spans.
        ids: a text, without special tokens.
        sentinels: ids of the sentinel tokens, at least one more than there are spans.

    Returns:
        Input and target ids, without the final end-of-text token.
    """
    spans = max(1, min(len(sentinels) - 1, round(len(ids) * 0.15 / 3)))
    starts = sorted(rng.sample(range(max(1, len(ids) - 4)), min(spans, max(1, len(ids) - 4))))
    source: list[int] = []
    target: list[int] = []
    position = 0
    used = 0
    for start in starts:
        if start < position:
            continue
        end = min(len(ids), start + rng.randint(1, 5))
        source += [*ids[position:start], sentinels[used]]
        target += [sentinels[used], *ids[start:end]]
        position, used = end, used + 1
    return source + list(ids[position:]), [*target, sentinels[used]]

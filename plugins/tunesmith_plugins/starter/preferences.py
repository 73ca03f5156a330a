"""Politeness data made from the generated dialogues: preference pairs for a reward model, labelled texts for a scorer.

The two are to be used on different splits, and by different models, so that the policy is not judged by its own reward.
Everything that is not politeness is balanced: the facts of a pair's two summaries are the same, the longer one is as
often chosen as rejected, and the dialogue's own tone says nothing about either.
"""

from __future__ import annotations

from random import Random

from . import dialogues as dg
from . import lexicon as lx


def preferences(
    split: dg.Split, n: int, *, seed: int = 0, style: dg.Style = dg.TARGET, noise: float = 0.0
) -> list[dict[str, str]]:
    """Preference pairs: two summaries of one dialogue with the same facts, the politer one chosen.

    The four combinations of with and without a closing remark take turns; in half of the pairs one summary mixes tones
    (one adverb polite and one rude), so that a reward model learns degrees.

    Args:
        split: of the dialogues.
        n: how many pairs.
        seed: another seed gives other dialogues and other words.
        style: of both summaries.
        noise: the chance that a pair is turned round, as people disagree; it keeps the differences of a Bradley-Terry
            reward finite (at most about `log((1 - noise) / noise)` for pairs of a kind).

    Returns:
        Rows with `prompt` (without examples), `chosen`, `rejected`.
    """
    rows = []
    for i, item in enumerate(dg.dialogues(split, n, seed=seed)):
        rng = Random(f"preferences/{split}/{seed}/{i}")
        mixed = i % 8 >= 4
        good, bad = (2, 0) if not mixed else rng.choice(((2, 1), (1, 0)))
        chosen = dg.summary(item.facts, style, _graded(rng, good, remark=i % 4 in (1, 3)))
        rejected = dg.summary(item.facts, style, _graded(rng, bad, remark=i % 4 in (2, 3)))
        if rng.random() < noise:
            chosen, rejected = rejected, chosen
        rows.append({"prompt": dg.prompt(item.text), "chosen": chosen, "rejected": rejected})
    return rows


def _graded(rng: Random, polite_words: int, *, remark: bool) -> dg.Tone:
    """A tone with 0, 1 or 2 polite adverbs; a remark follows the majority, and either side of a draw."""
    first, second = {0: (False, False), 1: rng.choice(((True, False), (False, True))), 2: (True, True)}[polite_words]
    closing = first if first == second else rng.random() < 0.5
    return dg.Tone(
        asking=rng.choice(lx.ASKING[first]),
        answering=rng.choice(lx.ANSWERING[second]),
        remark=rng.choice(lx.REMARKS[closing]) if remark else "",
    )


def labelled(split: dg.Split, n: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Texts labelled "polite" or "rude", half of each: turns of dialogues and summaries in every style, in turn.

    Args:
        split: of the dialogues the texts come from.
        n: how many texts.
        seed: another seed gives other texts.

    Returns:
        Rows with `text` and `label`.
    """
    rows = []
    for i, item in enumerate(dg.dialogues(split, n, seed=seed)):
        rng = Random(f"labelled/{split}/{seed}/{i}")
        polite = i % 2 == 0
        matching = [text.partition(": ")[2] for text, kind in item.turns if kind == polite]
        if i % 4 < 2 and matching:
            text = rng.choice(matching)
        else:
            text = dg.summary(item.facts, dg.any_style(rng), dg.tone(rng, polite=polite))
        rows.append({"text": text, "label": "polite" if polite else "rude"})
    return rows


def rudeness(text: str) -> float:
    """The share of rude words among the words of tone in a summary, by the generator's own lists; 0.5 if it has none.

    The one judge that needs no training and cannot be argued with, for tests and for checking the others.
    """
    words = {word.strip(".,:;") for word in text.split()}
    rude, polite = (
        len(words & {*lx.ASKING[kind], *lx.ANSWERING[kind]}) + sum(remark in text for remark in lx.REMARKS[kind])
        for kind in (False, True)
    )
    return rude / (rude + polite) if rude + polite else 0.5

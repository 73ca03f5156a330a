"""A seeded generator of everyday dialogues with summaries, for the demo, its models and tests.

Two people talk about one thing: one asks (invites, complains, apologises, ...), the other agrees or refuses. The
facts (who, what, when, the answer and the reason) decide the dialogue, and a summary restates them in a `Style`, which
is invisible in the dialogue: only an instruction or examples in the prompt give it away, so prompting has something to
show.

Summaries carry words of tone ("kindly", "rudely") that state no fact. The annotators of the data are polite about half
of the time, and only loosely because the dialogue was: a policy trained on them mixes tones, a politeness reward can
move it, and its overlap with the references need not suffer.

The splits share no content: every combination of topic, thing and time belongs to exactly one split, by a hash. Nothing
but the standard library is used, and equal arguments give equal text on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from . import lexicon as lx

Split = Literal["pretrain", "train", "validation", "test"]
_SHARES: tuple[tuple[Split, int], ...] = (("pretrain", 40), ("train", 40), ("validation", 10), ("test", 10))
FORMS = ("report", "headline", "note", "question", "diary")


@dataclass(frozen=True)
class Facts:
    """What a dialogue says, apart from its wording."""

    topic: str
    thing: str
    day: str
    hour: str
    asker: str
    answerer: str
    agrees: bool
    reason: str  # why not; for an agreement, what the answerer may mention in passing

    @property
    def content(self) -> str:
        """The combination that decides the split."""
        return f"{self.topic}/{self.thing}/{self.day}/{self.hour}"

    @property
    def when(self) -> str:
        return f"on {self.day} {self.hour}"


@dataclass(frozen=True)
class Style:
    """How summaries are written; only examples (or, for the form, an instruction) reveal its conventions.

    Attributes:
        form: one of `FORMS`.
        time: where the time stands: "front", "end" or "none".
        yes, no: the verbs for agreeing and refusing (keys of `lexicon.AGREES` and `lexicon.REFUSES`).
        reason: whether the reason of a refusal is told.
    """

    form: str = "report"
    time: str = "front"
    yes: str = "says yes"
    no: str = "declines"
    reason: bool = True


TARGET = Style()
"""The style of the demo's data: rare among the styles of the pre-training, so it must be shown or learned."""


@dataclass(frozen=True)
class Tone:
    """The words of a summary that state no fact: two adverbs and, if not empty, a closing remark."""

    asking: str
    answering: str
    remark: str = ""


@dataclass(frozen=True)
class Dialogue:
    """One dialogue with its reference summary in the `TARGET` style."""

    id: str
    text: str
    summary: str
    facts: Facts
    polite: bool
    turns: tuple[tuple[str, bool], ...]  # text and politeness of each turn

    def row(self) -> dict[str, str | bool]:
        """The columns of the demo's data set."""
        return {
            "id": self.id,
            "dialogue": self.text,
            "summary": self.summary,
            "topic": self.facts.topic,
            "polite": self.polite,
        }


def split_of(content: str) -> Split:
    """The split that owns a combination of content."""
    place = int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big") % 100
    for split, share in _SHARES:
        if place < share:
            return split
        place -= share
    raise AssertionError("the shares add up to 100")


def dialogues(split: Split, n: int, *, seed: int = 0) -> list[Dialogue]:
    """`n` different dialogues of a split.

    Args:
        split: "pretrain" (what the carried models were trained on), "train", "validation" or "test".
        n: how many.
        seed: another seed gives other dialogues of the same split.

    Returns:
        Dialogues with pairwise different texts; the first ones do not depend on `n`.
    """
    if split not in dict(_SHARES):
        raise ValueError(f"no split {split!r}; there are {', '.join(name for name, _ in _SHARES)}")
    found: list[Dialogue] = []
    seen: set[str] = set()
    for item in _stream(split, seed):
        if len(found) == n:
            break
        if item.text not in seen:
            seen.add(item.text)
            found.append(item)
    return found


def _stream(split: Split, seed: int) -> Iterator[Dialogue]:
    number = 0
    while True:
        rng = Random(f"{split}/{seed}/{number}")
        facts = _facts(rng, split)
        polite = rng.random() < 0.5
        turns = _turns(rng, facts, polite)
        reference = summary(facts, TARGET, tone(rng, polite=rng.random() < (0.65 if polite else 0.35)))
        yield Dialogue(
            id=f"{split}-{seed}-{number:05d}",
            text="\n".join(text for text, _ in turns),
            summary=reference,
            facts=facts,
            polite=polite,
            turns=turns,
        )
        number += 1


def _facts(rng: Random, split: Split) -> Facts:
    while True:
        topic = rng.choice(tuple(lx.TOPICS))
        asker, answerer = rng.sample(lx.NAMES, 2)
        facts = Facts(
            topic=topic,
            thing=rng.choice(lx.TOPICS[topic].things),
            day=rng.choice(lx.DAYS),
            hour=rng.choice(lx.HOURS),
            asker=asker,
            answerer=answerer,
            agrees=rng.random() < 0.5,
            reason=rng.choice(lx.REASONS),
        )
        if split_of(facts.content) == split:
            return facts


def _turns(rng: Random, facts: Facts, polite: bool) -> tuple[tuple[str, bool], ...]:
    """Two to six turns; in one dialogue of five, the two speakers differ in tone."""
    answer_polite = polite if rng.random() < 0.8 else not polite
    topic = lx.TOPICS[facts.topic]
    opening = rng.choice(topic.polite if polite else topic.rude)
    told_later = rng.random() < 0.4
    if told_later:
        opening = opening.replace(" {w}", "")
    lines = [(facts.asker, opening, polite)]
    if told_later:
        lines.append((facts.answerer, rng.choice(lx.WHEN_QUESTION[answer_polite]), answer_polite))
        lines.append((facts.asker, rng.choice(lx.WHEN_ANSWER[polite]), polite))
    lines.append((facts.answerer, rng.choice((lx.YES if facts.agrees else lx.NO)[answer_polite]), answer_polite))
    if rng.random() < 0.5:
        lines.append((facts.asker, rng.choice(lx.THANKS[polite, facts.agrees]), polite))
        if rng.random() < 0.4:
            lines.append((facts.answerer, rng.choice(lx.LAST[answer_polite]), answer_polite))
    when = facts.when
    words = {"a": facts.asker, "b": facts.answerer, "t": facts.thing, "r": facts.reason, "w": when}
    words["W"] = when[0].upper() + when[1:]
    return tuple((f"{who}: {line.format(**words)}", tone) for who, line, tone in lines)


def tone(rng: Random, *, polite: bool, remark: bool | None = None) -> Tone:
    """Words of tone, all polite or all rude; a remark in half of the cases unless `remark` says."""
    with_remark = rng.random() < 0.5 if remark is None else remark
    return Tone(
        asking=rng.choice(lx.ASKING[polite]),
        answering=rng.choice(lx.ANSWERING[polite]),
        remark=rng.choice(lx.REMARKS[polite]) if with_remark else "",
    )


def summary(facts: Facts, style: Style, tone: Tone) -> str:
    """The summary of the facts: one sentence or line, and the remark where the tone has one."""
    a, b = facts.asker, facts.answerer
    topic = lx.TOPICS[facts.topic]
    words = {"a": a, "b": b, "t": facts.thing}
    does, did, will, label = (text.format(**words) for text in (topic.does, topic.did, topic.will, topic.label))
    front = f"On {facts.day} {facts.hour}, " if style.time == "front" else ""
    end = f" {facts.when}" if style.time == "end" else ""
    verb = style.yes if facts.agrees else style.no
    past = {**lx.AGREES, **lx.REFUSES}[verb]
    why = f" because of {facts.reason}" if style.reason and not facts.agrees else ""
    link = "and" if facts.agrees else "but"
    if style.form == "report":
        text = f"{front}{a} {tone.asking} {does}{end}, {link} {b} {tone.answering} {verb}{why}."
    elif style.form == "diary":
        text = f"{front}I {tone.asking} {did}{end}, {link} {b} {tone.answering} {past}{why}."
    elif style.form == "headline":
        text = f"{front}{label}{end}: {a} asks {tone.asking}, {b} {tone.answering} {verb}{why}."
    elif style.form == "note":
        time = "" if style.time == "none" else f"when: {facts.day} {facts.hour}; "
        first, last = (time, "") if style.time == "front" else ("", time)
        text = f"{first}who: {a}, {tone.asking}; what: {label}; {last}answer: {b} {tone.answering} {verb}{why}."
    elif style.form == "question":
        text = f"{a} asks {tone.asking}: {front}{will} {b} {tone.answering} {verb}{end}{why}."
    else:
        raise ValueError(f"no form {style.form!r}; there are {', '.join(FORMS)}")
    return f"{text} {tone.remark}" if tone.remark else text


def any_style(rng: Random) -> Style:
    """A style as the pre-training meets it: all forms, reports least often, conventions independent of each other."""
    return Style(
        form=rng.choices(FORMS, weights=(10, 25, 30, 15, 20))[0],
        time=rng.choice(("front", "end", "none")),
        yes=rng.choice(tuple(lx.AGREES)),
        no=rng.choice(tuple(lx.REFUSES)),
        reason=rng.random() < 0.5,
    )


INSTRUCTION = "Summarize the dialogue."
"""Says nothing about the style."""
INSTRUCTIONS = {
    "report": "Write a report.",
    "headline": "Write a headline.",
    "note": "Write a note.",
    "question": "Write a question with its answer.",
    "diary": "Write a diary entry.",
}
"""One instruction a form; the other conventions of a style are only seen in examples."""


def prompt(text: str, examples: Sequence[tuple[str, str]] = (), *, instruction: str = INSTRUCTION) -> str:
    """The prompt for the summary of a dialogue.

    Args:
        text: the dialogue.
        examples: (dialogue, summary) pairs to show first.
        instruction: the first line.

    Returns:
        The instruction and, separated by blank lines, the examples and the dialogue, ending in "Summary:".
    """
    blocks = [instruction, *(f"{shown}\nSummary: {written}" for shown, written in examples), f"{text}\nSummary:"]
    return "\n\n".join(blocks)

"""The generator of dialogues: deterministic, varied, true to its facts, and without leaks between splits."""

from itertools import combinations, product
from random import Random

import pytest

from tunesmith_plugins.starter import dialogues as dg
from tunesmith_plugins.starter import lexicon as lx

FIRST_LINE = "Tom: Hello Ben, may I buy your beautiful mirror on Friday evening?"
SPLITS = ("pretrain", "train", "validation", "test")


def test_equal_arguments_give_equal_dialogues_and_the_first_do_not_depend_on_how_many() -> None:
    assert dg.dialogues("train", 50, seed=3) == dg.dialogues("train", 80, seed=3)[:50]
    assert dg.dialogues("train", 50, seed=3) != dg.dialogues("train", 50, seed=4)


def test_the_text_is_the_same_on_every_machine() -> None:
    first = dg.dialogues("test", 1, seed=0)[0]
    assert first.id == "test-0-00000"
    assert first.text.splitlines()[0] == FIRST_LINE


def test_no_combination_of_content_stands_in_two_splits() -> None:
    content = {split: {x.facts.content for x in dg.dialogues(split, 600, seed=1)} for split in SPLITS}
    for a, b in combinations(SPLITS, 2):
        assert not content[a] & content[b], (a, b)


def test_every_combination_has_a_split_of_about_the_promised_size() -> None:
    owners = [
        dg.split_of(f"{name}/{thing}/{day}/{hour}")
        for name, topic in lx.TOPICS.items()
        for thing, day, hour in product(topic.things, lx.DAYS, lx.HOURS)
    ]
    for split, share in (("pretrain", 0.4), ("train", 0.4), ("validation", 0.1), ("test", 0.1)):
        assert abs(owners.count(split) / len(owners) - share) < 0.03


def test_dialogues_of_a_split_differ_from_each_other_and_cover_every_topic_and_person() -> None:
    items = dg.dialogues("train", 1000)
    assert len({x.text for x in items}) == 1000
    assert {x.facts.topic for x in items} == set(lx.TOPICS)
    assert {x.facts.asker for x in items} == {x.facts.answerer for x in items} == set(lx.NAMES)
    assert 2 <= min(len(x.turns) for x in items) < max(len(x.turns) for x in items) <= 6


def test_the_dialogue_says_every_fact_that_its_summary_tells() -> None:
    for item in dg.dialogues("validation", 300):
        facts = item.facts
        for word in (facts.asker, facts.answerer, facts.thing, f"{facts.day} {facts.hour}"):
            assert word in item.text
            assert word in item.summary
        if not facts.agrees:
            assert facts.reason in item.text
            assert facts.reason in item.summary


def test_the_words_of_a_thing_belong_to_one_topic_only() -> None:
    things = [thing for topic in lx.TOPICS.values() for thing in topic.things]
    assert len(things) == len(set(things))


def test_tone_of_a_summary_follows_the_dialogue_only_loosely() -> None:
    def polite(item: dg.Dialogue) -> bool:
        return any(word in item.summary.split() for word in lx.ASKING[True])

    items = dg.dialogues("train", 2000)
    share = {
        kind: sum(polite(x) for x in items if x.polite is kind) / sum(x.polite is kind for x in items)
        for kind in (True, False)
    }
    assert share[True] == pytest.approx(0.65, abs=0.05)
    assert share[False] == pytest.approx(0.35, abs=0.05)


def test_no_line_of_a_dialogue_tells_the_style_of_its_summary() -> None:
    facts = dg.dialogues("train", 1)[0].facts
    tone = dg.tone(Random(0), polite=True)
    styles = [
        dg.Style(form=form, time=time, yes=yes, no=no, reason=reason)
        for form, time, yes, no, reason in product(
            dg.FORMS, ("front", "end", "none"), lx.AGREES, lx.REFUSES, (True, False)
        )
    ]
    made = {dg.summary(facts, style, tone) for style in styles}
    assert len(made) == len(dg.FORMS) * 3 * 3 * (1 if facts.agrees else 2)


def test_a_prompt_shows_its_examples_before_the_dialogue() -> None:
    assert dg.prompt("A: b", [("C: d", "e")]) == "Summarize the dialogue.\n\nC: d\nSummary: e\n\nA: b\nSummary:"


def test_an_unknown_split_or_form_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="'dev'.*validation"):
        dg.dialogues("dev", 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'poem'.*headline"):
        dg.summary(dg.dialogues("train", 1)[0].facts, dg.Style(form="poem"), dg.tone(Random(0), polite=True))

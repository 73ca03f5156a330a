"""Politeness data: the chosen side is the politer one, and nothing else tells the sides apart."""

from tunesmith_plugins.starter import dialogues as dg
from tunesmith_plugins.starter import lexicon as lx
from tunesmith_plugins.starter.preferences import labelled, preferences, rudeness

TONE = {word for kind in (True, False) for table in (lx.ASKING, lx.ANSWERING) for word in table[kind]}


def _facts_only(summary: str) -> str:
    for kind in (True, False):
        for remark in lx.REMARKS[kind]:
            summary = summary.removesuffix(" " + remark)
    return " ".join(word for word in summary.split() if word not in TONE)


def test_the_chosen_summary_has_more_polite_adverbs_and_the_same_facts() -> None:
    polite = {*lx.ASKING[True], *lx.ANSWERING[True]}
    for row in preferences("train", 200):
        assert len(polite & {*row["chosen"].split()}) > len(polite & {*row["rejected"].split()})
        assert _facts_only(row["chosen"]) == _facts_only(row["rejected"])


def test_the_longer_summary_is_chosen_as_often_as_rejected() -> None:
    rows = preferences("train", 400)
    longer = [len(row["chosen"].split()) - len(row["rejected"].split()) for row in rows]
    assert sum(x > 0 for x in longer) == sum(x < 0 for x in longer) == 100


def test_noise_turns_about_its_share_of_the_pairs_round_and_changes_no_text() -> None:
    clean, noisy = preferences("train", 400), preferences("train", 400, noise=0.25)
    assert all({a["chosen"], a["rejected"]} == {b["chosen"], b["rejected"]} for a, b in zip(clean, noisy, strict=True))
    turned = sum(a["chosen"] != b["chosen"] for a, b in zip(clean, noisy, strict=True))
    assert 70 < turned < 130


def test_preferences_are_deterministic_and_come_from_their_split() -> None:
    assert preferences("validation", 30, seed=2) == preferences("validation", 30, seed=2)
    assert [row["prompt"] for row in preferences("test", 20)] == [dg.prompt(x.text) for x in dg.dialogues("test", 20)]


def test_labelled_texts_are_balanced_and_agree_with_the_lists() -> None:
    rows = labelled("train", 400)
    assert sum(row["label"] == "polite" for row in rows) == 200
    judged = [(rudeness(row["text"]), row["label"]) for row in rows if rudeness(row["text"]) != 0.5]
    assert len(judged) > 150
    assert all((score == 1.0) == (label == "rude") for score, label in judged)


def test_rudeness_counts_words_of_tone() -> None:
    assert rudeness("Anna kindly asks Tom, and Tom sulkily says yes.") == 0.5
    assert rudeness("Anna rudely asks Tom, and Tom sulkily says yes. A very nice pair.") == 2 / 3
    assert rudeness("Anna asks Tom.") == 0.5

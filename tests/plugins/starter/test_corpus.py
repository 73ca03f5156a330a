"""What the carried models were pre-trained on."""

from random import Random

from hypothesis import given
from hypothesis import strategies as some

from tunesmith_plugins.starter import corpus
from tunesmith_plugins.starter import dialogues as dg

SENTINELS = [1000 + i for i in range(16)]


@given(ids=some.lists(some.integers(0, 999), min_size=5, max_size=120), seed=some.integers(0, 99))
def test_the_target_of_span_corruption_fills_the_holes_of_its_source(ids: list[int], seed: int) -> None:
    source, target = corpus.corrupt(Random(seed), ids, SENTINELS)
    holes: dict[int, list[int]] = {}
    for token in target:
        if token >= 1000:
            hole = holes.setdefault(token, [])
        else:
            hole.append(token)
    filled = [token for item in source for token in (holes[item] if item >= 1000 else [item])]
    assert filled == ids
    assert len(source) < len(ids) + 8
    assert any(token >= 1000 for token in source)


def test_a_prompt_with_examples_shows_as_many_and_ends_with_another_dialogue() -> None:
    pool = dg.dialogues("pretrain", 50)
    for shots in range(corpus.MAX_SHOTS + 1):
        text, answer = corpus.summarising(Random(shots), pool, shots)
        assert text.count("Summary:") == shots + 1
        assert text.endswith("Summary:")
        assert answer
        assert len(text.split("\n\n")) == shots + 2


def test_the_style_of_the_examples_is_the_style_of_the_answer() -> None:
    pool = dg.dialogues("pretrain", 50)
    for seed in range(40):
        text, answer = corpus.summarising(Random(seed), pool, 3)
        shown = [line.removeprefix("Summary: ") for line in text.splitlines() if line.startswith("Summary: ")]
        assert {line.startswith("On ") for line in shown} == {answer.startswith("On ")}
        assert {"who: " in line for line in shown} == {"who: " in answer}


def test_rewriting_keeps_the_facts() -> None:
    pool = dg.dialogues("pretrain", 50)
    for seed in range(40):
        text, answer = corpus.rewriting(Random(seed), pool)
        capitals = {word.strip(".,:?;") for word in answer.split() if word.strip(".,:?;") in dg.lx.NAMES}
        assert all(name in text for name in capitals)

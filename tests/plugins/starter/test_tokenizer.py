"""The tokenizer of the carried models gives back what it was given."""

from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from transformers import AutoTokenizer

from tunesmith_plugins.starter import corpus
from tunesmith_plugins.starter import dialogues as dg
from tunesmith_plugins.starter.carried import model_path
from tunesmith_plugins.starter.tokenizer import train_tokenizer

NAMES = ("seq2seq", "encoder")


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    return AutoTokenizer.from_pretrained(model_path(request.param))


def test_generated_texts_come_back_unchanged(tokenizer) -> None:  # type: ignore[no-untyped-def]
    pool = dg.dialogues("test", 200, seed=5)
    rng = Random(0)
    for shots in (0, 1, 3):
        for _ in range(60):
            for text in corpus.summarising(rng, pool, shots):
                assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


@settings(max_examples=60, deadline=None)
@given(
    text=some.text(
        alphabet=some.characters(
            codec="utf-8", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp"), exclude_characters="▁"
        )
    )
)
def test_any_word_comes_back_spelled_in_letters_or_bytes(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path("encoder"))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_words_of_the_generator_are_single_tokens(tokenizer) -> None:  # type: ignore[no-untyped-def]
    for item in dg.dialogues("test", 50):
        words = [word.strip(".,:?") for word in item.summary.split()]
        for word in words:
            assert len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1, word


def test_the_vocabulary_is_small_and_the_two_tokenizers_share_it() -> None:
    first, second = (AutoTokenizer.from_pretrained(model_path(name)).get_vocab() for name in NAMES)
    assert 600 < len(second) < 1000
    assert second.items() <= first.items()
    assert all(word.startswith("<extra_id_") for word in first.keys() - second.keys())


def test_each_family_gets_its_special_tokens(tmp_path: Path) -> None:
    ends = {}
    for family in ("encoder-decoder", "encoder"):
        train_tokenizer(["one two"], tmp_path / family, family=family)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / family)
        ends[family] = tokenizer.convert_ids_to_tokens(tokenizer("one two")["input_ids"])
    assert ends == {"encoder-decoder": ["▁one", "▁two", "</s>"], "encoder": ["[CLS]", "▁one", "▁two", "[SEP]"]}

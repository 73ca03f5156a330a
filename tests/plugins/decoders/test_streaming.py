"""Completions in pieces: nothing is taken back, nothing is broken, no part of a stop string is shown."""

import random

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tunesmith.generation import generate
from tunesmith.kinds.decoder import Completion, Request
from tunesmith.lm import LM
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.decoders.batch import Row
from tunesmith_plugins.decoders.spelling import PATIENCE, Spelling
from tunesmith_plugins.decoders.stops import Stops, held_back
from tunesmith_plugins.engines.decoder_only import DecoderOnly

PROMPTS = ["the cat sees a tree", "dog", "one two red and blue fish in the house", "no fish", "a big tree"]
HOT = "temperature(temperature=1.5)"
TEXT = "Grüße, naïve 日本語 🎉 don't stop. Zwölf Boxkämpfer jagen Viktor — quer! ไทย\n\nEnd of it ; x == y"


def byte_level():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="!")


def sentencepiece():
    pieces = [("<unk>", 0.0), *[(f"<0x{n:02X}>", -20.0) for n in range(256)]]
    pieces += [(f"▁{word}", -5.0) for word in ("Gr", "na", "don't", "stop", "End", "it", "x", "the")]
    pieces += [("▁", -6.0), *[(letter, -8.0) for letter in "abcdefghijklmnopqrstuvwxyzEGZ.,;=—\n'"]]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def wordpiece():
    letters = sorted(set(TEXT) - set(" \n"))
    vocabulary = ["[UNK]", *letters, *[f"##{letter}" for letter in letters], "don", "stop", "##op", "Box", "End"]
    tokenizer = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


TOKENIZERS = {"byte level": byte_level, "sentencepiece": sentencepiece, "wordpiece": wordpiece}


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def model(request):
    lm = tiny_lm()
    return DecoderOnly(LM(model=lm.model, tokenizer=TOKENIZERS[request.param](), family="decoder"), 4)


def spelled(model, ids, stop=()):
    """Return pieces until the text ends with ``ids``, or before a stop string, and the whole text."""
    row = Row(0, Request(prompt_ids=(1,)))
    spelling, stops, pieces = Spelling(row, model, stop), Stops(model, stop), []
    for length, token in enumerate(ids, 1):
        if length == len(ids) or (stop and stops.may_end(token) and stops.written(ids[:length])):
            break
        pieces.append(spelling.add(token))
    text = model.text(ids[:length])
    ends = [text.find(s) for s in stop if s in text]
    text = text[: min(ends)] if ends else text
    done = Completion(request=0, id="", stream=0, token_ids=tuple(ids[:length]), text=text, finish="stop")
    return [piece for piece in [*pieces, spelling.close(done)] if piece is not None], text


def random_ids(model, seed, length=60):
    chance = random.Random(seed)
    if seed % 2:
        return [chance.randrange(len(model.lm.tokenizer)) for _ in range(length)]
    ids = model.lm.tokenizer(TEXT)["input_ids"]
    start = chance.randrange(len(ids))
    return (ids[start:] + ids)[:length]


def test_pieces_make_up_the_text_and_the_ids(model):
    whole = model.lm.tokenizer(TEXT)["input_ids"]
    for ids in [whole, *[random_ids(model, seed) for seed in range(40)]]:
        pieces, text = spelled(model, list(ids))
        assert "".join(piece.text for piece in pieces) == text
        assert [token for piece in pieces for token in piece.token_ids] == list(ids)
        assert [piece.completion is not None for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        assert all(piece.text for piece in pieces[:-1])


def test_pieces_of_a_text_are_whole_characters_and_words(model):
    ids = model.lm.tokenizer(TEXT)["input_ids"]
    pieces, text = spelled(model, ids)
    assert len(pieces) > 8
    assert "\ufffd" not in text
    shown = 0
    for piece in pieces[:-1]:
        shown += len(piece.text)
        assert text[shown].isspace() or ord(text[shown - 1]) > 0x2E7F, f"cut in a word: {text[:shown]!r}"


def test_what_has_no_spaces_is_shown_after_a_while():
    lm = tiny_lm()
    model = DecoderOnly(LM(model=lm.model, tokenizer=byte_level(), family="decoder"), 4)
    pieces, text = spelled(model, model.lm.tokenizer("x" * 100)["input_ids"])
    assert len(pieces) == 1 + 99 // PATIENCE
    assert "".join(piece.text for piece in pieces) == text


@pytest.mark.parametrize("stop", [("stop",), ("n't st", "Vik"), ("\n\n",), ("語 🎉",), (" ",), (". Z", "x =", "GG")])
def test_no_part_of_a_stop_string_is_shown(model, stop):
    whole = model.lm.tokenizer(TEXT)["input_ids"]
    for ids in [whole, *[random_ids(model, seed) for seed in range(0, 30, 2)]]:
        pieces, text = spelled(model, list(ids), stop)
        # what a look at the whole text after every token finds
        first = next((n for n in range(1, len(ids)) if any(s in model.text(ids[:n]) for s in stop)), len(ids))
        assert len([token for piece in pieces for token in piece.token_ids]) == first
        assert "".join(piece.text for piece in pieces) == text
        assert not any(s in text for s in stop)


def test_what_may_be_the_beginning_of_a_stop_string_is_held_back():
    assert held_back("so far", ("abc",)) == 0
    assert held_back("so fab c", ("abc", "xy")) == 0
    assert held_back("so fa", ("abc",)) == 1
    assert held_back("so fab", ("fabc", "bx")) == 3
    assert held_back("aa", ("aaa",)) == 2
    assert held_back("", ("a",)) == 0


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
@pytest.mark.parametrize("stop", [(), ("e",), ("a cat", "fish r")])
def test_streams_of_many_rows_are_the_completions(family, stop):
    lm = tiny_lm(family)
    options = {
        "sampler": HOT,
        "max_new_tokens": 12,
        "completions": 2,
        "stop": stop,
        "engine": "transformers(batch_size=3)",
        "seed": 2,
    }
    expected = generate(lm, PROMPTS, **options)
    pieces = list(generate(lm, PROMPTS, stream=True, **options))
    for completion in expected:
        mine = [p for p in pieces if (p.request, p.stream) == (completion.request, completion.stream)]
        assert "".join(p.text for p in mine) == completion.text
        assert tuple(t for p in mine for t in p.token_ids) == completion.token_ids
        assert mine[-1].completion == completion
        assert all(p.completion is None for p in mine[:-1])
        assert not any(s in "".join(p.text for p in mine) for s in stop)
    order = [(p.request, p.stream) for p in pieces]
    assert order != sorted(order), "rows were not written side by side"


def test_a_decoder_that_judges_whole_completions_gives_each_as_one_piece():
    lm = tiny_lm()
    options = {"decoder": "beam(beams=2)", "max_new_tokens": 5}
    pieces = list(generate(lm, PROMPTS, stream=True, **options))
    found = {p.request: p.completion for p in pieces}
    assert [found[n] for n in range(len(PROMPTS))] == generate(lm, PROMPTS, **options)
    assert all(p.text == p.completion.text for p in pieces)

import hashlib
import sys
from pathlib import Path

import pytest

from tunesmith.errors import CodeNotAllowed, ConfigError, PluginError
from tunesmith.generation import generate
from tunesmith.kinds.decoder import Completion, Decoder, DecoderConfig, Limits, Request
from tunesmith.runtime import Runtime
from tunesmith.testing import conformance
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.decoders import Beam, BestOfN, Guidance, SelfConsistency, Stepwise
from tunesmith_plugins.decoders.answers import last_line, last_number, matching, whole

PROMPTS = ["the cat sees a tree", "dog", "one two red"]
HOT = "temperature(temperature=1.2)"


@conformance(
    SelfConsistency(n=3, answer="text"),
    SelfConsistency(n=2, pattern="[a-z]+", ties="first", decoder=BestOfN(n=2)),
)
def test_conforms(check):
    check()


class Told(Decoder):
    """Writes what the streams were told to: text and mean log-probability of a token."""

    takes_negatives = False

    def __init__(self, told):
        super().__init__(DecoderConfig())
        self.told = told

    def decode(self, step_model, requests, sampler, limits, runtime):
        for number in reversed(range(len(requests))):  # any order
            text, logp = self.told[requests[number].stream]
            yield Completion(
                request=number,
                id=requests[number].id,
                stream=requests[number].stream,
                token_ids=(5, 6),
                text=text,
                finish="length",
                logp=() if logp is None else (logp - 1, logp + 1),
            )


def elect(told, runtime=None, streams=(0,), **options):
    decoder = SelfConsistency(n=len(told) // len(streams), **options).build()
    decoder.inner = Told(told)
    requests = [Request(prompt_ids=(1,), id="q", stream=s) for s in streams]
    found = list(decoder.decode(None, requests, None, Limits(), runtime or Runtime()))
    return sorted(found, key=lambda c: c.request)


def test_the_answer_with_most_votes_wins_and_its_share_is_the_score():
    told = [("is 7", -1.0), ("is 42.0", -5.0), ("so 42", -3.0), ("no idea", -0.1), ("42.00!", -4.0)]
    (found,) = elect(told)
    assert found.text == "so 42"  # of the winner's completions the likeliest by token
    assert found.score == 3 / 5
    assert found.details == {"answer": "42", "votes": {"42": 3, "7": 1}, "no_answer": 1}
    assert list(found.details["votes"]) == ["42", "7"]
    assert (found.request, found.id, found.stream) == (0, "q", 0)
    assert elect(told, ties="first")[0].text == "is 42.0"


def test_ties_go_by_log_probability_or_to_the_first():
    told = [("1", -3.0), ("2", -2.0), ("1", -2.5), ("2", -4.0), ("3", -0.5)]
    assert [elect(told, ties=t)[0].text for t in ("logp", "first")] == ["2", "1"]
    assert [elect(told, ties=t)[0].score for t in ("logp", "first")] == [2 / 5, 2 / 5]
    assert elect([("1", -2.0), ("2", -2.0)])[0].text == "1", "of equal log-probabilities the first"


def test_without_any_answer_the_score_is_zero():
    (found,) = elect([("a", -2.0), ("b", -1.0)])
    assert (found.text, found.score) == ("b", 0.0)
    assert found.details == {"answer": None, "votes": {}, "no_answer": 2}


def test_streams_of_a_request_hold_elections_of_their_own():
    first, second = elect([("1", -1.0), ("1", -1.0), ("2", -1.0), ("2", -1.0)], streams=(0, 1))
    assert [first.details["answer"], second.details["answer"]] == ["1", "2"]
    assert [first.stream, second.stream] == [0, 1]


@pytest.mark.parametrize(
    ("extract", "text", "answer"),
    [
        (last_number, "1,000 apples", "1000"),
        (last_number, "3, 4 and -2.50.", "-2.5"),
        (last_number, "1,2", "2"),
        (last_number, "-0.0", "0"),
        (last_number, "1200", "1200"),
        (last_number, "between 3-4", "4"),  # a minus behind a number or a word is no sign
        (last_number, "GPT-4", "4"),
        (last_number, "x=-4", "-4"),
        (last_number, "x = \u22124", "-4"),
        (last_number, "p is .5", "0.5"),
        (last_number, "-.50", "-0.5"),
        (last_number, "2.5e3", "2500"),
        (last_number, "1234567890123456789012345678901.0", "1234567890123456789012345678901"),
        (last_number, "none", None),
        (last_line, "a\n b \n \n", "b"),
        (last_line, " \n", None),
        (whole, " a b\n", "a b"),
        (whole, "  ", None),
        (matching(r"is \((\w)\)"), "is (a), or is (b) ok", "b"),
        (matching(r"\d+"), "7 8", "8"),
        (matching(r"x(y)?"), "xy x", None),
        (matching(r"z"), "xy", None),
    ],
)
def test_answers_are_taken_out_of_texts(extract, text, answer):
    assert extract(text) == answer


def length_of(text):
    return str(len(text)) if text else None


def five(text):
    return 5


def test_a_function_of_the_users_takes_the_answer_if_code_is_allowed():
    allowed = Runtime(allow_code=True)
    told = [("ab", -1.0), ("xyz", -2.0), ("cd", -3.0)]
    (found,) = elect(told, allowed, answer=f"{__name__}:length_of")
    assert (found.text, found.details["answer"]) == ("ab", "2")
    with pytest.raises(CodeNotAllowed, match="allow_code"):
        elect(told, answer=f"{__name__}:length_of")
    with pytest.raises(PluginError, match="returned a int"):
        elect(told, allowed, answer=f"{__name__}:five")
    with pytest.raises(PluginError, match="not a function"):
        elect(told, allowed, answer=f"{__name__}:HOT")


def test_the_users_code_counts_in_what_a_result_depends_on():
    with open(__file__, "rb") as file:
        expected = hashlib.sha256(file.read()).hexdigest()
    config = SelfConsistency(answer="answer_of:length_of")
    with pytest.raises(PluginError, match="no module 'answer_of'"):
        config.code_digest()
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        assert SelfConsistency(answer=f"{Path(__file__).stem}:length_of").code_digest() == expected
    finally:
        sys.path.pop(0)
    assert SelfConsistency(answer="text").code_digest() == SelfConsistency(pattern="a").code_digest() == ""


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
def test_votes_are_those_of_the_streams_drawn_one_by_one(family):
    lm = tiny_lm(family, spread=1.0)
    options = {"sampler": HOT, "max_new_tokens": 5}
    pattern = "[a-z]+"  # the last word
    found = generate(lm, PROMPTS, decoder=SelfConsistency(n=6, pattern=pattern, ties="first"), **options)
    drawn = generate(lm, PROMPTS, completions=6, **options)
    for number, completion in enumerate(found):
        mine = [matching(pattern)(c.text) for c in drawn[6 * number : 6 * number + 6]]
        words = [word for word in mine if word is not None]
        most = max(map(words.count, words))
        assert completion.details["votes"] == {word: words.count(word) for word in words}
        assert completion.details["answer"] == next(word for word in words if words.count(word) == most)
        assert completion.score == most / 6
        assert completion.token_ids == drawn[6 * number + mine.index(completion.details["answer"])].token_ids


def test_a_greedy_sampler_agrees_with_itself():
    lm = tiny_lm()
    found = generate(lm, PROMPTS, decoder=SelfConsistency(n=3, answer="text", decoder=Stepwise()), max_new_tokens=4)
    plain = generate(lm, PROMPTS, max_new_tokens=4)
    assert [(c.text, c.score) for c in found] == [(c.text, 1.0) for c in plain]


def test_the_best_texts_of_a_beam_search_vote():
    lm = tiny_lm()
    voting = SelfConsistency(n=3, answer="text", decoder=Beam(beams=3))
    found = generate(lm, PROMPTS, decoder=voting, max_new_tokens=4)
    best = generate(lm, PROMPTS, decoder=Beam(beams=3), completions=3, max_new_tokens=4)
    for number, elected in enumerate(found):
        texts = [c.text for c in best[3 * number : 3 * number + 3]]
        assert elected.details["votes"] == {text: texts.count(text) for text in texts}
        assert len(set(texts)) > 1


def test_negative_prompts_reach_the_inner_decoder():
    lm = tiny_lm(spread=1.0)
    voting = SelfConsistency(n=2, answer="text", decoder=Guidance(scale=0.0))
    found = generate(lm, ["dog"], negative_prompts=["no fish"], decoder=voting, max_new_tokens=5)
    assert found[0].token_ids == generate(lm, ["no fish"], max_new_tokens=5)[0].token_ids


def test_mistakes_are_said():
    with pytest.raises(ValueError, match=r"'answer': 'first' is none of last_number, last_line, text"):
        SelfConsistency(answer="first")
    with pytest.raises(ValueError, match="no regular expression"):
        SelfConsistency(pattern="(")
    with pytest.raises(ConfigError, match="ties='first'"):
        elect([("1", None), ("2", None)])

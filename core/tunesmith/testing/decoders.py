"""Checks of decoders: every request gets its own answer, limits hold, and company changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from tunesmith.component import Config
from tunesmith.generation import generate
from tunesmith.kinds.decoder import Completion
from tunesmith.lm import LM
from tunesmith.testing.models import tiny_lm

PROMPTS = ("the cat sees a tree", "dog", "one two red and blue fish in the house", "no fish")
FAMILIES = ("decoder", "encoder-decoder")
SAMPLER = "temperature(temperature=0.8)"
LENGTH = 6


@cache
def _lm(family: Any) -> LM:
    return tiny_lm(family)


def _written(config: Config, family: str, prompts: tuple[str, ...] = PROMPTS, **options: Any) -> list[Completion]:
    options = {"decoder": config, "sampler": SAMPLER, "max_new_tokens": LENGTH, "ids": prompts, **options}
    found: list[Completion] = generate(_lm(family), prompts, **options)
    return found


def check_every_request_is_answered_as_itself(config: Config) -> None:
    """Completions carry their request's place, id and stream, and the text of their tokens."""
    for family in FAMILIES:
        found = _written(config, family, completions=2)
        named = {(c.request, c.id, c.stream) for c in found}
        assert named == {(n, p, s) for n, p in enumerate(PROMPTS) for s in range(2)}, f"{family}: {sorted(named)}"
        for c in found:
            text = _lm(family).tokenizer.decode(c.token_ids, skip_special_tokens=True)
            assert c.text == text, f"{family}: {c.text!r} is not what the tokens say, {text!r}"
            assert len(c.logp) in (0, len(c.token_ids)), f"{family}: {len(c.logp)} log-probabilities"


def check_the_same_request_gives_the_same_completion_in_any_company(config: Config) -> None:
    """A prompt alone, prompts in another order, and small batches give the same completions."""
    for family in FAMILIES:
        whole = {c.id: c.token_ids for c in _written(config, family)}
        for prompt in PROMPTS[:2]:
            alone = _written(config, family, (prompt,))[0].token_ids
            assert alone == whole[prompt], f"{family}: {prompt!r} alone gives {alone}, in company {whole[prompt]}"
        turned = {
            c.id: c.token_ids for c in _written(config, family, PROMPTS[::-1], engine="transformers(batch_size=3)")
        }
        assert turned == whole, f"{family}: another order gives other completions"


def check_limits_hold(config: Config) -> None:
    """No completion is longer than allowed or shorter than asked for, and ``finish`` says why it ended."""
    for family in FAMILIES:
        ends = {_lm(family).tokenizer.eos_token_id}
        for least in (0, 4):
            for c in _written(config, family, min_new_tokens=least):
                assert least <= len(c.token_ids) <= LENGTH, f"{family}: {len(c.token_ids)} tokens"
                assert c.finish == ("eos" if c.token_ids[-1] in ends else "length"), f"{family}: {c}"
                assert not ends & set(c.token_ids[:-1]), f"{family}: it went on after the end: {c.token_ids}"


def check_a_request_may_have_a_limit_of_its_own(config: Config) -> None:
    """Requests with fewer new tokens than the call allows (``limits.most(request)``) get no more, and the others all of theirs."""
    own = [2 if number % 2 else LENGTH for number in range(len(PROMPTS))]
    for family in FAMILIES:
        free = _written(config, family)
        for one, before in zip(_written(config, family, max_new_tokens=own), free, strict=True):
            most = own[one.request]
            assert len(one.token_ids) <= most, f"{family}: {len(one.token_ids)} tokens where the request has {most}"
            if most == LENGTH:
                assert one.token_ids == before.token_ids, f"{family}: limits of others change {before} to {one}"


def check_stop_strings_end_a_completion_and_are_cut_off(config: Config) -> None:
    """A completion ends before a stop string."""
    for family in FAMILIES:
        free = _written(config, family, min_new_tokens=LENGTH)
        words = [word for c in free for word in c.text.split()[1:2]]
        assert words, "the tiny model wrote no two words"
        stop = words[0]
        for c in _written(config, family, min_new_tokens=LENGTH, stop=(stop,)):
            assert stop not in c.text, f"{family}: {stop!r} is in {c.text!r}"
            assert (c.finish == "stop") == _has(family, c, stop), f"{family}: {c}"


def check_pieces_add_up_to_the_completions(config: Config) -> None:
    """Streamed pieces, put together, are the completions that are given without streaming."""
    for family in FAMILIES:
        options: dict[str, Any] = {"decoder": config, "sampler": SAMPLER, "max_new_tokens": LENGTH, "stop": ("cat s",)}
        whole = generate(_lm(family), PROMPTS, **options)
        pieces = list(generate(_lm(family), PROMPTS, stream=True, **options))
        found = [piece.completion for piece in pieces if piece.completion is not None]
        assert sorted(found, key=lambda c: c.request) == whole, f"{family}: streaming gives other completions"
        for c in whole:
            mine = [piece for piece in pieces if (piece.request, piece.stream) == (c.request, c.stream)]
            text, ids = "".join(piece.text for piece in mine), tuple(i for piece in mine for i in piece.token_ids)
            assert (text, ids) == (c.text, c.token_ids), f"{family}: the pieces say {text!r}, {ids}, not {c}"
            assert mine[-1].completion is not None, f"{family}: something follows a completion's last piece"


CHECKS: tuple[Callable[[Any], None], ...] = (
    check_every_request_is_answered_as_itself,
    check_the_same_request_gives_the_same_completion_in_any_company,
    check_limits_hold,
    check_a_request_may_have_a_limit_of_its_own,
    check_stop_strings_end_a_completion_and_are_cut_off,
    check_pieces_add_up_to_the_completions,
)


def _has(family: str, completion: Completion, stop: str) -> bool:
    return stop in _lm(family).tokenizer.decode(completion.token_ids, skip_special_tokens=True)

"""Checks of engines: they have the powers that they state, and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from tunesmith.component import Config
from tunesmith.errors import MissingPower
from tunesmith.generation import component, generate, prompt_ids
from tunesmith.kinds.decoder import Completion, Limits, Piece, Request
from tunesmith.kinds.engine import POWERS, Engine
from tunesmith.kinds.sampler import Link, Rows, SamplerConfig
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith.testing.conformance import when
from tunesmith.testing.models import tiny_lm

PROMPTS = ("the cat sees a tree", "dog", "one two red")
LENGTH = 5
F = TypeVar("F", bound=Callable[..., Any])


def _ready(config: Config, lm: LM) -> Engine:
    engine: Engine = config.build()
    engine.setup(Runtime())
    engine.sync(lm)
    return engine


def _work(lm: LM, sampler: Any = None, **options: Any) -> tuple[list[Request], Any, Any, Limits, Runtime]:
    requests = [
        Request(prompt_ids=ids, seed=number, id=str(number), **options)
        for number, ids in enumerate(prompt_ids(lm, PROMPTS))
    ]
    parts = component(None, "decoder"), component(sampler, "sampler")
    return requests, *parts, Limits(max_new_tokens=LENGTH), Runtime()


def _written(engine: Engine, lm: LM, sampler: Any = None, **options: Any) -> list[Completion]:
    return sorted(engine.generate(*_work(lm, sampler, **options)), key=lambda c: c.request)


def _has(power: str) -> Callable[[F], F]:
    return when(lambda engine: power in engine.powers)


def check_its_powers_are_known(config: Config) -> None:
    """``powers`` is a subset of the powers there are, and ``require`` refuses the rest by name."""
    engine: Engine = config.build()
    unknown = sorted(set(engine.powers) - POWERS)
    assert not unknown, f"unknown powers: {', '.join(unknown)}; there are {', '.join(sorted(POWERS))}"
    engine.require(engine.powers)
    for power in sorted(POWERS - engine.powers):
        message = _refusal(engine, power)
        assert power in message, f"require([{power!r}]) does not name it: {message or 'nothing was raised'}"


def check_every_request_is_answered(config: Config) -> None:
    """Every request gets a completion with its place and id, no longer than allowed."""
    lm = tiny_lm()
    found = _written(_ready(config, lm), lm)
    assert [(c.request, c.id) for c in found] == [(n, str(n)) for n in range(len(PROMPTS))]
    for c in found:
        assert len(c.token_ids) <= LENGTH, f"{len(c.token_ids)} tokens"


def check_a_request_may_have_a_limit_of_its_own(config: Config) -> None:
    """A request with fewer new tokens than the call allows (``limits.most(request)``) gets no more."""
    lm = tiny_lm()
    for c in _written(_ready(config, lm), lm, max_new_tokens=1):
        assert len(c.token_ids) <= 1, f"{len(c.token_ids)} tokens where the request has 1"


@_has("token_ids")
def check_token_ids_say_the_text(config: Config) -> None:
    """The ids decode to the text."""
    lm = tiny_lm()
    for c in _written(_ready(config, lm), lm):
        text = lm.tokenizer.decode(c.token_ids, skip_special_tokens=True)
        assert c.text == text, f"{c.text!r} is not what the ids say, {text!r}"


@_has("logp")
def check_log_probabilities_are_those_of_the_model(config: Config) -> None:
    """``logp`` of a plain draw is the model's own log-probability of each token."""
    from tunesmith.scoring import token_logps_in_batches

    lm = tiny_lm()
    found = _written(_ready(config, lm), lm)
    for c, ids in zip(found, prompt_ids(lm, PROMPTS), strict=True):
        row = torch.tensor([c.token_ids])
        expected = token_logps_in_batches(lm, [ids], row, torch.tensor([row.shape[1]]))[0][0]
        assert torch.allclose(torch.tensor(c.logp), expected, atol=1e-4), f"{c.logp} is not {expected.tolist()}"


@_has("seeds")
def check_seeds_are_honoured(config: Config) -> None:
    """Equal seeds draw equal tokens, in whatever order they are asked for; other streams draw others."""
    if "any_sampler" not in config.build().powers:
        return  # which tokens are drawn at all is then the engine's own business
    lm = tiny_lm()
    sampler = "temperature(temperature=2.0)"
    engine = _ready(config, lm)
    first = [c.token_ids for c in _written(engine, lm, sampler)]
    assert first == [c.token_ids for c in _written(engine, lm, sampler)], "a second call draws other tokens"
    requests, *work = _work(lm, sampler)
    turned = sorted(engine.generate(requests[::-1], *work), key=lambda c: c.id)
    assert first == [c.token_ids for c in turned], "requests in another order draw other tokens"
    others = [c.token_ids for c in _written(engine, lm, sampler, stream=1)]
    assert others != first, "another stream draws the same tokens"


@_has("any_sampler")
def check_a_sampler_it_has_never_seen_is_run(config: Config) -> None:
    """A link defined here decides the tokens."""
    lm = tiny_lm()
    found = _written(_ready(config, lm), lm, _OnlyOne(SamplerConfig()))
    assert {t for c in found for t in c.token_ids} == {_OnlyOne.token}, "the sampler was not used"


@_has("score")
def check_scores_are_those_of_the_model(config: Config) -> None:
    """``score`` gives one log-probability a token, whatever the other pairs are."""
    from tunesmith.scoring import token_logps_in_batches

    lm = tiny_lm()
    prompts = prompt_ids(lm, PROMPTS)
    pairs = [(prompts[0], (5, 6, 7)), (prompts[1], (8,)), (prompts[2], (9, 10, 5, 6))]
    found = _ready(config, lm).score(pairs)
    for (prompt, completion), logps in zip(pairs, found, strict=True):
        row = torch.tensor([completion])
        expected = token_logps_in_batches(lm, [prompt], row, torch.tensor([len(completion)]))[0][0]
        assert len(logps) == len(completion), f"{len(logps)} log-probabilities for {len(completion)} tokens"
        assert torch.allclose(torch.tensor(logps), expected, atol=1e-4), f"{logps} is not {expected.tolist()}"


@when(lambda engine: "score" not in engine.powers)
def check_scoring_is_refused(config: Config) -> None:
    """Without the power, ``score`` raises MissingPower."""
    try:
        _ready(config, tiny_lm()).score([((5,), (6,))])
    except MissingPower:
        return
    raise AssertionError("score gave a result, and 'score' is not among the powers")


@_has("live_weights")
def check_changed_weights_are_followed(config: Config) -> None:
    """After the weights have changed in place the engine writes what the changed model writes."""
    lm, other = tiny_lm(), tiny_lm(seed=1)
    engine = _ready(config, lm)
    _written(engine, lm)
    lm.model.load_state_dict(other.model.state_dict())
    engine.sync(lm)
    changed = [c.token_ids for c in _written(engine, lm)]
    expected = [c.token_ids for c in generate(other, PROMPTS, max_new_tokens=LENGTH)]
    assert changed == expected, f"{changed} is not {expected}"


def check_completions_keep_to_the_model_they_were_asked_of(config: Config) -> None:
    """What ``generate`` and ``stream`` have returned comes from the model of then, also if another is given before it is read."""
    lm = tiny_lm()
    expected = _written(_ready(config, lm), lm)
    for method in ("generate", "stream"):
        engine = _ready(config, lm)
        asked = getattr(engine, method)(*_work(lm))
        engine.sync(tiny_lm(seed=1))
        results = [each.completion if isinstance(each, Piece) else each for each in asked]
        found = sorted((c for c in results if c is not None), key=lambda c: c.request)
        assert found == expected, f"{method}: after another sync {found} is not {expected}"


def check_pieces_add_up_to_the_completions(config: Config) -> None:
    """Streamed pieces, put together, are the completions that are given without streaming."""
    lm = tiny_lm()
    whole = _written(_ready(config, lm), lm)
    pieces = list(_ready(config, lm).stream(*_work(lm)))
    for c in whole:
        mine = [piece for piece in pieces if piece.request == c.request]
        text, ids = "".join(piece.text for piece in mine), tuple(i for piece in mine for i in piece.token_ids)
        assert (text, ids) == (c.text, c.token_ids), f"the pieces say {text!r}, {ids}, not {c}"
        last = [piece.completion for piece in mine if piece.completion is not None]
        assert last == [c], f"the pieces carry the completions {last}, not {c}"


CHECKS: tuple[Callable[[Any], None], ...] = (
    check_its_powers_are_known,
    check_every_request_is_answered,
    check_a_request_may_have_a_limit_of_its_own,
    check_token_ids_say_the_text,
    check_log_probabilities_are_those_of_the_model,
    check_seeds_are_honoured,
    check_a_sampler_it_has_never_seen_is_run,
    check_scores_are_those_of_the_model,
    check_scoring_is_refused,
    check_changed_weights_are_followed,
    check_completions_keep_to_the_model_they_were_asked_of,
    check_pieces_add_up_to_the_completions,
)


def _refusal(engine: Engine, power: str) -> str:
    try:
        engine.require([power])
    except MissingPower as error:
        return str(error)
    return ""


class _OnlyOne(Link):
    """Leaves one token."""

    truncates = True
    token = 9

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Return logits with all but one token removed."""
        only = torch.full_like(logits, -torch.inf)
        only[:, self.token] = 0
        return only

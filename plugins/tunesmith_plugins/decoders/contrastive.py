"""Contrastive search: likely tokens that are unlike what stands before them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from attrs import define, evolve

from tunesmith.errors import ConfigError
from tunesmith.kinds.decoder import Completion, Decoder, Limits, Request, StepModel
from tunesmith.kinds.sampler import Rows, Sampler
from tunesmith.kinds.step_model import ShowsStates
from tunesmith.runtime import Runtime
from tunesmith_plugins.decoders.batch import Row, advanced, batches, check, new_rows, without_end
from tunesmith_plugins.decoders.config_search import Contrastive
from tunesmith_plugins.decoders.searching import Candidates
from tunesmith_plugins.decoders.stops import stops_of


@define(eq=False)
class _Live:
    """Rows between two tokens; what was chosen last is in the cache.

    Attributes:
        members: What was written.
        rows: What the sampler may know.
        logits: (batch, vocab) of the next token.
        before: (batch, time, width), directions of the states of everything before it; zeros where nothing stands.
        there: (batch, time) bool, where something stands.
        cache: Of the step model.
    """

    members: list[Row]
    rows: Rows
    logits: torch.Tensor
    before: torch.Tensor
    there: torch.Tensor
    cache: Any


class ContrastiveDecoder(Decoder):
    """See the config."""

    config: Contrastive

    def decode(
        self, step_model: StepModel, requests: Sequence[Request], sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Completion]:
        """Yield completions as they end, one a request.

        Raises:
            ConfigError: For a model that shows no hidden states, or a sampler with a memory of its own.
            NumericError: For NaN or infinite logits.
        """
        if not isinstance(step_model, ShowsStates):
            raise ConfigError(
                [
                    f"{type(step_model).__name__} shows no hidden states, which contrastive search compares; "
                    "use the engine 'transformers' without another decoder in between"
                ],
                "contrastive",
            )
        candidates = Candidates.of(sampler, "contrastive search", free=False)
        requests = [_with_room(request, step_model, limits) for request in requests]
        for members in batches(requests, step_model, limits, rows=self.config.top_k):
            live: _Live | None = _begun(step_model, members, limits)
            stops = stops_of(step_model, limits.stop)
            while live is not None:
                live = self._extended(step_model, live, candidates, limits)
                done = [m.completion(step_model, limits, stops) for m in live.members]
                yield from (completion for completion in done if completion is not None)
                live = _without(live, [n for n, c in enumerate(done) if c is None], step_model)

    def _extended(self, model: Any, live: _Live, candidates: Candidates, limits: Limits) -> _Live:
        """Put a token behind every row."""
        k = min(self.config.top_k, live.logits.shape[1])
        draw = candidates.likeliest(without_end(live.logits, model, live.rows, limits), live.rows, k)
        check(draw, live.rows, live.members)
        assert draw.top is not None
        ids, logp = draw.top
        rows = torch.arange(len(ids), device=ids.device)
        spread = model.select(live.cache, rows.repeat_interleave(k))
        logits, states, cache = model.step_with_states(ids.flatten(), spread)
        towards = _directions(states).reshape(len(ids), k, -1)
        cosine = (towards @ live.before.transpose(1, 2)).masked_fill(~live.there[:, None], -torch.inf)
        alpha = self.config.alpha
        score = (1 - alpha) * logp.exp() - alpha * cosine.amax(-1)
        chosen = score.masked_fill(logp == -torch.inf, -torch.inf).argmax(-1)
        token, taken = ids[rows, chosen], logp[rows, chosen].tolist()
        members = [
            Row(m.number, m.request, [*m.token_ids, t], [*m.logp, one])
            for m, t, one in zip(live.members, token.tolist(), taken, strict=True)
        ]
        place = rows * k + chosen
        return _Live(
            members,
            advanced(live.rows, token, None),
            logits[place],
            torch.cat([live.before, towards[rows, chosen][:, None]], dim=1),
            torch.nn.functional.pad(live.there, (0, 1), value=True),
            model.select(cache, place),
        )


def _with_room(request: Request, model: StepModel, limits: Limits) -> Request:
    """Return a request for no more tokens than the model can read: here the last one is read too, as every candidate."""
    if model.max_length is None:
        return request
    room = max(1, model.max_length - len(model.context(request.prompt_ids)))
    return evolve(request, max_new_tokens=room) if limits.most(request) > room else request


def _begun(model: Any, members: list[Row], limits: Limits) -> _Live:
    logits, states, cache = model.begin_with_states([m.request.prompt_ids for m in members])
    rows = new_rows(members, model, limits, logits.device)
    time = states.shape[1]
    there = torch.arange(time, device=logits.device) >= time - rows.prompt_lengths[:, None]
    return _Live(members, rows, logits, _directions(states), there, cache)


def _without(live: _Live, stay: list[int], model: Any) -> _Live | None:
    if not stay:
        return None
    if len(stay) == len(live.members):
        return live
    index = torch.tensor(stay, dtype=torch.int64, device=live.logits.device)
    return evolve(
        live,
        members=[live.members[n] for n in stay],
        rows=live.rows.select(index),
        logits=live.logits[index],
        before=live.before[index],
        there=live.there[index],
        cache=model.select(live.cache, index),
    )


def _directions(states: torch.Tensor) -> torch.Tensor:
    """Return states at length 1, float32."""
    return torch.nn.functional.normalize(states.float(), dim=-1)

"""Speculative decoding: several tokens a call of the model, and not one that it would not have drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from attrs import define, evolve

from tunesmith.errors import ConfigError
from tunesmith.generation import component
from tunesmith.kinds.decoder import Completion, Decoder, Limits, Request, StepModel
from tunesmith.kinds.sampler import STATUS_OK, Applies, Draw, Rows, Sampler
from tunesmith.kinds.step_model import Backed, RollsBack
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith_plugins.decoders.batch import Row, advanced, batches, check, joined, new_rows, without_end
from tunesmith_plugins.decoders.config_wrappers import Speculative
from tunesmith_plugins.decoders.distributions import distribution, links_of, pick
from tunesmith_plugins.decoders.judging import Judge, Verdict, written
from tunesmith_plugins.decoders.proposals import Draft, Lookup, Proposals, Proposer
from tunesmith_plugins.decoders.stops import Stops, stops_of


class SpeculativeDecoder(Decoder):
    """See the config."""

    config: Speculative
    _draft_lm: LM | None = None

    def draft_with(self, lm: LM) -> None:
        """Use this model for proposals instead of the config's."""
        self._draft_lm = lm

    def decode(
        self, step_model: StepModel, requests: Sequence[Request], sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Completion]:
        """Yield completions as they end, one a request.

        Raises:
            ConfigError: If a model cannot take tokens back, the draft model has another family or tokenizer or too few
                positions, or the sampler does not show its distribution and ``verify`` needs it.
            NumericError: For NaN or infinite logits.
        """
        _check_rolls_back(step_model, "the model")
        # Where nothing is drawn both rules are one: the model's own token decides.
        by_token = self.config.verify == "tokens" or sampler.deterministic
        links = None if by_token else links_of(sampler)
        proposer, draft = self._proposer(step_model, sampler, links, limits, runtime)
        if draft is not None:
            _check_positions(draft, requests, limits)
        joins = step_model.joins and (draft is None or draft.joins)
        # Rows that cannot be of different age cannot accept different numbers of tokens.
        most = None if joins else 1
        judge = Judge(model=step_model, sampler=sampler, limits=limits, links=links)
        loop = _Loop(
            step_model, sampler, limits, proposer, self.config.tokens, judge, stops_of(step_model, limits.stop)
        )
        for members in batches(requests, step_model, limits, most=most):
            yield from loop.run(members)

    def _proposer(
        self, model: StepModel, sampler: Sampler, links: Applies | None, limits: Limits, runtime: Runtime
    ) -> tuple[Proposer, Any]:
        if self._draft_lm is None and self.config.draft:
            from tunesmith.lm import load

            self._draft_lm = load(self.config.draft, runtime=runtime)
        if self._draft_lm is None:
            return Lookup(self.config.ngram), None
        _check_same_tokens(model, self._draft_lm)
        draft = _step_model_of(self._draft_lm, runtime)
        _check_rolls_back(draft, "the draft model")

        def draw(
            logits: torch.Tensor, rows: Rows, values: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor | None, Any]:
            logits = without_end(logits, model, rows, limits)
            if links is None:
                drawn = sampler.sample(logits, rows, logp=())
                # Rows that have no room left, or nothing to draw from, propose anything.
                return drawn.token.clamp(min=0), None, drawn.state
            q = distribution(links, logits, rows).p
            return pick(q, values), q, None

        return Draft(draft, draw, model.vocab_size), draft


@define(eq=False)
class _Count:
    """What is reported of a row."""

    proposed: int = 0
    judged: int = 0
    accepted: int = 0
    calls: int = 1

    def details(self, tokens: int) -> dict[str, Any]:
        return {
            "proposed": self.proposed,
            "judged": self.judged,
            "accepted": self.accepted,
            "accept_rate": self.accepted / self.judged if self.judged else None,
            "target_calls": self.calls,
            "tokens_per_call": tokens / self.calls,
        }


@define(eq=False)
class _Loop:
    """One batch of requests after the other.

    Attributes:
        model: The judge.
        sampler: The sampler.
        limits: Of the call.
        proposer: Who proposes.
        tokens: Most proposals at once.
        judge: Says which of them stand.
        stops: Looks for stop strings, where there are any.
    """

    model: Any
    sampler: Sampler
    limits: Limits
    proposer: Proposer
    tokens: int
    judge: Judge
    stops: Stops | None

    def run(self, members: list[Row]) -> Iterator[Completion]:
        """Yield the completions of a batch."""
        logits, cache = self.model.begin([m.request.prompt_ids for m in members])
        self.proposer.begin(members)
        rows = new_rows(members, self.model, self.limits, logits.device)
        draw = self.sampler.sample(without_end(logits, self.model, rows, self.limits), rows)
        check(draw, rows, members)
        assert draw.logp_processed is not None
        rows = advanced(rows, draw.token, draw.state)
        for member, token, logp in zip(members, draw.token.tolist(), draw.logp_processed.tolist(), strict=True):
            member.token_ids, member.logp = [token], [logp]
        counts = [_Count() for _ in members]
        while True:
            stay = []
            for number, (member, count) in enumerate(zip(members, counts, strict=True)):
                completion = member.completion(self.model, self.limits, self.stops)
                if completion is None:
                    stay.append(number)
                else:
                    yield evolve(completion, details=count.details(len(member.token_ids)))
            if not stay:
                return
            if len(stay) < len(members):
                index = torch.tensor(stay, device=logits.device)
                members, counts = [members[n] for n in stay], [counts[n] for n in stay]
                rows, cache = rows.select(index), self.model.select(cache, index)
                self.proposer.select(index)
            rows, cache = self._block(members, counts, rows, cache)

    def _block(self, members: list[Row], counts: list[_Count], rows: Rows, cache: Any) -> tuple[Rows, Any]:
        """Write at least one token to every row, with one call of the model."""
        device = rows.history.device
        left = [self.limits.most(m.request) - len(m.token_ids) for m in members]
        room = torch.tensor([min(self.tokens, n - 1) for n in left], device=device)
        token = torch.tensor([m.token_ids[-1] for m in members], device=device)
        proposals = self.proposer.propose(members, token, rows, room)
        logits, cache = self.model.extend(
            torch.cat([token[:, None], proposals.ids], dim=1), proposals.lengths + 1, cache
        )
        accepted, rows = self._judged(logits, proposals, members, counts, rows)
        cache = self.model.crop(cache, proposals.ids.shape[1] - accepted)
        self.proposer.settle(accepted)
        return rows, cache

    def _judged(
        self, logits: torch.Tensor, proposals: Proposals, members: list[Row], counts: list[_Count], rows: Rows
    ) -> tuple[torch.Tensor, Rows]:
        """Write accepted proposals and one token more to every row; return how many were accepted, and the rows."""
        for count, proposed in zip(counts, proposals.lengths.tolist(), strict=True):
            count.proposed += proposed
            count.calls += 1
        if rows.state is None:
            accepted, rows, _ = self._write(self.judge.judge(logits, proposals, rows), proposals, members, counts, rows)
            return accepted, rows
        # What a memory holds at a place hangs on the draws before it, so places come one after the other.
        accepted = torch.zeros_like(proposals.lengths)
        alive = torch.arange(len(members), device=logits.device)
        parts: list[Rows] = []
        places: list[torch.Tensor] = []
        for place in range(logits.shape[1]):
            here = proposals.at(alive, place)
            verdict = self.judge.judge(logits[alive, place : place + 1], here, rows)
            some = alive.tolist()
            taken, rows, going = self._write(verdict, here, [members[n] for n in some], [counts[n] for n in some], rows)
            accepted[alive] += taken
            over = (~going).nonzero().flatten()
            if len(over):
                parts.append(rows.select(over))
                places.append(alive[over])
                on = going.nonzero().flatten()
                if not len(on):
                    break
                alive, rows = alive[on], rows.select(on)
        return accepted, joined(parts).select(torch.cat(places).argsort())

    def _write(
        self, verdict: Verdict, proposals: Proposals, members: list[Row], counts: list[_Count], rows: Rows
    ) -> tuple[torch.Tensor, Rows, torch.Tensor]:
        """Write down what a verdict lets pass, up to the end of a text.

        Returns how many proposals each row took, the rows, and which rows took all and have not ended.
        """
        most, widths = verdict.taken.tolist(), proposals.lengths.tolist()
        tokens, logps = verdict.token.tolist(), verdict.logp.tolist()
        new, going = [], []
        for number, (member, count) in enumerate(zip(members, counts, strict=True)):
            ids, logp, ended = list(member.token_ids), list(member.logp), False
            length, last = 0, min(most[number], len(tokens[number]) - 1)
            while length <= last and not ended:
                ids.append(tokens[number][length])
                logp.append(logps[number][length])
                length += 1
                member.token_ids, member.logp = ids, logp
                ended = member.completion(self.model, self.limits, self.stops) is not None
            count.judged += min(length, widths[number])
            count.accepted += min(length, most[number])
            new.append(length)
            going.append(not ended and most[number] > last)
        lengths = torch.tensor(new, device=verdict.taken.device)
        self._check(verdict, lengths, rows, members)
        accepted = torch.minimum(verdict.taken, lengths)
        return accepted, written(rows, verdict, lengths), torch.tensor(going, device=lengths.device)

    def _check(self, verdict: Verdict, lengths: torch.Tensor, rows: Rows, members: list[Row]) -> None:
        """Raise NumericError if a token that was written came from nothing."""
        places = torch.arange(verdict.token.shape[1], device=lengths.device)
        bad = (verdict.status != STATUS_OK) & (places < lengths[:, None])
        for number, place in bad.nonzero()[:1].tolist():
            row = rows.select(torch.tensor([number], device=lengths.device))
            check(
                _of_status(verdict.status[number, place, None]),
                evolve(row, position=row.position + place),
                [members[number]],
            )


def _of_status(status: torch.Tensor) -> Draw:
    none = torch.zeros(len(status), device=status.device)
    return Draw(token=none.long(), status=status, logp_raw=none, logp_processed=none, logp_truncated=none)


class _Borrow(Decoder):
    """Asks an engine for its step model the way any decoder gets it."""

    model: StepModel | None = None

    def decode(
        self, step_model: StepModel, requests: Sequence[Request], sampler: Sampler, limits: Limits, runtime: Runtime
    ) -> Iterator[Completion]:
        """Keep the model and write nothing."""
        self.model = step_model
        return iter(())


def _step_model_of(lm: LM, runtime: Runtime) -> StepModel:
    engine = component(None, "engine")
    engine.setup(runtime)
    engine.sync(lm)
    borrow = _Borrow(Speculative())
    list(engine.generate([], borrow, component(None, "sampler"), Limits(max_new_tokens=1), runtime))
    assert borrow.model is not None
    return borrow.model


def _check_rolls_back(model: Any, what: str) -> None:
    if not isinstance(model, RollsBack):
        raise ConfigError(
            [
                f"{type(model).__name__} cannot read several tokens at once and take them back, which speculation needs; "
                "use the engine 'transformers' without another decoder in between"
            ],
            "speculative",
        )
    if not model.rolls_back:
        raise ConfigError(
            [
                f"the cache of {what} forgets or mixes what it has read (a sliding window or a recurrent state), so that "
                "tokens cannot be taken back, or it reads no several at once (ProphetNet); use the decoder 'stepwise'"
            ],
            "speculative",
        )


def _check_same_tokens(model: StepModel, draft: LM) -> None:
    if not isinstance(model, Backed):
        raise ConfigError([f"{type(model).__name__} has no tokenizer to compare the draft model's with"], "speculative")
    problems = []
    if model.lm.family != draft.family:
        problems.append(f"the draft model is of the family {draft.family!r}, the model of {model.lm.family!r}")
    if model.lm.tokenizer is None or draft.tokenizer is None:
        problems.append("a model came without its tokenizer, so that nobody can say whether both have the same tokens")
    elif model.lm.tokenizer is not draft.tokenizer:
        ours, theirs = model.lm.tokenizer.get_vocab(), draft.tokenizer.get_vocab()
        other = sorted(token for token in {*ours, *theirs} if ours.get(token) != theirs.get(token))
        if other:
            problems.append(
                f"the draft model has another tokenizer: {len(other)} tokens have another id or none, {other[0]!r} for "
                "one; take a draft model that was trained with the same tokenizer"
            )
    if problems:
        raise ConfigError(problems, "speculative")


def _check_positions(draft: Any, requests: Sequence[Request], limits: Limits) -> None:
    """Raise ConfigError for a request that the draft model has no positions for."""
    apart = draft.lm.family == "encoder-decoder"  # what it reads has positions of its own
    for number, request in enumerate(requests):
        read, most = len(request.prompt_ids), limits.most(request)
        for length, positions in (
            (most if apart else read + most, draft.max_length),
            (read if apart else 0, getattr(draft, "prompt_length", None)),
        ):
            if positions is not None and length > positions:
                raise ConfigError(
                    [
                        f"request {number} {request.id!r}: {read} tokens and max_new_tokens={most} are more than the draft "
                        f"model's {positions} positions; ask for fewer, or leave the draft model out"
                    ],
                    "speculative",
                )

"""Which proposals a model takes over, at all places of a block at once."""

from __future__ import annotations

from typing import Any

import torch
from attrs import evolve, frozen

from tunesmith.kinds.decoder import Limits, StepModel
from tunesmith.kinds.sampler import Applies, Rows, Sampler
from tunesmith_plugins.decoders.batch import without_end
from tunesmith_plugins.decoders.distributions import distribution, noise, pick
from tunesmith_plugins.decoders.proposals import Proposals

ACCEPT, REST = 1 << 31, (1 << 31) + 1
"""Which of a position's random values accepts a proposal, and which draws in place of a refused one. Value 0 draws tokens,
proposed ones too, and links of samplers use small ones."""


@frozen(kw_only=True, eq=False)
class Verdict:
    """What may be written: the proposals that are taken, and one token more.

    Attributes:
        token: (batch, places) int64.
        logp: (batch, places), under the model.
        status: (batch, places) uint8, as of a draw.
        taken: (batch,) int64, how many proposals are; the token behind them is the last that counts.
        state: The sampler's after the only place, None where there are several.
    """

    token: torch.Tensor
    logp: torch.Tensor
    status: torch.Tensor
    taken: torch.Tensor
    state: Any = None


@frozen(kw_only=True, eq=False)
class Judge:
    """The model and what it draws with.

    Attributes:
        model: Says what ends a text.
        sampler: The sampler.
        limits: Of the call.
        links: Of the sampler, if whole distributions are compared.
    """

    model: StepModel
    sampler: Sampler
    limits: Limits
    links: Applies | None

    def judge(self, logits: torch.Tensor, proposals: Proposals, rows: Rows) -> Verdict:
        """Judge proposals.

        Args:
            logits: (batch, places, vocab): one place more than there are proposals.
            proposals: What is judged.
            rows: Before the first place.
        """
        batch, places, vocab = logits.shape
        ids = torch.nn.functional.pad(proposals.ids, (0, places - proposals.ids.shape[1]))
        offered = torch.arange(places, device=ids.device) < proposals.lengths[:, None]
        each = spread(rows, ids, places)
        flat = without_end(logits.reshape(batch * places, vocab), self.model, each, self.limits)
        if self.links is None:
            draw = self.sampler.sample(flat, each, logp=("processed",))
            assert draw.logp_processed is not None
            token, logp, status = (
                tensor.view(batch, places) for tensor in (draw.token, draw.logp_processed, draw.status)
            )
            taken = _first(offered & (token == ids))
            return Verdict(token=token, logp=logp, status=status, taken=taken, state=draw.state)
        found = distribution(self.links, flat, each)
        at = ids.flatten()
        p = found.p_of(at).view(batch, places)
        if proposals.q is None:  # all of it was on the token
            q = torch.ones_like(p)
        else:
            q = torch.stack([one.gather(1, ids[:, n, None])[:, 0] for n, one in enumerate(proposals.q)], dim=1)
            q = torch.nn.functional.pad(q, (0, places - q.shape[1]))
        accept, rest = noise(rows, places, (ACCEPT, REST))
        taken = _first(offered & (accept * q < p))
        last = torch.arange(batch, device=ids.device) * places + taken
        weights = _rest(found.at(last), proposals, ids, taken, taken < proposals.lengths)
        other = pick(weights, rest.flatten()[last])
        token = ids.scatter(1, taken[:, None], other[:, None])
        logp = found.logp_of(token.flatten()).view(batch, places)
        return Verdict(token=token, logp=logp, status=found.rows.status.view(batch, places), taken=taken)


def spread(rows: Rows, ids: torch.Tensor, places: int) -> Rows:
    """Return the rows (batch * places) of a block: of each row before its first place, with one token of ``ids``, with two ..."""
    width = rows.history.shape[1]
    later = torch.arange(places, device=ids.device)
    history = torch.nn.functional.pad(rows.history, (0, places))
    history = history.scatter(1, rows.history_lengths[:, None] + later, ids)[:, : width + places - 1]

    def copies(values: torch.Tensor) -> torch.Tensor:
        return values.repeat_interleave(places, dim=0)

    return evolve(
        rows,
        seed=copies(rows.seed),
        stream=copies(rows.stream),
        position=(rows.position[:, None] + later).flatten(),
        history=copies(history),
        history_lengths=(rows.history_lengths[:, None] + later).flatten(),
        prompt_lengths=copies(rows.prompt_lengths),
        parameters={name: copies(values) for name, values in rows.parameters.items()},
    )


def written(rows: Rows, verdict: Verdict, counts: torch.Tensor) -> Rows:
    """Return the rows with the first ``counts`` (batch,) tokens of a verdict behind their histories."""
    places = verdict.token.shape[1]
    width = rows.history.shape[1]
    at = rows.history_lengths[:, None] + torch.arange(places, device=counts.device)
    history = torch.nn.functional.pad(rows.history, (0, places)).scatter(1, at, verdict.token)[:, :width]
    return evolve(
        rows,
        history=history,
        history_lengths=rows.history_lengths + counts,
        position=rows.position + counts,
        state=verdict.state,
    )


def _first(taken: torch.Tensor) -> torch.Tensor:
    """Return how many of a row's places are taken before the first that is not; the last one never is a proposal."""
    return taken.long().cumprod(-1).sum(-1)


def _rest(
    p: torch.Tensor, proposals: Proposals, ids: torch.Tensor, taken: torch.Tensor, refused: torch.Tensor
) -> torch.Tensor:
    """Return the weights (batch, vocab) of what stands behind the proposals that are taken.

    Of a refused proposal the residual max(0, p - q) is left; where nothing was offered, all of ``p``.
    """
    if proposals.q is None:
        q = torch.zeros_like(p).scatter_(1, ids.gather(1, taken[:, None]), 1.0)
    else:
        last = len(proposals.q) - 1
        q = torch.stack([proposals.q[min(place, last)][row] for row, place in enumerate(taken.tolist())])
    rest = torch.where(refused[:, None], (p - q).clamp(min=0), p)
    nothing = rest.sum(-1, keepdim=True) <= 0  # p is q: a proposal was refused by rounding alone
    return torch.where(nothing, p, rest)

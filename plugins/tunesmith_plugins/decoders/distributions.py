"""The whole distribution that a sampler draws from, link by link, where a draw is not enough."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import frozen

from tunesmith.errors import ConfigError
from tunesmith.kinds.sampler import STATUS_EMPTY, STATUS_NAN, STATUS_OK, STATUS_POSINF, Link, Rows, Sampler, Stateful
from tunesmith.registry import samplers


@frozen(kw_only=True, eq=False)
class Distribution:
    """What a row's token is drawn with.

    Attributes:
        p: (batch, vocab) float64, after every link.
        processed: (batch, vocab) float64, log-probabilities after the links that edit.
        status: (batch,) uint8, as of a draw; rows that are not OK have no meaning.
    """

    p: torch.Tensor
    processed: torch.Tensor
    status: torch.Tensor


def links_of(sampler: Sampler) -> Mapping[str, Link]:
    """Return the links of a sampler whose distribution is that of its links, by their names in a chain.

    Raises:
        ConfigError: For other samplers, and for links with a memory, which only a draw moves on.
    """
    config = sampler.config
    if isinstance(sampler, Link):
        links: Mapping[str, Link] = {config.name_in_chain or type(config).__name__: sampler}
    elif isinstance(config, samplers.get("tunesmith/greedy")):
        links = {}
    else:
        links = getattr(sampler, "links", None) or {}
        if not isinstance(config, samplers.get("tunesmith/chain")):
            raise ConfigError(
                [f"{sampler!r} does not show the distribution that it draws from; take verify='tokens'"], "speculative"
            )
    memories = [name for name, link in links.items() if isinstance(link, Stateful)]
    if memories:
        raise ConfigError(
            [
                f"{', '.join(memories)}: what a link with a memory leaves hangs on the draws before, which proposals are "
                "not; take verify='tokens'"
            ],
            "speculative",
        )
    return links


def distribution(links: Mapping[str, Link], greedy: bool, logits: torch.Tensor, rows: Rows) -> Distribution:
    """Run links over logits (batch, vocab).

    Args:
        links: As of :func:`links_of`.
        greedy: All probability on the likeliest token, the lowest id among equals.
        logits: Of the model.
        rows: As for a sampler.
    """
    kept = edited = logits.float()
    for name, link in links.items():
        own = rows.for_link(name)
        after = link.apply(kept, own).float()
        if not link.truncates:
            edited = after if edited is kept else link.apply(edited, own).float()
        kept = after
    most = kept.amax(-1, keepdim=True)
    if greedy:
        ids = torch.arange(kept.shape[1], device=kept.device)
        first = torch.where(kept == most, ids, kept.shape[1] - 1).amin(-1, keepdim=True)
        p = torch.zeros(kept.shape, dtype=torch.float64, device=kept.device).scatter_(1, first, 1.0)
    else:
        p = kept.double().softmax(-1)
    return Distribution(p=p, processed=edited.double().log_softmax(-1), status=_status(kept, most[:, 0]))


def pick(p: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return one token a row, (batch,) int64, of weights ``p`` (batch, vocab) by inversion of ``noise`` (batch,) in [0, 1)."""
    up_to = p.cumsum(-1)
    wanted = (noise * up_to[:, -1])[:, None]
    found = torch.searchsorted(up_to, wanted, right=True).clamp(max=p.shape[1] - 1)
    return found[:, 0]


def _status(logits: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
    status = torch.full_like(most, STATUS_OK, dtype=torch.uint8)
    status[most == -torch.inf] = STATUS_EMPTY
    status[most == torch.inf] = STATUS_POSINF
    status[logits.isnan().any(-1)] = STATUS_NAN
    return status

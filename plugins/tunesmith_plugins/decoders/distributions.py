"""The whole distribution that a sampler draws from, where a draw is not enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen

from tunesmith.errors import ConfigError
from tunesmith.kinds.sampler import Applied, Applies, Link, Rows, Sampler, Stateful, chain_of
from tunesmith.philox import uniform
from tunesmith.registry import samplers


@frozen(kw_only=True, eq=False)
class Distribution:
    """What a row's token is drawn with; rows whose ``status`` is not OK have no meaning.

    Attributes:
        rows: The logits after every link, and after those that edit; float32.
    """

    rows: Applied

    @property
    def p(self) -> torch.Tensor:
        """(batch, vocab) float64."""
        return self.rows.logits.double().softmax(-1)

    def p_of(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the probability of one token a row, (batch,) float64."""
        return _logp(self.rows.logits, ids).exp()

    def logp_of(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of one token a row after the links that edit, (batch,) float64."""
        return _logp(self.rows.processed, ids)

    def at(self, index: torch.Tensor) -> torch.Tensor:
        """Return ``p`` of the rows at ``index``."""
        return self.rows.logits[index].double().softmax(-1)


def links_of(sampler: Sampler) -> Applies:
    """Return the links of a sampler that draws, if its distribution is that of its links.

    Raises:
        ConfigError: For other samplers, and for links with a memory, which only a draw moves on.
    """
    chain = samplers.get("tunesmith/chain")
    found: Any = sampler
    if isinstance(sampler, Link):
        found = chain_of(sampler)
    elif not isinstance(sampler.config, chain) or not isinstance(sampler, Applies):
        raise ConfigError(
            [f"{sampler!r} does not show the distribution that it draws from; take verify='tokens'"], "speculative"
        )
    memories = [name for name, link in found.links.items() if isinstance(link, Stateful)]
    if memories:
        raise ConfigError(
            [
                f"{', '.join(memories)}: what a link with a memory leaves hangs on the draws before, which proposals are "
                "not; take verify='tokens'"
            ],
            "speculative",
        )
    applies: Applies = found
    return applies


def distribution(links: Applies, logits: torch.Tensor, rows: Rows) -> Distribution:
    """Run links, as of :func:`links_of`, over logits (batch, vocab); ``rows`` as for a sampler."""
    return Distribution(rows=links.apply_links(logits, rows))


def pick(p: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return one token a row, (batch,) int64, of weights ``p`` (batch, vocab) by inversion of ``noise`` (batch,) in [0, 1)."""
    up_to = p.cumsum(-1)
    wanted = (noise * up_to[:, -1])[:, None]
    found = torch.searchsorted(up_to, wanted, right=True).clamp(max=p.shape[1] - 1)
    return found[:, 0]


def noise(rows: Rows, places: int, draws: Sequence[int]) -> torch.Tensor:
    """Return random values of the next ``places`` positions of every row, (draws, batch, places) float64 in [0, 1).

    They are those of :meth:`tunesmith.kinds.sampler.Rows.uniform`, all in one go.
    """
    device = rows.position.device
    position = rows.position[:, None] + torch.arange(places, device=device)
    which = torch.tensor(draws, dtype=torch.int64, device=device)[:, None, None]
    return uniform(rows.seed[:, None], rows.stream[:, None], position, which)


def _logp(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    wide = logits.double()
    return wide.gather(1, ids[:, None])[:, 0] - wide.logsumexp(-1)

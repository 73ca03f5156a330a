"""The whole distribution that a sampler draws from, where a draw is not enough."""

from __future__ import annotations

from typing import Any

import torch
from attrs import frozen

from tunesmith.errors import ConfigError
from tunesmith.kinds.sampler import Applied, Applies, Link, Rows, Sampler, Stateful
from tunesmith.registry import samplers


@frozen(kw_only=True, eq=False)
class Distribution:
    """What a row's token is drawn with; rows whose ``status`` is not OK have no meaning.

    Attributes:
        rows: The logits after every link, and after those that edit; float32.
        greedy: All probability on the likeliest token, the lowest id among equals.
    """

    rows: Applied
    greedy: bool

    @property
    def p(self) -> torch.Tensor:
        """(batch, vocab) float64."""
        if not self.greedy:
            return self.rows.logits.double().softmax(-1)
        none = torch.zeros(self.rows.logits.shape, dtype=torch.float64, device=self.rows.logits.device)
        return none.scatter_(1, self.likeliest[:, None], 1.0)

    @property
    def likeliest(self) -> torch.Tensor:
        """(batch,) int64, the lowest id among equals."""
        return self.rows.logits.argmax(-1)

    def p_of(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the probability of one token a row, (batch,) float64."""
        return (self.likeliest == ids).double() if self.greedy else _logp(self.rows.logits, ids).exp()

    def logp_of(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the log-probability of one token a row after the links that edit, (batch,) float64."""
        return _logp(self.rows.processed, ids)

    def at(self, index: torch.Tensor) -> Distribution:
        """Return the rows at ``index``."""
        found = self.rows
        together = found.processed is found.logits
        logits = found.logits[index]
        processed = logits if together else found.processed[index]
        chosen = Applied(logits=logits, processed=processed, status=found.status[index])
        return Distribution(rows=chosen, greedy=self.greedy)


def links_of(sampler: Sampler) -> Applies:
    """Return the links of a sampler whose distribution is that of its links.

    Raises:
        ConfigError: For other samplers, and for links with a memory, which only a draw moves on.
    """
    config, chain = sampler.config, samplers.get("tunesmith/chain")
    found: Any = sampler
    if isinstance(sampler, Link) or isinstance(config, samplers.get("tunesmith/greedy")):
        found = chain().build()
        found.use([sampler] if isinstance(sampler, Link) else [])
    elif not isinstance(config, chain) or not isinstance(sampler, Applies):
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


def distribution(links: Applies, greedy: bool, logits: torch.Tensor, rows: Rows) -> Distribution:
    """Run links, as of :func:`links_of`, over logits (batch, vocab); ``rows`` as for a sampler."""
    return Distribution(rows=links.apply_links(logits, rows), greedy=greedy)


def pick(p: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return one token a row, (batch,) int64, of weights ``p`` (batch, vocab) by inversion of ``noise`` (batch,) in [0, 1)."""
    up_to = p.cumsum(-1)
    wanted = (noise * up_to[:, -1])[:, None]
    found = torch.searchsorted(up_to, wanted, right=True).clamp(max=p.shape[1] - 1)
    return found[:, 0]


def _logp(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    wide = logits.double()
    return wide.gather(1, ids[:, None])[:, 0] - wide.logsumexp(-1)

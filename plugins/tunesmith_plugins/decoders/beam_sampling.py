"""Beam sampling: what the beams of a search write next is drawn, from all that they may write together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import evolve, frozen

from tunesmith.errors import ConfigError
from tunesmith.kinds.sampler import Applied, Applies, Rows, Sampler, Stateful
from tunesmith.registry import samplers
from tunesmith.row_parameters import links_of
from tunesmith_plugins.decoders.distributions import noise, pick
from tunesmith_plugins.decoders.searching import scored

FIRST = 1 << 30
"""The first of a position's random values that extensions are drawn with. Value 0 draws tokens, links of samplers use small ones."""

Extension = tuple[int, int, float]
"""Which beam of its search is extended, by which token, and the token's log-probability."""


@frozen(kw_only=True, eq=False)
class Drawing:
    """Draws extensions by a sampler's links, truncation included.

    Attributes:
        links: They.
    """

    links: Applies

    @classmethod
    def of(cls, sampler: Sampler, who: str) -> Drawing:
        """Take the links of a sampler that draws.

        Raises:
            ConfigError: For one that does not, is not made of links, or has a link with a memory.
        """
        links = links_of(sampler)
        problem = None
        if sampler.deterministic:
            problem = "takes the likeliest token; take one that draws, such as temperature, or leave draws=True out"
        elif links is None:
            problem = "is not made of links, so that nobody can tell what it draws from; leave draws=True out"
        elif any(isinstance(link, Stateful) for link in links.values()):
            problem = "remembers what it drew, and beams change places; leave that link or draws=True out"
        if problem is not None:
            raise ConfigError([f"{who} is to draw, and {sampler!r} {problem}"], who)
        chain: Any = samplers.create("tunesmith/chain").build()
        chain.links = links  # under the names by which parameters call them
        return cls(links=chain)

    def extensions(
        self, logits: torch.Tensor, rows: Rows, totals: Sequence[Sequence[float]], count: int, barred: Sequence[int]
    ) -> tuple[Applied, list[list[Extension]]]:
        """Draw extensions for every search, without replacement, each by the probability of the text that it would make.

        Args:
            logits: (beams of all searches, vocab), those of a search one behind the other.
            rows: What the links may know of them.
            totals: For each search the sums of its beams' log-probabilities.
            count: How many to draw; where fewer are possible, all of these.
            barred: Tokens that nothing may be extended by.

        Returns:
            The rows after the links, of which the status counts, and the extensions of each search in the order drawn.
        """
        found = self.links.apply_links(logits, rows)
        # what is dropped makes the rest no likelier, as for constraints in any search
        links: Any = self.links
        logp = scored(links.links, evolve(found, processed=found.processed.double()), rows)
        logp[:, [token for token in barred if token < logp.shape[1]]] = -torch.inf
        values = noise(rows, 1, range(FIRST, FIRST + count))[:, :, 0]
        drawn, first = [], 0
        for own in totals:
            part = logp[first : first + len(own)]
            drawn.append(_drawn(part, torch.tensor(own, dtype=part.dtype, device=part.device), values[:, first]))
            first += len(own)
        return found, drawn


def _drawn(logp: torch.Tensor, totals: torch.Tensor, values: torch.Tensor) -> list[Extension]:
    """Return extensions of beams with these sums (beams,) by tokens of log-probability (beams, vocab), one a random value."""
    joint = (totals[:, None] + logp).flatten()
    weights = (joint - joint.max()).exp()
    vocab, found = logp.shape[1], []
    for value in values:
        if not bool(weights.any()):  # all are drawn
            break
        place = int(pick(weights[None], value[None]))
        weights[place] = 0
        parent, token = divmod(place, vocab)
        found.append((parent, token, float(logp[parent, token])))
    return found

"""What a search may write next: the likeliest tokens after the sampler's edits, without those that its constraints forbid."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from attrs import evolve, frozen

from tunesmith.errors import ConfigError
from tunesmith.kinds.sampler import Applied, Draw, Link, Rows, Sampler, Stateful
from tunesmith.registry import samplers
from tunesmith.row_parameters import links_of

logger = logging.getLogger("tunesmith.decoders")


@frozen(kw_only=True, eq=False)
class Candidates:
    """The likeliest tokens, for decoders that draw nothing.

    Attributes:
        sampler: What edits.
        constrained: Its edits and constraints as a chain, if it has constraints; see :attr:`tunesmith.kinds.sampler.Link.constrains`.
            Other truncation is about draws and has no part in a search.
        who: How messages call the decoder.
        free: Whether a forced token has a log-probability of 0 and not the model's own.
    """

    sampler: Sampler
    constrained: Any
    who: str
    free: bool = True

    @classmethod
    def of(cls, sampler: Sampler, who: str, *, free: bool = True) -> Candidates:
        """Take the parts of a sampler that a search keeps to; the others, if there are any, are named in a warning.

        Raises:
            ConfigError: For a link with a memory of what was drawn.
        """
        links = links_of(sampler) or {}
        if any(isinstance(link, Stateful) for link in links.values()):
            raise _remembers(who)
        unused = [name for name, link in links.items() if link.truncates and not link.constrains]
        if unused:
            logger.warning("%s draws nothing, so these of the sampler do nothing: %s", who, ", ".join(unused))
        chain: Any = None
        if any(link.constrains for link in links.values()):
            chain = samplers.create("tunesmith/chain").build()
            # the others keep the names by which parameters call them
            chain.links = {name: link for name, link in links.items() if link.constrains or not link.truncates}
        return cls(sampler=sampler, constrained=chain, who=who, free=free)

    def likeliest(self, logits: torch.Tensor, rows: Rows, top: int) -> Draw:
        """Return a draw of which ``status`` and ``top`` count; forbidden tokens, if any are left to give, have -inf.

        The log-probabilities are those before anything was forbidden; where they are ``free`` 0 of a token that was forced, as in
        transformers' beam search.

        Raises:
            ConfigError: For a sampler with a memory of what it drew.
        """
        if self.constrained is None:
            draw = self.sampler.sample(logits, rows, top=top, logp=("processed",))
            if draw.state is not None:
                raise _remembers(self.who)
            return draw
        own = {
            name: values for name, values in rows.parameters.items() if name.partition(".")[0] in self.constrained.links
        }
        found = self.constrained.apply_links(logits, evolve(rows, parameters=own))
        logp = scored(self.constrained.links if self.free else {}, found, evolve(rows, parameters=own))
        values, ids = logp.sort(dim=-1, descending=True, stable=True)  # of equals the lowest id, as a draw gives them
        return Draw(token=ids[:, 0], status=found.status, top=(ids[:, :top], values[:, :top]))


def scored(links: Mapping[str, Link], found: Applied, rows: Rows) -> torch.Tensor:
    """Return what each token adds to a text's score, (batch, vocab): its log-probability before anything was dropped, 0
    where a link forces it, and -inf where it was dropped."""
    dropped = found.logits == -torch.inf
    logp = found.processed.log_softmax(-1)
    for name, link in links.items():
        here = link.forced(rows.for_link(name))
        if here is not None:
            logp = logp.masked_fill(here[:, None], 0.0)
    return logp.masked_fill(dropped, -torch.inf)


def _remembers(who: str) -> ConfigError:
    return ConfigError([f"{who} cannot use a sampler that remembers what it drew: it draws nothing"], who)

"""The chain: links in order, then one draw. Runs of links that the fused kernel can do become one kernel call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import attrs
import torch

from tunesmith.errors import ConfigError
from tunesmith.kinds.sampler import Draw, Link, Rows, Sampler, Stateful
from tunesmith.runtime import Runtime
from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import reference
from tunesmith_plugins.samplers.walk import Fused, Walk, history_of, parts_of


class ChainSampler(Sampler):
    """Run the links of a chain over every row and draw one token a row."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.deterministic = config.greedy

    @cached_property
    def links(self) -> Mapping[str, Link]:
        """Name in the chain to link, in order."""
        return named_links([config.build() for config in self.config.flat()])

    def use(self, links: Sequence[Sampler]) -> None:
        """Run these built links instead of the config's."""
        self.links = named_links(links)

    def setup(self, runtime: Runtime) -> None:
        """Set up every link."""
        for link in self.links.values():
            link.setup(runtime)

    def sample(self, logits: torch.Tensor, rows: Rows, *, top: int = 0) -> Draw:
        return run(self.links, self.config.greedy, logits, rows, top)


class GreedySampler(Sampler):
    """Take the likeliest token."""

    deterministic = True

    def sample(self, logits: torch.Tensor, rows: Rows, *, top: int = 0) -> Draw:
        return run({}, True, logits, rows, top)


def named_links(links: Sequence[Sampler]) -> dict[str, Link]:
    """Name links as per-row parameters do: ``top_p``, and ``top_p#2`` for the second one.

    Raises:
        ConfigError: For a sampler that is not a link.
    """
    found: dict[str, Link] = {}
    for link in links:
        kind = type(link.config)
        if not isinstance(link, Link):
            raise ConfigError([f"{kind.__name__} is no link and cannot stand in a chain"], "sampler chain")
        name = first = link.config.name_in_chain or kind.__name__
        count = 1
        while name in found:
            count += 1
            name = f"{first}#{count}"
        found[name] = link
    return found


def run(links: Mapping[str, Link], greedy: bool, logits: torch.Tensor, rows: Rows, top: int) -> Draw:
    """Run named links over logits (batch, vocab) and draw.

    Raises:
        ConfigError: For a per-row parameter that no link of this chain has.
        ValueError: For a parameter outside its range.
    """
    check_parameters(links, rows)
    if not len(logits):
        return _nothing(logits, top)
    if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        logits = logits.float()  # float64: the kernels work in float32
    own, states = _own_rows(links, rows)
    parts = parts_of(links, own)
    last = parts.pop() if parts and isinstance(parts[-1], Fused) else Fused(steps=(), rows=rows)
    draw = _draw_fused(last, greedy, logits, rows) if not parts else None
    if draw is not None and not top and not states:
        return draw
    walk = Walk(logits)
    for part in parts:
        walk.take(part)
    if draw is None:
        drawn = kernels.sample_chain(walk.logits, last.steps, *_key(rows), **history_of(rows), greedy=greedy)
    walk.take(last)
    if draw is None:
        draw = _finish(walk, drawn.token, drawn.status, logits)
    if top:
        draw = attrs.evolve(draw, top=_likeliest(walk, top))
    if states:
        draw = attrs.evolve(draw, state=_advanced(links, states, walk.logits, draw, own))
    return draw


def _nothing(logits: torch.Tensor, top: int) -> Draw:
    """Return the draw of a batch without rows, which has no place in memory to hand to a kernel."""
    ids = torch.zeros(0, dtype=torch.int64, device=logits.device)
    none = torch.zeros(0, device=logits.device)
    return Draw(
        token=ids,
        status=ids.to(torch.uint8),
        logp_raw=none,
        logp_processed=none,
        logp_truncated=none,
        top=(ids.reshape(0, top), none.reshape(0, top)) if top else None,
    )


def check_parameters(links: Mapping[str, Link], rows: Rows) -> None:
    """Raise ConfigError if a per-row parameter belongs to no link."""
    if not rows.parameters:
        return
    known = {f"{name}.{a.name}" for name, link in links.items() for a in attrs.fields(type(link.config))}
    unknown = sorted(set(rows.parameters) - known)
    if unknown:
        raise ConfigError([f"this sampler has no parameter {u!r}; it has {sorted(known)}" for u in unknown], "rows")


def _own_rows(links: Mapping[str, Link], rows: Rows) -> tuple[dict[str, Rows], dict[str, object]]:
    own = {name: rows.for_link(name) for name in links}
    states = {}
    for name, link in links.items():
        if isinstance(link, Stateful):
            held = own[name].state
            states[name] = held[name] if held is not None else link.initial_state(own[name])
            own[name] = attrs.evolve(own[name], state={name: states[name]})
    return own, states


def _key(rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return rows.seed, rows.stream, rows.position


def _draw_fused(last: Fused, greedy: bool, logits: torch.Tensor, rows: Rows) -> Draw:
    """Draw a whole chain in one kernel call."""
    token, status, raw, processed, truncated = kernels.sample_chain(
        logits,
        last.steps,
        *_key(rows),
        **history_of(rows),
        greedy=greedy,
        logp_raw=True,
        logp_processed=True,
        logp_truncated=True,
    )
    assert raw is not None and processed is not None and truncated is not None  # noqa: PT018
    return Draw(token=token, status=status, logp_raw=raw, logp_processed=processed, logp_truncated=truncated)


def _finish(walk: Walk, token: torch.Tensor, drawn: torch.Tensor, logits: torch.Tensor) -> Draw:
    """Put together what the kernel did not see: the status and the log-probabilities of the links before it."""
    status = torch.where(walk.status != reference.OK, walk.status, drawn)
    bad = status != reference.OK
    chosen = token.clamp(min=0)

    def logp(z: torch.Tensor) -> torch.Tensor:
        return torch.where(bad, torch.nan, reference.logp(torch.where(bad[:, None], 0.0, z), chosen))

    return Draw(
        token=torch.where(bad, -1, token),
        status=status,
        logp_raw=logp(logits.float()),
        logp_processed=logp(walk.processed),
        logp_truncated=logp(walk.logits),
    )


def _likeliest(walk: Walk, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and processed log-probabilities, likeliest first, equals by id; NaN and -1 in rows without a token."""
    bad = (walk.status != reference.OK)[:, None]
    ids = walk.processed.sort(dim=-1, descending=True, stable=True).indices[:, :top]
    logps = walk.processed.double().log_softmax(-1).gather(1, ids).float()
    return torch.where(bad, -1, ids), torch.where(bad, torch.nan, logps)


def _advanced(
    links: Mapping[str, Link], states: dict, logits: torch.Tensor, draw: Draw, own: Mapping[str, Rows]
) -> dict:
    after = {}
    for name, held in states.items():
        link = links[name]
        assert isinstance(link, Stateful)
        after[name] = link.advance(held, logits, draw, own[name])
    return after

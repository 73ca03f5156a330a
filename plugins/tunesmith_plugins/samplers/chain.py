"""The chain: links in order, then one draw. Runs of links that the fused kernel can do become one kernel call."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import attrs
import torch

from tunesmith.errors import ConfigError
from tunesmith.given import whole
from tunesmith.kinds.sampler import LOGPS, Applied, Draw, Link, Rows, RowState, Sampler
from tunesmith.row_parameters import check_names
from tunesmith.runtime import Runtime
from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import reference
from tunesmith_plugins.samplers.walk import Fused, Walk, applied, history_of, is_stateful, lowered, parts_of, varies


class ChainSampler(Sampler):
    """Run the links of a chain over every row and draw one token a row."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.deterministic = self._greedy = config.greedy
        self._plans = Plans()

    @cached_property
    def links(self) -> Mapping[str, Link]:
        """Name in the chain to link, in order."""
        return named_links([config.build() for config in self.config.flat()])

    def use(self, links: Sequence[Sampler]) -> None:
        """Run these built links instead of the config's."""
        self.links = named_links(links)
        self._plans = Plans()

    def setup(self, runtime: Runtime) -> None:
        """Set up every link."""
        for link in self.links.values():
            link.setup(runtime)

    def sample(self, logits: torch.Tensor, rows: Rows, *, top: int = 0, logp: Collection[str] = LOGPS) -> Draw:
        if not top and (draw := self._plans.quick(self._greedy, logits, rows, logp)) is not None:
            return draw
        return run(self.links, self._greedy, logits, rows, top, logp, self._plans)

    def apply_links(self, logits: torch.Tensor, rows: Rows) -> Applied:
        """Run the links without a draw; see :class:`tunesmith.kinds.sampler.Applies`."""
        check_parameters(self.links, rows)
        if logits.dtype == torch.float64:  # the kernels work in float32
            logits = logits.float()
        self._plans.check(self.links, logits.shape[1])
        return applied(parts_of(self.links, _own_rows(self.links, rows)[0], self._plans.step), logits)


class GreedySampler(Sampler):
    """Take the likeliest token."""

    deterministic = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._plans = Plans()

    def sample(self, logits: torch.Tensor, rows: Rows, *, top: int = 0, logp: Collection[str] = LOGPS) -> Draw:
        if not top and (draw := self._plans.quick(True, logits, rows, logp)) is not None:
            return draw
        return run({}, True, logits, rows, top, logp, self._plans)


_UNSEEN: Any = object()


class Plans:
    """What of a chain is lowered once, for rows without parameters of their own: single links, or the whole as one call."""

    def __init__(self) -> None:
        self._found: dict[torch.device, kernels.Plan | None] = {}
        self._host: kernels.Plan | None = None  # the one for the CPU, once there is one
        self._steps: dict[tuple[str, torch.device], kernels.Step | None] = {}
        self._vocabs: set[int] = set()

    def quick(self, greedy: bool, logits: torch.Tensor, rows: Rows, logp: Collection[str]) -> Draw | None:
        """Draw past everything that needs a look only once; None where :func:`run` must see to it."""
        plan = self._host
        if plan is None or rows.parameters or logits.shape[-1] not in self._vocabs:
            return None
        of_raw, of_processed, of_truncated = "raw" in logp, "processed" in logp, "truncated" in logp
        if of_raw + of_processed + of_truncated != len(logp):  # a name that is none, or one twice
            return None
        found: Any = kernels.quick_sample(
            plan, logits, rows.seed, rows.stream, rows.position, rows.history, rows.history_lengths, greedy,
            of_raw, of_processed, of_truncated,
        )  # fmt: skip
        if found is None:
            return None
        token, status, raw, processed, truncated = found
        return Draw(token=token, status=status, logp_raw=raw, logp_processed=processed, logp_truncated=truncated)

    def check(self, links: Mapping[str, Link], vocab: int) -> None:
        """Have every link check a size of vocabulary that is new."""
        if vocab not in self._vocabs:
            for link in links.values():
                link.check_vocab(vocab)
            self._vocabs.add(vocab)

    def of(self, links: Mapping[str, Link], rows: Rows) -> kernels.Plan | None:
        """Return the plan for rows like these, or None if the kernel cannot do the whole chain or must be told more."""
        device = rows.seed.device
        found = self._found.get(device, _UNSEEN)
        if found is _UNSEEN:
            steps = [None if varies(link) else self.step(name, link, rows) for name, link in links.items()]
            known = [step for step in steps if step is not None]
            found = self._found[device] = kernels.Plan(known) if len(known) == len(steps) else None
            if device.type == "cpu":
                self._host = found
        return found

    def step(self, name: str, link: Link, rows: Rows) -> kernels.Step | None:
        """Return a link as a step for these rows, or None."""
        if varies(link) or rows.parameters:
            return lowered(link, rows)
        key = name, rows.seed.device
        found = self._steps.get(key, _UNSEEN)
        if found is _UNSEEN:
            one = rows.select(torch.zeros(1, dtype=torch.int64, device=rows.seed.device))
            found = self._steps[key] = lowered(link, one)
        return found


def named_links(links: Sequence[Sampler]) -> dict[str, Link]:
    """Name links as per-row parameters do: ``top_p``, and ``top_p#2`` for the second one.

    Raises:
        ConfigError: For a sampler that is not a link.
    """
    found: dict[str, Link] = {}
    for link in links:
        if not isinstance(link, Link):
            raise ConfigError([f"{type(link.config).__name__} is no link and cannot stand in a chain"], "sampler chain")
        name = first = link.config.link_name
        count = 1
        while name in found:
            count += 1
            name = f"{first}#{count}"
        found[name] = link
    return found


def run(
    links: Mapping[str, Link],
    greedy: bool,
    logits: torch.Tensor,
    rows: Rows,
    top: int = 0,
    logp: Collection[str] = LOGPS,
    plans: Plans | None = None,
) -> Draw:
    """Run named links over logits (batch, vocab) and draw; ``plans`` keeps what was lowered for the next call.

    Raises:
        ConfigError: For a per-row parameter that no link of this chain has, or a ``top`` that is no number of tokens.
        ValueError: For a parameter outside its range, logits of another shape or type, or an unknown name in ``logp``.
    """
    logp = _checked(logits, logp)
    if top and whole(top, "top", "sample") < 0:
        raise ConfigError([f"top must be 0 or more, not {top}"], "sample")
    if rows.parameters:
        check_parameters(links, rows)
    if not logits.shape[0]:
        return _nothing(logits, top, logp)
    plans = Plans() if plans is None else plans
    plans.check(links, logits.shape[1])
    if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        logits = logits.float()  # float64: the kernels work in float32
    if not rows.parameters and (plan := plans.of(links, rows)) is not None:
        return _draw_fused(plan, greedy, logits, rows, logp, top)
    own, states = _own_rows(links, rows)
    logp = LOGPS if states else logp  # a link may advance by any of them
    parts = parts_of(links, own, plans.step)
    last = Fused(steps=(), rows=rows)
    if parts and isinstance(parts[-1], Fused):
        last, parts = parts[-1], parts[:-1]
    if not parts:
        draw = _draw_fused(last.steps, greedy, logits, rows, logp, top)
        return draw if not states else attrs.evolve(draw, state=_advanced(links, states, None, draw, own))
    walk = Walk(logits)
    for part in parts:
        walk.take(part)
    drawn = kernels.sample_chain(walk.logits, last.steps, *_key(rows), **history_of(rows), greedy=greedy)
    walk.take(last)
    draw = _finish(walk, drawn.token, drawn.status, logits, logp, top)
    if states:
        draw = attrs.evolve(draw, state=_advanced(links, states, walk.logits, draw, own))
    return draw


def _checked(logits: torch.Tensor, logp: Collection[str]) -> Collection[str]:
    """Return the names of log-probabilities, having looked at what no kernel would say in the caller's words."""
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or not logits.dtype.is_floating_point:
        found = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"logits must be a tensor (batch, vocab) of floating point numbers, not {found}")
    logp = (logp,) if isinstance(logp, str) else logp
    unknown = [name for name in logp if name not in LOGPS]
    if unknown:
        raise ValueError(f"logp has {unknown}; the log-probabilities of a token are {', '.join(LOGPS)}")
    return logp


def _nothing(logits: torch.Tensor, top: int, logp: Collection[str]) -> Draw:
    """Return the draw of a batch without rows, which has no place in memory to hand to a kernel."""
    top = min(top, logits.shape[1])
    ids = torch.zeros(0, dtype=torch.int64, device=logits.device)
    none = torch.zeros(0, device=logits.device)

    def none_of(name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        asked = top and (name == "processed" or name in logp)
        return (ids.reshape(0, top), none.reshape(0, top)) if asked else None

    return Draw(
        token=ids,
        status=ids.to(torch.uint8),
        logp_raw=none,
        logp_processed=none,
        logp_truncated=none,
        top=none_of("processed"),
        top_raw=none_of("raw"),
        top_truncated=none_of("truncated"),
    )


def check_parameters(links: Mapping[str, Link], rows: Rows) -> None:
    """Raise ConfigError if a per-row parameter belongs to no link, cannot differ by row, or has not one number a row."""
    check_names(links, rows.parameters, "rows")
    for name, values in rows.parameters.items():
        if not isinstance(values, torch.Tensor) or values.shape != rows.seed.shape:
            found = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise ConfigError([f"{name!r} must be a tensor with a number a row, ({len(rows)},), not {found}"], "rows")


def _own_rows(links: Mapping[str, Link], rows: Rows) -> tuple[dict[str, Rows], dict[str, RowState]]:
    own = {name: rows.for_link(name) for name in links}
    states = {}
    for name, link in links.items():
        if is_stateful(link):
            held = own[name].state
            states[name] = held[name] if held is not None else link.initial_state(own[name])
            own[name] = attrs.evolve(own[name], state={name: states[name]})
    return own, states


def _key(rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return rows.seed, rows.stream, rows.position


def _draw_fused(
    steps: Sequence[kernels.Step] | kernels.Plan,
    greedy: bool,
    logits: torch.Tensor,
    rows: Rows,
    logp: Collection[str],
    top: int,
) -> Draw:
    """Draw a whole chain in one kernel call."""
    plan = steps if isinstance(steps, kernels.Plan) else kernels.Plan(steps)
    if top:
        return _draw_fused_top(plan, greedy, logits, rows, logp, top)
    result: Any = kernels.sample_chain(
        logits,
        plan,
        rows.seed,
        rows.stream,
        rows.position,
        history=rows.history,
        history_lengths=rows.history_lengths,
        greedy=greedy,
        logp_raw="raw" in logp,
        logp_processed="processed" in logp,
        logp_truncated="truncated" in logp,
    )
    token, status, raw, processed, truncated = result
    return Draw(token=token, status=status, logp_raw=raw, logp_processed=processed, logp_truncated=truncated)


def _draw_fused_top(
    plan: kernels.Plan, greedy: bool, logits: torch.Tensor, rows: Rows, logp: Collection[str], top: int
) -> Draw:
    """The same with the likeliest tokens."""
    found = kernels.sample_chain_top(
        logits, plan, *_key(rows), **history_of(rows), greedy=greedy, top=top, of=("processed", *logp),
        logp_raw="raw" in logp, logp_processed="processed" in logp, logp_truncated="truncated" in logp,
    )  # fmt: skip
    token, status, raw, processed, truncated = found.sample
    return Draw(
        token=token,
        status=status,
        logp_raw=raw,
        logp_processed=processed,
        logp_truncated=truncated,
        top=found.processed,
        top_raw=found.raw,
        top_truncated=found.truncated,
    )


def _finish(
    walk: Walk, token: torch.Tensor, drawn: torch.Tensor, logits: torch.Tensor, wanted: Collection[str], top: int
) -> Draw:
    """Put together what the kernel did not see: the status, and the log-probabilities of the links before it."""
    status = torch.where(walk.status != reference.OK, walk.status, drawn)
    bad = status != reference.OK
    chosen = token.clamp(min=0)

    def logp(name: str, z: torch.Tensor) -> Any:
        if name not in wanted:
            return None
        return torch.where(bad, torch.nan, reference.logp(torch.where(bad[:, None], 0.0, z.float()), chosen))

    def likeliest(name: str, z: torch.Tensor) -> Any:
        if not top or (name != "processed" and name not in wanted):
            return None
        ids, logps = reference.likeliest(torch.where(bad[:, None], 0.0, z.float()), top)
        return torch.where(bad[:, None], -1, ids), torch.where(bad[:, None], torch.nan, logps)

    return Draw(
        token=torch.where(bad, -1, token),
        status=status,
        logp_raw=logp("raw", logits),
        logp_processed=logp("processed", walk.processed),
        logp_truncated=logp("truncated", walk.logits),
        top=likeliest("processed", walk.processed),
        top_raw=likeliest("raw", logits),
        top_truncated=likeliest("truncated", walk.logits),
    )


def _advanced(
    links: Mapping[str, Link], states: Mapping[str, RowState], logits: Any, draw: Draw, own: Mapping[str, Rows]
) -> dict[str, RowState]:
    after = {}
    for name, held in states.items():
        link = links[name]
        assert is_stateful(link)
        after[name] = link.advance(held, logits, draw, own[name])
    return after

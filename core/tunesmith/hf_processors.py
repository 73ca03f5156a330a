"""Links as transformers' logits processors, for those who keep its loop. See :func:`tunesmith.hf.logits_processors`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from tunesmith import row_parameters
from tunesmith.errors import ConfigError, NumericError
from tunesmith.hf_rows import RowOptions, with_generated
from tunesmith.kinds.sampler import (
    STATUS_EMPTY,
    STATUS_OK,
    Applies,
    Draw,
    Fusable,
    Link,
    Rows,
    RowState,
    Sampler,
    Stateful,
    chain_of,
)

WHERE = "logits_processors"


def links_of(sampler: Sampler) -> Mapping[str, Link]:
    """Return name to link, in order, of a link or of a sampler that has ``links``.

    Raises:
        ConfigError: For a sampler that is neither, or that would draw greedily: here transformers draws.
    """
    links = row_parameters.links_of(sampler)
    if sampler.deterministic and not isinstance(sampler, Link):
        problem = "draws greedily, but here transformers draws: leave greedy out and call generate with do_sample=False"
    elif links is None:
        problem = "is not made of links, so it cannot be taken apart into processors"
    else:
        return links
    raise ConfigError([f"{sampler!r} {problem}; or let tunesmith draw, with draw=True"], WHERE)


class Progress:
    """What the processors of one list share: the rows as ``input_ids`` tell them, and the memories of links.

    transformers hands every processor of a step the same ``input_ids``. Another prompt, or nothing behind it, means that a new
    ``generate`` has begun, and so does whoever goes through the list of processors (see :class:`Processors`).

    Attributes:
        over: Whether the next step begins a new text, whatever its ids.
    """

    def __init__(self, options: RowOptions, mask: torch.Tensor | None, copies: int, ends: Sequence[int]) -> None:
        self.options = options
        self.mask = mask
        self.copies = copies
        self.ends = ends
        self.over = False
        self.ids: torch.Tensor | None = None
        self.first: Rows | None = None
        self.width = 0

    def step(self, input_ids: torch.Tensor) -> bool:
        """Take note of ``input_ids``; return whether they begin a new text."""
        begins = self._begins(input_ids)
        if begins:
            self.first = self._first(input_ids)
            self.width = input_ids.shape[1]
        self.ids, self.over = input_ids, False
        return begins

    def rows(self) -> Rows:
        """Return the rows of this step."""
        assert self.first is not None and self.ids is not None  # noqa: PT018
        return with_generated(self.first, self.ids[:, self.width :])

    def finished(self) -> torch.Tensor:
        """Return which rows have written an end of sequence, (batch,)."""
        assert self.ids is not None
        ends = torch.tensor(list(self.ends), dtype=self.ids.dtype, device=self.ids.device)
        return torch.isin(self.ids[:, self.width :], ends).any(-1)

    def check_rows_stay(self, input_ids: torch.Tensor, why: str) -> None:
        """Raise ConfigError if this step's rows are not the last step's with a token more."""
        before = self.ids
        if before is None or before is input_ids or self._begins(input_ids):
            return
        grown = input_ids.shape[1] == before.shape[1] + 1 and torch.equal(input_ids[:, :-1], before)
        if not grown:
            raise ConfigError([f"rows change places, as in beam search, or take several tokens at once; {why}"], WHERE)

    def _begins(self, input_ids: torch.Tensor) -> bool:
        before = self.ids
        if self.over or before is None or len(input_ids) != len(before) or input_ids.shape[1] <= self.width:
            return True
        # A text that goes back is the same one: in assisted generation tokens are proposed, then judged.
        return not torch.equal(input_ids[:, : self.width], before[:, : self.width])

    def _first(self, input_ids: torch.Tensor) -> Rows:
        batch, mask, copies = len(input_ids), self.mask, self.copies
        if mask is not None:
            if tuple(mask.shape[1:]) != tuple(input_ids.shape[1:]) or not len(mask) or batch % len(mask):
                raise ConfigError(
                    [
                        f"attention_mask is {tuple(mask.shape)} and the text begins with {tuple(input_ids.shape)} ids; give "
                        "the mask of this batch's prompts, and none for an encoder-decoder, whose decoder begins alike"
                    ],
                    WHERE,
                )
            copies = batch // len(mask)
            mask = mask.repeat_interleave(copies, dim=0)
        elif batch % copies:
            raise ConfigError([f"{batch} rows are no multiple of completions={copies}"], WHERE)
        return self.options.first(input_ids, mask, copies)


class Processors(LogitsProcessorList):  # type: ignore[misc]
    """The processors of one sampler.

    ``generate`` goes through the list when it begins, which tells one text from the next: the ids alone do not where somebody
    has one token written, then the next behind it.
    """

    def __init__(self, processors: Sequence[LogitsProcessor], progress: Progress) -> None:
        super().__init__(processors)
        self._progress = progress

    def __iter__(self) -> Iterator[LogitsProcessor]:
        self._progress.over = True
        yield from super().__iter__()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        for processor in super().__iter__():
            scores = processor(input_ids, scores)
        return scores


class LinkProcessor(LogitsProcessor):  # type: ignore[misc]
    """One link of a chain as a processor.

    Attributes:
        link: The link.
        name: Its name in the chain, by which parameters address it.
    """

    def __init__(self, name: str, link: Link, memory: Memory) -> None:
        self.name = name
        self.link = link
        self._memory = memory

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self._memory.apply(self.name, input_ids, scores)


class Memory:
    """The links of a chain on their way through the steps: rows, states, and what the last step's tokens came from."""

    def __init__(self, links: Mapping[str, Link], progress: Progress) -> None:
        self._links = links
        self._progress = progress
        self._stateful = [name for name, link in links.items() if isinstance(link, Stateful)]
        self._fused = {name: fused for name, link in links.items() if (fused := _fused(link)) is not None}
        self._done: set[str] = set()
        self._states: dict[str, RowState] = {}
        self._rows: Rows | None = None
        self._raw = self._processed = self._after = torch.empty(0, 0)
        self._finished = torch.empty(0, dtype=torch.bool)
        row_parameters.check_names(links, progress.options.parameters, WHERE)

    def apply(self, name: str, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores after one link; finished rows are left alone."""
        if input_ids is not self._progress.ids or self._progress.over or name in self._done:
            self._step(input_ids, scores)
            self._done = set()
        self._done.add(name)
        after = self._applied(name, scores)
        if self._stateful and not self._links[name].truncates:
            together = self._processed is scores
            self._processed = after if together else self._applied(name, self._processed)
        after = torch.where(self._finished[:, None], scores, after)
        self._after = after
        if name == list(self._links)[-1]:
            self._check(after)
        return after

    def _step(self, input_ids: torch.Tensor, scores: torch.Tensor) -> None:
        if self._stateful:
            names = " and ".join(self._stateful)
            self._progress.check_rows_stay(input_ids, f"{names} cannot follow: what it remembers belongs to a row")
        # the rows and distribution of the last token, before they are replaced
        before, after, again = self._rows, self._after, input_ids is self._progress.ids
        if self._progress.step(input_ids):
            rows = self._progress.rows()
            self._rows = rows
            self._states = {n: self._links[n].initial_state(rows.for_link(n)) for n in self._stateful}  # type: ignore[attr-defined]
        else:
            if self._stateful and before is not None and not again:
                self._advance(before, after, input_ids[:, -1])
            self._rows = self._progress.rows()
        self._finished = self._progress.finished()
        self._raw = self._processed = scores

    def _applied(self, name: str, scores: torch.Tensor) -> torch.Tensor:
        link, own = self._links[name], self._own(name)
        if name not in self._fused:
            return link.apply(scores, own).to(scores.dtype)
        alone = {f"{link.config.link_name}.{field}": values for field, values in own.parameters.items()}
        found = self._fused[name].apply_links(scores, attrs.evolve(own, parameters=alone))
        bad = (found.status != STATUS_OK)[:, None]
        return torch.where(bad, torch.nan, found.logits).to(scores.dtype)

    def _own(self, name: str) -> Rows:
        assert self._rows is not None
        return attrs.evolve(self._rows, state=self._states).for_link(name)

    def _advance(self, rows: Rows, after: torch.Tensor, token: torch.Tensor) -> None:
        """Tell the links which token was drawn; of a row that was filled up behind its end nothing was."""
        at = token[:, None].clamp(max=after.shape[1] - 1)

        def logp(scores: torch.Tensor) -> torch.Tensor:
            return scores.log_softmax(-1).gather(1, at)[:, 0]

        truncated = logp(after)
        over = self._finished | ~truncated.isfinite()
        draw = Draw(
            token=torch.where(over, -1, token),
            status=torch.where(over, STATUS_EMPTY, STATUS_OK).to(torch.uint8),
            logp_raw=logp(self._raw),
            logp_processed=logp(self._processed),
            logp_truncated=truncated,
        )
        for name in self._stateful:
            own = attrs.evolve(rows, state=self._states).for_link(name)
            self._states[name] = self._links[name].advance(self._states[name], after, draw, own)  # type: ignore[attr-defined]

    def _check(self, after: torch.Tensor) -> None:
        bad = ~after.amax(-1).isfinite() & ~self._finished
        if bool(bad.any()):
            assert self._rows is not None
            raise _nothing_to_draw(bad, self._rows, f"after {' and '.join(self._links)}")


class DrawProcessor(LogitsProcessor):  # type: ignore[misc]
    """A whole sampler, draw included: leaves only the token that it drew, so that transformers can but take it."""

    def __init__(self, sampler: Sampler, progress: Progress) -> None:
        self.sampler = sampler
        self._progress = progress
        self._before: Any = None
        self._state: Any = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._progress.check_rows_stay(input_ids, "a draw of ours belongs to a row; leave draw=True out")
        again = input_ids is self._progress.ids
        begins = self._progress.step(input_ids)
        if not again:
            self._before = self._state
        if begins:
            self._before = None
        rows = attrs.evolve(self._progress.rows(), state=self._before)
        draw = self.sampler.sample(scores, rows, logp=())
        finished = self._progress.finished()
        bad = (draw.status != STATUS_OK) & ~finished
        if bool(bad.any()):
            raise _nothing_to_draw(bad, rows, f"for {self.sampler!r}")
        self._state = draw.state
        only = torch.full_like(scores, -torch.inf).scatter(1, draw.token.clamp(min=0)[:, None], 0.0)
        return torch.where(finished[:, None], scores, only)


def _fused(link: Link) -> Applies | None:
    """Return a chain of this link alone if a kernel may do it."""
    if not isinstance(link, Fusable) or isinstance(link, Stateful):
        return None
    chain = chain_of(link)
    return chain if isinstance(chain, Applies) else None


def _nothing_to_draw(bad: torch.Tensor, rows: Rows, behind: str) -> NumericError:
    return NumericError(
        f"row {int(bad.nonzero()[0, 0])} of the batch: {behind} there is NaN, +inf or no finite value among the scores of new "
        f"token {int(rows.position[0])}. If that row had ended before, give logits_processors the eos_token_id."
    )

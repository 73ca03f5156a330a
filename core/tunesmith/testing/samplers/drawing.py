"""Anything that draws, as one function: logits, seeds and positions to tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from tunesmith.errors import NumericError
from tunesmith.kinds.sampler import STATUS_EMPTY, STATUS_OK, Rows, Sampler, SamplerConfig
from tunesmith.runtime import Runtime

DrawFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""``draw(logits, seeds, positions)``: (batch, vocab) float32 of any row stride, also 0, and (batch,) int64 twice, to tokens
(batch,) of whole numbers. A seed stands for a request, a position for the number of a generated token."""

AT_ONCE = 1 << 22
"""Logits of a call, at most, as far as more than one row goes."""


def drawer(
    sampler: SamplerConfig | Sampler | str,
    *,
    history: Sequence[int] = (),
    prompt: int = 0,
    stream: int = 0,
    parameters: Mapping[str, float] | None = None,
    empty: int | None = None,
) -> DrawFunction:
    """Return a sampler as a draw function.

    Args:
        sampler: A config, a short spelling, or a sampler that is already built.
        history: Ids that every row has behind it.
        prompt: How many of them are the prompt.
        stream: Stream of every row.
        parameters: Per-row parameters, the same for every row.
        empty: What stands for the token of a row of which the sampler leaves nothing (status ``STATUS_EMPTY``); None
            makes such a row an error, as any other that cannot be drawn from.

    Raises:
        NumericError: When the draw function meets a row that has no token.
    """
    from tunesmith.generation import component

    built: Sampler = component(sampler, "sampler")
    if built is not sampler:
        built.setup(Runtime())
    ids = torch.tensor([list(history) or [0]], dtype=torch.int64)

    def draw(logits: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        batch = len(logits)
        rows = Rows(
            seed=seeds,
            stream=torch.full((batch,), stream),
            position=positions,
            history=ids.expand(batch, -1),
            history_lengths=torch.full((batch,), len(history)),
            prompt_lengths=torch.full((batch,), prompt),
            parameters={n: torch.full((batch,), v, dtype=torch.float64) for n, v in (parameters or {}).items()},
        )
        found = built.sample(logits, rows)
        nothing = (
            found.status == STATUS_EMPTY if empty is not None else torch.zeros_like(found.status, dtype=torch.bool)
        )
        wrong = (found.status != STATUS_OK) & ~nothing
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0, 0])
            raise NumericError(f"{built!r} drew nothing in row {row}: its status is {int(found.status[row])}.")
        return found.token if empty is None else found.token.masked_fill(nothing, empty)

    return draw


def drawn(draw: DrawFunction, logits: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return the tokens (batch,) int64 of one call, having looked at them; arrays and lists of whole numbers will do.

    Raises:
        NumericError: For anything but one token of the vocabulary a row.
    """
    given: Any = draw(logits, seeds, positions)
    batch, vocab = logits.shape
    try:
        found = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):
        raise NumericError(f"the sampler gave a {type(given).__name__}; {batch} tokens were expected.") from None
    if tuple(found.shape) != (batch,) or found.dtype.is_floating_point or found.dtype in (torch.bool, torch.complex64):
        raise NumericError(
            f"the sampler gave {found.dtype} {tuple(found.shape)}; a whole number for each of {batch} rows was expected."
        )
    found = found.detach().to("cpu", torch.int64, copy=True)  # the sampler may write its next tokens there
    outside = (found < 0) | (found >= vocab)
    if bool(outside.any()):
        wrong = int(found[outside][0])
        raise NumericError(f"the sampler gave the token {wrong} for a vocabulary of {vocab}.")
    return found


def tokens_of(
    draw: DrawFunction, row: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor | int = 0
) -> torch.Tensor:
    """Draw from one row of logits (vocab,) for many seeds and positions, in calls that fit into memory.

    The row is not copied: a call gets it with a row stride of 0.
    """
    where = torch.full_like(seeds, positions) if isinstance(positions, int) else positions
    size = max(1, min(1 << 14, AT_ONCE // row.shape[0]))
    parts = []
    for begin in range(0, len(seeds), size):
        some = slice(begin, min(begin + size, len(seeds)))
        parts.append(drawn(draw, row.expand(some.stop - begin, -1), seeds[some], where[some]))
    return torch.cat(parts)


def counts_of(
    draw: DrawFunction, row: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor | int = 0
) -> torch.Tensor:
    """Return how often each token was drawn, (vocab,) int64; arguments as of :func:`tokens_of`."""
    return torch.bincount(tokens_of(draw, row, seeds, positions), minlength=row.shape[0])


def scattered(count: int, seed: int = 0) -> torch.Tensor:
    """Return seeds from all over the 63 bits, the same every time."""
    return torch.randint(0, 2**63 - 1, (count,), generator=torch.Generator().manual_seed(seed))

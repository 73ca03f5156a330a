"""Requests that are decoded several times, for decoders that choose among the completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import evolve

from tunesmith.kinds.decoder import Completion, Decoder, Limits, Request, StepModel
from tunesmith.kinds.sampler import Sampler
from tunesmith.runtime import Runtime


def several(
    decoder: Decoder,
    n: int,
    step_model: StepModel,
    requests: Sequence[Request],
    sampler: Sampler,
    limits: Limits,
    runtime: Runtime,
) -> Iterator[list[Completion]]:
    """Yield the ``n`` completions of every request, in order of their streams, as soon as the last one is there.

    Stream ``s`` of a request draws the streams ``s * n`` to ``s * n + n - 1``, so that other streams draw others. The
    completions say which request, id and stream they are for as if each was the only one.

    Args:
        decoder: What decodes each copy.
        n: Completions a request.
        step_model: As of :meth:`tunesmith.kinds.decoder.Decoder.decode`, and so are the others.
        requests: In order.
        sampler: What draws a token.
        limits: When a completion ends.
        runtime: Seed, device and progress.
    """
    copies = [evolve(r, stream=r.stream * n + k) for r in requests for k in range(n)]
    drawn: dict[int, dict[int, Completion]] = {}
    for completion in decoder.decode(step_model, copies, sampler, limits, runtime):
        owner, number = divmod(completion.request, n)
        mine, request = drawn.setdefault(owner, {}), requests[owner]
        mine[number] = evolve(completion, request=owner, id=request.id, stream=request.stream)
        if len(mine) == n:
            del drawn[owner]
            yield [mine[k] for k in range(n)]

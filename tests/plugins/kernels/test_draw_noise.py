"""The native draw uses the bits of the torch generator."""

from __future__ import annotations

import torch

from tunesmith import philox
from tunesmith_plugins import kernels


def test_a_flat_row_shows_the_uniform_that_the_kernel_drew(serving: str) -> None:
    seed, stream = torch.randint(-(2**63), 2**63 - 1, (2, 64))
    position = torch.randint(0, 2**32, (64,))
    for draw in (0, 5):
        token = kernels.sample_chain(torch.zeros(64, 4096), [], seed, stream, position, draw=draw).token
        assert torch.equal(token, (philox.uniform(seed, stream, position, draw) * 4096).long())
    assert not torch.equal(
        philox.uniform_bits(seed, stream, position, 0), philox.uniform_bits(seed, stream, position, 1)
    )

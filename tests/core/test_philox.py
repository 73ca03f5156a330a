"""The torch generator gives Random123's known answers."""

from __future__ import annotations

import random

import pytest
import torch

from tunesmith import philox

KNOWN = [
    ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0xA4093822, 0x299F31D0), (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]  # fmt: skip


@pytest.mark.parametrize(("key", "counter", "words"), KNOWN)
def test_known_answers(key: tuple[int, ...], counter: tuple[int, ...], words: tuple[int, ...]) -> None:
    found = philox.philox4x32(tuple(map(torch.tensor, key)), tuple(map(torch.tensor, counter)))
    assert tuple(int(word) for word in found) == words


def test_high_half_of_a_product() -> None:
    rng = random.Random(0)
    for _ in range(500):
        bits, total = rng.getrandbits(64), rng.getrandbits(63)
        signed = bits - (1 << 64) if bits >> 63 else bits
        assert int(philox.mulhi(torch.tensor(signed), torch.tensor(total))) == (bits * total) >> 64

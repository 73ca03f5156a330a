"""The peak memory of a process is its own."""

import subprocess
import sys

import numpy as np

from tunesmith_plugins.stages.training.memory import peak_bytes


def test_it_grows_with_what_was_held_and_stays() -> None:
    before = peak_bytes()
    np.ones(2 * before // 8)  # touched, then let go
    assert peak_bytes() > 2 * before


def test_a_small_child_of_a_large_parent_is_small() -> None:
    held = np.ones(60_000_000)
    code = "from tunesmith_plugins.stages.training.memory import peak_bytes; print(peak_bytes())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0 < int(told) < held.nbytes < peak_bytes()

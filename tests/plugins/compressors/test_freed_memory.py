import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to")

START = """
import gc, torch
from pathlib import Path
torch.set_num_threads(1)
MiB = 2**20
def taken():  # MiB of memory of its own
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) // 1024
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return [int(number) for number in done.stdout.split()]


def test_what_lies_free_between_tensors_goes_back_to_the_system_when_many_bytes_are_done_with():
    before, holes, few, many = run("""
from tunesmith_plugins.compressors.freed_memory import OFTEN, done_with
torch.ones(4 * MiB); gc.collect()  # the C library keeps freed blocks that are smaller from now on
start = taken()
rows = [torch.ones(MiB // 4) for _ in range(128)]
print(taken() - start)
rows = rows[1::2]
print(taken() - start)
done_with(torch.empty(OFTEN - 4, dtype=torch.int8, device="meta"))
print(taken() - start)
done_with(torch.empty(4, dtype=torch.int8, device="meta"))
print(taken() - start)
""")
    assert before >= 126
    assert abs(holes - before) <= 2, "what is freed is kept"
    assert abs(few - holes) <= 2
    assert many <= 70


def test_packing_an_embedding_takes_little_more_memory_than_what_is_packed():
    grown, packed = run("""
from tunesmith_plugins import kernels
q, scale = torch.ones(60000, 512, dtype=torch.int8), torch.ones(60000)
kernels.pack_weight(q[:64], scale[:64])
start = taken()
packed = kernels.pack_weight(q, scale)
print(taken() - start, packed.data.numel() // MiB)
""")
    assert packed - 2 <= grown <= packed + 6

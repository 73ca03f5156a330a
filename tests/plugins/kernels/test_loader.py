"""Loading: lazy, honest about what it found, and the reference in its place when there is nothing to load."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import loader

DRAW = """
import torch
from tunesmith_plugins import kernels
torch.manual_seed(0)
logits = torch.randn(4, 1000)
steps = [kernels.Step("temperature", torch.tensor([0.7]).double()), kernels.Step("top_p", torch.tensor([0.9]).double())]
for _ in range(2):
    result = kernels.sample_chain(logits, steps, torch.arange(4), torch.arange(4), torch.arange(4), logp_raw=True)
weight = kernels.quantize_weight(torch.randn(5, 30))
y = kernels.int8_linear(torch.randn(3, 30), kernels.pack_weight(weight.q, weight.scale))
print(kernels.info()["isa"], result.token.tolist(), result.logp_raw.tolist(), y.tolist())
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # The interpreter must find the package where this one did.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    settings = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=settings, check=False)


def test_info_describes_what_is_loaded(native: dict[str, Any]) -> None:
    assert Path(native["path"]).is_file()
    assert native["isa"] in native["isa_available"]
    assert native["isa_available"][0] == "scalar"
    assert native["reason"] is None
    assert native["abi_version"] == loader.ABI_VERSION
    assert loader.build_record()["native"] == "built"
    assert native["cuda_built"] == loader.build_record()["cuda"]


def test_importing_the_package_and_asking_for_info_loads_no_torch(native: dict[str, Any]) -> None:
    done = run("import sys\nfrom tunesmith_plugins import kernels\nkernels.info()\nassert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def switched_off() -> subprocess.CompletedProcess[str]:
    """A process that draws and multiplies without the native library."""
    done = run(DRAW, TUNESMITH_NATIVE="OFF")
    assert done.returncode == 0, done.stderr
    return done


def test_a_forced_scalar_process_and_one_without_the_library_print_the_same(
    native: dict[str, Any], switched_off: subprocess.CompletedProcess[str]
) -> None:
    forced = run(DRAW, TUNESMITH_ISA="scalar")
    assert forced.returncode == 0, forced.stderr
    assert forced.stdout.startswith("scalar [")
    assert switched_off.stdout.startswith("None [")
    assert forced.stdout.removeprefix("scalar") == switched_off.stdout.removeprefix("None")


def test_the_fallback_warns_once_and_says_why(switched_off: subprocess.CompletedProcess[str]) -> None:
    assert switched_off.stderr.count("RuntimeWarning") == 1
    assert "TUNESMITH_NATIVE=OFF" in switched_off.stderr
    assert "doctor" in switched_off.stderr


def test_an_instruction_set_that_is_not_there_is_an_error_and_not_replaced(native: dict[str, Any]) -> None:
    done = run(DRAW, TUNESMITH_ISA="abacus")
    assert done.returncode != 0
    assert "'abacus' is not available here; choose one of: scalar" in done.stderr
    with pytest.raises(RuntimeError, match="abacus"):
        kernels.set_isa("abacus")
    assert kernels.info()["isa"] == native["isa"]


def test_a_library_of_another_interface_version_is_refused(
    native: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    current = loader.ABI_VERSION
    monkeypatch.setattr(loader, "ABI_VERSION", 999)
    with pytest.raises(OSError, match=rf"interface version {current}, this tunesmith needs 999; reinstall"):
        loader.Library(Path(native["path"]), "ts_")


def test_a_file_that_is_no_library_of_ours_is_refused(native: dict[str, Any], tmp_path: Path) -> None:
    broken = tmp_path / "libtunesmith.so"
    broken.write_bytes(b"\x7fELF and nothing else")
    with pytest.raises(OSError, match="libtunesmith"):
        loader.Library(broken, "ts_")
    with pytest.raises(OSError, match="is not a tunesmith library"):
        loader.Library(Path(native["path"]), "other_")


@pytest.mark.parametrize(
    ("question", "asked"),
    [
        ("ts_warm_code", ("ts_sample", "ts_sample_words")),
        ("ts_int8_warm_code", ("ts_int8_linears", "ts_int8_linears_words")),
    ],
)
def test_the_code_that_a_call_asks_for_is_that_of_the_call(
    native: dict[str, Any], question: str, asked: tuple[str, ...]
) -> None:
    library = loader.cpu()
    assert library is not None
    words, found = (ctypes.c_int64 * 64)(), {}  # more than there are; those left over stay 0
    ask = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(library.address(question))
    try:
        for isa in native["isa_available"]:
            loader.set_isa(isa)
            assert ask(ctypes.addressof(words)) == loader.TS_OK
            found[isa] = [pair for pair in zip(words[::2], words[1::2], strict=True) if pair[0]]
    finally:
        loader.set_isa(native["isa"])
    mapped = (
        [
            tuple(int(end, 16) for end in line.split(maxsplit=1)[0].split("-"))
            for line in Path("/proc/self/maps").read_text().splitlines()
            if line.endswith(Path(native["path"]).name) and " r-xp " in line
        ]
        if sys.platform == "linux"
        else []
    )
    for isa, ranges in found.items():
        (begin, size), *kernels_ = ranges
        if sys.platform == "linux":
            for name in asked:
                assert begin <= library.address(name) < begin + size, (isa, name)
            assert all(any(low <= at < high for low, high in mapped) for at, _ in ranges), isa
        assert all(length > 0 for _, length in kernels_)
        assert size < 32_768  # more would push out what the caller needs
    if "avx2" in found:
        assert not {at for at, _ in found["avx2"][1:]} & {at for at, _ in found["scalar"][1:]}


FORKED = """
import os, torch
from tunesmith_plugins import kernels
{before}
torch.set_num_threads(2)
torch.randn(2000, 2000).exp()  # torch's threads are at work before the fork, and gone in the child
child = os.fork()
if not child:
    torch.set_num_threads(1)  # torch itself would wait for them
    weight = kernels.quantize_weight(torch.randn(1024, 1024))
    packed, x = kernels.pack_weight(weight.q, weight.scale), torch.randn(64, 1024)
    torch.set_num_threads(2)
    with torch.no_grad():
        y = kernels.int8_linear(x, packed)
    torch.set_num_threads(1)
    os._exit(0 if y.isfinite().all() else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("before", ["", "kernels.ops", "kernels.info(); kernels.int8_ops"])
def test_a_forked_child_does_not_wait_for_its_parents_threads(native: dict[str, Any], before: str) -> None:
    done = subprocess.run([sys.executable, "-c", FORKED.format(before=before)], timeout=60, check=False)
    assert done.returncode == 0

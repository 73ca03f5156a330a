"""The build: sanitized C++ tests, and what happens without a compiler, with a broken one, and when switched off."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "plugins" / "tunesmith_plugins" / "kernels" / "csrc"
CXX = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")

pytestmark = pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not on the path: nothing can be built")
needs_compiler = pytest.mark.skipif(CXX is None, reason="no C++ compiler on the path")


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {key: value for key, value in os.environ.items() if not key.startswith("TUNESMITH_")}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**settings, **environment}, check=False
    )


def build(folder: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Build as pip would, install into ``folder``, and return the run and what the build record says."""
    configured = run("cmake", "-S", ROOT, "-B", folder / "build", **environment)
    if configured.returncode:
        return configured, ""
    done = run("cmake", "--build", folder / "build", **environment)
    if done.returncode:
        return done, ""
    installed = run("cmake", "--install", folder / "build", "--prefix", folder / "site")
    assert installed.returncode == 0, installed.stderr
    return done, (folder / "site" / "tunesmith_plugins" / "kernels" / "_native" / "native.txt").read_text()


PROGRAMS = {
    "tunesmith_native_tests": "all checks passed",
    "tunesmith_int8_tests": "all int8 checks passed",
    "tunesmith_int8_cuda_tests": "all int8 checks of the CUDA kernels passed",
}


@needs_compiler
@pytest.mark.parametrize("sanitizers", ["address,undefined", pytest.param("thread", marks=pytest.mark.exhaustive)])
def test_the_sanitized_programs_pass(tmp_path: Path, sanitizers: str) -> None:
    switches = ("-DTUNESMITH_NATIVE_TESTS=ON", "-DTUNESMITH_SANITIZE=ON", f"-DTUNESMITH_SANITIZERS={sanitizers}")
    if "clang" not in run(CXX, "--version").stdout:
        # where variables live is what debuggers ask, and finding it out takes GCC a third of its time
        switches += ("-DCMAKE_CXX_FLAGS=-fno-var-tracking",)
    configured = run("cmake", "-S", SOURCES, "-B", tmp_path, *switches, "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
    assert configured.returncode == 0, configured.stderr
    built = run("cmake", "--build", tmp_path, "--parallel", 2)
    if built.returncode and "sanitize" in built.stdout + built.stderr and "cannot find" in built.stdout + built.stderr:
        pytest.skip("the compiler has no sanitizer libraries")
    assert built.returncode == 0, built.stdout + built.stderr
    for program, last in PROGRAMS.items():
        done = run(tmp_path / program)
        assert done.returncode == 0, done.stdout + done.stderr
        assert last in done.stdout
        print(done.stdout)


ARM = shutil.which("aarch64-linux-gnu-g++")
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


@pytest.mark.exhaustive
@pytest.mark.skipif(not (ARM and QEMU), reason="needs aarch64-linux-gnu-g++ and qemu-aarch64 on the path")
def test_the_program_passes_on_an_emulated_arm_processor(tmp_path: Path) -> None:
    system = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_EXE_LINKER_FLAGS=-static")
    switches = ("-DTUNESMITH_NATIVE_TESTS=ON", "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_CXX_COMPILER={ARM}")
    configured = run("cmake", "-S", SOURCES, "-B", tmp_path, *system, *switches)
    assert configured.returncode == 0, configured.stderr
    programs = ("tunesmith_native_tests", "tunesmith_int8_tests")
    built = run("cmake", "--build", tmp_path, "--parallel", 2, "--target", *programs)
    assert built.returncode == 0, built.stdout + built.stderr
    for program in programs:
        done = run(QEMU, tmp_path / program)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "scalar,neon,neondot" in done.stdout
        print(done.stdout)


@pytest.mark.parametrize("compiler", ["no-such-compiler", "/nowhere/no-such-compiler"])
def test_without_a_compiler_the_build_succeeds_and_says_why(tmp_path: Path, compiler: str) -> None:
    done, record = build(tmp_path, CXX=compiler, TUNESMITH_CUDA="OFF")
    assert done.returncode == 0, done.stderr
    assert (
        record
        == "native: absent (no working compiler)\ncuda: off (TUNESMITH_CUDA=OFF)\ncall: absent (the CPU library was not built)\n"
    )


def test_a_compiler_that_fails_is_no_compiler(tmp_path: Path) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    done, record = build(tmp_path, CXX=str(broken), TUNESMITH_CUDA="OFF")
    assert done.returncode == 0, done.stderr
    assert record.startswith("native: absent (no working compiler)\n")


def test_with_native_on_a_missing_compiler_is_an_error(tmp_path: Path) -> None:
    done, _ = build(tmp_path, CXX=str(tmp_path / "no-such-compiler"), TUNESMITH_NATIVE="ON", TUNESMITH_CUDA="OFF")
    assert done.returncode != 0
    assert "TUNESMITH_NATIVE=ON but the native library was not built" in done.stdout + done.stderr


def test_switched_off_it_builds_nothing(tmp_path: Path) -> None:
    done, record = build(tmp_path, TUNESMITH_NATIVE="off")
    assert done.returncode == 0, done.stderr
    assert (
        record
        == "native: off (TUNESMITH_NATIVE=OFF)\ncuda: off (TUNESMITH_NATIVE=OFF)\ncall: off (TUNESMITH_NATIVE=OFF)\n"
    )


@pytest.fixture(scope="module")
def failing_cuda(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole build with a CUDA compiler that always fails: its folder and what the build record says."""
    folder = tmp_path_factory.mktemp("failing_cuda")
    broken = folder / "nvcc"
    broken.write_text("#!/bin/sh\necho no such device architecture >&2\nexit 1\n")
    broken.chmod(0o755)
    done, record = build(folder, CUDACXX=str(broken))
    assert done.returncode == 0, done.stderr
    return folder, record


@needs_compiler
def test_a_failing_cuda_compiler_leaves_the_cpu_library(failing_cuda: tuple[Path, str]) -> None:
    folder, record = failing_cuda
    assert record.startswith("native: built\ncuda: absent (")
    assert list((folder / "site").rglob("libtunesmith.*"))
    done, _ = build(folder, CUDACXX=str(folder / "nvcc"), TUNESMITH_CUDA="ON")  # what is compiled is not compiled again
    assert done.returncode != 0
    assert "TUNESMITH_CUDA=ON but the CUDA library was not built" in done.stdout + done.stderr


@needs_compiler
@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm on the path")
def test_units_of_an_instruction_set_lend_no_code_to_the_linker(failing_cuda: tuple[Path, str]) -> None:
    # A weak symbol compiled for AVX2 could be the copy that the linker keeps for every processor.
    objects = list((failing_cuda[0] / "build").rglob("sampling_*.cpp.o"))
    assert objects
    for unit in objects:
        symbols = run("nm", "--defined-only", "--extern-only", unit).stdout.splitlines()
        assert [line.split()[-1] for line in symbols] == ["ts_" + unit.name.split(".")[0]]


def test_a_misspelt_setting_is_refused(tmp_path: Path) -> None:
    done, _ = build(tmp_path, TUNESMITH_NATIVE="maybe")
    assert done.returncode != 0
    assert "TUNESMITH_NATIVE=maybe: expected AUTO, ON or OFF" in done.stderr

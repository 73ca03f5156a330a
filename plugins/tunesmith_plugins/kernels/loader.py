"""Finds, checks and describes the native libraries. Imports no torch.

The libraries stand in ``_native/`` beside this file (or in the installed copy of the package when the sources are
used in place), with ``native.txt``, where the build wrote what it made and, where it made nothing, why.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import sysconfig
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ABI_VERSION = 8
"""The version of the C interface this file speaks; a library of another version is refused."""

TS_OK = 0
F32, BF16, F16, F64, I64 = range(5)

_SUFFIX = {"win32": ".dll"}.get(sys.platform, ".so")  # CMake modules end in .so on macOS too
_lock = threading.Lock()


class StepArgs(ctypes.Structure):
    """``ts_step`` of tunesmith.h."""

    _fields_ = [
        ("op", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("values", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("ids", ctypes.c_void_p),
        ("width", ctypes.c_int64),
        ("ids_stride", ctypes.c_int64),
        ("amounts", ctypes.c_void_p),
        ("amounts_stride", ctypes.c_int64),
        ("second", ctypes.c_void_p),
        ("second_stride", ctypes.c_int64),
    ]


class SampleArgs(ctypes.Structure):
    """``ts_sample_args`` of tunesmith.h."""

    _fields_ = [
        ("logits", ctypes.c_void_p),
        ("batch", ctypes.c_int64),
        ("vocab", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("greedy", ctypes.c_int32),
        ("steps", ctypes.POINTER(StepArgs)),
        ("step_count", ctypes.c_int64),
        ("seed", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
        ("position", ctypes.c_void_p),
        ("draw", ctypes.c_int64),
        ("history", ctypes.c_void_p),
        ("history_lengths", ctypes.c_void_p),
        ("history_width", ctypes.c_int64),
        ("token", ctypes.c_void_p),
        ("status", ctypes.c_void_p),
        ("logp_raw", ctypes.c_void_p),
        ("logp_processed", ctypes.c_void_p),
        ("logp_truncated", ctypes.c_void_p),
        ("out_logits", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("cuda_stream", ctypes.c_void_p),
        ("threads", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("top_count", ctypes.c_int64),
        ("top_raw_ids", ctypes.c_void_p),
        ("top_processed_ids", ctypes.c_void_p),
        ("top_truncated_ids", ctypes.c_void_p),
        ("top_raw", ctypes.c_void_p),
        ("top_processed", ctypes.c_void_p),
        ("top_truncated", ctypes.c_void_p),
    ]


class QuantizeArgs(ctypes.Structure):
    """``ts_quantize_args`` of tunesmith.h."""

    _fields_ = [
        ("x", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("q", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("zero_point", ctypes.c_void_p),
        ("cuda_stream", ctypes.c_void_p),
    ]


def _folders() -> list[Path]:
    # An editable install leaves the sources in place and puts what CMake built into site-packages.
    installed = Path(sysconfig.get_paths()["platlib"]) / "tunesmith_plugins" / "kernels"
    return [Path(__file__).parent / "_native", installed / "_native"]


def folder() -> Path | None:
    """Return the folder the build wrote to, or None if no build ran."""
    return next((path for path in _folders() if (path / "native.txt").is_file()), None)


def build_record() -> dict[str, str]:
    """Return what native.txt says, ``{"native": "built", "cuda": "absent (nvcc not found)"}``; empty without one."""
    where = folder()
    if where is None:
        return {}
    lines = (where / "native.txt").read_text(encoding="utf-8").splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines) if value}


class Library:
    """One opened library: its functions with their argument types, and its errors as Python exceptions."""

    def __init__(self, path: Path, prefix: str) -> None:
        """Open ``path`` and check its version.

        Raises:
            OSError: the file cannot be loaded, or speaks another version of the interface.
        """
        self.path = path
        self.on_device = prefix != "ts_"
        self._dll = ctypes.CDLL(str(path))
        try:
            version = self._function(f"{prefix}abi_version", ctypes.c_int32)
            self._last_error = self._function(f"{prefix}last_error", ctypes.c_char_p)
        except AttributeError as error:
            raise OSError(f"{path} is not a tunesmith library: {error}") from None
        if version() != ABI_VERSION:
            raise OSError(
                f"{path} has interface version {version()}, this tunesmith needs {ABI_VERSION}; "
                "reinstall tunesmith so that both come from one build"
            )
        self.sample = self._function(f"{prefix}sample", ctypes.c_int32, ctypes.c_void_p)
        self.quantize_rows = self._function(f"{prefix}quantize_rows", ctypes.c_int32, ctypes.c_void_p)
        if prefix == "ts_":
            sizes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
            self.int8_pack = self._function("ts_int8_pack", ctypes.c_int32, *sizes)
            self.isa_available = self._function("ts_isa_available", ctypes.c_char_p)
            self.isa_current = self._function("ts_isa_current", ctypes.c_char_p)
            self.isa_set = self._function("ts_isa_set", ctypes.c_int32, ctypes.c_char_p)
            self.use_team = self._function("ts_use_team", None, ctypes.c_void_p)
            words = (*(ctypes.c_void_p,) * 3, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)
            self.uniform = self._function("ts_uniform", ctypes.c_int32, *words)
            row = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
            self.exp_row = self._function("ts_exp_row", ctypes.c_int32, *row)
        else:
            work = (ctypes.c_int64, ctypes.c_int64, ctypes.c_int32, ctypes.c_int64, ctypes.c_int64)
            self.int8_workspace = self._function("ts_cuda_int8_workspace", ctypes.c_int64, *work)
            self.cublaslt = self._function("ts_cuda_cublaslt", ctypes.c_int32, ctypes.c_int32)
            size = (ctypes.c_int64,) * 3
            self.sample_workspace = self._function(f"{prefix}sample_workspace", ctypes.c_int64, *size)

    def address(self, name: str) -> int:
        """Return where a function of the library is, for :func:`words_call`."""
        return int(ctypes.cast(getattr(self._dll, name), ctypes.c_void_p).value or 0)

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self._dll, name)
        function.restype, function.argtypes = result, list(arguments)
        return function

    def check(self, code: int) -> None:
        """Raise what a status code other than TS_OK stands for.

        Raises:
            ValueError: an argument is out of range or of the wrong shape.
            MemoryError: the library could not allocate its work space.
            RuntimeError: anything else, such as an instruction set that is not available.
        """
        if code == TS_OK:
            return
        message = self._last_error().decode()
        raise {1: ValueError, 2: MemoryError}.get(code, RuntimeError)(message)


class _Slot:
    """A library that is opened when it is first asked for, or the reason why there is none."""

    def __init__(self, name: str, prefix: str, key: str) -> None:
        self.name, self.prefix, self.key = name, prefix, key
        self.library: Library | None = None
        self.reason: str | None = None
        self.tried = False

    def open(self) -> Library | None:
        if not self.tried:  # without the lock from the second call on; these calls are in the innermost loops
            with _lock:
                if not self.tried:
                    self.library, self.reason = self._find()
                    self.tried = True
        return self.library

    def _find(self) -> tuple[Library | None, str | None]:
        if os.environ.get("TUNESMITH_NATIVE", "").upper() == "OFF":
            return None, "off (TUNESMITH_NATIVE=OFF in the environment)"
        where = folder()
        if where is None:
            return None, "not built: no build record was found; reinstall tunesmith with pip"
        state = build_record().get(self.key, "unknown")
        path = where / f"lib{self.name}{_SUFFIX}"
        if not path.is_file():
            return None, state
        try:
            library = Library(path, self.prefix)
        except OSError as error:
            return None, f"{state}, but loading failed: {error}"
        if self.prefix == "ts_" and library.isa_current() is None:
            # Forced to an instruction set this processor lacks: silently using another would hide a mistake.
            library.check(3)
        if self.prefix == "ts_":
            library.use_team(_team_here())
        return library, None


_reference_chosen = False  # by set_isa
_team: int | None = None
_slots = {"cpu": _Slot("tunesmith", "ts_", "native"), "cuda": _Slot("tunesmith_cuda", "ts_cuda_", "cuda")}


def cpu() -> Library | None:
    """Return the CPU library, or None when the reference implementations serve (``info()`` says why).

    Raises:
        RuntimeError: TUNESMITH_ISA names an instruction set that is not available here.
    """
    if _reference_chosen:
        return None
    slot = _slots["cpu"]
    return slot.library if slot.tried else slot.open()  # looked at here: a call takes longer than the rest of this


def use_team(address: int | None) -> None:
    """Have the CPU library share work among an OpenMP library's threads, in this process; see ``ts_use_team``.

    Not in a forked process: the threads are its parent's, and OpenMP would wait for them for ever.

    Args:
        address: of ``GOMP_parallel``; None: threads of its own.
    """
    global _team
    with _lock:
        _team = address
        library = _slots["cpu"].library
        if library is not None:
            library.use_team(_team_here())


def _team_here() -> int | None:
    multiprocessing = sys.modules.get("multiprocessing")  # of a parent that had not imported the package
    forked = (
        multiprocessing is not None
        and multiprocessing.parent_process() is not None
        and multiprocessing.get_start_method(allow_none=True) not in ("spawn", "forkserver")
    )
    return None if forked or sys.modules[__package__].forked else _team


def cuda() -> Library | None:
    """Return the CUDA library, or None; asked for only when a tensor is on a CUDA device."""
    return _slots["cuda"].open()


class WordsCall(NamedTuple):
    """Calls of functions that take ``(const int64_t *words, int64_t count)``; both return the status code."""

    held: Callable[..., int]
    """``held(address, *words)``: ints, None (0) or floats (the bits of a double); for calls of a few microseconds."""
    released: Callable[..., int]
    """The same with the interpreter free for other threads meanwhile."""
    setup: Callable[..., None] | None
    """What :attr:`sample` needs, see call.cpp; None, like it, in a build from before there was one."""
    sample: Callable[..., Any] | None
    """A whole sampling call."""
    linear: Callable[..., Any] | None
    """A whole call of an int8 layer, after ``setup``."""
    linears: Callable[..., Any] | None
    """The same of several layers on one input, with what is fused around them."""
    attend: Callable[..., Any] | None
    """A whole call of attention over a cache, after ``setup``."""


def words_call() -> WordsCall | None:
    """Return the quick calls into the library if the build could make them; ctypes does the same more slowly."""
    where = folder()
    path = (
        None
        if where is None
        else where / ("tunesmith_call.pyd" if sys.platform == "win32" else "tunesmith_call.abi3.so")
    )
    if path is None or not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location("tunesmith_call", path)
    if spec is None or spec.loader is None:
        return None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError:  # built for another Python
        return None
    return WordsCall(
        module.call,
        module.call_released,
        getattr(module, "setup", None),
        getattr(module, "sample", None),
        getattr(module, "linear", None),
        getattr(module, "linears", None),
        getattr(module, "attend", None),
    )


_warned: set[str] = set()


def warn_fallback(device: str) -> None:
    """Say once per device type that the reference serves, and why."""
    if device in _warned or (_reference_chosen and device == "cpu"):
        return
    _warned.add(device)
    reason = (_slots[device].reason if device in _slots else None) or f"there are no kernels for {device}"
    warnings.warn(
        f"tunesmith's native {device} kernels are not in use ({reason}); the slower torch reference gives the same "
        "results. `tunesmith doctor` shows the state, docs/kernels.md the build settings.",
        RuntimeWarning,
        stacklevel=4,
    )


_when_chosen: list[Callable[[], None]] = []


def when_chosen(forget: Callable[[], None]) -> None:
    """Call ``forget`` whenever :func:`set_isa` chooses anew, for callers that keep a way into the library."""
    _when_chosen.append(forget)


def set_isa(name: str) -> None:
    """Choose what computes on the CPU for the whole process, mainly for tests.

    Args:
        name: one of ``info()["isa_available"]``, or ``"reference"`` for the torch reference.

    Raises:
        RuntimeError: the library is not loaded, or the name is not available here.
    """
    global _reference_chosen
    if name == "reference":
        _reference_chosen = True
    else:
        library = _slots["cpu"].open()
        if library is None:
            raise RuntimeError(f"the native library is not loaded: {_slots['cpu'].reason}")
        library.check(library.isa_set(name.encode()))
        _reference_chosen = False
    for forget in _when_chosen:  # after the choice: another thread may draw in between
        forget()


def info() -> dict[str, Any]:
    """Describe the native part, for ``tunesmith doctor`` and for tests.

    Returns:
        A dict with ``native`` (bool), ``path``, ``isa_available`` (list, slowest first), ``isa``, ``reason`` (why
        the CPU library is absent, else None), ``cuda_built`` (the build's word), ``cuda`` (bool: its library loaded),
        ``cuda_path``, ``cuda_reason``, ``cublaslt`` (bool: found, and used for int8 products on a CUDA device) and
        ``abi_version``.

    Raises:
        RuntimeError: TUNESMITH_ISA names an instruction set that is not available here.
    """
    library, gpu = (slot.open() for slot in _slots.values())
    return {
        "native": library is not None,
        "path": str(library.path) if library else None,
        "isa_available": library.isa_available().decode().split(",") if library else [],
        "isa": library.isa_current().decode() if library else None,
        "reason": _slots["cpu"].reason,
        "cuda_built": build_record().get("cuda", "unknown"),
        "cuda": gpu is not None,
        "cuda_path": str(gpu.path) if gpu else None,
        "cuda_reason": _slots["cuda"].reason,
        "cublaslt": gpu is not None and bool(gpu.cublaslt(-1)),
        "abi_version": ABI_VERSION,
    }

"""Which tensors may be read where they lie, and by which library."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from . import loader


def _plain(*tensors: Tensor | None) -> bool:
    """Whether the data of these tensors may be read right here, past the dispatcher."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return False
    return all(t is None or type(t) is Tensor or type(t) is torch.nn.Parameter for t in tensors)


def team_of_torch() -> int | None:
    """Return where the OpenMP library that torch runs on divides work among its threads, None where there is none."""
    if sys.platform != "linux":
        return None
    try:
        opened = ctypes.CDLL(
            str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"), os.RTLD_NOLOAD | os.RTLD_LAZY
        )
        return ctypes.cast(opened.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


loader.use_team(team_of_torch())


def _native(device: torch.device) -> loader.Library | None:
    library = loader.cpu() if device.type == "cpu" else loader.cuda() if device.type == "cuda" else None
    if library is None:
        loader.warn_fallback(device.type)
    return library


def _rows(x: Tensor) -> Tensor:
    """Return x as memory shows it: each row dense, and no sign that only torch knows of (as of a conjugate's imaginary part)."""
    x = x.resolve_neg()
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()

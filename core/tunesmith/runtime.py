"""The runtime: where and how a heavy method works. Plain values, so that making one imports no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from attrs import evolve, field, frozen

from tunesmith.errors import ConfigError
from tunesmith.given import whole
from tunesmith.typecheck import check_fields

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def _seed(value: Any) -> int:
    return whole(value, "seed", "runtime")


def _threads(value: Any) -> int:
    return whole(value, "threads", "runtime")


def _device(value: Any) -> Any:
    torch = sys.modules.get("torch")  # whoever has such a device has imported it
    return str(value) if torch is not None and isinstance(value, torch.device) else value


def _folder(value: Any) -> Any:
    return Path(value) if isinstance(value, (str, os.PathLike)) else value


@frozen(kw_only=True)
class Runtime:
    """Handed to every heavy method.

    Attributes:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` ..., or such a ``torch.device``.
        dtype: Floating-point type of the weights while they are used; ``"auto"`` keeps what the model folder says.
        seed: The seed of whatever is random in the method.
        threads: torch's intra-op threads; 0 leaves torch's own choice.
        folder: A folder that survives an interruption; checkpoints go here. None: nothing is kept.
        offline: No hub is asked for anything.
        allow_code: Components may run Python code that a configuration names.
        progress: Show progress bars (they are silent when standard error is not a terminal).

    Raises:
        ConfigError: If a value has the wrong type, or ``threads`` is negative.
    """

    device: str = field(default="cpu", converter=_device)
    dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "float32"
    seed: int = field(default=0, converter=_seed)
    threads: int = field(default=0, converter=_threads)
    folder: Path | None = field(default=None, converter=_folder)
    offline: bool = field(factory=lambda: os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"))
    allow_code: bool = False
    progress: bool = True

    def __attrs_post_init__(self) -> None:
        try:
            check_fields(self)
        except TypeError as cause:
            raise ConfigError([str(cause).removeprefix("Runtime: ")], "runtime") from None
        if self.threads < 0:
            raise ConfigError([f"threads must be at least 0, not {self.threads}"], "runtime")

    @property
    def torch_dtype(self) -> torch.dtype | Literal["auto"]:
        """The torch dtype, or ``"auto"``."""
        if self.dtype == "auto":
            return "auto"
        import torch

        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def evolve(self, **changes: Any) -> Runtime:
        """Return a copy with the named attributes changed."""
        return evolve(self, **changes)

    @contextmanager
    def activated(self) -> Iterator[None]:
        """Seed Python, numpy and torch and set torch's threads; puts the thread count back afterwards."""
        import random

        import numpy as np
        import torch

        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)
        torch.manual_seed(self.seed)
        before = torch.get_num_threads()
        if self.threads:
            torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield ``items`` with a progress bar on standard error when that is a terminal."""
        if not (self.progress and sys.stderr.isatty()):
            yield from items
            return
        from rich.console import Console
        from rich.progress import track

        yield from track(items, description=description, total=total, console=Console(stderr=True), transient=True)


def checked(runtime: Any, where: str) -> Runtime | None:
    """Return a runtime or None as it is.

    Raises:
        ConfigError: For anything else, such as the name of a device; ``where`` stands before it.
    """
    if runtime is not None and not isinstance(runtime, Runtime):
        raise ConfigError(
            [f"runtime: a tunesmith.Runtime was expected, as Runtime(device='cuda'), not {runtime!r}"], where
        )
    return runtime


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a seed in [0, 2**63) that depends on ``seed`` and the names and on nothing else."""
    import hashlib

    text = "\0".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1

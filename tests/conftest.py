"""What all tests share: where real data is, and which tests run when."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell's background jobs ignore Ctrl-C and so would every process they start, those included that tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Collect without the collector of garbage: of thousands of tests nothing is garbage, and looking takes a third of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


LONG = ("test_kill.py", "test_demo.py", "test_native_build.py")
"""Files of few tests that take a minute. They begin, so that no process is left with one of them when the others are done."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, saying why, what cannot run here; leave out what is exhaustive unless ``-m exhaustive`` asks for it."""
    items.sort(key=lambda item: item.path.name not in LONG)
    asked = config.getoption("-m") or ""
    without_data = pytest.mark.skip(reason="TUNESMITH_DATA is not set: real data and models are not at hand")
    exhaustive = pytest.mark.skip(reason="exhaustive: run by hand with -m exhaustive")
    for item in items:
        if "realdata" in item.keywords and not os.environ.get("TUNESMITH_DATA"):
            item.add_marker(without_data)
        if "exhaustive" in item.keywords and "exhaustive" not in asked:
            item.add_marker(exhaustive)
        if "gpu" in item.keywords:
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="module", autouse=True)
def garbage_of_its_own() -> None:
    """Let the collector look at what a file's own tests make alone.

    Every stage ends in a collection, and one of all modules and of the thousands of tests that pytest holds takes half a
    second, more than most tests.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Return the folder that TUNESMITH_DATA names (``data/`` and ``models/`` inside); for tests marked ``realdata``."""
    folder = os.environ.get("TUNESMITH_DATA")
    if not folder:
        pytest.skip("TUNESMITH_DATA is not set: real data and models are not at hand")
    return Path(folder)


@pytest.fixture(scope="session")
def real_models(data_root: Path) -> Path:
    """Return the folder of the real tiny models."""
    return data_root / "models"


@pytest.fixture(scope="session")
def real_data(data_root: Path) -> Path:
    """Return the folder of the real data sets."""
    return data_root / "data"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: with tiny tensors more of them only get in each other's way."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

"""The bars of the libraries underneath follow our own rule: they are shown where somebody can watch them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bars(shown: bool) -> Iterator[None]:
    """Within, hub downloads and transformers show progress bars only if ``shown``; puts their setting back."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    # transformers takes over the hub's setting when it is imported, which may be within a stage
    disable_progress_bars()
    if "transformers" in sys.modules:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    try:
        yield
    finally:
        enable_progress_bars()
        if "transformers" in sys.modules:
            from transformers.utils.logging import enable_progress_bar

            enable_progress_bar()

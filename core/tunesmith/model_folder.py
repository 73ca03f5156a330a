"""A folder that a model is saved to, in which another one may be already.

What loads a model reads whatever is there under certain names, so a file that an earlier model left would become part of the
next one.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith.errors import ConfigError
from tunesmith.writable import check_folder

log = logging.getLogger("tunesmith")

TOKENIZER_FILES = (
    "tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
"""A folder with one of these has a tokenizer."""
_WITH_TOKENIZERS = (
    *TOKENIZER_FILES,
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_ADAPTER = "adapter_config.json"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|generation_config\.json")


def weight_bytes(folder: Path) -> int:
    """Return the bytes of the weight files in a folder and in those within it; of an adapter, without those of a base elsewhere."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def check_place(folder: Path, where: str) -> None:
    """Check that a model can be saved to ``folder``, which need not be there yet.

    Args:
        folder: The place.
        where: Who is going to save it, at the head of messages.

    Raises:
        ConfigError: As :func:`~tunesmith.writable.check_folder`, or if it holds an adapter of peft's, which
            ``from_pretrained`` would put on any model in it.
    """
    check_folder(folder, "the model is saved", "save", where)
    if (folder / _ADAPTER).is_file():
        raise ConfigError(
            [
                f"{folder} holds an adapter ({_ADAPTER}), which from_pretrained would put on the model that is saved there; "
                "give another folder, or take the adapter out of this one @ save"
            ],
            where,
        )


@contextmanager
def replaced(folder: Path, tokenizer: bool) -> Iterator[Path]:
    """Yield an empty folder within ``folder``; what is written there takes the place of the model that was in ``folder``.

    Nothing has changed if writing fails. Of the former model its weights go, with those of its other files that a model is
    loaded with; files of any other name stay.

    Args:
        folder: Made if it is not there.
        tokenizer: Whether one is written. If not, one that is there stays, and a warning says so.

    Raises:
        ConfigError: As :func:`check_place`.
    """
    check_place(folder, "LM.save")
    folder.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        yield fresh
        written = {path.name for path in fresh.iterdir()}
        for path in list(folder.iterdir()):
            former = _WEIGHTS.fullmatch(path.name) or (tokenizer and path.name in _WITH_TOKENIZERS)
            if path.is_file() and former and path.name not in written:
                path.unlink()
        for path in fresh.iterdir():
            if (folder / path.name).is_dir():
                shutil.rmtree(folder / path.name)
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(fresh)
    kept = [] if tokenizer else [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if kept:
        log.warning(
            "the tokenizer that was in %s (%s) stays, and will be loaded with the model, which came without one.",
            folder,
            kept[0],
        )

"""Where the demo's models lie."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

FOLDER = Path(__file__).parent / "models"


def model_path(name: Literal["seq2seq", "encoder"]) -> Path:
    """The folder of a carried model, for `from_pretrained` (with `dtype=torch.float32`) or a pipeline's `model`.

    Args:
        name: "seq2seq" (a T5-type encoder-decoder that writes summaries) or "encoder" (a BERT-type encoder, the start
            of reward models and classifiers).

    Raises:
        FileNotFoundError: if the training script has not written it.
    """
    folder = FOLDER / name
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"no model {name!r} in {FOLDER}: `python -m tunesmith_plugins.starter.train` writes 'seq2seq' and 'encoder'"
        )
    return folder

"""Checksums of the tensors of a saved int8 model, which find what was changed and still looks like a model.

CRC-32 (``zlib.crc32``) of the bytes as safetensors stores them: it finds every change of up to 32 bits in a row and all but
one in 4 billion others. It guards against accidents and carelessness, not against somebody who computes it anew.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from tunesmith.errors import ArtifactError

LAYOUT = "quantization_config"
"""The name under which the checksum of the rest of the config stands among those of tensors."""
SAME = "as "
"""Before the name of another tensor: the two are one in memory, and files keep one of them."""
BLOCK = 2**20
"""Bytes that are read at a time."""


def of_state(model: Any, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the checksums of what ``save_pretrained`` makes of a model's state, or none if some of it is on another machine's
    or disk's side (the device ``"meta"``)."""
    if any(tensor.device.type == "meta" for tensor in state.values()):
        return {}
    left_out = set(model._keys_to_ignore_on_save or ())
    kept = {name: tensor for name, tensor in state.items() if name not in left_out}
    found: dict[str, str] = {}
    places: dict[tuple[Any, ...], str] = {}
    for name, tensor in revert_weight_conversion(model, kept).items():
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        first = places.setdefault(place, name) if tensor.numel() else name
        found[name] = _told(_crc(tensor)) if first == name else SAME + first
    return found


def of_layout(fields: Mapping[str, Any]) -> str:
    """Return the checksum of a config's other fields."""
    return _told(zlib.crc32(json.dumps(fields, sort_keys=True).encode()))


def check(written: Mapping[str, str], fields: Mapping[str, Any], files: Sequence[str]) -> None:
    """Compare files, and the fields of the config, with the checksums that were taken when they were written.

    Raises:
        ArtifactError: At the first tensor that is another one, that is missing, or that nobody wrote.
    """
    meant = (
        "Make the model again; if the change was meant, take 'checksums' out of quantization_config in config.json and "
        "nothing will be compared."
    )
    if written.get(LAYOUT) != of_layout(fields):
        raise ArtifactError(f"config.json: quantization_config is not as it was written. {meant}")
    first = {name: told.removeprefix(SAME) if told.startswith(SAME) else name for name, told in written.items()}
    found: set[str] = set()
    for file in files:
        for name, checksum in _of_file(file):
            if checksum != written.get(first.get(name, name)):
                what = "is not as it was written" if name in written else "was not there when the model was written"
                raise ArtifactError(f"{file}: the tensor {name!r} {what}. {meant}")
            found.add(first[name])
    missing = [name for name in written if first[name] not in found and name != LAYOUT]
    if missing:
        raise ArtifactError(f"{files[0]}: the tensor {missing[0]!r} is missing. {meant}")


def _crc(tensor: Tensor) -> int:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return zlib.crc32(flat.view(torch.uint8).numpy().data) if len(flat) else 0


def _of_file(path: str) -> Iterator[tuple[str, str]]:
    """Yield names and checksums, reading past the mapped pages, so that they do not all stay in memory."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, end = entry["data_offsets"]
            file.seek(8 + length + start)
            crc, left = 0, end - start
            while left:
                block = file.read(min(left, BLOCK))
                crc, left = zlib.crc32(block, crc), left - len(block)
            yield name, _told(crc)


def _told(crc: int) -> str:
    return f"{crc:08x}"

"""Checkpoints that survive ``kill -9`` at any moment, and states that need no pickle.

Own training loops use :class:`Checkpoints`. The trainers of transformers write into a folder that is visible while it
is being written, so a stage that uses one seals every checkpoint when it is complete (:func:`seal` or
:func:`sealing_callback`) and resumes from :func:`newest_sealed` only.
"""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from tunesmith import manifest
from tunesmith.errors import ArtifactError

if TYPE_CHECKING:
    from transformers import TrainerCallback

_STEP = re.compile(r"step-(\d{8,})")
_TRAINER = re.compile(r"checkpoint-(\d+)")
_HALF = re.compile(r"\..*\.writing-.*")


@frozen
class Checkpoint:
    """A whole checkpoint.

    Attributes:
        step: The step it was saved at.
        folder: Where its files are.
    """

    step: int
    folder: Path


class Checkpoints:
    """The checkpoints of one method in one folder.

    Args:
        folder: Made when the first checkpoint is saved. Usually ``runtime.folder`` or a folder in it.
        keep: So many newest ones are kept, at least one.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.folder = Path(folder)
        self.keep = keep

    def save(self, step: int, write: Callable[[Path], None]) -> Path:
        """Make the checkpoint of ``step`` and return its folder; older ones beyond ``keep`` are removed afterwards.

        Args:
            step: Not negative.
            write: Is given an empty folder and writes everything into it. It may not keep the path: the folder is
                renamed when it is whole.

        Raises:
            ValueError: For a negative step.
        """
        if step < 0:
            raise ValueError(f"step must not be negative: {step}")
        target = self.folder / f"step-{step:08d}"
        manifest.build(target, write, {"kind": "checkpoint", "step": step})
        for _, old in sorted(_numbered(self.folder, _STEP))[: -self.keep]:
            manifest.remove(old)
        return target

    def newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None. Half-written and damaged ones are removed."""
        _sweep(self.folder)
        return _newest(self.folder, _STEP)

    def clear(self) -> None:
        """Remove all of them."""
        _sweep(self.folder)
        for _, folder in _numbered(self.folder, _STEP):
            manifest.remove(folder)


def seal(folder: Path) -> None:
    """Declare that a folder is completely written: flush it to the disk and write its manifest.

    For what a transformers trainer has saved. Keep at least two checkpoints (``save_total_limit=2`` or more): the
    trainer removes old ones before the new one can be sealed.
    """
    manifest.write(Path(folder), {"kind": "checkpoint"})


def newest_sealed(folder: Path) -> Path | None:
    """Return the newest ``checkpoint-<step>`` of a trainer's output folder that was sealed and is unchanged, or None.

    The others are removed, so that the trainer itself cannot come across a half-written one.
    """
    found = _newest(Path(folder), _TRAINER)
    return found.folder if found else None


def sealing_callback() -> TrainerCallback:
    """Return a ``TrainerCallback`` that seals every checkpoint when the trainer has saved it."""
    from accelerate import PartialState
    from transformers import TrainerCallback

    class Sealing(TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if args.world_size > 1:  # each process writes its random state
                PartialState().wait_for_everyone()
            if state.is_world_process_zero:
                seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Sealing()


@contextmanager
def saving_quietly() -> Iterator[None]:
    """Keep transformers from warning that checkpoints are saved within one second of each other."""
    logger = logging.getLogger("transformers.trainer_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def save_random(folder: Path, name: str = "random") -> None:
    """Write the states of Python's, numpy's and torch's global generators into ``folder``, every CUDA device's too.

    ``name`` is that of the files; processes that write into one folder need one each.
    """
    import numpy as np
    import torch

    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    save_tree(
        folder,
        name,
        {
            "python": [version, list(words), gauss],
            "numpy": [str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
    )


def load_random(folder: Path, name: str = "random") -> None:
    """Put back the states that :func:`save_random` wrote.

    CUDA states are put back for as many devices as both sides have.
    """
    import numpy as np
    import torch

    state = load_tree(folder, name)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, value in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
            torch.cuda.set_rng_state(value, device)


def save_tree(folder: Path, name: str, tree: Any) -> None:
    """Write nested dicts, lists and tuples of tensors and plain values without pickle, e.g. an optimizer's state.

    Makes ``<name>.json`` and ``<name>.safetensors``. Dict keys are str or int. Tuples come back as tuples; floats and
    tensors come back bit for bit. Tensors come back on the CPU.

    Raises:
        TypeError: For anything else in the tree, naming the place.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    shape = _flatten(tree, name, tensors)
    text = json.dumps(shape)
    save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def load_tree(folder: Path, name: str) -> Any:
    """Return what :func:`save_tree` wrote.

    Raises:
        ArtifactError: If the files are missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        shape = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        return _unflatten(shape, load_file(folder / f"{name}.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as cause:
        raise ArtifactError(f"{folder / name}.json or .safetensors cannot be read: {cause}") from cause


def _flatten(value: Any, place: str, tensors: dict[str, Any]) -> Any:
    """Return ``[tag, content]`` with every tensor replaced by its key in ``tensors``."""
    import torch

    if isinstance(value, torch.Tensor):
        key = f"t{len(tensors)}"
        tensors[key] = value.detach().cpu().contiguous().clone()
        return ["tensor", key]
    if value is None or isinstance(value, (bool, int, float, str)):
        return ["value", value]
    if isinstance(value, (list, tuple)):
        tag = "list" if isinstance(value, list) else "tuple"
        return [tag, [_flatten(item, f"{place}[{index}]", tensors) for index, item in enumerate(value)]]
    if isinstance(value, dict) and all(type(key) in (str, int) for key in value):
        return ["dict", [[key, _flatten(item, f"{place}[{key!r}]", tensors)] for key, item in value.items()]]
    raise TypeError(f"{place} is a {type(value).__name__}; only tensors, plain values, dicts, lists, tuples are kept.")


def _unflatten(shape: Any, tensors: dict[str, Any]) -> Any:
    tag, content = shape
    if tag == "tensor":
        return tensors[content]
    if tag == "value":
        return content
    if tag == "dict":
        return {key: _unflatten(item, tensors) for key, item in content}
    items = [_unflatten(item, tensors) for item in content]
    return items if tag == "list" else tuple(items)


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    matches = ((pattern.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir())
    return [(int(match[1]), path) for match, path in matches if match]


def _newest(folder: Path, pattern: re.Pattern[str]) -> Checkpoint | None:
    best: Checkpoint | None = None
    for step, path in sorted(_numbered(folder, pattern), reverse=True):
        # once a good one is found the older ones are only spares, for which a glance at the sizes is enough
        if manifest.problems(path, hashes=best is None):
            shutil.rmtree(path)
        elif best is None:
            best = Checkpoint(step, path)
    return best


def _sweep(folder: Path) -> None:
    """Remove what an interruption of :meth:`Checkpoints.save` left."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_dir() and _HALF.fullmatch(path.name):
                shutil.rmtree(path)

"""Which layers a compressor works on, and what a model weighs."""

from __future__ import annotations

from collections.abc import Iterator, Set

from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.compression import no_teacher
from tunesmith.errors import ConfigError
from tunesmith.kinds.adapter import PreparesCompression, SupportsMerge
from tunesmith.kinds.adapter import merged as fold
from tunesmith.kinds.compressor import CompressorConfig
from tunesmith.lm import LM


def linear_layers(model: nn.Module, skip: tuple[str, ...] = ()) -> Iterator[tuple[str, nn.Linear | Conv1D]]:
    """Yield (name, layer) of every linear layer with weights of its own that no pattern of ``skip`` names.

    A head whose weight is the embedding matrix is left out: changing it would change the embeddings.

    Raises:
        ConfigError: If a pattern of ``skip`` names nothing in the model.
    """
    named = [name for name, _ in model.named_modules()]
    unused = sorted(pattern for pattern in skip if not any(names(pattern, name) for name in named))
    if unused:
        linear = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
        known = ", ".join(linear[:5])
        raise ConfigError(
            [
                f"skip: nothing in the model is named by {pattern!r}; its linear layers are {known} ..."
                for pattern in unused
            ]
        )
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, Conv1D)) or id(module.weight) in embeddings:
            continue
        if not any(names(pattern, name) for pattern in skip):
            yield name, module


def names(pattern: str, name: str) -> bool:
    """True if ``pattern`` is a run of whole dotted parts of ``name``; the empty one names nothing, not even the whole model."""
    return bool(pattern) and f".{pattern}." in f".{name}."


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes of all weights as ``save_pretrained`` stores them: shared tensors once, buffers that are saved included."""
    seen: dict[int, int] = {}
    left_out = getattr(model, "_keys_to_ignore_on_save", None) or ()  # positions that Marian computes
    for place, module in model.named_modules():
        passing = module._non_persistent_buffers_set
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if name not in passing and f"{place}.{name}" not in left_out:
                # a packed weight leaves a tensor of its size without data
                where = id(tensor) if tensor.device.type == "meta" else tensor.data_ptr()
                seen[where] = tensor.numel() * tensor.element_size()
    return sum(seen.values())


def let_go_of_files(model: nn.Module, except_for: Set[str] = frozenset()) -> None:
    """Copy the tensors of ``model``, but for those named.

    What was loaded lies in the mapped file, and the smallest norm keeps a whole shard in memory when all else of it is gone.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name not in except_for and tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()


def merged(lm: LM, method: str, compressor: CompressorConfig | None = None, teacher: LM | None = None) -> LM:
    """Return ``lm`` with its adapters folded into the weights, since a compressor works on the weights themselves.

    Args:
        lm: The model.
        method: What is going to be done, for messages.
        compressor: For adapters that have trained the weights for one.
        teacher: What ``compress`` was given, where it has no use for one; ``ts.compress`` and the stage refuse one before they load
            a model, and whoever calls a compressor directly hears of it here.

    Raises:
        ConfigError: If there is a teacher, naming the first adapter that cannot be merged, or if the weights are quantized already.
    """
    if teacher is not None:
        raise no_teacher(method)
    if getattr(lm.model, "is_quantized", False):
        raise ConfigError([f"the model is quantized already; start {method} from the model before that"])
    preparing = [a for a in lm.adapters if isinstance(a, PreparesCompression) and compressor is not None]
    for adapter in lm.adapters:
        if adapter not in preparing and not isinstance(adapter, SupportsMerge):
            raise ConfigError(
                [
                    f"{method} works on weights, and {type(adapter.config).__name__} cannot be merged into them. "
                    "Compress the model before this adapter is trained, or use an adapter that merges (lora, ia3)"
                ]
            )
    for adapter in preparing:
        assert compressor is not None
        lm = adapter.prepared(lm, compressor)
    return fold(lm)

"""Which linear layers adapters act on, by the names that architectures give them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from attrs import frozen
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ConfigError


@frozen
class Names:
    """An architecture's names (ends of paths) of its linear layers.

    ``attention`` and ``cross`` are the output projections of self- and cross-attention; ``inner`` is a first and ``outer`` the
    last layer of the feed-forward part.
    """

    query_value: tuple[str, ...]
    key_value: tuple[str, ...]
    attention: str
    inner: tuple[str, ...]
    outer: str
    cross: str = ""


ARCHITECTURES = (
    Names(("SelfAttention.q", "EncDecAttention.q", "SelfAttention.v", "EncDecAttention.v"),
          ("SelfAttention.k", "EncDecAttention.k", "SelfAttention.v", "EncDecAttention.v"),
          "SelfAttention.o", ("DenseReluDense.wi", "DenseReluDense.wi_0"), "DenseReluDense.wo", "EncDecAttention.o"),
    Names(("q_proj", "v_proj"), ("k_proj", "v_proj"), "self_attn.out_proj", ("fc1",), "fc2", "encoder_attn.out_proj"),
    Names(("q_proj", "v_proj"), ("k_proj", "v_proj"), "self_attn.o_proj", ("mlp.gate_proj",), "mlp.down_proj"),
    Names(("q_lin", "v_lin"), ("k_lin", "v_lin"), "attention.out_lin", ("ffn.lin1",), "ffn.lin2"),
    Names(("c_attn",), ("c_attn",), "attn.c_proj", ("mlp.c_fc",), "mlp.c_proj", "crossattention.c_proj"),
    Names(("query", "value"), ("key", "value"), "attention.output.dense", ("intermediate.dense",), "output.dense"),
)  # fmt: skip
"""T5, BART and Pegasus, Llama and its kin, DistilBERT, GPT-2, BERT and RoBERTa."""


def linears(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Return the linear layers of a model by their plain paths (as they are without adapters of peft)."""
    return {
        name.replace(".base_layer", ""): module
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) or hasattr(module, "in_features")
        if not _of_adapter(name)
    }


def names_of(model: Any) -> Names:
    """Return the names of a model's architecture.

    Raises:
        ConfigError: If the architecture is not known here.
    """
    paths = list(linears(model))
    for names in ARCHITECTURES:
        if any(ends(path, (names.attention,)) for path in paths) and any(ends(path, (names.outer,)) for path in paths):
            return names
    shown = sorted({path.rsplit(".", 1)[-1] for path in paths})
    kind = getattr(model.config, "model_type", type(model).__name__)
    raise ConfigError(
        [f"the layers of {kind!r} models are not known to this adapter; they are called {shown}"], "adapter"
    )


def ends(path: str, names: Iterable[str]) -> bool:
    """Say whether a path is, or ends with, one of the names."""
    return any(path == name or path.endswith("." + name) for name in names)


def check(model: Any, targets: Sequence[str]) -> None:
    """Check that every target names a linear layer.

    Raises:
        ConfigError: Naming the wrong ones and what is close.
    """
    paths = list(linears(model))
    known = sorted({path.rsplit(".", 1)[-1] for path in paths})
    problems = [] if targets else [f"name the linear layers to adapt; there are {', '.join(known)} @ targets"]
    for target in targets:
        if not any(ends(path, (target,)) for path in paths):
            close = difflib.get_close_matches(target, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
            problems.append(f"no linear layer is called {target!r}{hint} @ targets")
    if problems:
        raise ConfigError(problems, "adapter")


def _of_adapter(name: str) -> bool:
    return any(part.startswith(("tunesmith_", "lora_", "ia3_")) for part in name.split("."))

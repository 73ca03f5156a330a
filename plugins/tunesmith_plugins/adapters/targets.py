"""Which linear layers adapters act on, by the names that architectures give them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from attrs import frozen
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ConfigError

QUERIES = ("q_proj", "q", "query", "q_lin", "query_proj", "q_b_proj", "Wq")
KEYS = ("k_proj", "k", "key", "k_lin", "key_proj", "kv_b_proj", "Wk")
VALUES = ("v_proj", "v", "value", "v_lin", "value_proj", "kv_b_proj", "Wv")
TOGETHER = ("qkv_proj", "query_key_value", "c_attn", "Wqkv")
"""What projections are called that make queries, keys and values; ``kv_b_proj``, of latent attention, makes two of them."""


@frozen
class Names:
    """An architecture's names (ends of paths) of its linear layers.

    ``attention`` and ``cross`` are the output projections of self- and cross-attention; ``inner`` is a first and ``outer`` the
    last layer of the feed-forward part.
    """

    attention: tuple[str, ...]
    inner: tuple[str, ...]
    outer: str
    cross: str = ""

    def is_outer(self, path: str) -> bool:
        """Say whether a path is that of a feed-forward part's last layer; BERT's attention has layers that end like it."""
        return ends(path, (self.outer,)) and not ends(path, (*self.attention, self.cross or self.attention[0]))


ARCHITECTURES = (
    # T5; BART, Pegasus, OPT; Llama and its kin; DistilBERT; GPT-2; BERT, RoBERTa, DeBERTa-v2
    Names(("SelfAttention.o",), ("DenseReluDense.wi", "DenseReluDense.wi_0"), "DenseReluDense.wo", "EncDecAttention.o"),
    Names(("self_attn.out_proj",), ("fc1",), "fc2", "encoder_attn.out_proj"),
    Names(("self_attn.o_proj",), ("mlp.gate_proj", "mlp.gate_up_proj", "mlp.up_proj"), "mlp.down_proj"),
    Names(("attention.out_lin",), ("ffn.lin1",), "ffn.lin2"),
    Names(("attn.c_proj",), ("mlp.c_fc",), "mlp.c_proj", "crossattention.c_proj"),
    Names(("attention.output.dense",), ("intermediate.dense",), "output.dense", "crossattention.output.dense"),
    # GPT-NeoX, Bloom and Falcon, Persimmon; GPT-J, CodeGen; GPT-Neo; Starcoder2; Phi; MPT; NanoChat
    Names(("attention.dense", "self_attention.dense", "self_attn.dense"), ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
    Names(("attn.out_proj",), ("mlp.fc_in",), "mlp.fc_out"),
    Names(("attention.out_proj",), ("mlp.c_fc",), "mlp.c_proj"),
    Names(("self_attn.o_proj",), ("mlp.c_fc",), "mlp.c_proj"),
    Names(("self_attn.dense",), ("mlp.fc1",), "mlp.fc2"),
    Names(("attn.out_proj",), ("ffn.up_proj",), "ffn.down_proj"),
    Names(("self_attn.o_proj",), ("mlp.fc1",), "mlp.fc2"),
    # Bamba, Falcon-H1; LFM2; ModernBERT; ALBERT
    Names(("self_attn.o_proj",), ("feed_forward.gate_proj", "feed_forward.gate_up_proj"), "feed_forward.down_proj"),
    Names(("self_attn.out_proj", "self_attn.o_proj"), ("feed_forward.w1",), "feed_forward.w2"),
    Names(("attn.Wo",), ("mlp.Wi",), "mlp.Wo"),
    Names(("attention.dense",), ("ffn",), "ffn_output"),
)  # fmt: skip


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
        ConfigError: If the architecture is not known here, or its feed-forward parts are not linear layers.
    """
    paths = list(linears(model))
    if any(parameter.dim() == 3 and ".experts." in name for name, parameter in model.named_parameters()):
        raise _unknown(model, paths, "its feed-forward parts are experts in one tensor, and ")
    for names in ARCHITECTURES:
        if any(ends(path, names.attention) for path in paths) and any(names.is_outer(path) for path in paths):
            return names
    raise _unknown(model, paths, "")


def query_value(model: Any) -> list[str]:
    """Return the names of the projections that make queries and values.

    Raises:
        ConfigError: If none are known.
    """
    return _projections(model, QUERIES, VALUES)


def key_value(model: Any) -> list[str]:
    """Return the names of the projections that make keys and values, and queries too in models that make them together.

    Raises:
        ConfigError: If none are known.
    """
    return _projections(model, KEYS, VALUES)


def _projections(model: Any, first: Sequence[str], second: Sequence[str]) -> list[str]:
    paths = list(linears(model))
    found = [[name for name in names if any(ends(p, (name,)) for p in paths)] for names in (first, second, TOGETHER)]
    if not found[2] and not (found[0] and found[1]):
        raise _unknown(model, paths, "")
    return sorted({name for names in found for name in names})


def _unknown(model: Any, paths: Sequence[str], why: str) -> ConfigError:
    shown = ", ".join(sorted({path.rsplit(".", 1)[-1] for path in paths}))
    kind = getattr(model.config, "model_type", type(model).__name__)
    return ConfigError(
        [
            f"the layers of {kind!r} models are not known to this adapter: {why}its linear layers are called {shown}; choose among "
            "them with lora(targets=[...]) or ia3(targets=[...])"
        ],
        "adapter",
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

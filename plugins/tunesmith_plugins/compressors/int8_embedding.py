"""Token embeddings in int8, and what shares their weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tunesmith_plugins import kernels
from tunesmith_plugins.compressors.int8_weight import RUNS_IN, Int8Weight, float_linear, in_float32, quantize


class Int8Embedding(Int8Weight):
    """A table of int8 rows with a scale each; a lookup dequantizes the rows it fetches and no others.

    Attributes:
        embed_scale: What rows are multiplied by, as in models that scale their embeddings.
        empty: No numbers of the type of what comes out. It is in no file: models are asked for the type and device of their
            parameters, and of OLMo's all others are integers.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        embed_scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
        device: Any = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, device=device)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx, self.embed_scale = padding_idx, embed_scale
        self.empty = nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)

    @classmethod
    def like(cls, layer: nn.Embedding, device: Any = None) -> Int8Embedding:
        """Return an empty one with the settings of ``layer``."""
        scale = float(getattr(layer, "scalar_embed_scale", getattr(layer, "embed_scale", 1.0)))
        return cls(
            layer.num_embeddings, layer.embedding_dim, layer.padding_idx, scale, layer.weight.dtype, device=device
        )

    @classmethod
    def from_float(cls, layer: nn.Embedding) -> Int8Embedding:
        """Quantize the rows of ``layer``."""
        made = cls.like(layer, device="meta")
        made.weight, made.weight_scale = quantize(layer.weight)
        made.dtype = layer.weight.dtype
        return made

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of what comes out; it follows a cast of the model."""
        return self.empty.dtype

    @dtype.setter
    def dtype(self, value: torch.dtype) -> None:
        """Also puts it where the integers are."""
        self.empty = nn.Parameter(torch.empty(0, dtype=value, device=self.weight_scale.device), requires_grad=False)

    def look_up(self, ids: Tensor, embed_scale: float) -> Tensor:
        """Return (..., embedding_dim) for ids (...), with a factor of the caller's own."""
        if self._packed is None:
            rows = self.weight_int8()[ids]
        else:
            rows = packed_rows(self._packed, ids)
        return (rows * (self.weight_scale[ids] * embed_scale).unsqueeze(-1)).to(self.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (..., embedding_dim) for ids (...)."""
        return self.look_up(ids, self.embed_scale)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[f"{prefix}empty"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict | {f"{prefix}empty": self.empty}, prefix, *rest)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class _Tied(nn.Module):
    """Something that uses the integers of an embedding elsewhere in the model and keeps none of its own.

    The embedding is not a submodule, so its tensors have one name in files.

    Attributes:
        place: As that of an Int8Weight.
    """

    place: str = ""

    def __init__(self, source: Int8Embedding) -> None:
        super().__init__()
        self._source = (source,)

    @property
    def source(self) -> Int8Embedding:
        """The embedding."""
        return self._source[0]

    @property
    def weight(self) -> Tensor:
        """See :class:`~tunesmith_plugins.compressors.int8_weight.Int8Weight`."""
        return self.source.weight

    @weight.setter
    def weight(self, value: Tensor) -> None:
        """Accept what is there already: models tie their weights again and again."""
        if getattr(value, "layer", None) is not self.source and value is not self.source.weight:
            raise AttributeError("this layer has the int8 weight of the embedding; it cannot have another one")

    @property
    def weight_scale(self) -> Tensor:
        """The embedding's."""
        return self.source.weight_scale


class Int8TiedEmbedding(_Tied):
    """Another place where the same rows are looked up, with a factor of its own."""

    def __init__(self, source: Int8Embedding, layer: Int8Embedding) -> None:
        super().__init__(source)
        self.num_embeddings, self.embedding_dim = source.num_embeddings, source.embedding_dim
        self.padding_idx, self.embed_scale = layer.padding_idx, layer.embed_scale

    def forward(self, ids: Tensor) -> Tensor:
        """Return (..., embedding_dim) for ids (...)."""
        return self.source.look_up(ids, self.embed_scale)


class Int8TiedLinear(_Tied):
    """A head whose weight is the embedding's.

    Attributes:
        bias: (out_features,) or None; its own.
        mode: ``"dynamic"`` or ``"weight_only"``.
    """

    def __init__(self, source: Int8Embedding, bias: nn.Parameter | None, mode: str) -> None:
        super().__init__(source)
        self.in_features, self.out_features = source.embedding_dim, source.num_embeddings
        self.bias = bias
        self.mode = mode

    def packed(self) -> kernels.PackedWeight:
        """Return the embedding's weight as the kernels want it."""
        return self.source.packed()

    def as_float(self, dtype: torch.dtype = torch.float32) -> nn.Linear:
        """Return a float layer that computes the same but for what happens to activations; its weight is its own."""
        return float_linear(self.source.dequantized(), self.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out_features) for (..., in_features), in the input's dtype."""
        if x.dtype not in RUNS_IN:
            return in_float32(self, self.place, x)
        if self.mode == "weight_only":
            return kernels.weight_only_linear(x, self.packed(), self.bias)
        return kernels.int8_linear(x, self.packed(), self.bias, mixed=True)


def packed_rows(packed: kernels.PackedWeight, index: Tensor) -> Tensor:
    """Return the rows (..., k) int8 at ``index`` (...) of a packed weight, without unpacking the others."""
    data = packed.data
    if data.dim() == 2:  # devices whose kernels take plain rows
        return data[index]
    # (n / 64, k / 4, 64, 4): four inputs of 64 outputs lie together
    rows = data[index // data.shape[2], :, index % data.shape[2]]
    return rows.flatten(-2)[..., : packed.k]

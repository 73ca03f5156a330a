"""Float weights become int8 while transformers reads them: what is done to each tensor of a file before it reaches the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.core_model_loading import ConversionOps

from tunesmith_plugins.compressors.int8_files import opened
from tunesmith_plugins.compressors.int8_weight import quantize, row_blocks
from tunesmith_plugins.compressors.mapped_pages import MappedPages


class LetGo(ConversionOps):
    """Nothing to the tensors; what has been read of their files leaves the memory.

    Args:
        pages: Of the files; None: of none.
    """

    def __init__(self, pages: MappedPages | None) -> None:
        self.pages = pages

    def convert(self, input_dict: dict[str, Any], **unused: object) -> dict[str, Any]:
        """Return what is given."""
        if self.pages is not None:
            self.pages.let_go()
        return input_dict

    @property
    def reverse_op(self) -> ConversionOps:
        """Nothing at all: when the model is saved, its files are long closed."""
        return LetGo(None)


class Quantize(ConversionOps):
    """A float weight, as it comes from a file, to integers and scales.

    Args:
        transposed: Names of layers to whether their weights are (inputs, outputs).
        experts: Names of tensors that hold all experts of a module, to the module's.
        pages: Of the files.
    """

    def __init__(self, transposed: Mapping[str, bool], experts: Mapping[str, str], pages: MappedPages) -> None:
        self.transposed, self.experts, self.pages = transposed, experts, pages

    def convert(
        self,
        input_dict: dict[str, Any],
        model: Any = None,
        missing_keys: set[str] | None = None,
        **unused: object,
    ) -> dict[str, Tensor]:
        """Return the tensors of the layers whose weights are given."""
        made: dict[str, Tensor] = {}
        for name, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            if name in self.experts:
                place = self.experts[name]
                whole, own = model.get_submodule(place), name.removeprefix(f"{place}.")
                for part, tensor in whole.split(own, weight):
                    made |= self._made(model, f"{place}.{part}", tensor)
                whole.register_parameter(own, None)
                if missing_keys is not None:
                    missing_keys.discard(name)
            else:
                made |= self._made(model, name, weight)
        self.pages.let_go()
        return made

    def _made(self, model: Any, name: str, weight: Tensor) -> dict[str, Tensor]:
        """Return the tensors that are kept for one of a file; a copy of what stays float, which may be a part of a large one."""
        layer = name.removesuffix(".weight")
        if layer not in self.transposed:
            return {name: weight.clone(memory_format=torch.contiguous_format)}
        rows = weight.T if self.transposed[layer] else weight
        integers, scale = quantize(rows, model.get_submodule(layer).group_size)
        return {name: integers, f"{name}_scale": scale}


def untied(model: Any, files: Sequence[str]) -> list[str]:
    """Return the weights that the model's config ties to another one while the files have a different one for each: then
    transformers does not tie them either."""
    where: dict[str, str] = {}
    for file in files:
        if file.endswith(".safetensors"):
            with opened(file) as weights:
                where |= dict.fromkeys(weights.keys(), file)

    def equal(first: str, second: str) -> bool:
        with safe_open(where[first], framework="pt") as one, safe_open(where[second], framework="pt") as other:
            mine, its = one.get_slice(first), other.get_slice(second)
            if mine.get_shape() != its.get_shape():
                return False
            rows, columns = mine.get_shape()
            return all(torch.equal(mine[part], its[part]) for part in row_blocks(rows, columns))

    pairs = model.all_tied_weights_keys.items()
    both = [(target, source) for target, source in pairs if target in where and source in where]
    with torch.device("cpu"):  # transformers makes models on "meta"
        return [target for target, source in both if target.endswith(".weight") and not equal(target, source)]

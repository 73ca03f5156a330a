"""What is looked at when an int8 model is loaded: which of its modules are int8, and whether the files hold what they should."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.conversion_mapping import get_model_conversion_mapping

from tunesmith.errors import ArtifactError, ConfigError
from tunesmith_plugins.compressors.experts import is_fused
from tunesmith_plugins.compressors.int8_embedding import Int8Embedding
from tunesmith_plugins.compressors.int8_layout import Layout, build
from tunesmith_plugins.compressors.int8_linear import Int8Linear, Int8StaticLinear
from tunesmith_plugins.compressors.int8_weight import Int8Weight


def names_in(layout: Layout, model: Any) -> dict[str, str | None]:
    """Return the names of the layout with those that the modules have in ``model``, which may be another class than the saved
    one: a body without its head, or with another head. None: it has no such module.

    Raises:
        ConfigError: If there is a name that this model should have and does not.
    """
    prefix = f"{model.base_model_prefix}."
    saved_as = (getattr(model.config, "architectures", None) or [""])[0]
    same = saved_as == type(model).__name__
    known = {name for name, _ in model.named_modules(remove_duplicate=False)}
    found: dict[str, str | None] = {}
    for name in (
        *layout.layers,
        *layout.smoothed,
        *layout.held,
        *layout.embeddings,
        *layout.tied,
        *layout.tied.values(),
        *layout.experts,
    ):
        found[name] = _place(name, prefix, known)
        if found[name] is None and (same or name.startswith(prefix)):
            raise ConfigError([f"quantization_config names a layer {name!r} that this model does not have"])
    return found


def places_of_experts(layout: Layout, model: Any) -> list[str]:
    """Return the names that the layout's modules of experts have in ``model``, without those that it does not have.

    Raises:
        ConfigError: If one is no such module.
    """
    prefix = f"{model.base_model_prefix}."
    modules = dict(model.named_modules(remove_duplicate=False))
    found = [place for name in layout.experts if (place := _place(name, prefix, modules.keys())) is not None]
    problems = [
        f"quantization_config takes {name!r} for experts that transformers keeps in one tensor, and it is a "
        f"{type(modules[name]).__name__}"
        for name in found
        if not is_fused(modules[name])
    ]
    if problems:
        raise ConfigError(problems)
    return found


def _place(name: str, prefix: str, known: Set[str]) -> str | None:
    candidates = (name, name.removeprefix(prefix), prefix + name)
    return next((candidate for candidate in candidates if candidate in known), None)


def renamed(layout: Layout, names: Mapping[str, str | None]) -> Layout:
    """Return the layout with other names, without what has none."""

    def places(names_: Iterable[str]) -> Iterator[tuple[str, str]]:
        return ((name, here) for name in names_ if (here := names[name]) is not None)

    return Layout(
        layers={here: layout.layers[name] for name, here in places(layout.layers)},
        smoothed=frozenset(here for _, here in places(layout.smoothed)),
        held={here: layout.held[name] for name, here in places(layout.held)},
        embeddings=tuple(here for _, here in places(layout.embeddings)),
        tied={here: names[layout.tied[name]] or "" for name, here in places(layout.tied)},
        experts=tuple(here for _, here in places(layout.experts)),
    )


@contextmanager
def opened(file: str) -> Iterator[Any]:
    """Open a file of weights.

    Raises:
        ArtifactError: If it is cut or no such file.
    """
    try:
        with safe_open(file, framework="pt") as weights:
            yield weights
    except SafetensorError as cause:
        raise ArtifactError(
            f"{file} cannot be read: {cause}; it was cut or changed. Copy it again, or make the model again."
        ) from cause


def tensors_in(files: Sequence[str], model: Any) -> set[str]:
    """Return the names of the tensors in files, each as it is, with the name of the model's body before it and without that."""
    prefix = f"{model.base_model_prefix}."
    found: set[str] = set()
    for file in files:
        with opened(file) as weights:
            for key in weights.keys():  # noqa: SIM118  (not a mapping)
                found |= {key, key.removeprefix(prefix), prefix + key}
    return found


def check_files(layout: Layout, names: Mapping[str, str | None], model: Any, files: Sequence[str]) -> None:
    """Compare what is in the files with what the layout asks for.

    Args:
        layout: As it was saved, with the names that are in the files.
        names: Of its modules in ``model``.
        model: With float layers still.
        files: Of safetensors.

    Raises:
        ArtifactError: At the first tensor of another type or shape, at the first one of an integer layer that the layout
            does not have, and at the first one that no file has.
    """
    here = renamed(layout, names)
    asked: dict[str, tuple[str, list[int]]] = {}
    for name in (*layout.embeddings, *layout.layers):
        place = names[name]
        if name in layout.tied or place is None:
            continue
        module: Int8Weight
        if name in layout.layers:
            module = build(here, place, model.get_submodule(place), bias=False)
        else:
            module = Int8Embedding.like(model.get_submodule(place), device="meta")
        for own, tensor in module.named_buffers():
            asked[f"{name}.{own}"] = (_TYPES[tensor.dtype], list(tensor.shape))
    known = {name for name, _ in model.named_modules(remove_duplicate=False)}

    def stray(key: str, kind: str) -> str:
        name, _, own = key.rpartition(".")
        if name in layout.tied and own in ("weight", "weight_scale"):
            return f"config.json says that {name!r} has the weight of {layout.tied[name]!r}"
        integers = own in _OWN or (own == "weight" and kind == "I8")
        if integers and _place(name, f"{model.base_model_prefix}.", known) is not None:
            return f"the quantization_config in config.json has no such tensor of {name!r}"
        return ""

    missing = dict(asked)
    for file in files:
        with opened(file) as weights:
            for key in weights.keys():  # noqa: SIM118  (not a mapping)
                part = weights.get_slice(key)
                given = (part.get_dtype(), list(part.get_shape()))
                missing.pop(key, None)
                if key in asked:
                    if given != asked[key]:
                        raise ArtifactError(
                            f"{file}: the tensor {key!r} is {given[0]} {given[1]} and has to be {asked[key][0]} "
                            f"{asked[key][1]}; the file or config.json was changed. Make the model again."
                        )
                    continue
                problem = stray(key, given[0])
                if problem:
                    raise ArtifactError(
                        f"{file}: there is a tensor {key!r} ({given[0]}), and {problem}; the file or config.json was "
                        "changed. Make the model again."
                    )
    # transformers would draw it, which models that draw what is inside of others cannot do with integers
    if files and missing and not get_model_conversion_mapping(model, add_legacy=False):  # files may have other names
        name, _, own = next(iter(missing)).rpartition(".")
        raise ArtifactError(
            f"int8 layer {name!r}: {own} is missing; the files were changed or are not whole. Make the model again."
        )


_OWN = frozenset(("weight_scale", "smooth", "input_scale", "input_zero_point", "held_index", "held_value"))
"""What integer layers have besides their weights."""
_TYPES = {torch.int8: "I8", torch.float32: "F32", torch.int32: "I32"}


def check_numbers(name: str, module: Int8Weight) -> None:
    """Look at what was read.

    Raises:
        ArtifactError: If a tensor was missing, or holds what quantizing cannot give.
    """
    problem = ""
    for own, tensor in module.named_buffers():
        if not getattr(tensor, "_is_hf_initialized", False):
            problem = f"{own} is missing"
        elif tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            problem = f"{own} holds NaN or infinity"
    if not problem and bool((module.weight_scale <= 0).any()):
        problem = "weight_scale holds a number that is not above 0"
    if not problem and isinstance(module, Int8StaticLinear):
        scale, zero_point = module.range
        if scale < 2.0**-126 or not 0 <= zero_point <= 255:
            problem = (
                f"the static range has scale {scale:g} and zero point {zero_point}, and needs above 0 and 0 to 255"
            )
    if not problem and int(module.weight.min()) < -127:
        problem = "weight holds -128, and int8 weights lie in [-127, 127]"
    if not problem and isinstance(module, Int8Linear) and module.held_index is not None:
        index = module.held_index.long()
        size = torch.tensor([[module.out_features], [module.in_features]])
        if bool((index < 0).any()) or bool((index >= size).any()):
            problem = "held_index names a weight that the layer does not have"
    if problem:
        raise ArtifactError(
            f"int8 layer {name!r}: {problem}; the files were changed or are not whole. Make the model again."
        )

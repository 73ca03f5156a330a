"""Which modules of a model are int8, and how: what a saved model's ``quantization_config`` records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

from attrs import evolve, field, frozen
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ConfigError
from tunesmith_plugins.compressors.config_int8 import QuantizerConfig, Scheme
from tunesmith_plugins.compressors.experts import is_fused, modules_of
from tunesmith_plugins.compressors.int8_apart import read_apart
from tunesmith_plugins.compressors.int8_embedding import Int8Embedding, Int8TiedEmbedding, Int8TiedLinear
from tunesmith_plugins.compressors.int8_linear import (
    Int8Linear,
    Int8OutlierLinear,
    Int8StaticLinear,
    Int8WeightOnlyLinear,
)
from tunesmith_plugins.compressors.layers import names
from tunesmith_plugins.compressors.near_names import did_you_mean

LINEAR: dict[str, type[Int8Linear]] = {
    layer.kind: layer for layer in (Int8Linear, Int8WeightOnlyLinear, Int8StaticLinear, Int8OutlierLinear)
}
"""The class of every kind of scheme."""
_PLAIN = frozenset(("transformers.models.falcon.modeling_falcon.FalconLinear",))
"""Subclasses of linear layers that compute the same in another way."""


@frozen(kw_only=True)
class Layout:
    """What becomes, or is, int8.

    Attributes:
        layers: Names of linear layers with weights of their own, to schemes.
        smoothed: Those of them that multiply their inputs by a vector first.
        held: Those of them that hold weights apart, to how many.
        embeddings: Names of embeddings.
        tied: Names of modules that use the integers of an embedding, to its name.
        experts: Names of modules of experts that are split into linear layers for it (see ``experts``).
    """

    layers: Mapping[str, Scheme] = field(factory=dict)
    smoothed: frozenset[str] = frozenset()
    held: Mapping[str, int] = field(factory=dict)
    embeddings: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(factory=dict)
    experts: tuple[str, ...] = ()


def layout_of(model: nn.Module, config: QuantizerConfig) -> Layout:
    """Return what ``config`` makes of ``model``; its weights may still be on the device ``"meta"``.

    An embedding and everything tied to it become int8 together or not at all. What a model's code reads past its layer stays.

    Raises:
        ConfigError: If a pattern of ``skip`` or ``modules`` names nothing, or there is nothing to quantize.
    """
    modules = modules_of(model)
    _check_patterns(modules, config)
    groups = _tied_groups(model, modules)
    together = {name for group in groups for name in group}
    alone = {name for name, module in modules.items() if name not in together and _is_linear(module)}
    for target, source in _declared(model):  # I-BERT's table is none that is known, and files have its weight alone
        if (target in alone) != (source in alone):
            alone -= {target, source}
    apart = read_apart(model, {name: modules[name] for name in modules if name in together or name in alone})
    groups = [group for group in groups if apart.isdisjoint(group)]
    layers: dict[str, Scheme] = {}
    for places in same_modules({name: modules[name] for name in modules if name in alone - apart}):
        scheme = _scheme_of_all(places, config)
        if scheme.kind != "float":
            layers |= dict.fromkeys(places, scheme)
    layers = {name: layers[name] for name in modules if name in layers}
    embeddings, tied = [], {}
    for group in groups if config.embeddings else ():
        if any(scheme_of(name, config).kind == "float" for name in group):
            continue
        source = next(name for name in group if isinstance(modules[name], nn.Embedding))
        embeddings.append(source)
        for name in group:
            if name == source:
                continue
            tied[name] = source
            if _is_linear(modules[name]):
                layers[name] = _tied_scheme(name, source, config)
    if not layers:
        raise ConfigError(["the model has no linear layer that int8 could take"])
    whole = {name.rsplit(".", 2)[0] for name in layers}
    experts = tuple(name for name, module in modules.items() if name in whole and is_fused(module))
    return Layout(layers=layers, embeddings=tuple(embeddings), tied=tied, experts=experts)


def build(layout: Layout, name: str, layer: nn.Module, bias: bool) -> Int8Linear:
    """Return an empty integer layer on the device ``"meta"`` for the linear ``layer`` that is there now."""
    scheme = layout.layers[name]
    inputs, outputs = shape_of(layer)
    make = LINEAR[scheme.kind]
    smooth, held = name in layout.smoothed, layout.held.get(name, 0)
    return make(inputs, outputs, bias=bias, scheme=scheme, smooth=smooth, held=held, device="meta")


def tie(layout: Layout, model: nn.Module) -> None:
    """Put what uses an embedding's integers in its places; the embeddings are int8 already."""
    for name, origin in layout.tied.items():
        source, here = model.get_submodule(origin), model.get_submodule(name)
        assert isinstance(source, Int8Embedding)
        if here is source:  # one module in two places
            continue
        if name in layout.layers:
            model.set_submodule(name, Int8TiedLinear(source, getattr(here, "bias", None), layout.layers[name].kind))
        else:
            like = here if isinstance(here, Int8Embedding) else Int8Embedding.like(here, device="meta")  # type: ignore[arg-type]
            model.set_submodule(name, Int8TiedEmbedding(source, like))


def with_heads(layout: Layout, model: nn.Module, written: Set[str]) -> Layout:
    """Return the layout with what ``model`` ties to int8 embeddings and the saved model did not have: a head on a body.

    Its inputs keep 12 bits where those of all that was saved do; otherwise it is ``dynamic``.

    Args:
        layout: Of the saved model, with the names that modules have in ``model``.
        model: With its own idea of what is tied.
        written: Names of the tensors in the files: what is there under its own name is not tied.
    """
    known = {*layout.layers, *layout.embeddings, *layout.tied, *(name.removesuffix(".weight") for name in written)}
    layers, tied = dict(layout.layers), dict(layout.tied)
    alike = Scheme(kind="weight_only" if {each.kind for each in layers.values()} == {"weight_only"} else "dynamic")
    for target, source in _declared(model):
        if source in layout.embeddings and target not in known:
            tied[target] = source
            if _is_linear(model.get_submodule(target)):
                layers[target] = alike
    return evolve(layout, layers=layers, tied=tied)


def check_places(layout: Layout, model: nn.Module) -> None:
    """Check that a layout's names are those of modules that can be what it says.

    Raises:
        ConfigError: With all that cannot.
    """
    problems = []
    for name in (*layout.layers, *layout.embeddings, *layout.tied):
        module = model.get_submodule(name)
        fits = isinstance(module, nn.Embedding) if name not in layout.layers else _is_linear(module)
        if not fits:
            wanted = "a linear layer" if name in layout.layers else "an embedding"
            problems.append(f"quantization_config takes {name!r} for {wanted}, and it is a {type(module).__name__}")
    problems += [
        f"quantization_config ties {name!r} to {source!r}, which is not among its embeddings"
        for name, source in layout.tied.items()
        if source not in layout.embeddings
    ]
    if problems:
        raise ConfigError(problems)


def shape_of(layer: Any) -> tuple[int, int]:
    """Return (inputs, outputs) of a linear layer."""
    if isinstance(layer, Conv1D):
        return int(layer.weight.shape[0]), int(layer.weight.shape[1])
    return int(layer.in_features), int(layer.out_features)


def _is_linear(module: nn.Module) -> bool:
    """Whether a product with its weight is all that a module does: routers of some mixtures are subclasses that do more."""
    kind = type(module)
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False  # attention of torch's own reads its weight past its forward
    return isinstance(module, (nn.Linear, Conv1D)) and (
        kind.forward in (nn.Linear.forward, Conv1D.forward) or f"{kind.__module__}.{kind.__qualname__}" in _PLAIN
    )


def scheme_of(name: str, config: QuantizerConfig) -> Scheme:
    """Return what ``config`` wants for the layer of a name, if it can be had."""
    if any(names(pattern, name) for pattern in config.skip):
        return Scheme(kind="float")
    found = _pattern(name, config)
    return config.scheme if found is None else config.modules[found]


def same_modules(modules: Mapping[str, nn.Module]) -> list[list[str]]:
    """Return the names of each module together, in the order of their first ones: one layer may stand in several places."""
    found: dict[int, list[str]] = {}
    for name, module in modules.items():
        found.setdefault(id(module), []).append(name)
    return list(found.values())


def _scheme_of_all(places: list[str], config: QuantizerConfig) -> Scheme:
    """Return what ``config`` wants for a layer that stands in ``places``; it stays float in all if it does in one.

    Raises:
        ConfigError: If it wants several things.
    """
    schemes = {name: scheme_of(name, config) for name in places}
    if any(scheme.kind == "float" for scheme in schemes.values()):
        return Scheme(kind="float")
    first, *others = schemes.items()
    for name, scheme in others:
        if scheme != first[1]:
            raise ConfigError(
                [f"modules: {first[0]} and {name} are one layer in two places; give both the same scheme"]
            )
    return first[1]


def _pattern(name: str, config: QuantizerConfig) -> str | None:
    return max((pattern for pattern in config.modules if names(pattern, name)), key=len, default=None)


def _tied_scheme(name: str, source: str, config: QuantizerConfig) -> Scheme:
    """Return how a head multiplies with the integers of an embedding: they have one scale a row, and ranges are the row's own.

    Raises:
        ConfigError: If ``modules`` wants anything else of this head; what the compressor does by default gives way.
    """
    pattern, wanted = _pattern(name, config), scheme_of(name, config)
    if pattern is not None and (wanted.group_size or wanted.kind not in ("dynamic", "weight_only")):
        asked = f"group_size={wanted.group_size}" if wanted.group_size else f"kind={wanted.kind!r}"
        raise ConfigError(
            [
                f"modules: {pattern!r} asks for {asked}, and {name} multiplies with the integers of the embedding {source}, "
                "which have one scale a row and no fixed ranges; give it the kind 'dynamic' or 'weight_only' without groups, or "
                "'float' to leave both as they are"
            ]
        )
    return Scheme(kind="weight_only" if wanted.kind == "weight_only" else "dynamic")


def _check_patterns(modules: Mapping[str, nn.Module], config: QuantizerConfig) -> None:
    problems = []
    linear = ", ".join([name for name, module in modules.items() if _is_linear(module)][:5])
    for where, patterns in (("skip", config.skip), ("modules", tuple(config.modules))):
        problems += [
            f"{where}: nothing in the model is named by {pattern!r}; its linear layers are {linear} ..."
            f"{did_you_mean(pattern, modules)}"
            for pattern in sorted(patterns)
            if not any(names(pattern, name) for name in modules)
        ]
    if problems:
        raise ConfigError(problems)


def _tied_groups(model: Any, modules: Mapping[str, nn.Module]) -> list[list[str]]:
    """Return the names of every token embedding together with those of all modules that have its weight."""
    groups: dict[int, list[str]] = {}
    for name, module in modules.items():
        if isinstance(module, nn.Embedding) or _is_linear(module):
            groups.setdefault(id(module.weight), []).append(name)
    by_name = {name: group for group in groups.values() for name in group}
    for target, source in _declared(model):  # before weights are loaded, equal ones are only said to be
        first, second = by_name.get(source), by_name.get(target)
        # with numbers, they are tied if they are one tensor: a head that was trained apart is not, whatever the config says
        if first and second and first is not second and _on_meta(modules[first[0]]) and _on_meta(modules[second[0]]):
            first.extend(second)
            for name in second:
                by_name[name] = first
            second.clear()
    vocabulary = vocabulary_size(model)
    found = []
    for group in groups.values():
        tables = [modules[name] for name in group if isinstance(modules[name], nn.Embedding)]
        if tables and (len(group) > len(tables) or tables[0].num_embeddings == vocabulary) and all(map(_known, tables)):
            found.append(sorted(group, key=list(modules).index))
    return found


def _declared(model: Any) -> Iterator[tuple[str, str]]:
    for target, source in getattr(model, "all_tied_weights_keys", {}).items():
        if target.endswith(".weight") and source.endswith(".weight"):
            yield target.removesuffix(".weight"), source.removesuffix(".weight")


def _on_meta(module: Any) -> bool:
    return bool(module.weight.is_meta)


def vocabulary_size(model: Any) -> int:
    """Return the rows of a model's input embeddings; -1 if they are no table."""
    table = model.get_input_embeddings()
    return int(getattr(table, "num_embeddings", -1))


def _known(table: nn.Module) -> bool:
    """Whether a lookup is all that this embedding does, but for a factor."""
    return type(table) is nn.Embedding or hasattr(table, "embed_scale")

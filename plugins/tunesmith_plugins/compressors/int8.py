"""Making a model int8, layer by layer; alone, the compressor of all schemes that need no data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor, nn

from tunesmith.data.records import Example
from tunesmith.errors import ConfigError, NumericError
from tunesmith.kinds.adapter import PreparesCompression
from tunesmith.kinds.compressor import CompressionReport, Compressor
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith.undivided import never_divide
from tunesmith_plugins.compressors import int8_format, int8_left, int8_report, int8_weight
from tunesmith_plugins.compressors.config_int8 import Scheme
from tunesmith_plugins.compressors.experts import modules_of, split
from tunesmith_plugins.compressors.freed_memory import done_with, give_back
from tunesmith_plugins.compressors.fused import fuse
from tunesmith_plugins.compressors.half_precision import to_float32
from tunesmith_plugins.compressors.int8_embedding import Int8Embedding
from tunesmith_plugins.compressors.int8_held import outlying, without
from tunesmith_plugins.compressors.int8_layout import LINEAR, Layout, layout_of, same_modules, tie
from tunesmith_plugins.compressors.int8_linear import Int8Linear, Int8StaticLinear
from tunesmith_plugins.compressors.int8_report import Line
from tunesmith_plugins.compressors.int8_rounding import rounded_for
from tunesmith_plugins.compressors.layers import let_go_of_files, merged, stored_bytes
from tunesmith_plugins.compressors.mapped_pages import let_go
from tunesmith_plugins.compressors.prune import matrix
from tunesmith_plugins.compressors.prune_calibration import Batch
from tunesmith_plugins.compressors.random_tokens import in_passing, random_batch, reads
from tunesmith_plugins.compressors.sparsegpt import LinAlgError

log = logging.getLogger("tunesmith.compressors")

Size = tuple[int, int]
"""Parameters that are not zero, and bytes."""


@frozen(kw_only=True)
class Seen:
    """What calibration found, by the names of layers.

    Attributes:
        rows: Inputs (rows, in_features) to measure a layer with; one that has none is measured with Gaussian rows.
        ranges: Scale and zero point of static layers.
        smooth: What layers multiply their inputs by (in_features,); their float weights have been divided by it already.
        rounded: Integers and scales of weights, as ``int8_weight.quantize`` returns them, where they are not the nearest ones.
        held: Places of weights that are kept apart in float32; ``rounded`` is of the weight with zeros there.
    """

    rows: Mapping[str, Tensor] = field(factory=dict)
    ranges: Mapping[str, tuple[float, int]] = field(factory=dict)
    smooth: Mapping[str, Tensor] = field(factory=dict)
    rounded: Mapping[str, tuple[Tensor, Tensor]] = field(factory=dict)
    held: Mapping[str, Tensor] = field(factory=dict)


class Int8Compressor(Compressor):
    """Replace linear layers and token embeddings by integer ones."""

    uses_teacher = False

    def compress(
        self, lm: LM, *, data: Sequence[Example] | None = None, teacher: LM | None = None, runtime: Runtime
    ) -> tuple[LM, CompressionReport]:
        """Quantize in place, one layer after the other, each float layer being freed before the next; no data and no teacher
        are needed.

        Raises:
            ConfigError: If the model is quantized already, has nothing to quantize, or carries an adapter that cannot be merged;
                also if the weights were trained for their nearest integers and ``rounding`` asks for others.
            NumericError: If the second moments of a layer's inputs cannot be inverted.
        """
        rounding = getattr(self.config, "rounding", "nearest")  # another compressor's config may have none
        trained = any(isinstance(adapter, PreparesCompression) for adapter in lm.adapters)
        if trained and rounding == "random_tokens":
            raise ConfigError(
                ["rounding: the weights were trained for their nearest integers; take 'auto' or 'nearest'"], "int8"
            )
        lm, layout, before = self.planned(lm, teacher)
        if trained or rounding == "nearest":
            return self.convert(lm, layout, before, Seen(), runtime)
        batch = random_batch(lm, runtime.seed)
        problem = reads(lm, batch)
        if problem is None:
            return self.convert(
                lm, layout, before, Seen(), runtime, lambda names: self._in_passing(lm, layout, names, batch)
            )
        told = f"the model cannot be run on random tokens ({type(problem).__name__}: {problem})"
        if rounding == "random_tokens":
            raise ConfigError([f"{told}; take rounding='auto' or 'nearest' @ rounding"], "int8") from problem
        log.warning("%s: its weights are rounded to the nearest.", told)
        return self.convert(lm, layout, before, Seen(), runtime)

    def planned(self, lm: LM, teacher: LM | None = None) -> tuple[LM, Layout, Size]:
        """Return the LM without adapters, what becomes int8 of it, and how large it was; all weights can be quantized, and
        none is integer yet. What was float16 is float32 now, in which integer layers run.

        Raises:
            ConfigError: See :meth:`compress`; also naming the first layer or embedding whose weights are not finite.
        """
        int8_format.register_with_transformers()
        lm = merged(lm, "int8", self.config, teacher)
        never_divide(lm.model)  # RWKV would for float16, in which integer layers do not run
        layout = layout_of(lm.model, self.config)
        modules: dict[str, Any] = modules_of(lm.model)
        for name in (*layout.embeddings, *(name for name in layout.layers if name not in layout.tied)):
            weight = matrix(modules[name])
            checked(name, lambda weight=weight: int8_weight.check(weight))
        before = lm.parameter_count(nonzero=True), stored_bytes(lm.model)
        del modules, weight
        split(lm.model, layout.experts)
        to_float32(lm.model, int8_format.NOT_RUN_IN, int8_format.NO_FLOAT16)
        return lm, layout, before

    def _in_passing(self, lm: LM, layout: Layout, names: Sequence[str], batch: Batch) -> list[Line]:
        """Do what ``replace`` of :meth:`convert` does: each layer is rounded for its inputs behind the int8 ones before it."""
        lines = {}

        def meet(name: str, inputs: Tensor) -> None:
            group = layout.layers[name].group_size
            seen = self.seen_with(lm.model, name, group, inputs) if len(inputs) else Seen()
            lines[name] = self.replaced(lm.model, name, layout, seen)

        for name in in_passing(lm, names, batch, meet):
            lines[name] = self.replaced(lm.model, name, layout, Seen())
        return [lines[name] for name in names]

    @staticmethod
    def seen_with(model: nn.Module, name: str, group_size: int, inputs: Tensor) -> Seen:
        """Return the rounding of a float layer for inputs (samples, features) of its own."""
        weight = matrix(model.get_submodule(name))
        held = outlying(weight, group_size)
        try:
            rounded = checked(name, lambda: rounded_for(without(weight, held), inputs, group_size))
        except LinAlgError as cause:
            raise NumericError(
                f"{name}: the second moments of its inputs cannot be inverted; take rounding='nearest'."
            ) from cause
        return Seen(rounded={name: rounded}, held={name: held})

    def convert(
        self,
        lm: LM,
        layout: Layout,
        before: Size,
        seen: Seen,
        runtime: Runtime,
        replace: Callable[[Sequence[str]], list[Line]] | None = None,
    ) -> tuple[LM, CompressionReport]:
        """Quantize what ``layout`` names.

        Args:
            lm: Without adapters.
            layout: See there.
            before: Of the model as it came.
            seen: What calibration found.
            runtime: Shows progress.
            replace: Puts integer layers in the places of those it gets the names of and returns their lines of the report, in
                that order; None: each by itself. It gets the first name of a layer that stands in several places.
        """
        model, (count, size) = lm.model, before
        floats = (*layout.layers, *layout.embeddings)
        let_go_of_files(model, {f"{name}.weight" for name in floats})
        let_go(matrix(model.get_submodule(name)) for name in floats)  # calibration has read them all
        own = same_modules({name: model.get_submodule(name) for name in layout.layers if name not in layout.tied})
        firsts = [places[0] for places in own]
        lines = []
        for name in layout.embeddings:
            table = model.get_submodule(name)
            made = checked(name, lambda table=table: Int8Embedding.from_float(table))
            lines.append(int8_report.embedding_line(name, table, made))
            model.set_submodule(name, made)
            heads = {n: model.get_submodule(n) for n in layout.tied if n in layout.layers and layout.tied[n] == name}
            tie(_only(layout, name), model)
            for head, layer in heads.items():
                tied = model.get_submodule(head)
                lines.append(int8_report.tied_line(head, layer, tied, self.config.measure_rows))
            let_go([table.weight])
            done_with(table.weight)
            del table, heads
        if replace is not None:
            found = replace(firsts)
        else:
            found = [self.replaced(model, name, layout, seen) for name in runtime.track(firsts, "int8")]
        for places, line in zip(own, found, strict=True):
            for name in places[1:]:
                model.set_submodule(name, model.get_submodule(places[0]))
            lines += [line | {"name": name} for name in places]
        left = int8_left.left_float(model)
        int8_left.warn(left, model, self.config)
        int8_format.announce(model, layout)
        fuse(model)
        model.eval()
        give_back()
        small = LM(model=model, tokenizer=lm.tokenizer, family=lm.family)
        report = CompressionReport(
            parameters=(count, small.parameter_count(nonzero=True)),
            bytes=(size, stored_bytes(model)),
            layers=lines,
            summary=int8_report.summary(lines) | int8_left.summary(left),
            series=int8_report.series(lines),
        )
        return small, report

    def replaced(self, model: nn.Module, name: str, layout: Layout, seen: Seen) -> Line:
        """Put an integer layer in the place of a float one and return its line of the report."""
        layer, scheme = model.get_submodule(name), layout.layers[name]
        made = checked(name, lambda: quantized(layer, scheme, seen.rounded.get(name), seen.held.get(name)))
        made.smooth = seen.smooth.get(name)
        if isinstance(made, Int8StaticLinear):
            scale, zero_point = seen.ranges[name]
            made.input_scale = torch.tensor(scale, dtype=torch.float32, device=made.weight.device)
            made.input_zero_point = torch.tensor(zero_point, dtype=torch.int32, device=made.weight.device)
        line = int8_report.linear_line(name, layer, made, seen.rows.get(name), self.config.measure_rows)
        model.set_submodule(name, made)
        let_go([matrix(layer)])
        done_with(matrix(layer))
        return line

    @staticmethod
    def register_with_transformers() -> None:
        """Called by ``tunesmith.hf``."""
        int8_format.register_with_transformers()


def quantized(
    layer: Any, scheme: Scheme, rounded: tuple[Tensor, Tensor] | None = None, held: Tensor | None = None
) -> Int8Linear:
    """Return the integer layer of a ``Linear`` or ``Conv1D``, with the nearest integers or those that are given."""
    return LINEAR[scheme.kind].from_float(matrix(layer), layer.bias, scheme, rounded, held)


def _only(layout: Layout, source: str) -> Layout:
    return evolve(layout, tied={name: origin for name, origin in layout.tied.items() if origin == source})


def checked(name: str, make: Any) -> Any:
    """Return what ``make`` does for the layer; its ValueError becomes one that names it."""
    try:
        return make()
    except ValueError as cause:
        raise ConfigError(
            [f"{name} cannot be quantized: {cause}. Name it in skip to leave it as it is"], "int8"
        ) from cause

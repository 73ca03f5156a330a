"""Structured pruning: the compressor."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.data.records import Example
from tunesmith.errors import ConfigError, NumericError
from tunesmith.kinds.compressor import CompressionReport, Compressor
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors.layers import merged, stored_bytes
from tunesmith_plugins.compressors.new_model import fields_by_layer
from tunesmith_plugins.compressors.prune import matrix
from tunesmith_plugins.compressors.prune_calibration import Batch, calibration_batches, is_classifier
from tunesmith_plugins.compressors.structured_build import SHARED_BY_LAYERS, Cut, build
from tunesmith_plugins.compressors.structured_layouts import Attention, Layout, Stack, layout_of, module_list
from tunesmith_plugins.compressors.structured_scores import (
    Part,
    block_gradient,
    block_influence,
    by_activation,
    by_gradient,
    by_magnitude,
)
from tunesmith_plugins.compressors.structured_vocabulary import cut_vocabulary


class StructuredCompressor(Compressor):
    """Take parts out of a model."""

    uses_teacher = False

    @property
    def needs_data(self) -> bool:  # type: ignore[override]
        """True where scores or the vocabulary come from data."""
        return self.config.score != "magnitude" or self.config.vocabulary == "used"

    def compress(
        self, lm: LM, *, data: Sequence[Example] | None = None, teacher: LM | None = None, runtime: Runtime
    ) -> tuple[LM, CompressionReport]:
        """Return a new, smaller model; all scores are taken on the model as it comes, and ``lm`` is not changed.

        Of n units ``round(share * n)`` go, of equal ones those that stand first; at least one of each kind stays.

        Raises:
            ConfigError: For an architecture that is not known, or whose config cannot say what is asked for; without
                data where it is needed; for a tokenizer that cannot be cut.
        """
        config = self.config
        if not (config.heads or config.ffn or config.layers or config.vocabulary == "used"):
            raise ConfigError(["nothing would be taken out: give 'heads', 'ffn', 'layers' or vocabulary=\"used\""])
        lm = merged(lm, "structured pruning", teacher=teacher)
        cut = Cut()
        rows: list[dict[str, Any]] = []
        if config.heads or config.ffn or config.layers:
            self._check(lm)
            batches = []
            if config.score != "magnitude":
                batches = calibration_batches(
                    lm,
                    data,
                    max_length=config.max_length,
                    batch_size=config.batch_size,
                    seed=runtime.seed,
                    method=f"score={config.score!r}",
                    masks=config.score == "gradient",
                )
            rows = self._cut_parts(lm, layout_of(lm), cut, batches)
        tokenizer, summary = None, {}
        if config.vocabulary == "used":
            tokenizer, kept = cut_vocabulary(lm, data, cut)
            summary = {"tokens": [lm.model.config.vocab_size, len(kept)], "kept_token_ids": kept}
        with runtime.activated():
            small = build(lm, cut, tokenizer)
        if tokenizer is not None:
            _renumber(small, summary["kept_token_ids"])
        report = CompressionReport(
            parameters=(lm.parameter_count(nonzero=True), small.parameter_count(nonzero=True)),
            bytes=(stored_bytes(lm.model), stored_bytes(small.model)),
            layers=rows,
            summary=summary,
        )
        return small, report

    def _check(self, lm: LM) -> None:
        kind = lm.model.config.model_type
        if self.config.heads and not layout_of(lm).heads:
            raise ConfigError(
                [
                    f"heads of a {kind} model cannot go: its config has no size of a head, which is the width divided by "
                    "the number of heads, so a model with fewer heads would not load. Take out channels or layers @ heads"
                ]
            )
        self._check_shares(lm)
        if self.config.heads:
            self._check_heads(lm)
        if self.config.score == "gradient" and (is_classifier(lm.model) or lm.model.get_output_embeddings() is None):
            raise ConfigError(
                [f'a {type(lm.model).__name__} has no loss on text; use score="activation" or "magnitude" @ score']
            )

    def _check_shares(self, lm: LM) -> None:
        """Refuse a share that rounds to none."""
        layout = layout_of(lm)
        stacks = [(stack, module_list(lm, stack)[1]) for stack in layout.stacks]
        units = {
            "heads": [_head_units(*_head_numbers(lm, layout)[:2])[0]] if self.config.heads else [],
            "ffn": [matrix(blocks[0].get_submodule(stack.feed.down)).shape[1] for stack, blocks in stacks],
            "layers": [len(blocks) for _, blocks in stacks],
        }
        problems = []
        for name, counts in units.items():
            share, most = getattr(self.config, name), max(counts, default=0)
            if share and not any(_gone(share, count) for count in counts):
                advice = f"{1 / most:.3g} takes one" if most > 1 else "the last one stays"
                problems.append(f"{share:g} of {most} is none; {advice} @ {name}")
        if problems:
            raise ConfigError(problems)

    def _check_heads(self, lm: LM) -> None:
        """Refuse a number of heads that the model's config does not accept, and could therefore not be saved with."""
        layout = layout_of(lm)
        heads, groups, _ = _head_numbers(lm, layout)
        units, queries = _head_units(heads, groups)
        reasons = [_reason_against(lm, layout, gone, queries, groups) for gone in range(units)]
        gone = _gone(self.config.heads, units)
        if not reasons[gone]:
            return
        fitting = [f"{n / units:g} ({heads - n * queries} of {heads} stay)" for n in range(1, units) if not reasons[n]]
        advice = f"give {' or '.join(fitting)}" if fitting else "take out channels or layers instead"
        raise ConfigError(
            [
                f"a {lm.model.config.model_type} model with {heads - gone * queries} of its {heads} heads could not be saved: "
                f"{reasons[gone]} So {advice} @ heads"
            ]
        )

    def _cut_parts(self, lm: LM, layout: Layout, cut: Cut, batches: Sequence[Batch]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for stack in layout.stacks:
            name, blocks = module_list(lm, stack)
            kept = self._kept_layers(lm, blocks, batches)
            cut.layers[name] = kept
            cut.config[stack.depth] = len(kept)
            cut.config.update(fields_by_layer(lm.model.config, kept))
            asked = {"channels": self.config.ffn, "heads": self.config.heads}
            found = {
                number: {
                    "name": f"{name}.{number}",
                    "stays": number in kept,
                    **{what: "" for what in asked if asked[what]},
                }
                for number in range(len(blocks))
            }
            if self.config.ffn:
                self._cut_channels(lm, layout, stack, (name, blocks, kept), cut, batches, found)
            if self.config.heads:
                for attention in stack.attentions:
                    self._cut_heads(lm, layout, attention, (name, blocks, kept), cut, batches, found)
            rows += found.values()
        return rows

    def _kept_layers(self, lm: LM, blocks: nn.ModuleList, batches: Sequence[Batch]) -> list[int]:
        if not self.config.layers:
            return list(range(len(blocks)))
        match self.config.score:
            case "activation":
                scores = block_influence(lm, list(blocks), batches)
            case "gradient":
                scores = block_gradient(lm, list(blocks), batches)
            case _:
                scores = torch.stack([_magnitude(block) for block in blocks])
        return _kept(scores, self.config.layers).tolist()

    def _scores(self, lm: LM, parts: Sequence[Part], batches: Sequence[Batch]) -> list[torch.Tensor]:
        match self.config.score:
            case "activation":
                return by_activation(lm, parts, batches)
            case "gradient":
                return by_gradient(lm, parts, batches)
        return [by_magnitude(part) for part in parts]

    def _cut_channels(
        self,
        lm: LM,
        layout: Layout,
        stack: Stack,
        at: tuple[str, nn.ModuleList, list[int]],
        cut: Cut,
        batches: Sequence[Batch],
        told: dict[int, dict[str, Any]],
    ) -> None:
        name, blocks, kept = at
        feed = stack.feed
        parts = [
            Part(
                down=blocks[number].get_submodule(feed.down),
                up=tuple((blocks[number].get_submodule(up), 1) for up in feed.up),
            )
            for number in kept
        ]
        for number, part, scores in zip(kept, parts, self._scores(lm, parts, batches), strict=True):
            channels = _kept(scores, self.config.ffn)
            for up in feed.up:
                _select_outputs(cut, f"{name}.{number}.{up}", blocks[number].get_submodule(up), channels)
            _select_inputs(cut, f"{name}.{number}.{feed.down}", part.down, channels)
            cut.config[stack.width] = len(channels)
            told[number]["channels"] = f"{len(channels)} of {len(scores)}"

    def _cut_heads(
        self,
        lm: LM,
        layout: Layout,
        attention: Attention,
        at: tuple[str, nn.ModuleList, list[int]],
        cut: Cut,
        batches: Sequence[Batch],
        told: dict[int, dict[str, Any]],
    ) -> None:
        name, blocks, kept = at
        heads, groups, size = _head_numbers(lm, layout)
        _, queries = _head_units(heads, groups)
        parts = []
        for number in kept:
            block = blocks[number]
            up: list[Any] = [(block.get_submodule(attention.query), queries * size)]
            if groups > 1:
                up += [(block.get_submodule(key), size) for key in attention.keys]
            parts.append(Part(down=block.get_submodule(attention.out), up=tuple(up), size=queries * size))
        scores = self._scores(lm, parts, batches)
        if attention.shared_bias:
            total = torch.stack([found / found.sum().clamp_min(1e-300) for found in scores]).sum(0)
            scores = [total] * len(scores)
        for number, found in zip(kept, scores, strict=True):
            chosen = _kept(found, self.config.heads)
            place = f"{name}.{number}"
            block = blocks[number]
            _select_outputs(
                cut, f"{place}.{attention.query}", block.get_submodule(attention.query), _spread(chosen, queries * size)
            )
            _select_inputs(
                cut, f"{place}.{attention.out}", block.get_submodule(attention.out), _spread(chosen, queries * size)
            )
            if groups > 1:
                for key in attention.keys:
                    _select_outputs(cut, f"{place}.{key}", block.get_submodule(key), _spread(chosen, size))
            told[number]["heads"] = f"{len(chosen) * queries} of {heads}"
        if attention.shared_bias:
            module = attention.query.rpartition(".")[0]
            cut.select(f"{name}.0.{module}.{SHARED_BY_LAYERS}.weight", 1, _kept(scores[0], self.config.heads))
        cut.config[layout.heads] = len(chosen) * queries
        cut.config[layout.head_size] = size
        if layout.groups:
            cut.config[layout.groups] = len(chosen) if groups > 1 else 1


def _magnitude(block: nn.Module) -> torch.Tensor:
    """Return the squared norm of a layer's matrices, but for the position biases, which stay whichever layer goes."""
    own = [p for name, p in block.named_parameters() if p.dim() > 1 and SHARED_BY_LAYERS not in name]
    return torch.stack([p.detach().double().square().sum().cpu() for p in own]).sum()


def _kept(scores: torch.Tensor, share: float) -> torch.Tensor:
    """Return the numbers of the units that stay, ascending.

    Raises:
        NumericError: If a score is no number.
    """
    if not bool(scores.isfinite().all()):
        raise NumericError(
            "the scores of heads, channels or layers hold NaN or infinity, so they have no order; look at the model's weights and, "
            "where scores come from examples, at these."
        )
    return torch.argsort(scores, stable=True)[_gone(share, len(scores)) :].sort().values.cpu()


def _gone(share: float, units: int) -> int:
    return min(round(share * units), units - 1)


def _spread(units: torch.Tensor, size: int) -> torch.Tensor:
    """Return the indices of ``size`` consecutive rows a unit."""
    return (units[:, None] * size + torch.arange(size)).flatten()


def _head_numbers(lm: LM, layout: Layout) -> tuple[int, int, int]:
    """Return query heads, key-value heads, and the size of a head."""
    config = lm.model.config
    heads = int(getattr(config, layout.heads))
    groups = int(getattr(config, layout.groups)) if layout.groups else heads
    size = getattr(config, layout.head_size, None)
    return heads, groups, int(size or config.hidden_size // heads)


def _head_units(heads: int, groups: int) -> tuple[int, int]:
    """Return how many units of heads can go, and the query heads of each.

    With one key-value head for all, query heads are the units; otherwise each key-value head with its queries.
    """
    units = groups if groups > 1 else heads
    return units, heads // units


def _reason_against(lm: LM, layout: Layout, gone: int, queries: int, groups: int) -> str:
    """Return what the config's own check has against ``gone`` units fewer; "" if nothing."""
    config = copy.deepcopy(lm.model.config)
    heads, _, size = _head_numbers(lm, layout)
    setattr(config, layout.heads, heads - gone * queries)
    setattr(config, layout.head_size, size)
    if layout.groups and groups > 1:
        setattr(config, layout.groups, groups - gone)
    try:
        config.validate()
    except (ValueError, StrictDataclassError) as found:
        return " ".join(str(found.__cause__ or found).split())
    return ""


def _select_outputs(cut: Cut, name: str, layer: nn.Module, indices: torch.Tensor) -> None:
    cut.select(f"{name}.weight", 1 if isinstance(layer, Conv1D) else 0, indices)
    if getattr(layer, "bias", None) is not None:
        cut.select(f"{name}.bias", 0, indices)


def _select_inputs(cut: Cut, name: str, layer: nn.Module, indices: torch.Tensor) -> None:
    cut.select(f"{name}.weight", 0 if isinstance(layer, Conv1D) else 1, indices)


def _renumber(lm: LM, kept: Sequence[int]) -> None:
    """Give the generation config the new numbers of its tokens."""
    from tunesmith_plugins.compressors.structured_vocabulary import renumbered

    generation = getattr(lm.model, "generation_config", None)
    if generation is not None:
        for name, value in renumbered(generation.to_dict(), kept).items():
            setattr(generation, name, value)

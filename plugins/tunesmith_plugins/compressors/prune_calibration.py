"""Calibration: batches without padding, and what enters linear layers, one block of the model at a time."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attrs import evolve, frozen
from torch import nn

from tunesmith.continuation import positions
from tunesmith.data import encoding
from tunesmith.data.encoding import IGNORED, Lengths, Row, Truncation
from tunesmith.data.records import Example
from tunesmith.errors import ConfigError, DataError, NumericError
from tunesmith.lm import LM
from tunesmith.training.batches import Collate
from tunesmith.training.stream import Fixed
from tunesmith.training.task import Limits, Task, objective_of
from tunesmith_plugins.compressors.examples import needed_examples
from tunesmith_plugins.compressors.experts import SplitExperts
from tunesmith_plugins.compressors.prune import Named

Batch = dict[str, torch.Tensor]
_BLOCK = re.compile(r"(.*?\.\d+)\..*")


def calibration_batches(
    lm: LM,
    data: Sequence[Example] | None,
    *,
    max_length: int,
    batch_size: int,
    seed: int,
    method: str,
    masks: bool = False,
) -> list[Batch]:
    """Return the examples as the model's arguments, rows of equal shape together, so that no position is padding.

    Decoders see prompt and target, or the prompt where there is no target, encoders the whole text, classifiers the prompt alone,
    encoder-decoders the target too. With ``masks`` encoders with a language-model head see masked tokens as in their training, for
    a loss, and rows without a token to predict are left out. Nothing is longer than what the model can read.

    Raises:
        ConfigError: If there is no data.
        DataError: If there is nothing to read in it, or with ``masks`` nothing to predict.
    """
    data = needed_examples(lm, data, method)
    limit = most_tokens(lm, max_length)
    lengths = Lengths(input=limit, target=limit)
    task = (
        Task(objective=objective_of(lm.family, "auto"), lm=lm, limits=Limits(lengths=lengths, mask_prompt=False))
        if masks
        else None
    )
    data = [_text(example) for example in data] if lm.family == "decoder" else data
    rows = _asked_rows(task, data, method) if task else _rows(lm, data, lengths, method)
    items = Fixed(rows, seed, task.noise if task else None)
    shapes: dict[tuple[int, int], list[Row]] = {}
    for index in range(len(items)):
        row = items[index]
        if masks and not _asks(row, lm):
            continue
        shapes.setdefault((len(row.input_ids), len(row.labels)), []).append(row)
    if not shapes:
        raise DataError(
            f"{method}: the data gives nothing to calibrate on: none of {len(rows)} rows has a token to predict, which special "
            "tokens and a decoder's first are not. Give longer texts, or a larger max_length."
        )
    collate = Collate(lm.tokenizer.pad_token_id or 0, "pairs" if lm.family == "encoder-decoder" else "tokens")
    return [
        {name: tensor.to(lm.device) for name, tensor in collate(same[start : start + batch_size]).items()}
        for same in shapes.values()
        for start in range(0, len(same), batch_size)
    ]


def _text(example: Example) -> Example:
    """Return an example as a decoder reads it: one without a target is a text."""
    return example if example.targets else evolve(example, prompt="", targets=(example.prompt,))


def _asks(row: Row, lm: LM) -> bool:
    """Whether a row has a token to predict; the loss of one that has none is no number."""
    return any(label != IGNORED for label in row.labels[lm.family == "decoder" :])


def _asked_rows(task: Task, data: Sequence[Example], method: str) -> list[Row]:
    try:
        return task.rows(data, Truncation())
    except DataError as cause:
        raise DataError(f"{method}: {cause}") from cause


def _rows(lm: LM, data: Sequence[Example], lengths: Lengths, method: str) -> list[Row]:
    cut = Truncation()
    if is_classifier(lm.model):
        texts = [
            encoding.shortened(lm.tokenizer, e.prompt or encoding.whole_text(e), lengths.input, cut.inputs)
            for e in data
        ]
        rows = [Row(input_ids=tuple(ids), labels=tuple(ids)) for ids in texts]
    elif lm.family == "encoder":
        rows = encoding.masked(data, lm.tokenizer, lengths, cut)
    elif lm.family == "decoder":
        rows = encoding.causal(data, lm.tokenizer, lengths, cut, mask_prompt=False)
    else:
        rows = encoding.seq2seq(data, lm.tokenizer, lengths, cut)
    rows = [row for row in rows if row.input_ids and row.labels]
    if not rows:
        raise DataError(
            f"{method}: the data gives nothing to calibrate on: all texts are empty ({len(data)} examples). Give examples with text "
            "(of an encoder-decoder with a target too)."
        )
    return rows


def is_classifier(model: Any) -> bool:
    """Whether a model gives one row of logits for a text."""
    return type(model).__name__.endswith("ForSequenceClassification")


def most_tokens(lm: LM, asked: int) -> int:
    """Return ``asked`` or, if that is less, how many tokens the model and its tokenizer allow at once."""
    limit = positions(lm)
    return asked if limit is None else min(asked, limit)


@frozen(kw_only=True)
class Visit:
    """One block's layers.

    Attributes:
        layers: Its layers that are pruned, in the order in which they run.
        last: What runs last: one of them, or the experts of which some are; "" where that differs from pass to pass.
        calls: How often that runs in one pass.
    """

    layers: tuple[Named, ...]
    last: str
    calls: int


def visits(lm: LM, layers: Sequence[Named], batches: Sequence[Batch]) -> tuple[list[Visit], list[str]]:
    """Return the blocks in the order in which a pass meets them, and the names of layers that no batch meets.

    The first batch meets all layers of most models. Which experts a pass meets is up to the batch: those that ``experts`` has
    split are met all together or not at all, and others when a token is sent to them.
    """
    order: dict[str, int] = {}
    calls: dict[str, int] = {}
    calls_of_one: dict[str, int] = {}
    handles = []
    wholes = {name: _whole(lm.model, name) for name, _ in layers}
    met_as = {name: lm.model.get_submodule(name) for name in dict.fromkeys(wholes.values())}
    for name, layer in met_as.items():

        def met(*_: Any, name: str = name) -> None:
            order.setdefault(name, len(order))
            calls[name] = calls.get(name, 0) + 1

        handles.append(layer.register_forward_pre_hook(met))
    always: set[str] = set()
    try:
        with reading(lm):
            for batch in batches:
                forward(lm.model, batch)
                if not always:
                    always, calls_of_one = set(order), dict(calls)
                if len(order) == len(met_as):
                    break
    finally:
        for handle in handles:
            handle.remove()
    groups: dict[str, list[Named]] = {}
    known = [named for named in layers if wholes[named[0]] in order]
    for name, layer in sorted(known, key=lambda named: order[wholes[named[0]]]):
        match = _BLOCK.fullmatch(name)
        groups.setdefault(match[1] if match else name, []).append((name, layer))
    found = []
    for group in groups.values():
        last = wholes[group[-1][0]] if all(wholes[name] in always for name, _ in group) else ""
        found.append(Visit(layers=tuple(group), last=last, calls=calls_of_one.get(last, 0)))
    return found, [name for name, _ in layers if wholes[name] not in order]


def _whole(model: torch.nn.Module, name: str) -> str:
    """Return the name of the experts that a layer is part of; its own if it is not."""
    parent = name.rsplit(".", 2)[0]
    return parent if isinstance(model.get_submodule(parent), SplitExperts) else name


def observe(lm: LM, visit: Visit, batches: Sequence[Batch], see: Mapping[str, Callable[[torch.Tensor], None]]) -> None:
    """Run the model up to the end of a block and show each of its layers' inputs.

    Nothing behind the block is computed, and nothing is kept between blocks but what ``see`` keeps.

    Args:
        lm: The model.
        visit: The block.
        batches: Calibration batches.
        see: By name of a layer: called with its inputs as (tokens, features).
    """
    handles = []
    for name, layer in visit.layers:

        def entered(_: nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
            see[name](inputs[0].detach().flatten(0, -2))

        handles.append(layer.register_forward_pre_hook(entered))
    left = [0]

    def done(*_: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise Enough

    if visit.last:
        handles.append(lm.model.get_submodule(visit.last).register_forward_hook(done))
    try:
        with reading(lm):
            for batch in batches:
                left[0] = visit.calls
                try:
                    forward(lm.model, batch)
                except Enough:
                    continue
    finally:
        for handle in handles:
            handle.remove()


def check_finite(inputs: Mapping[str, torch.Tensor]) -> None:
    """Check what was found of the inputs of layers, by their names.

    Raises:
        NumericError: Naming the first of which something is NaN or infinite.
    """
    for name, found in inputs.items():
        if not bool(found.isfinite().all()):
            raise NumericError(
                f"{name}: its inputs on the examples hold NaN or infinity; look at the weights of what stands before it, or at the "
                "examples."
            )


@contextmanager
def attention_kept(model: nn.Module) -> Iterator[None]:
    """Let a model have the attention afterwards that it has now: BigBird takes full attention from its first short text on."""
    kinds: dict[Any, Any] = {m: m.attention_type for m in model.modules() if hasattr(m, "set_attention_type")}
    try:
        yield
    finally:
        with torch.random.fork_rng(devices=[]):  # BigBird makes layers with random weights, and then gives them its own
            for module, kind in kinds.items():  # from the outside to the inside, as they set each other's
                module.set_attention_type(kind)


@contextmanager
def reading(lm: LM) -> Iterator[None]:
    """Let a model read texts for the sake of something else: no dropout, no gradients, and afterwards it is as it was, and so are
    torch's random numbers."""
    with torch.random.fork_rng(devices=[]), attention_kept(lm.model), lm.evaluating():
        yield


class Enough(Exception):
    """Ends a pass of which nobody needs the rest."""


def forward(model: Any, batch: Batch, *, loss: bool = False) -> Any:
    """Run a model of any head on a batch, without a cache; it gets labels only where it has to compute its ``loss``."""
    takes = inspect.signature(model.forward).parameters
    given = {name: value for name, value in batch.items() if name != "labels"}
    if loss:
        given["labels"] = batch["labels"]
    elif is_classifier(model):  # of their input these make what their decoder reads
        given.pop("decoder_input_ids", None)
    elif "decoder_input_ids" in takes and "decoder_input_ids" not in given:
        given["decoder_input_ids"] = decoder_ids(model, batch["labels"])
    if "use_cache" in takes:
        given["use_cache"] = False  # type: ignore[assignment]
    return model(**given)


def decoder_ids(model: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return what an encoder-decoder's decoder reads where it is to predict ``labels`` (batch, time): M2M100, Blenderbot and others
    have no method that tells.

    Raises:
        ConfigError: If such a model's config does not say with which token its decoder begins, or what padding is where there is some.
    """
    make = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if make is not None:
        found: torch.Tensor = make(labels=labels)
        return found
    config, before = model.config, labels[:, :-1]
    first = getattr(config, "decoder_start_token_id", None)
    if first is None:
        raise _unsaid(
            config, "decoder_start_token_id", "its decoder's first token (often that of padding or of the end)"
        )
    ignored = before == IGNORED
    pad = getattr(config, "pad_token_id", None)
    if pad is None:
        if bool(ignored.any()):
            raise _unsaid(config, "pad_token_id", "the token that fills up shorter texts (often the tokenizer's)")
    else:
        before = before.masked_fill(ignored, pad)
    return torch.cat([labels.new_full((len(labels), 1), first), before], 1)


def _unsaid(config: Any, name: str, what: str) -> ConfigError:
    """Return the error about a token that a model's config leaves out."""
    return ConfigError(
        [f"a {config.model_type} model needs {what}, and its config has none; set model.config.{name} @ {name}"],
        "config of the model",
    )

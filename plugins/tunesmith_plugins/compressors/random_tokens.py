"""Inputs for layers without data: random tokens of the model's own vocabulary, and layers rounded as they meet them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tunesmith.continuation import positions, writable
from tunesmith.lm import LM, Family
from tunesmith_plugins.compressors.prune_calibration import Batch, Enough, forward, reading

SHAPES: Mapping[Family, tuple[int, int]] = {"encoder": (512, 1), "decoder": (256, 4), "encoder-decoder": (256, 4)}
"""How many texts, and the random tokens of each. The shortest texts are the hardest, since nothing is averaged out in them; a
decoder's texts begin with all shorter ones."""


def random_batch(lm: LM, seed: int) -> Batch:
    """Return texts of one length: random tokens, with what the tokenizer (where there is one) puts around any text."""
    texts, length = SHAPES[lm.family]
    count = tokens_of(lm.model)
    generator = torch.Generator().manual_seed(seed)
    ends = _stated(lm.model.config, "eos_token_id")
    special = {*ends, *_stated(lm.model.config, "bos_token_id", "pad_token_id", "decoder_start_token_id")}
    before: list[int] = []
    after = ends[:1] if lm.family == "encoder-decoder" else []
    known = count
    if lm.tokenizer is not None:
        known, special = min(count, len(lm.tokenizer)), set(lm.tokenizer.all_special_ids)
        before, after = _around(lm.tokenizer)
    usual = [token for token in range(known) if token not in special] or list(range(count))
    limits = [limit for limit in (positions(lm), writable(lm)) if limit is not None]
    if limits:
        length = max(1, min(length, min(limits) - max(1, len(before) + len(after))))
    chosen = torch.tensor(usual)[torch.randint(len(usual), (2, texts, length), generator=generator)].to(lm.device)

    def with_tokens(before: Sequence[int], tokens: Tensor, after: Sequence[int]) -> Tensor:
        columns = [torch.tensor(ids, dtype=torch.long).to(lm.device).expand(texts, -1) for ids in (before, after)]
        return torch.cat([columns[0], tokens, columns[1]], dim=1)

    batch = {"input_ids": with_tokens(before, chosen[0], after)}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    if lm.family == "encoder-decoder":
        start = getattr(lm.model.config, "decoder_start_token_id", None)
        batch["decoder_input_ids"] = with_tokens([0 if start is None else start], chosen[1], [])
    return batch


def tokens_of(model: Any) -> int:
    """Return how many tokens a model knows: the rows of its table, where that is one, or what its config states."""
    return int(getattr(model.get_input_embeddings(), "num_embeddings", getattr(model.config, "vocab_size", 1)))


def _stated(config: Any, *names: str) -> list[int]:
    """Return the ids that a model's config states under ``names``."""
    found: list[int] = []
    for name in names:
        given = getattr(config, name, None)
        found += [token for token in (given if isinstance(given, list) else [given]) if isinstance(token, int)]
    return found


def reads(lm: LM, batch: Batch) -> Exception | None:
    """Return why the model cannot read such a batch (it wants sounds or images too, or fewer tokens), None if it can."""
    try:
        with reading(lm):
            forward(lm.model, {name: tensor[:2] for name, tensor in batch.items()})
    except Exception as cause:  # of any model's own code
        return cause
    return None


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens that a tokenizer puts before and behind a text."""
    nothing, something = (list(tokenizer(text).input_ids) for text in ("", "a"))
    same = 0
    while same < min(len(nothing), len(something)) and nothing[same] == something[same]:
        same += 1
    return nothing[:same], nothing[same:]


def in_passing(lm: LM, names: Sequence[str], batch: Batch, meet: Callable[[str, Tensor], None]) -> set[str]:
    """Run the model once; when it comes to a layer, replace that and go on with what stands in its place.

    Args:
        lm: The model.
        names: Of layers, each once.
        batch: The model's arguments.
        meet: Called with a layer's name and its inputs (tokens, features); has to put another in its place.

    Returns:
        The names of layers that were not met.
    """
    model, left = lm.model, set(names)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    last = next((name for name in names if model.get_submodule(name) is head), None)
    del head

    def stand_in(name: str) -> None:
        def met(*given: Any, **named: Any) -> Any:
            x = given[0] if given else next(iter(named.values()))
            del model.get_submodule(name).forward
            rows = x.detach().flatten(0, -2)
            meet(name, rows[rows.isfinite().all(-1)])
            left.discard(name)
            if not left or name == last:  # logits of all positions are large, and nobody reads them
                raise Enough
            return model.get_submodule(name)(x)

        model.get_submodule(name).forward = met

    for name in names:
        stand_in(name)
    try:
        with reading(lm):
            forward(model, batch)
    except Enough:
        pass
    finally:
        for name in left:
            model.get_submodule(name).__dict__.pop("forward", None)
    return left

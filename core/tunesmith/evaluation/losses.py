"""Natural-log losses of the tokens of reference texts, for each family of models.

Imported at run time only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from tunesmith import continuation
from tunesmith.errors import DataError

if TYPE_CHECKING:
    from tunesmith.data.records import Example
    from tunesmith.kinds.engine import Engine
    from tunesmith.lm import LM

MASKED_ROWS = 32
"""Masked copies of a text that go through the model at once."""


@frozen(kw_only=True)
class Losses:
    """Losses of every example's tokens, and how many examples lost part of their text to the model's limit."""

    losses: tuple[tuple[float, ...], ...]
    truncated: int


def token_losses(lm: LM, examples: Sequence[Example], engine: Engine | None) -> Losses:
    """Return the loss of every token of each example's first target.

    - decoder-only, with a prompt: the target's tokens given the prompt (:func:`tunesmith.continuation.encode`);
    - decoder-only, plain text: every token of the text, in windows as long as the model reads;
    - encoder-decoder: the target's tokens and the end-of-sequence token, given the prompt;
    - encoder: each token of the text when it alone is masked (pseudo-log-likelihood; Salazar et al. 2020, equation 2).
      Such a number cannot be compared with a decoder's.

    Args:
        lm: The model.
        examples: Each with at least one target, not empty.
        engine: Where decoders and encoder-decoders are scored; an encoder needs none.

    Raises:
        DataError: Naming an example without a target.
    """
    for example in examples:
        if not example.targets or not example.targets[0]:
            raise DataError(f"example {example.id!r} has no target text whose loss could be measured.")
    if lm.family == "encoder":
        return _masked(lm, examples)
    if engine is None:
        raise DataError("token losses of a model that is no encoder need an engine.")
    pairs: list[continuation.Pair] = []
    spans: list[tuple[int, int]] = []
    truncated = 0
    for example in examples:
        begin = len(pairs)
        if lm.family == "decoder" and not example.prompt:
            pairs += continuation.windows(lm, example.targets[0])
        else:
            pairs.append(_with_end(lm, continuation.encode(lm, example.prompt, example.targets[0])))
        truncated += any(pair.cut for pair in pairs[begin:])
        spans.append((begin, len(pairs)))
    scored = continuation.score(engine, pairs)
    losses = tuple(tuple(-v for part in scored[a:b] for v in part) for a, b in spans)
    return Losses(losses=losses, truncated=truncated)


def _with_end(lm: LM, pair: continuation.Pair) -> continuation.Pair:
    """Put the end-of-sequence token behind an encoder-decoder's target, as in its training."""
    end = lm.tokenizer.eos_token_id
    if lm.family != "encoder-decoder" or end is None or pair.ids[-1] == end:
        return pair
    longer = continuation.Pair(context_ids=pair.context_ids, ids=(*pair.ids, int(end)), cut=pair.cut)
    return continuation.truncate(lm, longer)


def _masked(lm: LM, examples: Sequence[Example]) -> Losses:
    import torch

    mask = lm.tokenizer.mask_token_id
    if mask is None:
        raise DataError("the tokenizer of this encoder has no mask token, so no token's loss can be measured.")
    limit = continuation.positions(lm)
    losses, truncated = [], 0
    with lm.evaluating():
        for example in examples:
            text = example.prompt + example.targets[0]
            whole = lm.tokenizer.encode(text)
            ids = lm.tokenizer.encode(text, truncation=limit is not None, max_length=limit)
            truncated += len(ids) < len(whole)
            special = lm.tokenizer.get_special_tokens_mask(ids, already_has_special_tokens=True)
            places = [i for i, s in enumerate(special) if not s or ids[i] == lm.tokenizer.unk_token_id]
            found: list[float] = []
            for start in range(0, len(places), MASKED_ROWS):
                chosen = torch.tensor(places[start : start + MASKED_ROWS], device=lm.device)
                rows = torch.tensor(ids, device=lm.device).repeat(len(chosen), 1)
                lines = torch.arange(len(chosen), device=lm.device)
                answers = rows[lines, chosen].clone()
                rows[lines, chosen] = mask
                logits = lm.model(input_ids=rows, attention_mask=torch.ones_like(rows)).logits[lines, chosen]
                logps = torch.log_softmax(logits.double(), dim=-1)[lines, answers]
                found += (-logps).tolist()
            losses.append(tuple(found))
    return Losses(losses=tuple(losses), truncated=truncated)

"""The one rule by which a text and its continuation become token ids to be scored, for every benchmark and metric.

Decoder-only: the continuation's tokens are those of context + continuation after those of the context. An
encoder-decoder reads the context and scores the continuation. Spaces at the end of the context move to the
continuation, because tokenizers keep them with the next word. What does not fit is cut from the left of the context.
These are the rules of the Language Model Evaluation Harness, so that numbers can be compared.

Imported at run time only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from tunesmith.errors import DataError, MissingPower
from tunesmith.model_settings import base_of
from tunesmith.padding import positions_of

if TYPE_CHECKING:
    from tunesmith.kinds.engine import Engine
    from tunesmith.lm import LM

UNLIMITED = 10**6
"""Tokenizers write their missing limit as a huge number."""


@frozen(kw_only=True)
class Pair:
    """What is scored.

    Attributes:
        context_ids: What the model reads; never empty.
        ids: The continuation's ids; never empty.
        cut: Tokens of the context that did not fit.
    """

    context_ids: tuple[int, ...]
    ids: tuple[int, ...]
    cut: int = 0


def positions(lm: LM) -> int | None:
    """Return how many tokens of text the model reads at once; None if neither it nor its tokenizer has a limit.

    Of an encoder-decoder that is a prompt's; for what it writes ask :func:`writable`. What adapters put before every text
    takes places that are then no longer there for it.
    """
    limit = readable(lm.model, lm.tokenizer)
    return None if limit is None else max(1, limit - sum(adapter.virtual_tokens for adapter in lm.adapters))


def writable(lm: LM) -> int | None:
    """Return how many tokens a text may have that the model writes or scores; None for any number.

    Of an encoder-decoder the decoder's, of which prefixes take some; other models read what they write.
    """
    if lm.family != "encoder-decoder":
        return positions(lm)
    limit = positions_of(lm.model, "decoder", sum(adapter.cached_tokens for adapter in lm.adapters))
    return None if limit is None else max(1, limit)


def readable(model: Any, tokenizer: Any) -> int | None:
    """Return how many tokens a transformers model and its tokenizer read at once; None for any number.

    A model of two halves that writes nothing, such as BART with a classification head, reads the text in both.
    """
    parts: tuple[str, ...] = ("",)
    if model.config.is_encoder_decoder:
        parts = ("encoder",) if base_of(model).can_generate() else ("encoder", "decoder")
    limits = [limit for limit in (positions_of(model, part) for part in parts) if limit is not None]
    own = getattr(tokenizer, "model_max_length", None)
    if own is not None and own < UNLIMITED:
        limits.append(int(own))
    return min(limits, default=None)


def prefix_id(lm: LM) -> int:
    """Return the id that stands before a text without context: beginning of sequence, else end of sequence.

    Raises:
        DataError: If the tokenizer has neither.
    """
    for found in (lm.tokenizer.bos_token_id, lm.tokenizer.eos_token_id):
        if found is not None:
            return int(found)
    raise DataError(
        "a text without context needs a beginning- or end-of-sequence token, and the tokenizer has neither."
    )


def encode(lm: LM, context: str, continuation: str) -> Pair:
    """Return the ids of a pair.

    Raises:
        DataError: If the continuation has no tokens of its own, or is longer than the model reads.
        MissingPower: For an encoder, which continues nothing.
    """
    if lm.family == "encoder":
        raise MissingPower("an encoder continues no text; use a classification head or a metric of token losses.")
    head = context.rstrip()
    head, tail = (head, context[len(head) :] + continuation) if head else ("", context + continuation)
    if lm.family == "encoder-decoder":
        ids = tuple(lm.tokenizer.encode(tail, add_special_tokens=False))
        context_ids = tuple(lm.tokenizer.encode(head)) or (prefix_id(lm),)
    elif head:
        context_ids = tuple(lm.tokenizer.encode(head))
        ids = tuple(lm.tokenizer.encode(head + tail))[len(context_ids) :]
    else:
        whole = tuple(lm.tokenizer.encode(tail))
        first = prefix_id(lm)
        context_ids, ids = (first,), whole[1:] if whole[:1] == (first,) else whole
    if not ids:
        raise DataError(f"the continuation {continuation!r} has no tokens of its own after {context[-40:]!r}.")
    return truncate(lm, Pair(context_ids=context_ids, ids=ids))


def truncate(lm: LM, pair: Pair) -> Pair:
    """Cut the context from the left until the model can read it; of a decoder-only model, the last token is not read.

    Raises:
        DataError: If the continuation alone is longer than the model reads, or than an encoder-decoder writes.
    """
    limit, longest = positions(lm), writable(lm)
    if longest is not None and len(pair.ids) > longest:
        reads, instead = ("writes", "") if lm.family == "encoder-decoder" else ("reads", " or score it as plain text")
        raise DataError(
            f"a continuation of {len(pair.ids)} tokens is longer than the {longest} that the model {reads} at once; "
            f"leave it out{instead}."
        )
    if limit is None:
        return pair
    room = limit if lm.family == "encoder-decoder" else limit + 1 - len(pair.ids)
    cut = max(0, len(pair.context_ids) - room)
    return Pair(context_ids=pair.context_ids[cut:], ids=pair.ids, cut=cut) if cut else pair


def windows(lm: LM, text: str) -> list[Pair]:
    """Return pairs in which every token of a plain text is predicted exactly once (decoder-only).

    Every window but the last predicts as many tokens as the model reads; the last has all the context that still fits.
    """
    first = prefix_id(lm)
    ids = tuple(lm.tokenizer.encode(text))
    ids = ids[1:] if ids[:1] == (first,) else ids
    limit = positions(lm) or max(len(ids), 1)
    pairs = []
    for start in range(0, len(ids), limit):
        end = min(start + limit, len(ids))
        before = ids[end - limit - 1 : start] if start else (first,)
        pairs.append(Pair(context_ids=before, ids=ids[start:end]))
    return pairs


def score(engine: Engine, pairs: Sequence[Pair]) -> list[list[float]]:
    """Return the log-probability of every continuation token, longest pairs first so that batches are even.

    Raises:
        MissingPower: If the engine cannot score.
    """
    engine.require(["score"])
    order = sorted(range(len(pairs)), key=lambda i: -(len(pairs[i].context_ids) + len(pairs[i].ids)))
    found = engine.score([(pairs[i].context_ids, pairs[i].ids) for i in order])
    result: list[list[float]] = [[] for _ in pairs]
    for place, values in zip(order, found, strict=True):
        result[place] = [float(v) for v in values]
    return result

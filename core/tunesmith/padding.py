"""Whether a decoder-only model tells padding from text, where a text begins for a model, what adapters put before it, and how many places
remain."""

from __future__ import annotations

import inspect
import weakref
from functools import cache
from typing import Any

from tunesmith.model_families import needs


def reads_padding(model: Any) -> bool:
    """Return whether padding before a text changes what a decoder-only model of transformers makes of the text."""
    return needs(model).no_padding or "attention_mask" not in inspect.signature(model.forward).parameters


def counts_padding(model: Any) -> bool:
    """Return whether a decoder-only model numbers its tokens by itself, padding and all, for a table of absolute positions.

    So do the decoders of BART and its kin where they are models by themselves.
    """
    if "position_ids" in inspect.signature(model.forward).parameters:
        return False
    return hasattr(model.get_decoder(), "embed_positions")


def counts_between(model: Any) -> bool:
    """Return whether padding between virtual tokens and a text changes what a decoder-only model of transformers makes of the text.

    It does in windows, in recurrences, and in distances that are taken from places.
    """
    minded = needs(model)
    return minded.place_distances or minded.fixed_places or not keeps_all(model.config)


def keeps_all(config: Any) -> bool:
    """Return whether all layers of a model's cache are plain keys and values of every token, which can be padded and cut along time."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def virtual_tokens(model: Any) -> int:
    """Return how many places hooks on a decoder-only model take before every text now; they say so by an attribute of this name."""
    hooks = (hook for module in model.modules() for hook in module._forward_pre_hooks.values())
    return sum(getattr(hook, "virtual_tokens", 0) for hook in hooks)


def first_position(model: Any) -> int:
    """Return the position of a text's first token.

    RoBERTa and its kin count on from the id of padding where they count by themselves, as in training; positions that they
    are told, as generation does, are taken as they are. Of a model of two halves, ask each half.
    """
    counting = _counts_from_padding(model)
    return 0 if counting is None else counting.padding_idx + 1


STATED = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
"""Under which names configs state their positions; the first counts."""


def positions_of(model: Any, part: str = "", taken: int = 0) -> int | None:
    """Return how many tokens of text a model of transformers has positions for, or its ``"encoder"`` or ``"decoder"``.

    None for any number. Adapters have ``taken`` some of them.
    """
    config = model.config
    if config.is_encoder_decoder and getattr(config, "relative_attention_num_buckets", None):
        return None  # T5 and its kin: distances, whatever length their config says they were trained at
    half = getattr(model, f"get_{part}")() if part else model
    own = getattr(config, part, None) if part else None  # of models that were put together from two
    named = [getattr(config, f"max_{part}_position_embeddings", None)]
    named += [getattr(source, name, None) for source in (own, config) for name in STATED]
    found = next((number for number in named if isinstance(number, int) and number > 0), None)
    return None if found is None else text_positions(half, found) - taken


def text_positions(model: Any, stated: int) -> int:
    """Return how many tokens of text a model, or half of one, reads at once if its config states so many positions.

    Those before the first position are never a text's. Sines (M2M100) go on beyond what is stated, wherever they begin.
    """
    counting = _counts_from_padding(model)
    stated -= needs(model).spare_positions
    return stated if not hasattr(counting, "position_embeddings") else stated - counting.padding_idx - 1


def _counts_from_padding(model: Any) -> Any:
    """Return the module that numbers tokens from behind the id of padding, None if no module does."""
    known = _counting.get(model, _UNKNOWN)
    if known is _UNKNOWN:
        found = next((module for module in model.modules() if _counts(module)), None)
        # without a hold on it: the module may be the model
        known = _counting[model] = None if found is None else weakref.ref(found)
    return None if known is None else known()


_UNKNOWN: Any = object()
_counting: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
"""What was found in each model, which has hundreds of modules; each scored text asks."""


def _counts(module: Any) -> bool:
    kind: Any = type(module)
    return _may_count(kind) and isinstance(getattr(module, "padding_idx", None), int)


@cache
def _may_count(kind: type) -> bool:
    """Return whether modules of a class can number tokens."""
    return any(hasattr(kind, f"create_position_ids_from_{given}") for given in ("input_ids", "inputs_embeds"))

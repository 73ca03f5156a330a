"""Models for tests of beam searches."""

from __future__ import annotations

from tunesmith.lm import LM
from tunesmith.testing.models import Family, tiny_lm

PROMPTS = ["the cat sees a tree", "dog", "one two red"]


def with_many_ends(family: Family) -> LM:
    """A model whose beams end at all lengths: many tokens end a text. Early stopping changes what is found."""
    lm = tiny_lm(family, spread=0.5 if family == "encoder-decoder" else 2.0, seed=1)
    lm.model.generation_config.eos_token_id = [1, *range(8, 14)]
    return lm

"""Configs of the standard engines."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from attrs import Attribute, field, frozen
from attrs import validators as v

from tunesmith.kinds.engine import EngineConfig

IMPLEMENTATIONS = "tunesmith_plugins.engines"


def _has_a_cache(config: Any, attribute: Attribute[str], value: str) -> None:
    if value != "float" and not config.kv_cache:
        raise ValueError(
            f"{attribute.name!r}: kv_cache=False keeps nothing that could be {value}; leave one of them out"
        )


@frozen(kw_only=True)
class Transformers(EngineConfig):
    """Generate in this process with the transformers model itself, so that weights that change are followed at once.

    Attributes:
        batch_size: Most rows in one forward pass.
        max_length: Most positions that prompt and completion take together (encoder-decoder: the prompt). Longer
            prompts are cut as in training (decoder-only: on the left, encoder-decoder: on the right), which is counted and
            warned about. None: what model and tokenizer say.
        cache_tokens: Most token places of all rows together (rows times the longest prompt and completion among them); fewer
            rows run at once where texts are long, but always one. None: as many as ``batch_size`` rows need.
        kv_cache: Keep keys and values of what was read. Without them everything is read again for every token, which
            saves memory and costs time.
        cache: How keys and values of earlier tokens are kept: ``float``: as the model computes them; ``int8``: in 8 bits with a
            scale for each token and head, in about a quarter of the memory of float32. Scores are always
            computed without. It needs ``kv_cache``.
        forced_end: Where the generation config forces the end of a text (``forced_eos_token_id``): make it the last token that a
            completion has room for, as transformers does, so that one that was cut ends too (its ``finish`` is still
            ``length``). Without it the model writes its last token as the others.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.in_process:TransformersEngine"
    revision: ClassVar[int] = 2
    batch_size: int = field(default=16, validator=v.ge(1))
    max_length: int | None = field(default=None, validator=v.optional(v.ge(2)))
    cache_tokens: int | None = field(default=None, validator=v.optional(v.ge(1)))
    kv_cache: bool = True
    cache: Literal["float", "int8"] = field(default="float", validator=_has_a_cache)
    forced_end: bool = True


@frozen(kw_only=True)
class Scripted(EngineConfig):
    """Give fixed answers, for tests: by prompt where one is written down, else the next of a list.

    Attributes:
        answers: Given in order, one a request that ``by_prompt`` does not have.
        by_prompt: Prompt to answer.
        repeat: Begin again at the first answer when all are used; otherwise that is an error.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.scripted:ScriptedEngine"
    answers: tuple[str, ...] = ()
    by_prompt: dict[str, str] = field(factory=dict)
    repeat: bool = False

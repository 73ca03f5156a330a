"""llguidance's side of structured output: tokens as bytes, formats as grammars.

llguidance is an extra, so it is imported only when a grammar is about to be used.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ConfigError, PluginLoadError
from tunesmith_plugins.samplers.config_structured import Format

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

WHITESPACE: dict[str, dict[str, Any]] = {
    "space": {"whitespace_flexible": True, "whitespace_pattern": "[ ]"},
    "none": {"whitespace_flexible": False},
    "any": {"whitespace_flexible": True},
}


def check_installed() -> None:
    """Raise PluginLoadError, naming the extra, if llguidance is not installed."""
    if importlib.util.find_spec("llguidance") is None:
        raise PluginLoadError("the sampler 'structured' needs llguidance: pip install 'tunesmith[structured]'")


def tokens_of(tokenizer: Any, ends: Collection[int]) -> LLTokenizer:
    """Return what llguidance needs to know of a tokenizer.

    Args:
        tokenizer: A fast tokenizer of transformers.
        ends: Ids that end a text.

    Raises:
        ConfigError: If it does not say which bytes a token stands for, or there is nothing that ends a text.
    """
    from llguidance import LLTokenizer, TokenizerWrapper
    from llguidance.hf import from_tokenizer

    if not ends:
        raise ConfigError(["the model has no end-of-sequence token, so no text could ever end"], "structured")
    try:
        return from_tokenizer(tokenizer, eos_token=sorted(ends))
    except ValueError:
        pieces = _pieces(tokenizer, ends)
    return LLTokenizer(TokenizerWrapper(pieces), eos_token=sorted(ends))


def matcher(format_: Format, whitespace: str, tokens: LLTokenizer) -> LLMatcher:
    """Return a matcher at the beginning of a text.

    Raises:
        ConfigError: If the format cannot be read, saying why.
    """
    from llguidance import LLMatcher, gbnf_to_lark

    if format_.language == "json_schema":
        grammar = LLMatcher.grammar_from_json_schema(json.loads(format_.text), overrides=WHITESPACE[whitespace])
    elif format_.language == "regex":
        grammar = LLMatcher.grammar_from_regex(format_.text)
    elif format_.language == "lark":
        grammar = LLMatcher.grammar_from_lark(format_.text)
    else:
        try:
            grammar = LLMatcher.grammar_from_lark(gbnf_to_lark.gbnf_to_lark(format_.text))
        except gbnf_to_lark.GbnfToLarkError as cause:
            raise ConfigError([f"the grammar cannot be read: {cause}"], "structured") from cause
    made = LLMatcher(tokens, grammar, log_level=0)
    if made.is_error():
        raise ConfigError([f"the format cannot be followed: {made.get_error().strip()}"], "structured")
    return made


class _Pieces:
    """A tokenizer whose tokens, written one behind the other, are the text."""

    def __init__(self, tokenizer: Any, tokens: Sequence[bytes], ends: Collection[int]) -> None:
        self.eos_token_id, self.bos_token_id = min(ends), tokenizer.bos_token_id
        self.tokens, self.special_token_ids = tokens, sorted({*tokenizer.all_special_ids, *ends})
        self.read = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        found: list[int] = self.read(text, add_special_tokens=False)["input_ids"]
        return found


def _pieces(tokenizer: Any, ends: Collection[int]) -> _Pieces:
    """Ask a tokenizer of an unknown kind for the text of each token."""
    special = {*tokenizer.all_special_ids, *ends}
    texts = ["" if token in special else tokenizer.decode([token]) for token in range(len(tokenizer))]
    plain = [token for token in range(len(tokenizer)) if token not in special]
    for one, other in itertools.pairwise(plain):
        if tokenizer.decode([one, other]) != texts[one] + texts[other]:
            raise ConfigError(
                [
                    f"a text of this tokenizer is not its tokens one behind the other: {texts[one]!r} and "
                    f"{texts[other]!r} become {tokenizer.decode([one, other])!r}; structured output needs one of which it is"
                ],
                "structured",
            )
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    tokens = [f"<[{names[n]}]>".encode() if n in special else text.encode() for n, text in enumerate(texts)]
    return _Pieces(tokenizer, tokens, ends)

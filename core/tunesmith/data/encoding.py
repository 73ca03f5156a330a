"""Examples to rows of token ids, for every objective, with a count of what had to be cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from attrs import define, field, frozen

from tunesmith.data.records import Example
from tunesmith.errors import ConfigError, DataError

IGNORED = -100
"""Label of a token that is not in the loss."""


@define
class Cut:
    """What did not fit: how many texts were cut, and tokens before and after."""

    texts: int = 0
    shortened: int = 0
    tokens: int = 0
    lost: int = 0

    def count(self, full: int, kept: int) -> None:
        """Count a text of ``full`` tokens of which ``kept`` are left."""
        self.texts += 1
        self.tokens += full
        self.shortened += kept < full
        self.lost += max(0, full - kept)

    @property
    def share(self) -> float:
        """Share of all tokens that were cut off."""
        return self.lost / self.tokens if self.tokens else 0.0


@define
class Truncation:
    """Cuts of inputs and of targets."""

    inputs: Cut = field(factory=Cut)
    targets: Cut = field(factory=Cut)

    @property
    def share(self) -> float:
        """Share of all tokens that were cut off."""
        tokens = self.inputs.tokens + self.targets.tokens
        return (self.inputs.lost + self.targets.lost) / tokens if tokens else 0.0


@frozen(kw_only=True)
class Row:
    """One row for the model.

    Attributes:
        input_ids: Tokens.
        labels: As long as ``input_ids`` (causal, masked), the target's tokens (seq2seq), or one class id (classification).
        segments: Causal: lengths of the examples that were packed into the row; empty if it is just one.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    segments: tuple[int, ...] = ()


@frozen(kw_only=True)
class Lengths:
    """Most tokens of an input and of a target."""

    input: int
    target: int


def seq2seq(examples: Sequence[Example], tokenizer: Any, lengths: Lengths, cut: Truncation) -> list[Row]:
    """Return a row for every example: the prompt, and the first target with an end-of-sequence token."""
    rows = []
    for example in examples:
        source = shortened(tokenizer, example.prompt, lengths.input, cut.inputs)
        target = ended(tokenizer, tokenizer(text_target=first_target(example))["input_ids"])
        cut.targets.count(len(target), min(len(target), lengths.target))
        rows.append(Row(input_ids=tuple(source), labels=tuple(_keep_end(target, lengths.target))))
    return rows


def causal(
    examples: Sequence[Example], tokenizer: Any, lengths: Lengths, cut: Truncation, mask_prompt: bool
) -> list[Row]:
    """Return rows of prompt and target; plain text is split into rows, so that none of it is lost.

    What is too long loses the beginning of its prompt, then the end of its target.
    """
    rows = []
    for example in examples:
        if not example.prompt:
            text = ended(tokenizer, tokenizer(first_target(example))["input_ids"])
            cut.inputs.count(len(text), len(text))
            for piece in windows(text, lengths.input):
                rows.append(Row(input_ids=tuple(piece), labels=tuple(piece)))
            continue
        prompt, target = split_ids(tokenizer, example.prompt, first_target(example))
        kept_target = target[: lengths.input]
        room = lengths.input - len(kept_target)
        kept_prompt = _keep_start_and_end(tokenizer, prompt, room)
        cut.inputs.count(len(prompt), len(kept_prompt))
        cut.targets.count(len(target), len(kept_target))
        labels = [IGNORED if mask_prompt else i for i in kept_prompt] + kept_target
        rows.append(Row(input_ids=(*kept_prompt, *kept_target), labels=tuple(labels)))
    return rows


def masked(examples: Sequence[Example], tokenizer: Any, lengths: Lengths, cut: Truncation) -> list[Row]:
    """Return rows of whole text (prompt and first target), split where too long; labels are the tokens themselves."""
    rows = []
    for example in examples:
        for ids in _pieces(tokenizer, whole_text(example), lengths.input, cut):
            rows.append(Row(input_ids=tuple(ids), labels=tuple(ids)))
    return rows


def raw(examples: Sequence[Example], tokenizer: Any, length: int, cut: Truncation) -> list[Row]:
    """Return rows of ``length`` raw tokens (the last of a text may be shorter) without special ones."""
    rows = []
    for example in examples:
        ids = tokenizer(whole_text(example), add_special_tokens=False)["input_ids"]
        cut.inputs.count(len(ids), len(ids))
        for piece in windows(ids, length):
            if len(piece) > 1:  # a single token leaves nothing to read or nothing to write
                rows.append(Row(input_ids=tuple(piece), labels=()))
    return rows


def classification(
    examples: Sequence[Example], tokenizer: Any, lengths: Lengths, cut: Truncation, labels: Sequence[str]
) -> list[Row]:
    """Return rows of a prompt and the number of its class.

    Raises:
        DataError: If an example's target is none of ``labels``.
    """
    numbers = {name: index for index, name in enumerate(labels)}
    rows = []
    for example in examples:
        name = first_target(example)
        if name not in numbers:
            raise DataError(
                f"example {example.id!r} has the class {name!r}; the model knows {', '.join(map(repr, labels))}."
            )
        source = shortened(tokenizer, example.prompt, lengths.input, cut.inputs)
        rows.append(Row(input_ids=tuple(source), labels=(numbers[name],)))
    return rows


def first_target(example: Example) -> str:
    """Return the answer that is trained on.

    Raises:
        DataError: If there is none.
    """
    if not example.targets:
        raise DataError(f"example {example.id!r} has no target to train on; give the data a target template.")
    return example.targets[0]


def whole_text(example: Example) -> str:
    """Return prompt and target as one text."""
    return example.prompt + (example.targets[0] if example.targets else "")


def shortened(tokenizer: Any, text: str, length: int, cut: Cut) -> list[int]:
    """Return a text's ids with special tokens, cut at the end to ``length`` (special tokens stay)."""
    ids: list[int] = tokenizer(text)["input_ids"]
    cut.count(len(ids), min(len(ids), length))
    return ids if len(ids) <= length else list(tokenizer(text, truncation=True, max_length=length)["input_ids"])


def ended(tokenizer: Any, ids: list[int]) -> list[int]:
    """Return ids with the end-of-sequence token behind them, once."""
    end = tokenizer.eos_token_id
    return ids if end is None or (ids and ids[-1] == end) else [*ids, end]


def split_ids(tokenizer: Any, prompt: str, target: str) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt as generation reads it, and those of the answer that goes on from it, with its end.

    The answer's are what the whole text has beyond the prompt's, where tokens do not cross the border.
    """
    before: list[int] = list(tokenizer(prompt)["input_ids"])
    while before and before[-1] == tokenizer.eos_token_id:
        before.pop()
    whole: list[int] = list(tokenizer(prompt + target)["input_ids"])
    if whole[: len(before)] == before and len(whole) > len(before):
        return before, ended(tokenizer, whole[len(before) :])
    return before, ended(tokenizer, list(tokenizer(target, add_special_tokens=False)["input_ids"]))


def windows(ids: Sequence[int], length: int) -> Iterator[Sequence[int]]:
    """Yield consecutive pieces of at most ``length``."""
    return (ids[start : start + length] for start in range(0, len(ids), length))


def _pieces(tokenizer: Any, text: str, length: int, cut: Truncation) -> list[list[int]]:
    special = tokenizer.num_special_tokens_to_add()
    if length <= special:
        raise ConfigError(
            [f"must leave room for text beside {special} special tokens: {length} @ max_length"], "training"
        )
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    cut.inputs.count(len(ids), len(ids))
    if len(ids) + special <= length:
        return [list(tokenizer(text)["input_ids"])]
    found = tokenizer(text, truncation=True, max_length=length, return_overflowing_tokens=True)["input_ids"]
    if not isinstance(found[0], list):
        raise ConfigError(["the tokenizer is not a fast one, so long texts cannot be split; shorten them"], "training")
    return [list(piece) for piece in found]


def _keep_end(ids: list[int], length: int) -> list[int]:
    """Cut to ``length`` before the last token, which ends the sequence."""
    return ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]


def _keep_start_and_end(tokenizer: Any, ids: list[int], length: int) -> list[int]:
    """Cut to ``length`` at the beginning, behind a begin-of-sequence token."""
    if len(ids) <= length:
        return ids
    if length > 1 and ids[0] == tokenizer.bos_token_id:
        return [ids[0], *ids[len(ids) - length + 1 :]]
    return ids[len(ids) - length :] if length else []

"""An objective applied to data: which rows, which noise, which batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from attrs import define, field, frozen

from tunesmith.data import encoding
from tunesmith.data.encoding import IGNORED, Lengths, Row, Truncation
from tunesmith.data.records import Example
from tunesmith.errors import ConfigError, DataError
from tunesmith.lm import LM
from tunesmith.training import batches, packing, spans
from tunesmith.training.stream import Noise

Objective = Literal["seq2seq", "causal", "masked", "span_corruption", "classification"]
FAMILIES: dict[str, tuple[str, ...]] = {
    "seq2seq": ("encoder-decoder",),
    "causal": ("decoder",),
    "masked": ("encoder",),
    "span_corruption": ("encoder-decoder",),
    "classification": ("encoder", "decoder", "encoder-decoder"),
}
_KINDS = {
    "seq2seq": "pairs",
    "span_corruption": "pairs",
    "causal": "tokens",
    "masked": "tokens",
    "classification": "classes",
}


def objective_of(family: str, asked: str) -> Objective:
    """Return the objective, ``"auto"`` by the family.

    Raises:
        ConfigError: If the family cannot have it.
    """
    automatic: dict[str, Objective] = {"encoder-decoder": "seq2seq", "decoder": "causal", "encoder": "masked"}
    if asked == "auto":
        return automatic[family]
    if family not in FAMILIES[asked]:
        needs = " or ".join(FAMILIES[asked])
        raise ConfigError(
            [f"{asked!r} needs a model of the family {needs!r}, and this one is of {family!r} @ objective"], "training"
        )
    found: Objective = asked  # type: ignore[assignment]
    return found


@frozen(kw_only=True)
class Limits:
    """What is said about rows.

    Attributes:
        lengths: Most tokens of inputs and targets.
        packing: Several examples in one row (causal only).
        mask_prompt: Only the answer's tokens are in the loss (causal only).
        mask_share: Share of the tokens that are asked for (masked only).
    """

    lengths: Lengths
    packing: bool = False
    mask_prompt: bool = True
    mask_share: float = batches.MASKED


@define(kw_only=True)
class Task:
    """An objective for one model."""

    objective: Objective
    lm: LM
    limits: Limits
    labels: tuple[str, ...] = ()
    noise: Noise | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        tokenizer, lengths = self.lm.tokenizer, self.limits.lengths
        if self.limits.packing and self.objective != "causal":
            raise ConfigError(
                [f"the objective {self.objective!r} cannot pack; leave packing out @ packing"], "training"
            )
        if self.objective == "masked":
            self.noise = batches.mask_noise(tokenizer, self.limits.mask_share)
        elif self.objective == "span_corruption":
            self.noise = batches.span_noise(tokenizer, spans.raw_length(lengths.input, lengths.target))

    def rows(self, examples: Sequence[Example], cut: Truncation) -> list[Row]:
        """Return the rows of examples, counting in ``cut`` what did not fit; without those that have no token to read.

        Raises:
            DataError: If no row is left, or none has a token to predict, or an encoder-decoder would read nothing at all.
        """
        tokenizer, lengths = self.lm.tokenizer, self.limits.lengths
        match self.objective:
            case "seq2seq":
                if examples and not any(example.prompt for example in examples):
                    raise DataError(
                        "no example has a prompt, so an encoder-decoder would read nothing; give the data a prompt template, or "
                        "train on plain text with objective='span_corruption'."
                    )
                rows = encoding.seq2seq(examples, tokenizer, lengths, cut)
            case "causal":
                rows = encoding.causal(examples, tokenizer, lengths, cut, self.limits.mask_prompt)
                rows = packing.pack(rows, lengths.input) if self.limits.packing else rows
            case "masked":
                rows = encoding.masked(examples, tokenizer, lengths, cut)
            case "span_corruption":
                rows = encoding.raw(examples, tokenizer, spans.raw_length(lengths.input, lengths.target), cut)
            case "classification":
                rows = encoding.classification(examples, tokenizer, lengths, cut, self.labels)
        rows = [row for row in rows if row.input_ids]
        first = 1 if self.objective == "causal" else 0  # nothing stands before a first token
        asked = any(label != IGNORED for row in rows for label in row.labels[first:])
        if not rows or not (asked or self.objective == "span_corruption"):  # spans are chosen later
            raise DataError(
                f"the data gives no row to train on: none of {len(examples)} texts has a token to predict (a decoder's first is "
                "none). Give longer texts, or look at the data's prompt and target."
            )
        return rows

    def collate(self) -> batches.Collate:
        """Return what makes batches of these rows."""
        tokenizer: Any = self.lm.tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
        packed = self.limits.packing
        # packed rows are all padded to one width, or the last batch would give other kernels than an unpacked one
        return batches.Collate(
            pad, "packed" if packed else _KINDS[self.objective], self.limits.lengths.input if packed else 0
        )

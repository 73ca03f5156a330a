"""Where examples come from and how a record becomes a prompt."""

from __future__ import annotations

from attrs import field, frozen
from attrs import validators as v

from tunesmith.typecheck import check_fields


@frozen(kw_only=True)
class Data:
    """A data set and how its records become prompts and targets.

    Attributes:
        source: A file (.jsonl, .json, .csv, .tsv, .parquet, .txt), a folder with one file a split
            (``train.jsonl``, ``name.train.jsonl``), or a hub name for the ``datasets`` library.
        prompt: Template over the record's fields, e.g. ``"Summarize.\\n\\n{dialogue}\\n\\nSummary: "``; "" for plain text.
        target: Template of the answer, e.g. ``"{summary}"``.
        references: Further templates of reference answers for evaluation, where a record has several.
        id: The field that identifies a record; "" uses a hash of the record's content.
        subset: Configuration name of a hub data set.
        revision: Revision of a hub data set.
        shots: In-context examples put before every prompt, drawn from ``shots_split`` by the seed.
        shots_split: Split that in-context examples come from; never the evaluated one.
        separator: Between in-context examples.
        chat: Put the prompt through the tokenizer's chat template as a user's turn.
        fractions: Splits made here, name to share, where the source has only one file; by content hash, so that equal prompts
            stay together and adding records moves none.
        seed: Seed of in-context examples and made splits.
    """

    source: str
    prompt: str = ""
    target: str = ""
    references: tuple[str, ...] = ()
    id: str = ""
    subset: str = ""
    revision: str = ""
    shots: int = field(default=0, validator=v.ge(0))
    shots_split: str = "train"
    separator: str = "\n\n"
    chat: bool = False
    fractions: dict[str, float] = field(factory=dict)
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        check_fields(self)

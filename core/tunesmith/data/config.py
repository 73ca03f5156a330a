"""Where examples come from and how a record becomes a prompt."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen
from attrs import validators as v

from tunesmith.data.template import valid
from tunesmith.kinds.stage import Output
from tunesmith.typecheck import Checked


def _shares(instance: Any, attribute: Any, value: Any) -> None:
    if any(not 0 < share <= 1 for share in value.values()) or sum(value.values()) > 1 + 1e-9:
        raise ValueError(f"'fractions' must be shares in (0, 1] that add up to at most 1: {value!r}")


@frozen(kw_only=True)
class Data(Checked):
    """A data set and how its records become prompts and targets.

    Attributes:
        source: A file (.jsonl, .json, .csv, .tsv, .parquet, .txt; .gz of the text formats), a folder with one file a split
            (``train.jsonl``, ``name.train.jsonl``), or a hub name for the ``datasets`` library. A single file whose name
            tells no split is the split ``"train"``, unless ``fractions`` divides it; the split ``"all"`` is all of it.
            In a pipeline also the ``dataset`` of an earlier stage: ``tunesmith.output("stage", "dataset")``.
        prompt: Template over the record's fields, e.g. ``"Summarize.\\n\\n{dialogue}\\n\\nSummary: "``; "" for plain text.
            Literal braces are doubled. A field is a plain name: there is no access to attributes or items.
        target: Template of the answer, e.g. ``"{summary}"``. A template that is just one field whose value is a list of
            texts gives one reference answer each.
        references: Further templates of reference answers for evaluation, where a record has several. Templates (of these
            and of ``target``) over fields that no record of the split has are left out, as long as one remains.
        id: The field that identifies a record; "" uses a hash of the record's content.
        subset: Configuration name of a hub data set.
        revision: Revision of a hub data set.
        instruction: Text put once before everything else, ahead of the in-context examples.
        shots: In-context examples put before every prompt, drawn from ``shots_split`` by the seed, never the item itself or
            one with the same prompt.
        shots_split: Split that in-context examples come from; never the evaluated one, unless that is ``"train"`` or the whole
            of a single file, of which a warning is logged.
        separator: Between in-context examples.
        chat: Put the prompt through the tokenizer's chat template as a user's turn.
        fractions: Splits made here, name to share, where the source has only one file; by content hash, so that equal prompts
            stay together and adding records moves none.
        seed: Seed of in-context examples and made splits.
        document_separator: What stands between the documents of a text file; a file without it is one document.
    """

    source: str | Output
    prompt: str = field(default="", validator=valid("template"))
    target: str = field(default="", validator=valid("template"))
    references: tuple[str, ...] = field(default=(), validator=valid("templates"))
    id: str = ""
    subset: str = ""
    revision: str = ""
    instruction: str = ""
    shots: int = field(default=0, validator=v.ge(0))
    shots_split: str = "train"
    separator: str = "\n\n"
    chat: bool = False
    fractions: dict[str, float] = field(factory=dict, validator=_shares)
    seed: int = 0
    document_separator: str = "<|endoftext|>"

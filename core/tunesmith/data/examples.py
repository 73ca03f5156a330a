"""Records to examples: rendering, ids, made splits, in-context examples, chat templates."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from attrs import evolve

from tunesmith.data import sources
from tunesmith.data.readers import TEXT, Record
from tunesmith.data.records import Example
from tunesmith.data.splits import decisive_text, normalised, place
from tunesmith.data.template import fields, only_field, render, suggest, text
from tunesmith.errors import ConfigError, DataError
from tunesmith.given import whole

if TYPE_CHECKING:
    from tunesmith.data.config import Data
    from tunesmith.runtime import Runtime

log = logging.getLogger("tunesmith")


def load_examples(
    data: Data,
    split: str,
    runtime: Runtime | None = None,
    *,
    items: int | None = 0,
    shots: int | None = None,
    tokenizer: Any = None,
) -> list[Example]:
    """Read a split and render its prompts.

    Args:
        data: The source and its templates.
        split: ``"train"``, ``"test"``, ``"validation"`` (also ``dev``, ``val``, ``valid``), any other name the source has, a
            key of ``data.fractions``, or ``"all"`` for a source with one file.
        runtime: Says whether a hub may be asked; None means the default runtime.
        items: At most so many, the first ones; 0 and None mean all.
        shots: In-context examples instead of ``data.shots``.
        tokenizer: Needed where ``data.chat`` asks for its chat template.

    Returns:
        Examples in the order of the source, with unique, stable ids.

    Raises:
        DataError: Naming file, line and field.
        ConfigError: If ``items`` or ``shots`` is no such number.
    """
    if runtime is None:
        from tunesmith.runtime import Runtime

        runtime = Runtime()
    items = whole(0 if items is None else items, "items", "load_examples")
    count = whole(data.shots if shots is None else shots, "shots", "load_examples")
    if items < 0 or count < 0:
        raise ConfigError([f"items={items} and shots={count} must be at least 0"], "load_examples")
    found = _plain(data, split, runtime)
    chosen = found[:items] if items else found
    if count:
        chosen = _with_shots(chosen, found, data, split, count, runtime)
    if data.instruction:
        chosen = [evolve(example, prompt=data.instruction + example.prompt) for example in chosen]
    return _as_chat(chosen, tokenizer) if data.chat else chosen


def _plain(data: Data, split: str, runtime: Runtime) -> list[Example]:
    """Return a split's examples without in-context examples."""
    found = sources.find(data, split, runtime)
    if data.fractions and split != sources.ALL:
        names = [name for name in data.fractions if sources.same_split(name, split)]
        if not names:
            raise DataError(f"{data.source}: no split {split!r} among the fractions{suggest(split, data.fractions)}")
    elif found.whole and split not in (sources.ALL, "train"):
        raise DataError(
            f"{data.source}: one file without splits, and {split!r} was asked for. Divide it, e.g. "
            f"fractions={{'train': 0.9, {split!r}: 0.1}}, or say that all of it is this split: fractions={{{split!r}: 1.0}}."
        )
    examples = _render_all(found.records, data)
    if data.fractions and split != sources.ALL:
        kept = [e for e in examples if place(decisive_text(e), data.fractions, data.seed) in names]
        if not kept:
            raise DataError(
                f"{data.source}: the split {split!r} (share {data.fractions[names[0]]}) came out empty; enlarge it."
            )
        return kept
    return examples


def _render_all(records: Sequence[Record], data: Data) -> list[Example]:
    known = list(dict.fromkeys(name for record in records for name in record.columns))
    targets = _target_templates(data, known, records[0])
    ids = _ids(records, data, known)
    return [
        Example(
            id=ids[index],
            prompt=_render(data.prompt, record, known, "prompt"),
            targets=tuple(t for template in targets for t in _targets(template, record, known)),
            columns=record.columns,
        )
        for index, record in enumerate(records)
    ]


def _target_templates(data: Data, known: Sequence[str], first: Record) -> list[str]:
    """Return the templates of answers over fields that the split has; plain text is its own target."""
    if not data.prompt and not data.target and not data.references:
        if TEXT not in known:
            raise DataError(
                f"{first.place}: neither a prompt nor a target template is given, and there is no field 'text' to take as "
                f"plain text{suggest(TEXT, known)}"
            )
        return [f"{{{TEXT}}}"]
    wanted = [template for template in (data.target, *data.references) if template]
    usable = [template for template in wanted if all(name in known for name in fields(template))]
    if wanted and not usable:
        missing = next(name for name in fields(wanted[0]) if name not in known)
        raise DataError(
            f"{first.place}: no field {missing!r}, which the target {wanted[0]!r} needs{suggest(missing, known)}"
        )
    return usable


def _targets(template: str, record: Record, known: Sequence[str]) -> list[str]:
    name = only_field(template)
    value = record.columns.get(name) if name is not None else None
    if isinstance(value, (list, tuple)):
        try:
            return [text(item, str(name)) for item in value]
        except TypeError as error:
            raise DataError(f"{record.place}: an answer in {error}.") from None
    return [_render(template, record, known, "target")]


def _render(template: str, record: Record, known: Sequence[str], what: str) -> str:
    try:
        return render(template, record.columns)
    except KeyError as error:
        name = str(error.args[0])
        here = f"{record.place}: no field {name!r}, which the {what} template needs"
        elsewhere = "; other records have it" if name in known else suggest(name, known)
        raise DataError(f"{here}{elsewhere}") from None
    except TypeError as error:
        raise DataError(f"{record.place}: {error}, and the {what} template needs it.") from None


def _ids(records: Sequence[Record], data: Data, known: Sequence[str]) -> list[str]:
    if not data.id:
        seen: dict[str, int] = {}
        ids = []
        for record in records:
            content = json.dumps(record.columns, sort_keys=True, ensure_ascii=False, default=str)
            digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
            seen[digest] = seen.get(digest, 0) + 1
            # equal records are told apart by order
            ids.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
        return ids
    places: dict[str, str] = {}
    for record in records:
        if data.id not in record.columns:
            raise DataError(f"{record.place}: no field {data.id!r}, which is to be the id{suggest(data.id, known)}")
        try:
            name = text(record.columns[data.id], data.id)
        except TypeError as error:
            raise DataError(f"{record.place}: {error}, and it is to be the id.") from None
        if name in places:
            raise DataError(
                f"{record.place}: the id {name!r} ({data.id}) is already that of {places[name]}; ids must be unique."
            )
        places[name] = record.place
    return list(places)


def _with_shots(
    examples: Sequence[Example], split_examples: Sequence[Example], data: Data, split: str, count: int, runtime: Runtime
) -> list[Example]:
    """Put in-context examples before each prompt, k of them a prefix of k + 1."""
    same = sources.same_split(split, data.shots_split)
    if same and not sources.same_split(split, "train"):
        raise DataError(
            f"{data.source}: in-context examples would come from the split {split!r} that is asked for; set shots_split to another."
        )
    pool = list(split_examples) if same else _plain(data, data.shots_split, runtime)
    if split == sources.ALL and {example.id for example in pool} & {example.id for example in examples}:
        log.warning(
            "%s: in-context examples come from the very file whose examples are asked for. An item is never shown its own "
            "answer, but others' that are asked for too; to keep them apart, give a folder with a file for %r and one for "
            "the rest, or divide the file with fractions.",
            data.source,
            data.shots_split,
        )
    pool = [example for example in pool if example.targets]
    return [evolve(e, prompt=data.separator.join([*_shots(e, pool, data, count), e.prompt])) for e in examples]


def _shots(example: Example, pool: Sequence[Example], data: Data, count: int) -> list[str]:
    from tunesmith.runtime import derive_seed

    random = Random(derive_seed(data.seed, "shots", example.id))
    own = normalised(example.prompt)
    chosen: list[str] = []
    seen: set[int] = set()
    while len(chosen) < count and len(seen) < len(pool):  # one by one, so that more shots keep the earlier ones
        index = random.randrange(len(pool))
        if index in seen:
            continue
        seen.add(index)
        shot = pool[index]
        if shot.id != example.id and normalised(shot.prompt) != own:
            chosen.append(shot.prompt + shot.targets[0])
    if len(chosen) < count:
        raise DataError(
            f"{data.source}: {count} in-context examples were asked for, but the split {data.shots_split!r} has only {len(chosen)} "
            f"that differ from item {example.id!r}; ask for fewer."
        )
    return chosen


def _as_chat(examples: Sequence[Example], tokenizer: Any) -> list[Example]:
    if tokenizer is None:
        raise DataError("the data asks for a chat template (chat=True), and no tokenizer was given to apply it.")
    if not getattr(tokenizer, "chat_template", None):
        raise DataError(
            "the data asks for a chat template (chat=True), and the model's tokenizer has none; leave chat out."
        )

    def chat(prompt: str) -> str:
        turns = [{"role": "user", "content": prompt}]
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    return [evolve(example, prompt=chat(example.prompt)) for example in examples]

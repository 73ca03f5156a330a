"""Config of the link that keeps text to a format."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

from attrs import Attribute, field, frozen
from attrs import validators as v

from tunesmith.kinds.sampler import SamplerConfig
from tunesmith.typecheck import Checked
from tunesmith_plugins.samplers.config import IMPLEMENTATIONS

Language = Literal["json_schema", "regex", "lark", "gbnf"]
LANGUAGES: tuple[Language, ...] = ("json_schema", "regex", "lark", "gbnf")


def _is_json(_: Any, attribute: Attribute[str], value: str) -> None:
    try:
        read = json.loads(value) if value else {}
    except ValueError as cause:
        raise ValueError(f"{attribute.name!r}: this is not JSON: {cause}") from cause
    if not isinstance(read, (dict, bool)):
        raise ValueError(f"{attribute.name!r}: a JSON schema is an object, true or false, not {value[:40]!r}")


def _is_of_its_language(format_: Any, attribute: Attribute[str], value: str) -> None:
    if not value:
        raise ValueError(f"{attribute.name!r}: a format cannot be empty")
    if format_.language == "json_schema":
        _is_json(format_, attribute, value)


@frozen(kw_only=True)
class Format(Checked):
    """What a text must be.

    Attributes:
        language: ``"json_schema"``: a JSON schema, as JSON text; ``"regex"``: a regular expression (Rust's syntax) for the
            whole text; ``"lark"``: a grammar in Lark's syntax whose rule ``start`` is the whole text; ``"gbnf"``: a grammar in
            GBNF, the EBNF of llama.cpp, whose rule ``root`` is the whole text.
        text: The format in that language.
    """

    language: Language = "regex"
    text: str = field(validator=_is_of_its_language)


@frozen(kw_only=True)
class Structured(SamplerConfig):
    """Keep only tokens after which the text can still become what a format says (JSON schema, regular expression or grammar);
    the end of sequence is kept only where the text may end. Needs the extra ``structured`` (llguidance).

    The text is the completion, from its first token on. One of ``json_schema``, ``regex``, ``lark``, ``gbnf`` is given, or
    several ``formats``, of which each row follows one.

    Attributes:
        json_schema: A JSON schema, as JSON text.
        regex: A regular expression (Rust's syntax) for the whole text.
        lark: A grammar in Lark's syntax whose rule ``start`` is the whole text.
        gbnf: A grammar in GBNF, the EBNF of llama.cpp, whose rule ``root`` is the whole text.
        formats: Several formats, for rows that follow different ones.
        which: The number of a row's format; ``"structured.which"`` among a request's parameters sets it for one row.
        whitespace: Between the elements of JSON: ``"space"`` at most one space, ``"none"``, or ``"any"``, which a model may
            go on with for ever.
        tokenizer: Folder or name of the model's tokenizer. Empty: the one of the model that an engine runs.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.structured:StructuredLink"
    name_in_chain: ClassVar[str] = "structured"
    json_schema: str = field(default="", validator=_is_json)
    regex: str = ""
    lark: str = ""
    gbnf: str = ""
    formats: tuple[Format, ...] = ()
    which: int = field(default=0, validator=v.ge(0))
    whitespace: Literal["space", "none", "any"] = "space"
    tokenizer: str = ""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        given = [name for name in (*LANGUAGES, "formats") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(LANGUAGES)} and formats, not {given or 'none'}")
        if self.which >= len(self.all):
            raise ValueError(f"'which': there is no format {self.which} among {len(self.all)}")

    @property
    def all(self) -> tuple[Format, ...]:
        """Return all formats that rows may follow."""
        if self.formats:
            return self.formats
        return tuple(Format(language=name, text=getattr(self, name)) for name in LANGUAGES if getattr(self, name))

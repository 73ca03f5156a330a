"""Words of any script."""

from __future__ import annotations

import unicodedata

CJK = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
"""Hiragana, katakana and Han characters, which are written without spaces."""


def words(text: str) -> list[str]:
    """Return lower-case runs of letters, marks and digits of the NFKC form; each CJK character is a word by itself."""
    found: list[str] = []
    run: list[str] = []
    for character in unicodedata.normalize("NFKC", text).lower():
        single = any(low <= ord(character) <= high for low, high in CJK)
        inside = unicodedata.category(character)[0] in "LMN"
        if run and (single or not inside):
            found.append("".join(run))
            run = []
        if single and inside:
            found.append(character)
        elif inside:
            run.append(character)
    return [*found, "".join(run)] if run else found

"""A text as it grows token by token: what of it can be shown already and will not change."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from attrs import define, field

from tunesmith.kinds.decoder import Completion, Piece, StepModel
from tunesmith_plugins.decoders.batch import Row
from tunesmith_plugins.decoders.stops import BROKEN, held_back

PATIENCE = 16
"""After so many tokens without the end of a word what there is of it is shown: some scripts have no spaces."""


@define(eq=False)
class Spelling:
    """The text of one row.

    Only the last few tokens are decoded anew: those since the last one that changed the text, and the new ones.

    Attributes:
        row: Whose text it is.
        stop: Stop strings, of which no beginning is shown.
    """

    row: Row
    model: StepModel
    stop: Sequence[str]
    _ids: list[int] = field(factory=list)
    _anchor: int = 0
    _read: int = 0
    _text: str = ""
    _shown: int = 0
    _given: int = 0
    _word: int = 0

    def add(self, token: int) -> Piece | None:
        """Take one more token and return what can be shown now, if anything."""
        self._ids.append(token)
        before = self.model.text(self._ids[self._anchor : self._read])
        after = self.model.text(self._ids[self._anchor :])
        if len(after) > len(before) and not after.endswith(BROKEN):
            self._text += after[len(before) :]
            self._anchor, self._read = self._read, len(self._ids)
        end = self._end()
        if end <= self._shown:
            return None
        text, self._shown, self._word = self._text[self._shown : end], end, len(self._ids)
        return self._piece(self._ids, text)

    def close(self, completion: Completion) -> Piece:
        """Return the last piece: all that was not shown yet."""
        return self._piece(completion.token_ids, completion.text[self._shown :], completion)

    def _end(self) -> int:
        """Return how many characters can be shown."""
        end = len(self._text)
        if len(self._ids) - self._word < PATIENCE:
            while end > self._shown and not _ends_word(self._text, end):
                end -= 1
        return end - held_back(self._text[:end], self.stop)

    def _piece(self, ids: Sequence[int], text: str, completion: Completion | None = None) -> Piece:
        new, self._given = tuple(ids[self._given :]), len(ids)
        request = self.row.request
        return Piece(
            request=self.row.number,
            id=request.id,
            stream=request.stream,
            token_ids=new,
            text=text,
            completion=completion,
        )


def _ends_word(text: str, end: int) -> bool:
    """Return whether a word ends at ``end``: before a space, or after a character of a script that writes none."""
    if end < len(text) and text[end].isspace():
        return True
    return unicodedata.east_asian_width(text[end - 1]) in "WF"

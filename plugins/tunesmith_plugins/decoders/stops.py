"""Stop strings: which tokens can complete one, and whether one has been written."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

from tunesmith.kinds.decoder import StepModel

BROKEN = "\ufffd"
"""Stands in a decoded text for bytes that are no character yet."""


@define(eq=False)
class Stops:
    """Looks for stop strings at the end of a text, and only after tokens that can complete one.

    A string is complete when its last character is, so the last token's own text must hold that character, or bytes of one.
    """

    model: StepModel
    stop: Sequence[str]
    _known: dict[int, bool] = field(factory=dict)

    def may_end(self, token: int) -> bool:
        """Return whether a text can reach the end of a stop string with this token."""
        known = self._known.get(token)
        if known is None:
            text = self.model.text((token,))
            # a space may belong to the piece after it, and a token alone may be shown without its own
            known = not text or any(stop[-1].isspace() or stop[-1] in text or BROKEN in text for stop in self.stop)
            self._known[token] = known
        return known

    def ended_by_last(self, token_ids: Sequence[int]) -> bool:
        """Return whether a text's last token has completed a stop string, given that there was none before it."""
        return self.may_end(token_ids[-1]) and self.written(token_ids)

    def written(self, token_ids: Sequence[int]) -> bool:
        """Return whether a text holds a stop string, given that it held none before its last token."""
        longest = max(map(len, self.stop))
        last = self.model.text(token_ids[-1:])
        count = longest + 4
        while True:
            text = self.model.text(token_ids[-count:])
            # as long as needed, and one more: the first character may be half of one
            if count >= len(token_ids) or len(text) > longest + len(last):
                return any(stop in text for stop in self.stop)
            count *= 2


def stops_of(model: StepModel, stop: Sequence[str]) -> Stops | None:
    """Return what looks for stop strings, None without any."""
    return Stops(model, stop) if stop else None


def held_back(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop string."""
    most = 0
    for string in stop:
        for length in range(min(len(string) - 1, len(text)), most, -1):
            if text.endswith(string[:length]):
                most = length
                break
    return most

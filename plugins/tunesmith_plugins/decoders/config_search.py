"""Configs of further decoders that search and draw nothing."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from attrs import Attribute, field, frozen
from attrs import validators as v

from tunesmith.kinds.decoder import DecoderConfig
from tunesmith_plugins.decoders.config import IMPLEMENTATIONS, LARGEST_NUMBER, finite


def _divides(config: Any, attribute: Attribute[int], value: int) -> None:
    if value < 1 or config.beams % value:
        raise ValueError(
            f"{attribute.name!r}: {config.beams} beams cannot be divided evenly among {value} groups; "
            "take a number that divides 'beams'"
        )


@frozen(kw_only=True)
class DiverseBeam(DecoderConfig):
    """Diverse beam search (Vijayakumar et al., 2016) with the Hamming distance: ``groups`` searches one after the other at
    every step, each with its share of the beams, and a token that earlier groups took at this step counts less in the choice
    of a later group by ``penalty`` for every beam that took it.

    The penalty decides what is kept, as in the paper's equation 5; it is not part of a text's score, which is that of
    ``beam``. Stream 0 of a prompt gets the best text of the group whose score is the highest, stream 1 that of the next group,
    and so on; then come the groups' second texts. ``Completion.details["group"]`` says whose it is. Ask for
    ``completions=groups`` to have the best of each; it is one search. Groups may find the same text: it is given once, and
    whoever comes later gives its next one. More completions than beams are refused; where there are fewer different texts than
    completions, they begin anew after the last.

    Attributes:
        beams: How many, of all groups together.
        groups: How many; 1 is ``beam``.
        penalty: Strength of the diversity, in units of log-probability; 0 makes all groups the same search.
        length_penalty: As for ``beam``.
        early_stopping: As for ``beam``, in each group.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.diverse_beam:DiverseBeamDecoder"
    revision: ClassVar[int] = 4
    beams: int = field(default=4, validator=[v.ge(1), v.le(LARGEST_NUMBER)])
    groups: int = field(default=2, validator=_divides)
    penalty: float = field(default=0.5, validator=[v.ge(0), v.lt(float("inf"))])
    length_penalty: float = field(default=1.0, validator=finite)
    early_stopping: Literal["yes", "no", "never"] = "no"


@frozen(kw_only=True)
class Contrastive(DecoderConfig):
    """Contrastive search (Su et al., 2022, equation 5): of the ``top_k`` likeliest tokens take the one of the largest
    ``(1 - alpha) * probability - alpha * similarity``, where the similarity is the largest cosine between the token's hidden
    state and those of everything before it. Text that repeats itself looks like itself.

    What stands before a token is, for a decoder-only model, prompt and completion; for an encoder-decoder the start token
    and the completion. Draws nothing: of a sampler the edits count, and one with a memory is refused. It finds one text, so that
    several completions of a prompt are equal.

    Attributes:
        top_k: Candidates at every step; each of them is run through the model. 1 is greedy.
        alpha: Weight of the similarity, in [0, 1]; 0 is greedy.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.contrastive:ContrastiveDecoder"
    revision: ClassVar[int] = 2
    top_k: int = field(default=4, validator=v.ge(1))
    alpha: float = field(default=0.6, validator=[v.ge(0), v.le(1)])

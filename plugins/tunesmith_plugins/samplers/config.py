"""Configs of the standard samplers. Everything but ``chain`` and ``greedy`` is a link and may stand in a chain."""

from __future__ import annotations

from typing import ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from tunesmith.kinds.sampler import SamplerConfig

IMPLEMENTATIONS = "tunesmith_plugins.samplers"
LARGEST_COUNT = 2**53 - 1
"""Rows carry counts as float64, which holds no larger whole number for certain."""
MOST = v.le(LARGEST_COUNT)
LARGEST_LOGIT = 3.4028234663852886e38
"""The largest float32: what is beyond it would be infinite in the logits' type, and infinity times no occurrence is no number."""
FACTOR = [v.gt(0.0), v.ge(2.0**-149), v.le(LARGEST_LOGIT)]
"""What logits are multiplied or divided by: neither 0 nor infinite in their type."""


@frozen(kw_only=True)
class Greedy(SamplerConfig):
    """Take the likeliest token, the lowest id among equals. As the last link of a chain it makes the draw greedy."""

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.chain:GreedySampler"
    name_in_chain: ClassVar[str] = "greedy"


@frozen(kw_only=True)
class Temperature(SamplerConfig):
    """Divide the logits by ``temperature``: below 1 sharper, above 1 flatter.

    Attributes:
        temperature: Above 0. For the limit 0 use ``greedy``.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.temperature:TemperatureLink"
    name_in_chain: ClassVar[str] = "temperature"
    temperature: float = field(default=1.0, validator=FACTOR)


@frozen(kw_only=True)
class TopK(SamplerConfig):
    """Keep the ``k`` likeliest tokens and whatever ties with the last of them (Fan et al., 2018).

    Attributes:
        k: How many; 0 keeps every token.
        ties: Which of several equal tokens at the border stay: ``"all"``, as in transformers (``"hf"`` means the same), or
            ``"low"``, those with the lowest ids, so that exactly ``k`` stay.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.truncation:TopKLink"
    name_in_chain: ClassVar[str] = "top_k"
    k: int = field(default=50, validator=[v.ge(0), MOST])
    ties: Literal["hf", "low", "all"] = "hf"


@frozen(kw_only=True)
class TopP(SamplerConfig):
    """Keep the smallest set of likeliest tokens whose probabilities add up to ``p`` (Holtzman et al., 2020).

    Tokens are counted from the least likely.

    Attributes:
        p: Cumulative probability, in (0, 1]; 1 keeps every token.
        min_keep: At least so many tokens stay.
        ties: Which of several equal tokens at the border stay: ``"hf"``, as many as are needed, those with the highest ids (a
            stable ascending sort, which transformers' own is not); ``"low"``, as many, with the lowest ids; ``"all"``, all of
            them, which alone prefers no id.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.truncation:TopPLink"
    name_in_chain: ClassVar[str] = "top_p"
    p: float = field(default=0.9, validator=[v.gt(0), v.le(1)])
    min_keep: int = field(default=1, validator=[v.ge(1), MOST])
    ties: Literal["hf", "low", "all"] = "hf"


@frozen(kw_only=True)
class MinP(SamplerConfig):
    """Drop tokens less likely than ``p`` times the likeliest (Nguyen et al., 2024).

    Attributes:
        p: Share of the largest probability, in [0, 1]; 0 keeps every token.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.truncation:MinPLink"
    name_in_chain: ClassVar[str] = "min_p"
    p: float = field(default=0.05, validator=[v.ge(0), v.le(1)])


@frozen(kw_only=True)
class RepetitionPenalty(SamplerConfig):
    """Make tokens that were already there less likely (Keskar et al., 2019): positive logits are divided by
    ``penalty``, negative ones multiplied.

    What counts is the history: for a decoder-only model prompt and completion, for an encoder-decoder the completion.

    Attributes:
        penalty: Above 0; 1 changes nothing, below 1 favours repetition.
        window: Only the last so many ids of the history count; 0 means all.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.counts:RepetitionPenaltyLink"
    name_in_chain: ClassVar[str] = "repetition_penalty"
    penalty: float = field(default=1.1, validator=FACTOR)
    window: int = field(default=0, validator=[v.ge(0), MOST])


@frozen(kw_only=True)
class Chain(SamplerConfig):
    """Run links in the order given and draw one token from what they leave.

    A chain inside a chain stands for its links. ``greedy``, or a chain with a greedy draw, may only come last.

    Attributes:
        links: Samplers that are links; empty means the logits as they are.
        draw: ``"categorical"`` draws by probability, ``"greedy"`` takes the likeliest, the lowest id among equals.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.chain:ChainSampler"
    name_in_chain: ClassVar[str] = "chain"
    links: tuple[SamplerConfig, ...] = field(default=())
    draw: Literal["categorical", "greedy"] = "categorical"

    @links.validator
    def _greedy_comes_last(self, _: object, value: tuple[SamplerConfig, ...]) -> None:
        for link in value[:-1]:
            if isinstance(link, Greedy) or (isinstance(link, Chain) and link.greedy):
                raise ValueError(f"'links': {type(link).__name__} draws greedily and may only come last in a chain")

    @property
    def greedy(self) -> bool:
        """Whether the draw is greedy, by ``draw`` or by the last link."""
        last = self.links[-1] if self.links else None
        return self.draw == "greedy" or isinstance(last, Greedy) or (isinstance(last, Chain) and last.greedy)

    def flat(self) -> tuple[SamplerConfig, ...]:
        """Return the links with nested chains taken apart, and without ``greedy``."""
        found: list[SamplerConfig] = []
        for link in self.links:
            if isinstance(link, Chain):
                found.extend(link.flat())
            elif not isinstance(link, Greedy):
                found.append(link)
        return tuple(found)

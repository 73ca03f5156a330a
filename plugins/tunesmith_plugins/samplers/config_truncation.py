"""Configs of links that drop tokens by their probability, beyond top-k, top-p and min-p."""

from __future__ import annotations

from typing import ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from tunesmith.kinds.sampler import SamplerConfig
from tunesmith_plugins.samplers.config import IMPLEMENTATIONS, MOST


@frozen(kw_only=True)
class Typical(SamplerConfig):
    """Keep the tokens whose surprise is closest to the entropy until their probabilities add up to ``mass`` (Meister et al.,
    2023, locally typical sampling).

    All tokens as far from the entropy as the last one kept stay too. The likeliest token may go.

    Attributes:
        mass: Cumulative probability, in (0, 1]; 1 keeps every token.
        min_keep: At least so many of the most typical tokens stay.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.entropy:TypicalLink"
    name_in_chain: ClassVar[str] = "typical"
    mass: float = field(default=0.9, validator=[v.gt(0), v.le(1)])
    min_keep: int = field(default=1, validator=[v.ge(1), MOST])


@frozen(kw_only=True)
class Epsilon(SamplerConfig):
    """Drop tokens less likely than ``epsilon`` (Hewitt et al., 2022); the likeliest always stays.

    Attributes:
        epsilon: A probability, in [0, 1); 0 keeps every token. 3e-4 to 9e-4 in the paper.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.thresholds:EpsilonLink"
    name_in_chain: ClassVar[str] = "epsilon"
    epsilon: float = field(default=3e-4, validator=[v.ge(0), v.lt(1)])


@frozen(kw_only=True)
class Eta(SamplerConfig):
    """Drop tokens less likely than ``min(epsilon, sqrt(epsilon) exp(-entropy))`` (Hewitt et al., 2022); the likeliest stays.

    Attributes:
        epsilon: A probability, in [0, 1); 0 keeps every token. 3e-4 to 4e-3 in the paper.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.thresholds:EtaLink"
    name_in_chain: ClassVar[str] = "eta"
    epsilon: float = field(default=3e-4, validator=[v.ge(0), v.lt(1)])


@frozen(kw_only=True)
class TopA(SamplerConfig):
    """Drop tokens less likely than ``a`` times the square of the largest probability.

    Attributes:
        a: In [0, 1]; 0 keeps every token.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.thresholds:TopALink"
    name_in_chain: ClassVar[str] = "top_a"
    a: float = field(default=0.2, validator=[v.ge(0), v.le(1)])


@frozen(kw_only=True)
class TopNSigma(SamplerConfig):
    """Keep logits within ``n`` standard deviations of the largest (Tang et al., 2024).

    The deviation is that of all logits that are finite (over their count, not one less). What stays does not depend on
    a temperature applied before it.

    Attributes:
        n: Standard deviations, 0 or more; 0 keeps the likeliest only.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.thresholds:TopNSigmaLink"
    name_in_chain: ClassVar[str] = "top_n_sigma"
    n: float = field(default=1.0, validator=[v.ge(0), v.lt(float("inf"))])


@frozen(kw_only=True)
class TopH(SamplerConfig):
    """Keep the likeliest tokens until their share of the entropy would exceed ``h`` (Potraghloo et al., 2025, Top-H).

    Tokens are taken by probability, equals by id, from the ``candidates`` likeliest; entropy is that of these candidates.

    Attributes:
        h: Share of the entropy, in (0, 1].
        candidates: How many tokens are looked at.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.entropy:TopHLink"
    name_in_chain: ClassVar[str] = "top_h"
    h: float = field(default=0.4, validator=[v.gt(0), v.le(1)])
    candidates: int = field(default=100, validator=[v.ge(1), MOST])


@frozen(kw_only=True)
class XTC(SamplerConfig):
    """Exclude top choices: with a ``probability``, drop all tokens at least as likely as ``threshold`` but the least likely
    of them (the sampler of that name in local inference engines).

    Whether a position is touched is drawn from the row's own noise (draw 1).

    Attributes:
        threshold: A probability; above one half nothing can ever be dropped.
        probability: How often it happens, in [0, 1].
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.thresholds:XTCLink"
    name_in_chain: ClassVar[str] = "xtc"
    threshold: float = field(default=0.1, validator=[v.ge(0), v.le(1)])
    probability: float = field(default=0.5, validator=[v.ge(0), v.le(1)])


@frozen(kw_only=True)
class Mirostat(SamplerConfig):
    """Steer the surprise of the drawn tokens to ``tau`` (Basu et al., 2021). Keeps a state a row.

    Version 2 drops tokens whose surprise is above a bound ``mu``; version 1 estimates the exponent of a Zipf law from the
    ``candidates`` likeliest tokens and keeps the top ``k`` that it implies. After a token of surprise ``S`` the bound moves by
    ``-eta (S - tau)``; it begins at ``2 tau``. Surprise is in bits, under the distribution that the token was drawn from.

    Attributes:
        tau: Target surprise, bits a token.
        eta: How fast the bound moves.
        version: 1 or 2.
        candidates: Tokens that version 1 estimates from.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.mirostat:MirostatLink"
    name_in_chain: ClassVar[str] = "mirostat"
    tau: float = field(default=5.0, validator=[v.gt(0), v.lt(float("inf"))])
    eta: float = field(default=0.1, validator=[v.ge(0), v.le(1)])
    version: Literal[1, 2] = 2
    candidates: int = field(default=100, validator=[v.ge(2), MOST])

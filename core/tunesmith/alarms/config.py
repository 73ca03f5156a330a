"""What is watched for, and how sensitively."""

from __future__ import annotations

from attrs import Attribute, field, frozen
from attrs import validators as v

from tunesmith.errors import ConfigError
from tunesmith.kinds.reward_model import RewardModelConfig
from tunesmith.typecheck import Checked

NAMES = ("held_out", "diversity", "perplexity", "length", "kl", "disagreement")
"""Every alarm there is."""


def _known(_: object, attribute: Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    unknown = [name for name in value if name not in NAMES]
    if unknown:
        raise ValueError(f"'{attribute.name}': there is no alarm {', '.join(unknown)}; there are {', '.join(NAMES)}")


@frozen(kw_only=True)
class Alarms(Checked):
    """What an online training is watched for.

    An alarm compares the mean of the last ``window`` steps with the best window before. Its threshold is such that a
    training in which nothing gets worse by more than the tolerance sets off any alarm at all with a probability of at most
    ``false_alarms``, if a step's noise is normal and independent of other steps'.

    Attributes:
        held_out: A reward model that the policy is not trained on; without it nobody watches ``held_out``.
        watch: Alarms that are on: ``held_out`` (it falls while the reward does not), ``diversity`` (so does the share of
            different n-grams of a step's completions), ``perplexity`` (cross-entropy under the reference rises while the
            reward does not fall), ``length`` (it drifts either way), ``kl`` (the square root of the KL to the reference
            grows faster than it did before), ``disagreement`` (the members of an ensemble get further apart).
        stop: Alarms that end the training; the others are only reported.
        window: Steps that are averaged. A shorter one is faster and sees large changes only.
        false_alarms: Rate for a whole training, shared equally by the alarms that are on.
        held_out_loss: Tolerated fall of the held-out score, in its units.
        diversity_loss: Tolerated fall of diversity, as a share of that of the first window.
        ngram: Words of an n-gram.
        perplexity_rise: Tolerated rise of the cross-entropy, nats a token.
        length_change: Tolerated change of the mean length, as a share of that of the first window.
        kl_acceleration: Tolerated gain of pace, in square roots of a nat a window.
        disagreement_rise: Tolerated rise of disagreement, as a share of that of the first window.
    """

    held_out: RewardModelConfig | None = None
    watch: tuple[str, ...] = field(default=NAMES, validator=[v.min_len(1), _known])
    stop: tuple[str, ...] = field(default=(), validator=_known)
    window: int = field(default=10, validator=v.ge(2))
    false_alarms: float = field(default=0.05, validator=[v.gt(0), v.lt(1)])
    held_out_loss: float = field(default=0.0, validator=v.ge(0))
    diversity_loss: float = field(default=0.2, validator=[v.ge(0), v.le(1)])
    ngram: int = field(default=2, validator=v.ge(1))
    perplexity_rise: float = field(default=0.5, validator=v.ge(0))
    length_change: float = field(default=0.3, validator=v.ge(0))
    kl_acceleration: float = field(default=0.1, validator=v.ge(0))
    disagreement_rise: float = field(default=0.25, validator=v.ge(0))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        idle = [name for name in self.stop if name not in self.watch]
        if idle:
            raise ConfigError([f"{', '.join(idle)} cannot stop the training without being watched @ stop"], "alarms")
        if "held_out" in self.stop and self.held_out is None:
            raise ConfigError(["there is no held-out reward model to stop by: set held_out @ stop"], "alarms")

"""What the KL term of an online algorithm optimises, by its estimator and by where it stands.

With ``d = log pi - log reference`` of a token: k1 is ``d``, k2 is ``d^2 / 2``, k3 is ``exp(-d) - 1 + d``. In the reward the
estimate is a number, in the loss it is differentiated. As a *value*, k1 and k3 estimate KL without bias; what matters to
training is the *gradient*, and there only k1 in the reward has that of the objective (docs/rl.md has the derivations).
"""

from __future__ import annotations

from typing import Literal

Estimator = Literal["k1", "k2", "k3"]
Place = Literal["reward", "loss"]

OBJECTIVE = "E[reward] - beta KL(policy || reference)"

_BIAS: dict[tuple[str, str], str] = {
    ("k1", "loss"): "k1 in the loss has a gradient that is zero on average, so that the reward alone is maximised and nothing "
    "holds the policy near the reference",
    ("k2", "reward"): "k2 in the reward has the gradient of no divergence: it punishes large log-ratios of either sign, and lacks "
    "the part of the gradient that comes from the log-ratio itself",
    ("k3", "reward"): "k3 in the reward has the gradient of KL(policy || reference) - KL(reference || policy), which cancels near "
    "the reference, so that KL is hardly held back",
    ("k2", "loss"): "k2 in the loss optimises E[reward] - beta times the sum of KL(policy || reference) of single tokens, without "
    "credit for the KL of the tokens that follow",
    ("k3", "loss"): "k3 in the loss optimises E[reward] - beta times the sum of KL(reference || policy), the forward divergence, of "
    "single tokens",
}  # fmt: skip


def kl_bias(estimator: Estimator, place: Place, max_new_tokens: int) -> str | None:
    """Return what is optimised instead of :data:`OBJECTIVE`, or None if it is that.

    Args:
        estimator: Of KL, token by token.
        place: Where it stands.
        max_new_tokens: With completions of one token no other tokens follow, and k2 in the loss is exact.
    """
    if (estimator, place) == ("k2", "loss") and max_new_tokens == 1:
        return None
    return _BIAS.get((estimator, place))

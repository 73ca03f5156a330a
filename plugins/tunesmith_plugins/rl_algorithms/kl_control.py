"""The weight of the KL term: fixed, or steered to a target (Ziegler et al. 2019, section 2.2)."""

from __future__ import annotations

from attrs import define


@define
class KLControl:
    """The weight, and where it is steered.

    Attributes:
        coefficient: The current weight.
        target: Nats a sequence; 0: the weight is fixed.
        horizon: Completions over which it changes.
    """

    coefficient: float
    target: float = 0.0
    horizon: int = 10_000

    def update(self, kl: float, completions: int) -> None:
        """Take up the mean KL of a step's sequences (summed over their tokens, nats)."""
        if self.target:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coefficient *= 1 + error * completions / self.horizon

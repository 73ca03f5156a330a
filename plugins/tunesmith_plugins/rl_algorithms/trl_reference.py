"""The frozen reference as trl's trainers take it: a model that is called like the policy."""

from __future__ import annotations

from typing import Any

import torch

from tunesmith.errors import MissingPower
from tunesmith_plugins.rl_algorithms.reference import Reference


class LastAdapterOff(torch.nn.Module):
    """The policy with its last adapter off; it owns no parameters, so that it costs no memory.

    trl puts a forward of its own on it, which runs ``base_model`` and multiplies by ``get_output_embeddings().weight``.

    Args:
        reference: One without a copy.
    """

    def __init__(self, reference: Reference) -> None:
        super().__init__()
        self._held = [reference]  # in a list, so that the policy does not become a part of this module
        self.config = reference.policy.model.config
        self.is_gradient_checkpointing = False

    def base_model(self, *args: Any, **options: Any) -> Any:
        """Run the model without its head."""
        return self._off(self._held[0].policy.model.base_model, *args, **options)

    def forward(self, *args: Any, **options: Any) -> Any:
        """Run the model."""
        return self._off(self._held[0].policy.model, *args, **options)

    def get_output_embeddings(self) -> Any:
        """Return the head, which no adapter may change."""
        return self._held[0].policy.model.get_output_embeddings()

    def _off(self, module: Any, *args: Any, **options: Any) -> Any:
        model = self._held[0].policy.model
        before = model.training
        model.eval()  # a reference has no dropout
        try:
            with self._held[0].model():
                return module(*args, **options)
        finally:
            model.train(before)


def for_trl(reference: Reference) -> torch.nn.Module:
    """Return the reference as a model.

    Raises:
        MissingPower: If an adapter sits on the output layer, whose weights trl multiplies by directly.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(reference.policy.model.get_output_embeddings(), BaseTunerLayer):
        raise MissingPower(
            "trl multiplies by the output layer's own weights and would never train an adapter on it; leave it out of the "
            "adapter's targets, or use an algorithm of ours."
        )
    if reference.copy is None:
        return LastAdapterOff(reference)
    model: torch.nn.Module = reference.copy.model
    return model

"""The frozen reference: the model exactly as it was given."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from attrs import evolve, frozen

from tunesmith.errors import NumericError
from tunesmith.kinds.adapter import SupportsDisable
from tunesmith.lm import LM
from tunesmith_plugins.rl_algorithms.optimizer import is_half


@frozen(eq=False)
class Reference:
    """What a policy was before it was trained.

    Attributes:
        policy: The model in training.
        copy: A frozen copy of what it was, or None if switching off its last adapter gives the same.
    """

    policy: LM
    copy: LM | None

    @property
    def starts_equal(self) -> bool:
        """Whether the policy, untrained, is its reference: not if its adapter changes the model from the start."""
        return self.copy is not None or self.policy.adapters[-1].identity

    def check_start(self, worst: float, tolerance: float, more: str = "") -> None:
        """Check that the policy is its reference before the first update, unless its adapter changes it from the start.

        Args:
            worst: By how much log-probabilities of the two differ at most.
            tolerance: By how much they may; see :func:`start_tolerance`.
            more: The end of the message.

        Raises:
            NumericError: If they differ by more.
        """
        if worst > tolerance and self.starts_equal:
            raise NumericError(
                f"the policy is not its reference before the first update: log-probabilities differ by up to {worst:.2e}. Its "
                f"last adapter was trained before. Put a fresh one on top, or set allow_start_kl=True.{more}"
            )

    @contextmanager
    def model(self) -> Iterator[LM]:
        """Give the reference; within the context the policy itself must not be used."""
        if self.copy is not None:
            yield self.copy
            return
        last = self.policy.adapters[-1]
        assert isinstance(last, SupportsDisable)
        with last.disabled():
            yield self.policy


def start_tolerance(policy: LM) -> float:
    """Return by how much rounding alone can make log-probabilities of a policy and its reference differ."""
    return 0.1 if is_half(policy) else 1e-4


def reference_of(policy: LM) -> Reference:
    """Return the reference of a policy that has not been trained yet.

    If its last adapter alone is trainable and can be switched off, that is the reference, and costs no memory. Otherwise it
    is a copy.
    """
    if _own(policy) and isinstance(policy.adapters[-1], SupportsDisable):
        return Reference(policy, None)
    model = copy.deepcopy(policy.model)
    model.requires_grad_(False)
    model.eval()
    return Reference(policy, evolve(policy, model=model, adapters=()))


def trainable(policy: LM) -> dict[str, torch.nn.Parameter]:
    """Return what is trained, by name: the last adapter's parameters if only such are trainable, else every parameter."""
    own = _own(policy)
    if own:
        return own
    found = {name: p for name, p in policy.model.named_parameters() if p.is_floating_point()}
    for parameter in found.values():
        parameter.requires_grad_(True)
    return found


def _own(policy: LM) -> dict[str, torch.nn.Parameter]:
    """Return the last adapter's trainable parameters, none of them if others of the model are trainable too."""
    if not policy.adapters:
        return {}
    own = {name: p for name, p in policy.adapters[-1].trainable() if p.requires_grad}
    known = {id(p) for p in own.values()}
    return {} if any(p.requires_grad and id(p) not in known for p in policy.model.parameters()) else own

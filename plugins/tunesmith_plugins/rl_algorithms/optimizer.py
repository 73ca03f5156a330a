"""Adam for weights of any precision."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from tunesmith.lm import LM

HALF = (torch.bfloat16, torch.float16)


class Optimizer(Protocol):
    """What training needs of an optimizer; ``param_groups`` hold the model's own parameters and the learning rates."""

    param_groups: list[dict[str, Any]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""

    def step(self) -> Any:
        """Take a step."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a step depends on besides parameters and gradients."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Take it up."""


class WideAdam:
    """Adam that takes its steps in float32 and rounds the result into the parameters.

    A step of bfloat16 weights is mostly smaller than the distance to the next number: 1e-5 added to 0.1 is 0.1. Summed up
    in float32 copies (Micikevicius et al. 2018, section 3.1) steps count all the same. The copies take 4 bytes a parameter.

    Args:
        groups: As for ``torch.optim.Adam``; each with its ``params``, some or all of half precision.
        lr: Learning rate.
        eps: Adam's epsilon.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, eps: float) -> None:
        self.copies = [[torch.nn.Parameter(p.detach().float()) for p in group["params"]] for group in groups]
        inner = [{**group, "params": copies} for group, copies in zip(groups, self.copies, strict=True)]
        self.inner = torch.optim.Adam(inner, lr=lr, eps=eps)
        self.param_groups = [
            {"lr": own["lr"], "params": group["params"]}
            for group, own in zip(groups, self.inner.param_groups, strict=True)
        ]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take a step."""
        for group, own in zip(self.param_groups, self.inner.param_groups, strict=True):
            own["lr"] = group["lr"]
            for parameter, copy in zip(group["params"], own["params"], strict=True):
                copy.grad = None if parameter.grad is None else parameter.grad.float()
        self.inner.step()
        self._round()

    def state_dict(self) -> dict[str, Any]:
        """Return the copies and Adam's state."""
        return {"copies": [[c.detach() for c in copies] for copies in self.copies], "inner": self.inner.state_dict()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned."""
        for copies, kept in zip(self.copies, state_dict["copies"], strict=True):
            for copy, value in zip(copies, kept, strict=True):
                copy.copy_(value)
        self.inner.load_state_dict(state_dict["inner"])
        self._round()

    def _round(self) -> None:
        for group, copies in zip(self.param_groups, self.copies, strict=True):
            for parameter, copy in zip(group["params"], copies, strict=True):
                parameter.copy_(copy)


def is_half(policy: LM) -> bool:
    """Return whether a model's weights are of half precision."""
    return next(policy.model.parameters()).dtype in HALF


def adam(groups: list[dict[str, Any]], lr: float, eps: float = 1e-8) -> Optimizer:
    """Return Adam for these groups of parameters; its steps are taken in float32 where parameters are narrower."""
    narrow = any(parameter.dtype in HALF for group in groups for parameter in group["params"])
    return WideAdam(groups, lr, eps) if narrow else torch.optim.Adam(groups, lr=lr, eps=eps)

"""How far log-probabilities of a quantized policy move when nothing but rounding differs.

Int8 layers round their inputs. Attention over a cache and attention over a whole text, or batches of other shapes, differ in the
last bits of a float; an input that lies between two steps falls to the other side, and the layers behind round other numbers. A
float policy moves by some 1e-6, a quantized one by as much as its rounding is worth. That is measured here, on the texts at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tunesmith.errors import NumericError
from tunesmith.lm import LM

NUDGE = 2.0**-16
"""Standard deviation of what embeddings are multiplied by, around 1: a hundred times what float32 sums differ by."""

TIMES = 2
"""How often it is measured."""

MARGIN = 4.0
"""How many times the largest movement seen is let pass: it is the largest of few."""


def quantization_of(policy: LM) -> str | None:
    """Return how the weights of a policy are quantized, as transformers names it (``"tunesmith_int8"``), or None."""
    if not getattr(policy.model, "is_quantized", False):
        return None
    found = getattr(policy.model.config, "quantization_config", None)
    named = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(getattr(named, "value", named) or "quantized")


def movement(
    policy: LM, score: Callable[[], torch.Tensor], found: torch.Tensor, mask: torch.Tensor, seed: int, tolerance: float
) -> float:
    """Return the largest movement of ``score()`` at ``mask`` when embeddings are nudged.

    Args:
        policy: The model that ``score`` uses.
        score: Returns log-probabilities (batch, time).
        found: What it returned before.
        mask: (batch, time) bool, tokens that count.
        seed: Of the nudges.
        tolerance: How far ``score()`` may be from ``found`` with no nudge at all.

    Raises:
        NumericError: If the same texts get other log-probabilities the second time, as with dropout.
    """

    def largest(scored: torch.Tensor) -> float:
        return float(((scored - found).abs() * mask).max()) if found.numel() else 0.0

    again = largest(score())
    if not again <= tolerance:
        raise NumericError(
            f"the same completions scored twice differ by up to {again:.2e} in their log-probabilities: the policy is not "
            "deterministic. Is a dropout layer active in evaluation mode?"
        )
    generator = torch.Generator().manual_seed(seed)
    with nudged(policy.model, generator):
        return max(largest(score()) for _ in range(TIMES))


@contextmanager
def nudged(model: Any, generator: torch.Generator) -> Iterator[None]:
    """Within, every number that a token embedding gives is multiplied by 1 and a little noise."""

    def nudge(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(output.shape, generator=generator).to(output.device)
        size = max(NUDGE, torch.finfo(output.dtype).eps)
        return (output * (1 + size * noise)).to(output.dtype)

    tables = [part.get_input_embeddings() for part in _parts(model)]
    handles = [table.register_forward_hook(nudge) for table in dict.fromkeys(tables)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _parts(model: Any) -> list[Any]:
    if not model.config.is_encoder_decoder:
        return [model]
    return [model, model.get_encoder(), model.get_decoder()]

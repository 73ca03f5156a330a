"""The watermark of Kirchenbauer et al. (2023), "A Watermark for Large Language Models": the link and the detector.

Which tokens are green at a place is decided by Philox numbers, one a token, so that the detector needs the ids and the
key alone: no model, no generator's state.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch
from attrs import frozen

from tunesmith.errors import DataError
from tunesmith.kinds.sampler import Link, Rows, Step
from tunesmith_plugins.kernels import reference_watermark
from tunesmith_plugins.samplers.config_edits import Watermark


def green(config: Watermark, contexts: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return whether tokens are green behind their contexts.

    Args:
        config: Key, share and length of the context.
        contexts: (n, context) int64, the ids before.
        tokens: (n, m) or (1, m) int64, the tokens in question.

    Returns:
        (n, m) bool.
    """
    keys = torch.full((len(contexts),), config.key, dtype=torch.int64, device=contexts.device)
    gamma = torch.full((len(contexts),), config.gamma, dtype=torch.float64, device=contexts.device)
    return reference_watermark.is_green(keys, reference_watermark.folded(keys, contexts), tokens, gamma)


class WatermarkLink(Link):
    """Add delta to green tokens."""

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        ids, gamma = self._parameters(rows)
        marked = reference_watermark.green(ids, gamma, rows.history, rows.history_lengths, logits.shape[1])
        return reference_watermark.mark(logits.float(), self.value(rows, "delta", torch.float64), marked)

    def lower(self, rows: Rows) -> Step:
        ids, gamma = self._parameters(rows)
        return Step(op="watermark", values=self.value(rows, "delta", torch.float64), ids=ids, second=gamma)

    def _parameters(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        key, context = (self.value(rows, name, torch.int64) for name in ("key", "context"))
        return torch.stack([key, context], dim=1), self.value(rows, "gamma", torch.float64)


@frozen(kw_only=True)
class Detection:
    """What was found in a text.

    Attributes:
        tokens: How many tokens were tested.
        green: How many of them are green.
        z: Standard deviations above the share that unmarked text has (equation 3 of the paper).
        p_value: Probability of at least so many green tokens in unmarked text (exact binomial).
    """

    tokens: int
    green: int
    z: float
    p_value: float


def detect(token_ids: Sequence[int], config: Watermark, *, prompt_ids: Sequence[int] = ()) -> Detection:
    """Test whether ids were drawn with a watermark.

    Each pair of context and token counts once: repetitions are not independent (section 3.3 of the paper).

    Args:
        token_ids: The text: a list, an array or a tensor of ids.
        config: The watermark, key included.
        prompt_ids: Ids before the text; they are context and are not tested.

    Raises:
        DataError: If no token has enough ids before it, something among the ids is none, or ``config`` is no watermark.
    """
    if not isinstance(config, Watermark):
        raise DataError(f"config: a Watermark was expected, of a chain the link itself, not {type(config).__name__}.")
    before, text = _ids(prompt_ids, "prompt_ids"), _ids(token_ids, "token_ids")
    whole = [*before, *text]
    first = max(len(before), config.context)
    pairs = {(tuple(whole[i - config.context : i]), whole[i]) for i in range(first, len(whole))}
    if not pairs:
        raise DataError(f"{len(text)} ids are too few: a token is tested by the {config.context} ids before it.")
    ordered = sorted(pairs)
    contexts, tokens = torch.tensor([c for c, _ in ordered]), torch.tensor([[t] for _, t in ordered])
    found, count, gamma = int(green(config, contexts, tokens).sum()), len(ordered), config.gamma
    z = (found - gamma * count) / math.sqrt(count * gamma * (1 - gamma))
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        + k * math.log(gamma) + (count - k) * math.log1p(-gamma)
        for k in range(found, count + 1)
    ]  # fmt: skip
    return Detection(tokens=count, green=found, z=z, p_value=min(1.0, math.fsum(map(math.exp, logs))))


def _ids(given: Sequence[int], what: str) -> list[int]:
    """Return ids as ints: tensors of one number are equal to none of their kind, and every pair would count."""
    try:
        found = list(map(operator.index, given))
    except (TypeError, ValueError):
        raise DataError(f"{what}: a list of token ids was expected, one text's, not {type(given).__name__}.") from None
    if found and min(found) < 0:
        raise DataError(f"{what}: {min(found)} is no token id; leave padding out.")
    return found

"""Configs of decoders that work on what another decoder does: they steer its logits, or vote on its completions."""

from __future__ import annotations

from typing import ClassVar

from attrs import field, frozen
from attrs import validators as v

from tunesmith.kinds.decoder import DecoderConfig
from tunesmith_plugins.decoders.config import IMPLEMENTATIONS, Stepwise


@frozen(kw_only=True)
class Guidance(DecoderConfig):
    """Classifier-free guidance (Sanchez et al., 2023, equation 7): every step moves the log-probabilities away from those
    after another prompt, ``logp' = scale * (logp - logp_negative) + logp_negative``.

    The other prompt is the request's ``negative_ids``, else ``negative``, else the last token of the prompt alone, which
    is nearly no prompt. Every row costs two.

    Attributes:
        scale: 1 changes nothing, above 1 follows the prompt more closely, 0 is the negative prompt alone, and below 0
            leads away from the prompt.
        negative: Text of the negative prompt for requests that bring none; empty means the prompt's last token.
        decoder: Who writes with the steered logits.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.guidance:GuidanceDecoder"
    scale: float = field(default=1.5, validator=[v.gt(float("-inf")), v.lt(float("inf"))])
    negative: str = ""
    decoder: DecoderConfig = field(factory=Stepwise)

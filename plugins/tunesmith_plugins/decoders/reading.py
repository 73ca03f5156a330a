"""Reading prompts, each once where several completions of it are wanted, even if they enter the batch one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import define

from tunesmith.kinds.decoder import StepModel


@define(eq=False)
class Reader:
    """Reads prompts, and keeps what it has read of the last one while more of its copies wait.

    That is one row more of cache; where the cache is bounded nothing is kept.

    Attributes:
        prompt: What is kept, or None.
    """

    model: StepModel
    prompt: Sequence[int] | None = None
    _logits: torch.Tensor | None = None
    _cache: Any = None

    def copies(self, prompts: Sequence[Sequence[int]]) -> int:
        """Return how many of the first prompts need no reading."""
        if self.prompt is None:
            return 0
        return next((n for n, prompt in enumerate(prompts) if prompt != self.prompt), len(prompts))

    def begin(self, prompts: Sequence[Sequence[int]], following: Sequence[int] | None) -> tuple[torch.Tensor, Any]:
        """Return logits (batch, vocab) of the first new token, and a cache.

        Args:
            prompts: What is read.
            following: The prompt that comes next, if any.
        """
        known = self.copies(prompts)
        if not known:
            logits, cache = self.model.begin(prompts)
        else:
            assert self._logits is not None
            same = torch.zeros(known, dtype=torch.int64, device=self._logits.device)
            logits, cache = self._logits[same], self.model.select(self._cache, same)
            if known < len(prompts):
                others = self.model.begin(prompts[known:])
                logits, cache = torch.cat([logits, others[0]]), self.model.join([cache, others[1]])
        self._keep(prompts[-1], following, logits, cache)
        return logits, cache

    def _keep(self, prompt: Sequence[int], following: Sequence[int] | None, logits: torch.Tensor, cache: Any) -> None:
        if prompt != following or not self.model.joins or getattr(self.model, "cache_tokens", None) is not None:
            self.prompt = self._logits = self._cache = None
        elif prompt != self.prompt:
            last = torch.tensor([len(logits) - 1], dtype=torch.int64, device=logits.device)
            self.prompt, self._logits, self._cache = prompt, logits[last], self.model.select(cache, last)

"""Hidden states of the last layer, seen by hooks on the model while a step model takes a step."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tunesmith.errors import ConfigError
from tunesmith.lm import LM


class Watched:
    """The part of a step model that shows states; see :class:`tunesmith.kinds.step_model.ShowsStates`."""

    lm: LM

    @abstractmethod
    def begin(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, Any]: ...

    @abstractmethod
    def read(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, Any]: ...

    @abstractmethod
    def step(self, token_ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any]: ...

    @abstractmethod
    def context(self, prompt: Sequence[int]) -> Sequence[int]: ...

    def begin_with_states(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Read prompts and show the states of their contexts (batch, time, width), which stand at the end of the rows."""
        time = max(len(self.context(prompt)) for prompt in prompts)
        with self._watching() as seen:
            logits, cache = self.read(prompts)
        return logits, seen[-1][:, -time:], cache

    def step_with_states(self, token_ids: torch.Tensor, cache: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Append one token a row and show its state (batch, width)."""
        with self._watching() as seen:
            logits, cache = self.step(token_ids, cache)
        return logits, seen[-1][:, -1], cache

    @contextmanager
    def _watching(self) -> Iterator[list[torch.Tensor]]:
        seen: list[torch.Tensor] = []
        thread = threading.get_ident()  # one model may write in several, whose states are none of ours

        def ask(_: Any, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
            return (args, {**named, "output_hidden_states": True}) if threading.get_ident() == thread else None

        def look(_: Any, args: Any, output: Any) -> None:
            if threading.get_ident() != thread:
                return
            states = getattr(output, "decoder_hidden_states", None) or getattr(output, "hidden_states", None)
            if states and states[-1].dim() == 3:  # Gemma 3n shows several for each token
                seen.append(states[-1])

        model = self.lm.model
        hooks = [model.register_forward_pre_hook(ask, with_kwargs=True), model.register_forward_hook(look)]
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()
        if not seen:
            raise ConfigError(
                [f"{type(model).__name__} shows no hidden states; take a decoder that needs none"],
                "engine transformers",
            )

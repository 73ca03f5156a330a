"""What samplers may know of the rows of a transformers batch: seeds, parameters, and histories without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from tunesmith.errors import ConfigError
from tunesmith.kinds.sampler import Rows, seed_bits
from tunesmith.runtime import derive_seed

if TYPE_CHECKING:
    import torch

Parameters = Mapping[str, float | Sequence[float]]
"""``"link.field"`` to a number, or to one number a prompt."""


@frozen(kw_only=True)
class RowOptions:
    """What a caller says of the rows of a batch.

    Attributes:
        where: Who asks, for messages.
        seed: One seed, from which each prompt gets its own by its place, or the seeds of all prompts.
        parameters: Per-row parameters of the sampler.
    """

    where: str
    seed: int | Sequence[int]
    parameters: Parameters

    def first(self, input_ids: torch.Tensor, mask: torch.Tensor | None, copies: int) -> Rows:
        """Return the rows before their first token.

        Args:
            input_ids: (batch, time) what generation begins with; each prompt ``copies`` times in a row.
            mask: (batch, time), 0 where a prompt is padded; None means nowhere.
            copies: Completions of a prompt: the streams 0, 1, ...
        """
        import torch

        batch, device = len(input_ids), input_ids.device
        prompts = batch // copies
        given = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.to(device).bool()
        lengths = given.sum(-1)
        history = torch.zeros_like(input_ids)
        for number in range(batch):
            history[number, : int(lengths[number])] = input_ids[number, given[number]]
        each = torch.arange(batch, device=device)
        seeds = torch.tensor([seed_bits(s) for s in self._seeds(prompts)], dtype=torch.int64, device=device)
        return Rows(
            seed=seeds.repeat_interleave(copies),
            stream=each % copies,
            position=torch.zeros_like(each),
            history=history,
            history_lengths=lengths,
            prompt_lengths=lengths,
            parameters=self._parameters(prompts, copies, device),
        )

    def _seeds(self, prompts: int) -> list[int]:
        if isinstance(self.seed, int):
            return [derive_seed(self.seed, str(number)) for number in range(prompts)]
        if len(self.seed) != prompts:
            raise ConfigError([f"{len(self.seed)} seeds for {prompts} prompts"], self.where)
        return list(self.seed)

    def _parameters(self, prompts: int, copies: int, device: torch.device) -> dict[str, torch.Tensor]:
        import torch

        found = {}
        for name, value in self.parameters.items():
            each = [float(value)] * prompts if isinstance(value, (int, float)) else [float(v) for v in value]
            if len(each) != prompts:
                raise ConfigError([f"{len(each)} values of {name!r} for {prompts} prompts"], self.where)
            found[name] = torch.tensor(each, dtype=torch.float64, device=device).repeat_interleave(copies)
        return found


def with_generated(first: Rows, generated: torch.Tensor) -> Rows:
    """Return rows some tokens later: ``generated`` (batch, count) behind each row's prompt."""
    import torch

    count = generated.shape[1]
    place = first.prompt_lengths[:, None] + torch.arange(count, device=generated.device)
    history = torch.nn.functional.pad(first.history, (0, count)).scatter(1, place, generated)
    return evolve(first, history=history, history_lengths=first.prompt_lengths + count, position=first.position + count)

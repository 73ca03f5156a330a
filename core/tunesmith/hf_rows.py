"""What samplers may know of the rows of a transformers batch: seeds, parameters, and histories without padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from tunesmith.errors import ConfigError
from tunesmith.given import each, is_one, mapping, one_each, real, whole
from tunesmith.kinds.sampler import Rows, Sampler, seed_bits
from tunesmith.row_parameters import check as check_parameters
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

    def check(self, sampler: Sampler) -> None:
        """Raise ConfigError for seeds that are none, and parameters that a sampler has not or whose values its configs refuse."""
        self._seeds(1 if is_one(self.seed) else len(self.seed))  # type: ignore[arg-type]
        mapping(self.parameters, "parameters", self.where)
        counts = {name: len(value) for name, value in self.parameters.items() if not is_one(value)}  # type: ignore[arg-type]
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{count} of {name!r}" for name, count in counts.items())
            raise ConfigError([f"parameters have one value or one a prompt, and these have {found}"], self.where)
        count = next(iter(counts.values()), 1)
        check_parameters(sampler, {name: self._each(name, count) for name in self.parameters}, self.where)

    def first(self, input_ids: torch.Tensor, mask: torch.Tensor | None, copies: int) -> Rows:
        """Return the rows before their first token.

        Args:
            input_ids: (batch, time) what generation begins with; each prompt ``copies`` times in a row.
            mask: (batch, time), 0 where a prompt is padded; None means nowhere. It may be longer than the ids, at the beginning.
            copies: Completions of a prompt: the streams 0, 1, ...
        """
        import torch

        batch, device = len(input_ids), input_ids.device
        prompts = batch // copies
        given = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.to(device).bool()
        # of what is in a cache, or given as vectors, no ids are known
        given = given[:, given.shape[1] - input_ids.shape[1] :]
        lengths = given.sum(-1)
        history = torch.zeros_like(input_ids, dtype=torch.int64)
        for number in range(batch):
            history[number, : int(lengths[number])] = input_ids[number, given[number]]
        row = torch.arange(batch, device=device)
        seeds = torch.tensor([seed_bits(s) for s in self._seeds(prompts)], dtype=torch.int64, device=device)
        return Rows(
            seed=seeds.repeat_interleave(copies),
            stream=row % copies,
            position=torch.zeros_like(row),
            history=history,
            history_lengths=lengths,
            prompt_lengths=lengths,
            parameters=self._parameters(prompts, copies, device),
        )

    def _seeds(self, prompts: int) -> list[int]:
        if is_one(self.seed):
            seed = whole(self.seed, "seed", self.where)
            return [derive_seed(seed, str(number)) for number in range(prompts)]
        return one_each(self.seed, prompts, "seeds", self.where, whole)  # type: ignore[arg-type]

    def _parameters(self, prompts: int, copies: int, device: torch.device) -> dict[str, torch.Tensor]:
        import torch

        found = {}
        for name in self.parameters:
            own = torch.tensor(self._each(name, prompts), dtype=torch.float64, device=device)
            found[name] = own.repeat_interleave(copies)
        return found

    def _each(self, name: str, count: int) -> list[float]:
        return each(self.parameters[name], count, f"values of {name!r}", self.where, real)


def with_generated(first: Rows, generated: torch.Tensor) -> Rows:
    """Return rows some tokens later: ``generated`` (batch, count) behind each row's prompt."""
    import torch

    count = generated.shape[1]
    place = first.prompt_lengths[:, None] + torch.arange(count, device=generated.device)
    history = torch.nn.functional.pad(first.history, (0, count)).scatter(1, place, generated.long())
    return evolve(first, history=history, history_lengths=first.prompt_lengths + count, position=first.position + count)

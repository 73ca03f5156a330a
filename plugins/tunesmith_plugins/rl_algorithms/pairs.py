"""Preferences as token ids."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from tunesmith.data.records import Preference
from tunesmith.generation import prompt_ids
from tunesmith.lm import LM


@frozen(kw_only=True, eq=False)
class Pairs:
    """Attributes:
    prompts: Ids of each pair's prompt.
    chosen: Ids of the better completion, the end of sequence included.
    rejected: Ids of the other one.
    weights: Weight of each pair.
    cut_prompts: How many prompts lost their beginning.
    cut_completions: How many completions lost their end.
    """

    prompts: list[tuple[int, ...]]
    chosen: list[tuple[int, ...]]
    rejected: list[tuple[int, ...]]
    weights: list[float]
    cut_prompts: int
    cut_completions: int


def encode(lm: LM, preferences: Sequence[Preference], max_prompt: int, max_completion: int) -> Pairs:
    """Return preferences as ids: the prompt as it is read for generation, completions without special tokens but with the
    end of sequence."""
    prompts = prompt_ids(lm, [p.prompt for p in preferences])
    end = (lm.tokenizer.eos_token_id,) if lm.tokenizer.eos_token_id is not None else ()

    def completion(text: str) -> tuple[int, ...]:
        return (*lm.tokenizer(text_target=text, add_special_tokens=False).input_ids, *end)

    chosen = [completion(p.chosen) for p in preferences]
    rejected = [completion(p.rejected) for p in preferences]
    everything = [*chosen, *rejected]
    return Pairs(
        prompts=[ids[-max_prompt:] if max_prompt else ids for ids in prompts],
        chosen=[ids[: max_completion or None] for ids in chosen],
        rejected=[ids[: max_completion or None] for ids in rejected],
        weights=[p.weight for p in preferences],
        cut_prompts=sum(bool(max_prompt) and len(ids) > max_prompt for ids in prompts),
        cut_completions=sum(bool(max_completion) and len(ids) > max_completion for ids in everything),
    )

"""Preferences as token ids, every distinct completion of a prompt once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen

from tunesmith.data.records import Preference
from tunesmith.generation import prompt_ids
from tunesmith.lm import LM


@frozen(kw_only=True, eq=False)
class Pairs:
    """Answers are the distinct pairs of a prompt and a completion; a pair of a preference is two of their numbers.

    Attributes:
        prompts: Ids of each answer's prompt.
        completions: Ids of each answer's completion, the end of sequence included.
        chosen: (pairs,) int64, the answer that was better.
        rejected: (pairs,) int64, the other one.
        weights: (pairs,) float64.
        cut_prompts: How many pairs' prompts lost their beginning.
        cut_completions: How many pairs' completions lost their end.
    """

    prompts: list[tuple[int, ...]]
    completions: list[tuple[int, ...]]
    chosen: torch.Tensor
    rejected: torch.Tensor
    weights: torch.Tensor
    cut_prompts: int
    cut_completions: int


def encode(lm: LM, preferences: Sequence[Preference], max_prompt: int, max_completion: int) -> Pairs:
    """Return preferences as ids: the prompt as it is read for generation, completions without special tokens but with the
    end of sequence."""
    end = (lm.tokenizer.eos_token_id,) if lm.tokenizer.eos_token_id is not None else ()
    texts = list(dict.fromkeys(p.prompt for p in preferences))
    whole = dict(zip(texts, prompt_ids(lm, texts), strict=True))
    ids: dict[str, tuple[int, ...]] = {}
    numbers: dict[tuple[str, str], int] = {}
    for p in preferences:
        for text in (p.chosen, p.rejected):
            if text not in ids:
                ids[text] = (*lm.tokenizer(text_target=text, add_special_tokens=False).input_ids, *end)
            numbers.setdefault((p.prompt, text), len(numbers))

    def index(side: str) -> torch.Tensor:
        return torch.tensor([numbers[p.prompt, getattr(p, side)] for p in preferences], dtype=torch.int64)

    return Pairs(
        prompts=[whole[prompt][-max_prompt:] if max_prompt else whole[prompt] for prompt, _ in numbers],
        completions=[ids[text][: max_completion or None] for _, text in numbers],
        chosen=index("chosen"),
        rejected=index("rejected"),
        weights=torch.tensor([p.weight for p in preferences], dtype=torch.float64),
        cut_prompts=sum(bool(max_prompt) and len(whole[p.prompt]) > max_prompt for p in preferences),
        cut_completions=sum(
            bool(max_completion) and len(ids[text]) > max_completion
            for p in preferences
            for text in (p.chosen, p.rejected)
        ),
    )

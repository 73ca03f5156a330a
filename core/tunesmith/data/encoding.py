"""Examples to token ids and labels, for every family alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    import torch

    from tunesmith.data.records import Example
    from tunesmith.lm import Family

IGNORED = -100
"""Label of a position that is not in the loss."""


@frozen(kw_only=True)
class Encoded:
    """One example as ids.

    Attributes:
        input_ids: What the model reads.
        labels: Encoder-decoder: the target's ids. Otherwise as long as ``input_ids``: the ids themselves, ``IGNORED`` where the
            prompt is masked.
        cut_input: Input tokens that did not fit.
        cut_target: Target tokens that did not fit.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    cut_input: int = 0
    cut_target: int = 0


def encode(
    example: Example,
    tokenizer: Any,
    family: Family,
    *,
    max_length: int,
    max_target_length: int,
    mask_prompt: bool = True,
) -> Encoded:
    """Encode one example and its first target.

    The target ends with the end-of-sequence token, which is kept when the target is cut. A decoder-only row that does not
    fit loses the beginning of its prompt; other inputs lose their end.
    """
    target = example.targets[0] if example.targets else ""
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    if family == "encoder":
        ids = tokenizer(f"{example.prompt} {target}".strip()).input_ids
        kept = ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]]
        return Encoded(input_ids=tuple(kept), labels=tuple(kept), cut_input=len(ids) - len(kept))
    answer = [i for i in tokenizer(target, add_special_tokens=False).input_ids if [i] != end]
    if family == "encoder-decoder":
        source = tokenizer(example.prompt).input_ids
        kept_source = source if len(source) <= max_length else [*source[: max_length - 1], source[-1]]
        kept = answer[: max_target_length - len(end)] + end
        return Encoded(
            input_ids=tuple(kept_source),
            labels=tuple(kept),
            cut_input=len(source) - len(kept_source),
            cut_target=len(answer) + len(end) - len(kept),
        )
    prompt = [i for i in tokenizer(example.prompt).input_ids if [i] != end]
    kept = answer[: max_length - len(end)] + end
    room = max_length - len(kept)
    kept_prompt = prompt[len(prompt) - room :] if len(prompt) > room else prompt
    masked = [IGNORED] * len(kept_prompt) if mask_prompt and example.prompt else list(kept_prompt)
    return Encoded(
        input_ids=tuple(kept_prompt + kept),
        labels=tuple(masked + kept),
        cut_input=len(prompt) - len(kept_prompt),
        cut_target=len(answer) + len(end) - len(kept),
    )


def pad(rows: Sequence[Encoded], tokenizer: Any) -> dict[str, torch.Tensor]:
    """Return right-padded ``input_ids``, ``attention_mask`` and ``labels``, each (batch, time) int64.

    The mask comes from lengths, so it holds for tokenizers whose pad token is also their end of sequence, or missing.
    """
    import torch

    filler = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    def fill(sequences: Sequence[Sequence[int]], value: int) -> torch.Tensor:
        width = max(len(s) for s in sequences)
        return torch.tensor([[*s, *[value] * (width - len(s))] for s in sequences], dtype=torch.int64)

    return {
        "input_ids": fill([r.input_ids for r in rows], filler),
        "attention_mask": fill([[1] * len(r.input_ids) for r in rows], 0),
        "labels": fill([r.labels for r in rows], IGNORED),
    }

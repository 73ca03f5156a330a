"""Log-probabilities of given completions under a model: the one scoring core of every RL algorithm.

Rows are laid out so that padding can never matter: an encoder-decoder reads its prompt right-padded with a mask, a
decoder-only model reads prompt and completion without a gap and padding behind them. Which tokens count is said by
lengths alone. Ids are never looked at, because a pad id is often also the decoder's start (T5) or the end of text.

Imported at run time only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from transformers.modeling_outputs import BaseModelOutput

from tunesmith.errors import DataError, MissingPower
from tunesmith.model_families import needs

if TYPE_CHECKING:
    from tunesmith.lm import LM

ValueHead = Callable[[torch.Tensor], torch.Tensor]
"""Last hidden states (batch, time, width) to values (batch, time)."""

Scores = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


@dataclass
class Encoded(BaseModelOutput):  # type: ignore[misc]
    """What an encoder made of prompts, as decoders want it; those of mixtures of experts ask for what its routers said too."""

    router_logits: tuple[torch.Tensor, ...] | None = None


def token_logps(
    lm: LM,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: torch.Tensor,
    lengths: torch.Tensor,
    temperature: float = 1.0,
    value_head: ValueHead | None = None,
    *,
    entropy: bool = True,
) -> Scores:
    """Score completion tokens, with gradients unless they are switched off around the call.

    The model is used in the mode it is in: call ``lm.model.eval()`` first, or dropout is part of the result. In evaluation
    mode rows that are equal are computed once, and so is what the encoder makes of equal prompts.

    Args:
        lm: A decoder-only or encoder-decoder model.
        prompt_ids: Each row's prompt, without padding.
        completion_ids: (batch, time) int64; what stands at or behind a row's length is ignored.
        lengths: (batch,) int64, tokens of each completion, the end-of-sequence token included.
        temperature: Logits are divided by it, as they were for sampling.
        value_head: Applied to the last hidden state from which each token was predicted.
        entropy: Whether the entropy is wanted; over a large vocabulary it takes as much memory as the logits, twice over.

    Returns:
        ``logps``, ``entropy`` (nats, of the whole distribution at temperature; NaN if not wanted) and ``values`` (None
        without a head), each (batch, time), at least float32, 0 at and behind a row's length.

    Raises:
        MissingPower: For an encoder, which predicts no next token, and for a model whose code is right only token by token.
        DataError: For an empty prompt of a decoder-only model, naming the row.
    """
    if lm.family == "encoder":
        raise MissingPower("an encoder predicts no next token; use a decoder-only or an encoder-decoder model.")
    minded = needs(lm.model)
    if minded.one_by_one and not minded.ids_beside_states:
        raise MissingPower(
            f"transformers' code of {type(lm.model).__name__} reads several tokens at once wrongly, so that no text can be scored; "
            "take another model."
        )
    device = lm.device
    lengths = lengths.to(device)
    time = completion_ids.shape[1]
    mask = torch.arange(time, device=device)[None, :] < lengths[:, None]
    targets = torch.where(mask, completion_ids.to(device), torch.zeros((), dtype=torch.int64, device=device))
    if time == 0:
        empty = torch.zeros(len(prompt_ids), 0, device=device)
        return empty, empty, None if value_head is None else empty
    first, which = _distinct(prompt_ids, targets, lengths) if not lm.model.training else (None, None)
    if first is not None:
        prompt_ids, targets, lengths, mask = [prompt_ids[i] for i in first], targets[first], lengths[first], mask[first]
    run = _encoder_decoder if lm.family == "encoder-decoder" else _decoder
    logits, states = run(lm, prompt_ids, targets, lengths, value_head is not None)
    every = torch.log_softmax(_wide(logits) / temperature, dim=-1)
    logps = every.gather(-1, targets[..., None]).squeeze(-1).masked_fill(~mask, 0.0)
    spread = _entropy(every).masked_fill(~mask, 0.0) if entropy else logps.new_full((), torch.nan).expand_as(logps)
    values = None if value_head is None else value_head(states).masked_fill(~mask, 0.0)
    if which is not None:
        logps, spread = logps[which], spread[which]
        values = None if values is None else values[which]
    return logps, spread, values


def token_logps_in_batches(
    lm: LM,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: torch.Tensor,
    lengths: torch.Tensor,
    temperature: float = 1.0,
    value_head: ValueHead | None = None,
    *,
    batch_size: int = 0,
    entropy: bool = True,
) -> Scores:
    """Return :func:`token_logps` without gradients, ``batch_size`` rows at a time (0: all at once)."""
    time = completion_ids.shape[1]
    parts: list[Scores] = []
    with torch.no_grad():
        for rows in micro_batches(len(prompt_ids), batch_size):
            prompts, ids, some = take(prompt_ids, completion_ids, lengths, rows)
            parts.append(token_logps(lm, prompts, ids, some, temperature, value_head, entropy=entropy))

    def joined(pieces: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([torch.nn.functional.pad(p, (0, time - p.shape[1])) for p in pieces])

    if not parts:
        empty = torch.zeros(0, time, device=lm.device)
        return empty, empty, None if value_head is None else empty
    values = None if value_head is None else joined([p[2] for p in parts if p[2] is not None])
    return joined([p[0] for p in parts]), joined([p[1] for p in parts]), values


def micro_batches(rows: int | Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield the row numbers (or the given ones) ``batch_size`` at a time; 0 means all at once."""
    numbers = list(range(rows)) if isinstance(rows, int) else list(rows)
    size = batch_size or len(numbers)
    for first in range(0, len(numbers), max(size, 1)):
        yield numbers[first : first + size]


def take(
    prompt_ids: Sequence[Sequence[int]], completion_ids: torch.Tensor, lengths: torch.Tensor, rows: Sequence[int]
) -> tuple[list[Sequence[int]], torch.Tensor, torch.Tensor]:
    """Return these rows, their completions no wider than the longest of them."""
    index = torch.as_tensor(list(rows), dtype=torch.int64)
    some = lengths[index.to(lengths.device)]
    width = int(some.max()) if len(index) else 0
    return [prompt_ids[i] for i in rows], completion_ids[index.to(completion_ids.device), :width], some


def pad(sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids (batch, longest) int64, right-padded with 0, and their lengths (batch,) int64."""
    lengths = torch.tensor([len(s) for s in sequences], dtype=torch.int64)
    ids = torch.zeros(len(sequences), int(lengths.max()) if len(sequences) else 0, dtype=torch.int64)
    every = torch.tensor(list(chain.from_iterable(sequences)), dtype=torch.int64)
    return ids.masked_scatter_(_mask(lengths, ids.shape[1]).bool(), every), lengths


def distinct(sequences: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Return the places at which a sequence stands for the first time, and for each one the number of its first."""
    numbers: dict[tuple[int, ...], int] = {}
    which = [numbers.setdefault(tuple(sequence), len(numbers)) for sequence in sequences]
    firsts = dict(zip(reversed(which), reversed(range(len(which))), strict=True))
    return [firsts[number] for number in range(len(numbers))], which


def _distinct(
    prompt_ids: Sequence[Sequence[int]], targets: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """Return the row numbers of the first of equal rows, and for each row which of those it is; None if all differ."""
    prompts = distinct(prompt_ids)[1]
    rows = zip(prompts, lengths.tolist(), targets.tolist(), strict=True)
    first, which = distinct([(prompt, length, *ids) for prompt, length, ids in rows])
    if len(first) == len(which):
        return None, None
    return torch.tensor(first, device=targets.device), torch.tensor(which, device=targets.device)


def _entropy(logps: torch.Tensor) -> torch.Tensor:
    probabilities = logps.exp()
    # A token of probability 0 adds nothing, though 0 * -inf would be NaN.
    return -(probabilities * logps.masked_fill(probabilities == 0, 0.0)).sum(-1)


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _mask(lengths: torch.Tensor, width: int) -> torch.Tensor:
    return (torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]).long()


def _encoder_decoder(
    lm: LM, prompt_ids: Sequence[Sequence[int]], targets: torch.Tensor, lengths: torch.Tensor, states: bool
) -> tuple[torch.Tensor, Any]:
    """Logits (batch, time, vocab) and decoder states; the decoder reads its start id, then all tokens but the last."""
    start = torch.full_like(targets[:, :1], decoder_start(lm))
    read = torch.cat([start, targets[:, :-1]], dim=1)
    # Attention is causal and padding stands behind, so no token that counts can see any. A mask is there because some (T5Gemma)
    # make one of their own without it, in which an id of padding within a text counts as padding.
    masked = {"decoder_attention_mask": torch.ones_like(read)} if _accepts(lm.model, "decoder_attention_mask") else {}
    out = lm.model(
        **_encoder_inputs(lm, prompt_ids, targets.device),
        decoder_input_ids=read,
        **masked,
        use_cache=False,
        output_hidden_states=states,
        return_dict=True,
    )
    return out.logits, out.decoder_hidden_states[-1] if states else None


def _encoder_inputs(lm: LM, prompt_ids: Sequence[Sequence[int]], device: torch.device) -> dict[str, Any]:
    """What the model is to encode; in evaluation mode, if prompts are repeated, what the encoder made of each once."""
    first, which = distinct(prompt_ids)
    shared = len(first) < len(which) and not lm.model.training and not needs(lm.model).ids_beside_states
    ids, lengths = pad([prompt_ids[row] for row in first] if shared else prompt_ids)
    inputs: dict[str, Any] = {"input_ids": ids.to(device), "attention_mask": _mask(lengths, ids.shape[1]).to(device)}
    if not shared:
        return inputs
    states = lm.model.get_encoder()(**inputs, return_dict=True).last_hidden_state
    index = torch.tensor(which, device=device)
    return {
        "encoder_outputs": Encoded(last_hidden_state=states[index]),
        "attention_mask": inputs["attention_mask"][index],
    }


def _decoder(
    lm: LM, prompt_ids: Sequence[Sequence[int]], targets: torch.Tensor, lengths: torch.Tensor, states: bool
) -> tuple[torch.Tensor, Any]:
    """Logits (batch, time, vocab) and states at the positions that predict the completion's tokens."""
    for row, prompt in enumerate(prompt_ids):
        if len(prompt) == 0:
            raise DataError(
                f"row {row}: a decoder-only model needs at least one prompt token (its beginning-of-sequence token)."
            )
    device, time = targets.device, targets.shape[1]
    prompts, prompt_lengths = pad(prompt_ids)
    prompts, prompt_lengths = prompts.to(device), prompt_lengths.to(device)
    row_lengths = prompt_lengths + (lengths - 1).clamp(min=0)
    width = int(row_lengths.max())
    # Every row's tokens but the last go right behind its prompt; what lands behind them is masked.
    ids = torch.nn.functional.pad(prompts, (0, time))
    places = prompt_lengths[:, None] + torch.arange(time, device=device)
    ids = ids.scatter_(1, places, targets)[:, :width]
    mask = _mask(row_lengths, width)
    # Logits from where the first completion begins: over a large vocabulary those of the prompts would take most memory.
    kept = width + 1 - int(prompt_lengths.min())
    some = {"logits_to_keep": kept} if _accepts(lm.model, "logits_to_keep") else {}
    out = lm.model(
        input_ids=ids * mask,
        attention_mask=mask,
        use_cache=False,
        output_hidden_states=states,
        return_dict=True,
        **some,
    )
    places = (places - 1).clamp(max=width - 1)
    rows = torch.arange(len(prompt_ids), device=targets.device)[:, None]
    # Soft prompts put virtual tokens in front; the model's own positions are the last ones.
    logits = out.logits[:, -kept:][rows, places - (width - kept)]
    return logits, out.hidden_states[-1][:, -width:][rows, places] if states else None


def _accepts(model: Any, argument: str) -> bool:
    while hasattr(model, "get_base_model"):  # inside wrappers such as peft's
        model = model.get_base_model()
    return argument in _arguments(type(model).forward)


@cache
def _arguments(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def decoder_start(lm: LM) -> int:
    """Return the id from which an encoder-decoder's decoder starts.

    Raises:
        DataError: If neither the generation config nor the config names one.
    """
    for source in (getattr(lm.model, "generation_config", None), lm.model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            found = getattr(source, name, None)
            if found is not None:
                return int(found[0] if isinstance(found, (list, tuple)) else found)
    raise DataError("the model's config names no decoder_start_token_id; set it in the model folder's config.json.")

"""Our samplers inside transformers' own ``generate``: ``model.generate(..., custom_generate=custom_generate("top_p"))``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from attrs import evolve

from tunesmith.errors import ConfigError, NumericError
from tunesmith.kinds.sampler import Rows, Sampler, SamplerConfig, seed_bits
from tunesmith.runtime import derive_seed

if TYPE_CHECKING:
    import torch

UNSUPPORTED = ("output_attentions", "output_hidden_states")
WARPER = "LogitsWarper"
"""End of the class names of transformers' own sampling steps (temperature, top-k ...), as opposed to its processors."""


def custom_generate(
    sampler: SamplerConfig | Sampler | str | None = None, *, seed: int | Sequence[int] = 0
) -> Callable[..., Any]:
    """Return a callable for the ``custom_generate`` argument of a transformers model's ``generate``.

    It draws the tokens that ``tunesmith.generate`` draws with the ``stepwise`` decoder for the same prompts and seeds. The
    rest is transformers': inputs, cache, stopping criteria, and logits processors, which come before the sampler.
    transformers asks for ``do_sample=True`` with ``num_return_sequences`` above 1; the temperature, top-k ... that come with
    it are left out, since the sampler stands in their place. transformers hands callables no streamer.

    Args:
        sampler: A config, a short spelling or a built sampler; None means ``greedy``.
        seed: One seed, from which each prompt of the batch gets its own by its place, or the seeds of all prompts. Further
            completions of a prompt (``num_return_sequences``) are the streams 1, 2, ...

    Example:
        >>> model.generate(**inputs, custom_generate=custom_generate("top_p(p=0.9)", seed=7))  # doctest: +SKIP
    """
    from tunesmith.generation import component

    built: Sampler = component(sampler, "sampler")

    def generate(
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        _check(generation_config)
        rows = _rows(input_ids, model_kwargs, model, generation_config, seed)
        return _loop(
            model,
            input_ids,
            rows,
            built,
            (logits_processor, stopping_criteria, generation_config),
            model_kwargs,
        )

    return generate


def _check(settings: Any) -> None:
    problems = [f"{name} is not given by custom_generate" for name in UNSUPPORTED if getattr(settings, name, False)]
    if (settings.num_beams or 1) > 1:
        problems.append("num_beams > 1 has no meaning with a sampler; use tunesmith's beam decoder or leave it out")
    if problems:
        raise ConfigError(problems, "custom_generate")


def _rows(
    input_ids: torch.Tensor, model_kwargs: dict[str, Any], model: Any, settings: Any, seed: int | Sequence[int]
) -> Rows:
    import torch

    batch, device = len(input_ids), input_ids.device
    copies = settings.num_return_sequences or 1
    prompts = batch // copies
    if isinstance(seed, int):
        seeds = [derive_seed(seed, str(number)) for number in range(prompts)]
    else:
        seeds = list(seed)
        if len(seeds) != prompts:
            raise ConfigError([f"{len(seeds)} seeds for {prompts} prompts"], "custom_generate")
    mask = None if model.config.is_encoder_decoder else model_kwargs.get("attention_mask")
    given = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask.to(device).bool()
    lengths = given.sum(-1)
    history = torch.zeros_like(input_ids)
    for number in range(batch):
        history[number, : int(lengths[number])] = input_ids[number, given[number]]
    each = torch.arange(batch, device=device)
    return Rows(
        seed=torch.tensor([seed_bits(s) for s in seeds], dtype=torch.int64, device=device).repeat_interleave(copies),
        stream=each % copies,
        position=torch.zeros_like(each),
        history=history,
        history_lengths=lengths,
        prompt_lengths=lengths,
    )


def _loop(
    model: Any,
    input_ids: torch.Tensor,
    rows: Rows,
    sampler: Sampler,
    rules: tuple[Any, Any, Any],
    model_kwargs: dict[str, Any],
) -> Any:
    import torch

    processors, criteria, settings = rules
    processors = type(processors)(p for p in processors if not type(p).__name__.endswith(WARPER))
    finished = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    filler = _filler(settings)
    scores: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    outputs = model._prefill(input_ids, settings, model_kwargs)
    while True:
        model_kwargs = model._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder=model.config.is_encoder_decoder
        )
        raw = outputs.logits[:, -1].to(device=input_ids.device, dtype=torch.float32, copy=True)
        processed = processors(input_ids, raw)
        draw = sampler.sample(processed, rows)
        broken = (draw.status != 0) & ~finished
        if bool(broken.any()):
            raise NumericError(
                f"row {int(broken.nonzero()[0, 0])} of the batch: the logits hold NaN, +inf or no finite value at new "
                f"token {int(rows.position[0])}. Try a wider dtype."
            )
        if settings.return_dict_in_generate:
            scores += [processed] if settings.output_scores else []
            logits += [raw] if settings.output_logits else []
        token = torch.where(finished, filler, draw.token)
        input_ids = torch.cat([input_ids, token[:, None]], dim=1)
        rows = _advanced(rows, token, draw.state)
        finished = finished | criteria(input_ids, tuple(scores) or None)
        if bool(finished.all()):
            return _result(model, input_ids, settings, scores, logits, model_kwargs)
        length = 1 if model_kwargs.get("use_cache") else None
        inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=length, **model_kwargs)
        outputs = model(**inputs, return_dict=True)


def _filler(settings: Any) -> int:
    for value in (settings.pad_token_id, settings.eos_token_id):
        if value is not None:
            return int(value[0] if isinstance(value, (list, tuple)) else value)
    return 0


def _advanced(rows: Rows, token: torch.Tensor, state: Any) -> Rows:
    import torch

    history = torch.nn.functional.pad(rows.history, (0, 1))
    history.scatter_(1, rows.history_lengths[:, None], token[:, None])
    return evolve(
        rows, history=history, history_lengths=rows.history_lengths + 1, position=rows.position + 1, state=state
    )


def _result(
    model: Any,
    input_ids: torch.Tensor,
    settings: Any,
    scores: list[torch.Tensor],
    logits: list[torch.Tensor],
    model_kwargs: dict[str, Any],
) -> Any:
    if not settings.return_dict_in_generate:
        return input_ids
    from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput

    make = GenerateEncoderDecoderOutput if model.config.is_encoder_decoder else GenerateDecoderOnlyOutput
    return make(
        sequences=input_ids,
        scores=tuple(scores) or None,
        logits=tuple(logits) or None,
        past_key_values=model_kwargs.get("past_key_values"),
    )

"""Our samplers inside transformers' own ``generate``: ``model.generate(..., custom_generate=custom_generate("top_p"))``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field

from tunesmith.errors import ConfigError, NumericError
from tunesmith.given import is_one, whole
from tunesmith.hf_rows import Parameters, RowOptions
from tunesmith.kinds.engine import Throughput
from tunesmith.kinds.sampler import STATUS_EMPTY, STATUS_OK, Applies, Link, Rows, Sampler, SamplerConfig, chain_of
from tunesmith.kinds.step_model import introduce
from tunesmith.model_families import needs
from tunesmith.model_settings import DRAWING, MODEL, drawn_by
from tunesmith.padding import (
    counts_between,
    counts_padding,
    first_position,
    positions_of,
    reads_padding,
    virtual_tokens,
)
from tunesmith.runtime import Runtime

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
UNSUPPORTED = ("output_attentions", "output_hidden_states")


def custom_generate(
    sampler: SamplerConfig | Sampler | str | None = None,
    *,
    seed: int | Sequence[int] = 0,
    parameters: Parameters | None = None,
    streamer: Any = None,
    report: Callable[[Throughput], object] | None = None,
    stop_strings: str | Sequence[str] = (),
    tokenizer: Any = None,
) -> Callable[..., Any]:
    """Return a callable for the ``custom_generate`` argument of a transformers model's ``generate``.

    It draws the tokens that ``tunesmith.generate`` draws with the ``stepwise`` decoder for the same prompts and seeds. The
    rest is transformers': inputs, cache, stopping criteria, and logits processors, which come before the sampler, yours too.
    ``scores`` of the output (``output_scores``) are what the tokens were drawn from, after all links.
    transformers asks for ``do_sample=True`` with ``num_return_sequences`` above 1; the temperature, top-k ... that come with
    it are left out, since the sampler stands in their place. transformers hands callables neither a streamer nor a tokenizer, and
    its own ``stop_strings`` then raise a ``ValueError`` whatever it is given: give streamer, stop strings and tokenizer here.

    Args:
        sampler: A config, a short spelling or a built sampler; None means ``greedy``, and ``"model"`` what the call's generation
            config asks for: with ``do_sample`` its temperature, top-k ... in transformers' order and a draw, else the likeliest token.
        seed: One seed, from which each prompt of the batch gets its own by its place, or the seeds of all prompts. Further
            completions of a prompt (``num_return_sequences``) are the streams 1, 2, ...
        parameters: ``"link.field"`` to a number, or to one number a prompt: ``{"top_p.p": [0.5, 0.9]}``.
        streamer: One of transformers' streamers; it is given the ids to begin with, then one id a row and step.
        report: Called once at the end with the speed; ``print`` shows it.
        stop_strings: A row ends with the token that completes one of these, as transformers' ``StopStringCriteria`` finds them.
        tokenizer: The model's, needed for ``stop_strings`` and for links that work on text (``structured``).

    Raises:
        ConfigError: If ``stop_strings`` are given without ``tokenizer``.

    Example:
        >>> model.generate(**inputs, custom_generate=custom_generate("top_p(p=0.9)", seed=7))  # doctest: +SKIP
    """
    given = None if sampler == MODEL else _built(sampler)
    options = RowOptions(where="custom_generate", seed=seed, parameters=parameters or {})
    if given is not None:
        options.check(given)
    stops = _stops(stop_strings, tokenizer)

    def generate(
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:
        _check(generation_config)
        built = given
        if built is None:
            built = _built(drawn_by(generation_config))
            options.check(built)
        # of what a decoder begins with, which an encoder-decoder is seldom given a mask for
        mask = model_kwargs.get("decoder_attention_mask" if model.config.is_encoder_decoder else "attention_mask")
        if needs(model).no_cache:
            model_kwargs["use_cache"] = False
            model_kwargs.pop("past_key_values", None)
        virtual = virtual_tokens(model.get_decoder() if model.config.is_encoder_decoder else model)
        _check_padding(model, mask, 0 if model.config.is_encoder_decoder else virtual)
        ends: list[Any] = []
        positions, first = model_kwargs.get("position_ids"), first_position(model)
        if first and positions is not None:  # from 0, as transformers has them
            model_kwargs["position_ids"] = positions + first
        if virtual or (first and positions is not None):
            ends = _end_of_positions(model, input_ids, mask, generation_config.max_length, virtual)
        if tokenizer is not None:
            introduce(built, tokenizer, _ends(generation_config.eos_token_id, "custom_generate"))
        rows = options.first(input_ids, mask, generation_config.num_return_sequences or 1)
        watch = _Watch(streamer, report, _prompt_tokens(model, rows, model_kwargs))
        return _loop(
            model,
            input_ids,
            rows,
            built,
            (logits_processor, type(stopping_criteria)([*stopping_criteria, *stops, *ends]), generation_config),
            model_kwargs,
            watch,
        )

    return generate


def logits_processors(
    sampler: SamplerConfig | Sampler | str | None = None,
    *,
    attention_mask: torch.Tensor | None = None,
    seed: int | Sequence[int] = 0,
    parameters: Parameters | None = None,
    completions: int = 1,
    eos_token_id: int | Sequence[int] | None = (),
    draw: bool = False,
) -> Any:
    """Return links as a transformers ``LogitsProcessorList``, for the ``logits_processor`` argument of ``generate``.

    Every link of the sampler becomes one processor, a stranger's link as ours. transformers' loop then draws, by
    ``torch.multinomial``: not reproducible row by row. With ``draw=True`` the list is one processor that draws with the
    whole sampler and leaves only the token it drew, so that the tokens are those of :func:`custom_generate`.

    transformers puts these processors behind its own (``min_new_tokens`` ...) and, with ``do_sample=True``, its temperature,
    top-k ... behind these: pass ``top_k=0``, which is 50 otherwise. Beam search works with links that have no memory; links
    with one (mirostat) follow the tokens that transformers drew and refuse beams, as ``draw=True`` does.

    A list can serve one ``generate`` after the other. Taken apart and put into a list of your own it is for one: there a text
    that goes on where the last one ended is taken for more of it.

    Args:
        sampler: A config, a short spelling or a built sampler: a link, a chain, or with ``draw=True`` any sampler.
        attention_mask: (prompts, time) of a decoder-only model's prompts, so that padding is no history; not needed where
            nothing is padded, and never with an encoder-decoder, whose decoder has no padding.
        seed: One seed, from which each prompt of the batch gets its own by its place, or the seeds of all prompts: for
            ``draw=True`` and for links that draw (xtc).
        parameters: ``"link.field"`` to a number, or to one number a prompt.
        completions: ``num_return_sequences`` of the call; with ``attention_mask`` it need not be given.
        eos_token_id: Rows that have written one of these are left alone from then on.
        draw: Draw here.

    Raises:
        ConfigError: If the sampler has no links and ``draw`` is False, or draws greedily itself. Later, from ``generate``:
            if the mask does not fit, or rows change places under a memory.
        NumericError: From ``generate``: if NaN or infinity is among the scores, or nothing is left to draw.

    Example:
        >>> processors = logits_processors("top_p(p=0.9)", attention_mask=inputs["attention_mask"])  # doctest: +SKIP
        >>> model.generate(**inputs, do_sample=True, top_k=0, logits_processor=processors)  # doctest: +SKIP
    """
    import torch

    from tunesmith.hf_processors import DrawProcessor, LinkProcessor, Memory, Processors, Progress, links_of

    where = "logits_processors"
    built = _built(sampler)
    options = RowOptions(where=where, seed=seed, parameters=parameters or {})
    options.check(built)
    copies = whole(completions, "completions", where)
    if copies < 1:
        raise ConfigError([f"completions must be at least 1, not {copies}"], where)
    mask = None if attention_mask is None else torch.as_tensor(attention_mask)
    progress = Progress(options, mask, copies, _ends(eos_token_id, where))
    if draw:
        return Processors([DrawProcessor(built, progress)], progress)
    links = links_of(built)
    memory = Memory(links, progress)
    return Processors([LinkProcessor(name, link, memory) for name, link in links.items()], progress)


def _built(sampler: SamplerConfig | Sampler | str | None) -> Sampler:
    from tunesmith.generation import component

    built: Sampler = component(sampler, "sampler")
    if built is not sampler:
        built.setup(Runtime())
    return built


def _stops(strings: str | Sequence[str], tokenizer: Any) -> list[Any]:
    if not strings:
        return []
    if tokenizer is None:
        raise ConfigError(["stop_strings are found with the model's tokenizer; give tokenizer too"], "custom_generate")
    from transformers import StopStringCriteria

    return [StopStringCriteria(tokenizer, strings if isinstance(strings, str) else list(strings))]


def _end_of_positions(
    model: Any, input_ids: torch.Tensor, mask: torch.Tensor | None, asked: int, virtual: int
) -> list[Any]:
    """Return what ends all rows where a model that begins behind padding or ``virtual`` tokens has no position left for another one.

    transformers, which has positions from 0 and for text alone, does not know that there are fewer.
    """
    room = positions_of(model, "decoder" if model.config.is_encoder_decoder else "", virtual)
    if room is None:
        return []
    width = input_ids.shape[1]
    longest = width if mask is None else int(mask.sum(-1).max())
    if longest > room:
        raise ConfigError(
            [f"a prompt has {longest} tokens, and {type(model).__name__} reads {room} at once; give less of it"],
            "custom_generate",
        )
    most = width + room - longest + 1  # the last token is not read
    if asked <= most:
        return []
    log.warning("texts end at %d new tokens: %s has no positions for more", most - width, type(model).__name__)
    from transformers import MaxLengthCriteria

    return [MaxLengthCriteria(max_length=most)]


def _check(settings: Any) -> None:
    problems = [f"{name} is not given by custom_generate" for name in UNSUPPORTED if getattr(settings, name, False)]
    if (settings.num_beams or 1) > 1:
        problems.append(
            f"num_beams={settings.num_beams} has no meaning with a sampler; use tunesmith's beam decoder, or give num_beams=1 "
            "(the model's own generation config may ask for beams)"
        )
    else:
        mode = str(getattr(settings.get_generation_mode(), "value", ""))
        if mode not in ("greedy_search", "sample"):
            problems.append(
                f"the settings ask for transformers' {mode.replace('_', ' ')}, which has no part here; leave its options out "
                "or use a decoder of tunesmith (contrastive, speculative ...)"
            )
    if problems:
        raise ConfigError(problems, "custom_generate")


def _check_padding(model: Any, mask: torch.Tensor | None, virtual: int) -> None:
    if mask is None or bool(mask.all()):
        return
    what = "takes padding for text" if reads_padding(model) or counts_padding(model) else ""
    if virtual and not what and counts_between(model):
        what = "counts padding between virtual tokens (prompt, p_tuning, prefix) and a text"
    if what:
        raise ConfigError(
            [
                f"{type(model).__name__} {what}, so that a padded prompt gets another completion than alone; "
                "give one prompt a call, or prompts of one length"
            ],
            "custom_generate",
        )


def _without_sampling(processors: Any, settings: Any) -> Any:
    """Return the processors but for the sampling steps of the settings; those that the caller made stay."""
    asked = DRAWING if settings.do_sample else {}
    added = {step.warper for name, step in asked.items() if step.asked(getattr(settings, name, None))}
    kept = []
    for processor in reversed(list(processors)):
        name = type(processor).__name__
        if name in added:  # of several of one class theirs is the last
            added.remove(name)
        else:
            kept.append(processor)
    return type(processors)(reversed(kept))


def _shows(sampler: Sampler) -> Applies | None:
    """Return what tells the scores that a sampler draws from; None where they are the processors' own, or nobody knows."""
    shown = chain_of(sampler) if isinstance(sampler, Link) else sampler
    return shown if isinstance(shown, Applies) else None


def _loop(
    model: Any,
    input_ids: torch.Tensor,
    rows: Rows,
    sampler: Sampler,
    rules: tuple[Any, Any, Any],
    model_kwargs: dict[str, Any],
    watch: _Watch,
) -> Any:
    import torch

    processors, criteria, settings = rules
    processors = _without_sampling(processors, settings)
    shown = _shows(sampler) if settings.return_dict_in_generate and settings.output_scores else None
    finished = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    filler = _filler(settings)
    scores: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    watch.begin(input_ids)
    outputs = model._prefill(input_ids, settings, model_kwargs)
    while True:
        model_kwargs = model._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder=model.config.is_encoder_decoder
        )
        raw = outputs.logits[:, -1].to(device=input_ids.device, dtype=torch.float32, copy=True)
        processed = processors(input_ids, raw)
        draw = sampler.sample(processed, rows, logp=())
        _check_status(draw.status.where(~finished, STATUS_OK), rows)
        if settings.return_dict_in_generate:
            scores += [_scores(shown, processed, rows)] if settings.output_scores else []
            logits += [raw] if settings.output_logits else []
        token = torch.where(finished, filler, draw.token)
        input_ids = torch.cat([input_ids, token[:, None]], dim=1)
        watch.see(token, finished)
        rows = _advanced(rows, token, draw.state)
        finished = finished | criteria(input_ids, tuple(scores) or None)
        if bool(finished.all()):
            watch.end(len(rows))
            return _result(model, input_ids, settings, scores, logits, model_kwargs)
        length = 1 if model_kwargs.get("use_cache") else None
        inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=length, **model_kwargs)
        outputs = model(**inputs, return_dict=True)


def _check_status(status: torch.Tensor, rows: Rows) -> None:
    for number in status.nonzero().flatten().tolist()[:1]:
        empty = int(status[number]) == STATUS_EMPTY
        found = "no finite value is left" if empty else "the logits hold NaN or +inf"
        hint = (
            "Do the sampler's links, or one of them and transformers' processors, leave no token? Else try"
            if empty
            else "Try"
        )
        raise NumericError(
            f"row {number} of the batch: {found} at new token {int(rows.position[number])}. {hint} a wider dtype."
        )


def _scores(shown: Applies | None, processed: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Return what the tokens were drawn from; rows that have ended keep what the processors left."""
    import torch

    if shown is None:
        return processed
    found = shown.apply_links(processed, rows)
    return torch.where((found.status == STATUS_OK)[:, None], found.logits, processed)


@define
class _Watch:
    """Shows tokens while they are drawn, and counts them for the report."""

    streamer: Any
    report: Callable[[Throughput], object] | None
    prompt_tokens: int
    steps: int = 0
    open_rows: list[torch.Tensor] = field(factory=list)
    start: float = 0.0

    def begin(self, input_ids: torch.Tensor) -> None:
        self.start = time.perf_counter()
        if self.streamer is not None:
            self.streamer.put(input_ids.cpu())

    def see(self, token: torch.Tensor, finished: torch.Tensor) -> None:
        self.steps += 1
        if self.report is not None:
            self.open_rows.append((~finished).sum())
        if self.streamer is not None:
            self.streamer.put(token.cpu())

    def end(self, rows: int) -> None:
        if self.streamer is not None:
            self.streamer.end()
        if self.report is not None:
            self.report(
                Throughput(
                    completions=rows,
                    prompt_tokens=self.prompt_tokens,
                    new_tokens=sum(int(count) for count in self.open_rows),
                    seconds=time.perf_counter() - self.start,
                    steps=self.steps - 1,
                )
            )


def _prompt_tokens(model: Any, rows: Rows, model_kwargs: dict[str, Any]) -> int:
    """Return how many tokens were read, each row's prompt by itself; an encoder-decoder's is what its encoder reads."""
    if not model.config.is_encoder_decoder:
        return int(rows.prompt_lengths.sum())
    mask = model_kwargs.get("attention_mask")
    return int(mask.sum()) if mask is not None else int(model_kwargs["encoder_outputs"][0].shape[:2].numel())


def _ends(given: Any, where: str) -> list[int]:
    """Return the ids that end a text: of none, one, or several."""
    ends = () if given is None else (given,) if is_one(given) else given
    return [whole(end, "eos_token_id", where) for end in ends]


def _filler(settings: Any) -> int:
    for value in (settings.pad_token_id, settings.eos_token_id):
        if value is not None:
            return int(value if is_one(value) else value[0])
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

"""From prompts to completions: names and configs become components, texts become ids, results come back in order.

Imported at run time only; torch arrives with the engine.
"""

from __future__ import annotations

import reprlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from attrs import evolve

from tunesmith.component import Component, Config
from tunesmith.errors import ConfigError, TunesmithError
from tunesmith.given import each, half_a_character, is_one, mapping, one_each, real, token_ids, whole
from tunesmith.hf_rows import Parameters
from tunesmith.kinds.decoder import Completion, Decoder, DecoderConfig, Limits, Piece, Request
from tunesmith.kinds.engine import Engine, EngineConfig, Throughput
from tunesmith.kinds.sampler import Sampler, SamplerConfig
from tunesmith.model_settings import MODEL, resolved, tell_unused
from tunesmith.row_parameters import check as check_parameters
from tunesmith.runtime import Runtime, checked, derive_seed
from tunesmith.turns import Turns, turns_of

if TYPE_CHECKING:
    from tunesmith.lm import LM

DEFAULTS = {"engine": "tunesmith/transformers", "decoder": "tunesmith/stepwise", "sampler": "tunesmith/greedy"}
MOST_REQUESTS = 10**6
"""Completions that one call may be asked for beside one a prompt: every one takes memory before it is begun."""
BASES: dict[str, type] = {"engine": Engine, "decoder": Decoder, "sampler": Sampler}


@overload
def generate(
    lm: LM | str | Path | tuple[Any, Any],
    prompts: str | Sequence[str | Sequence[int]],
    *,
    ids: Sequence[str] | None = None,
    negative_prompts: str | Sequence[str | Sequence[int]] | None = None,
    engine: EngineConfig | Engine | str | None = None,
    decoder: DecoderConfig | Decoder | str | None = None,
    sampler: SamplerConfig | Sampler | str | None = None,
    max_new_tokens: int | Sequence[int] = 64,
    min_new_tokens: int = 0,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    parameters: Parameters | None = None,
    completions: int = 1,
    stream: Literal[False] = False,
    report: Callable[[Throughput], object] | None = None,
    runtime: Runtime | None = None,
) -> list[Completion]: ...


@overload
def generate(
    lm: LM | str | Path | tuple[Any, Any],
    prompts: str | Sequence[str | Sequence[int]],
    *,
    ids: Sequence[str] | None = None,
    negative_prompts: str | Sequence[str | Sequence[int]] | None = None,
    engine: EngineConfig | Engine | str | None = None,
    decoder: DecoderConfig | Decoder | str | None = None,
    sampler: SamplerConfig | Sampler | str | None = None,
    max_new_tokens: int | Sequence[int] = 64,
    min_new_tokens: int = 0,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    parameters: Parameters | None = None,
    completions: int = 1,
    stream: Literal[True],
    report: Callable[[Throughput], object] | None = None,
    runtime: Runtime | None = None,
) -> Iterator[Piece]: ...


def generate(
    lm: LM | str | Path | tuple[Any, Any],
    prompts: str | Sequence[str | Sequence[int]],
    *,
    ids: Sequence[str] | None = None,
    negative_prompts: str | Sequence[str | Sequence[int]] | None = None,
    engine: EngineConfig | Engine | str | None = None,
    decoder: DecoderConfig | Decoder | str | None = None,
    sampler: SamplerConfig | Sampler | str | None = None,
    max_new_tokens: int | Sequence[int] = 64,
    min_new_tokens: int = 0,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    parameters: Parameters | None = None,
    completions: int = 1,
    stream: bool = False,
    report: Callable[[Throughput], object] | None = None,
    runtime: Runtime | None = None,
) -> list[Completion] | Iterator[Piece]:
    """Write completions of prompts.

    A prompt's seed is ``derive_seed(seed, its id)``, so its completions stay the same whatever else is asked for.

    Args:
        lm: The model, decoder-only or encoder-decoder; the engine is told to use it. Also a folder or hub name, which is
            loaded, or a pair of a transformers model and its tokenizer.
        prompts: Texts, which get the special tokens that the tokenizer adds of its own, but no end-of-sequence token
            before a decoder-only model's continuation; or token ids, which are taken as they are. One text is one prompt.
        ids: Unique names of the prompts; their places if left out.
        negative_prompts: For each prompt a text, or token ids, to be led away from, one text for one prompt; only the decoder
            ``guidance`` uses them.
        engine: A config, a short spelling such as ``"transformers(batch_size=4)"``, or an engine that is already built;
            None means ``transformers``.
        decoder: Likewise; None means ``stepwise``, and ``"model"`` what the model's generation config asks for (beams, guidance ...).
        sampler: Likewise; None means ``greedy``, and ``"model"`` what the model's generation config asks for (penalties,
            temperature, top-p ...). What it asks for and nobody uses is told once, as a warning.
        max_new_tokens: Most new tokens of a completion, one number for all prompts or one a prompt.
        min_new_tokens: It cannot end of itself before so many, at most ``max_new_tokens``; a prompt whose own number of these
            is smaller ends there.
        stop: Strings that end a completion and are not part of it.
        seed: Seed of everything drawn.
        seeds: Seeds of the prompts, unsigned 64 bit, instead of those that follow from ``seed`` and the ids.
        parameters: ``"link.field"`` of the sampler to a number, or to one number a prompt: ``{"top_p.p": [0.5, 0.9]}``.
        completions: How many of each prompt, as streams 0, 1, ...: of a sampler that draws so many draws, of a beam search its
            best texts. Where nothing is drawn (``greedy``, ``contrastive``) they are equal.
        stream: Return an iterator that gives every completion in pieces while it is written. Leaving it early ends the work.
        report: Called once at the end with the speed; ``print`` shows it.
        runtime: Device, progress bar; None means the defaults, on the device of a model that is in memory.

    Returns:
        Completions in the order of prompts, then of streams, then as the decoder gave them (all standard ones give one
        a request). ``Completion.request`` is the prompt's place. With ``stream``, pieces in the order of writing.

    Raises:
        ConfigError: For a wrong name, option, id or prompt.
        MissingPower: If the engine cannot do what is asked for.
        NumericError: If the model gives NaN or infinity.
        TunesmithError: If an engine or decoder returns no completion of a prompt.
    """
    given = _list_of(prompts)
    names = _names(given, ids)
    count = len(given)
    if seeds is None:
        own = [derive_seed(whole(seed, "seed", "generate"), name) for name in names]
    else:
        own = one_each(seeds, count, "seeds", "generate", whole)
    most = each(max_new_tokens, count, "max_new_tokens", "generate", whole)
    min_new_tokens = whole(min_new_tokens, "min_new_tokens", "generate")
    completions = whole(completions, "completions", "generate")
    wrong = [f"max_new_tokens of prompt {n} must be at least 1, not {m}" for n, m in enumerate(most) if m < 1]
    if min_new_tokens < 0:
        wrong.append(f"min_new_tokens must be at least 0, not {min_new_tokens}")
    if completions < 1:
        wrong.append(f"completions must be at least 1, not {completions}")
    if completions > 1 and count * completions > MOST_REQUESTS:
        wrong.append(
            f"completions={completions} of {count} prompts are more than the {MOST_REQUESTS} that one call takes; "
            "call it several times, with another seed each"
        )
    if report is not None and not callable(report):
        wrong.append(f"report is called with the speed, as report=print, and {report!r} cannot be called")
    if wrong:
        raise ConfigError(wrong, "generate")
    longest = whole(max_new_tokens, "max_new_tokens", "generate") if is_one(max_new_tokens) else max(most, default=1)
    limits = Limits(
        max_new_tokens=longest,
        min_new_tokens=min_new_tokens,
        stop=(stop,) if is_one(stop) else tuple(stop),  # type: ignore[arg-type]  # the limits look at them
    )
    by_name = mapping(parameters or {}, "parameters", "generate")
    values = {k: each(v, count, f"values of {k!r}", "generate", real) for k, v in by_name.items()}
    built: Engine = component(engine, "engine")
    chosen = sampler is not None, decoder is not None
    if MODEL in (sampler, decoder):
        lm = _model(lm, checked(runtime, "generate") or Runtime())
        sampler, decoder = resolved(lm, sampler, decoder)
    built_decoder: Decoder = component(decoder, "decoder")
    built_sampler: Sampler = component(sampler, "sampler")
    check_parameters(built_sampler, values, "generate")
    built.require(_powers(built_sampler, completions))
    _check_characters(given, "prompt")
    negatives = _negatives(given, negative_prompts, built_decoder)
    # what can be seen to be wrong without a model has been said before one is read
    lm = _model(lm, checked(runtime, "generate") or Runtime())
    tell_unused(lm, sampler=chosen[0], decoder=chosen[1])
    runtime = runtime or Runtime(device=str(lm.device))  # what decoders load lies where the model does
    negative_ids = [()] * count if negatives is None else _tokens(lm, negatives, "negative prompt")
    if built is not engine:
        built.setup(runtime)
    if built_sampler is not sampler:
        built_sampler.setup(runtime)
    requests = [
        Request(
            prompt_ids=tokens,
            seed=own[place],
            stream=copy,
            parameters={name: own_values[place] for name, own_values in values.items()},
            id=names[place],
            negative_ids=negative_ids[place],
            max_new_tokens=most[place] if most[place] < longest else None,
        )
        for place, tokens in enumerate(_tokens(lm, given))
        for copy in range(completions)
    ]
    work = requests, built_decoder, built_sampler, limits, runtime
    turns = turns_of(built)
    with turns.asking() as call:
        built.sync(lm)
        results: Iterator[Any] = built.stream(*work) if stream else built.generate(*work)
    finished = _metered(results, built, (turns, call), requests, report)
    if stream:
        return _pieces(finished, completions)
    found: list[list[Completion]] = [[] for _ in requests]
    for completion in runtime.track(finished, "Generating", total=len(requests)):
        found[completion.request].append(_of_prompt(completion, completions))
    lost = [str(number) for number, some in enumerate(found) if not some]
    if lost:
        raise TunesmithError(f"{built!r} with {built_decoder!r} returned nothing for the requests {', '.join(lost)}.")
    return [completion for some in found for completion in some]


def _of_prompt(completion: Completion, completions: int) -> Completion:
    """Return a completion that says which prompt it is of, where there are several requests a prompt."""
    return completion if completions == 1 else evolve(completion, request=completion.request // completions)


def _pieces(pieces: Iterator[Piece], completions: int) -> Iterator[Piece]:
    for piece in pieces:
        if completions > 1:
            whole = None if piece.completion is None else _of_prompt(piece.completion, completions)
            piece = evolve(piece, request=piece.request // completions, completion=whole)
        yield piece


def _metered(
    results: Iterable[Any],
    engine: Engine,
    turn: tuple[Turns, int],
    requests: Sequence[Request],
    report: Callable[[Throughput], object] | None,
) -> Iterator[Any]:
    """Yield completions or pieces, and report the speed when they are all there."""
    turns, call = turn
    whole = tokens = 0
    with turns.answering() as alone:
        start = time.perf_counter()
        before = seen = engine.steps or 0
        held = True
        for result in results:
            now = engine.steps or 0
            held, seen = held and now >= seen, now
            completion = result if isinstance(result, Completion) else result.completion
            if completion is not None:
                whole, tokens = whole + 1, tokens + len(completion.token_ids)
            yield result
        # the engine counts the steps of all calls since it got its model: fewer than before, and it is another model
        counted = engine.steps
        own = alone and turns.asked == call and held and (counted or 0) >= seen
        steps = counted - before if counted is not None and own else None
    if report is not None:
        report(
            Throughput(
                completions=whole,
                prompt_tokens=sum(len(request.prompt_ids) for request in requests),
                new_tokens=tokens,
                seconds=time.perf_counter() - start,
                steps=steps,
            )
        )


def _model(given: LM | str | Path | tuple[Any, Any], runtime: Runtime) -> LM:
    """Return the model in use: the one given, one loaded, or a handle for a transformers model and tokenizer."""
    from tunesmith.lm import LM, family_of, load

    if isinstance(given, (str, Path)):
        return load(given, runtime=runtime)
    if isinstance(given, tuple):
        if len(given) != 2 or not hasattr(given[0], "config"):
            names = ", ".join(type(part).__name__ for part in given)
            raise ConfigError([f"the pair (model, tokenizer) was expected, not ({names})"], "generate")
        model, tokenizer = given
        return LM(model=model, tokenizer=tokenizer, family=family_of(model.config))
    if not isinstance(given, LM):
        raise ConfigError(
            [
                "a model was expected: what tunesmith.load returns, a folder or hub name, or the pair (model, tokenizer), "
                f"not {type(given).__name__}"
            ],
            "generate",
        )
    return given


def _list_of(prompts: Any) -> list[Any]:
    """Return prompts as a list; of a mapping (what a tokenizer gives) or a set the elements are no prompts in an order."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, (Mapping, Set, bytes)) or (is_one(prompts) and not isinstance(prompts, Iterator)):
        more = "; of what a tokenizer gives pass its 'input_ids'" if isinstance(prompts, Mapping) else ""
        raise ConfigError(
            [f"a text or a list of texts and lists of token ids was expected, not {type(prompts).__name__}{more}"],
            "generate",
        )
    return list(prompts)


def _tokens(lm: LM, prompts: Sequence[Any], what: str = "prompt") -> list[tuple[int, ...]]:
    """Return the ids of prompts, some of which may be ids already; ``what`` is how messages call one."""
    texts = iter(prompt_ids(lm, [prompt for prompt in prompts if isinstance(prompt, str)]))
    size, found = lm.readable_ids, []
    for place, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            found.append(next(texts))
            continue
        tokens = token_ids(prompt, size, f"{what} {place}", "generate")
        if not tokens:
            raise ConfigError([f"{what} {place} has no ids"], "generate")
        found.append(tokens)
    return found


def prompt_ids(lm: LM, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """Tokenize prompts with the special tokens of a text, ready to be continued.

    For a decoder-only model an end-of-sequence token that the tokenizer puts behind a text is taken off, a second
    beginning-of-text token (chat templates write one already) is dropped, and an empty prompt becomes the
    beginning-of-text token.

    Raises:
        ConfigError: For an empty prompt of a model without any such token, half of a character, or a model without a tokenizer.
    """
    if not prompts:
        return []
    _check_characters(prompts, "prompt")
    tokenizer = lm.tokenizer
    if tokenizer is None:
        raise ConfigError(
            ["the model came without its tokenizer; give prompts as token ids, or the LM a tokenizer"], "generate"
        )
    rows = [tuple(row) for row in tokenizer(list(prompts))["input_ids"]]
    if lm.family != "decoder":
        return rows
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    fixed = []
    for prompt, row in zip(prompts, rows, strict=True):
        if row and eos is not None and row[-1] == eos and not prompt.endswith(tokenizer.eos_token):
            row = row[:-1]
        if bos is not None and row[:2] == (bos, bos):
            row = row[1:]
        if not row:
            start = bos if bos is not None else eos
            if start is None:
                raise ConfigError(["a prompt is empty, and the tokenizer has no token that begins a text"], "generate")
            row = (start,)
        fixed.append(row)
    return fixed


def _check_characters(prompts: Sequence[Any], what: str) -> None:
    """Check that the texts among prompts hold no half of a character; ``what`` is how messages call one."""
    for place, prompt in enumerate(prompts):
        broken = half_a_character(prompt) if isinstance(prompt, str) else None
        if broken is not None:
            half = f"{what} {place} holds half of a character (one of two surrogates) at place {broken}"
            shown = reprlib.repr(prompt)
            raise ConfigError([f"{half}, which no tokenizer reads: {shown}"], "generate")


def component(given: Config | Component[Any] | str | None, kind: str) -> Any:
    """Return a built engine, decoder or sampler from a config, a short spelling, a component, or None for the default.

    Raises:
        ConfigError: If ``given`` is none of these.
    """
    if isinstance(given, BASES[kind]):
        return given
    if given is None or isinstance(given, str):
        from tunesmith.spec import parse

        given = parse(DEFAULTS[kind] if given is None else given, kind)
    built = given.build() if isinstance(given, Config) else None
    if not isinstance(built, BASES[kind]):
        raise ConfigError([f"a config, a short spelling or a built {kind} was expected, not {given!r}"], kind)
    return built


def _names(prompts: Sequence[Any], ids: Sequence[str] | None) -> list[str]:
    if ids is None:
        return [str(number) for number in range(len(prompts))]
    if not hasattr(ids, "__len__"):
        raise ConfigError([f"ids: a list of {len(prompts)} names was expected, not {type(ids).__name__}"], "generate")
    problems = []
    if len(ids) != len(prompts):
        problems.append(f"{len(ids)} ids for {len(prompts)} prompts")
    if len(set(ids)) != len(ids):
        problems.append("ids are not unique, and equal ids would draw equal noise")
    if problems:
        raise ConfigError(problems, "generate")
    return list(ids)


def _negatives(
    prompts: Sequence[Any], wanted: str | Sequence[str | Sequence[int]] | None, decoder: Decoder
) -> list[Any] | None:
    """Return the negative prompts as a list, None if there are none."""
    if wanted is None:
        return None
    given = _list_of(wanted)
    problems = []
    if len(given) != len(prompts):
        problems.append(f"{len(given)} negative prompts for {len(prompts)} prompts")
    if not decoder.takes_negatives:
        problems.append(f"{decoder!r} has no use for negative_prompts; the decoder 'guidance' has")
    if problems:
        raise ConfigError(problems, "generate")
    _check_characters(given, "negative prompt")
    return given


def _powers(sampler: Sampler, completions: int) -> set[str]:
    """Return what an engine must be able to do: greedy is what any does of its own, other samplers it has to run."""
    from tunesmith.registry import samplers

    needed = {"token_ids"}
    if completions > 1:
        needed.add("seeds")
    if not isinstance(sampler.config, samplers.get(DEFAULTS["sampler"])):
        needed |= {"any_sampler", "seeds"}
    return needed

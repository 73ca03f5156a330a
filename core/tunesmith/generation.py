"""From prompts to completions: names and configs become components, texts become ids, results come back in order.

Imported at run time only; torch arrives with the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attrs import evolve

from tunesmith.component import Component, Config
from tunesmith.errors import ConfigError, TunesmithError
from tunesmith.kinds.decoder import Completion, Decoder, DecoderConfig, Limits, Request
from tunesmith.kinds.engine import Engine, EngineConfig
from tunesmith.kinds.sampler import Sampler, SamplerConfig
from tunesmith.runtime import Runtime, derive_seed

if TYPE_CHECKING:
    from tunesmith.lm import LM

DEFAULTS = {"engine": "tunesmith/transformers", "decoder": "tunesmith/stepwise", "sampler": "tunesmith/greedy"}
BASES: dict[str, type] = {"engine": Engine, "decoder": Decoder, "sampler": Sampler}


def generate(
    lm: LM,
    prompts: Sequence[str],
    *,
    ids: Sequence[str] | None = None,
    negative_prompts: Sequence[str] | None = None,
    engine: EngineConfig | Engine | str | None = None,
    decoder: DecoderConfig | Decoder | str | None = None,
    sampler: SamplerConfig | Sampler | str | None = None,
    max_new_tokens: int = 64,
    min_new_tokens: int = 0,
    stop: Sequence[str] = (),
    seed: int = 0,
    completions: int = 1,
    runtime: Runtime | None = None,
) -> list[Completion]:
    """Write completions of prompts.

    A prompt's seed is ``derive_seed(seed, its id)``, so its completions stay the same whatever else is asked for.

    Args:
        lm: The model, decoder-only or encoder-decoder; the engine is told to use it.
        prompts: Texts, which get the special tokens that the tokenizer adds of its own, but no end-of-sequence token
            before a decoder-only model's continuation.
        ids: Unique names of the prompts; their places if left out.
        negative_prompts: For each prompt a text to be led away from; only the decoder ``guidance`` uses them.
        engine: A config, a short spelling such as ``"transformers(batch_size=4)"``, or an engine that is already built;
            None means ``transformers``.
        decoder: Likewise; None means ``stepwise``.
        sampler: Likewise; None means ``greedy``.
        max_new_tokens: Most new tokens of a completion.
        min_new_tokens: It cannot end of itself before so many.
        stop: Strings that end a completion and are not part of it.
        seed: Seed of everything drawn.
        completions: How many of each prompt, as streams 0, 1, ...
        runtime: Device, progress bar; None means the defaults.

    Returns:
        Completions in the order of prompts, then of streams, then as the decoder gave them (all standard ones give one
        a request). ``Completion.request`` is the prompt's place.

    Raises:
        ConfigError: For a wrong name, option, id or prompt.
        MissingPower: If the engine cannot do what is asked for.
        NumericError: If the model gives NaN or infinity.
    """
    runtime = runtime or Runtime()
    names = _names(prompts, ids)
    built: Engine = component(engine, "engine")
    built_decoder: Decoder = component(decoder, "decoder")
    negatives = _negatives(lm, prompts, negative_prompts, built_decoder)
    built_sampler: Sampler = component(sampler, "sampler")
    built.require(_powers(built_sampler, completions))
    if built is not engine:
        built.setup(runtime)
    if built_sampler is not sampler:
        built_sampler.setup(runtime)
    built.sync(lm)
    requests = [
        Request(prompt_ids=tokens, seed=derive_seed(seed, name), stream=stream, id=name, negative_ids=negative)
        for name, tokens, negative in zip(names, prompt_ids(lm, prompts), negatives, strict=True)
        for stream in range(completions)
    ]
    limits = Limits(max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, stop=tuple(stop))
    found: list[list[Completion]] = [[] for _ in requests]
    finished = built.generate(requests, built_decoder, built_sampler, limits, runtime)
    for completion in runtime.track(finished, "Generating", total=len(requests)):
        own = completion if completions == 1 else evolve(completion, request=completion.request // completions)
        found[completion.request].append(own)
    lost = [str(number) for number, some in enumerate(found) if not some]
    if lost:
        raise TunesmithError(f"{built!r} with {built_decoder!r} returned nothing for the requests {', '.join(lost)}.")
    return [completion for some in found for completion in some]


def prompt_ids(lm: LM, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """Tokenize prompts with the special tokens of a text, ready to be continued.

    For a decoder-only model an end-of-sequence token that the tokenizer puts behind a text is taken off, a second
    beginning-of-text token (chat templates write one already) is dropped, and an empty prompt becomes the
    beginning-of-text token.

    Raises:
        ConfigError: For an empty prompt of a model without any such token.
    """
    if not prompts:
        return []
    tokenizer = lm.tokenizer
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


def _names(prompts: Sequence[str], ids: Sequence[str] | None) -> list[str]:
    if ids is None:
        return [str(number) for number in range(len(prompts))]
    problems = []
    if len(ids) != len(prompts):
        problems.append(f"{len(ids)} ids for {len(prompts)} prompts")
    if len(set(ids)) != len(ids):
        problems.append("ids are not unique, and equal ids would draw equal noise")
    if problems:
        raise ConfigError(problems, "generate")
    return list(ids)


def _negatives(lm: LM, prompts: Sequence[str], given: Sequence[str] | None, decoder: Decoder) -> list[tuple[int, ...]]:
    if given is None:
        return [()] * len(prompts)
    problems = []
    if len(given) != len(prompts):
        problems.append(f"{len(given)} negative prompts for {len(prompts)} prompts")
    if not decoder.takes_negatives:
        problems.append(f"{decoder!r} has no use for negative_prompts; the decoder 'guidance' has")
    if problems:
        raise ConfigError(problems, "generate")
    return prompt_ids(lm, given)


def _powers(sampler: Sampler, completions: int) -> set[str]:
    """Return what an engine must be able to do: greedy is what any does of its own, other samplers it has to run."""
    from tunesmith.registry import samplers

    needed = {"token_ids"}
    if completions > 1:
        needed.add("seeds")
    if not isinstance(sampler.config, samplers.get(DEFAULTS["sampler"])):
        needed |= {"any_sampler", "seeds"}
    return needed

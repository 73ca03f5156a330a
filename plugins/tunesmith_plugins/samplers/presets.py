"""Chains in the order of well-known engines, since the order changes what is kept.

Each function takes the options that the engine has and returns a :class:`~tunesmith_plugins.samplers.Chain`; an option at
its default adds no link. Orders: transformers 5 (``generation/utils.py``), vLLM 1 (``v1/sample``), llama.cpp
(``common/sampling``'s default chain), as of mid-2026.

Options often come from command lines and files. One of a wrong kind (``"5"``, True, 5.0 for a count, None) or outside of what
the engine has a meaning for is a ``ConfigError`` that names it, and so are all others in the same call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from math import isfinite
from typing import ParamSpec

from tunesmith.errors import ConfigError
from tunesmith.given import real, whole
from tunesmith.kinds.sampler import SamplerConfig
from tunesmith.model_settings import links_of_draws
from tunesmith_plugins.samplers import (
    XTC,
    Chain,
    Dry,
    FrequencyPenalty,
    Greedy,
    MinP,
    PresencePenalty,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    Typical,
)
from tunesmith_plugins.samplers.config import LARGEST_COUNT

P = ParamSpec("P")

Range = tuple[str, Callable[[float], bool]]
"""How messages call what an option may be, and whether a number is that."""

ABOVE_0: Range = ("above 0", lambda x: x > 0)
FROM_0: Range = ("0 or more", lambda x: x >= 0)
FROM_MINUS_1: Range = ("-1 or more", lambda x: x >= -1)
SHARE: Range = ("above 0 and at most 1", lambda x: 0 < x <= 1)
PART: Range = ("from 0 to 1", lambda x: 0 <= x <= 1)
BELOW_1: Range = ("at least 0 and below 1", lambda x: 0 <= x < 1)


def _options(**ranges: Range) -> Callable[[Callable[P, Chain]], Callable[P, Chain]]:
    """Return a decorator by which a preset looks at all its options before it compares any of them."""

    def checking(preset: Callable[P, Chain]) -> Callable[P, Chain]:
        where = f"presets.{preset.__name__}"
        parameters = inspect.signature(preset, eval_str=True).parameters

        @wraps(preset)
        def checked(*args: P.args, **options: P.kwargs) -> Chain:
            problems: list[str] = []
            for name, value in list(options.items()):
                if name not in parameters or (value is None and parameters[name].default is None):
                    continue
                try:
                    read = whole if parameters[name].annotation is int else real
                    options[name] = _inside(read(value, name, where), name, ranges.get(name), where)
                except ConfigError as error:
                    problems += error.problems
            if problems:
                raise ConfigError(problems, where)
            return preset(*args, **options)

        return checked

    return checking


def _inside(number: float, name: str, allowed: Range | None, where: str) -> float:
    """Return an option's number if it is one that the option may have."""
    if isinstance(number, float) and not isfinite(number):
        raise ConfigError([f"{name} must be a finite number: {number}"], where)
    if isinstance(number, int) and abs(number) > LARGEST_COUNT:
        raise ConfigError([f"{name} must be at most {LARGEST_COUNT}: {number}"], where)
    if allowed is not None and not allowed[1](number):
        raise ConfigError([f"{name} must be {allowed[0]}: {number}"], where)
    return number


@_options(
    repetition_penalty=ABOVE_0, temperature=ABOVE_0, top_h=SHARE, top_k=FROM_0, top_p=SHARE, min_p=PART, typical_p=SHARE,
    epsilon_cutoff=BELOW_1, eta_cutoff=BELOW_1,
)  # fmt: skip
def hf(
    *,
    repetition_penalty: float = 1.0,
    temperature: float = 1.0,
    top_h: float | None = None,
    top_k: int = 50,
    top_p: float = 1.0,
    min_p: float | None = None,
    typical_p: float = 1.0,
    epsilon_cutoff: float = 0.0,
    eta_cutoff: float = 0.0,
) -> Chain:
    """Return transformers' order: penalties, temperature, top-h, top-k, top-p, min-p, typical, epsilon, eta.

    ``top_k`` is 50 unless told otherwise, as in ``generate``, and 0 for every token. There is no temperature of 0: for greedy
    decoding take the sampler ``greedy``.

    Raises:
        ConfigError: For options of a wrong kind or out of range.
    """
    drawn = links_of_draws(
        {
            "temperature": temperature, "top_h": top_h, "top_k": top_k, "top_p": top_p, "min_p": min_p, "typical_p": typical_p,
            "epsilon_cutoff": epsilon_cutoff, "eta_cutoff": eta_cutoff,
        }
    )  # fmt: skip
    return _chain(repetition_penalty != 1.0 and RepetitionPenalty(penalty=repetition_penalty), *drawn)


@_options(
    repetition_penalty=ABOVE_0, temperature=FROM_0, min_p=PART, top_k=FROM_MINUS_1, top_p=SHARE,
)  # fmt: skip
def vllm(
    *,
    repetition_penalty: float = 1.0,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    temperature: float = 1.0,
    min_p: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Chain:
    """Return vLLM's order: penalties, temperature, then min-p before top-k before top-p.

    A temperature of 0 is greedy, a ``top_k`` of 0 or -1 keeps every token.

    Raises:
        ConfigError: For options of a wrong kind or out of range.
    """
    return _chain(
        repetition_penalty != 1.0 and RepetitionPenalty(penalty=repetition_penalty),
        frequency_penalty != 0.0 and FrequencyPenalty(penalty=frequency_penalty),
        presence_penalty != 0.0 and PresencePenalty(penalty=presence_penalty),
        temperature not in (0.0, 1.0) and Temperature(temperature=temperature),
        min_p > 0 and MinP(p=min_p),
        top_k > 0 and TopK(k=top_k),
        top_p < 1.0 and TopP(p=top_p),
        temperature == 0.0 and Greedy(),
    )


@_options(
    repeat_penalty=ABOVE_0, repeat_last_n=FROM_MINUS_1, dry_multiplier=FROM_0, typical_p=SHARE, top_p=SHARE, min_p=PART,
    xtc_probability=PART, xtc_threshold=PART,
)  # fmt: skip
def llamacpp(
    *,
    repeat_penalty: float = 1.0,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    repeat_last_n: int = 64,
    dry_multiplier: float = 0.0,
    top_n_sigma: float | None = None,
    top_k: int = 40,
    typical_p: float = 1.0,
    top_p: float = 0.95,
    min_p: float = 0.05,
    xtc_probability: float = 0.0,
    xtc_threshold: float = 0.1,
    temperature: float = 0.8,
) -> Chain:
    """Return llama.cpp's order: penalties, DRY, top-n-sigma, top-k, typical, top-p, min-p, XTC, and the temperature last.

    Truncation therefore looks at the probabilities of temperature 1. Penalties look at the last ``repeat_last_n`` ids, the
    prompt's too: at none where it is 0, at all where it is -1. top-k keeps exactly k, and everything where k is 0 or below; a
    ``top_n_sigma`` of 0 or below is none. A temperature of 0 or below takes the likeliest of what is left.

    Raises:
        ConfigError: For options of a wrong kind or out of range.
    """
    penalised, window = repeat_last_n != 0, max(repeat_last_n, 0)  # of the links a window of 0 is the whole history
    return _chain(
        penalised and repeat_penalty != 1.0 and RepetitionPenalty(penalty=repeat_penalty, window=window),
        penalised
        and frequency_penalty != 0.0
        and FrequencyPenalty(penalty=frequency_penalty, window=window, prompt=True),
        penalised and presence_penalty != 0.0 and PresencePenalty(penalty=presence_penalty, window=window, prompt=True),
        dry_multiplier > 0 and Dry(multiplier=dry_multiplier),
        top_n_sigma is not None and top_n_sigma > 0 and TopNSigma(n=top_n_sigma),
        top_k > 0 and TopK(k=top_k, ties="low"),
        typical_p < 1.0 and Typical(mass=typical_p),
        top_p < 1.0 and TopP(p=top_p, ties="low"),
        min_p > 0 and MinP(p=min_p),
        xtc_probability > 0 and XTC(probability=xtc_probability, threshold=xtc_threshold),
        Greedy() if temperature <= 0 else temperature != 1.0 and Temperature(temperature=temperature),
    )


def _chain(*links: SamplerConfig | bool) -> Chain:
    return Chain(links=tuple(link for link in links if isinstance(link, SamplerConfig)))

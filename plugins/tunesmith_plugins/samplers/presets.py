"""Chains in the order of well-known engines, since the order changes what is kept.

Each function takes the options that the engine has and returns a :class:`~tunesmith_plugins.samplers.Chain`; an option at
its default adds no link. Orders: transformers 5 (``generation/utils.py``), vLLM 1 (``v1/sample``), llama.cpp
(``common/sampling``'s default chain), as of mid-2026.
"""

from __future__ import annotations

from tunesmith.kinds.sampler import SamplerConfig
from tunesmith_plugins.samplers import (
    XTC,
    Chain,
    Dry,
    Epsilon,
    Eta,
    FrequencyPenalty,
    Greedy,
    MinP,
    PresencePenalty,
    RepetitionPenalty,
    Temperature,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    Typical,
)


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

    ``top_k`` is 50 unless told otherwise, as in ``generate``.
    """
    return _chain(
        repetition_penalty != 1.0 and RepetitionPenalty(penalty=repetition_penalty),
        temperature != 1.0 and Temperature(temperature=temperature),
        top_h is not None and TopH(h=top_h),
        top_k > 0 and TopK(k=top_k),
        top_p < 1.0 and TopP(p=top_p),
        min_p is not None and MinP(p=min_p),
        typical_p < 1.0 and Typical(mass=typical_p),
        epsilon_cutoff > 0 and Epsilon(epsilon=epsilon_cutoff),
        eta_cutoff > 0 and Eta(epsilon=eta_cutoff),
    )


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
    """Return vLLM's order: penalties, temperature, then min-p before top-k before top-p. A temperature of 0 is greedy."""
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
    prompt's too. top-k keeps exactly k. A temperature of 0 or below takes the likeliest of what is left.
    """
    window = repeat_last_n
    return _chain(
        repeat_penalty != 1.0 and RepetitionPenalty(penalty=repeat_penalty, window=window),
        frequency_penalty != 0.0 and FrequencyPenalty(penalty=frequency_penalty, window=window, prompt=True),
        presence_penalty != 0.0 and PresencePenalty(penalty=presence_penalty, window=window, prompt=True),
        dry_multiplier > 0 and Dry(multiplier=dry_multiplier),
        top_n_sigma is not None and TopNSigma(n=top_n_sigma),
        top_k > 0 and TopK(k=top_k, ties="low"),
        typical_p < 1.0 and Typical(mass=typical_p),
        top_p < 1.0 and TopP(p=top_p, ties="low"),
        min_p > 0 and MinP(p=min_p),
        xtc_probability > 0 and XTC(probability=xtc_probability, threshold=xtc_threshold),
        Greedy() if temperature <= 0 else temperature != 1.0 and Temperature(temperature=temperature),
    )


def _chain(*links: SamplerConfig | bool) -> Chain:
    return Chain(links=tuple(link for link in links if isinstance(link, SamplerConfig)))

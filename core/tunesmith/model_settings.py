"""What a model's generation config says of taste (penalties, temperatures, beams), as a sampler and a decoder.

``tunesmith.generate`` takes both from its caller, and from here where they are ``"model"``. What a text needs whatever the taste
(forced and suppressed tokens, bad words, ends) is the engine's. Imported at run time only.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import frozen

from tunesmith.errors import ConfigError
from tunesmith.kinds.decoder import DecoderConfig
from tunesmith.kinds.sampler import SamplerConfig
from tunesmith.lm import LM
from tunesmith.registry import decoders, samplers

MODEL = "model"
"""Given for a sampler or a decoder: the one that the model's generation config asks for."""

logger = logging.getLogger("tunesmith.generation")

Test = Callable[[Any], bool]


def _above(least: float) -> Test:
    return lambda value: value is not None and value > least


def _other_than(neutral: Any) -> Test:
    return lambda value: value is not None and value != neutral


def _given(value: Any) -> bool:
    return value is not None


def _below_1(value: Any) -> bool:
    return value is not None and value < 1


def _within(value: Any) -> bool:
    return value is not None and 0 < value < 1


@frozen
class Drawing:
    """A step before a draw.

    Attributes:
        warper: transformers' class for it.
        link: The sampler's link.
        option: The link's field.
        asked: By which values of the setting transformers is asked for it.
    """

    warper: str
    link: str
    option: str
    asked: Test


PENALTIES: Mapping[str, Test] = {
    "sequence_bias": bool,
    "repetition_penalty": _other_than(1.0),
    "no_repeat_ngram_size": _above(0),
    "min_length": _above(0),
    "min_new_tokens": _above(0),
    "exponential_decay_length_penalty": bool,
}
"""What a sampler does whether it draws or not, and by which values it is asked for."""

DRAWING: Mapping[str, Drawing] = {
    "temperature": Drawing("TemperatureLogitsWarper", "temperature", "temperature", _other_than(1.0)),
    "top_h": Drawing("TopHLogitsWarper", "top_h", "h", _given),
    "top_k": Drawing("TopKLogitsWarper", "top_k", "k", _other_than(0)),
    "top_p": Drawing("TopPLogitsWarper", "top_p", "p", _below_1),
    "min_p": Drawing("MinPLogitsWarper", "min_p", "p", _given),
    "typical_p": Drawing("TypicalLogitsWarper", "typical", "mass", _below_1),
    "epsilon_cutoff": Drawing("EpsilonLogitsWarper", "epsilon", "epsilon", _within),
    "eta_cutoff": Drawing("EtaLogitsWarper", "eta", "epsilon", _within),
}
"""What a sampler does where ``do_sample`` asks for draws, in transformers' order."""

SEARCH: Mapping[str, Test] = {
    "num_beams": _above(1),
    "num_beam_groups": _above(1),
    "penalty_alpha": _above(0),
    "guidance_scale": _other_than(1),
}
"""What a decoder does."""

NOT_DONE: Mapping[str, Test] = {
    "encoder_no_repeat_ngram_size": _above(0),
    "encoder_repetition_penalty": _other_than(1.0),
    "watermarking_config": bool,
    "dola_layers": bool,
    "constraints": bool,
    "force_words_ids": bool,
    "token_healing": bool,
    "remove_invalid_values": bool,
    "renormalize_logits": bool,
    "max_time": bool,
    "stop_strings": bool,
    "num_return_sequences": _above(1),
}
"""What changes texts and is not taken from a generation config at all; the last two are arguments of ``generate``."""

_TOLD: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()
"""What has been said of each model."""


def base_of(model: Any) -> Any:
    """Return the transformers model inside wrappers, such as peft's and what ``torch.compile`` returns."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def settings_of(model: Any) -> Any:
    """Return a model's generation config, None if it has none."""
    return getattr(base_of(model), "generation_config", None)


def eos_ids(lm: LM) -> frozenset[int]:
    """Return the ids that end a text: the generation config's, else the model config's, else the tokenizer's.

    Numbers below 0 are none: with -1 for the only one nothing ends a text.
    """
    model = base_of(lm.model)
    for source in (getattr(model, "generation_config", None), model.config, lm.tokenizer):
        found = getattr(source, "eos_token_id", None)
        if found is not None:
            return frozenset(end for end in (found if isinstance(found, (list, tuple)) else [found]) if end >= 0)
    return frozenset()


def sampler_of(lm: LM) -> SamplerConfig:
    """Return the chain that a model's generation config asks for, in transformers' order; greedy if it asks for no draws.

    Raises:
        ConfigError: For values that no link takes.
    """
    settings = settings_of(lm.model)
    with _named(lm):
        return drawn_by(settings, _penalties(lm, settings))


def drawn_by(settings: Any, before: Sequence[SamplerConfig] = ()) -> SamplerConfig:
    """Return the chain of a generation config's draws behind other links: its temperature, top-k ... with ``do_sample``, else greedy.

    Raises:
        ConfigError: For values that no link takes.
    """
    if not getattr(settings, "do_sample", None):
        return samplers.create("tunesmith/chain", links=tuple(before), draw="greedy")
    values = {name: getattr(settings, name, None) for name in DRAWING}
    if values["top_k"] is None:
        values["top_k"] = 50  # as in transformers where the config is silent
    return samplers.create("tunesmith/chain", links=(*before, *links_of_draws(values)))


def links_of_draws(values: Mapping[str, Any]) -> list[SamplerConfig]:
    """Return the links that transformers' settings of draws ask for, by the settings' names.

    Raises:
        ConfigError: For values that no link takes.
    """
    return [
        samplers.create(f"tunesmith/{step.link}", **{step.option: values[name]})
        for name, step in DRAWING.items()
        if step.asked(values.get(name))
    ]


def resolved(lm: LM, sampler: Any, decoder: Any) -> tuple[Any, Any]:
    """Return what a caller gave for sampler and decoder, with ``"model"`` replaced by what the generation config asks for.

    Raises:
        ConfigError: For values that no link or decoder takes, and for beams that are to draw from a sampler that nobody gave.
    """
    if decoder == MODEL:
        decoder = decoder_of(lm)
        if sampler is None and getattr(getattr(decoder, "decoder", decoder), "draws", False):
            with _named(lm):
                raise ConfigError(
                    [
                        f"num_beams={settings_of(lm.model).num_beams} and do_sample=True ask for beams that draw, and no sampler "
                        "says from what; give sampler='model' too"
                    ],
                    "generate",
                )
    return sampler_of(lm) if sampler == MODEL else sampler, decoder


def decoder_of(lm: LM) -> DecoderConfig:
    """Return the decoder that a model's generation config asks for: beams, contrastive search, guidance, or ``stepwise``.

    Raises:
        ConfigError: For values that no decoder takes.
    """
    with _named(lm):
        return _search(settings_of(lm.model))


def _search(settings: Any) -> DecoderConfig:
    def value(name: str, default: Any) -> Any:
        found = getattr(settings, name, None)
        return default if found is None else found

    early = {True: "yes", False: "no"}.get(value("early_stopping", False), "never")
    beams: dict[str, Any] = {
        "beams": value("num_beams", 1),
        "length_penalty": float(value("length_penalty", 1.0)),
        "early_stopping": early,
    }
    draws = bool(value("do_sample", False))
    if beams["beams"] > 1 and value("num_beam_groups", 1) > 1:
        found = decoders.create(
            "tunesmith/diverse_beam",
            groups=settings.num_beam_groups,
            penalty=float(value("diversity_penalty", 0.0)),
            **beams,
        )
    elif beams["beams"] > 1:
        found = decoders.create("tunesmith/beam", draws=draws, **beams)
    elif value("penalty_alpha", 0) > 0 and value("top_k", 50) > 1 and not draws:
        found = decoders.create("tunesmith/contrastive", alpha=settings.penalty_alpha, top_k=value("top_k", 50))
    else:
        found = decoders.create("tunesmith/stepwise")
    scale = value("guidance_scale", 1)
    return found if scale == 1 else decoders.create("tunesmith/guidance", scale=float(scale), decoder=found)


@contextmanager
def _named(lm: LM) -> Iterator[None]:
    """Say of what is wrong that it stands in the generation config."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(error.problems, f"the generation config of {type(base_of(lm.model)).__name__}") from error


def tell_unused(lm: LM, *, sampler: bool, decoder: bool) -> None:
    """Say as a warning, once a model, which settings of its generation config are not used.

    Args:
        lm: The model.
        sampler: Whether somebody says what is done to logits: the caller, or the generation config.
        decoder: Whether somebody says how texts are searched for.
    """
    settings = settings_of(lm.model)
    if settings is None:
        return
    asked, missing = [], _asked(settings, NOT_DONE)
    penalties = dict(PENALTIES)
    if not _counts_new_tokens(lm) and _asked(settings, {"min_length": penalties.pop("min_length")}):
        missing.append(f"min_length={settings.min_length} (with the prompt)")
    if not sampler:
        drawing = {name: step.asked for name, step in DRAWING.items()} if getattr(settings, "do_sample", None) else {}
        asked += _asked(settings, {**penalties, "do_sample": bool, **drawing})
    asked += [] if decoder else _asked(settings, SEARCH)
    model = base_of(lm.model)
    told = _TOLD.setdefault(model, set())
    asked, missing = ([what for what in some if what not in told] for some in (asked, missing))
    told.update(asked, missing)
    name = type(model).__name__
    if asked:
        logger.warning(
            "the generation config of %s says %s, which is not used: sampler and decoder are greedy and stepwise unless you give "
            "others. sampler='model' and decoder='model' do what it says",
            name,
            ", ".join(asked),
        )
    if missing:
        logger.warning(
            "the generation config of %s says %s, which is not taken from there (stop= and completions= are arguments of "
            "generate; the others are not done here)",
            name,
            ", ".join(missing),
        )


def _asked(settings: Any, tests: Mapping[str, Test]) -> list[str]:
    found = {name: getattr(settings, name, None) for name, test in tests.items() if test(getattr(settings, name, None))}
    return [f"{name}={value!r}" for name, value in found.items()]


def _counts_new_tokens(lm: LM) -> bool:
    """Whether ``min_length``, which counts what a decoder begins with, is a number of new tokens but for one."""
    return lm.family == "encoder-decoder"


def _penalties(lm: LM, settings: Any) -> list[SamplerConfig]:
    def asked(name: str) -> Any:
        value = getattr(settings, name, None)
        return value if PENALTIES[name](value) else None

    ends = tuple(sorted(eos_ids(lm)))
    links: list[SamplerConfig] = []
    if (bias := asked("sequence_bias")) is not None:
        pairs = bias.items() if isinstance(bias, Mapping) else bias
        sequences = tuple({"tokens": tuple(tokens), "bias": float(amount)} for tokens, amount in pairs)
        links.append(samplers.create("tunesmith/sequence_bias", sequences=sequences))
    if (penalty := asked("repetition_penalty")) is not None:
        links.append(samplers.create("tunesmith/repetition_penalty", penalty=float(penalty)))
    if (size := asked("no_repeat_ngram_size")) is not None:
        links.append(samplers.create("tunesmith/no_repeat_ngram", size=size))
    least = asked("min_new_tokens") or 0
    if _counts_new_tokens(lm):
        least = max(least, (asked("min_length") or 0) - 1)  # the start token counts there
    if least and ends:
        links.append(samplers.create("tunesmith/min_length", end=ends, tokens=least))
    if (decay := asked("exponential_decay_length_penalty")) is not None:
        if not ends:
            raise ConfigError(
                ["exponential_decay_length_penalty of the generation config needs an end of text, and there is none"],
                "generate",
            )
        links.append(samplers.create("tunesmith/length_decay", end=ends, start=decay[0], factor=float(decay[1])))
    return links

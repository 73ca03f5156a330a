"""Models of peft that cannot be run one token at a time."""

from __future__ import annotations

from typing import Any

from tunesmith.errors import ConfigError


def check_adapters(model: Any) -> None:
    """Refuse a model of peft whose active adapter does its work around ``generate``, and not in the model's layers.

    Virtual tokens come before whatever a call reads, at every step again, or are not there where an encoder is asked alone; an
    activated LoRA looks for its invocation in what one call reads. Adapters in layers (LoRA, IA3 ...) need nobody to know.

    Raises:
        ConfigError: For such an adapter, unless it is switched off.
    """
    config = getattr(model, "active_peft_config", None)
    if config is None or getattr(model, "_adapters_disabled", False):
        return
    kind = getattr(config.peft_type, "value", config.peft_type)
    if getattr(config, "is_prompt_learning", False):
        what = f"{kind} of peft puts virtual tokens before what every call of the model reads"
        instead = "attach tunesmith's own (prompt, p_tuning, prefix)"
    elif getattr(config, "alora_invocation_tokens", None):
        what = "an activated LoRA of peft looks for its invocation in what one call of the model reads"
        instead = "leave alora_invocation_tokens out"
    else:
        return
    raise ConfigError(
        [
            f"{what}, so that it is wrong one token at a time; {instead}, or let transformers' loop run it: "
            "model.generate(..., custom_generate=tunesmith.hf.custom_generate(sampler))"
        ],
        "engine transformers",
    )

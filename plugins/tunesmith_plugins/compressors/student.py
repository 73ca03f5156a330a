"""Students: every n-th layer of a model, or a config of their own."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from tunesmith.errors import ConfigError
from tunesmith.evaluation_mode import evaluation_mode
from tunesmith.lm import LM, family_of
from tunesmith_plugins.compressors.new_model import as_types, check_kinds, fields_by_layer, fill
from tunesmith_plugins.compressors.prune_calibration import is_classifier
from tunesmith_plugins.compressors.random_tokens import random_batch

STACKS = (
    "num_layers", "num_encoder_layers", "num_decoder_layers", "encoder_layers", "decoder_layers", "num_hidden_layers", "n_layer",
    "n_layers",
)  # fmt: skip
"""Names under which transformers' configs keep the depth of a stack."""
_AUTO: dict[str, Any] = {
    "encoder": AutoModelForMaskedLM,
    "decoder": AutoModelForCausalLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
}
EVERY = range(10**4)
"""Numbers of layers."""
_LAYER = re.compile(r"(.*?\b(?:block|blocks|layers|layer|h)\.)(\d+)(\..*)")


def every_nth(lm: LM, keep_every: int) -> LM:
    """Return a new model with layers 0, n, 2n ... of every stack of ``lm`` and all other weights as they are.

    Raises:
        ConfigError: If the model's config names no stack of layers, or its layers cannot stand in another place.
    """
    config = copy.deepcopy(lm.model.config)
    own = config.to_dict()
    stacks = [name for name in STACKS if isinstance(own.get(name), int)]
    if not stacks:
        raise ConfigError(
            [f"keep_every: models of type {config.model_type!r} have no stack of layers that is known; give a teacher"]
        )
    depths = {name: own[name] for name in stacks}
    for name, value in fields_by_layer(config, range(0, max(depths.values()), keep_every)).items():
        setattr(config, name, value)
    for name, depth in depths.items():
        setattr(config, name, len(range(0, depth, keep_every)))
    try:
        student: nn.Module = type(lm.model)(config)
    except (KeyError, ValueError, TypeError, ArithmeticError, StrictDataclassError) as cause:
        raise ConfigError(
            [
                f"keep_every: a {config.model_type} model with fewer layers cannot be made by changing {', '.join(stacks)} in its "
                f"config ({' '.join(str(cause).split())}); give the student's config or a teacher"
            ],
            "distill",
        ) from cause

    def origin(name: str) -> str:
        match = _LAYER.fullmatch(name)
        return f"{match[1]}{int(match[2]) * keep_every}{match[3]}" if match else name

    check_kinds(student, lm.model, origin, "keep_every")
    source = lm.model.state_dict()
    lost = [name for name in student.state_dict() if origin(name) not in source]
    if lost:
        raise ConfigError(
            [
                f"keep_every: the layers of {config.model_type} models are not counted by {', '.join(stacks)} alone ({lost[0]} has no "
                "place to come from); give the student's config or a teacher"
            ],
            "distill",
        )
    odd = [name for name, tensor in student.state_dict().items() if tensor.shape != source[origin(name)].shape]
    if odd:
        raise ConfigError(
            [
                f"keep_every: the size of {odd[0]} in {config.model_type} models follows from the number of layers; give the "
                "student's config or a teacher"
            ],
            "distill",
        )
    weights = {name: source[origin(name)].detach().clone() for name in student.state_dict()}
    fill(student, weights, lm.model, origin)
    student.to(lm.device)
    student.generation_config = copy.deepcopy(getattr(lm.model, "generation_config", None))  # type: ignore[assignment]
    made = LM(model=student, tokenizer=lm.tokenizer, family=lm.family)
    _check_runs(made, lm.model.config)
    return made


def _check_runs(student: LM, large: Any) -> None:
    """Check that a student which has lost all layers of a kind can be run, which LFM2 without attention cannot.

    Raises:
        ConfigError: With what the model's code says.
    """
    before, after = (fields_by_layer(config, EVERY) for config in (large, student.model.config))
    kinds = {name: sorted(set(map(str, value)) - set(map(str, after.get(name, ())))) for name, value in before.items()}
    gone = [kind for some in kinds.values() for kind in some]
    if not gone:
        return
    batch = {name: tensor[:1] for name, tensor in random_batch(student, 0).items()}
    try:
        with evaluation_mode(student.model), torch.no_grad():
            student.model(**batch)
    except Exception as cause:  # of any model's own code
        raise ConfigError(
            [
                f"keep_every: no layer of the kind {gone[0]!r} would stay, and a {large.model_type} model without one does not run "
                f"({cause}); take another keep_every, or give a teacher"
            ],
            "distill",
        ) from cause


def from_config(lm: LM, changes: Mapping[str, Any]) -> LM:
    """Return a new model with random weights (of torch's global generator) and the config of ``lm`` but for ``changes``.

    Numbers that follow from what changes (the size of a head, key-value heads, kinds of layers) are worked out anew unless they
    are given. With ``"model_type"`` it is that architecture, with the tokenizer's ids and otherwise its own defaults.

    Raises:
        ConfigError: For a field that the config does not have, or a config that gives no model of the family.
    """
    old = lm.model.config
    try:
        if "model_type" in changes and changes["model_type"] != old.model_type:
            ids = {n: v for n, v in old.to_dict().items() if n.endswith("_token_id") and v is not None}
            like = {"vocab_size": old.vocab_size, "id2label": old.id2label, "label2id": old.label2id}
            rest = {name: value for name, value in changes.items() if name != "model_type"}
            config = AutoConfig.for_model(changes["model_type"], **{**like, **ids, **rest})
            _fit_key_heads(config, changes)
            auto = AutoModelForSequenceClassification if is_classifier(lm.model) else _AUTO[lm.family]
            student: Any = auto.from_config(config)
        else:
            config = _changed(old, changes)
            _fit_key_heads(config, changes)
            student = type(lm.model)(config)
    except ConfigError:  # which is a ValueError, and has said it all
        raise
    except (KeyError, ValueError, TypeError, RuntimeError, ArithmeticError, StrictDataclassError) as cause:
        reason = " ".join(str(cause).split())  # RWKV divides by its layers but one
        raise ConfigError([f"this gives no student: {reason} @ student"], "distill") from cause
    if family_of(student.config) != lm.family:
        raise ConfigError([f"a {config.model_type} model is no {lm.family} @ student"], "distill")
    kept = {_last(name): buffer.dtype for name, buffer in lm.model.named_buffers()}  # XGLM's sines are in no file
    own = {name: kept[_last(name)] for name, _ in student.named_buffers() if _last(name) in kept}
    as_types(student, {**own, **dict.fromkeys(student.state_dict(), lm.model.dtype)})
    student.to(lm.device)
    student.config.architectures = [type(student).__name__]
    return LM(model=student, tokenizer=lm.tokenizer, family=lm.family)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _fit_key_heads(config: Any, given: Mapping[str, Any]) -> None:
    """Give each query head its own key-value head where nobody said how many there are and the default fits no others."""
    groups = getattr(config, "num_key_value_heads", None)
    if groups and "num_key_value_heads" not in given and config.num_attention_heads % groups:
        config.num_key_value_heads = config.num_attention_heads


def _changed(old: Any, changes: Mapping[str, Any]) -> Any:
    known = {*old.to_dict(), *old.attribute_map}
    unknown = sorted(set(changes) - known)
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError([f"a {old.model_type} config has no {unknown[0]!r}{hint} @ student"], "distill")
    values = old.to_dict()
    names = {old.attribute_map.get(name, name) for name in changes}
    heads = {old.attribute_map.get(name, name) for name in ("hidden_size", "num_attention_heads")}
    if names & heads:
        for name in ("head_dim", *(("num_key_value_heads",) if "num_attention_heads" in names else ())):
            values.pop(name, None)
    if "num_hidden_layers" in names:
        values.pop("layer_types", None)
    for name in names:
        values.pop(name, None)
    given = {old.attribute_map.get(name, name): value for name, value in changes.items()}
    return type(old)(**{**values, **given})

"""Int8 models in transformers' format: the ``quantization_config`` and the quantizer that loads by it."""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tunesmith.errors import ArtifactError, ConfigError, MissingPower
from tunesmith.undivided import never_divide
from tunesmith_plugins.compressors import int8_checksums
from tunesmith_plugins.compressors.config_int8 import QuantizerConfig, Scheme
from tunesmith_plugins.compressors.experts import split
from tunesmith_plugins.compressors.fused import fuse
from tunesmith_plugins.compressors.int8_embedding import Int8Embedding, Int8TiedLinear
from tunesmith_plugins.compressors.int8_files import (
    check_files,
    check_numbers,
    names_in,
    places_of_experts,
    renamed,
    tensors_in,
)
from tunesmith_plugins.compressors.int8_layout import LINEAR, Layout, build, check_places, layout_of, tie, with_heads
from tunesmith_plugins.compressors.int8_linear import Int8Linear
from tunesmith_plugins.compressors.int8_reading import LetGo, Quantize, untied
from tunesmith_plugins.compressors.int8_vocabulary import INTEGER, Resize
from tunesmith_plugins.compressors.int8_weight import Int8Weight
from tunesmith_plugins.compressors.layers import let_go_of_files
from tunesmith_plugins.compressors.mapped_pages import MappedPages

log = logging.getLogger("tunesmith.compressors")

METHOD = "tunesmith_int8"
VERSION = 3
"""The newest. Version 0, of tunesmith 0.1, had the names of dynamic layers and nothing else; version 2 added held weights,
version 3 experts. A model is written as the lowest that has all that it needs."""
NOT_RUN_IN = (torch.float16, torch.float64)
NO_FLOAT16 = (
    "int8 layers run in float32 or bfloat16: this %s model becomes float32; the integers are the same, and "
    "dtype=torch.bfloat16 takes half the memory for what stays float."
)


class Int8QuantizationConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a saved model: which modules are int8, and how.

    Args:
        version: Of the format; files of version 0 do not say it.
        layers: Names to the fields of their schemes that are not the default's; in version 0 a list of names.
        smoothed: Names of layers that multiply their inputs by a vector first.
        held: Names of layers that hold weights apart in float32, to how many.
        embeddings: Names of embeddings.
        tied: Names of modules that use an embedding's integers, to its name.
        experts: Names of modules of experts that are split into linear layers.
        checksums: Names of tensors in the files, to what their bytes came to when they were written; ``{}``: unknown.

    Raises:
        ArtifactError: If another version wrote it, it lacks its version, or it is damaged.
    """

    def __init__(
        self,
        version: int = 0,
        layers: Mapping[str, Mapping[str, Any]] | Sequence[str] = (),
        smoothed: Sequence[str] = (),
        embeddings: Sequence[str] = (),
        tied: Mapping[str, str] | None = None,
        checksums: Mapping[str, str] | None = None,
        held: Mapping[str, int] | None = None,
        experts: Sequence[str] = (),
        **unused: object,
    ) -> None:
        self.quant_method = METHOD
        if version not in range(VERSION + 1):
            raise ArtifactError(
                f"quantization_config is of version {version!r}, and this tunesmith reads up to {VERSION}; load the model "
                "with the version of tunesmith that wrote it, or a later one."
            )
        if not version and (
            isinstance(layers, Mapping) or smoothed or embeddings or tied or checksums or held or experts
        ):
            raise ArtifactError(
                "quantization_config has no version and is not of the format of tunesmith 0.1, which has none: config.json was "
                "changed. Make the model again."
            )
        try:
            self.layers = {str(name): dict(layers[name]) if isinstance(layers, Mapping) else {} for name in layers}
            self.smoothed, self.embeddings, self.tied = list(smoothed), list(embeddings), dict(tied or {})
            self.held = {str(name): int(count) for name, count in (held or {}).items()}
            self.experts = list(map(str, experts))
            self.checksums = dict(checksums or {})
        except (AttributeError, TypeError, ValueError) as cause:
            raise ArtifactError(
                f"quantization_config is damaged ({cause}): layers, tied, held and checksums are mappings, smoothed, "
                "embeddings and experts lists of names; make the model again."
            ) from cause
        self.version = 3 if self.experts else 2 if self.held else 1
        self._compressor: QuantizerConfig | None = None
        self.layout()

    @classmethod
    def of(cls, layout: Layout) -> Int8QuantizationConfig:
        """Return what describes ``layout``."""
        return cls(
            version=VERSION,
            layers={name: _told(scheme) for name, scheme in layout.layers.items()},
            smoothed=sorted(layout.smoothed),
            held=layout.held,
            embeddings=layout.embeddings,
            tied=layout.tied,
            experts=layout.experts,
        )

    @classmethod
    def on_load(cls, compressor: QuantizerConfig) -> Int8QuantizationConfig:
        """Return what makes ``from_pretrained(..., quantization_config=this)`` quantize a float model tensor by tensor while
        it is read.

        Raises:
            ConfigError: For a compressor that needs calibration data.
        """
        if compressor.calibrates:
            raise ConfigError(
                [
                    f"{type(compressor).__name__} has to see data and cannot quantize a model while it is loaded; load "
                    "the model, and call compress"
                ],
                "quantization_config",
            )
        if getattr(compressor, "rounding", "") == "random_tokens":
            raise ConfigError(
                [
                    "rounding='random_tokens' has to run the model and cannot quantize it while it is loaded; take 'auto' "
                    "or 'nearest', or load the model, and call compress"
                ],
                "quantization_config",
            )
        made = cls(version=VERSION)
        made._compressor = compressor
        return made

    def layout(self) -> Layout:
        """Return which modules are int8.

        Raises:
            ArtifactError: If a scheme is damaged.
        """
        layers = {}
        for name, fields in self.layers.items():
            try:
                layers[name] = Scheme(**fields)
                LINEAR[layers[name].kind]
            except (TypeError, ValueError, KeyError) as cause:
                raise ArtifactError(
                    f"quantization_config says of layer {name!r} what no scheme is: {fields} ({cause}); make the model again."
                ) from cause
        return Layout(
            layers=layers,
            smoothed=frozenset(self.smoothed),
            held=self.held,
            embeddings=tuple(self.embeddings),
            tied=self.tied,
            experts=tuple(self.experts),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json keeps."""
        return self.told() | ({"checksums": self.checksums} if self.checksums else {})

    def told(self) -> dict[str, Any]:
        """Return what it keeps besides the checksums."""
        keys = ["quant_method", "version", "layers", "smoothed", "embeddings", "tied"]
        return {key: getattr(self, key) for key in (*keys, *(key for key in ("held", "experts") if getattr(self, key)))}


def _told(scheme: Scheme) -> dict[str, Any]:
    return attrs.asdict(scheme, filter=lambda attribute, value: value != attribute.default)


class Int8Quantizer(HfQuantizer):
    """Puts integer layers where the folder's config says they are, or where a compressor wants them, before weights are
    read, and looks at the numbers afterwards."""

    quantization_config: Int8QuantizationConfig

    def __init__(self, quantization_config: QuantizationConfigMixin, **options: object) -> None:
        super().__init__(quantization_config, **options)
        if not self.pre_quantized and self.quantization_config._compressor is None:
            raise ConfigError(
                [
                    "this model is not int8 yet; pass Int8QuantizationConfig.on_load(Int8()), or make an int8 model with a "
                    "compressor first"
                ],
                METHOD,
            )
        self._quantizes: dict[str, bool] = {}
        self._splits: dict[str, str] = {}
        self._pages = MappedPages(())
        self._compares: Callable[[], None] | None = None
        self._model: weakref.ref[nn.Module] | None = None
        self._trained: frozenset[str] = frozenset()

    def watch(self, model: Any) -> None:
        """Take charge of an int8 model: remember what of it would train as it is now (see :attr:`is_qat_trainable`), and tell
        its integer layers where they are, for what they have to say."""
        # a model that kept itself alive would stay in memory until the next round of garbage collection
        self._model, self._trained = weakref.ref(model), _trains(model)
        for name, module in model.named_modules():
            if isinstance(module, INTEGER):
                module.place = name
            if hasattr(type(module), "resize_token_embeddings"):  # the model, and bodies in it
                module.resize_token_embeddings = Resize(module)
            if getattr(module, "_tied_weights_keys", None):  # of a whole model of transformers, or its body
                _tied_already(module)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are part of those of the model, which they find again by this."""
        return self.__dict__ | {"_model": None if self._model is None else self._model()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        model = state["_model"]
        self.__dict__.update(state | {"_model": None if model is None else weakref.ref(model)})

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return the type that the model runs in: float32 in place of float16 and float64, in which integer layers do not multiply."""
        if dtype not in NOT_RUN_IN:
            return dtype
        log.warning(NO_FLOAT16, str(dtype).removeprefix("torch."))
        return torch.float32

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: Sequence[str] | None = None, **unused: object
    ) -> nn.Module:
        config = self.quantization_config
        if self.pre_quantized:
            saved = config.layout()
            split(model, places_of_experts(saved, model))
            names = names_in(saved, model)
            layout = renamed(saved, names)
            check_places(layout, model)
            files = [file for file in checkpoint_files or () if file.endswith(".safetensors")]
            check_files(saved, names, model, files)
            if config.checksums and files:
                # afterwards: what is wrong with a number says more than that there is another one
                self._compares = partial(int8_checksums.check, config.checksums, config.told(), files)
            layout = with_heads(layout, model, tensors_in(files, model))
        else:
            assert config._compressor is not None
            self._pages = MappedPages(checkpoint_files or ())
            never_divide(model)  # RWKV would for float16, in which integer layers do not run
            for target in untied(model, checkpoint_files or ()):
                model.all_tied_weights_keys.pop(target)
            layout = layout_of(model, config._compressor)
            self._split(model, layout)
            own = [name for name in (*layout.layers, *layout.embeddings) if name not in layout.tied]
            # GPT-2 keeps (inputs, outputs)
            self._quantizes = {name: isinstance(model.get_submodule(name), Conv1D) for name in own}
        for name in layout.embeddings:
            model.set_submodule(name, Int8Embedding.like(model.get_submodule(name), device="meta"))
        for name in layout.layers:
            if name not in layout.tied:
                here = model.get_submodule(name)
                model.set_submodule(name, build(layout, name, here, here.bias is not None))
        tie(layout, model)
        # their weights are integers, which transformers cannot tie; those that are tied are so by now
        integers = {f"{name}.weight" for name in (*layout.layers, *layout.embeddings, *layout.tied)}
        for target, source in list(model.all_tied_weights_keys.items()):
            if target in integers or source in integers:
                del model.all_tied_weights_keys[target]
        compressor = config._compressor
        config.__dict__.update(vars(Int8QuantizationConfig.of(layout)), _compressor=compressor)
        return model

    def _split(self, model: Any, layout: Layout) -> None:
        """Split experts, and keep the places of their tensors, under whose names transformers brings what it reads."""
        for name in layout.experts:
            whole = model.get_submodule(name)
            split(model, [name])
            for own, tensor in whole.named_parameters(recurse=False):
                model.get_submodule(name).register_parameter(own, tensor)
                self._splits[f"{name}.{own}"] = name

    def update_weight_conversions(self, weight_conversions: list[Any], *rest: Any) -> list[Any]:
        """Return what is done to the tensors of a file before they reach the model: nothing where its experts were saved one
        by one, under the names that they have here; pages of the file are let go of between two steps."""
        if self.pre_quantized and self.quantization_config.experts:
            return [each for each in weight_conversions if not isinstance(each, WeightConverter)]
        if self.pre_quantized:
            return weight_conversions
        found = []
        for each in weight_conversions:
            if isinstance(each, WeightConverter):
                each = deepcopy(each)
                each.operations = [step for own in each.operations for step in (LetGo(self._pages), own)]
            found.append(each)
        return found

    def param_needs_quantization(self, model: Any, param_name: str, **unused: object) -> bool:
        """Say whether a tensor of a float model becomes int8 as it is read."""
        if param_name in self._splits:
            return True
        return param_name.endswith(".weight") and param_name.removesuffix(".weight") in self._quantizes

    def get_quantize_ops(self) -> ConversionOps:
        """Return what makes it int8."""
        return Quantize(self._quantizes, self._splits, self._pages)

    def _process_model_after_weight_loading(self, model: nn.Module, **unused: object) -> nn.Module:
        for name, module in model.named_modules():
            if isinstance(module, Int8Weight) and not module.weight.is_meta:  # there are no numbers on "meta"
                check_numbers(name, module)
            if isinstance(module, Int8Embedding):
                module.dtype = model.dtype  # type: ignore[assignment]
            if isinstance(module, (Int8Linear, Int8TiedLinear)) and module.bias is not None:
                module.bias.requires_grad_(False)
        if self._compares is not None and not all(weight.is_meta for weight in model.parameters()):
            self._compares()
        self._compares = None
        saved_as_named(model)
        integers = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Int8Weight)}
        let_go_of_files(model, integers)  # those are let go of when they are packed
        fuse(model)
        self.watch(model)
        return model

    def is_serializable(self) -> bool:
        """Int8 models can be saved."""
        return True

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """Return what ``save_pretrained`` writes, and put its checksums into the config, which it writes afterwards."""
        if getattr(model, "_hf_peft_config_loaded", False):  # the adapter's weights alone are saved
            return None, {}
        state = _each_place_its_own(model, model.state_dict())
        config = model.config.quantization_config
        config.checksums = int8_checksums.of_state(model, state)
        if config.checksums:
            config.checksums[int8_checksums.LAYOUT] = int8_checksums.of_layout(config.told())
        return state, {}

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        """Refuse ``model.dequantize()``."""
        raise MissingPower(
            "an int8 model is not made a float one again, whose weights would be the rounded ones; load the float model that it was "
            "made of, or train an adapter on top of it"
        )

    @property
    def is_trainable(self) -> bool:
        """Gradients flow through to the inputs (an adapter can train on top); int8 weights themselves do not train."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether transformers' trainers take the model as it is. They ask for an adapter of peft's otherwise, and look for
        no other kind.

        True once something was attached to the model, or its owner chose what trains by freezing some of it, or all, to evaluate
        it. A bare model has norms, position embeddings and the like that would train silently while nearly all weights stay as
        they are.
        """
        model = None if self._model is None else self._model()
        return model is not None and _trains(model) != self._trained


def _trains(model: nn.Module) -> frozenset[str]:
    return frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)


def announce(model: Any, layout: Layout) -> None:
    """Tell transformers which modules of ``model`` are quantized, so that ``save_pretrained`` writes it down."""
    modules = ((name, model.get_submodule(name)) for name in layout.layers)
    held = {
        name: len(module.held_value)
        for name, module in modules
        if isinstance(module, Int8Linear) and module.held_value is not None
    }
    config = Int8QuantizationConfig.of(attrs.evolve(layout, held=held))
    model.config.quantization_config = config
    model.hf_quantizer = Int8Quantizer(config)
    model.hf_quantizer.watch(model)
    model.is_quantized = True
    model.quantization_method = METHOD
    saved_as_named(model)


def saved_as_named(model: Any) -> None:
    """Let ``save_pretrained`` write tensors under the names that they have in the model, as ``quantization_config`` does. By itself
    it writes those of the architecture's first checkpoints: other names (Gemma 3 with images), or whole tensors for experts, or for
    queries, keys and values (NomicBert), of which a range is none of a part."""
    from transformers.conversion_mapping import get_model_conversion_mapping  # which imports the code of models

    if getattr(model, "_weight_conversions", None) or get_model_conversion_mapping(model, add_legacy=False):
        model._weight_conversions = []


def _tied_already(model: Any) -> None:
    """Let transformers tie what is left to tie when it is asked to again: it looks for parameters, and integers are none."""
    integers = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, INTEGER)]
    model._tied_weights_keys = {
        target: source
        for target, source in model._tied_weights_keys.items()
        if not any(re.search(pattern, name) for pattern in (target, source) for name in integers)
    }


def _each_place_its_own(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with copies for modules that stand in several places, unless the model's class says so, too: a model that
    is read from files has a module of its own in each."""
    declared = getattr(model, "all_tied_weights_keys", {})
    seen: set[nn.Module] = set()
    for place, module in model.named_modules(remove_duplicate=False):
        if module in seen:
            for name, _ in (
                *module.named_parameters(place, recurse=False),
                *module.named_buffers(place, recurse=False),
            ):
                if name in state and name not in declared:
                    state[name] = state[name].clone()
        seen.add(module)
    return state


def register_with_transformers() -> None:
    """Register the quantizer under ``tunesmith_int8``, once."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(Int8QuantizationConfig)
        register_quantizer(METHOD)(Int8Quantizer)

"""A model made smaller in one call: names become configs, transformers models become handles, texts become examples.

Imported at run time only; torch arrives with the compressor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from attrs import evolve

from tunesmith.component import Config
from tunesmith.data.config import Data
from tunesmith.data.records import Example
from tunesmith.errors import ConfigError
from tunesmith.kinds.compressor import CompressionReport, Compressor, CompressorConfig
from tunesmith.model_folder import check_place
from tunesmith.runtime import Runtime, checked

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunesmith.lm import LM

WHERE = "compress"


def compress(
    model: LM | PreTrainedModel | str | Path,
    compressor: CompressorConfig | Compressor | str = "int8",
    *,
    tokenizer: Any = None,
    data: Data | Iterable[str | Example] | None = None,
    teacher: LM | PreTrainedModel | str | Path | None = None,
    runtime: Runtime | None = None,
    save: str | Path | None = None,
    report: Callable[[CompressionReport], object] | None = None,
) -> LM:
    """Make a model smaller.

    A model that is given as an object is changed in place where the compressor can: use what is returned, and load the model
    again for the original.

    Args:
        model: What :func:`tunesmith.load` returns, a transformers model, or a folder or hub name, which is loaded.
        compressor: A config, a short spelling such as ``"int8_weight_only(group_size=32)"``, or a built compressor.
        tokenizer: Of a transformers model; None takes the one in the folder that the model was loaded from, if there is one
            on this machine. Compressors without data do without.
        data: Examples to calibrate or train on: :class:`tunesmith.Data`, of which the split ``train`` is read, examples, or texts.
            A text is what a decoder or encoder reads; an encoder-decoder reads it and answers it.
        teacher: For distillation the larger model, as ``model``; ``model`` is the student then. Other compressors refuse one.
        runtime: Seed, and device and dtype of what is loaded (a model in memory keeps its own); None means the defaults.
        save: Folder to save to, readable by ``from_pretrained`` after ``import tunesmith.hf`` and by :func:`tunesmith.load`.
            A model that is there is replaced; an adapter of peft's there is an error.
        report: Called with the report of what became smaller; ``print`` shows its sizes.

    Returns:
        The smaller model.

    Raises:
        ConfigError: For a wrong name or option, a model that cannot be compressed so, data that are missing, or a teacher of
            whom the compressor learns nothing.
    """
    built = _built(compressor)
    checked(runtime, WHERE)
    if report is not None and not callable(report):
        raise ConfigError([f"it is called with what became smaller, as report=print, not {report!r} @ report"], WHERE)
    check_teacher(built, teacher, WHERE)
    _check_data(built, data is not None)
    if save is not None:
        check_place(Path(os.path.expanduser(save)), WHERE)  # said before the work, which would be lost
    lm = _handle(model, tokenizer, runtime)
    runtime = runtime or Runtime(device=str(lm.device))
    larger = None if teacher is None else _handle(teacher, tokenizer or lm.tokenizer, runtime)
    examples = None if data is None else _examples(data, lm, runtime)
    _check_data(built, bool(examples))
    if examples and lm.tokenizer is None:
        raise ConfigError(["the model came without its tokenizer, which data need; give it as tokenizer="], WHERE)
    built.setup(runtime)
    smaller, told = built.compress(lm, data=examples, teacher=larger, runtime=runtime)
    if save is not None:
        smaller.save(save)
    if report is not None:
        report(told)
    return smaller


def _built(given: CompressorConfig | Compressor | str) -> Compressor:
    if isinstance(given, Compressor):
        return given
    if isinstance(given, str):
        from tunesmith.spec import parse

        given = parse(given, "compressor")
    built = given.build() if isinstance(given, Config) else None
    if not isinstance(built, Compressor):
        raise ConfigError(
            [f"a config, a short spelling or a built compressor was expected, not {given!r}"], "compressor"
        )
    return built


def check_teacher(compressor: Compressor, teacher: Any, where: str) -> None:
    """Raise ConfigError, with ``where`` before it, for a teacher of whom the compressor learns nothing; None is no teacher."""
    if teacher is not None and not compressor.uses_teacher:
        raise no_teacher(type(compressor.config).__name__, where)


def no_teacher(who: str, where: str = WHERE) -> ConfigError:
    """Return the error for a teacher of whom ``who`` learns nothing."""
    return ConfigError([f"{who} learns from no teacher; leave it out, or use distill @ teacher"], where)


def _check_data(built: Compressor, there: bool) -> None:
    if built.needs_data and not there:
        raise ConfigError(
            [
                f"{type(built.config).__name__} learns from examples; give some texts or examples as data=[...] (a command: --data)"
            ],
            WHERE,
        )


def _handle(given: Any, tokenizer: Any, runtime: Runtime | None) -> LM:
    """Return the model in use: the one given, one loaded, or a handle for a transformers model."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import PreTrainedModel

    from tunesmith.lm import LM, family_of_model, load

    if isinstance(given, LM):
        return given
    if isinstance(given, (str, Path)):
        return load(given, runtime=runtime, as_saved=True)
    if isinstance(given, PreTrainedModel):
        if any(isinstance(module, BaseTunerLayer) for module in given.modules()):
            raise ConfigError(
                [
                    f"the {type(given).__name__} has a peft adapter in it, and its layers are no plain ones; load base and adapter with "
                    "peft.PeftModel.from_pretrained, and give what merge_and_unload() returns"
                ],
                WHERE,
            )
        if any(parameter.is_meta for parameter in given.parameters()):
            raise ConfigError(
                [
                    f"the {type(given).__name__} has weights without numbers, on torch's device 'meta', as models have that were made "
                    "there or are offloaded to a disk; load all of it into memory"
                ],
                WHERE,
            )
        tokenizer = tokenizer if tokenizer is not None else _tokenizer_of(given)
        return LM(model=given, tokenizer=tokenizer, family=family_of_model(given))
    hint = "; merge its adapter first (merge_and_unload)" if hasattr(given, "merge_and_unload") else ""
    raise ConfigError(
        [
            "a model was expected: what tunesmith.load returns, a transformers model, or a folder or hub name, not "
            f"{type(given).__name__}{hint}"
        ],
        WHERE,
    )


def _tokenizer_of(model: PreTrainedModel) -> Any:
    """Return the tokenizer beside the weights that a model was loaded from; no hub is asked."""
    from transformers import AutoTokenizer

    from tunesmith.hf import is_cached
    from tunesmith.model_folder import TOKENIZER_FILES

    name = model.name_or_path
    # where there is none, transformers makes some tokenizers out of nothing
    if name and any((Path(name) / file).is_file() or is_cached(name, file=file) for file in TOKENIZER_FILES):
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    return None


def _examples(data: Data | Iterable[str | Example], lm: LM, runtime: Runtime) -> list[Example]:
    if isinstance(data, Data):
        from tunesmith.data import load_examples

        return read_too(lm, load_examples(data, "train", runtime, tokenizer=lm.tokenizer))
    if isinstance(data, (str, Path, Mapping)):
        raise ConfigError(
            [
                "data are a list of texts or examples, or tunesmith.Data(source=...), not one "
                f"{'mapping' if isinstance(data, Mapping) else 'path' if isinstance(data, Path) else 'text'} @ data"
            ],
            WHERE,
        )
    found = []
    for place, item in enumerate(data):
        if isinstance(item, str):
            item = Example(id=str(place), prompt="", targets=(item,))
        if not isinstance(cast(object, item), Example):
            raise ConfigError(
                [
                    f"item {place} is neither a text nor a tunesmith.Example but of the type {type(item).__name__} @ data"
                ],
                WHERE,
            )
        found.append(item)
    return read_too(lm, found)


def read_too(lm: LM, examples: Sequence[Example]) -> list[Example]:
    """Return examples of which an encoder-decoder reads the plain texts too, since its encoder would see nothing of them."""
    if lm.family != "encoder-decoder":
        return list(examples)
    return [evolve(e, prompt=e.targets[0]) if not e.prompt and e.targets else e for e in examples]

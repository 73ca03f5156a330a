"""The model handle: a transformers model, its tokenizer, its family and the adapters on it.

This module is only imported when a model is about to be used; it imports torch inside functions all the same, so that
annotations elsewhere can name :class:`LM` for nothing.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from attrs import define

from tunesmith.errors import ArtifactError, ConfigError, TunesmithError
from tunesmith.evaluation_mode import evaluation_mode
from tunesmith.mistyped import did_you_mean
from tunesmith.model_folder import TOKENIZER_FILES, replaced
from tunesmith.runtime import Runtime, checked
from tunesmith.undivided import keep_undivided

if TYPE_CHECKING:
    import torch

    from tunesmith.kinds.adapter import Adapter

Family = Literal["encoder", "decoder", "encoder-decoder"]
Head = Literal["lm", "classification"]
ADAPTED = "tunesmith_lm.json"
"""A folder with this file holds (or points to) a base model and the adapters on it."""
BASE = "base"
"""Folder of the base model in it."""
FORMAT = 1
"""Version of that file."""


@runtime_checkable
class HoldsWeights(Protocol):
    """A module with weights that are no parameters, as integers in buffers are not."""

    def held_weights(self, nonzero: bool) -> int:
        """Return how many weights its own buffers stand for; with ``nonzero`` only those that are not zero.

        Submodules, parameters, and weights that belong to another module do not count.
        """


@define(kw_only=True, eq=False)
class LM:
    """A language model in use.

    Attributes:
        model: A ``transformers.PreTrainedModel`` (adapters may have changed it in place or wrapped it).
        tokenizer: A ``transformers.PreTrainedTokenizerBase``; None for a model that came without one, which can be compressed
            and saved but reads no text.
        family: ``"encoder"``, ``"decoder"`` or ``"encoder-decoder"``.
        adapters: The attached adapters in order of attachment.
        origin: Folder or hub name from which the weights without adapters came, as long as they are unchanged; None
            otherwise. Training all weights sets it to None.
    """

    model: Any
    tokenizer: Any
    family: Family
    adapters: tuple[Adapter, ...] = ()
    origin: str | None = None

    def __attrs_post_init__(self) -> None:
        """Let the weights be what they are in files whenever they are read."""
        keep_undivided(self.model)

    @property
    def device(self) -> torch.device:
        """Where the first parameter is."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def readable_ids(self) -> int | None:
        """How many token ids the model can read: the rows of its table of embeddings; None if it has no such table."""
        try:
            found = getattr(self.model.get_input_embeddings(), "num_embeddings", None)
        except (AttributeError, NotImplementedError):
            return None
        return None if found is None else int(found)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the names, dtypes, shapes and bytes of all weights, adapters' included, and the family.

        It changes when any weight does, and differs between a merged and an unmerged adapter.
        """
        import torch

        digest = hashlib.sha256(self.family.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            if not isinstance(tensor, torch.Tensor):
                continue
            value = tensor.detach().cpu().contiguous()
            digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
        return digest.hexdigest()

    def parameter_count(self, trainable: bool = False, nonzero: bool = False) -> int:
        """Return the number of parameters, each shared tensor once; only trainable ones, or those that are not zero, if asked.

        Weights that a module keeps in another form than parameters count as what they stand for (:class:`HoldsWeights`).
        """
        count = 0
        for parameter in self.model.parameters():
            if parameter.requires_grad or not trainable:
                count += int(parameter.detach().count_nonzero()) if nonzero else parameter.numel()
        held = [] if trainable else [m for m in self.model.modules() if isinstance(m, HoldsWeights)]
        return count + sum(module.held_weights(nonzero) for module in held)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Dropout off and no gradients within; puts the training mode back."""
        import torch

        with evaluation_mode(self.model), torch.no_grad():
            self.model.eval()  # parts too that train by themselves
            yield

    def save(self, folder: str | Path, *, copy_base: bool = True) -> None:
        """Write a folder that :func:`load` reads; without adapters also one that ``from_pretrained`` reads.

        A model without adapters takes the place of one that is in the folder already, once all of it is written.

        Args:
            folder: Made if it is not there; may begin with ``~``, as in :func:`load`.
            copy_base: With adapters on: also write the base weights. If False and ``origin`` is known, the folder only
                points to it.

        Raises:
            ConfigError: If ``folder`` is a file, or a model without adapters would come to lie beside an adapter of peft's, which
                ``from_pretrained`` would put on it.
        """
        folder = Path(os.path.expanduser(folder))
        if not self.adapters:
            with replaced(folder, self.tokenizer is not None) as fresh, _no_bars():
                self._save_tokenizer(fresh)
                self.model.save_pretrained(fresh)
            (folder / ADAPTED).unlink(missing_ok=True)  # of another model that was here
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._save_tokenizer(folder)
        from tunesmith.spec import dump

        record: dict[str, Any] = {"format": FORMAT, "adapters": []}
        if copy_base or self.origin is None:
            with _no_bars(), _as_if(self.model, self.unadapted_state()):
                self.model.save_pretrained(folder / BASE)
            self._save_tokenizer(folder / BASE)
            record["base"] = BASE
        else:
            record["base"] = self.origin
        for index, adapter in enumerate(self.adapters):
            name = f"adapter-{index:02d}"
            (folder / name).mkdir(exist_ok=True)
            adapter.save(folder / name)
            record["adapters"].append({"folder": name, "component": dump(adapter.config)})
        (folder / ADAPTED).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def _save_tokenizer(self, folder: Path) -> None:
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def unadapted_state(self) -> dict[str, torch.Tensor]:
        """Return the weights of the model without its adapters, under the names the plain model has.

        Every adapter that changes names offers ``base_name(name) -> str | None`` (None: the adapter's own).
        """
        state: dict[str, torch.Tensor] = {}
        for name, tensor in self.model.state_dict().items():
            plain: str | None = name
            for adapter in reversed(self.adapters):
                rename = getattr(adapter, "base_name", None)
                if rename is not None and plain is not None:
                    plain = rename(plain)
            if plain is not None:
                state[plain] = tensor
        return state


@contextmanager
def _as_if(model: Any, state: dict[str, Any]) -> Iterator[None]:
    """Let ``model.state_dict()`` be ``state`` within.

    ``save_pretrained`` takes a state too, but forgets it for models with quantised weights.
    """
    model.state_dict = lambda *args, **kwargs: state
    try:
        yield
    finally:
        del model.state_dict


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers' progress bars out of logs: they are for terminals."""
    import sys

    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()


@contextmanager
def _no_load_report(quiet: bool) -> Iterator[None]:
    """Keep transformers from telling at length that a head is new, where a new head was asked for."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    if quiet:
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _config_and_tokenizer(source: str | Path, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return both as transformers reads them; None for the tokenizer of a folder without one.

    Raises:
        ConfigError: If there is no model.
    """
    import transformers

    folder = Path(source)
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options)
        # where a folder has none, transformers makes some tokenizers out of nothing
        bare = folder.is_dir() and not any((folder / file).is_file() for file in TOKENIZER_FILES)
        return config, None if bare else transformers.AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError) as cause:
        if folder.is_dir():
            problem = f"{str(source)!r} holds no model that can be loaded: {cause}"
        else:
            hint = did_you_mean(folder, folders=True)
            problem = f"{_no_folder(folder)}, and {str(source)!r} of the hub cannot be loaded: {str(cause).rstrip('. ')}.{hint}"
        raise ConfigError([problem], "tunesmith.load") from cause


def load(
    source: str | Path,
    *,
    runtime: Runtime | None = None,
    head: Head | None = None,
    labels: int | Sequence[str] | None = None,
    revision: str | None = None,
    device_map: str | None = None,
    as_saved: bool = False,
) -> LM:
    """Load a model: a folder that :meth:`LM.save` or ``save_pretrained`` wrote, or a hub name.

    Weights are read from safetensors only. Adapters come back frozen.

    Args:
        source: Folder or hub name.
        runtime: Device, dtype, offline, allow_code (which alone permits remote code).
        head: ``"lm"`` or ``"classification"`` (sequence classification); None means what the model was saved with.
        labels: Number or names of the classes; a head for other classes than the folder's is made anew, from torch's
            global generator. None keeps the folder's.
        revision: Hub revision.
        device_map: Spread the weights over devices as transformers does (``"auto"``); None puts all on the runtime's.
        as_saved: Where a language-model head would be made anew, load the class that was saved (a body, a token classifier).

    Raises:
        ConfigError: If there is no such model or it has no such head.
        ArtifactError: If a folder is incomplete.
    """
    runtime = checked(runtime, "tunesmith.load") or Runtime()
    _check_device(runtime.device)
    if str(source).startswith("~"):
        source = os.path.expanduser(source)  # which leaves ~name of nobody as it is
    folder = Path(source)
    try:
        adapted = (folder / ADAPTED).is_file()
    except OSError as cause:  # a name that is too long, a folder that may not be entered
        raise ConfigError([f"{str(source)!r} cannot be read: {cause.strerror or cause}"], "tunesmith.load") from cause
    if adapted:
        return _load_adapted(folder, runtime, head, labels, device_map)
    from safetensors import SafetensorError

    from tunesmith import hf

    hf.register()
    _check_source(source, revision, runtime)
    options: dict[str, Any] = {
        "local_files_only": runtime.offline,
        "trust_remote_code": runtime.allow_code,
        "revision": revision,
    }
    config, tokenizer = _config_and_tokenizer(source, options)
    family = family_of(config)
    if head == "classification" and labels is None and config.architectures and _head_of(config) != head:
        raise ConfigError(
            [
                f"{str(source)!r} was saved without a classification head ({config.architectures[0]}), and a new one would "
                "answer at random; train one with FineTune(objective='classification')"
            ],
            "tunesmith.load",
        )
    new_head = _set_labels(config, labels)
    placed = {"device_map": device_map} if device_map else {}
    made: Any = _auto_class(family, head or _head_of(config))
    saved = _class_with_another_head(config) if as_saved and head is None and labels is None else None
    try:
        with _no_bars(), _no_load_report(new_head or saved is not None):
            if saved is not None and _lacks_weights(made, source, config, runtime, options):
                made = saved
            model = made.from_pretrained(
                source,
                config=config,
                dtype=runtime.torch_dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=new_head,
                **placed,
                **options,
            )
        if made is saved:
            family = family_of_model(model)
    except (OSError, SafetensorError) as cause:
        raise ArtifactError(f"the weights of {str(source)!r} cannot be read: {cause}") from cause
    except ValueError as cause:
        raise ConfigError([f"{str(source)!r} cannot be loaded so: {cause}"], "tunesmith.load") from cause
    if not placed:
        model.to(runtime.device)
    model.eval()
    return LM(model=model, tokenizer=tokenizer, family=family, origin=None if new_head else str(source))


def _check_source(source: str | Path, revision: str | None, runtime: Runtime) -> None:
    """Check that there is a folder with a whole model, or a name that a hub may be asked for.

    Raises:
        ConfigError: If there is neither.
    """
    from tunesmith import hf

    folder = Path(source)
    if folder.is_file():
        raise ConfigError(
            [f"{str(source)!r} is a file; give the folder of the model, {str(folder.parent)!r}"], "tunesmith.load"
        )
    # a hub name has one slash at most
    is_path = str(source).startswith((".", "/")) or str(source).count("/") > 1
    if not folder.is_dir() and (is_path or (runtime.offline and not hf.is_cached(str(source), revision))):
        why = (
            "a path is never looked up on a hub; give the folder's right path"
            if is_path
            else "no hub is asked for it (offline, or HF_HUB_OFFLINE is set) and the hub's cache does not have it; give a "
            "folder, or go online once"
        )
        hint = did_you_mean(folder, folders=True)
        raise ConfigError([f"{_no_folder(folder)}, and {why}.{hint}"], "tunesmith.load")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ConfigError(
            [
                f"{str(source)!r} is an adapter of peft without its base; load the two with peft.PeftModel.from_pretrained, and save what "
                "merge_and_unload() returns"
            ],
            "tunesmith.load",
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ConfigError(
            [f"{str(source)!r} holds no model: it has no config.json{_models_in(folder)}"], "tunesmith.load"
        )


def _no_folder(folder: Path) -> str:
    looked = "" if folder.is_absolute() else f" (looked from {Path.cwd()})"
    return f"there is no model folder {str(folder)!r}{looked}"


def _models_in(folder: Path) -> str:
    """Return where models lie in a folder that is none itself, as in that of a run."""
    places = {
        file.parent
        for at in ("*", "stages/*/*")
        for name in ("config.json", ADAPTED)
        for file in folder.glob(f"{at}/{name}")
    }
    shown = ", ".join(repr(str(place)) for place in sorted(places)[:5])
    return f"; models lie in {shown}{' ...' if len(places) > 5 else ''}" if places else "; give the folder of a model"


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as cause:
        reason = str(cause).splitlines()[0]
        raise ConfigError(
            [
                f"the device {device!r} cannot be used: {reason}. `tunesmith doctor` lists what there is; cpu always works"
            ],
            "device",
        ) from cause


def _set_labels(config: Any, labels: int | Sequence[str] | None) -> bool:
    """Give a transformers config these classes and say whether they are new to it; the order of known ones stays."""
    if labels is None:
        return False
    if isinstance(labels, int):
        changed = bool(config.num_labels != labels)
        config.num_labels = labels
        return changed
    if set(config.id2label.values()) == set(labels):
        return False
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: number for number, name in enumerate(labels)}
    return True


def _load_adapted(
    folder: Path, runtime: Runtime, head: Head | None, labels: int | Sequence[str] | None, device_map: str | None
) -> LM:
    from tunesmith.kinds.adapter import AdapterConfig
    from tunesmith.spec import load as load_spec

    where = folder / ADAPTED
    try:
        record = json.loads(where.read_text(encoding="utf-8"))
        base = str(record["base"])
        entries = [(str(entry["folder"]), entry["component"]) for entry in record["adapters"]]
        version = record["format"]
    except (ValueError, KeyError, TypeError) as cause:
        raise ArtifactError(f"{where} is damaged ({cause!r}); make the model again.") from cause
    if version != FORMAT:
        raise ArtifactError(
            f"{where} is of format {version!r}, and this tunesmith reads {FORMAT}; another version wrote it."
        )
    lm = load(folder / BASE if base == BASE else base, runtime=runtime, head=head, labels=labels, device_map=device_map)
    for name, component in entries:
        part = (folder / name).resolve()
        if part.parent != folder.resolve():
            raise ArtifactError(f"{where} names an adapter outside its folder: {name!r}.")
        adapter = load_spec(component, AdapterConfig, where=str(where)).build()
        adapter.setup(runtime)
        lm = adapter.load(lm, part, runtime)
    return lm


def family_of(config: Any) -> Family:
    """Return the family of a transformers config.

    Raises:
        TunesmithError: If its models are of none, such as models of images.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    architecture = (getattr(config, "architectures", None) or [""])[0]
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    if causal and masked:  # BERT and its kin can be both
        is_decoder = architecture.endswith(("ForCausalLM", "LMHeadModel")) or getattr(config, "is_decoder", False)
        return "decoder" if is_decoder else "encoder"
    if causal:
        return "decoder"
    if masked:
        return "encoder"
    raise TunesmithError(
        f"models of type {getattr(config, 'model_type', '?')!r} are neither encoders, decoders nor encoder-decoders for text."
    )


def family_of_model(model: Any) -> Family:
    """Return the family of a transformers model."""
    # half of an encoder-decoder, as T5EncoderModel, whose config is that of the whole
    return "encoder" if type(model).__name__.endswith("EncoderModel") else family_of(model.config)


def _head_of(config: Any) -> Head:
    """Return the head that a transformers config says the model was saved with."""
    architecture = str((getattr(config, "architectures", None) or [""])[0])
    return "classification" if architecture.endswith("ForSequenceClassification") else "lm"


def _lacks_weights(made: Any, source: Any, config: Any, runtime: Runtime, options: dict[str, Any]) -> bool:
    """Return whether a class would have to make up weights that a folder has not; none is read, where that can be told without."""

    def missing(**placed: str) -> bool:
        own = copy.deepcopy(config)
        asked = {"config": own, "dtype": runtime.torch_dtype, "use_safetensors": True, "output_loading_info": True}
        return bool(made.from_pretrained(source, **asked, **placed, **options)[1]["missing_keys"])

    try:
        return missing(device_map="meta")
    except (RuntimeError, ValueError):  # of code that needs numbers, or a quantizer that wants another device
        return missing()


def _class_with_another_head(config: Any) -> Any:
    """Return the class of transformers that a model was saved as, where it is neither for text nor for classes of texts."""
    import transformers

    architecture = str((getattr(config, "architectures", None) or [""])[0])
    if architecture.endswith(("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration")):
        return None
    found = None if _head_of(config) == "classification" else getattr(transformers, architecture, None)
    # the name comes from a file, and may be that of anything in the package
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def _auto_class(family: Family, head: Head) -> Any:
    import transformers

    if head == "classification":
        return transformers.AutoModelForSequenceClassification
    if family == "encoder-decoder":
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModelForCausalLM if family == "decoder" else transformers.AutoModelForMaskedLM

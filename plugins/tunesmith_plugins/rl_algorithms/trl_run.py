"""What the trl plugins share: arguments, checkpoints, resuming, the report, and leaving the model as trl found it."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import math
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
import trl
from attrs import asdict
from packaging.version import Version
from safetensors.torch import load_file, save_file

from tunesmith import manifest
from tunesmith.checkpoints import newest_sealed, saving_quietly, sealing_callback
from tunesmith.errors import ArtifactError, ConfigError, MissingPower, NumericError
from tunesmith.kinds.rl_algorithm import Offline, Online, RLAlgorithm, TrainingReport
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith.scoring import pad, token_logps_in_batches
from tunesmith.training.sharding import check_copies
from tunesmith_plugins.rl_algorithms.progress import identity
from tunesmith_plugins.rl_algorithms.reference import Reference, reference_of, trainable

OLDEST = "1.16"
TOLERANCE = 1e-4
"""By how much the log-probability of one token may differ, in half precision too: adapter off and adapter on compute the same."""
OURS = frozenset({"max_prompt_tokens", "max_completion_tokens", "options", "checkpoint_every", "allow_start_kl"})
"""Fields of our configs that trl does not have."""
TAKEN = {
    "output_dir": "the runtime's folder",
    "seed": "the runtime's seed",
    "data_seed": "the runtime's seed",
    "use_cpu": "the runtime's device",
    "fp16": "the runtime's dtype",
    "bf16": "the runtime's dtype",
    "save_strategy": "checkpoint_every",
    "save_steps": "checkpoint_every",
    "save_total_limit": "checkpoint_every",
    "logging_strategy": "every update is in the report",
    "logging_steps": "every update is in the report",
    "model_init_kwargs": "the model is given, not loaded",
    "resume_from_checkpoint": "a run goes on from its folder",
    "push_to_hub": "export the model instead",
    "shuffle_dataset": "the order is the runtime seed's",
}
"""trl's fields that are settled by something else."""
NOT_KEPT = ("step_time", "epoch", "step", "num_tokens")
TRAINED = "trained.safetensors"
RUN = "run.json"


class TrlAlgorithm(RLAlgorithm):
    """One of trl's trainers. Its config's fields have trl's names; None is trl's default."""

    families: ClassVar[frozenset[str]] = frozenset({"decoder"})
    name: ClassVar[str]
    ours: ClassVar[str]
    """Which of our algorithms trains encoder-decoders instead."""
    arguments: ClassVar[type]
    """trl's config."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if Version(trl.__version__) < Version(OLDEST):
            raise MissingPower(f"{self.name} needs trl {OLDEST} or later; trl {trl.__version__} is installed.")
        check_options(config.options, self.arguments, type(config), self.name)

    def train(self, policy: LM, task: Online | Offline, runtime: Runtime) -> TrainingReport:
        """See :class:`tunesmith.kinds.rl_algorithm.RLAlgorithm`."""
        self.check(task)
        if policy.family != "decoder":
            raise MissingPower(
                f"{self.name}: trl trains decoder-only models, and this is an {policy.family}. {self.ours} trains encoder-"
                "decoders."
            )
        with runtime.activated(), _as_it_was(policy):
            return self._train(policy, task, runtime)

    @abstractmethod
    def check(self, task: Online | Offline) -> None:
        """Refuse a task that there is nothing to learn from.

        Raises:
            ConfigError: If it is of the other kind, or empty.
        """

    @abstractmethod
    def trainer(
        self, policy: LM, reference: torch.nn.Module, task: Any, arguments: Any, options: Mapping[str, Any]
    ) -> Any:
        """Return the trainer; ``options`` go to its constructor."""

    @abstractmethod
    def numbers(self, logged: Mapping[str, float], beta: float) -> dict[str, float]:
        """Return one update's numbers under the names that our reports have."""

    @abstractmethod
    def content(self, task: Any) -> list[str]:
        """Return what the task consists of, so that another task's checkpoint is not taken up."""

    @abstractmethod
    def optimises(self, arguments: Any) -> str:
        """Return in words what trl's trainer optimises with these arguments, its defaults filled in."""

    def notes(self, trainer: Any, task: Any) -> dict[str, Any]:
        """Return more for the report's summary."""
        return {}

    def _train(self, policy: LM, task: Any, runtime: Runtime) -> TrainingReport:
        key = identity(self.name, repr(self.config), str(runtime.seed), policy.fingerprint, *self.content(task))
        reference = reference_of(policy)
        parameters = trainable(policy)
        _check_start(policy, reference, self.config.allow_start_kl)
        if reference.copy is None and self.config.options.get("sync_ref_model"):
            raise ConfigError(["sync_ref_model needs a copy of the model; train without an adapter"], self.name)
        from tunesmith_plugins.rl_algorithms.trl_reference import for_trl

        with ExitStack() as stack:
            folder = runtime.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(saving_quietly())
            arguments = self._arguments(folder, runtime)
            if runtime.folder is not None:
                _claim(folder, key)
            options = {
                "args": arguments,
                "processing_class": copy.deepcopy(policy.tokenizer),
                "callbacks": [_bar(runtime, self.name), *([sealing_callback()] if runtime.folder else [])],
            }
            trainer = self.trainer(policy, for_trl(reference), task, arguments, options)
            check_copies(trainer, self.name)
            trainer.parameters = parameters
            trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
            # the main process removes half-written ones, which the others shall not come across
            with arguments.main_process_first(local=False, desc="looking for checkpoints"):
                newest = newest_sealed(folder)
            trainer.train(resume_from_checkpoint=str(newest) if newest else None)
        if reference.copy is not None:
            policy.origin = None
        beta = float(getattr(arguments, "beta", 0.0))
        steps = [self.numbers(_kept(entry), beta) for entry in trainer.state.log_history if "loss" in entry]
        for number, step in enumerate(steps):
            if not math.isfinite(step["loss"]):
                raise NumericError(f"{self.name} update {number}: the loss is {step['loss']}; lower the learning rate.")
        summary = {
            "steps": len(steps),
            "optimises": self.optimises(arguments),
            "trained_parameters": sum(p.numel() for p in parameters.values()),
            "reference": "frozen copy" if reference.copy is not None else "last adapter off",
            "trl": trl.__version__,
            **self.notes(trainer, task),
        }
        return TrainingReport(steps=steps, summary=summary)

    def _arguments(self, folder: Path, runtime: Runtime) -> Any:
        given = {n: x for n, x in asdict(self.config, recurse=False).items() if n not in OURS and x is not None}
        cpu = torch.device(runtime.device).type == "cpu"
        settled = {
            "output_dir": str(folder),
            "seed": runtime.seed % 2**32,
            "use_cpu": cpu,
            "bf16": runtime.dtype == "bfloat16",
            "fp16": False,
            "save_strategy": "steps" if runtime.folder else "no",
            "save_steps": self.config.checkpoint_every,
            "save_total_limit": 2,
            "logging_strategy": "steps",
            "logging_steps": 1,
            "disable_tqdm": True,
        }
        free = {"report_to": [], "gradient_checkpointing": False, **self.config.options}
        try:
            return self.arguments(**free, **given, **settled)
        except (ValueError, TypeError, KeyError) as cause:
            raise ConfigError([f"trl refuses these settings: {cause}"], self.name) from cause


class OwnCheckpoints:
    """Mixed into a trainer: a checkpoint holds the trained weights only, and nothing that has to be unpickled."""

    parameters: Mapping[str, torch.nn.Parameter]

    def create_model_card(self, *args: Any, **options: Any) -> None:
        """Write none: the model is not this folder's business."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:  # type: ignore[attr-defined]
            return
        folder = Path(output_dir or self.args.output_dir)  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: p.detach().cpu().contiguous().clone() for name, p in self.parameters.items()}
        save_file(state, folder / TRAINED, metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        state = load_file(Path(resume_from_checkpoint) / TRAINED)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(state[name])


def _bar(runtime: Runtime, name: str) -> transformers.TrainerCallback:
    """Return a callback that moves the runtime's progress bar."""

    class Bar(transformers.TrainerCallback):  # type: ignore[misc, unused-ignore]
        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            left = max(state.max_steps - state.global_step, 0)
            self.steps = iter(runtime.track(range(left), name, left))
            next(self.steps, None)

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            next(self.steps, None)

    return Bar()


def check_options(options: Mapping[str, Any], arguments: type, config: type, name: str) -> None:
    """Check the options that are handed through.

    Raises:
        ConfigError: Naming every option that trl does not have, or that is settled elsewhere.
    """
    known = {f.name for f in dataclasses.fields(arguments) if f.init}
    own = {f.name for f in config.__attrs_attrs__} - OURS  # type: ignore[attr-defined]
    problems = []
    for option in options:
        if option in own:
            problems.append(f"{option!r} is a field of its own; set it there @ options")
        elif option in TAKEN:
            problems.append(f"{option!r} cannot be set: {TAKEN[option]} @ options")
        elif option not in known:
            near = difflib.get_close_matches(option, sorted(known | own), 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            problems.append(f"trl {trl.__version__} has no {option!r} in {arguments.__name__}{hint} @ options")
    if problems:
        raise ConfigError(problems, name)


def _kept(entry: Mapping[str, Any]) -> dict[str, float]:
    """A log entry without times and what counts them, in an order that a checkpoint does not change."""
    return {
        name: float(value)
        for name, value in sorted(entry.items())
        if name not in NOT_KEPT and isinstance(value, (int, float)) and (name == "loss" or math.isfinite(value))
    }


def renamed(logged: Mapping[str, float], names: Mapping[str, str]) -> dict[str, float]:
    """Return the numbers with some of them under other names."""
    return {names.get(name, name): value for name, value in logged.items()}


def _claim(folder: Path, key: str) -> None:
    """Make the folder this run's.

    Raises:
        ArtifactError: If it is another's.
    """
    file = folder / RUN
    if file.is_file():
        if json.loads(file.read_text(encoding="utf-8")).get("identity") != key:
            raise ArtifactError(
                f"{folder} belongs to another run (other settings, data or weights). Use another folder, or remove it to "
                "start again."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write_text(file, json.dumps({"identity": key}) + "\n")


def _check_start(policy: LM, reference: Reference, allowed: bool) -> None:
    """The policy must be its reference before the first update; one token shows whether it is."""
    if reference.copy is not None or allowed or not reference.starts_equal:
        return
    token = policy.tokenizer.bos_token_id or policy.tokenizer.eos_token_id or 0
    ids, lengths = pad([[token]])
    with policy.evaluating():
        now, _, _ = token_logps_in_batches(policy, [[token]], ids, lengths)
        with reference.model() as model:
            before, _, _ = token_logps_in_batches(model, [[token]], ids, lengths)
    reference.check_start(float((now - before).abs().max()), TOLERANCE)


@contextmanager
def _as_it_was(policy: LM) -> Iterator[None]:
    """Take back what trl changes in the model besides its weights: forward, mode, dropout, ids of special tokens."""
    model = policy.model
    dropouts = [(module, module.p) for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    settings = [(c, c.pad_token_id) for c in (model.config.get_text_config(), model.generation_config)]
    cache = getattr(model.config, "use_cache", None)
    tags, training = getattr(model, "model_tags", None), model.training
    forward: Callable[..., Any] | None = vars(model).get("forward")
    try:
        yield
    finally:
        if forward is None:
            vars(model).pop("forward", None)
        else:
            model.forward = forward
        for module, p in dropouts:
            module.p = p
        for config, pad_token_id in settings:
            config.pad_token_id = pad_token_id
        if cache is not None:
            model.config.use_cache = cache
        model.model_tags = tags
        model.train(training)

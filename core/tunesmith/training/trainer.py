"""transformers' trainers with our order, sealed checkpoints of what is trained only, and losses of our own."""

from __future__ import annotations

import copy
import math
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from attrs import field, frozen
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer

from tunesmith import manifest
from tunesmith.checkpoints import (
    load_random,
    load_tree,
    newest_sealed,
    save_random,
    save_tree,
    saving_quietly,
    seal,
)
from tunesmith.errors import ArtifactError, ConfigError, NumericError
from tunesmith.training.callbacks import Bar, StepTimes
from tunesmith.training.sharding import check_gathering, check_trusted, check_whole, give_back, sharded
from tunesmith.training.stream import InOrder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tunesmith.runtime import Runtime

TRAINED = "trained.safetensors"
OF = "of"
"""What training a checkpoint in pieces is one of."""
FULL = "full"
"""What tells that nothing of a batch counts, where it is False."""


class Loss(Protocol):
    """A loss that is a sum over items divided by their number, so that it does not depend on how batches are cut up."""

    def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum over the batch's items, with gradients."""

    def items(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return what the sum is divided by: the number (or total weight) of the items; a scalar."""


@frozen(kw_only=True)
class Job:
    """One training.

    Attributes:
        model: A module; its parameters that need a gradient are trained.
        arguments: Of :func:`tunesmith.training.arguments.training_arguments`.
        items: A data set whose items come in their order (:class:`tunesmith.training.stream.Stream`).
        collate: Items to a batch of tensors.
        loss: Of a batch.
        validation: A data set for the validation loss, or None.
        early_stopping: Evaluations without a better validation loss before it stops; 0: never.
        whole: Options that need every parameter whole in every process (of a model's adapters:
            :func:`tunesmith.kinds.adapter.whole_parameters`); training by FSDP or DeepSpeed is refused then.
        identity: A digest of whatever must be the same when it goes on from a checkpoint; "" where the folder says that.
        infinite: What an infinite loss comes from and what to do, for the message; "": what is said of any loss that is no number.
        measured: What the loss has measured since the last call, for the log; None: nothing but the loss.
    """

    model: Any
    arguments: Any
    items: Any
    collate: Callable[[Sequence[Any]], dict[str, torch.Tensor]]
    loss: Loss
    validation: Any = None
    early_stopping: int = 0
    whole: Sequence[str] = ()
    identity: str = ""
    infinite: str = ""
    measured: Callable[[], dict[str, float]] | None = None


@frozen(kw_only=True)
class Trained:
    """What came of it.

    Attributes:
        history: The trainer's log, one mapping an entry.
        steps: Optimizer steps done, those before an interruption too.
        seconds: Of each step of this process.
    """

    history: Sequence[dict[str, Any]]
    steps: int
    seconds: Sequence[float] = field(factory=tuple)

    @property
    def losses(self) -> list[float]:
        """Training losses, one a log entry (a step, unless ``logging_steps`` says otherwise)."""
        return [float(entry["loss"]) for entry in self.history if "loss" in entry]

    @property
    def loss_steps(self) -> list[int]:
        """The steps of :attr:`losses`."""
        return [int(entry["step"]) for entry in self.history if "loss" in entry]

    @property
    def validation(self) -> list[tuple[int, float]]:
        """Step and validation loss."""
        return [(int(entry["step"]), float(entry["eval_loss"])) for entry in self.history if "eval_loss" in entry]


@frozen
class Shared:
    """A data set for several processes, as long as their batches are together.

    Otherwise accelerate fills up the last batches with items that came before, and these would count twice. Here there is
    nothing at the end, and a batch of nothing is an item that does not count: every process must run the model as often as the others.

    Attributes:
        items: The data set.
        size: Items of a batch of all processes together.
        collate: Items to a batch of tensors.
    """

    items: Any
    size: int
    collate: Callable[[Sequence[Any]], dict[str, torch.Tensor]]

    def __len__(self) -> int:
        return math.ceil(len(self.items) / self.size) * self.size

    def __getitem__(self, index: int) -> Any:
        return self.items[index] if index < len(self.items) else None

    def batch(self, items: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Return the batch of those items that are there."""
        there = [item for item in items if item is not None]
        return self.collate(there) if there else {**self.collate([self.items[0]]), FULL: torch.tensor(False)}


class _Own:
    """Mixed into a Trainer."""

    def __init__(self, job: Job, **options: Any) -> None:
        self.job = job
        self._evaluated = torch.zeros(2, dtype=torch.float64)
        super().__init__(**options)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return InOrder(len(self.train_dataset))  # type: ignore[attr-defined]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        if not batch_samples:
            return None
        counts = [self.job.loss.items(batch).float() * float(batch.get(FULL, True)) for batch in batch_samples]
        return torch.stack(counts).sum().to(device)

    def get_batch_samples(self, *args: Any, **options: Any) -> Any:
        """Return the batches of a step, and the items of all processes' batches together."""
        batches, count = super().get_batch_samples(*args, **options)  # type: ignore[misc]
        if count is not None and self.args.world_size > 1:  # type: ignore[attr-defined]
            count = self.accelerator.gather(count).sum()  # type: ignore[attr-defined]
        return batches, count

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a batch: its share of the loss of all batches of the step."""
        counts = bool(inputs.pop(FULL, True))
        count = self.job.loss.items(inputs) if num_items_in_batch is None else num_items_in_batch
        total = self.job.loss(model, inputs)
        value = total / count.to(self.args.device).clamp(min=1e-12)  # type: ignore[attr-defined]
        if model.training:
            # gradients are averaged over processes
            value = value * (self.args.world_size if counts else 0)  # type: ignore[attr-defined]
        elif counts:
            self._evaluated += torch.stack([part.detach().sum().cpu().double() for part in (total, count)])
        return (value, {}) if return_outputs else value

    def evaluation_loop(
        self, dataloader: Any, description: str, *args: Any, metric_key_prefix: str = "eval", **options: Any
    ) -> Any:
        """Do what the Trainer does, with the loss of all items together and not the mean over batches, whatever these have."""
        self._evaluated.zero_()
        output = super().evaluation_loop(  # type: ignore[misc]
            dataloader, description, *args, metric_key_prefix=metric_key_prefix, **options
        )
        every = self.accelerator.gather(self._evaluated.float().to(self.args.device)[None])  # type: ignore[attr-defined]
        total, count = every.double().sum(0).tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = total / max(count, 1e-12)
        return output

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """Do what the Trainer does, and stop at a loss that is no number.

        Raises:
            NumericError: Naming the step.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        value = float(loss)
        if not math.isfinite(value):
            step = self.state.global_step + 1  # type: ignore[attr-defined]
            known = self.job.infinite if value == math.inf else ""
            advice = known or "lower the learning rate or look at the data."
            raise NumericError(f"step {step} of the training: the loss is {value}; {advice}")
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the loss has measured to the entry of a training loss."""
        if "loss" in logs and self.job.measured is not None:
            logs = {**logs, **self.job.measured()}
        super().log(logs, start_time)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"  # type: ignore[attr-defined]
        if self._sharded and self.args.should_save:  # type: ignore[attr-defined]
            save_tree(folder, OF, self._identity)
        self.accelerator.wait_for_everyone()  # type: ignore[attr-defined] # each process writes its random state
        if self.args.should_save:  # type: ignore[attr-defined]
            seal(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save or self._sharded:  # type: ignore[attr-defined] # with the optimizer, in pieces
            return
        folder = Path(output_dir or self.args.output_dir)  # type: ignore[attr-defined]
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)  # type: ignore[attr-defined]
        state = {name: parameter.detach().cpu().contiguous().clone() for name, parameter in trained(model)}
        save_file(state, folder / TRAINED, metadata={"format": "pt", **self._identity})

    @property
    def _identity(self) -> dict[str, str]:
        return {"identity": self.job.identity, "processes": str(self.args.world_size)}  # type: ignore[attr-defined]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        else:
            self._restore(Path(resume_from_checkpoint), model or self.model)  # type: ignore[attr-defined]

    def _load_best_model(self) -> None:
        folder = _own_checkpoint(self.state.best_model_checkpoint, self.args.output_dir)  # type: ignore[attr-defined]
        if self._sharded:
            self.state.best_model_checkpoint = str(folder)  # type: ignore[attr-defined]
            super()._load_best_model()  # type: ignore[misc]
        else:
            self._restore(folder, self.model)  # type: ignore[attr-defined]

    def check(self, folder: Path) -> None:
        """Check that a checkpoint in pieces is one of this training, and may be read.

        Raises:
            ArtifactError: If it is of another one.
            ConfigError: If reading it may run code, and the user has not said that it may.
        """
        if not self._sharded:
            return
        if load_tree(folder, OF) != self._identity:
            raise self._of_another(folder)
        check_trusted(self, folder, "training")

    def _of_another(self, folder: Path) -> ArtifactError:
        return ArtifactError(
            f"{folder} belongs to another training (other settings, data or number of processes). Use another folder, "
            f"or remove {folder.parent}."
        )

    def _restore(self, folder: Path, model: Any) -> None:
        with safe_open(folder / TRAINED, framework="pt") as file:
            metadata = file.metadata() or {}
        state = load_file(folder / TRAINED)
        parameters = dict(trained(self.accelerator.unwrap_model(model)))  # type: ignore[attr-defined]
        if set(state) != set(parameters) or not self._identity.items() <= metadata.items():
            raise self._of_another(folder)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])

    @property
    def _sharded(self) -> bool:
        """Whether another library keeps the optimizer, in files of its own."""
        return sharded(self)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._sharded:
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        elif self.args.should_save:  # type: ignore[attr-defined]
            save_tree(Path(output_dir), "optimizer", self.optimizer.state_dict())  # type: ignore[attr-defined]
            save_tree(Path(output_dir), "scheduler", self.lr_scheduler.state_dict())  # type: ignore[attr-defined]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._sharded:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        elif checkpoint is not None:
            self.optimizer.load_state_dict(load_tree(Path(checkpoint), "optimizer"))  # type: ignore[attr-defined]
            self.lr_scheduler.load_state_dict(load_tree(Path(checkpoint), "scheduler"))  # type: ignore[attr-defined]

    def _save_scaler(self, output_dir: str) -> None:
        scaler = getattr(self.accelerator, "scaler", None)  # type: ignore[attr-defined]
        if scaler is not None and self.args.should_save:  # type: ignore[attr-defined]
            save_tree(Path(output_dir), "scaler", scaler.state_dict())

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)  # type: ignore[attr-defined]
        if scaler is not None and checkpoint is not None:
            scaler.load_state_dict(load_tree(Path(checkpoint), "scaler"))

    def _save_rng_state(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_random(Path(output_dir), self._random)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_random(Path(checkpoint), self._random)

    @property
    def _random(self) -> str:
        number = self.args.process_index  # type: ignore[attr-defined]
        return f"random-{number}" if number else "random"


class OwnTrainer(_Own, Trainer):  # type: ignore[misc, unused-ignore]
    """transformers' Trainer."""


class OwnSeq2SeqTrainer(_Own, Seq2SeqTrainer):  # type: ignore[misc, unused-ignore]
    """transformers' Seq2SeqTrainer."""


def trained(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Return the parameters that are trained, each shared one once."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _own_checkpoint(named: str, output_dir: str) -> Path:
    """Return a checkpoint that the trainer's state names, which is a file that may have been copied or changed.

    Raises:
        ArtifactError: If it is no whole checkpoint in the output folder.
    """
    folder = Path(output_dir) / Path(named).name
    if not re.fullmatch(r"checkpoint-\d+", folder.name) or manifest.problems(folder):
        raise ArtifactError(
            f"the best checkpoint is said to be {named}, and {folder} is none that this training has written whole. Remove "
            f"{output_dir} to begin anew."
        )
    return folder


def train(job: Job, runtime: Runtime) -> Trained:
    """Train, going on from the newest whole checkpoint in the output folder.

    Raises:
        ConfigError: If parameters have to stay whole (``job.whole``) and FSDP or DeepSpeed would cut them up, and for float16
            weights under Adam.
    """
    _check_types(job)
    arguments, times = job.arguments, StepTimes()
    callbacks: list[Any] = [times]
    if runtime.progress and sys.stderr.isatty():
        callbacks.append(Bar())
    if job.early_stopping:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=job.early_stopping))
    items, validation, collate = job.items, job.validation, job.collate
    if arguments.world_size > 1:
        items = Shared(items, arguments.world_size * arguments.train_batch_size, job.collate)
        collate = items.batch
        if validation is not None:
            validation = Shared(validation, arguments.world_size * arguments.eval_batch_size, job.collate)
    cls: Any = OwnSeq2SeqTrainer if isinstance(arguments, Seq2SeqTrainingArguments) else OwnTrainer
    trainer = cls(
        job,
        model=job.model,
        args=arguments,
        train_dataset=items,
        eval_dataset=validation,
        data_collator=collate,
        callbacks=callbacks,
    )
    check_whole(trainer, job.whole, "training")
    check_gathering(trainer, "training")
    if sharded(trainer) and job.early_stopping:
        check_trusted(trainer, Path(arguments.output_dir), "training", early_stopping=True)
    if sharded(trainer):  # a model in pieces stays in pieces, so a copy is cut up
        trainer.model = trainer.model_wrapped = copy.deepcopy(job.model)
    trainer.model_accepts_loss_kwargs = True  # or the Trainer would divide by the batches of a step once more
    trainer.remove_callback(PrinterCallback)  # it prints every step; the report has them all
    with _main_first(arguments):
        found = newest_sealed(Path(arguments.output_dir))
    with _without_cache(trainer.model), saving_quietly():
        if found:
            trainer.check(found)
        trainer.train(resume_from_checkpoint=str(found) if found else None)
        trainer.accelerator.wait_for_everyone()  # a folder without a name goes with the main process, which may be the first
    if sharded(trainer):
        give_back(trainer, trained(job.model))
    return Trained(history=trainer.state.log_history, steps=trainer.state.global_step, seconds=times.seconds)


def _check_types(job: Job) -> None:
    """Refuse float16 weights under Adam: squares of gradients below 2e-4, and its epsilon, are 0 there."""
    small = [name for name, parameter in trained(job.model) if parameter.dtype == torch.float16]
    if small and "adam" in job.arguments.optim.value:
        raise ConfigError(
            [
                f"{small[0]} is float16, in which the squares of gradients that Adam keeps vanish, so that steps have any size; "
                "take dtype='float32' or 'bfloat16', or arguments={'optim': 'sgd'}"
            ],
            "training",
        )


@contextmanager
def _main_first(arguments: Any) -> Iterator[None]:
    """Let the main process go first: it removes half-written checkpoints, which the others shall not come across."""
    with arguments.main_process_first(local=False, desc="looking for checkpoints"):
        yield


@contextmanager
def _without_cache(model: Any) -> Iterator[None]:
    """Keep no keys and values: a cache costs memory, and with one packed examples would see each other."""
    config: Any = getattr(model, "config", None)
    before = getattr(config, "use_cache", None)
    if before is not None:
        config.use_cache = False
    try:
        yield
    finally:
        if before is not None:
            config.use_cache = before

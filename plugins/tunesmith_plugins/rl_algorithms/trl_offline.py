"""trl's DPO and KTO trainers; see :class:`tunesmith_plugins.rl_algorithms.TrlDPO`."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from tunesmith.errors import DataError
from tunesmith.kinds.rl_algorithm import Offline, Online
from tunesmith.lm import LM
from tunesmith.runtime import derive_seed
from tunesmith_plugins.rl_algorithms.kto_target import kto_fixed_point
from tunesmith_plugins.rl_algorithms.pairs import Pairs, encode
from tunesmith_plugins.rl_algorithms.preference_losses import KTO_OBJECTIVE, pair_objective
from tunesmith_plugins.rl_algorithms.targets import tilt
from tunesmith_plugins.rl_algorithms.task import check_offline
from tunesmith_plugins.rl_algorithms.trl_run import OwnCheckpoints, TrlAlgorithm, renamed

NAMES = {
    "grad_norm": "gradient_norm",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "logps/chosen": "logp_chosen",
    "logps/rejected": "logp_rejected",
}

OTHERS = frozenset({"loss_weights", "ld_alpha", "f_divergence_type", "use_weighting", "sync_ref_model"})
"""Options of trl's DPO with which its optimum is another."""


class _Prepared(OwnCheckpoints):
    """The data are ids already, in the order in which they are used."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **options: Any) -> Any:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset)  # type: ignore[attr-defined]


class _DPO(_Prepared, DPOTrainer):  # type: ignore[misc, unused-ignore]
    """trl's trainer with our ids and checkpoints."""


class _KTO(_Prepared, KTOTrainer):  # type: ignore[misc, unused-ignore]
    """trl's trainer with our ids and checkpoints."""


class TrlOffline(TrlAlgorithm):
    """A trainer that learns from preferences."""

    cls: ClassVar[type]

    def check(self, task: Online | Offline) -> None:
        """See :meth:`TrlAlgorithm.check`."""
        if not any(p.weight for p in check_offline(task, self.name).preferences):
            raise DataError("all preferences have weight 0; nothing can be learned from them.")

    def content(self, task: Offline) -> list[str]:
        """See :meth:`TrlAlgorithm.content`."""
        return [f"{p.prompt}\0{p.chosen}\0{p.rejected}\0{p.weight}" for p in task.preferences]

    def trainer(
        self, policy: LM, reference: torch.nn.Module, task: Offline, arguments: Any, options: Mapping[str, Any]
    ) -> Any:
        """See :meth:`TrlAlgorithm.trainer`."""
        config = self.config
        pairs = encode(policy, task.preferences, config.max_prompt_tokens, config.max_completion_tokens)
        self._cut = {"cut_prompts": pairs.cut_prompts, "cut_completions": pairs.cut_completions}
        data = Dataset.from_dict(self.columns(pairs, arguments))
        return self.cls(model=policy.model, ref_model=reference, train_dataset=data, **options)

    @abstractmethod
    def columns(self, pairs: Pairs, arguments: Any) -> dict[str, list[Any]]:
        """Return the data set's columns, in order of use; also sets the number of updates."""

    def numbers(self, logged: Mapping[str, float], beta: float) -> dict[str, float]:
        """See :meth:`TrlAlgorithm.numbers`; ``chosen`` and ``rejected`` are log-ratios, as in ours."""
        found = renamed(logged, NAMES)
        for side in ("chosen", "rejected"):
            if f"rewards/{side}" in found:
                found[side] = found.pop(f"rewards/{side}") / beta
        return found

    def notes(self, trainer: Any, task: Offline) -> dict[str, Any]:
        """Return what was cut, and whether rows were drawn by weight."""
        return {**self._cut, "drawn_by_weight": len({p.weight for p in task.preferences}) > 1}


class TrlDPOAlgorithm(TrlOffline):
    """See the config."""

    name: ClassVar[str] = "trl_dpo"
    ours: ClassVar[str] = "dpo"
    arguments: ClassVar[type] = DPOConfig
    cls: ClassVar[type] = _DPO

    def optimises(self, arguments: Any) -> str:
        """See :meth:`TrlAlgorithm.optimises`."""
        kinds = arguments.loss_type
        kind = kinds[0] if isinstance(kinds, list) and len(kinds) == 1 else kinds
        if kind == "sigmoid" and not OTHERS & set(self.config.options):
            return pair_objective(kind, arguments.label_smoothing)
        return f"what trl's loss {kind!r} does; trl says no more"

    def columns(self, pairs: Pairs, arguments: Any) -> dict[str, list[Any]]:
        """See :meth:`TrlOffline.columns`."""
        rows = _order(arguments, pairs.weights)
        chosen, rejected = pairs.chosen[rows].tolist(), pairs.rejected[rows].tolist()
        return {
            "prompt_ids": [pairs.prompts[i] for i in chosen],
            "chosen_ids": [pairs.completions[i] for i in chosen],
            "rejected_ids": [pairs.completions[i] for i in rejected],
        }

    def target(self, ref_logp: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor | None:
        """Return the tilt for the plain sigmoid loss; trl's ``"ipo"``, which divides by lengths, and others: None."""
        config = self.config
        if (config.loss_type or "sigmoid") != "sigmoid" or config.label_smoothing or OTHERS & set(config.options):
            return None
        return tilt(ref_logp, reward, beta)


class TrlKTOAlgorithm(TrlOffline):
    """See the config."""

    name: ClassVar[str] = "trl_kto"
    ours: ClassVar[str] = "kto"
    arguments: ClassVar[type] = KTOConfig
    cls: ClassVar[type] = _KTO

    def optimises(self, arguments: Any) -> str:
        """See :meth:`TrlAlgorithm.optimises`."""
        if arguments.loss_type == "kto" and not arguments.sync_ref_model:
            return KTO_OBJECTIVE
        follows = " with a reference that follows the policy" if arguments.sync_ref_model else ""
        return f"what trl's loss {arguments.loss_type!r} does{follows}"

    def target(self, ref_logp: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor | None:
        """Return where our KTO ends (:func:`tunesmith_plugins.rl_algorithms.kto_target.kto_fixed_point`), for trl's own loss.

        Its rows are drawn by weight instead of weighted, and its reference point is the mean over a batch of them, so that
        the population is the same.
        """
        config = self.config
        if (config.loss_type or "kto") != "kto" or config.options.get("sync_ref_model"):
            return None
        gains = (config.desirable_weight, config.undesirable_weight)
        good, bad = (1.0 if gain is None else gain for gain in gains)
        return kto_fixed_point(ref_logp, reward, beta, (good, bad))

    def columns(self, pairs: Pairs, arguments: Any) -> dict[str, list[Any]]:
        """See :meth:`TrlOffline.columns`."""
        size = arguments.per_device_train_batch_size
        rows = _order(arguments, torch.cat([pairs.weights, pairs.weights]))
        answers = torch.cat([pairs.chosen, pairs.rejected])[rows].tolist()
        found: dict[str, list[Any]] = {
            "prompt_ids": [pairs.prompts[i] for i in answers],
            "completion_ids": [pairs.completions[i] for i in answers],
            "label": (rows < len(pairs.weights)).tolist(),
        }
        if arguments.loss_type == "kto":  # as trl: every completion of a batch with the prompt of the next one
            found["KL_completion_ids"] = [
                completion
                for first in range(0, len(answers), size)
                for completion in _rotated(found["completion_ids"][first : first + size])
            ]
        return found


def _rotated(batch: Sequence[Any]) -> list[Any]:
    return [batch[-1], *batch[:-1]]


def _order(arguments: Any, weights: torch.Tensor) -> torch.Tensor:
    """Return the rows of all updates: all in an order of its own, then again; drawn by weight where weights differ."""
    count = len(weights)
    size = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    if arguments.max_steps <= 0:
        arguments.max_steps = max(1, math.ceil(arguments.num_train_epochs * count / size))
    needed = arguments.max_steps * size
    if len(weights.unique()) > 1:
        generator = torch.Generator().manual_seed(derive_seed(arguments.seed, "rows"))
        return torch.multinomial(weights, needed, replacement=True, generator=generator)
    passes = []
    for number in range(math.ceil(needed / count)):
        generator = torch.Generator().manual_seed(derive_seed(arguments.seed, "rows", number))
        passes.append(torch.randperm(count, generator=generator))
    return torch.cat(passes)[:needed]

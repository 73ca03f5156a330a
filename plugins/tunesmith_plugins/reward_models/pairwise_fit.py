"""Training of the pairwise reward model, resumable bit for bit."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from tunesmith.checkpoints import Checkpoints, load_random, load_tree, save_random, save_tree
from tunesmith.data.records import Preference
from tunesmith.errors import ArtifactError, DataError, NumericError
from tunesmith.runtime import Runtime, derive_seed
from tunesmith_plugins.reward_models.config import Pairwise

if TYPE_CHECKING:
    from tunesmith_plugins.reward_models.pairwise import PairwiseReward

NAME = "training"


def pair_loss(
    chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor, weights: torch.Tensor, centering: float
) -> torch.Tensor:
    """Return the weighted mean of ``-log sigmoid(r_w - r_l - m) + c (r_w + r_l)^2``; all arguments (pairs,)."""
    losses = -torch.nn.functional.logsigmoid(chosen - rejected - margins) + centering * (chosen + rejected) ** 2
    return (losses * weights).sum() / weights.sum()


class Fit:
    """One training run of a reward model."""

    def __init__(
        self, model: PairwiseReward, config: Pairwise, preferences: Sequence[Preference], runtime: Runtime
    ) -> None:
        self.model, self.config, self.preferences, self.runtime = model, config, preferences, runtime
        if not sum(p.weight for p in preferences) > 0:
            raise DataError("all preferences have weight 0; nothing can be learned from them.")
        prompts = [p.prompt for p in preferences]
        self.chosen, cut_chosen = model.encode(prompts, [p.chosen for p in preferences])
        self.rejected, cut_rejected = model.encode(prompts, [p.rejected for p in preferences])
        self.cut = cut_chosen + cut_rejected
        self.modules = model.modules()
        self.modules.requires_grad_(True)
        decayed = [p for p in self.modules.parameters() if p.ndim > 1]
        others = [p for p in self.modules.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.learning_rate,
        )
        self.checkpoints = None if runtime.folder is None else Checkpoints(runtime.folder)
        content = "\0".join(f"{p.prompt}\0{p.chosen}\0{p.rejected}\0{p.margin}\0{p.weight}" for p in preferences)
        self.identity = hashlib.sha256(f"{config!r}\0{runtime.seed}\0{content}".encode()).hexdigest()

    def run(self) -> dict[str, Any]:
        """Train and return what was measured."""
        config, count = self.config, len(self.preferences)
        each = math.ceil(count / config.batch_size)
        total = config.steps or each * config.epochs
        first, losses, accuracies = self._restore()
        self.modules.train()
        try:
            for step in self.runtime.track(range(first, total), "reward model", total - first):
                seed = derive_seed(self.runtime.seed, "pairs", step // each)
                order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
                rows = order[(step % each) * config.batch_size :][: config.batch_size]
                for group in self.optimizer.param_groups:
                    group["lr"] = config.learning_rate * (1 - step / total)
                loss, accuracy = self._update(rows, step)
                losses.append(loss)
                accuracies.append(accuracy)
                if (step + 1) % config.checkpoint_every == 0 or step + 1 == total:
                    self._save(step + 1, losses, accuracies)
        finally:
            self.modules.eval()
        last = accuracies[-each:]
        return {
            "losses": losses,
            "train_accuracy": sum(last) / len(last),
            "steps": total,
            "pairs": count,
            "cut": self.cut,
        }

    def _update(self, rows: Sequence[int], step: int) -> tuple[float, float]:
        some = [self.preferences[row] for row in rows]
        device = self.model.head.weight.device
        weights = torch.tensor([p.weight for p in some], device=device)
        if not float(weights.sum()) > 0:
            return 0.0, 0.5
        margins = torch.tensor([p.margin if self.config.margin else 0.0 for p in some], device=device)
        both = self.model.forward([*(self.chosen[row] for row in rows), *(self.rejected[row] for row in rows)])
        chosen, rejected = both[: len(rows)], both[len(rows) :]
        loss = pair_loss(chosen, rejected, margins, weights, self.config.centering)
        if not math.isfinite(float(loss.detach())):
            raise NumericError(f"reward model, update {step}: the loss is {float(loss)}; lower the learning rate.")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        limit = self.config.max_grad_norm or float("inf")
        torch.nn.utils.clip_grad_norm_(self.modules.parameters(), limit)
        self.optimizer.step()
        right = (chosen > rejected).double() + 0.5 * (chosen == rejected)
        return float(loss.detach()), float(right.mean())

    def _save(self, step: int, losses: list[float], accuracies: list[float]) -> None:
        if self.checkpoints is None:
            return
        tree = {
            "identity": self.identity,
            "parameters": {name: p.detach() for name, p in self.modules.named_parameters()},
            "optimizer": self.optimizer.state_dict(),
            "losses": losses,
            "accuracies": accuracies,
        }

        def write(folder: Any) -> None:
            save_tree(folder, NAME, tree)
            save_random(folder)  # dropout draws from the global generator

        self.checkpoints.save(step, write)

    def _restore(self) -> tuple[int, list[float], list[float]]:
        newest = None if self.checkpoints is None else self.checkpoints.newest()
        if newest is None:
            return 0, [], []
        tree = load_tree(newest.folder, NAME)
        if tree["identity"] != self.identity:
            raise ArtifactError(
                f"{newest.folder} belongs to another training (other settings or preferences). Use another folder, or remove it."
            )
        with torch.no_grad():
            for name, parameter in self.modules.named_parameters():
                parameter.copy_(tree["parameters"][name])
        self.optimizer.load_state_dict(tree["optimizer"])
        load_random(newest.folder)
        return newest.step, tree["losses"], tree["accuracies"]

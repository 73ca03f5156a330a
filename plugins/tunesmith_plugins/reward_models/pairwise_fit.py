"""Training of the pairwise reward model by the trainer of transformers, resumable bit for bit."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import frozen

from tunesmith.data.encoding import Cut
from tunesmith.data.records import Preference
from tunesmith.errors import DataError
from tunesmith.runtime import Runtime, derive_seed
from tunesmith.training.arguments import Settings, accumulation, check, training_arguments
from tunesmith.training.stream import Fixed, Stream
from tunesmith_plugins.reward_models.config import Pairwise
from tunesmith_plugins.reward_models.inputs import as_batch, filled

if TYPE_CHECKING:
    from tunesmith_plugins.reward_models.pairwise import PairwiseReward


@frozen(kw_only=True)
class Ranking:
    """All pairs of one ranking, or one pair without a group.

    Attributes:
        rows: Ids of what is scored, each completion once.
        pairs: Row of the better and of the worse completion, margin and weight.
    """

    rows: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[int, int, float, float], ...]


def pair_losses(
    chosen: torch.Tensor, rejected: torch.Tensor, margins: torch.Tensor, weights: torch.Tensor, centering: float
) -> torch.Tensor:
    """Return ``w (-log sigmoid(r_w - r_l - m) + c (r_w + r_l)^2)``; all arguments and the result (pairs,)."""
    losses = -torch.nn.functional.logsigmoid(chosen - rejected - margins) + centering * (chosen + rejected) ** 2
    return losses * weights


class PairLoss:
    """:func:`pair_losses` summed over a batch, of total weight ``items`` (a ``tunesmith.training.trainer.Loss``).

    It also counts, by weight, how often the better completion has the higher score while training.
    """

    def __init__(self, centering: float) -> None:
        self.centering = centering
        self.right = self.weight = 0.0

    def __call__(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum over the batch's pairs."""
        scores = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        chosen, rejected = scores[batch["chosen"]], scores[batch["rejected"]]
        margins, weights = batch["margins"].to(scores), batch["labels"].to(scores)
        if model.training:
            right = (chosen > rejected).double() + 0.5 * (chosen == rejected)
            self.right += float((right * weights).sum())
            self.weight += float(weights.sum())
        return pair_losses(chosen, rejected, margins, weights, self.centering).sum()

    def items(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the total weight of the pairs."""
        return batch["labels"].sum()

    def measured(self) -> dict[str, float]:
        """Return the accuracy since the last call."""
        found = {"accuracy": self.right / self.weight} if self.weight else {}
        self.right = self.weight = 0.0
        return found


class Fit:
    """One training run of a reward model."""

    def __init__(
        self, model: PairwiseReward, config: Pairwise, preferences: Sequence[Preference], runtime: Runtime
    ) -> None:
        self.model, self.config, self.runtime = model, config, runtime
        self.settings = Settings(
            where="pairwise",
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            given=config.arguments,
            validates=config.validation > 0,
            early_stopping=config.early_stopping,
            fixed={
                "weight_decay": config.weight_decay,
                "max_grad_norm": config.max_grad_norm,
                "save_steps": config.checkpoint_every,
            },
            owners={
                "weight_decay": "weight_decay",
                "max_grad_norm": "max_grad_norm",
                "save_steps": "checkpoint_every",
                "label_smoothing_factor": "the weights of the preferences, which say how sure these are",
            },
        )
        check(self.settings)
        used = [p for p in preferences if p.weight > 0]
        if not used:
            raise DataError("all preferences have weight 0; nothing can be learned from them.")
        self.pairs = len(preferences)
        self.cut = Cut()
        ids = self._encoded(list(dict.fromkeys((p.prompt, side) for p in used for side in (p.chosen, p.rejected))))
        self.rankings = [self._ranking(pairs, ids) for pairs in grouped(used)]
        content = "\0".join(
            f"{p.prompt}\0{p.chosen}\0{p.rejected}\0{p.margin}\0{p.weight}\0{p.group}" for p in preferences
        )
        self.identity = hashlib.sha256(f"{config!r}\0{runtime.seed}\0{content}".encode()).hexdigest()

    def run(self) -> dict[str, Any]:
        """Train and return what was measured."""
        from tunesmith.training.trainer import Job, train

        config, runtime = self.config, self.runtime
        held_out, rankings = _split(self.rankings, config.validation, runtime.seed)
        size = config.batch_size * accumulation(config.arguments)
        items = config.steps * size or config.epochs * len(rankings)
        loss = PairLoss(config.centering)
        self.model.modules().requires_grad_(True)
        with ExitStack() as stack:
            folder = runtime.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            job = Job(
                model=self.model.modules(),
                arguments=training_arguments(self.settings, folder, runtime, math.ceil(items / size)),
                items=Stream({"": rankings}, {}, items, runtime.seed),
                collate=self._collate,
                validation=Fixed(held_out, runtime.seed) if held_out else None,
                loss=loss,
                early_stopping=config.early_stopping,
                identity=self.identity,
                measured=loss.measured,
            )
            try:
                trained = train(job, runtime)
            finally:
                self.model.modules().eval()
        epoch = max(1, math.ceil(len(rankings) / size))
        last = [e["accuracy"] for e in trained.history if "accuracy" in e and e["step"] > trained.steps - epoch]
        return {
            "losses": trained.losses,
            "loss_steps": trained.loss_steps,
            "validation_losses": [list(entry) for entry in trained.validation],
            "train_accuracy": sum(last) / len(last) if last else None,
            "steps": trained.steps,
            "pairs": self.pairs,
            "rankings": len(rankings),
            "texts": self.cut.texts,
            "cut": self.cut.shortened,
            "cut_token_share": self.cut.share,
        }

    def _encoded(self, texts: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, ...]]:
        """Return the ids of prompts with completions, and count what is cut."""
        prompts, completions = zip(*texts, strict=True)
        kept, _ = self.model.encode(prompts, completions)
        whole = self.model.tokenizer(filled(self.config.template, prompts, completions)).input_ids
        for full, ids in zip(whole, kept, strict=True):
            self.cut.count(len(full), min(len(full), len(ids)))
        return dict(zip(texts, map(tuple, kept), strict=True))

    def _ranking(self, pairs: Sequence[Preference], ids: Mapping[tuple[str, str], tuple[int, ...]]) -> Ranking:
        distinct = list(dict.fromkeys((p.prompt, side) for p in pairs for side in (p.chosen, p.rejected)))
        place = {text: number for number, text in enumerate(distinct)}
        total = sum(p.weight for p in pairs)
        scale = 1.0 if len(pairs) == 1 else min(1.0, 1.0 / total)
        return Ranking(
            rows=tuple(ids[text] for text in distinct),
            pairs=tuple(
                (
                    place[p.prompt, p.chosen],
                    place[p.prompt, p.rejected],
                    p.margin if self.config.margin else 0.0,
                    p.weight * scale,
                )
                for p in pairs
            ),
        )

    def _collate(self, rankings: Sequence[Ranking]) -> dict[str, torch.Tensor]:
        """Return the rows of all rankings, and for every pair its rows among them, margin and weight (``labels``)."""
        rows = [row for ranking in rankings for row in ranking.rows]
        chosen, rejected, margins, weights = [], [], [], []
        first = 0
        for ranking in rankings:
            for better, worse, margin, weight in ranking.pairs:
                chosen.append(first + better)
                rejected.append(first + worse)
                margins.append(margin)
                weights.append(weight)
            first += len(ranking.rows)
        return {
            **as_batch(rows, self.model.pad_id),
            "chosen": torch.tensor(chosen),
            "rejected": torch.tensor(rejected),
            "margins": torch.tensor(margins),
            "labels": torch.tensor(weights),
        }


def grouped(preferences: Sequence[Preference]) -> list[list[Preference]]:
    """Return the pairs of every ranking, in the order in which the rankings come; a pair without a group is one by itself."""
    found: dict[tuple[str, str], list[Preference]] = {}
    for number, preference in enumerate(preferences):
        key = ("group", preference.group) if preference.group else ("pair", str(number))
        found.setdefault(key, []).append(preference)
    return list(found.values())


def _split(rankings: Sequence[Ranking], share: float, seed: int) -> tuple[list[Ranking], list[Ranking]]:
    """Return about ``share`` of the rankings for validation, and the others."""
    if not share:
        return [], list(rankings)
    if len(rankings) < 2:
        raise DataError("one ranking cannot be divided for a validation loss; add others or set validation to 0.")
    order = sorted(range(len(rankings)), key=lambda number: derive_seed(seed, "validation", number))
    held = set(order[: min(max(1, round(share * len(order))), len(order) - 1)])
    return [rankings[i] for i in sorted(held)], [r for i, r in enumerate(rankings) if i not in held]

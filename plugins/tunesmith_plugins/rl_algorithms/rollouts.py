"""Completions drawn from the policy as it is now, as token ids that nobody turns into text and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import frozen

from tunesmith.continuation import positions
from tunesmith.errors import ConfigError, NumericError
from tunesmith.generation import prompt_ids
from tunesmith.kinds.decoder import Completion, Limits, Request
from tunesmith.kinds.reward_model import RewardModel
from tunesmith.lm import LM
from tunesmith.processes import Processes
from tunesmith.registry import decoders, engines, samplers
from tunesmith.reward import check_scores
from tunesmith.runtime import Runtime, derive_seed
from tunesmith.scoring import pad


@frozen(kw_only=True, eq=False)
class Rollout:
    """A step's completions.

    Attributes:
        prompt_ids: Each row's prompt.
        ids: (batch, time) int64, right-padded.
        lengths: (batch,) int64, the end-of-sequence token included.
        mask: (batch, time) bool.
        drawn_logps: (batch, time) log-probabilities as drawn, 0 outside the mask.
        ended: (batch,) bool, whether the end of sequence was drawn.
        texts: Decoded completions, for the reward.
        rows: Which of the task's prompts each row has.
    """

    prompt_ids: list[tuple[int, ...]]
    ids: torch.Tensor
    lengths: torch.Tensor
    mask: torch.Tensor
    drawn_logps: torch.Tensor
    ended: torch.Tensor
    texts: list[str]
    rows: list[int]

    @property
    def distinct(self) -> int:
        """How many different completions there are, by prompt and token ids."""
        ids, lengths = self.ids.tolist(), self.lengths.tolist()
        return len({(row, tuple(ids[place][: lengths[place]])) for place, row in enumerate(self.rows)})


class Drawer:
    """Draws completions through the engine, decoder and sampler that everything else uses: temperature, no truncation."""

    def __init__(
        self,
        policy: LM,
        prompts: Sequence[str],
        temperature: float,
        max_new_tokens: int,
        rows_at_once: int,
        runtime: Runtime,
        together: Processes,
    ) -> None:
        self.policy, self.runtime, self.together = policy, runtime, together
        # a policy learns from what it drew, and a forced end is not its own
        self.engine = engines.create("tunesmith/transformers", batch_size=rows_at_once, forced_end=False).build()
        self.engine.require({"token_ids", "logp", "seeds", "live_weights"})
        self.decoder = decoders.create("tunesmith/stepwise").build()
        self.sampler = samplers.create("tunesmith/temperature", temperature=temperature).build()
        for part in (self.engine, self.decoder, self.sampler):
            part.setup(runtime)
        self.limits = Limits(max_new_tokens=max_new_tokens)
        limit = positions(policy)
        if limit is not None and policy.family == "decoder":
            limit -= max_new_tokens
            if limit < 1:
                raise ConfigError(
                    [f"max_new_tokens={max_new_tokens} leaves no room for a prompt in the model's positions"],
                    "rl_algorithm",
                )
        whole = prompt_ids(policy, prompts)
        self.prompts = [ids if limit is None else ids[-limit:] for ids in whole]
        self.cut = sum(len(a) != len(b) for a, b in zip(whole, self.prompts, strict=True))

    def completions(self, rows: Sequence[int], *names: str | int) -> list[Completion]:
        """Return one completion a row, in order; the seed depends on the names and the place in ``rows`` only.

        Every process draws its share of them and gets all.
        """
        requests = [
            Request(prompt_ids=self.prompts[rows[place]], seed=derive_seed(self.runtime.seed, *names, place))
            for place in self.together.share(len(rows))
        ]
        self.engine.sync(self.policy)
        with torch.no_grad():
            found = self.engine.generate(requests, self.decoder, self.sampler, self.limits, self.runtime)
            return self.together.gather(sorted(found, key=lambda c: c.request))

    def draw(self, rows: Sequence[int], *names: str | int) -> Rollout:
        """Return completions as tensors on the policy's device."""
        found = self.completions(rows, *names)
        device = self.policy.device
        ids, lengths = pad([c.token_ids for c in found])
        mask = torch.arange(ids.shape[1])[None, :] < lengths[:, None]
        logps = torch.tensor([logp for c in found for logp in c.logp], dtype=torch.float64)
        drawn = torch.zeros(ids.shape, dtype=torch.float64).masked_scatter_(mask, logps)
        return Rollout(
            prompt_ids=[self.prompts[row] for row in rows],
            ids=ids.to(device),
            lengths=lengths.to(device),
            mask=mask.to(device),
            drawn_logps=drawn.to(device),
            ended=torch.tensor([c.finish == "eos" for c in found], device=device),
            texts=[c.text for c in found],
            rows=list(rows),
        )


def rewards_of(
    reward: RewardModel,
    prompts: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    rollout: Rollout,
    together: Processes,
) -> torch.Tensor:
    """Return the task reward of every row, (batch,) float64; NaN where the reward model has no opinion.

    Raises:
        NumericError: If a score is not a finite number.
        ConfigError: If the reward model has no opinion on any row.
    """
    places = together.share(len(rollout.rows))
    rows = [rollout.rows[place] for place in places]
    some = {name: [values[row] for row in rows] for name, values in columns.items()}
    texts = [rollout.texts[place] for place in places]
    own = check_scores(reward, reward.score([prompts[row] for row in rows], texts, **some), len(rows)) if rows else []
    scores = together.gather(own)
    if all(score is None for score in scores):
        raise ConfigError(
            [f"{type(reward).__name__} has no opinion on any of {len(scores)} completions; nothing can be learned"],
            "reward",
        )
    return torch.tensor([math.nan if s is None else s for s in scores], dtype=torch.float64)


def check_drawn(rollout: Rollout, scored: torch.Tensor, tolerance: float, more: str = "") -> None:
    """Check that log-probabilities computed again are those that were drawn with; ``more`` ends the message.

    Raises:
        NumericError: Naming the largest difference and its row.
    """
    difference = (rollout.drawn_logps - scored.double()).abs() * rollout.mask
    worst = float(difference.max()) if difference.numel() else 0.0
    if worst > tolerance or math.isnan(worst):
        row = int(difference.max(dim=1).values.argmax())
        raise NumericError(
            f"row {row}: log-probabilities computed again differ by {worst:.2e} from those the completion was drawn with "
            f"(at most {tolerance:.0e} is expected). The policy that draws is not the one that is trained; is an adapter or "
            f"dropout active in only one of them?{more}"
        )

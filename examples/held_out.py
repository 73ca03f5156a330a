"""What a policy is like on prompts it was not trained on, beside the model it started from, and how sure that is.

Completions are drawn at the temperature of training, several a prompt, with the same seeds before and after: that is the
distribution an RL algorithm works on, and pairing takes the prompts' own differences out. `toxicity_ppo.py` and `stories_sentiment.py` use
this module.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from attrs import frozen

import tunesmith as ts
from tunesmith.generation import prompt_ids
from tunesmith.kinds.decoder import Completion
from tunesmith.kinds.reward_model import RewardModel
from tunesmith.scoring import pad, token_logps_in_batches

RESAMPLES = 10_000


@frozen(kw_only=True)
class Bench:
    """What every policy of an experiment is measured with.

    Attributes:
        prompts: Held out from all training.
        reference: Where the policies started.
        reward: What they are trained towards.
        judge: Texts to numbers of each text, by name; of models that nothing was trained towards. The texts are ``samples`` of
            each prompt, prompt by prompt.
        samples: Completions a prompt.
        max_new_tokens: Most tokens of a completion.
        seed: Of drawing.
        runtime: Device and threads.
        temperature: Of drawing and of the log-probabilities in the KL divergence.
    """

    prompts: Sequence[str]
    reference: ts.LM
    reward: RewardModel
    judge: Callable[[Sequence[str]], dict[str, np.ndarray]]
    samples: int
    max_new_tokens: int
    seed: int
    runtime: ts.Runtime
    temperature: float = 1.0


def measure(bench: Bench, policy: ts.LM, kept: Path) -> dict[str, np.ndarray]:
    """Return the means over its completions for each prompt: ``reward``, ``kl`` (nats a completion), ``length`` (tokens) and
    what the judge says. Kept in the file ``kept`` for the same models, prompts and settings.
    """
    models = (policy.fingerprint, bench.reference.fingerprint)
    settings = (bench.samples, bench.max_new_tokens, bench.seed, bench.temperature)
    key = hashlib.sha256(json.dumps([*models, *settings, *bench.prompts]).encode()).hexdigest()
    if kept.is_file():
        record = json.loads(kept.read_text(encoding="utf-8"))
        if record["key"] == key:
            return {name: np.array(values) for name, values in record["values"].items()}
    drawn = ts.generate(
        policy,
        bench.prompts,
        sampler=ts.samplers.create("temperature", temperature=bench.temperature),
        engine="transformers(batch_size=64)",
        completions=bench.samples,
        max_new_tokens=bench.max_new_tokens,
        seed=bench.seed,
        runtime=bench.runtime,
    )
    texts = [c.text for c in drawn]
    scores = bench.reward.score([bench.prompts[c.request] for c in drawn], texts)
    each = {
        "reward": np.array(scores, dtype=np.float64),
        "kl": log_ratios(bench, drawn),
        "length": np.array([float(len(c.token_ids)) for c in drawn]),
        **bench.judge(texts),
    }
    values = {name: some.reshape(len(bench.prompts), bench.samples).mean(axis=1) for name, some in each.items()}
    kept.parent.mkdir(parents=True, exist_ok=True)
    record = {"key": key, "values": {name: some.tolist() for name, some in values.items()}}
    kept.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return values


def log_ratios(bench: Bench, drawn: Sequence[Completion]) -> np.ndarray:
    """Return ``log policy - log reference`` of every completion; its mean estimates the KL divergence."""
    prompts = prompt_ids(bench.reference, bench.prompts)
    ids, lengths = pad([c.token_ids for c in drawn])
    with bench.reference.evaluating():
        logps, _, _ = token_logps_in_batches(
            bench.reference, [prompts[c.request] for c in drawn], ids, lengths, bench.temperature, batch_size=64
        )
    here = torch.tensor([sum(c.logp) for c in drawn], dtype=torch.float64)
    return (here - logps.double().sum(dim=1)).numpy()


@frozen(kw_only=True)
class Change:
    """A mean change with a 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def over_prompts(differences: np.ndarray, seed: int = 0) -> Change:
    """Return the mean of paired differences (prompts,) with a percentile bootstrap interval over prompts."""
    return over_prompts_and_seeds(differences[None, :], seed)


def over_prompts_and_seeds(differences: np.ndarray, seed: int = 0) -> Change:
    """Return the mean of paired differences (seeds, prompts); prompts and seeds are both resampled (Owen 2007, the
    pigeonhole bootstrap), so the interval speaks of new prompts and of new training runs.
    """
    random = np.random.default_rng(seed)
    seeds, prompts = differences.shape
    rows = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    columns = random.multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES) / prompts
    means = np.einsum("rs,sp,rp->r", rows, differences, columns, optimize=True)
    low, high = np.quantile(means, [0.025, 0.975])
    return Change(value=float(differences.mean()), low=float(low), high=float(high))

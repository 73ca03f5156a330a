"""PPO, RLOO and GRPO on a table, written from the papers in numpy, float64 and loops, with gradients by hand.

Nothing here comes from the product or from torch. A completion is a tuple of token ids, 0 the end of sequence; the row of the
table that predicts a token is found by the tokens before it. Sources: Schulman et al. 2016 (GAE), 2017 (PPO), Ahmadian et
al. 2024 (RLOO), Shao et al. 2024 (GRPO), Kingma and Ba 2015 (Adam).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import frozen

Completion = tuple[int, ...]


@frozen(kw_only=True)
class Settings:
    """Names are the product's where it has a field for it."""

    steps: int
    learning_rate: float
    kl_coefficient: float
    estimate: str  # "gae", "leave_one_out", "group_mean"
    normaliser: str
    epochs: int = 1
    group_size: int = 1
    kl_estimator: str = "k1"
    kl_place: str = "reward"
    deviation: bool = False
    ratio: str = "token"  # "token", "sequence_sum"
    clip: float = 0.2
    temperature: float = 1.0
    gamma: float = 1.0
    lam: float = 0.95
    value_coefficient: float = 0.1
    value_clip: float = 0.2
    entropy_coefficient: float = 0.0
    max_grad_norm: float = 1.0
    missing_eos_penalty: float = 0.0


class Adam:
    def __init__(self, size: int) -> None:
        self.m, self.v, self.t = np.zeros(size), np.zeros(size), 0

    def step(self, values: np.ndarray, gradient: np.ndarray, rate: float) -> np.ndarray:
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        return values - rate * (self.m / (1 - 0.9**self.t)) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-5)


class Table:
    """A policy over answers of up to ``depth`` symbols, and a value for each of its rows."""

    def __init__(self, logits: np.ndarray, symbols: int, depth: int) -> None:
        self.logits, self.depth = logits.copy(), depth
        beginnings = [b for n in range(depth) for b in itertools.product(range(1, symbols + 1), repeat=n)]
        self.row = {beginning: i for i, beginning in enumerate(beginnings)}
        self.values, self.bias = np.zeros(len(beginnings)), 0.0

    def log_probabilities(self, row: int, temperature: float) -> np.ndarray:
        z = self.logits[row] / temperature
        return z - z.max() - np.log(np.exp(z - z.max()).sum())

    def logps(self, completion: Completion, temperature: float) -> list[float]:
        return [
            self.log_probabilities(self.row[completion[:t]], temperature)[token] for t, token in enumerate(completion)
        ]


def kl_estimate(logp: float, reference: float, estimator: str) -> float:
    d = logp - reference
    return {"k1": d, "k2": d * d / 2, "k3": np.exp(-d) - 1 + d}[estimator]


def kl_gradient(logp: float, reference: float, estimator: str) -> float:
    d = logp - reference
    return {"k1": 1.0, "k2": d, "k3": 1 - np.exp(-d)}[estimator]


def token_rewards(score: float, logps: Sequence[float], reference: Sequence[float], s: Settings) -> list[float]:
    beta = s.kl_coefficient if s.kl_place == "reward" else 0.0
    rewards = [-beta * kl_estimate(a, b, s.kl_estimator) for a, b in zip(logps, reference, strict=True)]
    rewards[-1] += score
    return rewards


def gae(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """Equation 16: discounted sums of temporal-difference errors."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, after, values, strict=True)]
    return [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


def whiten(rows: Sequence[Sequence[float]]) -> list[list[float]]:
    """Mean 0 and (biased) variance 1 over all tokens of all rows."""
    every = np.array([value for row in rows for value in row])
    scale = 1 / np.sqrt(((every - every.mean()) ** 2).mean() + 1e-8)
    return [[(value - every.mean()) * scale for value in row] for row in rows]


def group_advantages(returns: Sequence[float], s: Settings) -> list[float]:
    found = []
    for i, own in enumerate(returns):
        first = i // s.group_size * s.group_size
        group = list(returns[first : first + s.group_size])
        others = [*group[: i - first], *group[i - first + 1 :]]
        advantage = own - float(np.mean(others if s.estimate == "leave_one_out" else group))
        found.append(advantage / (float(np.std(group, ddof=1)) + 1e-4) if s.deviation else advantage)
    return found


def token_weight(lengths: Sequence[int], i: int, normaliser: str, limit: int) -> float:
    return {
        "grpo": 1 / (len(lengths) * lengths[i]),
        "bnpo": 1 / sum(lengths),
        "dapo": 1 / sum(lengths),
        "dr_grpo": 1 / (len(lengths) * limit),
        "luspo": 1 / len(lengths),
    }[normaliser]


def train(
    start: np.ndarray,
    symbols: int,
    depth: int,
    drawn: Sequence[Sequence[Completion]],
    reward: Mapping[Completion, float],
    s: Settings,
) -> tuple[np.ndarray, list[dict[str, float]]]:
    """Return the table after training on these completions, one update an epoch, and what was measured at every step."""
    table, first = Table(start, symbols, depth), Table(start, symbols, depth)
    adam, history = Adam(start.size + len(table.values) + 1), []
    for step, completions in enumerate(drawn):
        old = [table.logps(c, s.temperature) for c in completions]
        reference = [first.logps(c, s.temperature) for c in completions]
        values = [[table.values[table.row[c[:t]]] + table.bias for t in range(len(c))] for c in completions]
        scores = [reward[c] - s.missing_eos_penalty * (c[-1] != 0) for c in completions]
        rewards = [token_rewards(*row, s) for row in zip(scores, old, reference, strict=True)]
        if s.estimate == "gae":
            raw = [gae(r, v, s.gamma, s.lam) for r, v in zip(rewards, values, strict=True)]
            returns = [[a + b for a, b in zip(*row, strict=True)] for row in zip(raw, values, strict=True)]
            advantages = whiten(raw)
        else:
            returns = values
            every = group_advantages([sum(r) for r in rewards], s)
            advantages = [[a] * len(c) for a, c in zip(every, completions, strict=True)]
        rate = s.learning_rate * (1 - step / s.steps)
        measured: list[dict[str, float]] = []
        for _ in range(s.epochs):
            gradient, found = _gradient(table, completions, old, reference, advantages, values, returns, s)
            norm = float(np.sqrt((gradient**2).sum()))
            if s.max_grad_norm:
                gradient = gradient * min(1.0, s.max_grad_norm / (norm + 1e-6))
            packed = np.concatenate([table.logits.ravel(), table.values, [table.bias]])
            packed = adam.step(packed, gradient, rate)
            table.logits = packed[: start.size].reshape(start.shape)
            table.values, table.bias = packed[start.size : -1], float(packed[-1])
            measured.append({**found, "gradient_norm": norm})
        kl = [sum(a) - sum(b) for a, b in zip(old, reference, strict=True)]
        means = {name: float(np.mean([m[name] for m in measured])) for name in measured[0]}
        history.append({"kl": float(np.mean(kl)), **means})
    return table.logits, history


def _gradient(
    table: Table,
    completions: Sequence[Completion],
    old: Sequence[Sequence[float]],
    reference: Sequence[Sequence[float]],
    advantages: Sequence[Sequence[float]],
    values: Sequence[Sequence[float]],
    returns: Sequence[Sequence[float]],
    s: Settings,
) -> tuple[np.ndarray, dict[str, Any]]:
    """The gradient of one update, by the chain rule through softmax, and the losses."""
    logits, head, bias = np.zeros_like(table.logits), np.zeros_like(table.values), 0.0
    lengths, policy, errors = [len(c) for c in completions], 0.0, 0.0
    for i, c in enumerate(completions):
        new = table.logps(c, s.temperature)
        ratio = [np.exp(a - b) for a, b in zip(new, old[i], strict=True)]
        share = 1.0
        if s.ratio == "sequence_sum":
            ratio, share = [float(np.prod(ratio))] * len(c), 1 / len(c)
        slope_of_all = 0.0
        slopes = []
        weight = token_weight(lengths, i, s.normaliser, table.depth)
        for t in range(len(c)):
            a, rho = advantages[i][t], ratio[t]
            bounded = min(max(rho, 1 - s.clip), 1 + s.clip)
            policy += weight * share * max(-a * rho, -a * bounded)
            active = -a * rho >= -a * bounded  # else the bound holds, and it does not depend on the policy
            slopes.append(-a * rho * weight * share if active else 0.0)
            slope_of_all += slopes[-1]
        for t, token in enumerate(c):
            row = table.row[c[:t]]
            logp = table.log_probabilities(row, s.temperature)
            p = np.exp(logp)
            slope = slope_of_all if s.ratio == "sequence_sum" else slopes[t]
            if s.kl_place == "loss":
                slope += s.kl_coefficient * weight * kl_gradient(new[t], reference[i][t], s.kl_estimator)
            onehot = np.zeros_like(p)
            onehot[token] = 1
            logits[row] += slope * (onehot - p) / s.temperature
            entropy = -(p * logp).sum()
            logits[row] += s.entropy_coefficient * weight * p * (logp + entropy) / s.temperature
            if s.estimate == "gae":
                v = table.values[row] + table.bias
                moved = min(max(v - values[i][t], -s.value_clip), s.value_clip)
                plain, bounded = (v - returns[i][t]) ** 2, (values[i][t] + moved - returns[i][t]) ** 2
                errors += max(plain, bounded) / 2 / sum(lengths)
                inside = plain >= bounded  # where the bound is larger, V is outside the range and has no gradient
                slope_v = s.value_coefficient * (v - returns[i][t]) / sum(lengths) if inside else 0.0
                head[row] += slope_v
                bias += slope_v
    return np.concatenate([logits.ravel(), head, [bias]]), {"policy_loss": policy, "value_loss": errors}

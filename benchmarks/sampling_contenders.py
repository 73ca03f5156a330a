"""What a user could call instead of the fused sampling chain: each contender draws one token a row from logits.

``a`` is temperature .8 and top-k 50; ``b`` temperature .8 and top-p .9; ``c`` repetition penalty 1.1 over the history,
temperature .8, top-k 50, top-p .95 and min-p .05.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tunesmith_plugins import kernels
from tunesmith_plugins.kernels import Plan, Step

TEMPERATURE, K, P_ALONE, P, MIN_P, PENALTY = 0.8, 50, 0.9, 0.95, 0.05, 1.1
Call = Callable[[], object]


def ours(chain: str, logits: Tensor, history: Tensor) -> Call:
    """One call of the kernel with a packed plan: token and status."""

    def value(number: float) -> Tensor:
        return torch.tensor([number], dtype=torch.float64)

    steps = {
        "a": [Step("temperature", value(TEMPERATURE)), Step("top_k", value(K))],
        "b": [Step("temperature", value(TEMPERATURE)), Step("top_p", value(P_ALONE))],
        "c": [
            Step("repetition_penalty", value(PENALTY)),
            Step("temperature", value(TEMPERATURE)),
            Step("top_k", value(K)),
            Step("top_p", value(P)),
            Step("min_p", value(MIN_P)),
        ],
    }[chain]
    plan = Plan(steps)
    ids = torch.arange(len(logits))
    return lambda: kernels.sample_chain(logits, plan, ids, ids, ids, history=history)


def transformers(chain: str, logits: Tensor, history: Tensor) -> Call:
    """The processors of transformers, softmax and multinomial, as in its ``generate``."""
    processors: list[Any] = {
        "a": [TemperatureLogitsWarper(TEMPERATURE), TopKLogitsWarper(K)],
        "b": [TemperatureLogitsWarper(TEMPERATURE), TopPLogitsWarper(P_ALONE)],
        "c": [
            RepetitionPenaltyLogitsProcessor(PENALTY),
            TemperatureLogitsWarper(TEMPERATURE),
            TopKLogitsWarper(K),
            TopPLogitsWarper(P),
            MinPLogitsWarper(MIN_P),
        ],
    }[chain]
    run = LogitsProcessorList(processors)
    return lambda: torch.multinomial(run(history, logits.float()).softmax(-1), 1)


def _penalised(logits: Tensor, history: Tensor) -> Tensor:
    seen = logits.gather(1, history)
    return logits.scatter(1, history, torch.where(seen < 0, seen * PENALTY, seen / PENALTY))


def _nucleus(values: Tensor, p: float, total: Tensor | None = None) -> Tensor:
    """Mask of what stays of descending rows whose probabilities have the log-sum ``total`` (their own if None)."""
    probabilities = values.softmax(-1) if total is None else (values - total).exp()
    before = probabilities.cumsum(-1) - probabilities
    return before < p


def torch_good(chain: str, logits: Tensor, history: Tensor) -> Call:
    """Well-written torch: top-k first and everything else on the survivors; for top-p topk(1024) growing to a sort."""

    def survivors(values: Tensor, ids: Tensor) -> Tensor:
        return ids.gather(1, torch.multinomial(values.softmax(-1), 1))

    def draw_a() -> Tensor:
        values, ids = logits.topk(K)
        return survivors(values.float() / TEMPERATURE, ids)

    def draw_b() -> Tensor:
        scaled = logits.float() / TEMPERATURE
        total = scaled.logsumexp(-1, keepdim=True)
        values, ids = scaled.topk(min(1024, scaled.shape[1]))
        if bool(((values - total).exp().sum(-1) < P_ALONE).any()):
            values, ids = scaled.sort(-1, descending=True)
        return survivors(values.masked_fill(~_nucleus(values, P_ALONE, total), -torch.inf), ids)

    def draw_c() -> Tensor:
        values, ids = _penalised(logits, history).topk(K)
        values = values.float() / TEMPERATURE
        values = values.masked_fill(~_nucleus(values, P), -torch.inf)
        probabilities = values.softmax(-1)
        return survivors(values.masked_fill(probabilities < MIN_P * probabilities[:, :1], -torch.inf), ids)

    return {"a": draw_a, "b": draw_b, "c": draw_c}[chain]


def sort_based(chain: str, logits: Tensor, history: Tensor) -> Call:
    """One ascending sort for top-k and top-p and the exponential race for the draw, as vLLM's path without its kernels."""

    def race(z: Tensor) -> Tensor:
        probabilities = z.softmax(-1)
        return (probabilities / torch.empty_like(probabilities).exponential_()).argmax(-1)

    def top(z: Tensor, k: int | None, p: float | None) -> Tensor:
        ordered, order = z.sort(-1)
        if k is not None:
            ordered = ordered.masked_fill(ordered < ordered[:, -k, None], -torch.inf)
        if p is not None:
            gone = ordered.softmax(-1).cumsum(-1) <= 1 - p
            gone[:, -1] = False
            ordered = ordered.masked_fill(gone, -torch.inf)
        return torch.empty_like(z).scatter_(1, order, ordered)

    def draw_c() -> Tensor:
        z = _penalised(logits, history).float() / TEMPERATURE
        probabilities = z.softmax(-1)
        z = z.masked_fill(probabilities < MIN_P * probabilities.amax(-1, keepdim=True), -torch.inf)
        return race(top(z, K, P))

    return {
        "a": lambda: race(top(logits.float() / TEMPERATURE, K, None)),
        "b": lambda: race(top(logits.float() / TEMPERATURE, None, P_ALONE)),
        "c": draw_c,
    }[chain]


CONTENDERS: dict[str, Callable[[str, Tensor, Tensor], Call]] = {
    "transformers": transformers,
    "torch": torch_good,
    "sort": sort_based,
}


def llamacpp() -> dict[str, Callable[[str, Tensor, Tensor], Call]]:
    """Return llama.cpp's sampler chain, alone and with its array filled; empty where llama-cpp-python is not installed."""
    try:
        import llama_cpp as cpp
    except ImportError:
        return {}
    import ctypes

    import numpy as np

    # newer versions want the size of the vocabulary first
    sized = len(cpp.llama_sampler_init_penalties.argtypes) == 5

    def build(chain: str, history: Tensor, row: int, vocab: int) -> Any:
        found = cpp.llama_sampler_chain_init(cpp.llama_sampler_chain_default_params())
        if chain == "c":
            first = (vocab,) if sized else ()
            penalties = cpp.llama_sampler_init_penalties(*first, history.shape[1], PENALTY, 0.0, 0.0)
            cpp.llama_sampler_chain_add(found, penalties)
            for token in history[row].tolist():
                cpp.llama_sampler_accept(penalties, token)
        links = [cpp.llama_sampler_init_temp(TEMPERATURE)]
        if chain != "b":
            links.append(cpp.llama_sampler_init_top_k(K))
        if chain != "a":
            links.append(cpp.llama_sampler_init_top_p(P_ALONE if chain == "b" else P, 1))
        if chain == "c":
            links.append(cpp.llama_sampler_init_min_p(MIN_P, 1))
        links.append(cpp.llama_sampler_init_dist(row))
        for link in links:
            cpp.llama_sampler_chain_add(found, link)
        return found

    def prepared(chain: str, logits: Tensor, history: Tensor, filled: bool) -> Call:
        vocab = logits.shape[1]
        kind = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        source = np.zeros((len(logits), vocab), kind)
        source["id"] = np.arange(vocab)
        source["logit"] = logits.float().numpy()
        work = np.empty(vocab, kind)
        pointer = ctypes.cast(work.ctypes.data, ctypes.POINTER(cpp.llama_token_data))
        chains = [build(chain, history, row, vocab) for row in range(len(logits))]

        def call() -> None:
            for row, sampler in enumerate(chains):
                np.copyto(work, source[row])
                array = cpp.llama_token_data_array(data=pointer, size=vocab, selected=-1, sorted=False)
                cpp.llama_sampler_apply(sampler, ctypes.byref(array))

        def copies() -> None:
            for row in range(len(chains)):
                np.copyto(work, source[row])

        call.uncounted = None if filled else copies  # type: ignore[attr-defined]
        return call

    return {
        "llama.cpp": lambda chain, logits, history: prepared(chain, logits, history, False),
        "llama.cpp + fill": lambda chain, logits, history: prepared(chain, logits, history, True),
    }

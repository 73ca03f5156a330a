"""Whole models, random weights of the real shapes: greedy decoding and encoding, float32 against int8."""

from __future__ import annotations

import copy
import gc
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from int8_timing import in_turn
from torch import nn

from tunesmith_plugins import kernels
from tunesmith_plugins.compressors.fused import fuse
from tunesmith_plugins.compressors.int8_linear import Int8Linear

PROMPT = 32


def _llama(quick: bool) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"num_hidden_layers": 2, "vocab_size": 4000} if quick else {"num_hidden_layers": 12, "vocab_size": 32000}
    return LlamaForCausalLM(
        LlamaConfig(hidden_size=768, intermediate_size=2048, num_attention_heads=12, tie_word_embeddings=False, **size)
    )


def _t5(quick: bool) -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    layers = 2 if quick else 6
    config = T5Config(d_model=512, d_ff=2048, num_layers=layers, num_heads=8, decoder_start_token_id=0)
    config.tie_word_embeddings = False
    return T5ForConditionalGeneration(config)


def _bert(quick: bool) -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(num_hidden_layers=2 if quick else 12))


def _quantize_dynamic(model: nn.Module) -> nn.Module:
    torch.backends.quantized.engine = "x86"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(  # type: ignore[no-any-return]
            copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8
        )


def _int8(model: nn.Module, fused: bool) -> nn.Module:
    small = copy.deepcopy(model)
    for name, layer in list(small.named_modules()):
        if isinstance(layer, nn.Linear):
            small.set_submodule(name, Int8Linear.from_float(layer.weight.detach(), layer.bias))
    if fused:
        fuse(small)
    return small


def _decoding(model: nn.Module, batch: int, new: int) -> Callable[[], Any]:
    ids = torch.randint(5, 1000, (batch, PROMPT), generator=torch.Generator().manual_seed(1))
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new, "min_new_tokens": new, "do_sample": False}
    generate: Any = model.generate
    return lambda: generate(ids, pad_token_id=0, eos_token_id=None, **options)


def _encoding(model: nn.Module, batch: int, time_: int) -> Callable[[], Any]:
    ids = torch.randint(5, 1000, (batch, time_), generator=torch.Generator().manual_seed(1))
    return lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids))


Case = tuple[str, Callable[[bool], nn.Module], Callable[[nn.Module], Callable[[], Any]], float, float | None]


def cases(quick: bool) -> list[Case]:
    """Return name, maker, job, and the goals against float32 and against quantize_dynamic."""
    new = 4 if quick else 24
    size = (4, 32) if quick else (32, 128)
    return [
        ("LLaMA 110M, batch 1", _llama, lambda m: _decoding(m, 1, new), 2.5, 1.3),
        ("LLaMA 110M, batch 8", _llama, lambda m: _decoding(m, 8, new), 3.3, 1.3),
        ("T5-small, batch 1", _t5, lambda m: _decoding(m, 1, new), 2.0, None),
        ("T5-small, batch 8", _t5, lambda m: _decoding(m, 8, new), 2.0, None),
        ("BERT-base, 32 x 128 tokens", _bert, lambda m: _encoding(m, *size), 2.0, None),
    ]


def models(quick: bool, threads: list[int], budget: float, only: str = "") -> dict[str, Any]:
    """Measure every case whose name contains ``only`` on every number of threads, for ``budget`` seconds each."""
    rows, goals = [], []
    shared: dict[Any, dict[str, nn.Module]] = {}
    for name, maker, job, against_float, against_dynamic in cases(quick):
        if only not in name:
            continue
        if maker not in shared:
            shared.clear()
            gc.collect()
            torch.manual_seed(0)
            model = maker(quick).eval().requires_grad_(False)
            shared[maker] = {
                "fp32": model,
                "quantize_dynamic": _quantize_dynamic(model),
                "tunesmith, layers as they are": _int8(model, fused=False),
                "tunesmith": _int8(model, fused=True),
            }
        jobs = {contender: job(model) for contender, model in shared[maker].items()}
        for count in threads:
            torch.set_num_threads(count)
            start = time.perf_counter()
            for call in jobs.values():
                call()
            rounds = max(3, min(20, int(budget / (time.perf_counter() - start))))
            times = in_turn(jobs, rounds)
            mine = times["tunesmith"][0]
            rows.append({"case": name, "threads": count, "rounds": rounds, "times": times})
            words = ", ".join(f"{c} {t[0] * 1e3:.1f} ms ({t[0] / mine:.2f}x)" for c, t in times.items())
            print(f"{name}, threads={count}: {words}", flush=True)
            for rival, least in (("fp32", against_float), ("quantize_dynamic", against_dynamic)):
                if least is not None:
                    value = times[rival][0] / mine
                    goal = f"{name}, {count} thread{'s' if count > 1 else ''}, against {rival}"
                    goals.append({"goal": goal, "value": value, "least": least, "pass": value >= least})
    return {"cases": rows, "goals": goals, "isa": kernels.info()["isa"]}

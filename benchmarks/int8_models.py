"""Whole models, random weights of the real shapes: greedy decoding and encoding, float32 against int8."""

from __future__ import annotations

import copy
import gc
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from int8_ctranslate2 import Converted
from int8_kept import Kept
from int8_timing import in_turn
from torch import nn

from tunesmith_plugins import kernels
from tunesmith_plugins.compressors.experts import is_fused, split
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


def _mixture(quick: bool) -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    size = {"num_hidden_layers": 2, "vocab_size": 4000} if quick else {"num_hidden_layers": 4, "vocab_size": 32000}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 4, "num_local_experts": 8}
    return MixtralForCausalLM(MixtralConfig(hidden_size=768, intermediate_size=2048, **heads, **size))


def _quantize_dynamic(model: nn.Module) -> nn.Module:
    torch.backends.quantized.engine = "x86"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(  # type: ignore[no-any-return]
            copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8
        )


def _int8(model: nn.Module, fused: bool) -> nn.Module:
    small = copy.deepcopy(model)
    split(small, [name for name, module in small.named_modules() if is_fused(module)])
    for name, layer in list(small.named_modules()):
        if isinstance(layer, nn.Linear):
            small.set_submodule(name, Int8Linear.from_float(layer.weight.detach(), layer.bias))
    if fused:
        fuse(small)
    return small


def _torchao(model: nn.Module, weight_only: bool, compiled: bool = False) -> nn.Module:
    from torchao import quantization

    small = copy.deepcopy(model)
    name = "Int8WeightOnlyConfig" if weight_only else "Int8DynamicActivationInt8WeightConfig"
    quantization.quantize_(small, getattr(quantization, name)())
    if compiled:
        small.forward = torch.compile(small.forward, dynamic=True)  # type: ignore[method-assign]
    return small


def _bitsandbytes(model: nn.Module) -> nn.Module:
    from bitsandbytes.nn import Linear8bitLt

    small = copy.deepcopy(model)
    for name, layer in list(small.named_modules()):
        if isinstance(layer, nn.Linear):
            made = Linear8bitLt(
                layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False, threshold=0.0
            )
            made.load_state_dict(layer.state_dict())
            small.set_submodule(name, made)
    return small.to("cpu")  # which is when it quantizes


Job = Callable[[Any, int], Callable[[], Any]]
"""Makes a call of a model (transformers' or a converted one) on a number of threads."""


def _decoding(batch: int, new: int) -> Job:
    ids = torch.randint(5, 1000, (batch, PROMPT), generator=torch.Generator().manual_seed(1))
    length = {"max_new_tokens": new, "min_new_tokens": new}

    def job(model: Any, threads: int) -> Callable[[], Any]:
        if isinstance(model, Converted):
            return model.decoding(ids, new, threads)
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False, **length}
        return lambda: model.generate(ids, pad_token_id=0, eos_token_id=None, **options)

    return job


def _encoding(batch: int, time_: int) -> Job:
    ids = torch.randint(5, 1000, (batch, time_), generator=torch.Generator().manual_seed(1))

    def job(model: Any, threads: int) -> Callable[[], Any]:
        if isinstance(model, Converted):
            return model.encoding(ids, threads)
        return lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids))

    return job


Case = tuple[str, Callable[[bool], nn.Module], Job, float | None, float | None]


def cases(quick: bool) -> list[Case]:
    """Return name, maker, job, and the goals against float32 and against quantize_dynamic."""
    new = 4 if quick else 24
    size = (4, 32) if quick else (32, 128)
    return [
        ("LLaMA 110M, batch 1", _llama, _decoding(1, new), 2.5, 1.3),
        ("LLaMA 110M, batch 8", _llama, _decoding(8, new), 3.3, 1.3),
        ("T5-small, batch 1", _t5, _decoding(1, new), 2.0, None),
        ("T5-small, batch 8", _t5, _decoding(8, new), 2.0, None),
        ("BERT-base, 32 x 128 tokens", _bert, _encoding(*size), 2.0, None),
        ("Mixtral of 2 of 8 experts, batch 1", _mixture, _decoding(1, new), None, None),
        ("Mixtral of 2 of 8 experts, batch 8", _mixture, _decoding(8, new), None, None),
    ]


def contenders(model: nn.Module, compiled: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what ``model`` is measured as, and of what cannot be made here why not; ``compiled`` takes in torchao compiled."""
    makers: dict[str, Callable[[], Any]] = {
        "fp32": lambda: model,
        "bf16": lambda: copy.deepcopy(model).to(torch.bfloat16),
        "quantize_dynamic": lambda: _quantize_dynamic(model),
        "torchao dynamic": lambda: _torchao(model, False),
        "torchao weight-only": lambda: _torchao(model, True),
        "bitsandbytes": lambda: _bitsandbytes(model),
        "CTranslate2 int8": lambda: Converted(model),
        **(
            {
                "torchao dynamic compiled": lambda: _torchao(model, False, True),
                "torchao weight-only compiled": lambda: _torchao(model, True, True),
            }
            if compiled
            else {}
        ),
        "tunesmith, layers as they are": lambda: _int8(model, fused=False),
        "tunesmith": lambda: _int8(model, fused=True),
    }
    ready, absent = {}, {}
    for name, make in makers.items():
        try:
            ready[name] = make()
        except ImportError:
            absent[name] = "not installed"
        except Exception as error:  # a contender that cannot take the model is named, and the others go on
            absent[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
    return ready, absent


def _jobs(ready: dict[str, Any], job: Job, count: int, absent: dict[str, str]) -> dict[str, Callable[[], Any]]:
    """Return a call of every contender that has been called once."""
    jobs = {}
    for name, model in ready.items():
        try:
            call = job(model, count)
            call()
            jobs[name] = call
        except Exception as error:
            absent[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"
    return jobs


def models(
    quick: bool, compiled: bool, threads: list[int], budget: float, only: str, kept: Kept, calls: int = 0
) -> dict[str, Any]:
    """Measure every case whose name contains ``only`` on every number of threads, for ``budget`` seconds each but ``calls``
    times at least; what ``kept`` has of so many is not measured again."""
    goals: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    shared: dict[Any, dict[str, Any]] = {}
    cells = 0
    for name, maker, job, against_float, against_dynamic in cases(quick):
        if only not in name:
            continue
        for count in threads:
            key = (
                "models",
                name + (", quick" if quick else "") + (", compiled" if compiled else ""),
                f"threads={count}",
            )
            row = kept.get(*key, rounds=calls)
            if row is None and kept.over:
                continue
            if row is None:
                torch.set_num_threads(count)
                if maker not in shared:
                    shared.clear()
                    gc.collect()
                    torch.manual_seed(0)
                    shared[maker], missing = contenders(maker(quick).eval().requires_grad_(False), compiled)
                    absent.update(missing)
                jobs = _jobs(shared[maker], job, count, absent)
                start = time.perf_counter()
                for call in jobs.values():
                    call()
                rounds = max(calls or 3, min(20, int(budget / (time.perf_counter() - start))))
                row = {"case": name, "threads": count, "rounds": rounds, "times": in_turn(jobs, rounds)}
                kept.put(row, *key)
            cells += 1
            times = row["times"]
            mine = times["tunesmith"][0]
            words = ", ".join(f"{c} {t[0] * 1e3:.1f} ms ({t[0] / mine:.2f}x)" for c, t in times.items())
            print(f"{name}, threads={count}, {row['rounds']} calls: {words}", flush=True)
            for rival, least in (("fp32", against_float), ("quantize_dynamic", against_dynamic)):
                if least is not None:
                    value = times[rival][0] / mine
                    goal = f"{name}, {count} thread{'s' if count > 1 else ''}, against {rival}"
                    goals.append({"goal": goal, "value": value, "least": least, "pass": value >= least})
    return {"cells": cells, "absent": absent, "goals": goals, "isa": kernels.info()["isa"]}

"""The quick way: the call of the library that reads tensors itself, where everything is as usual."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import loader
from .results import SampleResult
from .steps import Plan


def quick_sample(
    plan: Plan,
    logits: Tensor,
    seed: Tensor | None,
    stream: Tensor | None,
    position: Tensor | None,
    history: Tensor | None,
    history_lengths: Tensor | None,
    greedy: bool,
    logp_raw: bool,
    logp_processed: bool,
    logp_truncated: bool,
) -> SampleResult | None:
    """Do what :func:`sample_chain` does where everything is as usual, without its checks.

    Returns:
        None, and nothing done, for anything that the library cannot read as it is (another device or dtype, ids that are
        not dense, a subclass, an empty batch, a dispatch mode, a compiler at work): call :func:`sample_chain` then.

    Raises:
        ValueError: a parameter is out of range; the message names the step and row.
    """
    if _compiling():
        return None
    found: SampleResult | None = _sample(
        plan.address, logits, seed, stream, position, history, history_lengths, greedy, 0,
        logp_raw, logp_processed, logp_truncated, SampleResult,
    )  # fmt: skip
    return found


def _first_sample(*arguments: Any) -> Any:
    """Stand in for the quick call until something is drawn; None where there is none."""
    global _sample
    calls = set_up_calls()
    if calls is None or calls.sample is None:
        return None
    _sample = calls.sample
    return _sample(*arguments)


def set_up_calls() -> loader.WordsCall | None:
    """Return the calls of the library that read tensors themselves, ready for use; None where there are none."""
    library = loader.cpu()
    calls = None if library is None else loader.words_call()
    if library is None or calls is None or calls.setup is None:
        return None
    calls.setup(
        Tensor, torch.nn.Parameter, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.get_num_threads,
        vars(torch.utils._python_dispatch), torch._C._len_torch_dispatch_stack, torch._C._are_functorch_transforms_active,
        torch.is_grad_enabled, torch.empty, library.check, torch.is_inference_mode_enabled,
        getattr(Tensor, "__dlpack_c_exchange_api__", None),
        library.address("ts_sample_words"), library.address("ts_int8_linears_words"), library.address("ts_warm_code"),
        library.address("ts_int8_warm_code"), library.address("ts_float_attention_words"),
    )  # fmt: skip
    return calls


def _forget_sample() -> None:
    global _sample
    _sample = _first_sample


_sample: Any = _first_sample
loader.when_chosen(_forget_sample)
_compiling = torch.compiler.is_dynamo_compiling  # export without dynamo hands in fake tensors, which are never quick

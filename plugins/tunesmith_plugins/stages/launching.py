"""The options of ``accelerate launch`` that a pipeline may give, and which of them decide the result.

Only names in these lists get through: among accelerate's others are some that run any command (``--no_python``), start programs
on other machines, or read files of their own, and loading a pipeline's file must not let it do that.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import Attribute

SWITCHES = frozenset({"enable_cpu_affinity", "multi_gpu", "quiet", "use_deepspeed", "use_fsdp"})
"""Those without a value."""
_NUMBER, _FLAG, _NAMES = r"[0-9]+", r"(?i:true|false)", r"[A-Za-z0-9_][A-Za-z0-9_.,]*"
VALUES: Mapping[str, str] = {
    "deepspeed_moe_layer_cls_names": _NAMES,
    "dynamo_backend": "no",
    "fsdp_activation_checkpointing": _FLAG,
    "fsdp_activation_checkpointing_offload": _FLAG,
    "fsdp_auto_wrap_policy": _NAMES,
    "fsdp_backward_prefetch": _NAMES,
    "fsdp_cpu_ram_efficient_loading": _FLAG,
    "fsdp_forward_prefetch": _FLAG,
    "fsdp_min_num_params": _NUMBER,
    "fsdp_offload_params": _FLAG,
    "fsdp_reshard_after_forward": _NAMES,
    "fsdp_sharding_strategy": _NAMES,
    "fsdp_state_dict_type": _NAMES,
    "fsdp_sync_module_states": _FLAG,
    "fsdp_transformer_layer_cls_to_wrap": _NAMES,
    "fsdp_use_orig_params": _FLAG,
    "fsdp_version": "1|2",
    "gpu_ids": _NAMES,
    "main_process_port": _NUMBER,
    "mixed_precision": "no|fp16|bf16",
    "num_cpu_threads_per_process": _NUMBER,
    "num_machines": "1",
    "num_processes": r"[1-9][0-9]*",
    "offload_optimizer_device": "none|cpu",
    "offload_param_device": "none|cpu",
    "zero3_init_flag": _FLAG,
    "zero3_save_16bit_model": _FLAG,
    "zero_stage": "[0-3]",
}
"""Those with one, each with what it has to look like."""
_NOT_THE_RESULT = frozenset(
    {"enable_cpu_affinity", "gpu_ids", "main_process_port", "num_cpu_threads_per_process", "num_machines", "quiet"}
)
_DEFAULTS = {"dynamo_backend": "no", "main_process_port": "0", "mixed_precision": "no", "num_machines": "1"}
"""Given where the user does not, so that nothing is left to accelerate's own file in a user's home."""


def options(given: Sequence[str]) -> dict[str, str]:
    """Return the options by name, with ``""`` as the value of those that have none.

    Args:
        given: As on a command line: ``--name value`` or ``--name=value``, with ``-`` or ``_`` in the names.

    Raises:
        ValueError: For what is not allowed, stands there twice, or has a wrong value; and if it is not said how many processes.
    """
    found: dict[str, str] = {}
    words = list(given)
    while words:
        word = words.pop(0)
        written, joined, value = word.partition("=")
        name = written.removeprefix("--").replace("-", "_")
        if not written.startswith("--") or name not in {*SWITCHES, *VALUES}:
            raise ValueError(_refusal(word, name))
        if name in found:
            raise ValueError(f"'launch' has {written} twice")
        if name in VALUES:
            value = value if joined else words.pop(0) if words else ""
            if not re.fullmatch(VALUES[name], value):
                raise ValueError(f"'launch' has {value!r} for {written}, and it has to be {_described(name)}")
        elif joined:
            raise ValueError(f"'launch' has {word}, and {written} takes no value")
        found[name] = value
    if found and "num_processes" not in found:
        raise ValueError(
            "'launch' does not say how many processes, which decides the result; add '--num_processes', '2'"
        )
    return found


def check(_: Any, attribute: Attribute[Any], value: Sequence[str]) -> None:
    """Validate a config's field; see :func:`options`."""
    options(value)


def deciding(given: Sequence[str]) -> dict[str, str]:
    """Return the options on which the result depends, with the defaults of those not given: no ports, threads or devices."""
    return {name: value for name, value in sorted(_complete(given).items()) if name not in _NOT_THE_RESULT}


def arguments(given: Sequence[str]) -> list[str]:
    """Return what ``accelerate launch`` is given: each option is one word, so that no value can pass for a program."""
    return [f"--{name}={value}" if value else f"--{name}" for name, value in _complete(given).items()]


def _complete(given: Sequence[str]) -> dict[str, str]:
    found = options(given)
    if int(found["num_processes"]) > 1 and not {"multi_gpu", "use_deepspeed", "use_fsdp"} & found.keys():
        found["multi_gpu"] = ""
    return {**_DEFAULTS, **found}


def _refusal(word: str, name: str) -> str:
    close = difflib.get_close_matches(name, [*SWITCHES, *VALUES], n=1)
    hint = f" Did you mean --{close[0]}?" if close else ""
    return (
        f"'launch' has {word!r}, which a pipeline may not give: only options for processes of this machine, FSDP and DeepSpeed, "
        f"and no program, module, configuration file or other machine.{hint} Write a configuration file's settings as options"
    )


def _described(name: str) -> str:
    pattern = VALUES[name]
    known = {
        _NUMBER: "a number",
        VALUES["num_processes"]: "a number from 1",
        _FLAG: "true or false",
        _NAMES: "a name or names with commas between them",
    }
    return known.get(pattern, pattern.strip("[]").replace("|", " or ").replace("-", " to "))

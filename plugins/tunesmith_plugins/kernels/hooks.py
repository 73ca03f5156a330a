"""What the native part says in ``tunesmith doctor``."""

from __future__ import annotations

from tunesmith.hooks import hookimpl


@hookimpl
def tunesmith_doctor() -> list[str]:
    """Return which libraries are there, which instruction set is used, and why something is not."""
    from tunesmith_plugins.kernels import loader

    try:
        found = loader.info()
    except RuntimeError as error:
        return [f"kernels: {error}"]
    if found["native"]:
        sets = ", ".join(found["isa_available"])
        lines = [f"kernels: native library {found['path']}", f"kernels: instruction set {found['isa']} of {sets}"]
    else:
        lines = [
            f"kernels: no native library, torch references serve: {found['reason']}; docs/kernels.md says how to build it"
        ]
    if found["cuda"]:
        return [*lines, f"kernels: CUDA library {found['cuda_path']}"]
    return [*lines, f"kernels: no CUDA library: {found['cuda_reason']}"]

"""Find a task of lm_eval and let it build its requests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import CodeNotAllowed, ConfigError, DataError

if TYPE_CHECKING:
    from tunesmith.runtime import Runtime


def load(name: str, folder: str, shots: int, seed: int, runtime: Runtime) -> Any:
    """Return a task of lm_eval with its requests built.

    Args:
        name: The task.
        folder: Task files of the user's own, or "".
        shots: In-context examples; -1 means the task's own number.
        seed: Their seed.
        runtime: Says whether task files may run code.

    Raises:
        CodeNotAllowed: If a task file names Python functions and the runtime does not allow code.
        ConfigError: If there is no such task, or it is a group.
        DataError: If its data cannot be loaded.
    """
    from lm_eval.tasks import TaskManager

    if folder and not Path(folder).is_dir():
        raise ConfigError([f"there is no folder {folder!r} of task files"], "lm_eval task")
    refuse_code(folder, runtime)
    manager = TaskManager(include_path=folder or None, include_defaults=not folder)
    if name not in manager.all_subtasks:
        known = ", ".join(manager.all_subtasks[:8]) or "none"
        raise ConfigError([f"lm_eval has no single task {name!r} there; tasks: {known}"], "lm_eval task")
    try:
        (task,) = manager.load([name])["tasks"].values()
    except (OSError, ValueError, ConnectionError) as cause:
        raise DataError(f"the data of lm_eval's task {name!r} cannot be loaded: {cause}.") from cause
    if shots >= 0:
        task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=seed)
    task.build_all_requests()
    return task


def refuse_code(folder: str, runtime: Runtime) -> None:
    """Raise if a task file of the folder names functions, since reading it would import them.

    Raises:
        CodeNotAllowed: Naming the file, unless the runtime allows code.
    """
    if not folder or runtime.allow_code:
        return
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix in (".yaml", ".yml") and "!function" in path.read_text(encoding="utf-8"):
            raise CodeNotAllowed(
                f"{path} names Python functions that lm_eval would run. Pass allow_code=True to the runtime "
                "(--allow-code on the command line) if you trust them."
            )

"""Running a pipeline: stage by stage, each result whole in its place before the next stage begins."""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import hooks
from tunesmith.errors import CodeNotAllowed, PipelineError, PluginError
from tunesmith.kinds.stage import StageContext
from tunesmith.pipeline import quiet
from tunesmith.pipeline.faults import explain
from tunesmith.pipeline.graph import BASE, Node, Ref
from tunesmith.pipeline.identity import named_path
from tunesmith.pipeline.journal import Journal
from tunesmith.pipeline.missing import missing_data
from tunesmith.pipeline.plan import Locator, Step
from tunesmith.pipeline.run import Run
from tunesmith.pipeline.store import Store, now
from tunesmith.pipeline.walk import with_folders
from tunesmith.processes import world_size
from tunesmith.runtime import Runtime

if TYPE_CHECKING:
    from tunesmith.pipeline.value import Pipeline


def execute(
    pipeline: Pipeline,
    folder: Path,
    *,
    device: str,
    threads: int,
    allow_code: bool,
    offline: bool | None,
    progress: bool,
) -> Run:
    """Run a pipeline; see :meth:`Pipeline.run`."""
    _check_alone()
    runtime = Runtime(
        device=device,
        dtype=pipeline.dtype,
        threads=threads,
        allow_code=allow_code,
        offline=Runtime().offline if offline is None else offline,
        progress=progress,
    )
    store = Store(folder)
    with store.locked():
        executor = _Executor(pipeline, store, runtime)
        executor.check()
        try:
            settings = {"device": device, "threads": threads, "offline": runtime.offline, "allow_code": allow_code}
            journal = Journal(store, pipeline, settings, progress)
            with journal.logging(), quiet.bars(progress and sys.stderr.isatty()):
                executor.run_or_say(journal)
        except OSError as error:  # of the stages themselves is taken care of already
            raise PipelineError(f"the run in {store.folder} stopped: {explain(error, store.folder)}") from error
    return Run.open(folder)


def _check_alone() -> None:
    """Refuse to be one of several processes: all would want the run folder, and only one can have it.

    Raises:
        PipelineError: Saying what to do instead.
    """
    processes = world_size()
    if processes > 1:
        raise PipelineError(
            f"a pipeline runs in one process, and a launcher (accelerate launch, torchrun) has started {processes}. Start it "
            "without the launcher, and let FineTune start the processes that train: launch=('--multi_gpu', '--num_processes', "
            f"'{processes}') are options of accelerate launch. Or spread one model over several devices with device_map='auto' (in "
            "FineTune's arguments), and for larger batches set gradient_accumulation_steps there."
        )


class _Executor:
    def __init__(self, pipeline: Pipeline, store: Store, runtime: Runtime) -> None:
        self.pipeline = pipeline
        self.store = store
        self.runtime = runtime
        self.locator = Locator(pipeline, store, runtime.device, runtime.offline)
        self.keys: dict[str, str] = {}
        self.told = False

    def check(self) -> None:
        """Refuse before anything has run, not after hours, what can be seen to be wrong now.

        Raises:
            CodeNotAllowed: If a stage would run code that was not allowed.
            PipelineError: If data of stages are not there and no earlier stage can bring them.
        """
        locator = Locator(self.pipeline, self.store, self.runtime.device, self.runtime.offline)
        steps = [(node, locator.step(node, hashes=False)[0]) for node in self.pipeline.nodes]
        waiting = [(node, step) for node, step in steps if step.status != "done"]
        named = [f"{', '.join(step.code)} in stage {step.name!r}" for _, step in waiting if step.code]
        if named and not self.runtime.allow_code:
            raise CodeNotAllowed(
                f"the pipeline runs Python code that its configuration names: {'; '.join(named)}. "
                "If you trust that code, pass allow_code=True, or --allow-code on the command line."
            )
        problems = missing_data([node for node, _ in waiting])
        if problems:
            raise PipelineError("nothing was run: " + "\n".join(problems))

    def run_or_say(self, journal: Journal) -> None:
        """Run what has to be run; an interruption between two stages is told as one within a stage is."""
        try:
            self.run(journal)
        except KeyboardInterrupt:
            if not self.told:
                journal.close("interrupted")
                journal.say(f"Interrupted. {self._go_on()}")
            raise

    def _go_on(self) -> str:
        return f"Everything finished is kept in {self.store.folder}; run the same again to go on from there."

    def run(self, journal: Journal) -> None:
        """Run what has to be run."""
        count = len(self.pipeline.nodes)
        for index, node in enumerate(self.pipeline.nodes, 1):
            head = f"[{index}/{count}] {node.name}"
            step, identity = self.locator.step(node, hashes=True)
            if step.key is None or identity is None:
                raise AssertionError(
                    f"{node.name}: an earlier stage left no result"
                )  # each one raises or makes its own
            self.keys[node.name] = step.key
            if step.status == "done":
                self.store.clean(step.key)
                self._warn_of_versions(node, step.key, journal)
                journal.say(f"{head}: done before, reused{self._restored(node, identity)}")
                journal.stage(node.name, step.key, "done")
                continue
            if self.store.stage(step.key).exists():
                where = self.store.set_aside(step.key)
                journal.say(f"{head}: {step.why}. It is made anew; the old files are in {where}.", warning=True)
            journal.say(f"{head}: {'goes on' if step.status == 'resume' else 'runs'} ({step.why})")
            journal.stage(node.name, step.key, "running")
            result = self._run_stage(node, step, identity, journal)
            self.locator.known(node, result)
            journal.stage(node.name, step.key, "done")
            journal.say(f"{head}: finished in {result['seconds']:.1f} s")
        journal.close("finished")

    def _run_stage(self, node: Node, step: Step, identity: Mapping[str, Any], journal: Journal) -> dict[str, Any]:
        from tunesmith import spec
        from tunesmith.registry import version_of

        key = self.keys[node.name]
        work, out = self.store.begin(key)
        context = self._context(node, identity, work, out)
        begun, started = time.perf_counter(), now()
        try:
            hooks.stage_started(node.config, context)
            with context.runtime.activated():
                stage = with_folders(node.config, context.inputs).build()
                summary = _plain(stage.run(context), node.name)
            seconds = time.perf_counter() - begun
            hooks.stage_finished(node.config, context, summary)
            record = {
                "name": node.name,
                "use": step.use,
                "version": version_of(step.use),
                "config": spec.dump(node.config)["config"],
                "identity": identity,
                "seed": identity["seed"],
                "device": self.runtime.device,
                "threads": self.runtime.threads,
                "versions": journal.versions(node),
                "started": started,
                "finished": now(),
                "seconds": seconds,
                "resumed": step.status == "resume",
                "summary": summary,
            }
            self.store.finish(key, node.config.produces, record)
        except BaseException as error:
            self._failed(node, context, error, journal)
            raise
        finally:
            _free_memory()
        return self.store.result(key)

    def _restored(self, node: Node, identity: Mapping[str, Any]) -> str:
        """Let a reused stage make again what is gone outside the run folder; return what to say of it."""
        gone = [path for path in node.config.outside() if named_path(path) is None]
        if not gone:
            return ""
        stage = self.store.stage(self.keys[node.name])
        context = self._context(node, identity, stage, stage)
        try:
            with context.runtime.activated():
                with_folders(node.config, context.inputs).build().restore(context)
        except Exception as error:
            raise PipelineError(
                f"stage {node.name!r} was done before, and what is gone could not be made again: "
                f"{explain(error, self.store.folder)}"
            ) from error
        return f"; made again: {', '.join(gone)}"

    def _failed(self, node: Node, context: StageContext, error: BaseException, journal: Journal) -> None:
        """Record a failure, tell the plugins, and raise what the caller is to see; an interruption goes through."""
        stopped = isinstance(error, KeyboardInterrupt)
        with suppress(OSError):  # the disk may be full
            journal.stage(node.name, self.keys[node.name], "interrupted" if stopped else "failed")
            journal.close("interrupted" if stopped else "failed")
        besides = ""
        try:
            hooks.stage_failed(node.config, context, error)
        except PluginError as other:  # must not hide what the stage failed of
            besides = f"Besides, {other}\n"
        if stopped:
            self.told = True
            if besides:
                journal.say(besides.rstrip(), warning=True)
            journal.say(f"Interrupted in stage {node.name!r}. {self._go_on()}")
        elif isinstance(error, Exception):
            from tunesmith.pipeline.journal import log

            with suppress(OSError):
                log.error("stage %s failed", node.name, exc_info=error)
            raise PipelineError(
                f"stage {node.name!r} failed: {explain(error, self.store.folder)}\n"
                f"{besides}"
                f"What was finished is kept in {self.store.folder}, the details are in its log.txt; "
                "when the cause is removed, run the same again to go on from there."
            ) from error

    def _context(self, node: Node, identity: Mapping[str, Any], work: Path, out: Path) -> StageContext:
        inputs = {path: self._folder(ref) for path, ref in node.inputs.items()}
        start: str | None = None
        if isinstance(node.start, Ref):
            start = str(self._folder(node.start))
        elif node.start is not None:
            named = self.pipeline.base if node.start == BASE else node.start
            local = named_path(named)
            start = named if local is None else str(local.absolute())
        return StageContext(
            name=node.name,
            start=start,
            data=with_folders(node.data, inputs, "data"),
            inputs=inputs,
            folder=work,
            out=out,
            runtime=self.runtime.evolve(seed=identity["seed"], folder=work),
        )

    def _folder(self, ref: Ref) -> Path:
        return self.store.artifact(self.keys[ref.stage], ref.artifact)

    def _warn_of_versions(self, node: Node, key: str, journal: Journal) -> None:
        made, here = self.store.result(key)["versions"], journal.versions(node)
        other = [f"{name} {made[name]} (now {here[name]})" for name in made if here.get(name, made[name]) != made[name]]
        if other:
            journal.say(f"{node.name}: its stored result was made with {', '.join(other)}", warning=True)


def _plain(summary: Any, stage: str) -> dict[str, Any]:
    """Return a stage's summary as it will be read back.

    Raises:
        PipelineError: If it is no dict that JSON can hold, NaN and infinity included.
    """
    try:
        if not isinstance(summary, dict):
            raise TypeError(f"it is a {type(summary).__name__}")
        found: dict[str, Any] = json.loads(json.dumps(summary, allow_nan=False))
    except (TypeError, ValueError) as cause:
        raise PipelineError(
            f"the summary that stage {stage!r} returned is not a dict of plain finite values: {cause}."
        ) from cause
    return found


def _free_memory() -> None:
    """Let go of the stage's model before the next one is loaded."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()

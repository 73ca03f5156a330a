"""The pipeline as a value: frozen, comparable, saved as JSON or TOML, checked when it is made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attrs import frozen

from tunesmith.data.config import Data
from tunesmith.errors import ConfigError
from tunesmith.kinds.stage import Output, StageConfig
from tunesmith.pipeline.graph import Node, resolve
from tunesmith.typecheck import Checked

if TYPE_CHECKING:
    from tunesmith.pipeline.plan import Plan
    from tunesmith.pipeline.run import Run


def output(stage: str, artifact: str = "model") -> Output:
    """Refer to an artifact that an earlier stage makes.

    Of a Compare, ``output("compare", "branch")`` is a branch's model.

    Args:
        stage: Name of the stage.
        artifact: Name of the artifact, as in the stage's ``produces``.
    """
    return Output(stage=stage, artifact=artifact)


@frozen(kw_only=True)
class _Fields(Checked):
    """The fields of a pipeline, not yet checked against each other, so that a file's problems are all found at once."""

    kind: ClassVar[str] = "pipeline"  # how messages call it

    base: str = ""
    data: Data | None = None
    seed: int = 0
    dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = "float32"
    stages: tuple[StageConfig, ...]


@frozen(kw_only=True)
class Pipeline(_Fields):
    """Stages over a base model and data.

    Building one imports no torch and reads no file. Relative paths are relative to the folder in which it is run.

    Attributes:
        base: Folder or hub name of the model to begin from; "" if no stage needs one.
        data: The data of every stage that has none of its own.
        seed: All randomness follows from it: a stage's seed is derived from this one and the stage's name.
        dtype: Floating-point type of the weights while they are used.
        stages: In the order in which they run.

    Raises:
        ConfigError: If stages and references do not fit together; all problems at once.
    """

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        _, problems = resolve(self.stages, self.base, self.data)
        if problems:
            raise ConfigError(problems, "pipeline")

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Every stage, the parts of expanding stages included, in the order in which they run."""
        return resolve(self.stages, self.base, self.data)[0]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Pipeline:
        """Return the pipeline in a ``.json`` or ``.toml`` file.

        Raises:
            ConfigError: If the file or the pipeline is wrong; all problems at once.
        """
        from tunesmith import spec

        fields = spec.read(path, _Fields)
        try:
            return cls(base=fields.base, data=fields.data, seed=fields.seed, dtype=fields.dtype, stages=fields.stages)
        except ConfigError as error:
            raise ConfigError(error.problems, str(path)) from None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it to a ``.json`` or ``.toml`` file and return the path; :meth:`load` gives an equal pipeline.

        Raises:
            UnknownName: If a component is not registered.
        """
        from tunesmith import spec

        spec.write(self, path)
        return Path(os.path.expanduser(path))

    def dump(self) -> dict[str, Any]:
        """Return it as plain data, as :meth:`save` writes it."""
        from tunesmith import spec

        return spec.dump(self)

    def plan(self, folder: str | os.PathLike[str], *, device: str = "cpu", offline: bool | None = None) -> Plan:
        """Return what :meth:`run` would do in this folder, and why. Changes nothing.

        Args:
            folder: The run folder; need not exist.
            device: As for :meth:`run`; a result belongs to the type of device.
            offline: Ask no hub which commit a name stands for; None: as the environment says (``HF_HUB_OFFLINE``).
        """
        from tunesmith.pipeline.plan import make

        return make(self, Path(folder), device=device, offline=offline)

    def run(
        self,
        folder: str | os.PathLike[str],
        *,
        device: str = "cpu",
        threads: int = 0,
        allow_code: bool = False,
        offline: bool | None = None,
        progress: bool = True,
    ) -> Run:
        """Run every stage whose result is not in the folder yet, and return the run.

        A stage that was interrupted goes on from its last checkpoint. Finished results are checked and reused.

        Args:
            folder: The run folder; made if it is not there.
            device: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` ...
            threads: torch's intra-op threads; 0 leaves torch's own choice.
            allow_code: Components may run Python code that their configuration names.
            offline: Ask no hub for anything; None: as the environment says (``HF_HUB_OFFLINE``).
            progress: Say on standard error what is going on.

        Raises:
            PipelineError: If a stage failed or the folder cannot be written; what was finished stays.
            RunLocked: If another process works in the folder.
            CodeNotAllowed: If a component would run code and ``allow_code`` is False; nothing has been run then.
        """
        from tunesmith.pipeline.execute import execute

        return execute(
            self,
            Path(folder),
            device=device,
            threads=threads,
            allow_code=allow_code,
            offline=offline,
            progress=progress,
        )

    def _repr_html_(self) -> str:
        from tunesmith.report.notebook import pipeline_html

        return pipeline_html(self)

"""Stage: one step of a pipeline, from artifacts to artifacts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, frozen, validators

from tunesmith.component import Component, Config

if TYPE_CHECKING:
    from tunesmith.data.config import Data
    from tunesmith.runtime import Runtime

ARTIFACT_KINDS = (
    "adapter",
    "dataset",
    "generations",
    "model",
    "preferences",
    "report",
    "reward_model",
    "scores",
    "tokenizer",
)
"""Kinds of artifact. Each is a folder with a ``manifest.json``."""


@frozen(kw_only=True)
class Output:
    """A reference to an artifact that an earlier stage makes. Write ``tunesmith.output("stage", "artifact")``.

    Of a Compare: ``output("compare", "branch")`` is that branch's model.

    Attributes:
        stage: Name of the stage.
        artifact: Name of the artifact, as in the stage's ``produces``; of a Compare also the name of a branch.
    """

    stage: str
    artifact: str = "model"


@frozen(kw_only=True)
class StageConfig(Config):
    """Base of every stage's config.

    Attributes:
        name: Unique in the pipeline; letters, digits, ``-``, ``_`` and ``.``. A branch of a Compare needs none.
        start: The model this stage begins from: ``"previous"`` (of the nearest earlier stage that makes one), ``"base"``, an
            output, or a folder or hub name with a slash in it: a model of the stage's own.
        produces: Names of the artifacts the stage makes, each with its kind: ``{"model": "model"}``.
        uses_model: False for a stage that needs no model to begin from.
        uses_data: False for a stage that never looks at ``StageContext.data``; a change of the pipeline's data then does not
            make it run again.
    """

    kind: ClassVar[str] = "stage"
    produces: ClassVar[Mapping[str, str]] = {}
    uses_model: ClassVar[bool] = True
    uses_data: ClassVar[bool] = True

    name: str = field(default="", validator=validators.matches_re(r"[A-Za-z0-9_.-]*"))
    start: str | Output = "previous"

    def needs_data(self) -> bool:
        """Tell whether the stage cannot run without data; that there is none is then found when the pipeline is made."""
        return False

    def outside(self) -> tuple[str, ...]:
        """Return the files or folders that the stage also makes outside the run folder.

        Where its stored result is reused and one of them is gone, :meth:`Stage.restore` is asked to make it again.
        """
        return ()

    def expand(self) -> tuple[StageConfig, ...]:
        """Return the stages that this one consists of, to be run before it with names ``"<name>/<their name>"``.

        Most stages consist of none. The stage itself then finds their artifacts in ``StageContext.inputs`` under
        ``"<their name>/<artifact>"``. ``"previous"`` means in each of them what it means for this stage; one that goes on from
        another part starts from ``Output(stage=f"{self.name}/<its name>")``.
        """
        return ()


@frozen(kw_only=True, eq=False)
class StageContext:
    """What a stage is given.

    Attributes:
        name: Its full name, e.g. ``"tuned/lora"``.
        start: Folder or hub name of the model to begin from (``tunesmith.load`` reads it); None if the stage uses none.
        data: The stage's own data, or else the pipeline's; None if it uses none. A source that is an ``Output`` has become the
            path of that artifact's folder.
        inputs: Field name (``"reward"``; for nested fields the dotted path) to the folder of the artifact that an ``Output``
            in that field stands for; for a stage that expands, also ``"<sub-stage>/<artifact>"``.
        folder: Working folder that survives an interruption (checkpoints); not part of the result.
        out: Folder of the result; :meth:`artifact` makes one artifact's folder in it.
        runtime: Device, seed, and ``runtime.folder`` equal to ``folder``.
    """

    name: str
    start: str | None
    data: Data | None
    inputs: Mapping[str, Path]
    folder: Path
    out: Path
    runtime: Runtime

    def artifact(self, name: str) -> Path:
        """Return the (made) folder into which the artifact ``name`` is written."""
        folder = self.out / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder


class Stage(Component[Any]):
    """Do one step: read inputs, write artifacts, return a summary."""

    @abstractmethod
    def run(self, context: StageContext) -> dict[str, Any]:
        """Write every artifact that the config's ``produces`` names and return a short JSON-able summary for reports.

        Called again after an interruption with the same ``context.folder``, it resumes from there.
        """

    def restore(self, context: StageContext) -> None:
        """Make again what ``config.outside()`` names, from the stored artifacts, which :meth:`StageContext.artifact` gives.

        Called instead of :meth:`run` where the result is reused and something outside the run folder is gone. The
        artifacts must be left as they are.
        """
        raise NotImplementedError(f"{type(self).__name__} names things outside the run folder and cannot restore them")

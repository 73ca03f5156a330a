"""Compressor: a model to a smaller model that saves and loads in the Hugging Face format."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import field, frozen

from tunesmith.component import Component, Config

if TYPE_CHECKING:
    from tunesmith.data.records import Example
    from tunesmith.lm import LM
    from tunesmith.report.content import Series
    from tunesmith.runtime import Runtime


@frozen(kw_only=True)
class CompressorConfig(Config):
    """Base of every compressor's config."""

    kind: ClassVar[str] = "compressor"


@frozen(kw_only=True, eq=False)
class CompressionReport:
    """What became smaller.

    Attributes:
        parameters: Before and after, counting each shared tensor once and none that is zero
            (``LM.parameter_count(nonzero=True)``).
        bytes: Size of the weights as saved on disk, before and after.
        layers: One mapping per layer that was changed (``"name"`` and numbers such as ``"sqnr_db"``), where it means something.
        summary: Anything else worth a line.
        series: Curves worth a plot, such as noise over the layers; the stage's report draws them.
    """

    parameters: tuple[int, int]
    bytes: tuple[int, int]
    layers: list[dict[str, Any]] = field(factory=list)
    summary: dict[str, Any] = field(factory=dict)
    series: tuple[Series, ...] = ()

    def __str__(self) -> str:
        before, after = self.bytes
        return f"{after / 1e6:,.2f} MB of weights instead of {before / 1e6:,.2f} MB ({after / before:.1%})"


class Compressor(Component[Any]):
    """Make a model smaller."""

    needs_data: ClassVar[bool] = False
    """True if ``compress`` cannot work without ``data``."""
    uses_teacher: ClassVar[bool] = True
    """False if a teacher would change nothing: then one is refused before anything is loaded."""

    @abstractmethod
    def compress(
        self, lm: LM, *, data: Sequence[Example] | None = None, teacher: LM | None = None, runtime: Runtime
    ) -> tuple[LM, CompressionReport]:
        """Return a smaller model; ``lm`` must not be used afterwards.

        Args:
            lm: The model to make smaller and by default its own teacher; when it already is the student, ``teacher`` is the
                larger model.
            data: Calibration or training examples.
            teacher: See ``lm``.
            runtime: Checkpoints of long work go to its folder.
        """

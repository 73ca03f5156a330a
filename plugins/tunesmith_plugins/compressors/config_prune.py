"""Configs of pruners that set single weights to zero."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

from attrs import Attribute, field, frozen
from attrs import validators as v

from tunesmith.kinds.compressor import CompressorConfig

IMPLEMENTATIONS = "tunesmith_plugins.compressors"


def is_pattern(_: Any, attribute: Attribute[Any], value: str) -> None:
    """Accept "" and n:m with 0 < n < m."""
    if value and not (re.fullmatch(r"[1-9]\d*:[1-9]\d*", value) and 0 < numbers(value)[0] < numbers(value)[1]):
        raise ValueError(
            f'\'{attribute.name}\' must be "" or n:m with n < m, such as "2:4" (2 of every 4 stay), not {value!r}'
        )


def numbers(pattern: str) -> tuple[int, int]:
    """Return n and m of ``"n:m"``."""
    kept, group = pattern.split(":")
    return int(kept), int(group)


@frozen(kw_only=True)
class Unstructured(CompressorConfig):
    """What every pruner of single weights is told.

    Attributes:
        sparsity: Share of the weights that become zero; with a pattern leave it out.
        pattern: ``"n:m"``: of every m weights in a row that meet consecutive inputs, n stay, e.g. ``"2:4"``; the share is then
            1 - n/m. ``""``: no pattern.
        skip: Layers whose name ends with, or contains as whole dotted parts, one of these stay as they are, e.g.
            ``"lm_head"`` or ``"decoder.block.0"``.
    """

    sparsity: float = field(default=0.5, validator=[v.ge(0), v.lt(1)])
    pattern: str = field(default="", validator=is_pattern)
    skip: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.pattern and self.sparsity not in (0.5, self.share):
            raise ValueError(
                f"the pattern {self.pattern!r} means a sparsity of {self.share:g}, not {self.sparsity:g}; give one of them"
            )

    @property
    def share(self) -> float:
        """Share of the weights that become zero."""
        if not self.pattern:
            return self.sparsity
        kept, group = numbers(self.pattern)
        return 1 - kept / group


@frozen(kw_only=True)
class Magnitude(Unstructured):
    """Set the smallest weights of linear layers to zero (Han et al. 2015, section 3).

    The zeros are stored like any other number: the model is sparse, not smaller on disk and not faster.

    Attributes:
        sparsity: Share of the weights that become zero; with a pattern leave it out.
        scope: ``"layer"``: that share in every layer; ``"global"``: that share of all layers together, by one threshold.
        pattern: ``"n:m"``: of every m weights in a row that meet consecutive inputs, the n largest stay, e.g. ``"2:4"``.
        skip: Layers to leave alone, by whole dotted parts of their names.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.magnitude:MagnitudeCompressor"
    scope: Literal["layer", "global"] = "layer"

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.pattern and self.scope == "global":
            raise ValueError("a pattern fixes the share of every layer, so 'scope' must be \"layer\" with it")


@frozen(kw_only=True)
class Wanda(Unstructured):
    """Set the weights to zero that matter least for the outputs on calibration data (Sun et al. 2023, section 3).

    A weight's score is its absolute value times the norm of its input over all calibration tokens, ``|W_ij| * ||X_j||_2``;
    scores are compared within each output row. Layers are pruned block by block, each on what the pruned blocks
    before it give. The zeros are stored like any other number.

    Attributes:
        sparsity: Share of the weights of every row that become zero; with a pattern leave it out.
        pattern: ``"n:m"``: of every m weights in a row that meet consecutive inputs, the n of highest score stay.
        skip: Layers to leave alone, by whole dotted parts of their names.
        max_length: Longest calibration input (and target, for encoder-decoders) in tokens.
        batch_size: Most calibration rows that go through the model at once.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.wanda:WandaCompressor"
    max_length: int = field(default=512, validator=v.ge(1))
    batch_size: int = field(default=8, validator=v.ge(1))


@frozen(kw_only=True)
class SparseGPT(Unstructured):
    """Set weights to zero and let the others make up for it (Frantar & Alistarh 2023, section 3).

    Minimises ``||(W - W') X||^2`` on calibration data, column by column, with masks that are chosen block by block by the
    score ``w^2 / [H^-1]_jj^2`` (their equation 3 with the Cholesky factor). ``H = 2/n X X^T + damping * mean(diag) * I``. Layers
    are pruned block by block of the model, each on what the pruned blocks before it give. The zeros are stored
    like any other number.

    Attributes:
        sparsity: Share of the weights that become zero, of every block of columns; with a pattern leave it out.
        pattern: ``"n:m"``: of every m weights in a row that meet consecutive inputs, n stay.
        skip: Layers to leave alone, by whole dotted parts of their names.
        damping: Share of the mean diagonal that is added to the diagonal.
        block_size: Columns whose mask is chosen together; a multiple of the pattern's m.
        max_length: Longest calibration input (and target, for encoder-decoders) in tokens.
        batch_size: Most calibration rows that go through the model at once.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.sparsegpt:SparseGPTCompressor"
    damping: float = field(default=0.01, validator=v.gt(0))
    block_size: int = field(default=128, validator=v.ge(1))
    max_length: int = field(default=512, validator=v.ge(1))
    batch_size: int = field(default=8, validator=v.ge(1))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.pattern and self.block_size % numbers(self.pattern)[1]:
            raise ValueError(f"'block_size' must be a multiple of {numbers(self.pattern)[1]} for {self.pattern!r}")

"""Configs of the standard compressors."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from tunesmith.kinds.compressor import CompressorConfig

IMPLEMENTATIONS = "tunesmith_plugins.compressors"


@frozen(kw_only=True)
class Int8(CompressorConfig):
    """Dynamic int8 linear layers: weights per output channel, activations per row while the model runs.

    Every ``Linear`` (and GPT-2's ``Conv1D``) becomes an integer layer; embeddings, norms and a head that is tied to the
    embeddings stay as they are. Scheme: symmetric weights in [-127, 127] (one scale per output channel), unsigned activations
    with a zero point per row, int32 accumulation (Dettmers et al. 2022, section 2.1, without the outlier part). The model
    saves with ``save_pretrained`` and loads with ``from_pretrained`` after ``import tunesmith.hf``.

    Attributes:
        skip: Layers whose name ends with, or contains as whole dotted parts, one of these stay as they are, e.g.
            ``"lm_head"`` or ``"decoder.block.0"``.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.int8:Int8Compressor"
    skip: tuple[str, ...] = ()

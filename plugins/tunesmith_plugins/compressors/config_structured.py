"""Config of structured pruning."""

from __future__ import annotations

from typing import ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from tunesmith.kinds.compressor import CompressorConfig

IMPLEMENTATIONS = "tunesmith_plugins.compressors"


@frozen(kw_only=True)
class Structured(CompressorConfig):
    """Take out whole heads, feed-forward channels, layers and vocabulary rows, and store what is left as a smaller model.

    The result is a dense model of the same architecture with smaller numbers in its config; ``from_pretrained`` loads it, and
    it is smaller on disk, in memory and faster by what it lacks. Its outputs are those of the large model with the
    same parts set to zero (of a layer: passed by). What it has lost comes back, as far as it does, by training:
    ``FineTune`` (all weights or an adapter) or ``distill`` with the large model as the teacher.

    Attributes:
        heads: Share of the attention heads that go, in every layer as many; with grouped queries a key-value head goes with
            all of its query heads. T5 (and its kin) shares position biases over layers, so there the same heads of
            self-attention go in all layers of a stack. LLaMA and T5 families; others cannot say fewer heads in their config.
        ffn: Share of the feed-forward channels that go, in every layer as many.
        layers: Share of the layers that go, of each stack; at least one stays.
        vocabulary: ``"used"``: keep the tokens that the data uses, special ones, and what is needed to read any other text;
            the tokenizer is cut in step.
        score: What counts. ``"magnitude"``: the norm of a part's weights (needs no data). ``"activation"``: the norm of its
            contribution to the outputs on the data, ``sqrt(sum_j ||W_:j||^2 ||X_j||^2)`` (Sun et al. 2023, by part); of a
            layer one minus the cosine between its input and output (Men et al. 2024, "block influence"). ``"gradient"``: how much the
            loss would change to first order without it, ``|sum g w|`` (Michel et al. 2019; Molchanov et al. 2019); of a layer
            ``|g (y - x)|`` summed over tokens, with its input x, its output y and the gradient g by y.
        max_length: Longest calibration input (and target, for encoder-decoders) in tokens.
        batch_size: Most calibration rows that go through the model at once.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.structured:StructuredCompressor"
    heads: float = field(default=0.0, validator=[v.ge(0), v.lt(1)])
    ffn: float = field(default=0.0, validator=[v.ge(0), v.lt(1)])
    layers: float = field(default=0.0, validator=[v.ge(0), v.lt(1)])
    vocabulary: Literal["all", "used"] = "all"
    score: Literal["magnitude", "activation", "gradient"] = "magnitude"
    max_length: int = field(default=512, validator=v.ge(1))
    batch_size: int = field(default=8, validator=v.ge(1))

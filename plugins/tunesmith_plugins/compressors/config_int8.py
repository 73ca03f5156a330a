"""Configs of the compressors that make weights int8, and of how a single layer is quantized."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

from attrs import Attribute, field, fields, frozen
from attrs import validators as v

from tunesmith.kinds.compressor import CompressorConfig
from tunesmith.typecheck import Checked

IMPLEMENTATIONS = "tunesmith_plugins.compressors"

Kind = Literal["dynamic", "weight_only", "outlier_split", "static", "float"]


@frozen(kw_only=True)
class Scheme(Checked):
    """How one layer is quantized. Weights are symmetric int8 in [-127, 127] in every kind but ``float``.

    Attributes:
        kind: ``dynamic``: activations get 8 bits and a range for each row while the model runs, and 12 bits where 8 would
            keep less than 37.9 dB of a row. ``weight_only``: activations keep 12 bits a row, so that nearly all noise is that
            of the weights. ``outlier_split``: as dynamic, but activations above ``threshold`` are multiplied apart, in
            floating point. ``static``: activations get 8 bits in a range that calibration found once. ``float``: the layer
            stays as it is.
        group_size: Inputs that share a scale (weight_only: 32, 64 or 128); 0 means one scale for each output channel.
        threshold: Of ``outlier_split``.
    """

    kind: Kind = field(default="dynamic", validator=v.in_(get_args(Kind)))
    group_size: int = field(default=0, validator=v.in_((0, 32, 64, 128)))
    threshold: float = field(default=6.0, validator=v.gt(0))

    @group_size.validator
    def _grouped_weights_only(self, attribute: Attribute[int], value: int) -> None:
        if value and self.kind != "weight_only":
            raise ValueError(f"'group_size' belongs to weight_only; a {self.kind!r} layer has a scale for each channel")


def _no_static(instance: Any, attribute: Attribute[Any], modules: dict[str, Scheme]) -> None:
    for pattern, scheme in modules.items():
        if scheme.kind == "static" and not instance.calibrates:
            raise ValueError(
                f"{attribute.name}: {pattern!r} asks for static ranges, which need calibration; use int8_static, and give the "
                "other modules a scheme"
            )


@frozen(kw_only=True)
class QuantizerConfig(CompressorConfig):
    """What every int8 compressor takes.

    Attributes:
        skip: Layers whose name holds one of these as whole dotted parts stay as they are, e.g. ``"lm_head"`` or
            ``"decoder.block.0"``.
        modules: Patterns as in ``skip`` to schemes for the layers they name; where several match, the longest pattern wins.
        embeddings: Token embeddings (and heads tied to them) become int8 too, with a scale a row.
        measure_rows: So many rows of inputs are put through every layer before and after, for the report's output noise
            and times; 0 measures neither.
    """

    calibrates: ClassVar[bool] = False
    skip: tuple[str, ...] = ()
    modules: dict[str, Scheme] = field(factory=dict, validator=_no_static)
    embeddings: bool = True
    measure_rows: int = field(default=16, validator=v.ge(0))

    @property
    def scheme(self) -> Scheme:
        """How layers are quantized that ``modules`` does not name."""
        return Scheme()


@frozen(kw_only=True)
class DataFreeConfig(QuantizerConfig):
    """What compressors take that need no data.

    Attributes:
        rounding: ``random_tokens``: weights are rounded for the outputs on random tokens of the model's own vocabulary, a
            weight that is far larger than all others of its output is held in float32, and the model runs once while it is
            quantized. ``nearest``: each weight goes to its nearest step. ``auto``: random tokens, or the nearest where nothing
            else can be: while a model is read, and after training for int8.
    """

    rounding: Literal["auto", "random_tokens", "nearest"] = "auto"


@frozen(kw_only=True)
class Int8(DataFreeConfig):
    """Dynamic int8: weights per output channel, activations per row while the model runs, in 8 bits or where needed 12.

    Every ``Linear`` and ``Conv1D`` becomes an integer layer, and so does each projection of each expert of a mixture; token
    embeddings are kept in int8 and looked up row by row, and a head tied to them multiplies with the same integers. Norms,
    position embeddings, routers and other weights outside of such layers stay as they are, and the report names them. Symmetric weights
    in [-127, 127] (one scale per output channel), unsigned activations with a zero point per row, int32 accumulation
    (Dettmers et al. 2022, section 2.1, without the outlier part). The model saves with ``save_pretrained`` and loads with
    ``from_pretrained`` after ``import tunesmith.hf``.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.int8:Int8Compressor"


@frozen(kw_only=True)
class Int8WeightOnly(DataFreeConfig):
    """Int8 weights and nearly unrounded activations (12 bits a row): the size of int8 with about the noise of its weights.

    Attributes:
        group_size: Inputs that share a scale: 32, 64 or 128; 0 means one scale for each output channel.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.int8:Int8Compressor"
    group_size: int = field(default=0, validator=v.in_((0, 32, 64, 128)))

    @property
    def scheme(self) -> Scheme:
        """Weights only."""
        return Scheme(kind="weight_only", group_size=self.group_size)


@frozen(kw_only=True)
class OutlierSplit(DataFreeConfig):
    """Dynamic int8 with the large activations apart: what is above a threshold is multiplied in floating point.

    LLM.int8 (Dettmers et al. 2022, section 3.2) takes whole columns of the batch out; here every row loses its own large
    entries and no others, so that its ranges depend on no other row.

    Attributes:
        threshold: Absolute values above it are outliers; 6 in the paper.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.int8:Int8Compressor"
    threshold: float = field(default=6.0, validator=v.gt(0))

    @property
    def scheme(self) -> Scheme:
        """Outliers apart."""
        return Scheme(kind="outlier_split", threshold=self.threshold)


@frozen(kw_only=True)
class GPTQ(QuantizerConfig):
    """Int8 weights rounded for the outputs on examples, not each to its nearest step (Frantar et al. 2023).

    Going through the columns of a weight, what a rounding did to the outputs is made up for by the columns that are not
    rounded yet. Layers are quantized block by block of the model, each on what the int8 blocks before it give. What comes out are
    layers as of ``int8_weight_only`` or ``int8``: files, memory and speed are theirs.

    Attributes:
        activations: ``weight_only``: activations keep 12 bits a row; ``dynamic``: 8, or 12 where those are too few.
        group_size: Inputs that share a scale (weight_only: 32, 64 or 128); 0 means one scale for each output channel.
        damping: Share of the mean second moment of the inputs that is added to each of them: the larger, the less is made of what
            the examples have in common.
        examples: So many examples are read; 0 means all.
        max_length: Most tokens of an input or target.
        batch_size: Most examples, all of one length, that go through the model at once.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.gptq:GPTQCompressor"
    calibrates: ClassVar[bool] = True
    activations: Literal["dynamic", "weight_only"] = "weight_only"
    group_size: int = field(default=0, validator=v.in_((0, 32, 64, 128)))
    damping: float = field(default=0.1, validator=v.gt(0))
    examples: int = field(default=128, validator=v.ge(0))
    max_length: int = field(default=512, validator=v.ge(2))
    batch_size: int = field(default=8, validator=v.ge(1))

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        static = [pattern for pattern, scheme in self.modules.items() if scheme.kind == "static"]
        if self.scheme and static:  # the scheme checks the group size
            raise ValueError(
                f"'modules' asks for static ranges for {static[0]!r}, which int8_static and smoothquant find"
            )

    @property
    def scheme(self) -> Scheme:
        """As of ``int8_weight_only`` or ``int8``."""
        return Scheme(kind=self.activations, group_size=self.group_size)


@frozen(kw_only=True)
class CalibratedConfig(QuantizerConfig):
    """What compressors take that look at activations first.

    Attributes:
        examples: So many examples are read, one at a time; 0 means all.
        max_length: Most tokens of an input or target.
        ranges: How a static range is found: ``minmax``: all that was seen; ``percentile``: without the share outside
            ``percentile``; ``mse``: the shrunk range of least squared error.
        percentile: Of ``ranges="percentile"``: per cent of the values that lie inside, equally many left out at both ends.
    """

    calibrates: ClassVar[bool] = True
    examples: int = field(default=128, validator=v.ge(0))
    max_length: int = field(default=512, validator=v.ge(2))
    ranges: Literal["minmax", "percentile", "mse"] = "minmax"
    percentile: float = field(default=99.99, validator=[v.gt(50), v.le(100)])

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.percentile != fields(CalibratedConfig).percentile.default and self.ranges != "percentile":
            raise ValueError("'percentile' would change nothing; it needs ranges=\"percentile\"")
        static = self.scheme.kind == "static" or any(each.kind == "static" for each in self.modules.values())
        if self.ranges != "minmax" and not static:
            raise ValueError("'ranges' would change nothing: no layer has a static range")


@frozen(kw_only=True)
class Int8Static(CalibratedConfig):
    """Int8 with one fixed range for the inputs of each layer, found on examples: nothing is measured while the model runs.

    Jacob et al. (2018), section 3, with per-channel weights.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.int8_calibrated:Int8StaticCompressor"

    @property
    def scheme(self) -> Scheme:
        """A calibrated range."""
        return Scheme(kind="static")


@frozen(kw_only=True)
class SmoothQuant(CalibratedConfig):
    """Move the difficulty of large activation channels into the weights before quantizing (Xiao et al. 2023).

    Channel j of a layer's input is divided by ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`` and its weights are multiplied by
    it. Where a norm feeds nothing but linear layers (LLaMA, Mistral, Qwen, GPT-2, GPT-NeoX, OPT, T5, Pegasus, mBART), the division
    is folded into the norm; elsewhere the layer keeps the vector and multiplies its input by it.

    Attributes:
        alpha: How much moves: 0 makes all channels of the weights equal, 1 those of the activations.
        activations: ``dynamic``: a range for each row; ``static``: calibrated ranges.
        explicit: Also smooth layers that no norm can fold for, at the price of a multiplication of their inputs.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.int8_calibrated:SmoothQuantCompressor"
    alpha: float = field(default=0.5, validator=[v.ge(0), v.le(1)])
    activations: Literal["dynamic", "static"] = "dynamic"
    explicit: bool = True

    @property
    def scheme(self) -> Scheme:
        """Dynamic or static."""
        return Scheme(kind=self.activations)

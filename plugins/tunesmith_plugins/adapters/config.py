"""Configs of the built-in adapters."""

from __future__ import annotations

from typing import ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from tunesmith.kinds.adapter import AdapterConfig
from tunesmith.kinds.compressor import CompressorConfig

IMPLEMENTATIONS = "tunesmith_plugins.adapters"


@frozen(kw_only=True)
class Full(AdapterConfig):
    """All weights of the model are trained. There is nothing to disable; merging is what it already is.

    Attributes:
        keep_zeros: Zeros of its matrices stay zero, as pruning left them. Not with FSDP or DeepSpeed, which cut parameters up.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.full:FullAdapter"
    keep_zeros: bool = False


@frozen(kw_only=True)
class QuantizationAware(AdapterConfig):
    """All weights are trained, through the rounding that an int8 compressor will put them to.

    Layers compute what the integer layers would, bit for bit, in training and after; gradients pass straight through the
    rounding (Bengio et al. 2013, section 4; Jacob et al. 2018, section 3). Compressing the trained model with the same compressor
    gives the integers that it was trained with.

    Attributes:
        compressor: An int8 compressor that needs no data; None means ``int8``.
        keep_zeros: Zeros of its matrices stay zero, as pruning left them, and are zero as integers. Not with FSDP or DeepSpeed,
            which cut parameters up.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.quantization_aware:QuantizationAwareAdapter"
    compressor: CompressorConfig | None = None
    keep_zeros: bool = False


@frozen(kw_only=True)
class LoRA(AdapterConfig):
    """Low-rank updates of linear layers, ``h = W x + (alpha / rank) B A x`` (Hu et al. 2021, equation 3), by peft.

    Attributes:
        rank: Columns of B and rows of A.
        alpha: Numerator of the scale.
        dropout: On the input of A while training.
        targets: Names of linear layers (the end of their path, such as ``"q_proj"``); None means the query and value
            projections of the architecture, or the one that makes queries, keys and values together.
        rslora: Scale by ``alpha / sqrt(rank)`` (Kalajdzievski 2023).
        keep_zeros: The update is 0 wherever the weight below is, in training and when it is merged, so that a pruned model
            stays pruned (SparsePEFT of Munoz et al. 2024). peft's own loaders do not know it: merge first.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.injected:LoRAAdapter"
    revision: ClassVar[int] = 2
    rank: int = field(default=8, validator=v.ge(1))
    alpha: float = field(default=16.0, validator=v.gt(0))
    dropout: float = field(default=0.0, validator=[v.ge(0), v.lt(1)])
    targets: tuple[str, ...] | None = None
    rslora: bool = False
    keep_zeros: bool = False


@frozen(kw_only=True)
class IA3(AdapterConfig):
    """Learned scales of keys, values and inner feed-forward activations (Liu et al. 2022, section 3.3), by peft.

    Attributes:
        targets: Names of linear layers to scale; None means keys, values (queries too where one
            layer makes all three) and the last feed-forward layer.
        feedforward: Those of ``targets`` whose input is scaled instead of their output; must be None if ``targets`` is.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.injected:IA3Adapter"
    revision: ClassVar[int] = 2
    targets: tuple[str, ...] | None = None
    feedforward: tuple[str, ...] | None = None


@frozen(kw_only=True)
class Prompt(AdapterConfig):
    """Trained vectors before the input's embeddings (Lester et al. 2021); an encoder-decoder gets them in the encoder.

    Not the identity at initialisation: the model reads further tokens.

    Attributes:
        tokens: Number of vectors.
        init: ``"vocab"``: embeddings of tokens drawn by the seed; ``"text"``: those of ``text``, repeated or cut;
            ``"random"``: normal, with the deviation of the embedding table.
        text: For ``init="text"``.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.soft_prompts:PromptAdapter"
    revision: ClassVar[int] = 2
    tokens: int = field(default=20, validator=v.ge(1))
    init: Literal["vocab", "text", "random"] = "vocab"
    text: str = ""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if (self.init == "text") != bool(self.text):
            raise ValueError("Prompt: 'text' goes with init='text', and init='text' needs it")


@frozen(kw_only=True)
class PTuning(AdapterConfig):
    """A prompt whose vectors come out of a small network (P-tuning, Liu et al. 2021), by peft.

    Not the identity at initialisation.

    Attributes:
        tokens: Number of vectors.
        hidden: Width of the network; 0 means the model's.
        network: Three linear layers, or a bidirectional LSTM and two.
        layers: Layers of the LSTM.
        dropout: In the LSTM.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.soft_prompts:PTuningAdapter"
    revision: ClassVar[int] = 2
    tokens: int = field(default=20, validator=v.ge(1))
    hidden: int = field(default=0, validator=v.ge(0))
    network: Literal["mlp", "lstm"] = "mlp"
    layers: int = field(default=2, validator=v.ge(1))
    dropout: float = field(default=0.0, validator=[v.ge(0), v.lt(1)])


@frozen(kw_only=True)
class Prefix(AdapterConfig):
    """Trained keys and values before those of every self-attention (Li and Liang 2021), the encoder's included.

    They are of the shapes that the model's own cache is given, in latent attention (DeepSeek) those of what it keeps.
    Cross-attention gets none, nor do recurrences beside attention. Not the identity at initialisation.

    Attributes:
        tokens: Number of keys and values of each layer.
        projection: Width of a network that makes them out of one table (the paper's reparameterisation); 0 for none.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.prefix:PrefixAdapter"
    revision: ClassVar[int] = 2
    tokens: int = field(default=20, validator=v.ge(1))
    projection: int = field(default=0, validator=v.ge(0))


@frozen(kw_only=True)
class Bottleneck(AdapterConfig):
    """Small two-layer networks in every transformer layer. They cannot be merged into the weights.

    All styles start as the identity: the second layer is zero.

    Attributes:
        style: ``"houlsby"``: after the self-attention and after the feed-forward layer, inside the residual (Houlsby et al.
            2019, figure 2); ``"pfeiffer"``: after the feed-forward layer only (Pfeiffer et al. 2020); ``"parallel"``: from the
            feed-forward layer's input, added to its output (He et al. 2022, table 6).
        reduction: The model's width divided by the network's.
        activation: Between the two layers.
        scale: Factor on the network's output; None means 4 for ``"parallel"`` and 1 otherwise.
        cross_attention: ``"houlsby"`` also after a decoder's cross-attention.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.bottleneck:BottleneckAdapter"
    revision: ClassVar[int] = 2
    style: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    reduction: float = field(default=16.0, validator=v.gt(0))
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    scale: float | None = field(default=None, validator=v.optional(v.gt(0)))
    cross_attention: bool = False

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.cross_attention and self.style != "houlsby":
            raise ValueError("Bottleneck: cross_attention is for style='houlsby' only")

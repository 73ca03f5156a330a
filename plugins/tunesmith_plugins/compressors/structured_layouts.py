"""Where heads, channels and layers of the known architectures stand, and which config fields count them."""

from __future__ import annotations

from attrs import evolve, frozen
from torch import nn

from tunesmith.errors import ConfigError
from tunesmith.lm import LM


@frozen(kw_only=True)
class Attention:
    """Names in a layer of an attention's projections.

    Attributes:
        query: Rows by query head.
        keys: Key and value: rows by key-value head.
        out: Columns by query head.
        shared_bias: Its heads have a bias that all layers of the stack share, so one choice of heads serves all layers.
    """

    query: str
    keys: tuple[str, str]
    out: str
    shared_bias: bool = False


@frozen(kw_only=True)
class Feed:
    """Names in a layer of a feed-forward part: rows of ``up`` and columns of ``down`` are channels."""

    up: tuple[str, ...]
    down: str


@frozen(kw_only=True)
class Stack:
    """A stack of equal layers.

    Attributes:
        suffix: How the name of its module list ends.
        depth: The config field with its number of layers.
        width: The one with the number of channels.
        feed: Its feed-forward part.
        attentions: None where the config cannot say fewer heads.
    """

    suffix: str
    depth: str
    width: str
    feed: Feed
    attentions: tuple[Attention, ...] = ()


@frozen(kw_only=True)
class Layout:
    """An architecture.

    Attributes:
        stacks: Its stacks.
        heads: The config field with the number of query heads; "" if it cannot be made smaller alone.
        groups: The one with the number of key-value heads; "" if as many as query heads.
        head_size: The one with the size of a head.
    """

    stacks: tuple[Stack, ...]
    heads: str = ""
    groups: str = ""
    head_size: str = ""


def _one(suffix: str, depth: str, width: str, up: str | tuple[str, ...], down: str) -> Layout:
    """Return an architecture of one stack whose config cannot say fewer heads."""
    feed = Feed(up=(up,) if isinstance(up, str) else up, down=down)
    return Layout(stacks=(Stack(suffix=suffix, depth=depth, width=width, feed=feed),))


_GATED = _one("layers", "num_hidden_layers", "intermediate_size", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
_LLAMA = Layout(
    stacks=tuple(
        evolve(
            stack,
            attentions=(
                Attention(
                    query="self_attn.q_proj", keys=("self_attn.k_proj", "self_attn.v_proj"), out="self_attn.o_proj"
                ),
            ),
        )
        for stack in _GATED.stacks
    ),
    heads="num_attention_heads",
    groups="num_key_value_heads",
    head_size="head_dim",
)
_BERT = _one("encoder.layer", "num_hidden_layers", "intermediate_size", "intermediate.dense", "output.dense")
_BART = Layout(
    stacks=tuple(
        Stack(
            suffix=f"{half}.layers", depth=f"{half}_layers", width=f"{half}_ffn_dim", feed=Feed(up=("fc1",), down="fc2")
        )
        for half in ("encoder", "decoder")
    )
)


def _t5(gated: bool) -> Layout:
    up = ("wi_0", "wi_1") if gated else ("wi",)

    def attention(number: int, kind: str, shared: bool) -> Attention:
        at = f"layer.{number}.{kind}"
        return Attention(query=f"{at}.q", keys=(f"{at}.k", f"{at}.v"), out=f"{at}.o", shared_bias=shared)

    def feed(number: int) -> Feed:
        at = f"layer.{number}.DenseReluDense"
        return Feed(up=tuple(f"{at}.{name}" for name in up), down=f"{at}.wo")

    own, cross = attention(0, "SelfAttention", True), attention(1, "EncDecAttention", False)
    return Layout(
        stacks=(
            Stack(suffix="encoder.block", depth="num_layers", width="d_ff", feed=feed(1), attentions=(own,)),
            Stack(
                suffix="decoder.block", depth="num_decoder_layers", width="d_ff", feed=feed(2), attentions=(own, cross)
            ),
        ),
        heads="num_heads",
        head_size="d_kv",
    )


KNOWN = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3"), _LLAMA),
    **dict.fromkeys(("cohere", "granite", "olmo", "olmo2", "smollm3", "stablelm"), _GATED),
    **dict.fromkeys(("bert", "camembert", "electra", "roberta", "xlm-roberta"), _BERT),
    **dict.fromkeys(
        ("bart", "blenderbot", "blenderbot-small", "m2m_100", "marian", "mbart", "pegasus", "plbart"), _BART
    ),
    **dict.fromkeys(("t5", "mt5"), _t5(gated=False)),
    "distilbert": _one("transformer.layer", "n_layers", "hidden_dim", "ffn.lin1", "ffn.lin2"),
    "gpt2": _one("h", "n_layer", "n_inner", "mlp.c_fc", "mlp.c_proj"),
    "gpt_neox": _one("layers", "num_hidden_layers", "intermediate_size", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    "opt": _one("decoder.layers", "num_hidden_layers", "ffn_dim", "fc1", "fc2"),
    "phi": _one("layers", "num_hidden_layers", "intermediate_size", "mlp.fc1", "mlp.fc2"),
    "starcoder2": _one("layers", "num_hidden_layers", "intermediate_size", "mlp.c_fc", "mlp.c_proj"),
}
"""By the config's ``model_type``."""


def layout_of(lm: LM) -> Layout:
    """Return where the parts of a model stand.

    Raises:
        ConfigError: If its architecture is not known here.
    """
    kind, config = lm.model.config.model_type, lm.model.config
    if kind not in KNOWN:
        raise ConfigError(
            [
                f"models of type {kind!r} cannot be pruned by parts: it is not known here where theirs stand. Known are "
                f"{', '.join(sorted(KNOWN))}; wanda, sparsegpt and magnitude take every model"
            ]
        )
    layout = _t5(gated=True) if kind in ("t5", "mt5") and config.is_gated_act else KNOWN[kind]
    there = tuple(stack for stack in layout.stacks if _lists(lm, stack))  # of a T5EncoderModel one
    return evolve(layout, stacks=there or layout.stacks)


def module_list(lm: LM, stack: Stack) -> tuple[str, nn.ModuleList]:
    """Return name and module list of a stack."""
    found = _lists(lm, stack)
    if not found:
        raise ConfigError([f"this {lm.model.config.model_type} model has no {stack.suffix!r}"])
    return found[0]


def _lists(lm: LM, stack: Stack) -> list[tuple[str, nn.ModuleList]]:
    return [
        (name, module)
        for name, module in lm.model.named_modules()
        if isinstance(module, nn.ModuleList) and f".{name}".endswith(f".{stack.suffix}")
    ]

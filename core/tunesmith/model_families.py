"""What models of a family need that neither their signature, nor their config, nor the cache they make tells.

Whatever can be told by structure is asked of the model itself: the arguments of ``forward``, the kinds of layers in its cache, its
tables of positions. What is left stands here, by ``config.model_type``, each with its reason. It is not found by reading a padded
prompt once to see what comes out: that is two passes more for every model that is handed to ``generate``, with whatever its hooks
count and its modules remember (RecurrentGemma's state would be the probe's); rounding differs too where padding shares an expert
with text, so that a bound had to be guessed; and weights that are still small show nothing.
"""

from __future__ import annotations

from typing import Any

from attrs import frozen


@frozen(kw_only=True)
class Needs:
    """What to mind with a family; by default nothing.

    Attributes:
        unfit: Why it cannot be asked for one token after the other, as the rest of a sentence about it.
        no_padding: It takes a mask and does not look at it everywhere, so that prompts of several lengths cannot share a batch.
        no_cache: What it keeps of a text is wrong in some batches or after other texts, so that all is read anew at each token.
        own_cache: It takes no cache but of a class of its own.
        ids_in_layers: It looks at ids beside the embeddings, so that it takes no vectors in place of tokens.
        spare_positions: How many of its positions no token of a text can have.
        counts_anew: It numbers the tokens of a call from 0 where it is not told positions, whatever its cache holds.
        own_positions: It takes positions and cannot use those it is given.
        fixed_places: A key is turned by its place in the cache, where it has to stay.
        place_distances: How far tokens are apart is taken from their places, padding between them counted.
        one_by_one: Its decoder makes something else of several tokens at once than of one after the other, which is right.
        ids_beside_states: It is right with several tokens too, but only where it is given what its encoder reads as ids.
    """

    unfit: str = ""
    no_padding: bool = False
    no_cache: bool = False
    own_cache: bool = False
    ids_in_layers: bool = False
    spare_positions: int = 0
    counts_anew: bool = False
    own_positions: bool = False
    fixed_places: bool = False
    place_distances: bool = False
    one_by_one: bool = False
    ids_beside_states: bool = False


FAMILIES: dict[str, Needs] = {
    # every call begins at position 0
    "bamba": Needs(counts_anew=True),
    # it looks at what comes later as at what came before, and takes the whole text and its cache at each token
    "cpmant": Needs(unfit="reads a text both ways, and all of it at each token"),
    # the windows that it sums up begin with the padding; a token's experts are chosen by its id in some layers
    "deepseek_v4": Needs(no_padding=True, ids_in_layers=True),
    # forward makes the causal mask only where it is given input_ids and no cache; its encoder counts positions from ids
    "fsmt": Needs(one_by_one=True, ids_beside_states=True, ids_in_layers=True),
    # every layer has embeddings of its own
    "gemma4_text": Needs(ids_in_layers=True),
    # windows over places, in a cache that keeps all
    "gpt_neo": Needs(place_distances=True),
    # MiniMaxCache, beside whose layers stand the states of its linear attention
    "minimax": Needs(own_cache=True),
    # distances of ALiBi are those of places
    "mpt": Needs(place_distances=True),
    # the buckets of distances are those of the first token's where several are read; its decoder does not mind a mask that
    # goes with a cache; texts begin behind the place of padding, and what it predicts stands one place further
    "prophetnet": Needs(no_padding=True, one_by_one=True, spare_positions=2),
    # layers look up n-grams of ids
    "qwen4_exp_text": Needs(ids_in_layers=True),
    # the convolution before its recurrence takes padding in; its modules keep the states, those of whatever was read last
    "recurrent_gemma": Needs(no_padding=True, no_cache=True),
    # it fills texts up to whole chunks, and then has fewer positions than tokens if it was told any; buckets of single tokens
    # are others, and virtual tokens would not find them
    "reformer": Needs(no_padding=True, no_cache=True, own_positions=True),
    # sines are those of places in the cache
    "roformer": Needs(fixed_places=True),
    # a recurrence that never looks at the mask; transformers mixes the rows of its states
    "rwkv": Needs(no_padding=True, no_cache=True),
    # its caller puts a mask token behind the text
    "xlm": Needs(unfit="predicts at places that its caller maps, not what follows"),
    # its caller gives a map of the places
    "xlnet": Needs(unfit="predicts at places that its caller maps, not what follows"),
    # xLSTMCache, which has no layers
    "xlstm": Needs(own_cache=True),
}


def needs(model: Any) -> Needs:
    """Return what to mind with a model of transformers, or half of one."""
    return needs_of(getattr(model, "config", None))  # FSMT's halves have none


def needs_of(config: Any) -> Needs:
    """Return what to mind with models of a transformers config."""
    return FAMILIES.get(getattr(config, "model_type", ""), _NOTHING)


_NOTHING = Needs()

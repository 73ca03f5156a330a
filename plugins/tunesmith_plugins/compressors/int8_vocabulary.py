"""The size of an int8 vocabulary, which stays as it is."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from tunesmith.errors import ConfigError
from tunesmith_plugins.compressors.int8_embedding import Int8TiedEmbedding, Int8TiedLinear
from tunesmith_plugins.compressors.int8_weight import Int8Weight

INTEGER = (Int8Weight, Int8TiedEmbedding, Int8TiedLinear)
"""Classes of modules whose weight is integers, of their own or another's."""


class Resize:
    """Stands for ``resize_token_embeddings`` of an int8 model, or of the body in one.

    Args:
        model: Whose method it is.
    """

    def __init__(self, model: Any) -> None:
        self.__setstate__(model)

    def __call__(self, new_num_tokens: int | None = None, *rest: Any, **options: Any) -> nn.Module:
        """Do what the model's own method does where nothing has to be resized that is int8.

        Raises:
            ConfigError: Where something would have to be.
        """
        model: Any = self._model()
        pad_to = options.get("pad_to_multiple_of", rest[0] if rest else None)
        for table in (model.get_input_embeddings(), model.get_output_embeddings()):
            if isinstance(table, INTEGER):
                tokens = table.weight.shape[0]
                asked = tokens if new_num_tokens is None else new_num_tokens
                asked += -asked % (pad_to or 1)
                if asked != tokens:
                    raise ConfigError(
                        [
                            f"{table.place} is int8 and keeps its {tokens} tokens, and {asked} are asked for; resize the float "
                            "model, train its new tokens, and compress it then"
                        ],
                        "resize_token_embeddings",
                    )
        found: nn.Module = type(model).resize_token_embeddings(model, new_num_tokens, *rest, **options)
        return found

    def __getstate__(self) -> Any:
        """Copies and pickles are part of those of the model, which they find again by this."""
        return self._model()

    def __setstate__(self, model: Any) -> None:
        # a model that kept itself alive would stay in memory until the next round of garbage collection
        self._model = weakref.ref(model)

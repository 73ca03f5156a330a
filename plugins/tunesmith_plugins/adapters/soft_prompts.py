"""Prompt tuning and P-tuning."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft import PromptEmbedding, PromptEncoder, PromptEncoderConfig, PromptTuningConfig

from tunesmith.errors import ConfigError
from tunesmith.lm import LM
from tunesmith_plugins.adapters.attachment import Attachment, Switch, place_beside
from tunesmith_plugins.adapters.virtual import Vectors, body, prepend

SOME_ROWS = 4096
"""Rows of a quantised table that its deviation is measured on."""


class SoftPrompt(Attachment):
    """Vectors before the input, made by a module of peft."""

    identity: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.switch = Switch()
        self.virtual_tokens = config.tokens

    @abstractmethod
    def network(self, lm: LM, table: torch.nn.Embedding) -> torch.nn.Module:
        """Return the fresh module that turns indices (1, tokens) into vectors (1, tokens, width)."""

    def insert(self, lm: LM) -> None:
        """Register the module and the hooks."""
        table = lm.model.get_input_embeddings()
        network = self.network(lm, table).to(**place_beside(table.weight, lm))
        lm.model.add_module(self.name, network)
        prepend(lm, Vectors(network, self.config.tokens, self.switch))

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The hooks put nothing before the input within."""
        with self.switch.off():
            yield


class PromptAdapter(SoftPrompt):
    """Prompt tuning; see the config."""

    def network(self, lm: LM, table: torch.nn.Embedding) -> torch.nn.Module:
        """Return peft's table of vectors, with our start values."""
        count, width = self.config.tokens, table.weight.shape[1]
        # one submodule: with peft's default a T5 would get a second table that is never used
        embedding = PromptEmbedding(
            PromptTuningConfig(
                prompt_tuning_init="RANDOM", num_virtual_tokens=count, token_dim=width, num_transformer_submodules=1
            ),
            table,
        )
        with torch.no_grad():
            embedding.embedding.weight.copy_(self._start(lm, table, count).cpu())
        return embedding

    def _start(self, lm: LM, table: torch.nn.Embedding, count: int) -> torch.Tensor:
        weight = table.weight.detach()
        if self.config.init == "random":
            some = weight if weight.is_floating_point() else _rows(lm, table, torch.arange(min(len(weight), SOME_ROWS)))
            return torch.randn(count, weight.shape[1]) * some.float().std().cpu()
        if self.config.init == "vocab":
            ids = torch.randint(min(len(lm.tokenizer), len(weight)), (count,))
        else:
            found = lm.tokenizer(self.config.text, add_special_tokens=False)["input_ids"]
            if not found:
                raise ConfigError([f"the text {self.config.text!r} has no tokens @ text"], "adapter")
            ids = torch.tensor((found * (count // len(found) + 1))[:count])
        scale = float(getattr(_reader(lm), "embed_scale", 1.0))
        if not weight.is_floating_point():
            return _rows(lm, table, ids) * scale
        return torch.nn.functional.embedding(ids.to(weight.device), weight).float() * scale


class PTuningAdapter(SoftPrompt):
    """P-tuning; see the config."""

    def network(self, lm: LM, table: torch.nn.Embedding) -> torch.nn.Module:
        """Return peft's prompt encoder."""
        config, width = self.config, table.weight.shape[1]
        return PromptEncoder(
            PromptEncoderConfig(
                num_virtual_tokens=config.tokens,
                token_dim=width,
                num_transformer_submodules=1,
                encoder_reparameterization_type=config.network.upper(),
                encoder_hidden_size=config.hidden or width,
                encoder_num_layers=config.layers,
                encoder_dropout=config.dropout,
            )
        )


def _rows(lm: LM, table: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the rows of a quantised table, (ids, width) float32, without a scale that its lookup may include."""
    with torch.no_grad():
        found: torch.Tensor = table(ids.to(lm.device)).float()
    return found / float(getattr(table, "embed_scale", 1.0))


def _reader(lm: LM) -> Any:
    """Return the module that turns ids into embeddings."""
    return lm.model.get_encoder() if lm.family == "encoder-decoder" else body(lm.model)

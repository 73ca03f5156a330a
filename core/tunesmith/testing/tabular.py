"""A policy that can be anything: a causal language model whose logits are rows of a table over all answers' beginnings.

An answer is a string of up to ``depth`` symbols, ended by the end-of-sequence token or by the length limit. Every
beginning of an answer, for every prompt, has a row of logits of its own, so that any distribution over the answers can be
reached and the optimum of an alignment objective has a closed form (see :mod:`tunesmith.testing.world`). To an algorithm
it is a ``PreTrainedModel`` like any other: it has a cache, takes left padding, and its last hidden state tells beginnings
apart (one-hot), so that a linear value head is a table too.

Imported at run time only.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from tunesmith.lm import LM

EOS = 0
"""Id of the end-of-sequence token; ids 1 ... ``symbols`` are the symbols, behind them stand the prompts and the padding."""

IMPOSSIBLE = -1e4
"""Logit of ids that no answer has; its probability is exactly 0 in float32 and float64."""


class TabularConfig(PretrainedConfig):  # type: ignore[misc, unused-ignore]
    """Size of a tabular policy.

    Args:
        symbols: Number of symbols besides the end of sequence.
        depth: Most tokens of an answer.
        prompts: Number of prompts, each one token.
    """

    model_type = "tunesmith-tabular"

    def __init__(self, symbols: int = 4, depth: int = 4, prompts: int = 1, **options: Any) -> None:
        self.symbols, self.depth, self.prompts = symbols, depth, prompts
        # what caches of transformers want to know; the one key-value "head" holds the token ids
        self.num_hidden_layers = self.num_attention_heads = self.num_key_value_heads = 1
        self.vocab_size = 1 + symbols + prompts + 1
        self.hidden_size = prompts * self.nodes
        options = {
            "eos_token_id": EOS,
            "bos_token_id": 1 + symbols,
            "pad_token_id": self.vocab_size - 1,
            "tie_word_embeddings": False,
            **options,
        }
        super().__init__(**options)

    @property
    def nodes(self) -> int:
        """Number of beginnings an answer to one prompt can have after which one more token follows."""
        return sum(self.symbols**length for length in range(self.depth))


class Beginnings(torch.nn.Module):
    """The backbone: where in an answer every position is, as a one-hot vector. It has no parameters.

    Args:
        config: Of the policy.
    """

    unit: torch.Tensor

    def __init__(self, config: TabularConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("unit", torch.ones(()), persistent=False)  # has the dtype of the states

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **ignored: Any,
    ) -> BaseModelOutputWithPast:
        """Return the states (batch, time, hidden)."""
        new = input_ids.shape[1]
        ids = input_ids
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        if past_key_values is not None:  # the ids themselves are kept as "keys", exactly, since they are small integers
            state = input_ids[:, None, :, None].to(self.unit.dtype)
            kept, _ = past_key_values.update(state, state, 0)
            ids = kept[:, 0, :, 0].round().long()
        if attention_mask is None or attention_mask.shape[1] != ids.shape[1]:
            attention_mask = torch.ones_like(ids)
        rows = self.rows(ids, attention_mask)[:, -new:]
        states = torch.nn.functional.one_hot(rows, self.config.hidden_size).to(self.unit.dtype)
        return BaseModelOutputWithPast(last_hidden_state=states, past_key_values=past_key_values)

    def rows(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the row of the table at every position, (batch, time).

        Behind the end of an answer it stays where it is; such positions never count.
        """
        config = self.config
        first_prompt = 1 + config.symbols
        offsets = torch.tensor(
            [sum(config.symbols**k for k in range(length)) for length in range(config.depth + 1)], device=ids.device
        )
        prompt = torch.zeros_like(ids[:, 0])
        length, index = torch.zeros_like(prompt), torch.zeros_like(prompt)
        nodes = []
        for place in range(ids.shape[1]):
            token, seen = ids[:, place], mask[:, place].bool()
            is_prompt = seen & (token >= first_prompt) & (token < first_prompt + config.prompts)
            is_symbol = seen & (token >= 1) & (token <= config.symbols) & (length < config.depth - 1)
            prompt = torch.where(is_prompt, token - first_prompt, prompt)
            index = torch.where(is_symbol, index * config.symbols + token - 1, index)
            index, length = index.masked_fill(is_prompt, 0), (length + is_symbol.long()).masked_fill(is_prompt, 0)
            nodes.append(prompt * config.nodes + offsets[length] + index)
        return torch.stack(nodes, dim=1)


class Head:
    """The table as a linear layer over the whole vocabulary, for code that multiplies states by ``weight`` itself."""

    def __init__(self, table: torch.nn.Linear, vocab_size: int) -> None:
        self.table, self.rest = table, vocab_size - table.weight.shape[0]

    @property
    def weight(self) -> torch.Tensor:
        """(vocab, hidden)."""
        return torch.nn.functional.pad(self.table.weight, (0, 0, 0, self.rest))

    @property
    def bias(self) -> torch.Tensor:
        """(vocab,)."""
        answers = self.table.weight.new_zeros(self.table.weight.shape[0])
        return torch.nn.functional.pad(answers, (0, self.rest), value=IMPOSSIBLE)


class TabularPolicy(PreTrainedModel, GenerationMixin):  # type: ignore[misc, unused-ignore]
    """The model; ``table`` (prompts * beginnings, symbols + 1) are its only parameters, zero (uniform) at first."""

    config_class = TabularConfig
    base_model_prefix = "model"
    _no_split_modules: list[str] = []
    _supports_cache_class = True

    def __init__(self, config: TabularConfig) -> None:
        super().__init__(config)
        self.model = Beginnings(config)
        self.table = torch.nn.Linear(config.hidden_size, config.symbols + 1, bias=False)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.zeros_(module.weight)

    def get_output_embeddings(self) -> Head:
        """Return the table as the layer that it is to trl's trainers."""
        return Head(self.table, self.config.vocab_size)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        labels: torch.Tensor | None = None,
        **ignored: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits (batch, time, vocab) and, if asked, the one-hot beginnings (batch, time, hidden)."""
        found = self.model(input_ids, attention_mask, past_key_values, use_cache)
        states = found.last_hidden_state
        answers = self.table(states)
        rest = self.config.vocab_size - answers.shape[-1]
        logits = torch.nn.functional.pad(answers, (0, rest), value=IMPOSSIBLE)
        loss = None
        if labels is not None:
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=found.past_key_values,
            hidden_states=(states,) if output_hidden_states else None,
        )


def tabular_tokenizer(config: TabularConfig) -> Any:
    """Return a tokenizer in which every word is one token: symbols ``a b c ...``, prompts ``q0 q1 ...``."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["</s>", *(chr(ord("a") + i) for i in range(config.symbols)), *prompts(config), "<pad>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<pad>", padding_side="left"
    )


def prompts(config: TabularConfig) -> list[str]:
    """Return the prompts' texts."""
    return [f"q{i}" for i in range(config.prompts)]


def tabular_lm(symbols: int = 4, depth: int = 4, prompts: int = 1, *, seed: int = 0, spread: float = 0.0) -> LM:
    """Return a tabular policy with its tokenizer.

    Args:
        symbols: Number of symbols.
        depth: Most tokens of an answer.
        prompts: Number of prompts.
        seed: Of the logits.
        spread: Standard deviation of the logits; 0 is the uniform policy.
    """
    config = TabularConfig(symbols=symbols, depth=depth, prompts=prompts)
    model = TabularPolicy(config)
    noise = torch.randn(model.table.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.table.weight.copy_(noise * spread)
    model.eval()
    return LM(model=model, tokenizer=tabular_tokenizer(config), family="decoder")

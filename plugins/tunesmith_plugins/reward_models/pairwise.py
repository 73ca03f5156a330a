"""A reward model trained on pairs; see :class:`tunesmith_plugins.reward_models.Pairwise`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tunesmith.data.records import Preference
from tunesmith.errors import ArtifactError, ConfigError, DataError
from tunesmith.kinds.reward_model import RewardModel
from tunesmith.lm import load
from tunesmith.reward import check_scores
from tunesmith.runtime import Runtime
from tunesmith.scoring import micro_batches
from tunesmith.training.arguments import device_map
from tunesmith_plugins.reward_models.config import Pairwise
from tunesmith_plugins.reward_models.inputs import as_batch, encoded, filled, pad_id, readable
from tunesmith_plugins.reward_models.pairwise_fit import Fit

RECORD = "pairwise.json"


class Scorer(torch.nn.Module):
    """A backbone and a linear head on the state of one token.

    Args:
        backbone: A transformers model without a head.
        last: Whether the score is read at the last token, not at the first.
    """

    def __init__(self, backbone: Any, last: bool) -> None:
        super().__init__()
        self.backbone = backbone
        width = getattr(backbone.config, "hidden_size", None) or backbone.config.d_model
        self.head = torch.nn.Linear(int(width), 1)
        self.last = last
        if hasattr(backbone, "hf_device_map"):
            self.hf_device_map = backbone.hf_device_map

    @property
    def config(self) -> Any:
        """The backbone's, for trainers."""
        return self.backbone.config

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return scores (batch,) of ids (batch, time) padded on the right."""
        states = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.last:
            last = attention_mask.sum(dim=1).to(states.device) - 1
            pooled = states[torch.arange(len(states), device=states.device), last]
        else:
            pooled = states[:, 0]
        scores: torch.Tensor = self.head(pooled.to(self.head.weight)).squeeze(-1)
        return scores

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Compute the backbone's states again on the way back, for trainers."""
        self.backbone.gradient_checkpointing_enable(**options)


class PairwiseReward(RewardModel):
    """See the config. Trainable: ``tunesmith.kinds.reward_model.Fittable``."""

    config: Pairwise

    def setup(self, runtime: Runtime) -> None:
        """Load the backbone and put a new head on it.

        Raises:
            ConfigError: If the backbone is an encoder-decoder or has adapters on.
        """
        lm = load(self.config.model, runtime=runtime, **device_map(self.config.arguments))
        if lm.family == "encoder-decoder":
            raise ConfigError(["'model' must be an encoder or a decoder, not an encoder-decoder"], "pairwise")
        if lm.adapters:
            raise ConfigError(["'model' has adapters on; merge them first (the Export stage does)"], "pairwise")
        self._take(lm.model.base_model, lm.tokenizer, lm.family)
        generator = torch.Generator().manual_seed(runtime.seed)
        width = self.head.weight.shape[1]
        with torch.no_grad():  # standard deviation as in Stiennon et al. 2020, appendix B.1
            self.head.weight.copy_(torch.randn(self.head.weight.shape, generator=generator) / (width + 1) ** 0.5)
            self.head.bias.zero_()
        self.head.to(lm.device)

    def _take(self, backbone: Any, tokenizer: Any, family: str) -> None:
        self.tokenizer, self.family = tokenizer, family
        self.scorer = Scorer(backbone, last=family == "decoder")
        self.scorer.eval()
        self.limit = readable(backbone, tokenizer, self.config.max_length)
        self.pad_id = pad_id(backbone.config, tokenizer)

    @property
    def backbone(self) -> Any:
        """The transformers model without a head."""
        return self.scorer.backbone

    @property
    def head(self) -> torch.nn.Linear:
        """The head."""
        return self.scorer.head

    def modules(self) -> Scorer:
        """Return backbone and head, for training."""
        return self.scorer

    def encode(self, prompts: Sequence[str], completions: Sequence[str]) -> tuple[list[list[int]], int]:
        """Return the ids of what is scored, and how many texts were cut."""
        return encoded(self.tokenizer, filled(self.config.template, prompts, completions), self.limit)

    def forward(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return scores (batch,), with gradients unless they are switched off."""
        scores: torch.Tensor = self.scorer(**as_batch(ids, self.pad_id, self.head.weight.device))
        return scores

    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[float | None]:
        """See :class:`tunesmith.kinds.reward_model.RewardModel`."""
        ids, _ = self.encode(prompts, completions)
        self.scorer.eval()
        found: list[float] = []
        with torch.no_grad():
            for rows in micro_batches(len(ids), self.config.batch_size):
                found += self.forward([ids[row] for row in rows]).double().tolist()
        return check_scores(self, found, len(prompts))

    def fit(self, preferences: Sequence[Preference], runtime: Runtime) -> Mapping[str, Any]:
        """Train; see :class:`tunesmith.kinds.reward_model.Fittable`.

        Dropout is on while training. Returns ``losses`` (one a step, unless ``logging_steps`` says otherwise), ``loss_steps``,
        ``validation_losses`` (step and loss), ``train_accuracy`` over the last epoch's pairs as they were met, ``steps``,
        ``pairs``, ``rankings``, ``texts``, ``cut`` (of these, too long) and ``cut_token_share``.

        Raises:
            ConfigError: For arguments that the trainer does not take.
            DataError: Without preferences.
            NumericError: If the loss is no number.
        """
        if not preferences:
            raise DataError("there are no preferences to train the reward model on.")
        with runtime.activated():
            return Fit(self, self.config, preferences, runtime).run()

    def save(self, folder: Path) -> None:
        """Write backbone, tokenizer and head."""
        from safetensors.torch import save_file

        self.backbone.save_pretrained(folder / "backbone")
        self.tokenizer.save_pretrained(folder / "backbone")
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.head.state_dict().items()}
        save_file(state, folder / "head.safetensors")
        # BERT's kin have a pooler of their own or not; the score is read before it
        record = {"format": 1, "family": self.family, "without_pooler": getattr(self.backbone, "pooler", 0) is None}
        (folder / RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")

    def load(self, folder: Path, runtime: Runtime) -> None:
        """Take up what :meth:`save` wrote.

        Raises:
            ArtifactError: If the folder is incomplete.
        """
        import transformers
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            family = record["family"]
            options: dict[str, Any] = {"add_pooling_layer": False} if record["without_pooler"] else {}
            state = load_file(folder / "head.safetensors")
            inner = folder / "backbone"
            backbone = transformers.AutoModel.from_pretrained(
                inner, local_files_only=True, dtype=runtime.torch_dtype, **options
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(inner, local_files_only=True)
        except (OSError, ValueError, KeyError, SafetensorError) as cause:
            raise ArtifactError(f"{folder} holds no whole pairwise reward model ({cause}); train it again.") from cause
        self._take(backbone.to(runtime.device), tokenizer, family)
        self.head.load_state_dict(state)
        self.head.to(runtime.device)

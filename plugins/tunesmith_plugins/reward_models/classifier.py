"""A label's logit as reward; see :class:`tunesmith_plugins.reward_models.Classifier`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tunesmith.errors import ConfigError
from tunesmith.kinds.reward_model import RewardModel
from tunesmith.lm import load
from tunesmith.reward import check_scores
from tunesmith.runtime import Runtime
from tunesmith.scoring import micro_batches
from tunesmith_plugins.reward_models.config import Classifier
from tunesmith_plugins.reward_models.inputs import as_batch, encoded, filled, pad_id, readable


class ClassifierReward(RewardModel):
    """See the config."""

    config: Classifier

    def setup(self, runtime: Runtime) -> None:
        """Load the model and find the label.

        Raises:
            ConfigError: If the model has no such label; the message lists those it has.
        """
        self.lm = load(self.config.model, runtime=runtime, head="classification")
        self.lm.model.eval()
        self.index = label_index(self.lm.model.config, self.config.label)
        self.limit = readable(self.lm.model, self.lm.tokenizer, self.config.max_length)
        model = self.lm.model.config
        if self.lm.family == "decoder" and model.pad_token_id is None:
            # decoders find the token to read from by looking for padding
            model.pad_token_id = self.lm.tokenizer.pad_token_id or self.lm.tokenizer.eos_token_id
        self.pad_id = pad_id(model, self.lm.tokenizer)

    def score(self, prompts: Sequence[str], completions: Sequence[str], **columns: Sequence[Any]) -> list[float | None]:
        """See :class:`tunesmith.kinds.reward_model.RewardModel`."""
        ids, _ = encoded(self.lm.tokenizer, filled(self.config.template, prompts, completions), self.limit)
        scores: list[float] = []
        with self.lm.evaluating():
            for rows in micro_batches(len(ids), self.config.batch_size):
                inputs = as_batch([ids[row] for row in rows], self.pad_id, self.lm.device)
                scores += self.lm.model(**inputs).logits[:, self.index].double().tolist()
        return check_scores(self, scores, len(prompts))


def label_index(config: Any, label: str) -> int:
    """Return the index of a label given by name or by index.

    Raises:
        ConfigError: If there is none; the message lists the labels.
    """
    names = {int(index): str(name) for index, name in config.id2label.items()}
    for index, name in names.items():
        if name == label:
            return index
    if label.isdecimal() and int(label) in names:
        return int(label)
    known = ", ".join(f"{index}: {name}" for index, name in sorted(names.items()))
    raise ConfigError([f"'label': the model has no label {label!r}; it has {known}"], "classifier")

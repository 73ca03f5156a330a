"""What is found in training arguments before a model is read."""

from __future__ import annotations

import pytest
import transformers.integrations

from tunesmith.errors import ConfigError
from tunesmith.training.arguments import Settings, check


@pytest.mark.parametrize("asked", ["tensorboard", ["wandb", "tensorboard"]])
def test_a_tracker_that_an_extra_brings_is_asked_for_by_the_extra(monkeypatch, asked):
    settings = Settings(where="tuned", batch_size=1, learning_rate=1e-3, given={"report_to": asked})
    monkeypatch.setattr(transformers.integrations, "is_tensorboard_available", lambda: True)
    check(settings)
    monkeypatch.setattr(transformers.integrations, "is_tensorboard_available", lambda: False)
    with pytest.raises(ConfigError, match=r"pip install 'tunesmith\[tensorboard\]' @ arguments.report_to"):
        check(settings)

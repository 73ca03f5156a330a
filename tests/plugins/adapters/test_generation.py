"""Adapters under the built-in engine: batches with a cache agree with single prompts and with plain scoring."""

import pytest
import torch

from tunesmith.generation import generate
from tunesmith.runtime import Runtime
from tunesmith.scoring import token_logps
from tunesmith.testing.adapters import move
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.adapters import Bottleneck, LoRA, Prefix, Prompt, PTuning

PROMPTS = ["the cat sees a dog", "one two", "big red bird likes the small house and eats"]


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
@pytest.mark.parametrize(
    "config",
    [LoRA(), Bottleneck(reduction=4), Prompt(tokens=3), PTuning(tokens=3), Prefix(tokens=3)],
    ids=lambda c: type(c).__name__,
)
def test_the_engine_need_not_know(family, config):
    lm = config.build().attach(tiny_lm(family), Runtime())
    move(lm.adapters[0])
    together = generate(lm, PROMPTS, max_new_tokens=8)
    for prompt, completion in zip(PROMPTS, together, strict=True):
        (alone,) = generate(lm, [prompt], max_new_tokens=8)
        assert completion.token_ids == alone.token_ids
        ids = torch.tensor([list(completion.token_ids)])
        with torch.no_grad():
            logps, _, _ = token_logps(lm, [lm.tokenizer(prompt)["input_ids"]], ids, torch.tensor([ids.shape[1]]))
        assert torch.allclose(logps[0], torch.tensor(completion.logp), atol=1e-3)

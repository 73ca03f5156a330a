"""What the statistical kit is given: callables of all kinds, and probabilities that are none."""

import pytest
import torch

from tunesmith.errors import ConfigError, NumericError
from tunesmith.testing.samplers import drawer, follows, the_same_again, the_same_in_any_batch

ROW = torch.linspace(-1, 1, 7)
SOUND = drawer("chain")


@pytest.mark.parametrize("kind", [torch.Tensor.int, torch.Tensor.numpy, torch.Tensor.tolist])
def test_tokens_may_be_any_whole_numbers(kind):
    def draw(logits, seeds, positions):
        return kind(SOUND(logits, seeds, positions))

    assert follows(draw, ROW, count=2**12) == follows(SOUND, ROW, count=2**12)
    for check in (the_same_again, the_same_in_any_batch):
        assert check(draw, batch=8, vocab=50) == check(SOUND, batch=8, vocab=50)


@pytest.mark.parametrize("kind", [torch.Tensor.numpy, torch.Tensor.tolist])
def test_a_row_and_its_probabilities_may_be_arrays_and_lists(kind):
    expected = follows(SOUND, ROW, ROW.softmax(-1), count=2**12)
    assert follows(SOUND, kind(ROW), kind(ROW.softmax(-1)), count=2**12) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        lambda tokens: tokens[:-1],
        lambda tokens: tokens[:, None],
        lambda tokens: tokens.float(),
        lambda tokens: None,
        lambda tokens: tokens - 7,
        lambda tokens: tokens + 7,
    ],
)
def test_what_is_no_token_a_row_is_said_and_not_counted(wrong):
    def draw(logits, seeds, positions):
        return wrong(SOUND(logits[:, :7], seeds, positions) if logits.shape[1] > 7 else SOUND(logits, seeds, positions))

    with pytest.raises(NumericError, match="the sampler gave"):
        follows(draw, ROW, count=2**12)


def test_a_sampler_that_writes_into_one_buffer_is_compared_with_what_it_wrote():
    buffer, calls = torch.empty(64, dtype=torch.int64), []

    def draw(logits, seeds, positions):
        calls.append(len(calls))
        buffer[: len(logits)] = (SOUND(logits, seeds, positions) + len(calls)) % logits.shape[1]
        return buffer[: len(logits)]

    assert not the_same_again(draw).ok


@pytest.mark.parametrize(
    "probabilities", [ROW[:-1].softmax(-1), ROW * torch.nan, -ROW.softmax(-1), ROW * 0, ROW.softmax(-1)[None]]
)
def test_probabilities_that_are_none_are_refused(probabilities):
    with pytest.raises(ConfigError, match="probabilities"):
        follows(SOUND, ROW, probabilities, count=2**10)
    with pytest.raises(ConfigError, match="one row of logits"):
        follows(SOUND, ROW[None], count=2**10)

"""Side by side with transformers' logits processors, where their result is defined."""

import math

import pytest
import torch
from transformers import generation as hf

from tunesmith.testing.samplers import logits_of, rows_of
from tunesmith_plugins.samplers import MinP, RepetitionPenalty, Temperature, TopK, TopP

VOCAB = 61


def grid(batch, seed=0):
    """Logits of few different values, so that there are many ties."""
    return (logits_of(batch, VOCAB, seed=seed) * 2).round() / 2


def applied(config, logits, rows=None):
    return config.build().apply(logits, rows_of(len(logits), VOCAB) if rows is None else rows)


@pytest.mark.parametrize("k", [1, 2, 7, 60, 61, 100])
def test_top_k_keeps_the_same_tokens_and_all_ties(k):
    for logits in (logits_of(16, VOCAB), grid(16)):
        assert torch.equal(applied(TopK(k=k), logits), hf.TopKLogitsWarper(k)(None, logits))


@pytest.mark.parametrize("p", [0.01, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("least", [1, 5])
def test_top_p_keeps_the_same_tokens(p, least):
    logits = logits_of(16, VOCAB)
    theirs = hf.TopPLogitsWarper(p, min_tokens_to_keep=least)(None, logits)
    assert torch.equal(applied(TopP(p=p, min_keep=least), logits), theirs)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_top_p_keeps_as_many_tokens_where_some_tie(p):
    """Which of equal ones stay is undefined in transformers (its sort is not stable); how many is defined."""
    logits = grid(64)
    ours = applied(TopP(p=p), logits)
    theirs = hf.TopPLogitsWarper(p)(None, logits)
    probabilities = logits.double().softmax(-1).sort(-1).values.cumsum(-1)
    clear = ((probabilities - (1 - p)).abs() > 2e-6).all(-1)  # else float32 rounding decides
    assert int(clear.sum()) > 50
    assert torch.equal((ours > -math.inf).sum(-1)[clear], (theirs > -math.inf).sum(-1)[clear])
    assert torch.equal(ours.sort(-1).values[clear], theirs.sort(-1).values[clear])


def test_among_equals_at_the_border_of_top_p_the_highest_ids_stay():
    logits = torch.zeros(1, 10)
    kept = applied(TopP(p=0.35), logits, rows_of(1, 10)) > -math.inf
    assert kept[0].nonzero()[:, 0].tolist() == [6, 7, 8, 9]


@pytest.mark.parametrize("p", [0.0, 0.02, 0.3, 1.0])
def test_min_p_keeps_the_same_tokens(p):
    logits = logits_of(16, VOCAB)
    assert torch.equal(applied(MinP(p=p), logits), hf.MinPLogitsWarper(p)(None, logits))


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0])
def test_temperature_divides_alike(temperature):
    logits = logits_of(8, VOCAB)
    assert torch.equal(
        applied(Temperature(temperature=temperature), logits), hf.TemperatureLogitsWarper(temperature)(None, logits)
    )


@pytest.mark.parametrize("penalty", [0.5, 1.2, 3.0])
def test_the_repetition_penalty_is_the_same(penalty):
    logits, rows = logits_of(4, VOCAB), rows_of(4, VOCAB)
    ours = applied(RepetitionPenalty(penalty=penalty), logits, rows)
    for row in range(4):
        ids = rows.history[row : row + 1, : int(rows.history_lengths[row])]
        theirs = hf.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits[row : row + 1])
        assert torch.equal(ours[row : row + 1], theirs)


def test_a_window_forgets_what_is_further_back():
    logits, rows = logits_of(5, VOCAB), rows_of(5, VOCAB)
    ours = applied(RepetitionPenalty(penalty=2.0, window=2), logits, rows)
    for row in range(5):
        length = int(rows.history_lengths[row])
        ids = rows.history[row : row + 1, max(0, length - 2) : length]
        theirs = hf.RepetitionPenaltyLogitsProcessor(2.0)(ids, logits[row : row + 1])
        assert torch.equal(ours[row : row + 1], theirs)

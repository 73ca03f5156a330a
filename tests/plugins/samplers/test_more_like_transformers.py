"""The further links side by side with transformers' logits processors."""

import math

import pytest
import torch
from attrs import evolve
from transformers import generation as hf

from tunesmith.testing.samplers import logits_of, rows_of
from tunesmith_plugins.samplers import (
    BadWords,
    BiasedSequence,
    Epsilon,
    Eta,
    LengthDecay,
    MinLength,
    NoRepeatNgram,
    SequenceBias,
    TopH,
    Typical,
)

VOCAB = 61


def applied(config, logits, rows=None):
    return config.build().apply(logits, rows_of(len(logits), VOCAB) if rows is None else rows)


def one_by_one(processor, logits, rows):
    """Apply a processor of transformers to each row with its own history."""
    found = []
    for row in range(len(logits)):
        ids = rows.history[row : row + 1, : int(rows.history_lengths[row])]
        found.append(processor(ids, logits[row : row + 1]))
    return torch.cat(found)


@pytest.mark.parametrize("mass", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("least", [1, 5])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_typical_keeps_the_same_tokens(mass, least, spread):
    logits = logits_of(64, VOCAB, spread=spread)
    theirs = hf.TypicalLogitsWarper(mass, min_tokens_to_keep=least)(None, logits)
    assert torch.equal(applied(Typical(mass=mass, min_keep=least), logits), theirs)


@pytest.mark.parametrize("epsilon", [1e-4, 0.003, 0.02, 0.3])
@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_epsilon_and_eta_keep_the_same_tokens(epsilon, spread):
    logits = logits_of(64, VOCAB, spread=spread)
    assert torch.equal(applied(Epsilon(epsilon=epsilon), logits), hf.EpsilonLogitsWarper(epsilon)(None, logits))
    assert torch.equal(applied(Eta(epsilon=epsilon), logits), hf.EtaLogitsWarper(epsilon)(None, logits))


@pytest.mark.parametrize("h", [0.1, 0.4, 0.9, 1.0])
def test_top_h_keeps_the_same_tokens(h):
    for vocab in (VOCAB, 300):  # below and above its hundred candidates
        logits = logits_of(32, vocab)
        ours = TopH(h=h).build().apply(logits, rows_of(32, vocab))
        theirs = hf.TopHLogitsWarper(h)(None, logits)
        differ = (ours != theirs).sum(-1)
        # at h = 1 float32 decides in transformers whether the last candidate, of hardly any entropy, stays
        assert int((differ > (h == 1.0)).sum()) == 0


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_repeat_ngram_bans_the_same_tokens(size):
    logits = logits_of(40, 4)
    rows = evolve(rows_of(40, 4), history_lengths=torch.arange(40) % 7)
    ours = NoRepeatNgram(size=size).build().apply(logits, rows)
    for row in range(40):
        ids = rows.history[row : row + 1, : int(rows.history_lengths[row])]
        if ids.shape[1] == 0:
            assert torch.equal(ours[row], logits[row])
            continue
        theirs = hf.NoRepeatNGramLogitsProcessor(size)(ids, logits[row : row + 1].clone())
        assert torch.equal(ours[row : row + 1], theirs)
    assert bool((ours == -math.inf).any()) or size == 3


def test_sequence_bias_adds_the_same():
    sequences = {(3,): 1.5, (1, 2): -2.0, (0, 1, 2): 4.0, (2, 2): -1.0}
    logits, rows = logits_of(60, 4), rows_of(60, 4)
    config = SequenceBias(sequences=tuple(BiasedSequence(tokens=k, bias=b) for k, b in sequences.items()))
    ours = config.build().apply(logits, rows)
    theirs = one_by_one(hf.SequenceBiasLogitsProcessor([[list(k), b] for k, b in sequences.items()]), logits, rows)
    assert torch.equal(ours, theirs)


def test_bad_words_are_banned_alike():
    words = [[3], [1, 2], [0, 1, 0]]
    logits, rows = logits_of(60, 4), rows_of(60, 4)
    ours = BadWords(sequences=tuple(map(tuple, words))).build().apply(logits, rows)
    theirs = one_by_one(hf.NoBadWordsLogitsProcessor(words, eos_token_id=99), logits, rows)
    assert torch.equal(ours, theirs)


def test_the_end_is_kept_back_alike():
    logits = logits_of(30, VOCAB)
    rows = evolve(rows_of(30, VOCAB), position=torch.arange(30))
    ours = MinLength(end=(2, 5), tokens=12).build().apply(logits, rows)
    for row in range(30):
        processor = hf.MinNewTokensLengthLogitsProcessor(7, 12, [2, 5])
        ids = torch.zeros(1, 7 + row, dtype=torch.int64)
        assert torch.equal(ours[row : row + 1], processor(ids, logits[row : row + 1]))


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.3])
def test_the_end_is_raised_alike(factor):
    logits = logits_of(30, VOCAB)
    logits[4, 2] = -math.inf
    rows = evolve(rows_of(30, VOCAB), position=torch.arange(30))
    ours = LengthDecay(end=(2, 5), start=6, factor=factor).build().apply(logits, rows)
    for row in range(30):
        processor = hf.ExponentialDecayLengthPenalty((6, factor), [2, 5], 7)
        ids = torch.zeros(1, 7 + row, dtype=torch.int64)
        assert torch.allclose(ours[row : row + 1], processor(ids, logits[row : row + 1]), rtol=1e-6)

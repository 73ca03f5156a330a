"""What every link leaves, beside its rule in float64: the same tokens outside 2e-6 of the limit, the same values within float32."""

import numpy as np
import pytest
import torch

from tunesmith.kinds.sampler import STATUS_EMPTY, Rows
from tunesmith.registry import samplers
from tunesmith.testing.samplers import logits_of
from tunesmith_plugins import kernels
from tunesmith_plugins.samplers import (
    XTC,
    AllowedTokens,
    BadWords,
    BiasedSequence,
    Dry,
    DynamicTemperature,
    Epsilon,
    Eta,
    ForcedTokens,
    FrequencyPenalty,
    LengthDecay,
    LogitBias,
    MaxLength,
    MinLength,
    MinP,
    Mirostat,
    NoRepeatNgram,
    PresencePenalty,
    RepetitionPenalty,
    SequenceBias,
    Temperature,
    TopA,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    Watermark,
)
from tunesmith_plugins.samplers.walk import lowered

VOCAB, BATCH = 211, 12
CONFIGS = (
    *(TopK(k=k, ties=t) for k in (0, 1, 7, 210, 211, 500) for t in ("hf", "low")),
    *(TopP(p=p, min_keep=m, ties=t) for p in (1e-6, 0.3, 0.9, 0.999, 1.0) for m in (1, 5) for t in ("hf", "low", "all")),
    *(MinP(p=p) for p in (0.0, 0.02, 0.3, 1.0)),
    *(Typical(mass=m, min_keep=k) for m in (0.01, 0.5, 0.95, 1.0) for k in (1, 4)),
    *(Epsilon(epsilon=e) for e in (0.0, 3e-4, 0.01, 0.9)),
    *(Eta(epsilon=e) for e in (0.0, 3e-4, 0.01, 0.9)),
    *(TopA(a=a) for a in (0.0, 0.2, 1.0)),
    *(TopNSigma(n=n) for n in (0.0, 0.7, 2.0)),
    *(TopH(h=h, candidates=c) for h in (0.1, 0.5, 1.0) for c in (1, 20, 300)),
    *(XTC(threshold=t, probability=p) for t in (0.0, 0.02, 0.1, 0.6) for p in (0.0, 1.0)),
    *(Mirostat(tau=t, version=v) for t in (0.2, 1.5, 4.0) for v in (1, 2)),
    *(NoRepeatNgram(size=s, window=w) for s in (0, 1, 2, 3) for w in (0, 4)),
    BadWords(sequences=((3,), (1, 2), (2, 1, 2))),
    AllowedTokens(tokens=(0, 1, 5, 7, 210)),
    *(MinLength(end=(0, 210), tokens=n) for n in (0, 3, 100)),
    *(MaxLength(end=(0, 210), tokens=n) for n in (1, 4, 100)),
    ForcedTokens(at={"2": 7, "5": 210}),
    Temperature(temperature=0.3),
    *(DynamicTemperature(low=0.5, high=2.0, exponent=e) for e in (1.0, 2.5)),
    *(RepetitionPenalty(penalty=p, window=w) for p in (0.7, 1.4) for w in (0, 3)),
    *(kind(penalty=0.6, window=w, prompt=p) for kind in (PresencePenalty, FrequencyPenalty) for w in (0, 3) for p in (True, False)),
    *(Dry(multiplier=0.7, base=1.6, allowed_length=a, window=w, breakers=b) for a in (1, 2) for w in (0, 6) for b in ((), (2,))),
    LogitBias(bias={"0": 1.5, "210": -3.0}),
    SequenceBias(sequences=(BiasedSequence(tokens=(4,), bias=1.0), BiasedSequence(tokens=(1, 2), bias=-2.0))),
    LengthDecay(end=(0, 210), start=1, factor=1.2),
    *(Watermark(gamma=0.5, delta=2.0, context=c) for c in (1, 3)),
)  # fmt: skip


def kinds_of_logits():
    """Peaked, wide and flat rows, rows of many ties, of bfloat16, and with removed tokens."""
    base = logits_of(BATCH, VOCAB, seed=1, spread=1.0)
    peaked = base * 3
    peaked[:, :9] += 12 + logits_of(BATCH, 9, seed=2).abs()
    removed = (base * 3).masked_fill(logits_of(BATCH, VOCAB, seed=3) > 1.0, -torch.inf)
    return {
        "peaked": peaked.roll(31, dims=1),
        "wide": base * 3,
        "flat": base * 0.5,
        "ties": (base * 2).round() / 2,
        "bfloat16": (base * 3).bfloat16(),
        "removed": removed,
    }


HISTORIES = [(), (1,), (1, 2), (2, 1, 2, 1), (3, 1, 2, 3, 1), (0, 210, 0, 210, 5, 0), (1, 1, 1, 1), (7, 8, 9, 7, 8)]


@pytest.fixture(scope="module")
def places(oracle):
    found = [
        oracle.place(HISTORIES[n % len(HISTORIES)], prompt=len(HISTORIES[n % len(HISTORIES)]) // 2)
        for n in range(BATCH)
    ]
    width = max(len(p.history) for p in found)
    history = torch.tensor([list(p.history) + [-1] * (width - len(p.history)) for p in found])
    numbers = torch.arange(BATCH)
    rows = Rows(
        seed=numbers,
        stream=numbers * 0,
        position=torch.tensor([p.position for p in found]),
        history=history,
        history_lengths=torch.tensor([len(p.history) for p in found]),
        prompt_lengths=torch.tensor([p.prompt for p in found]),
    )
    return found, rows


def test_every_registered_link_has_a_rule_and_cases():
    names = {samplers.get(entry.id).name_in_chain for entry in samplers.entries() if entry.builtin}
    # structured works on text and has tests of its own
    assert names - {"chain", "greedy", "structured"} == {config.name_in_chain for config in CONFIGS}


def fused(config, logits, rows):
    """What the kernel leaves, or None where the link has no step for it; rows that are left empty are given as such."""
    step = lowered(config.build(), rows)
    if step is None:
        return None
    history = {"history": rows.history, "history_lengths": rows.history_lengths}
    done = kernels.apply_chain(logits, [step], **history)
    return done.logits.masked_fill((done.status == STATUS_EMPTY)[:, None], -torch.inf)


@pytest.mark.parametrize("way", ["apply", "fused"])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: str(c).replace(" ", ""))
def test_a_link_leaves_what_its_rule_leaves(config, way, oracle, places):
    found, rows = places
    link, judged = config.build(), 0
    for name, logits in kinds_of_logits().items():
        left = link.apply(logits, rows) if way == "apply" else fused(config, logits, rows)
        if left is None:
            return
        ours = left.double().numpy()
        for row, place in enumerate(found):
            ways = oracle.after(config, logits[row].double().numpy(), place)
            expected = next(w for w in ways if w.share == 1) if len(ways) > 1 else ways[0]
            left, right = np.isfinite(ours[row]), np.isfinite(expected.z)
            clear = ~expected.open
            assert (left == right)[clear].all(), f"{name}, row {row}: {np.flatnonzero((left != right) & clear)}"
            both = left & right
            np.testing.assert_allclose(ours[row][both], expected.z[both], rtol=3e-6, atol=3e-6)
            judged += clear.sum()
    assert judged > 0.9 * BATCH * VOCAB * 5  # nearly nothing was left open

"""What every link leaves, beside its rule in float64: the same tokens outside 2e-6 of the limit, the same values within float32."""

import numpy as np
import pytest
import torch
from sampler_links import CONFIGS, registered_links

from tunesmith.kinds.sampler import STATUS_EMPTY, Rows
from tunesmith.testing.samplers import logits_of
from tunesmith_plugins import kernels
from tunesmith_plugins.samplers.walk import lowered

VOCAB, BATCH = 211, 12


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
    assert registered_links() == {config.name_in_chain for config in CONFIGS}


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

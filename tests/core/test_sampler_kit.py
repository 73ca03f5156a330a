"""The statistical kit: its numbers are those of scipy, sound samplers pass it, and every fault put in on purpose is found."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tunesmith import philox
from tunesmith.errors import NumericError
from tunesmith.testing.samplers import (
    audit,
    chi_square_survival,
    coupons,
    detectable,
    drawer,
    failures,
    follows,
    g_test,
    head_and_tail,
    independent,
    keeps_to_the_support,
    large_rows,
    logits_of,
    no_window,
    poisson_survival,
    reaches_a_large_vocabulary,
    reaches_every_token,
    reaches_the_edges,
    resolves_small_probabilities,
    table,
    the_same_again,
    the_same_in_any_batch,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SOUND = drawer("chain")


# --- numbers


@pytest.mark.parametrize(("statistic", "freedom"), [(0.5, 1), (40.0, 1), (255.0, 255), (420.0, 255), (3.0, 7)])
def test_tails_are_those_of_scipy(statistic, freedom):
    assert chi_square_survival(statistic, freedom) == pytest.approx(stats.chi2.sf(statistic, freedom), rel=1e-9)


@pytest.mark.parametrize(("count", "mean"), [(0, 2.0), (1, 0.01), (12, 1.0), (300, 221.0)])
def test_poisson_tails_are_those_of_scipy(count, mean):
    assert poisson_survival(count, mean) == pytest.approx(stats.poisson.sf(count - 1, mean), rel=1e-9)


def test_the_g_test_is_that_of_scipy_over_the_correction_of_williams():
    seen, p = np.array([30, 14, 34, 45, 57, 20]), np.full(6, 1 / 6)
    g = stats.power_divergence(seen, lambda_="log-likelihood").statistic
    williams = 1 + (6 * 6 - 1) / (6 * 200 * 5)
    found = g_test(torch.tensor(seen), torch.tensor(p))
    assert found.statistic == pytest.approx(g / williams)
    assert found.freedom == 5


def test_small_cells_are_put_together_and_impossible_draws_are_fatal():
    p = torch.tensor([0.5, 0.49, 0.006, 0.003, 0.001])
    found = g_test(torch.tensor([510, 480, 6, 3, 1]), p)
    assert found.freedom == 2  # of 6, 3 and 1 expected the two small ones become one, which takes in the third
    pooled = stats.power_divergence([510, 480, 10], [500, 490, 10], lambda_="log-likelihood").statistic
    assert found.statistic == pytest.approx(pooled, rel=0.01)
    impossible = g_test(torch.tensor([5, 5, 1]), torch.tensor([0.5, 0.5, 0.0]))
    assert impossible.p_value == 0
    assert impossible.impossible == 1


@pytest.mark.parametrize("vocab", [2, 7, 257])
def test_p_values_of_sound_draws_are_uniform_far_into_the_tail(vocab):
    """4000 samples of a multinomial law: as many p-values below 1e-1, 1e-2 and 1e-3 as there should be."""
    generator = np.random.default_rng(vocab)
    p = generator.dirichlet(np.ones(vocab) * 0.7)
    seen = generator.multinomial(2000, p, size=4000)
    values = np.array([g_test(torch.tensor(row), torch.tensor(p)).p_value for row in seen])
    for level in (0.1, 0.01, 0.001):
        found = int((values < level).sum())
        assert stats.binomtest(found, len(values), level * 1.25, alternative="greater").pvalue > 1e-4
        assert stats.binomtest(found, len(values), level * 0.6, alternative="less").pvalue > 1e-4


def test_the_stated_power_is_there():
    """An effect of the stated size is found in 97 to 100 of 100 samples, one of a third of it hardly ever."""
    generator, cells, count, alpha = np.random.default_rng(0), 16, 4096, 1e-7
    w = detectable(cells - 1, count, alpha)
    p = np.full(cells, 1 / cells)
    sign = np.where(np.arange(cells) % 2, 1, -1)
    shares = {}
    for part in (1.0, 1 / 3):
        seen = generator.multinomial(count, p * (1 + sign * w * part), size=400)
        shares[part] = np.mean([g_test(torch.tensor(row), torch.tensor(p)).p_value < alpha for row in seen])
    assert 0.97 < shares[1.0] <= 1
    assert shares[1 / 3] < 0.1


def test_after_so_many_coupons_hardly_any_set_is_incomplete():
    generator, tokens = np.random.default_rng(1), 40
    count = coupons(tokens, 0.05)
    incomplete = [len(np.unique(generator.integers(0, tokens, count))) < tokens for _ in range(2000)]
    assert 0.02 < np.mean(incomplete) < 0.06


# --- sound samplers


def test_our_draw_passes_everything():
    found = audit(SOUND)
    assert failures(found) == []
    assert len(found) == 21
    assert sum(f.alpha for f in found) <= 1.2e-6 + 3 * 1e-6  # the exact checks have no chance in them
    assert "independence of seeds" in table(found)


@pytest.mark.exhaustive
def test_our_draw_resolves_small_probabilities():
    assert failures([resolves_small_probabilities(SOUND)]) == []


def exact_race(logits, seeds, positions):
    """An exponential race with a number of 53 bits a token: a sound draw that shares nothing with ours but the hash."""
    place = torch.arange(logits.shape[1])[None, :]
    u = philox.uniform(*torch.broadcast_tensors(seeds[:, None], place, positions[:, None] + 1000)).clamp(min=2.0**-53)
    return (logits.double() - (-u.log()).log()).argmax(-1)


@pytest.mark.parametrize("over", ["seeds", "positions"])
def test_another_sound_sampler_passes_too(over):
    found = [
        follows(exact_race, logits_of(1, 7, seed=3)[0], count=2**14, over=over),
        independent(exact_race, over, vocab=16, pairs=2**12),
        no_window(exact_race, over, vocab=128, count=2**10),
        the_same_again(exact_race),
        the_same_in_any_batch(exact_race),
        keeps_to_the_support(exact_race),
    ]
    assert failures(found) == []


# --- faults put in on purpose


def uniforms(seeds, positions):
    return philox.uniform(seeds, torch.zeros_like(seeds), positions)


def by_uniform(u):
    """Inverse CDF in float64 with a number of our choice."""

    def draw(logits, seeds, positions):
        running = logits.double().softmax(-1).cumsum(-1)
        found = torch.searchsorted(running.contiguous(), u(seeds, positions)[:, None] * running[:, -1:], right=True)
        return found[:, 0].clamp(max=logits.shape[1] - 1)

    return draw


def test_the_harness_of_the_faults_is_sound_itself():
    assert failures(audit_small(by_uniform(uniforms))) == []


def audit_small(draw):
    """The checks that the faults below are about, in sizes that suit draws written in torch."""
    return (
        the_same_again(draw, batch=16, vocab=97),
        the_same_in_any_batch(draw, batch=18, vocab=97),
        keeps_to_the_support(draw, vocab=97),
        follows(draw, logits_of(1, 17, seed=17, spread=1.5)[0], count=2**16),
        reaches_every_token(draw, vocab=256),
        independent(draw, "seeds", pairs=2**14),
        independent(draw, "positions", pairs=2**14),
        independent(draw, "rows", pairs=2**14),
        no_window(draw, "seeds", vocab=512),
        no_window(draw, "positions", vocab=512),
        no_window(draw, "both", vocab=512),
    )


def twin_seeds(logits, seeds, positions):
    return SOUND(logits, seeds // 2, positions)


def seeds_and_positions_added(logits, seeds, positions):
    return SOUND(logits, seeds + positions, torch.zeros_like(positions))


def position_left_out(logits, seeds, positions):
    return SOUND(logits, seeds, torch.zeros_like(positions))


def by_place_in_the_batch(logits, seeds, positions):
    return SOUND(logits, seeds + torch.arange(len(seeds)), positions)


def one_seed_for_all(logits, seeds, positions):
    return SOUND(logits, seeds[:1].expand_as(seeds), positions)


def last_token_dropped(logits, seeds, positions):
    return SOUND(torch.cat([logits[:, :-1], torch.full((len(logits), 1), -1e30)], dim=1), seeds, positions)


def a_little_too_warm(logits, seeds, positions):
    return SOUND(logits / 1.05, seeds, positions)


def a_step_too_far(logits, seeds, positions):
    return (SOUND(logits, seeds, positions) + 1) % logits.shape[1]


def eight_bits_of_noise(logits, seeds, positions):
    return by_uniform(lambda s, p: (uniforms(s, p) * 256).floor() / 256)(logits, seeds, positions)


def a_weak_generator(logits, seeds, positions):
    """A linear congruence over the seed."""
    return by_uniform(lambda s, p: ((s % 65536 * 75 + 74 + p) % 65537).double() / 65537)(logits, seeds, positions)


class Forgetful:
    """Draws with a counter of its own."""

    calls = 0

    def __call__(self, logits, seeds, positions):
        self.calls += 1
        return SOUND(logits, seeds + self.calls * 1000003, positions)


@pytest.mark.parametrize(
    ("fault", "found_by"),
    [
        (twin_seeds, {"independence of seeds", "no sliding window, seeds"}),
        (seeds_and_positions_added, {"no sliding window, seeds against positions"}),
        (position_left_out, {"independence of positions", "no sliding window, positions"}),
        (by_place_in_the_batch, {"the same in any batch"}),
        (one_seed_for_all, {"the same in any batch", "independence of seeds", "independence of rows"}),
        (last_token_dropped, {"every token of 256"}),
        (a_little_too_warm, {"distribution, 17 tokens, over seeds"}),
        (a_step_too_far, {"distribution, 17 tokens, over seeds", "support"}),
        (eight_bits_of_noise, {"distribution, 17 tokens, over seeds"}),
        (a_weak_generator, {"independence of seeds", "no sliding window, seeds"}),
        (Forgetful(), {"the same again"}),
    ],
)
def test_a_fault_is_found_by_the_check_that_is_about_it(fault, found_by):
    failed = {f.check for f in audit_small(fault) if not f.ok}
    assert found_by <= failed, failed


def off_by_one_in_top_p(keep_more):
    """Our top-p with one token too many or too few."""

    def draw(logits, seeds, positions):
        p = logits[0].double().softmax(-1)
        order = p.argsort(descending=True)
        kept = int((p[order].cumsum(-1) < 0.9).sum()) + 1 + keep_more
        removed = torch.ones(len(p), dtype=torch.bool)
        removed[order[:kept]] = False
        return SOUND(logits.masked_fill(removed, -math.inf), seeds, positions)

    return draw


@pytest.mark.parametrize("keep_more", [-1, 0, 1])
def test_a_top_p_that_is_off_by_one_token_is_found(keep_more):
    row = logits_of(1, 41, seed=1, spread=1.5)[0]
    p = row.double().softmax(-1)
    order = p.argsort()
    p[order[p[order].cumsum(-1) <= 0.1]] = 0  # the rule, counted from below
    finding = follows(off_by_one_in_top_p(keep_more), row, p / p.sum(), count=2**16)
    assert finding.ok == (keep_more == 0), str(finding)
    if keep_more == 1:
        assert "no probability" in finding.means


def test_a_temperature_off_by_one_and_a_half_percent_is_found_in_a_million_draws():
    row = logits_of(1, 17, seed=17, spread=1.5)[0]
    assert follows(SOUND, row, count=2**20).ok
    assert not follows(lambda z, s, p: SOUND(z / 1.015, s, p), row, count=2**20).ok


def test_a_tail_that_is_too_light_or_too_heavy_is_found():
    row, head = large_rows()["sure"]

    def shifted(by):
        return lambda z, s, p: SOUND((row + (torch.arange(len(row)) > 0) * by).expand(len(z), -1), s, p)

    assert not head_and_tail(shifted(1.2), "sure", row, head, count=2**15).ok
    assert not head_and_tail(shifted(-60.0), "sure", row, head, count=2**16).ok
    half = head_and_tail(lambda z, s, p: SOUND(z[:, : z.shape[1] // 2], s, p), "zipf", *large_rows()["zipf"], count=512)
    assert not half.ok


def test_a_vocabulary_of_which_a_part_cannot_be_reached_is_found():
    assert not reaches_the_edges(last_token_dropped).ok
    assert not reaches_a_large_vocabulary(lambda z, s, p: SOUND(z[:, : z.shape[1] // 2], s, p)).ok
    assert not reaches_a_large_vocabulary(lambda z, s, p: 2 * SOUND(z[:, ::2].contiguous(), s, p)).ok


def test_logits_that_are_written_to_are_found():
    def careless(logits, seeds, positions):
        found = SOUND(logits, seeds, positions)
        if logits.stride(0):
            logits[:, 0] -= 1.0
        return found

    assert not the_same_again(careless).ok


def test_a_token_outside_the_vocabulary_and_a_row_without_tokens_are_errors():
    with pytest.raises(NumericError, match="token 17 for a vocabulary of 17"):
        follows(lambda z, s, p: torch.full_like(s, 17), logits_of(1, 17)[0], count=10)
    with pytest.raises(NumericError, match="status is 3"):
        SOUND(torch.full((1, 4), -math.inf), torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))


def test_a_drawer_knows_history_stream_and_parameters():
    row, seeds = torch.zeros(4, 3), torch.arange(4)
    still = torch.zeros(4, dtype=torch.int64)
    assert drawer("no_repeat_ngram(size=1)", history=[0, 2])(row, seeds, still).tolist() == [1] * 4
    assert drawer("top_k(k=3, ties='low')", parameters={"top_k.k": 1})(row, seeds, still).tolist() == [0] * 4
    wide, many = torch.zeros(64, 97), torch.arange(64)
    streams = [drawer("chain", stream=n)(wide, many, torch.zeros_like(many)) for n in (0, 1)]
    assert not torch.equal(*streams)

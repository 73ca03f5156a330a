"""The further links against their definitions, in closed form or by an oracle written out in plain Python."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from attrs import evolve

from tunesmith.errors import ConfigError, DataError
from tunesmith.kinds.sampler import Rows
from tunesmith.testing.samplers import chi_square_limit, logits_of, rows_of
from tunesmith_plugins.samplers import (
    XTC,
    AllowedTokens,
    BadWords,
    BiasedSequence,
    Chain,
    Dry,
    DynamicTemperature,
    ForcedTokens,
    FrequencyPenalty,
    LogitBias,
    MaxLength,
    Mirostat,
    PresencePenalty,
    SequenceBias,
    TopA,
    TopK,
    TopNSigma,
    TopP,
    Watermark,
    presets,
)
from tunesmith_plugins.samplers.watermark import detect, green

VOCAB = 61


def applied(config, logits, rows):
    return config.build().apply(logits, rows)


def probabilities(row):
    values = row.double().numpy()
    e = np.exp(values - values.max())
    return e / e.sum()


def kept(row):
    return set((row > -math.inf).nonzero()[:, 0].tolist())


@pytest.mark.parametrize("a", [0.0, 0.2, 1.0])
def test_top_a_compares_with_the_square_of_the_largest(a):
    logits = logits_of(20, VOCAB)
    for row, after in zip(logits, applied(TopA(a=a), logits, rows_of(20)), strict=True):
        p = probabilities(row)
        assert kept(after) == {i for i in range(VOCAB) if p[i] >= a * p.max() ** 2}


@pytest.mark.parametrize("n", [0.0, 0.5, 2.0])
def test_top_n_sigma_keeps_what_is_within_n_deviations_whatever_the_temperature(n):
    logits = logits_of(20, VOCAB)
    logits[:, 7] = -math.inf
    after = applied(TopNSigma(n=n), logits, rows_of(20))
    for row, changed in zip(logits, after, strict=True):
        finite = row[row > -math.inf].double().numpy()
        assert kept(changed) == {i for i in range(VOCAB) if float(row[i]) >= finite.max() - n * finite.std()}
    cold = applied(TopNSigma(n=n), logits / 4, rows_of(20))
    assert torch.equal(cold > -math.inf, after > -math.inf)


def test_xtc_excludes_the_top_choices_but_the_least_likely_of_them():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.06, 0.04]]).log()
    assert kept(applied(XTC(threshold=0.1, probability=1.0), logits, rows_of(1, 5))[0]) == {2, 3, 4}
    assert kept(applied(XTC(threshold=0.35, probability=1.0), logits, rows_of(1, 5))[0]) == {0, 1, 2, 3, 4}
    assert kept(applied(XTC(threshold=0.1, probability=0.0), logits, rows_of(1, 5))[0]) == {0, 1, 2, 3, 4}


def test_xtc_happens_as_often_as_it_says_and_the_draw_has_other_noise():
    count = 20000
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.06, 0.04]]).log().expand(count, 5)
    rows = evolve(rows_of(1, 5).select(torch.zeros(count, dtype=torch.int64)), seed=torch.arange(count))
    sampler = XTC(threshold=0.1, probability=0.3).build()
    touched = (sampler.apply(logits, rows)[:, 0] == -math.inf).double().mean().item()
    assert touched == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / count))
    token = sampler.sample(logits, rows).token
    expected = 0.7 * np.array([0.4, 0.3, 0.2, 0.06, 0.04]) + 0.3 * np.array([0, 0, 0.2, 0.06, 0.04]) / 0.3
    seen = torch.bincount(token, minlength=5).double().numpy()
    assert float(((seen - count * expected) ** 2 / (count * expected)).sum()) < chi_square_limit(4)


@pytest.mark.parametrize("exponent", [1.0, 2.5])
def test_the_dynamic_temperature_follows_the_entropy(exponent):
    logits = torch.stack([torch.zeros(8), torch.tensor([40.0] + [0.0] * 7), torch.arange(8.0)])
    after = applied(DynamicTemperature(low=0.5, high=2.0, exponent=exponent), logits, rows_of(3, 8))
    p = probabilities(logits[2])
    share = float(-(p * np.log(p)).sum()) / math.log(8)
    temperatures = [2.0, 0.5, 0.5 + 1.5 * share**exponent]
    for row, changed, temperature in zip(logits, after, temperatures, strict=True):
        assert torch.allclose(changed, row / temperature, rtol=1e-5)


@pytest.mark.parametrize("window", [0, 2])
@pytest.mark.parametrize("prompt", [False, True])
def test_penalties_count_the_generated_tokens(window, prompt):
    rows = rows_of(25, 6)
    rows = evolve(rows, prompt_lengths=rows.history_lengths // 2)
    logits = logits_of(25, 6)
    options = {"penalty": 0.75, "window": window, "prompt": prompt}
    presence, frequency = (applied(kind(**options), logits, rows) for kind in (PresencePenalty, FrequencyPenalty))
    for row in range(25):
        length, begin = int(rows.history_lengths[row]), int(rows.prompt_lengths[row])
        first = max(length - window if window else 0, 0 if prompt else begin)
        counts = Counter(rows.history[row, first:length].tolist())
        for token in range(6):
            once, often = 0.75 * (counts[token] > 0), 0.75 * counts[token]
            assert float(presence[row, token]) == pytest.approx(float(logits[row, token]) - once, abs=1e-6)
            assert float(frequency[row, token]) == pytest.approx(float(logits[row, token]) - often, abs=1e-6)


def longest_repetition(history, token, breakers):
    """How long the repetition is that ``token`` would continue: by trying every place and every length."""
    best = 0
    for place in range(1, len(history)):
        if history[place] != token:
            continue
        length = 0
        while length < place and history[place - 1 - length] == history[-1 - length]:
            if history[-1 - length] in breakers:
                break
            length += 1
        best = max(best, length)
    return best


@pytest.mark.parametrize("breakers", [(), (1,)])
def test_dry_costs_by_the_length_of_the_repetition(breakers):
    generator = torch.Generator().manual_seed(3)
    history = torch.randint(0, 3, (60, 14), generator=generator)
    rows = evolve(rows_of(60, 4), history=history, history_lengths=torch.arange(60) % 15)
    logits = logits_of(60, 4)
    after = applied(Dry(multiplier=0.5, base=1.5, allowed_length=2, breakers=breakers), logits, rows)
    charged = 0
    for row in range(60):
        ids = history[row, : int(rows.history_lengths[row])].tolist()
        for token in range(4):
            length = longest_repetition(ids, token, breakers)
            cost = 0.5 * 1.5 ** (length - 2) if length >= 2 else 0.0
            charged += cost > 0
            assert float(after[row, token]) == pytest.approx(float(logits[row, token]) - cost, abs=1e-5)
    assert charged > 10


def test_biases_are_added_and_ids_outside_the_vocabulary_are_named():
    logits, rows = logits_of(3, 6), rows_of(3, 6)
    after = applied(LogitBias(bias={"2": 1.5}), logits, rows)
    assert torch.equal(after[:, 2], logits[:, 2] + 1.5)
    assert torch.equal(after[:, [0, 1, 3, 4, 5]], logits[:, [0, 1, 3, 4, 5]])
    for config in (
        LogitBias(bias={"6": 1.0}),
        SequenceBias(sequences=(BiasedSequence(tokens=(1, 6), bias=1.0),)),
        BadWords(sequences=((1, 6),)),
        AllowedTokens(tokens=(6,)),
        MaxLength(end=(6,)),
        ForcedTokens(at={"0": 6}),
    ):
        with pytest.raises(ConfigError, match=r"\[6\].*0 to 5"):
            applied(config, logits, rows)
    for wrong in ({"a": 1.0}, {"1": math.inf}):
        with pytest.raises(ValueError, match="bias"):
            LogitBias(bias=wrong)


def test_allowed_forced_and_last_tokens_leave_nothing_else():
    logits = logits_of(4, 6)
    rows = evolve(rows_of(4, 6), position=torch.arange(4))
    assert all(kept(row) == {1, 4} for row in applied(AllowedTokens(tokens=(1, 4)), logits, rows))
    assert [kept(row) for row in applied(MaxLength(end=(5,), tokens=3), logits, rows)] == [
        *[set(range(6))] * 2,
        {5},
        {5},
    ]
    assert [kept(row) for row in applied(ForcedTokens(at={"1": 2}), logits, rows)] == [
        set(range(6)), {2}, set(range(6)), set(range(6)),
    ]  # fmt: skip


def test_a_mask_without_a_possible_token_is_a_status_and_not_another_token():
    logits = logits_of(2, 6)
    logits[0, [1, 4]] = -math.inf
    draw = AllowedTokens(tokens=(1, 4)).build().sample(logits, rows_of(2, 6))
    assert draw.status.tolist() == [3, 0]
    assert draw.token[0] == -1
    assert int(draw.token[1]) in {1, 4}


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_brings_the_surprise_to_its_target(version):
    """On fixed logits of 9 bits of entropy, the mean surprise after the start is within a tenth of a bit of the target."""
    vocab, steps = 2000, 400
    logits = torch.log(1 / torch.arange(1, vocab + 1.0) ** 1.0)[None, :].repeat(8, 1)
    sampler = Chain(links=(Mirostat(tau=3.0, eta=0.1, version=version),)).build()
    rows, surprises = rows_of(8, vocab), []
    for position in range(steps):
        draw = sampler.sample(logits, evolve(rows, position=torch.full((8,), position)))
        rows = evolve(rows, state=draw.state)
        surprises.append(-draw.logp_truncated.double() / math.log(2))
    free = float(-(logits[0].double().softmax(-1) * logits[0].double().log_softmax(-1)).sum()) / math.log(2)
    assert free > 6
    assert float(torch.stack(surprises[100:]).mean()) == pytest.approx(3.0, abs=0.1)


def test_mirostat_rows_may_leave_and_enter_the_batch():
    logits = logits_of(4, VOCAB)
    sampler = Chain(links=(Mirostat(tau=2.0),)).build()
    rows = rows_of(4, VOCAB)
    first = sampler.sample(logits, rows)
    order = torch.tensor([2, 0])
    state = {name: held.select(order) for name, held in first.state.items()}
    fewer = sampler.sample(logits[order], evolve(rows.select(order), state=state))
    whole = sampler.sample(logits, evolve(rows, state=first.state))
    assert torch.equal(fewer.token, whole.token[order])
    held = fewer.state["mirostat"]
    joined = held.join([held.select(torch.tensor([1]))])
    assert torch.equal(joined.mu, torch.cat([held.mu, held.mu[1:]]))


def drawn_text(config, length=200, vocab=500, seed=0):
    sampler = (config or Chain()).build()
    rows = evolve(
        rows_of(1, vocab),
        seed=torch.tensor([seed]),
        history=torch.zeros(1, length + 4, dtype=torch.int64),
        history_lengths=torch.tensor([4]),
        prompt_lengths=torch.tensor([4]),
    )
    for position in range(length):
        logits = logits_of(1, vocab, seed=1000 * seed + position)
        token = sampler.sample(logits, evolve(rows, position=torch.tensor([position]))).token
        rows.history[0, 4 + position] = token[0]
        rows = evolve(rows, history_lengths=rows.history_lengths + 1)
    return rows.history[0, 4:].tolist()


def test_a_watermark_is_found_with_its_key_and_only_with_its_key():
    config = Watermark(gamma=0.25, delta=3.0)
    marked = drawn_text(config)
    assert detect(marked, config, prompt_ids=[0] * 4).p_value < 1e-12
    assert detect(marked, Watermark(gamma=0.25, delta=3.0, key=1), prompt_ids=[0] * 4).p_value > 1e-4
    assert detect(marked[50:120], config).p_value < 1e-6  # a piece is enough


def test_the_detector_counts_pairs_once_whatever_holds_the_ids():
    ids, config = [5, 6, 7, 5, 6, 7, 8, 5, 6] * 3, Watermark()
    plain = detect(ids, config, prompt_ids=[1, 2])
    assert plain.tokens < len(ids)
    for of in (torch.tensor, np.array, tuple):
        assert detect(of(ids), config, prompt_ids=of([1, 2])) == plain
    for wrong in (torch.tensor([ids]), [1.5, 2.0], "text"):
        with pytest.raises(DataError, match="a list of token ids was expected"):
            detect(wrong, config)
    with pytest.raises(DataError, match="-100 is no token id; leave padding out"):
        detect([*ids, -100, -100], config)
    with pytest.raises(DataError, match="a Watermark was expected, of a chain the link itself, not Chain"):
        detect(ids, Chain(links=(config,)))


def test_the_kernel_marks_what_the_detector_calls_green_by_the_values_of_each_row():
    logits, history = torch.zeros(3, 300), torch.tensor([[5, 7, 2, 0], [9, 1, 4, 3], [6, 0, 0, 0]])
    number = torch.arange(3)
    rows = Rows(
        seed=number, stream=number, position=number, history=history, history_lengths=torch.tensor([3, 4, 1]),
        prompt_lengths=number * 0,
        parameters={"watermark.gamma": torch.tensor([0.3, 0.8, 0.5]), "watermark.context": torch.tensor([2, 4, 2])},
    )  # fmt: skip
    found = Chain(links=(Watermark(key=99, delta=1.5),)).build().apply_links(logits, rows).logits
    for row, (context, gamma) in enumerate((([7, 2], 0.3), ([9, 1, 4, 3], 0.8))):
        config = Watermark(key=99, gamma=float(torch.tensor(gamma)), delta=1.5, context=len(context))
        expected = green(config, torch.tensor([context]), torch.arange(300)[None])
        assert torch.equal(found[row] > 0, expected[0])
    assert not found[2].any()  # too few ids before


def test_without_a_watermark_p_values_are_uniform():
    config = Watermark(gamma=0.25)
    values = sorted(detect(drawn_text(None, length=60, seed=seed), config).p_value for seed in range(40))
    assert values[0] > 1e-4
    assert 0.25 < sum(values) / 40 < 0.8  # uniform but for the steps of a discrete count


def test_the_share_of_green_tokens_is_gamma_behind_any_context():
    contexts = torch.arange(50)[:, None]
    shares = green(Watermark(gamma=0.25), contexts, torch.arange(4000)[None, :]).double().mean(1)
    assert float((shares - 0.25).abs().max()) < 5 * math.sqrt(0.25 * 0.75 / 4000)


def test_ties_go_by_the_stated_rule():
    logits, rows = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]]), rows_of(1, 5)
    assert kept(applied(TopK(k=2), logits, rows)[0]) == {0, 1, 2, 3}
    assert kept(applied(TopK(k=2, ties="low"), logits, rows)[0]) == {0, 1}
    p = float(torch.softmax(logits, -1)[0, :2].sum()) - 0.01
    assert kept(applied(TopP(p=p), logits, rows)[0]) == {0, 3}
    assert kept(applied(TopP(p=p, ties="low"), logits, rows)[0]) == {0, 1}
    assert kept(applied(TopP(p=p, ties="all"), logits, rows)[0]) == {0, 1, 2, 3}
    for ties, expected in {"hf": {0, 2, 3}, "low": {0, 1, 2}, "all": {0, 1, 2, 3}}.items():
        assert kept(applied(TopP(p=0.01, min_keep=3, ties=ties), logits, rows)[0]) == expected
    equal = torch.zeros(1, 5)
    assert kept(applied(TopP(p=0.01, ties="low"), equal, rows)[0]) == {0}


# --- presets: what each engine keeps, by its rules written out in float64


def smallest_set(p, share):
    order = np.argsort(-p, kind="stable")
    before = np.cumsum(p[order]) - p[order]
    return set(order[before < share * p.sum()].tolist())


def largest(p, k):
    return set(np.argsort(-p, kind="stable")[:k].tolist())


def only(p, some):
    return np.array([value if i in some else 0.0 for i, value in enumerate(p)])


def at_least(p, share):
    return {i for i in range(len(p)) if p[i] > 0 and p[i] >= share * p.max()}


@pytest.mark.parametrize("seed", range(6))
def test_presets_keep_what_the_engines_keep(seed):
    logits = logits_of(1, VOCAB, seed=seed, spread=1.5)
    rows, k, share, floor, temperature = rows_of(1, VOCAB), 20, 0.8, 0.12, 0.7
    warm, plain = probabilities(logits[0] / temperature), probabilities(logits[0])

    def left(chain):
        after = logits
        for link in chain.links:
            after = link.build().apply(after, rows)
        return kept(after[0])

    hf = only(warm, largest(warm, k))
    hf = only(hf, smallest_set(hf, share))
    assert left(presets.hf(temperature=temperature, top_k=k, top_p=share, min_p=floor)) == at_least(hf, floor)
    vllm = only(warm, at_least(warm, floor))
    vllm = only(vllm, largest(vllm, k))
    assert left(presets.vllm(temperature=temperature, top_k=k, top_p=share, min_p=floor)) == smallest_set(vllm, share)
    cpp = only(plain, largest(plain, k))
    cpp = only(cpp, smallest_set(cpp, share))
    assert left(presets.llamacpp(temperature=temperature, top_k=k, top_p=share, min_p=floor)) == at_least(cpp, floor)


def test_the_order_of_vllm_makes_a_difference():
    """The example of weights 1, .1, .055, .04 with k = 4, p = .95 and min-p .05: two tokens against three."""
    logits, rows = torch.tensor([[1, 0.1, 0.055, 0.04]]).log(), rows_of(1, 4)
    counts = {}
    for name in ("hf", "vllm"):
        after = logits
        for link in getattr(presets, name)(top_k=4, top_p=0.95, min_p=0.05).links:
            after = link.build().apply(after, rows)
        counts[name] = len(kept(after[0]))
    assert counts == {"hf": 3, "vllm": 2}


@pytest.mark.parametrize("preset", [presets.vllm, presets.llamacpp])
def test_a_temperature_of_0_is_greedy_behind_the_penalties(preset):
    logits = torch.tensor([[0.0, 3.0, 2.9, 1.0]]).expand(64, -1)
    zeros = torch.zeros(64, dtype=torch.int64)
    one = torch.ones_like(zeros)
    rows = Rows(
        seed=torch.arange(64),
        stream=zeros,
        position=one,
        history=one[:, None],
        history_lengths=one,
        prompt_lengths=zeros,
    )
    assert set(preset(temperature=0.0).build().sample(logits, rows).token.tolist()) == {1}
    penalised = preset(temperature=0.0, presence_penalty=1.0, top_p=0.5).build()
    assert set(penalised.sample(logits, rows).token.tolist()) == {2}

"""Greedy tokens are those of stepwise; drawn ones have the target's distribution, computed in float64."""

import attrs
import pytest
import torch
import transformers
from scipy import stats

from tunesmith.errors import ConfigError, NumericError
from tunesmith.generation import component, generate, prompt_ids
from tunesmith.kinds.sampler import Rows
from tunesmith.lm import LM
from tunesmith.testing import conformance
from tunesmith.testing.models import tiny_lm, tiny_tokenizer
from tunesmith_plugins.decoders import Guidance, Speculative
from tunesmith_plugins.decoders.distributions import distribution, links_of, noise, pick
from tunesmith_plugins.decoders.proposals import fitted, followers
from tunesmith_plugins.engines import Transformers

PROMPTS = ["the cat sees a tree", "dog", "one two red and blue fish in the house", "no fish"]
HOT = "chain(links=[repetition_penalty(penalty=1.3), temperature(temperature=1.5), top_p(p=0.9)])"
TRUNCATED = "chain(links=[temperature(temperature=1.3), top_k(k=3)])"


@conformance(Speculative(), Speculative(tokens=2, ngram=1, verify="tokens"))
def test_conforms(check):
    check()


@pytest.fixture(scope="module", params=["decoder", "encoder-decoder"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def lm(family):
    return tiny_lm(family, spread=0.7)


@pytest.fixture(scope="module")
def close(lm, family):
    """A draft model that often agrees with the model."""
    draft = tiny_lm(family, spread=0.7)
    with torch.no_grad():
        for number, parameter in enumerate(draft.model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter += 0.1 * parameter.std() * noise
    return draft


def speculating(draft=None, **options):
    decoder = Speculative(**options).build()
    if draft is not None:
        decoder.draft_with(draft)
    return decoder


def tokens(lm, **options):
    return [c.token_ids for c in generate(lm, PROMPTS, **{"max_new_tokens": 12, **options})]


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("verify", ["distribution", "tokens"])
@pytest.mark.parametrize("size", [1, 8])
def test_greedy_tokens_are_those_of_stepwise(lm, close, count, verify, size):
    expected = generate(lm, PROMPTS, max_new_tokens=12)
    for draft in (None, close):
        found = generate(
            lm,
            PROMPTS,
            decoder=speculating(draft, tokens=count, verify=verify),
            engine=Transformers(batch_size=size),
            max_new_tokens=12,
        )
        assert [c.token_ids for c in found] == [c.token_ids for c in expected]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.logp == pytest.approx(theirs.logp, abs=1e-4)
            assert ours.finish == theirs.finish
        assert sum(c.details["accepted"] for c in found) > 0


def test_greedy_tokens_are_those_of_stepwise_with_a_cache_in_8_bits(lm, close):
    engine = Transformers(batch_size=3, cache="int8")
    expected = generate(lm, PROMPTS, engine=engine, max_new_tokens=12)
    for draft in (None, close):
        found = generate(lm, PROMPTS, decoder=speculating(draft, tokens=3), engine=engine, max_new_tokens=12)
        assert [c.token_ids for c in found] == [c.token_ids for c in expected]
        assert sum(c.details["accepted"] for c in found) > 0


@pytest.mark.parametrize("sampler", [HOT, "mirostat(tau=3.0)", "chain(links=[xtc(threshold=0.05)])"])
def test_verified_by_token_any_sampler_draws_the_tokens_of_stepwise(lm, close, sampler):
    options = {"sampler": sampler, "max_new_tokens": 10, "completions": 3}
    expected = [c.token_ids for c in generate(lm, PROMPTS, **options)]
    for draft in (None, close):
        decoder = speculating(draft, verify="tokens")
        assert [c.token_ids for c in generate(lm, PROMPTS, decoder=decoder, **options)] == expected


def test_results_do_not_hang_on_the_batch(lm, close):
    before = lm.model.generation_config.eos_token_id
    lm.model.generation_config.eos_token_id = [1, *range(8, 14)]  # rows end at all times
    try:
        options = {"sampler": HOT, "completions": 4, "max_new_tokens": [5, 12, 9, 12]}
        for draft in (None, close):
            first, *others = (
                [
                    c.token_ids
                    for c in generate(
                        lm, PROMPTS, decoder=speculating(draft), engine=Transformers(batch_size=size), **options
                    )
                ]
                for size in (1, 5, 16)
            )
            assert len({len(ids) for ids in first}) > 3
            assert all(other == first for other in others)
    finally:
        lm.model.generation_config.eos_token_id = before


def whole(lm, prompt, written):
    """Logits of the next token, (1, vocab)."""
    with torch.no_grad():
        if lm.family == "decoder":
            return lm.model(torch.tensor([[*prompt, *written]])).logits[:, -1]
        start = lm.model.config.decoder_start_token_id
        return lm.model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[start, *written]])).logits[
            :, -1
        ]


def truncated(logits, temperature=1.3, k=3):
    """The sampler ``TRUNCATED`` written out in float64, (vocab,)."""
    z = logits[0].double() / temperature
    return torch.where(z >= z.topk(k).values[-1], z, -torch.inf).softmax(-1)


def texts_of(lm, prompt, length):
    """Every text of a length that the truncated sampler can draw, with its probability; the end comes early."""
    found, open_ = {}, {(): 1.0}
    for _ in range(length):
        longer = {}
        for written, mass in open_.items():
            p = truncated(whole(lm, prompt, written))
            for token in p.nonzero().flatten().tolist():
                (found if token == 1 else longer)[(*written, token)] = mass * p[token].item()
        open_ = longer
    return {**found, **open_}


def g_test(counts, expected):
    """P-value that counts come from the expected probabilities; rare outcomes are taken together."""
    total = sum(counts.values())
    assert set(counts) <= set(expected), "a text was drawn that is impossible"
    rare = [t for t, p in expected.items() if p * total < 5]
    rows = [(counts.get(t, 0), p * total) for t, p in expected.items() if t not in rare]
    if rare:
        rows.append((sum(counts.get(t, 0) for t in rare), sum(expected[t] for t in rare) * total))
    assert len(rows) > 5
    return stats.power_divergence([o for o, _ in rows], [e for _, e in rows], lambda_="log-likelihood").pvalue


@pytest.mark.parametrize("verify", ["distribution", "tokens"])
@pytest.mark.parametrize("drafted", ["close", "far", "lookup"])
def test_drawn_texts_have_the_targets_distribution(lm, close, family, drafted, verify):
    draft = {"close": close, "far": tiny_lm(family, seed=5, spread=0.7), "lookup": None}[drafted]
    prompt = "the dog sees the dog sees the"
    found = generate(
        lm,
        [prompt],
        sampler=TRUNCATED,
        decoder=speculating(draft, tokens=3, verify=verify),
        engine=Transformers(batch_size=500),
        completions=3000,
        max_new_tokens=4,
    )
    counts = {}
    for completion in found:
        counts[completion.token_ids] = counts.get(completion.token_ids, 0) + 1
    expected = texts_of(lm, list(prompt_ids(lm, [prompt])[0]), 4)
    assert sum(expected.values()) == pytest.approx(1)
    assert g_test(counts, expected) > 1e-3
    if drafted == "close":
        assert sum(c.details["accepted"] for c in found) > 1000


def test_proposals_are_accepted_at_one_less_the_total_variation(lm, close, family):
    """With three tokens to write there is one proposal, for the second: E(accept) = sum over the first of 1 - TV."""
    prompt = PROMPTS[0]
    ids = list(prompt_ids(lm, [prompt])[0])
    for draft in (close, tiny_lm(family, seed=5, spread=0.7)):
        first = truncated(whole(lm, ids, []))
        first[1] = 0.0  # an ended text gets no proposal
        expected = 0.0
        for token in first.nonzero().flatten().tolist():
            p, q = truncated(whole(lm, ids, [token])), truncated(whole(draft, ids, [token]))
            expected += first[token].item() / first.sum().item() * torch.minimum(p, q).sum().item()
        found = generate(
            lm,
            [prompt],
            sampler=TRUNCATED,
            decoder=speculating(draft),
            engine=Transformers(batch_size=500),
            completions=4000,
            max_new_tokens=3,
        )
        judged = sum(c.details["judged"] for c in found)
        accepted = sum(c.details["accepted"] for c in found)
        assert judged == sum(c.token_ids[0] != 1 for c in found)
        deviation = (expected * (1 - expected) / judged) ** 0.5
        assert accepted / judged == pytest.approx(expected, abs=4 * deviation + 1e-9)


def test_a_draft_that_is_the_model_is_always_accepted(lm):
    for verify in ("distribution", "tokens"):
        found = generate(
            lm,
            PROMPTS,
            sampler=HOT,
            decoder=speculating(lm, tokens=4, verify=verify),
            max_new_tokens=11,
            min_new_tokens=11,
        )
        for completion in found:
            # the prompt's call gives one token, then 4 proposals and one more a call: 1 + 5 + 5
            assert completion.details == {
                "proposed": 8,
                "judged": 8,
                "accepted": 8,
                "accept_rate": 1.0,
                "target_calls": 3,
                "tokens_per_call": 11 / 3,
            }


def test_lookup_proposes_what_followed_last_time():
    text = [1, 2, 3, 4, 9, 2, 3, 5, 6, 2, 3]
    assert followers(text, 3, 4) == [5, 6, 2, 3]
    assert followers(text, 1, 2) == [5, 6]
    assert followers([1, 2, 3, 7, 3, 8, 2, 3], 2, 3) == [7, 3, 8], "a longer match beats a later one"
    assert followers([5, 5, 5], 3, 4) == [5, 5, 5, 5]
    assert followers([7, 1, 2, 3, 1, 2, 3], 3, 7) == [1, 2, 3, 1, 2, 3, 1], "the copy goes on into itself"
    assert followers([1, 2, 3], 3, 4) == []
    assert followers([1], 3, 4) == []
    assert followers([1, 1], 3, 0) == []


def test_lookup_saves_calls_where_text_repeats():
    class Counter:
        """Copies the prompt's pattern for ever."""

        batch_size, joins, rolls_back, vocab_size = 4, True, True, 8
        eos_token_ids, max_length, cache_tokens = frozenset(), None, None
        calls = 0

        def after(self, ids):
            logits = torch.zeros(len(ids), 8)
            return logits.scatter(1, (ids[:, None] % 4) + 1, 9.0)

        def begin(self, prompts):
            return self.after(torch.tensor([p[-1] for p in prompts])), None

        def extend(self, token_ids, lengths, cache):
            self.calls += 1
            return self.after(token_ids.flatten()).unflatten(0, token_ids.shape), None

        def crop(self, cache, counts):
            return None

        def select(self, cache, index):
            return None

        def context(self, prompt):
            return prompt

        def text(self, token_ids):
            return ""

    from tunesmith.kinds.decoder import Limits, Request
    from tunesmith.runtime import Runtime

    model = Counter()
    (found,) = (
        Speculative(tokens=9)
        .build()
        .decode(
            model,
            [Request(prompt_ids=(1, 2, 3, 4, 1, 2, 3, 4))],
            component(None, "sampler"),
            Limits(max_new_tokens=21),
            Runtime(),
        )
    )
    assert found.token_ids == (1, 2, 3, 4) * 5 + (1,)
    assert model.calls <= 5
    assert found.details["target_calls"] == model.calls + 1


def test_stop_strings_ends_and_limits_hold_within_a_block(lm):
    free = generate(lm, PROMPTS, max_new_tokens=12, min_new_tokens=12)
    stop = free[0].text.split()[3]
    expected = generate(lm, PROMPTS, max_new_tokens=12, min_new_tokens=12, stop=[stop])
    found = generate(lm, PROMPTS, max_new_tokens=12, min_new_tokens=12, stop=[stop], decoder=speculating(lm, tokens=7))
    assert [(c.text, c.token_ids, c.finish) for c in found] == [(c.text, c.token_ids, c.finish) for c in expected]
    assert expected[0].finish == "stop"
    for limit in range(1, 8):
        assert tokens(lm, decoder=speculating(lm, tokens=3), max_new_tokens=limit) == tokens(lm, max_new_tokens=limit)


def test_distributions_are_those_that_samplers_draw_from():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 30, generator=generator) * 3
    each = torch.arange(5)
    history = torch.tensor([[1, 2, 2], [3, 0, 0], [4, 5, 0], [6, 0, 0], [7, 7, 7]])
    lengths = torch.tensor([3, 1, 2, 1, 3])
    rows = Rows(
        seed=each, stream=each, position=each * 0, history=history, history_lengths=lengths, prompt_lengths=lengths
    )
    for spelled in (
        HOT,
        TRUNCATED,
        "min_p(p=0.1)",
        "chain(links=[top_k(k=5), temperature(temperature=2.0)])",
    ):
        sampler = component(spelled, "sampler")
        found = distribution(links_of(sampler), logits, rows)
        draw = sampler.sample(logits, rows)
        torch.testing.assert_close(found.logp_of(draw.token).float(), draw.logp_processed, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.p_of(draw.token).log().float(), draw.logp_truncated, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.p_of(draw.token), found.p.gather(1, draw.token[:, None])[:, 0])
        assert torch.equal(found.at(torch.tensor([3, 1])), found.p[[3, 1]])
        torch.testing.assert_close(found.p.sum(-1), torch.ones(5, dtype=torch.float64))


def test_pick_never_takes_what_has_no_weight():
    p = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).double().expand(4, -1)
    noise = torch.tensor([0.0, 0.4999, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert pick(p, noise).tolist() == [1, 1, 3, 3]


def test_noise_of_several_places_is_that_of_rows_at_these_places():
    each = torch.tensor([3, -9, 2**62])
    rows = Rows(
        seed=each,
        stream=each % 5,
        position=torch.tensor([0, 7, 100]),
        history=each[:, None],
        history_lengths=each * 0 + 1,
        prompt_lengths=each * 0 + 1,
    )
    found = noise(rows, 4, (0, 1 << 31))
    for number, draw in enumerate((0, 1 << 31)):
        for place in range(4):
            later = attrs.evolve(rows, position=rows.position + place)
            assert torch.equal(found[number, :, place], later.uniform(draw))


def test_a_draft_of_another_width_proposes_tokens_of_the_model():
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert fitted(logits, 2).tolist() == [[1.0, 2.0]]
    assert fitted(logits, 4).tolist() == [[1.0, 2.0, 3.0, -torch.inf]]


def sliding():
    config = transformers.MistralConfig(
        vocab_size=51,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
        eos_token_id=1,
    )
    return LM(model=transformers.MistralForCausalLM(config).eval(), tokenizer=tiny_tokenizer(), family="decoder")


def test_mistakes_are_said(tmp_path):
    lm = tiny_lm()
    with pytest.raises(ConfigError, match=r"mirostat: what a link with a memory.*verify='tokens'"):
        generate(lm, PROMPTS, sampler="mirostat", decoder="speculative")
    with pytest.raises(ConfigError, match=r"cache of the model forgets.*'stepwise'"):
        generate(sliding(), PROMPTS, decoder="speculative")
    with pytest.raises(ConfigError, match="cache of the draft model forgets"):
        generate(lm, PROMPTS, decoder=speculating(sliding()))
    with pytest.raises(ConfigError, match="GuidedModel cannot read several tokens"):
        generate(lm, PROMPTS, decoder=Guidance(decoder=Speculative()))
    with pytest.raises(ConfigError, match="the family 'encoder-decoder', the model of 'decoder'"):
        generate(lm, PROMPTS, decoder=speculating(tiny_lm("encoder-decoder")))
    other = tiny_lm()
    other.tokenizer.add_tokens(["elephant"])
    with pytest.raises(ConfigError, match=r"another tokenizer: 1 tokens .* 'elephant'"):
        generate(lm, PROMPTS, decoder=speculating(other))
    short = tiny_lm()
    short.model.config.max_position_embeddings = 16
    with pytest.raises(ConfigError, match=r"max_new_tokens=14 are more than the draft model's 16 positions"):
        generate(lm, PROMPTS, decoder=speculating(short), max_new_tokens=14)
    broken = tiny_lm()
    with torch.no_grad():
        broken.model.lm_head.weight[7] = torch.nan
    with pytest.raises(NumericError, match="NaN"):
        generate(broken, PROMPTS, decoder=speculating(lm))


def test_a_draft_model_comes_from_a_folder(tmp_path, lm, close):
    close.save(tmp_path / "draft")
    found = tokens(lm, sampler=HOT, decoder=Speculative(draft=str(tmp_path / "draft")))
    assert found == tokens(lm, sampler=HOT, decoder=speculating(close))
    assert found != tokens(lm, sampler=HOT)  # another way to draw from the same distribution

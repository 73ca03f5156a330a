"""Beam sampling: its distribution by the definition, worked out over all draws, and beside transformers' own."""

from collections import Counter
from itertools import permutations

import pytest
import torch

from tunesmith.errors import ConfigError
from tunesmith.generation import component, generate, prompt_ids
from tunesmith.kinds.decoder import Limits, Request
from tunesmith.runtime import Runtime
from tunesmith.testing import conformance
from tunesmith.testing.models import tiny_lm
from tunesmith.testing.samplers import chi_square_limit
from tunesmith_plugins.decoders import Beam

PROMPTS = ["the cat sees a tree", "dog", "one two red"]
MANY = 4000


@conformance(Beam(beams=3, draws=True))
def test_conforms(check):
    check()


class Table:
    """Four tokens, 0 ends; log-probabilities hang on the last token."""

    batch_size, joins, vocab_size, eos_token_ids, max_length = MANY * 2, True, 4, frozenset({0}), None
    table = (1.3 * torch.randn(4, 4, generator=torch.Generator().manual_seed(5))).log_softmax(-1)

    def begin(self, prompts):
        return self.step(torch.tensor([p[-1] for p in prompts]), torch.zeros(len(prompts)))

    def step(self, token_ids, cache):
        return self.table[token_ids], cache

    def select(self, cache, index):
        return cache[index]

    def context(self, prompt):
        return prompt

    def text(self, token_ids):
        return ""


def in_order(weights, count):
    """Yield every order in which ``count`` of the keys can be drawn without replacement, with its probability."""
    for order in permutations(weights, min(count, len(weights))):
        left, probability = sum(weights.values()), 1.0
        for key in order:
            probability *= weights[key] / left
            left -= weights[key]
        yield order, probability


def exact(table, start, width, length, scale):
    """Return texts, best first, to their probability: beam sampling by its definition, over all that can be drawn."""
    found = Counter()

    def go(running, finished, probability):
        if not running:
            texts = sorted(finished, key=lambda f: -f[0])[:width]
            found[tuple(text for _, text in texts)] += probability
            return
        joint = {}
        for number, (total, text) in enumerate(running):
            last = text[-1] if text else start
            logps = (table[last] / scale).log_softmax(-1).tolist()
            for token, logp in enumerate(logps):
                joint[number, token] = (total + logp, (*text, token))
        weights = {key: torch.tensor(total).double().exp().item() for key, (total, _) in joint.items()}
        for order, chance in in_order(weights, 2 * width):
            ended, going = list(finished), []
            for rank, key in enumerate(order):
                total, text = joint[key]
                if text[-1] != 0 and len(text) < length:
                    going.append((total, text))
                elif rank < width:
                    ended.append((total, text))
            going.sort(key=lambda g: -g[0])
            go(going[:width], ended, probability * chance)

    go([(0.0, ())], [], 1.0)
    return found


def drawn(decoder, sampler, start, count, length):
    """Return texts, best first, to how many of ``MANY`` seeds found them."""
    requests = [Request(prompt_ids=(start,), seed=seed, stream=s) for seed in range(MANY) for s in range(count)]
    engine = Table()
    limits = Limits(max_new_tokens=length)
    by_seed = {}
    for c in decoder.build().decode(engine, requests, component(sampler, "sampler"), limits, Runtime()):
        by_seed.setdefault(c.request // count, {})[c.stream] = c.token_ids
    return Counter(tuple(dict.fromkeys(own[s] for s in range(count))) for own in by_seed.values())


@pytest.mark.parametrize(("width", "length"), [(1, 1), (1, 3), (2, 1), (2, 2)])
def test_what_is_found_has_the_distribution_of_the_definition(width, length):
    # with a power of 0 a text's score is its log-probability, and "never" then stops no search too early
    decoder = Beam(beams=width, length_penalty=0.0, early_stopping="never", draws=True)
    for start in (1, 2):
        expected = exact(Table.table, start, width, length, 0.8)
        counts = drawn(decoder, "temperature(temperature=0.8)", start, width, length)
        assert set(counts) <= set(expected)
        cells = {texts: p * MANY for texts, p in expected.items() if p * MANY >= 5}
        rest = MANY - sum(cells.values())
        statistic = sum((counts[texts] - mean) ** 2 / mean for texts, mean in cells.items())
        if rest >= 5:
            statistic += (MANY - sum(counts[texts] for texts in cells) - rest) ** 2 / rest
        assert statistic < chi_square_limit(len(cells) - (rest < 5))


def test_its_texts_are_as_frequent_as_those_of_transformers():
    lm = tiny_lm(seed=1, spread=1.0)
    lm.model.generation_config.eos_token_id = [50, 3]  # likely ones; of more, transformers makes top-k keep more
    ids = prompt_ids(lm, PROMPTS[:1])[0]
    options = {"num_beams": 3, "do_sample": True, "top_k": 8, "max_new_tokens": 4}
    prompts = torch.tensor([ids]).expand(1500, -1)
    torch.manual_seed(0)
    theirs = lm.model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)[:, len(ids) :].tolist()
    found = generate(
        lm,
        [list(ids)] * 1500,
        sampler="top_k(k=8)",
        decoder="beam(beams=3, draws=true)",
        engine="transformers(batch_size=512)",
        max_new_tokens=4,
    )
    ours = Counter(c.token_ids for c in found)
    others = Counter(tuple(row[: next((n + 1 for n, t in enumerate(row) if t in (50, 3)), 4)]) for row in theirs)
    common = [text for text in ours | others if ours[text] + others[text] >= 20]
    assert len(common) > 5
    statistic = sum((ours[t] - others[t]) ** 2 / (ours[t] + others[t]) for t in common)
    rest = [1500 - sum(counts[t] for t in common) for counts in (ours, others)]
    statistic += (rest[0] - rest[1]) ** 2 / max(1, sum(rest))
    assert statistic < chi_square_limit(len(common))


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
def test_all_streams_are_texts_of_one_search_that_hangs_on_the_seed_alone(family):
    lm = tiny_lm(family, seed=1, spread=0.7)
    options = {"decoder": "beam(beams=4, draws=true)", "sampler": "chain(links=[temperature, top_k(k=20), xtc])"}
    together = generate(lm, PROMPTS, seeds=[1, 2, 3], completions=3, max_new_tokens=6, **options)
    for number, prompt in enumerate(PROMPTS):
        mine = together[3 * number : 3 * number + 3]
        assert len({c.token_ids for c in mine}) == 3
        assert [c.score for c in mine] == sorted((c.score for c in mine), reverse=True)
        alone = generate(lm, [prompt], seeds=[number + 1], completions=2, max_new_tokens=6, **options)
        assert [c.token_ids for c in alone] == [c.token_ids for c in mine[:2]]
    other = generate(lm, PROMPTS, seeds=[4, 5, 6], completions=3, max_new_tokens=6, **options)
    assert [c.token_ids for c in other] != [c.token_ids for c in together]


def test_the_samplers_truncation_counts_row_by_row():
    lm = tiny_lm(seed=1, spread=1.0)
    options = {"decoder": "beam(beams=3, draws=true)", "sampler": "top_k(k=9)", "max_new_tokens": 6}
    greedy = [c.token_ids for c in generate(lm, PROMPTS, max_new_tokens=6)]
    one = generate(lm, PROMPTS, parameters={"top_k.k": 1}, **options)
    assert [c.token_ids for c in one] == greedy
    mixed = generate(lm, PROMPTS, parameters={"top_k.k": [1, 9, 1]}, **options)
    assert [c.token_ids for c in mixed][::2] == greedy[::2]
    assert mixed[1].token_ids == generate(lm, PROMPTS, **options)[1].token_ids


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (None, "takes the likeliest token; take one that draws"),
        ("chain(links=[temperature, greedy])", "takes the likeliest token"),
        ("chain(links=[temperature, mirostat])", "remembers what it drew"),
    ],
)
def test_a_sampler_that_it_cannot_draw_with_is_refused(sampler, message):
    with pytest.raises(ConfigError, match=message):
        generate(tiny_lm(), PROMPTS, sampler=sampler, decoder="beam(draws=true)", max_new_tokens=2)

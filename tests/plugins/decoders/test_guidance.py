"""Side by side with transformers' own guidance, and with whole forward passes where it has none."""

import pytest
import torch
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from tunesmith.errors import ConfigError
from tunesmith.generation import component, generate, prompt_ids
from tunesmith.kinds.decoder import Limits, Request
from tunesmith.runtime import Runtime
from tunesmith.testing import conformance
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.decoders import Beam, BestOfN, Guidance
from tunesmith_plugins.decoders.guidance import GuidedModel, Steered
from tunesmith_plugins.engines import Transformers

PROMPTS = ["the cat sees a tree", "dog", "one two red and blue fish in the house"]
NEGATIVES = ["no fish", "the happy bird and the big cat", "dog"]
HOT = "chain(links=[temperature(temperature=1.5), top_p(p=0.9)])"


@conformance(
    Guidance(scale=2.0),
    Guidance(scale=-1.0, negative="the happy bird", decoder=Beam(beams=2)),
    Guidance(scale=0.5, decoder=BestOfN(n=2)),
)
def test_conforms(check):
    check()


@pytest.fixture(scope="module", params=["decoder", "encoder-decoder"])
def lm(request):
    return tiny_lm(request.param, spread=1.0)


def step_model(lm, size=8):
    engine = Transformers(batch_size=size).build()
    engine.sync(lm)
    return engine.step_model


def whole(lm, prompt, written):
    """Logits of the next token from one pass without a cache, (1, vocab) float32."""
    with torch.no_grad():
        if lm.family == "decoder":
            return lm.model(torch.tensor([[*prompt, *written]])).logits[:, -1]
        start = lm.model.config.decoder_start_token_id
        return lm.model(
            input_ids=torch.tensor([list(prompt)]), decoder_input_ids=torch.tensor([[start, *written]])
        ).logits[:, -1]


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1.0, 1.5, 4.0])
def test_logits_are_the_equation_at_every_step_and_in_every_arrangement_of_rows(lm, scale):
    model = GuidedModel(step_model(lm), scale)
    prompts, negatives = prompt_ids(lm, PROMPTS), prompt_ids(lm, NEGATIVES)

    def expected(rows):
        found = []
        for row, written in rows:
            logp = whole(lm, prompts[row], written).double().log_softmax(-1)
            negative = whole(lm, negatives[row], written).double().log_softmax(-1)
            found.append(scale * (logp - negative) + negative)
        return torch.cat(found).float()

    logits, cache = model.begin([Steered(p, n) for p, n in zip(prompts, negatives, strict=True)])
    torch.testing.assert_close(logits, expected([(0, []), (1, []), (2, [])]), atol=2e-4, rtol=1e-4)
    logits, cache = model.step(torch.tensor([7, 8, 9]), cache)
    torch.testing.assert_close(logits, expected([(0, [7]), (1, [8]), (2, [9])]), atol=2e-4, rtol=1e-4)
    cache = model.select(cache, torch.tensor([2, 0]))
    rows = [(2, [9, 10]), (0, [7, 11])]
    token = torch.tensor([10, 11])
    if model.joins:
        _, other = model.begin([Steered(prompts[1], negatives[1])])
        cache = model.join([cache, other])
        rows, token = [*rows, (1, [12])], torch.tensor([10, 11, 12])
    logits, _ = model.step(token, cache)
    torch.testing.assert_close(logits, expected(rows), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("negative", [True, False])
def test_logits_are_those_of_transformers(negative):
    lm = tiny_lm(spread=1.0)
    (ids,), (other,) = prompt_ids(lm, PROMPTS[:1]), prompt_ids(lm, NEGATIVES[:1])
    theirs = UnbatchedClassifierFreeGuidanceLogitsProcessor(
        2.5, lm.model, unconditional_ids=torch.tensor([other]) if negative else None
    )
    model = GuidedModel(step_model(lm), 2.5)
    logits, cache = model.begin([Steered(ids, other if negative else ids[-1:])])
    written = []
    for token in (7, 8, 9):
        with torch.no_grad():
            expected = theirs(torch.tensor([[*ids, *written]]), whole(lm, ids, written))
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        logits, cache = model.step(torch.tensor([token]), cache)
        written.append(token)


@pytest.mark.parametrize("negative", [True, False])
def test_greedy_tokens_are_those_of_transformers(negative):
    lm = tiny_lm(spread=1.0)
    ours = generate(
        lm,
        PROMPTS,
        negative_prompts=NEGATIVES if negative else None,
        decoder=Guidance(scale=3.0),
        max_new_tokens=8,
        engine=Transformers(batch_size=4),
    )
    for completion, ids, other in zip(ours, prompt_ids(lm, PROMPTS), prompt_ids(lm, NEGATIVES), strict=True):
        ids = torch.tensor([ids])
        more = {"negative_prompt_ids": torch.tensor([other])} if negative else {}
        theirs = lm.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, guidance_scale=3.0, **more
        )
        assert tuple(theirs[0, ids.shape[1] :].tolist()) == completion.token_ids


def test_rows_take_the_places_of_others(lm):
    model = GuidedModel(step_model(lm), 2.0)
    if not model.joins:
        pytest.skip("rows of this model cannot join others")
    ids = [Steered(p, n) for p, n in zip(prompt_ids(lm, PROMPTS), prompt_ids(lm, NEGATIVES), strict=True)]
    _, cache = model.begin(ids)
    _, other = model.begin(ids[1:2])
    token = torch.tensor([7, 8, 9])
    changed, _ = model.step(token, model.replace(cache, torch.tensor([2]), other))
    for row, which in enumerate((0, 1, 1)):
        _, alone = model.begin([ids[which]])
        expected, _ = model.step(token[row : row + 1], alone)
        torch.testing.assert_close(changed[row : row + 1], expected, atol=1e-4, rtol=1e-4)


def test_pieces_are_streamed(lm):
    options = {"sampler": HOT, "negative_prompts": NEGATIVES, "decoder": Guidance(scale=2.0), "max_new_tokens": 6}
    pieces = list(generate(lm, PROMPTS, stream=True, **options))
    assert len(pieces) > len(PROMPTS)
    for number, completion in enumerate(generate(lm, PROMPTS, **options)):
        assert "".join(p.text for p in pieces if p.request == number) == completion.text


def test_one_text_is_the_negative_prompt_of_one_prompt(lm):
    options = {"decoder": Guidance(scale=2.0), "max_new_tokens": 6}
    (found,) = generate(lm, PROMPTS[0], negative_prompts=NEGATIVES[0], **options)
    (expected,) = generate(lm, [PROMPTS[0]], negative_prompts=[NEGATIVES[0]], **options)
    assert found.token_ids == expected.token_ids


def test_a_scale_of_one_is_no_guidance_and_zero_is_the_negative_prompt(lm):
    def tokens(prompts, **options):
        return [c.token_ids for c in generate(lm, prompts, ids="abc", sampler=HOT, max_new_tokens=8, **options)]

    assert tokens(PROMPTS, decoder=Guidance(scale=1.0), negative_prompts=NEGATIVES) == tokens(PROMPTS)
    assert tokens(PROMPTS, decoder=Guidance(scale=0.0), negative_prompts=NEGATIVES) == tokens(NEGATIVES)
    assert tokens(PROMPTS, decoder=Guidance(scale=0.0, negative=NEGATIVES[0])) == tokens([NEGATIVES[0]] * 3)
    assert tokens(PROMPTS, decoder=Guidance(scale=3.0), negative_prompts=NEGATIVES) != tokens(PROMPTS)


def test_batches_of_any_size_give_the_same(lm):
    def tokens(size):
        found = generate(
            lm,
            PROMPTS,
            completions=4,
            sampler=HOT,
            negative_prompts=NEGATIVES,
            decoder=Guidance(scale=2.0),
            engine=Transformers(batch_size=size),
            max_new_tokens=9,
        )
        return [c.token_ids for c in found]

    before = lm.model.generation_config.eos_token_id
    lm.model.generation_config.eos_token_id = [1, *range(8, 20)]  # rows leave and enter at all times
    try:
        first = tokens(1)
        assert len({len(ids) for ids in first}) > 3
        assert first == tokens(6) == tokens(24)
    finally:
        lm.model.generation_config.eos_token_id = before


def test_what_the_prompt_makes_impossible_stays_impossible():
    class Fixed:
        batch_size, joins, vocab_size, eos_token_ids, max_length = 4, True, 3, frozenset(), None
        cache_tokens = None

        def begin(self, prompts):
            return torch.tensor([[0.0, 1.0, -torch.inf], [2.0, 1.0, -torch.inf]]), None

    logits, _ = GuidedModel(Fixed(), 2.0).begin([Steered((1,), (2,))])
    assert logits.isfinite().tolist() == [[True, True, False]]


def test_mistakes_are_said():
    lm = tiny_lm()
    with pytest.raises(ConfigError, match="1 negative prompts for 3 prompts"):
        generate(lm, PROMPTS, negative_prompts=["dog"], decoder="guidance")
    with pytest.raises(ConfigError, match="the decoder 'guidance' has"):
        generate(lm, PROMPTS, negative_prompts=NEGATIVES)
    with pytest.raises(ConfigError, match=r"request 1 '1': its negative prompt \(125 tokens\).*128 positions"):
        generate(lm, PROMPTS[:2], negative_prompts=["dog", "dog " * 125], decoder="guidance", max_new_tokens=4)
    with pytest.raises(ConfigError, match="scale"):
        generate(lm, PROMPTS, decoder="guidance(scale=nan)")


def test_copies_of_a_prompt_are_led_away_from_their_own_negatives(lm):
    prompts, negatives = [PROMPTS[0]] * 4, [*NEGATIVES, "big"]

    def written(prompts, negatives, ids):
        engine = Transformers(batch_size=2)
        options = {"engine": engine, "decoder": Guidance(scale=4.0), "negative_prompts": negatives}
        return [c.token_ids for c in generate(lm, prompts, ids=ids, max_new_tokens=6, **options)]

    alone = [written([p], [n], ["x"])[0] for p, n in zip(prompts, negatives, strict=True)]
    assert len(set(alone)) > 1
    assert written(prompts, negatives, None) == alone


class OnlyRequired:
    """A step model without what one may lack."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        if name in {"replace", "settles", "cache_tokens"}:
            raise AttributeError(name)
        return getattr(self.inner, name)


def test_it_needs_no_more_of_a_model_than_stepwise_does(lm):
    guided = GuidedModel(OnlyRequired(step_model(lm)), 2.0)
    reference = GuidedModel(step_model(lm), 2.0)
    assert guided.cache_tokens is None
    assert guided.settles(3)
    rows = [Steered(p, n) for p, n in zip(prompt_ids(lm, PROMPTS), prompt_ids(lm, NEGATIVES), strict=True)]
    found = []
    for model in (guided, reference):
        _, cache = model.begin(rows[:2])
        _, entered = model.begin(rows[2:])
        if model.joins:
            cache = model.replace(cache, torch.tensor([0]), entered)
        found.append(model.step(torch.tensor([7, 8]), cache)[0])
    torch.testing.assert_close(*found, atol=2e-4, rtol=1e-4)


def test_a_long_negative_prompt_counts_in_the_bound_of_the_cache(lm):
    engine = Transformers(batch_size=8, cache_tokens=60).build()
    engine.sync(lm)
    model, seen = engine.step_model, []

    def begin(prompts):
        seen.append(len(prompts) * (max(map(len, prompts)) + 4))
        return type(model).begin(model, prompts)

    model.begin = begin
    (negative,) = prompt_ids(lm, [PROMPTS[2]])
    requests = [Request(prompt_ids=p, seed=n, negative_ids=negative) for n, p in enumerate(prompt_ids(lm, ["dog"] * 4))]
    decoder, sampler = Guidance().build(), component(None, "sampler")
    assert len(list(engine.generate(requests, decoder, sampler, Limits(max_new_tokens=4), Runtime()))) == 4
    assert max(seen) <= 60


def test_guidance_inside_guidance_is_refused():
    with pytest.raises(ConfigError, match="guidance inside guidance"):
        generate(tiny_lm(), ["dog"], decoder="guidance(decoder=guidance)")

"""Links as transformers' logits processors: like our own chain, like transformers' processors, in its loop."""

import math

import attrs
import pytest
import torch
from transformers import LogitsProcessorList
from transformers import generation as theirs

from tunesmith import hf
from tunesmith.errors import ConfigError, NumericError
from tunesmith.generation import generate
from tunesmith.hf_rows import RowOptions
from tunesmith.kinds.sampler import Link, Rows, SamplerConfig
from tunesmith.lm import LM
from tunesmith.registry import samplers
from tunesmith.runtime import Runtime
from tunesmith.spec import parse
from tunesmith.testing.models import tiny_lm
from tunesmith.testing.samplers import logits_of
from tunesmith_plugins.samplers import (
    XTC,
    Chain,
    Dry,
    FrequencyPenalty,
    Mirostat,
    NoRepeatNgram,
    PresencePenalty,
    RepetitionPenalty,
    Temperature,
    TopK,
    TopP,
    Typical,
)

VOCAB = 37
PROMPTS = ["the cat sees a tree", "dog", "one two red and blue fish"]
HOT = "chain(links=[repetition_penalty(penalty=1.3), temperature(temperature=1.5), top_k(k=20), top_p(p=0.9)])"
LINKS = (
    RepetitionPenalty(penalty=1.4),
    FrequencyPenalty(penalty=0.3),
    PresencePenalty(penalty=0.4),
    NoRepeatNgram(size=2),
    Dry(multiplier=1.0, allowed_length=1),
    Temperature(temperature=0.8),
    TopK(k=20),
    TopP(p=0.95),
    Mirostat(tau=2.0),
    XTC(threshold=0.05, probability=0.5),
    TopK(k=5),
)


def ids_and_mask(prompts):
    """Left-padded ids; the padding is an id that would matter if it were taken for history."""
    width = max(map(len, prompts))
    ids = torch.tensor([[7] * (width - len(p)) + p for p in prompts])
    return ids, torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])


def loop(processors, ids, steps, *, logits, pick):
    """Grow ids as transformers' loop does; return the scores of every step."""
    found = []
    for step in range(steps):
        scores = processors(ids, logits[step].clone())
        found.append(scores)
        ids = torch.cat([ids, pick(scores)[:, None]], dim=1)
    return ids, found


def by_our_chain(config, prompts, steps, *, logits, tokens, seeds):
    """Return what the links give when our own chain walks one unpadded row along the same tokens."""
    sampler = config.build()
    found = []
    for row, prompt in enumerate(prompts):
        state, each = None, []
        for step in range(steps):
            history = torch.tensor([prompt + tokens[row][:step]])
            lengths = torch.tensor([history.shape[1]])
            rows = Rows(
                seed=seeds[row : row + 1],
                stream=torch.zeros(1, dtype=torch.int64),
                position=torch.tensor([step]),
                history=history,
                history_lengths=lengths,
                prompt_lengths=torch.tensor([len(prompt)]),
                state=state,
            )
            scores = logits[step][row : row + 1]
            held = {n: k.initial_state(rows) for n, k in sampler.links.items() if hasattr(k, "initial_state")}
            held = state or held
            own = {n: attrs.evolve(rows, state=held).for_link(n) for n in sampler.links}
            for name, link in sampler.links.items():
                scores = link.apply(scores, own[name]).float()
            each.append(scores[0])
            token = torch.tensor([tokens[row][step]])
            logp = scores.log_softmax(-1)[:, token[0]]
            state = {n: sampler.links[n].advance(h, scores, FakeDraw(token, logp), own[n]) for n, h in held.items()}
        found.append(torch.stack(each))
    return torch.stack(found, dim=1)


class FakeDraw:
    """What mirostat reads of a draw."""

    def __init__(self, token, logp):
        self.token, self.logp_truncated = token, logp
        self.status = torch.zeros(1, dtype=torch.uint8)


def test_a_chain_in_their_loop_gives_what_it_gives_in_ours_row_by_row():
    """Padded rows in a batch, histories, a memory, and noise of its own: bit for bit as one row by itself."""
    prompts, steps = [[3, 4, 3, 9], [5], [9, 9, 2]], 6
    logits = [logits_of(3, VOCAB, seed=n) for n in range(steps)]
    ids, mask = ids_and_mask(prompts)
    config = Chain(links=LINKS)
    processors = hf.logits_processors(config, attention_mask=mask, seed=[11, 12, 13])
    assert isinstance(processors, LogitsProcessorList)
    assert [p.name for p in processors][-4:] == ["top_p", "mirostat", "xtc", "top_k#2"]
    grown, scores = loop(processors, ids, steps, logits=logits, pick=lambda s: s.argmax(-1))
    tokens = grown[:, ids.shape[1] :].tolist()
    expected = by_our_chain(config, prompts, steps, logits=logits, tokens=tokens, seeds=torch.tensor([11, 12, 13]))
    assert torch.equal(torch.stack(scores), expected)
    again, _ = loop(processors, ids.clone(), steps, logits=logits, pick=lambda s: s.argmax(-1))
    assert torch.equal(again, grown)  # a second text with the same list begins anew


def test_every_registered_link_is_a_processor():
    from tunesmith.testing.examples import example

    ids = torch.tensor([[3, 4, 3, 4, 3], [5, 6, 5, 5, 5]])
    wrapped = 0
    for entry in samplers.entries():
        if entry.name == "structured":  # it works on text: no example without a format and a tokenizer
            continue
        config = example(samplers.get(entry.id))
        link = config.build()
        if not isinstance(link, Link):
            continue
        (processor,) = hf.logits_processors(config, seed=3)
        logits = logits_of(2, VOCAB)
        scores = processor(ids, logits)
        assert scores.shape == logits.shape, entry.id
        grown = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
        assert bool((processor(grown, logits) > -math.inf).any(-1).all()), entry.id
        wrapped += 1
    assert wrapped >= 27


@pytest.mark.parametrize(
    ("ours", "processor"),
    [
        (RepetitionPenalty(penalty=1.7), theirs.RepetitionPenaltyLogitsProcessor(1.7)),
        (Temperature(temperature=0.7), theirs.TemperatureLogitsWarper(0.7)),
        (TopK(k=5), theirs.TopKLogitsWarper(5)),
        (TopP(p=0.8), theirs.TopPLogitsWarper(0.8)),
        (Typical(mass=0.8), theirs.TypicalLogitsWarper(0.8)),
        (NoRepeatNgram(size=2), theirs.NoRepeatNGramLogitsProcessor(2)),
    ],
)
def test_in_place_of_their_processors_ours_give_the_same(ours, processor):
    ids = torch.randint(0, 9, (6, 12), generator=torch.Generator().manual_seed(0))
    logits = logits_of(6, VOCAB)
    assert torch.equal(hf.logits_processors(ours)(ids, logits), processor(ids, logits.clone()))


# --- in generate


@pytest.fixture(scope="module", params=["decoder", "encoder-decoder"])
def lm(request):
    return tiny_lm(request.param)


def padded(lm: LM, prompts):
    side = "left" if lm.family == "decoder" else "right"
    found = lm.tokenizer(prompts, return_tensors="pt", padding=True, padding_side=side)
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


def mask_for(lm, inputs):
    return inputs["attention_mask"] if lm.family == "decoder" else None


def new_tokens(lm, found, inputs):
    """New ids of every row, without what fills it up behind its end."""
    begin = inputs["input_ids"].shape[1] if lm.family == "decoder" else 1
    rows = []
    for row in found[:, begin:].tolist():
        end = next((n + 1 for n, token in enumerate(row) if token == lm.tokenizer.eos_token_id), len(row))
        rows.append(tuple(row[:end]))
    return rows


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("sampler", [HOT, "chain(links=[mirostat(tau=2.0)])"])
def test_with_our_draw_their_loop_writes_the_tokens_of_ours(lm, sampler, cache):
    ours = generate(lm, PROMPTS, sampler=sampler, seed=3, max_new_tokens=7)
    inputs = padded(lm, PROMPTS)
    processors = hf.logits_processors(
        sampler, attention_mask=mask_for(lm, inputs), seed=3, eos_token_id=lm.tokenizer.eos_token_id, draw=True
    )
    options = {"max_new_tokens": 7, "use_cache": cache, "logits_processor": processors}
    sampled = lm.model.generate(**inputs, **options, do_sample=True, top_k=0)
    assert new_tokens(lm, sampled, inputs) == [c.token_ids for c in ours]
    greedy = lm.model.generate(**inputs, **options, do_sample=False)  # one token is left: the largest, too
    assert torch.equal(greedy, sampled)


def test_their_greedy_loop_with_our_links_is_our_greedy_decoding(lm):
    links = "repetition_penalty(penalty=1.5), no_repeat_ngram(size=2), temperature(temperature=0.5), top_p(p=0.5)"
    ours = generate(lm, PROMPTS, sampler=f"chain(links=[{links}, greedy])", max_new_tokens=8)
    inputs = padded(lm, PROMPTS)
    processors = hf.logits_processors(f"chain(links=[{links}])", attention_mask=mask_for(lm, inputs))
    found = lm.model.generate(**inputs, max_new_tokens=8, do_sample=False, logits_processor=processors)
    assert new_tokens(lm, found, inputs) == [c.token_ids for c in ours]


@pytest.mark.parametrize("cache", [True, False])
def test_custom_generate_and_links_without_a_cache_and_row_by_row(lm, cache):
    inputs = padded(lm, PROMPTS)
    options = {"max_new_tokens": 6, "use_cache": cache}
    together = lm.model.generate(**inputs, **options, custom_generate=hf.custom_generate(HOT, seed=[7, 8, 9]))
    for number, prompt in enumerate(PROMPTS):
        one = padded(lm, [prompt])
        alone = lm.model.generate(**one, **options, custom_generate=hf.custom_generate(HOT, seed=[7 + number]))
        processors = hf.logits_processors(HOT, attention_mask=mask_for(lm, one), seed=[7 + number], draw=True)
        drawn = lm.model.generate(**one, **options, do_sample=True, top_k=0, logits_processor=processors)
        expected = new_tokens(lm, together, inputs)[number]
        assert new_tokens(lm, alone, one)[0] == expected
        assert new_tokens(lm, drawn, one)[0] == expected


def test_rows_have_parameters_of_their_own_in_both_ways(lm):
    inputs = padded(lm, PROMPTS)
    parameters = {"top_k.k": [1, 20, 3], "temperature.temperature": 1.2}
    both = lm.model.generate(
        **inputs, max_new_tokens=6, custom_generate=hf.custom_generate(HOT, seed=3, parameters=parameters)
    )
    processors = hf.logits_processors(
        HOT,
        attention_mask=mask_for(lm, inputs),
        seed=3,
        parameters=parameters,
        eos_token_id=lm.tokenizer.eos_token_id,
        draw=True,
    )
    found = lm.model.generate(**inputs, max_new_tokens=6, do_sample=True, logits_processor=processors)
    assert torch.equal(found, both)
    greedy = lm.model.generate(
        **padded(lm, PROMPTS[:1]),
        max_new_tokens=6,
        custom_generate=hf.custom_generate(
            "chain(links=[repetition_penalty(penalty=1.3), temperature(temperature=1.2), greedy])"
        ),
    )
    assert new_tokens(lm, both, inputs)[0] == new_tokens(lm, greedy, padded(lm, PROMPTS[:1]))[0]
    wrong = hf.custom_generate(HOT, parameters={"top_k.k": [1, 2]})
    with pytest.raises(ConfigError, match="2 values of 'top_k.k' for 3 prompts"):
        lm.model.generate(**inputs, max_new_tokens=2, custom_generate=wrong)


def test_an_adapter_that_is_on_or_off_counts_in_every_way(lm):
    fresh = tiny_lm(lm.family)
    adapted = parse("lora(rank=2)", "adapter").build().attach(fresh, Runtime())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in adapted.adapters[0].trainable():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    inputs = padded(lm, PROMPTS)

    def drawn(model, cache):
        processors = hf.logits_processors(
            HOT,
            attention_mask=mask_for(lm, inputs),
            seed=3,
            eos_token_id=lm.tokenizer.eos_token_id,
            draw=True,
        )
        options = {"max_new_tokens": 6, "use_cache": cache}
        custom = model.generate(**inputs, **options, custom_generate=hf.custom_generate(HOT, seed=3))
        loops = model.generate(**inputs, **options, do_sample=True, top_k=0, logits_processor=processors)
        assert torch.equal(custom, loops)
        return new_tokens(lm, custom, inputs)

    on = drawn(adapted.model, True)
    assert on == drawn(adapted.model, False)
    assert on == [c.token_ids for c in generate(adapted, PROMPTS, sampler=HOT, seed=3, max_new_tokens=6)]
    with adapted.adapters[0].disabled():
        off = drawn(adapted.model, True)
    assert off == drawn(lm.model, True)
    assert on != off


def test_completions_of_a_prompt_are_streams_in_their_loop_too(lm):
    ours = generate(lm, PROMPTS, sampler=HOT, seed=3, completions=2, max_new_tokens=5)
    inputs = padded(lm, PROMPTS)
    processors = hf.logits_processors(
        HOT,
        attention_mask=mask_for(lm, inputs),
        seed=3,
        completions=2,
        eos_token_id=lm.tokenizer.eos_token_id,
        draw=True,
    )
    found = lm.model.generate(
        **inputs, max_new_tokens=5, do_sample=True, num_return_sequences=2, logits_processor=processors
    )
    assert new_tokens(lm, found, inputs) == [c.token_ids for c in ours]


def test_beam_search_takes_links_without_a_memory_and_refuses_the_others(lm):
    inputs = padded(lm, PROMPTS)
    options = {"max_new_tokens": 6, "num_beams": 3}
    mask = mask_for(lm, inputs)
    copies = {} if mask is not None else {"completions": 3}
    ours = hf.logits_processors("no_repeat_ngram(size=2)", attention_mask=mask, **copies)
    # theirs sees the padding too, so one prompt is compared, which has none
    one = padded(lm, PROMPTS[:1])
    single = hf.logits_processors("no_repeat_ngram(size=2)", attention_mask=mask_for(lm, one), **copies)
    found = lm.model.generate(**one, **options, logits_processor=single)
    assert torch.equal(found, lm.model.generate(**one, **options, no_repeat_ngram_size=2))
    lm.model.generate(**inputs, **options, logits_processor=ours)
    for spec, more in (("mirostat(tau=2.0)", {}), (HOT, {"draw": True})):
        refused = hf.logits_processors(spec, attention_mask=mask, **copies, **more)
        with pytest.raises(ConfigError, match="beam search"):
            lm.model.generate(**inputs, **options, logits_processor=refused)


@pytest.mark.parametrize("spec", [HOT, "chain(links=[temperature(temperature=1.5), mirostat(tau=2.0)])"])
@pytest.mark.parametrize("draw", [False, True])
def test_one_list_serves_one_text_after_the_other(lm, spec, draw):
    """Also where the ids do not tell: the very same prompt again, and one that goes on where the last text ended."""
    inputs = padded(lm, PROMPTS[:1])

    def written(processors, ids, count=1):
        torch.manual_seed(0)
        begin = {"decoder_input_ids": ids} if lm.family == "encoder-decoder" else {"input_ids": ids}
        given = {**inputs, "attention_mask": torch.ones_like(ids)} if lm.family == "decoder" else inputs
        return lm.model.generate(
            **{**given, **begin},
            max_new_tokens=count,
            do_sample=True,
            top_k=0,
            output_scores=True,
            return_dict_in_generate=True,
            logits_processor=processors,
        )

    def made():
        return hf.logits_processors(spec, seed=5, draw=draw)

    start = inputs["input_ids"] if lm.family == "decoder" else torch.tensor([[lm.model.config.decoder_start_token_id]])
    again, fresh = made(), [made() for _ in range(4)]
    ids = start
    for number in range(3):  # the same ids twice, then one token more
        found, expected = written(again, ids), written(fresh[number], ids)
        assert torch.equal(found.scores[0], expected.scores[0])
        assert torch.equal(found.sequences, expected.sequences)
        ids = start if number == 0 else found.sequences
    assert torch.equal(written(again, ids, 3).sequences, written(fresh[3], ids, 3).sequences)


@pytest.mark.parametrize("draw", [False, True])
def test_the_same_ids_with_other_logits_are_not_answered_from_memory(draw):
    ids = torch.tensor([[3, 4]])
    processors = hf.logits_processors("top_k(k=1)", draw=draw)
    for seed in (1, 2):
        logits = logits_of(1, VOCAB, seed=seed)
        assert processors(ids, logits).argmax() == logits.argmax()


@pytest.mark.parametrize("spec", ["mirostat(tau=2.0)", "chain(links=[temperature, mirostat(tau=2.0)])"])
@pytest.mark.parametrize("draw", [False, True])
def test_a_step_that_is_asked_for_twice_moves_no_memory_twice(spec, draw):
    once, twice = (hf.logits_processors(spec, seed=5, draw=draw) for _ in range(2))
    ids = torch.tensor([[3, 4]])
    for step in range(5):
        logits = logits_of(1, VOCAB, seed=step)
        expected = once(ids, logits)
        twice(ids, logits)
        assert torch.equal(twice(ids, logits), expected)
        ids = torch.cat([ids, expected.argmax(-1, keepdim=True)], dim=1)


def test_links_that_the_kernel_knows_run_there(monkeypatch):
    """Not one of them by its own ``apply``, with parameters a row, twice the same link, and what is no step of the kernel."""
    spec = Chain(links=(Temperature(temperature=0.7), TopP(p=0.9), TopK(k=9), TopK(k=5), Typical(mass=0.9)))
    ids = torch.randint(0, 9, (4, 12), generator=torch.Generator().manual_seed(0))
    logits = logits_of(4, VOCAB)
    parameters = {"top_p.p": [0.5, 0.6, 0.7, 0.8], "top_k#2.k": [1, 2, 3, 4]}
    slow = spec.build()
    options = RowOptions(where="test", seed=0, parameters=parameters)
    rows, expected = options.first(ids, None, 1), logits
    for name, link in slow.links.items():
        expected = link.apply(expected, rows.for_link(name)).float()
    built = spec.build()
    for name, link in built.links.items():
        if name != "typical":
            monkeypatch.setattr(link, "apply", lambda *_: pytest.fail("by its own apply"))
    found = hf.logits_processors(built, parameters=parameters)(ids, logits)
    assert torch.equal(found.isfinite(), expected.isfinite())
    assert (found.isfinite().sum(-1) <= torch.tensor([1, 2, 3, 4])).all()
    kept = expected.isfinite()
    torch.testing.assert_close(found[kept], expected[kept], rtol=1e-6, atol=1e-6)


# --- what is refused


@attrs.frozen(kw_only=True)
class Emptied(SamplerConfig):
    name_in_chain = "emptied"

    def build(self):
        return EmptyLink(self)


class EmptyLink(Link):
    """Leaves nothing in the second row, once it has a token."""

    truncates = True

    def apply(self, logits, rows):
        gone = (torch.arange(len(logits)) == 1) & (rows.position > 0)
        return logits.masked_fill(gone[:, None], -math.inf)


def test_a_row_without_tokens_is_named_and_one_that_has_ended_is_left_alone():
    ids = torch.tensor([[3], [4]])
    grown = torch.tensor([[3, 5], [4, 1]])
    for more in ({}, {"draw": True}):
        processors = hf.logits_processors(Emptied(), **more)
        processors(ids, logits_of(2, VOCAB))
        with pytest.raises(NumericError, match=r"row 1 of the batch.*new token 1"):
            processors(grown, logits_of(2, VOCAB))
        processors = hf.logits_processors(Emptied(), eos_token_id=1, **more)
        processors(ids, logits_of(2, VOCAB))
        logits = logits_of(2, VOCAB)
        assert torch.equal(processors(grown, logits)[1], logits[1])
    with pytest.raises(NumericError, match="row 0"):
        hf.logits_processors("top_k(k=3)")(ids, torch.full((2, VOCAB), math.nan))


def test_what_cannot_be_wrapped_is_refused_with_a_way_out():
    for spec in ("greedy", "chain(links=[top_k(k=3), greedy])"):
        with pytest.raises(ConfigError, match="do_sample=False.*draw=True"):
            hf.logits_processors(spec)
        scores = hf.logits_processors(spec, draw=True)(torch.tensor([[3]]), logits_of(1, VOCAB))
        assert (scores > -math.inf).nonzero()[:, 1].tolist() == [int(logits_of(1, VOCAB).argmax())]
    with pytest.raises(ConfigError, match=r"no parameter 'top_k\.p'"):
        hf.logits_processors("top_k", parameters={"top_k.p": 1})
    with pytest.raises(ConfigError, match="none for an encoder-decoder"):
        hf.logits_processors("top_k", attention_mask=torch.ones(1, 4))(torch.tensor([[0]]), logits_of(1, VOCAB))
    with pytest.raises(ConfigError, match="completions=2"):
        hf.logits_processors("top_k", completions=2)(torch.tensor([[0]]), logits_of(1, VOCAB))
    with pytest.raises(ConfigError, match="2 seeds for 1 prompts"):
        hf.logits_processors("top_k", seed=[1, 2])(torch.tensor([[0]]), logits_of(1, VOCAB))

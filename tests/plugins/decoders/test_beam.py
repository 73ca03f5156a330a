"""Side by side with transformers' own beam search."""

import json
import math

import pytest
import torch
from attrs import frozen
from beam_models import PROMPTS, with_many_ends

from tunesmith.errors import ConfigError, NumericError
from tunesmith.generation import generate, prompt_ids
from tunesmith.kinds.decoder import Limits, Request
from tunesmith.kinds.sampler import Draw, Link, SamplerConfig
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.decoders import Beam, DiverseBeam
from tunesmith_plugins.decoders.ranking import rank_of
from tunesmith_plugins.engines import Transformers

STOPPING = {"yes": True, "no": False, "never": "never"}


@pytest.fixture(scope="module", params=["decoder", "encoder-decoder"])
def lm(request):
    return with_many_ends(request.param)


@pytest.mark.parametrize(
    ("beams", "penalty", "stopping"),
    [(1, 1.0, "no"), (2, 2.0, "no"), (2, 2.0, "yes"), (3, 1.5, "never"), (4, 0.0, "yes"), (5, -1.0, "no")],
)
def test_sequences_and_scores_are_those_of_transformers(lm, beams, penalty, stopping):
    decoder = Beam(beams=beams, length_penalty=penalty, early_stopping=stopping)
    ours = generate(lm, PROMPTS, max_new_tokens=8, decoder=decoder)
    for completion, ids in zip(ours, prompt_ids(lm, PROMPTS), strict=True):
        ids = torch.tensor([ids])
        theirs = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            num_beams=beams,
            length_penalty=penalty,
            early_stopping=STOPPING[stopping],
            return_dict_in_generate=True,
            output_scores=True,
        )
        new = theirs.sequences[0, ids.shape[1] if lm.family == "decoder" else 1 :].tolist()
        length = len(completion.token_ids)
        assert tuple(new[:length]) == completion.token_ids
        assert set(new[length:]) <= {0}
        if beams > 1:
            assert completion.score == pytest.approx(theirs.sequences_scores.item(), abs=1e-4)
        assert completion.score == pytest.approx(sum(completion.logp) / length**penalty)


@pytest.mark.parametrize("stopping", STOPPING)
def test_several_completions_are_the_best_texts_of_one_search_as_in_transformers(lm, stopping):
    ours = generate(lm, PROMPTS, max_new_tokens=8, decoder=Beam(beams=4, early_stopping=stopping), completions=3)
    for number, ids in enumerate(prompt_ids(lm, PROMPTS)):
        mine, ids = ours[3 * number : 3 * number + 3], torch.tensor([ids])
        theirs = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            do_sample=False,
            num_beams=4,
            num_return_sequences=3,
            early_stopping=STOPPING[stopping],
            return_dict_in_generate=True,
            output_scores=True,
        )
        assert [c.stream for c in mine] == [0, 1, 2]
        assert len({c.token_ids for c in mine}) == 3
        assert [c.score for c in mine] == pytest.approx(theirs.sequences_scores.tolist(), abs=1e-4)
        for completion, row in zip(mine, theirs.sequences.tolist(), strict=True):
            new = row[ids.shape[1] if lm.family == "decoder" else 1 :]
            assert tuple(new[: len(completion.token_ids)]) == completion.token_ids


def test_more_completions_than_beams_are_refused_and_than_texts_begin_anew(lm):
    with pytest.raises(ConfigError, match="beams=3 finds no 4 texts of a prompt; take more beams"):
        generate(lm, PROMPTS, decoder="beam(beams=3)", completions=4)
    only = "forced_tokens(at={0: 5, 1: 6, 2: 1})"
    found = generate(lm, PROMPTS[:1], decoder="beam(beams=3)", sampler=only, completions=3, max_new_tokens=4)
    assert [c.token_ids for c in found] == [(5, 6, 1)] * 3


def assert_like_transformers(lm, completion, ids, **options):
    """A completion by three beams and eight tokens is that of transformers, with its score."""
    ids = torch.tensor([ids])
    theirs = lm.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=8,
        do_sample=False,
        num_beams=3,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    new = theirs.sequences[0, ids.shape[1] if lm.family == "decoder" else 1 :].tolist()
    assert tuple(new[: len(completion.token_ids)]) == completion.token_ids
    assert completion.score == pytest.approx(theirs.sequences_scores.item(), abs=1e-4)


@pytest.mark.parametrize("least", [1, 4])
def test_a_minimum_of_tokens_makes_no_beam_likelier(lm, least):
    """What the ends that come too early have is not shared out among the other tokens, as in transformers."""
    ours = generate(lm, PROMPTS, max_new_tokens=8, min_new_tokens=least, decoder="beam(beams=3)")
    for completion, ids in zip(ours, prompt_ids(lm, PROMPTS), strict=True):
        assert_like_transformers(lm, completion, ids, min_new_tokens=least)


def test_a_minimum_that_leaves_no_token_is_an_error_that_names_the_request():
    lm = tiny_lm("encoder-decoder")
    lm.model.generation_config.forced_bos_token_id = lm.model.generation_config.eos_token_id
    with pytest.raises(NumericError, match="request 0 '0', new token 0: all that is left ends the text"):
        generate(lm, PROMPTS[:1], max_new_tokens=4, min_new_tokens=3, decoder="beam(beams=2)")


CONSTRAINTS = {
    "no_repeat_ngram(size=1)": {"no_repeat_ngram_size": 1},
    "bad_words(sequences=[[37], [20], [35], [12, 12]])": {"bad_words_ids": [[37], [20], [35], [12, 12]]},
    "allowed_tokens(tokens=[5, 14, 15, 16, 17, 1])": {"prefix_allowed_tokens_fn": lambda *_: [5, 14, 15, 16, 17, 1]},
    "forced_tokens(at={7: 1})": {"forced_eos_token_id": 1, "max_length": 8},
}


@pytest.mark.parametrize("spec", CONSTRAINTS)
def test_what_a_constraint_forbids_is_forbidden_in_a_search_as_in_transformers(lm, spec):
    """Behind a truncation, too, which has no part in a search."""
    options = {"max_new_tokens": 8, "decoder": "beam(beams=3)"}
    ours = generate(lm, PROMPTS, sampler=f"chain(links=[top_k(k=2), {spec}])", **options)
    assert [c.token_ids for c in ours] == [c.token_ids for c in generate(lm, PROMPTS, sampler=spec, **options)]
    assert [c.token_ids for c in ours] != [c.token_ids for c in generate(lm, PROMPTS, **options)]
    if "forced" in spec:
        assert all(c.finish == "eos" for c in ours)
        return
    for completion, ids in zip(ours, prompt_ids(lm, PROMPTS), strict=True):
        assert_like_transformers(lm, completion, ids, **CONSTRAINTS[spec])


def test_constraints_of_rows_and_of_other_searches(lm):
    spec = "chain(links=[temperature(temperature=0.7), no_repeat_ngram(size=0), top_k(k=3)])"
    sizes = {"no_repeat_ngram.size": [1, 0, 2], "top_k.k": [1, 2, 3]}
    for decoder in ("beam(beams=2)", "diverse_beam(beams=4, groups=2)", "contrastive"):
        options = {"sampler": spec, "decoder": decoder, "max_new_tokens": 8, "min_new_tokens": 8}
        found = generate(lm, PROMPTS, parameters=sizes, **options)
        assert len(set(found[0].token_ids)) == 8
        assert found[1].token_ids == generate(lm, PROMPTS, **options)[1].token_ids
        with pytest.raises(ConfigError, match="remembers"):
            generate(lm, PROMPTS, **{**options, "sampler": "chain(links=[no_repeat_ngram, mirostat])"})


@pytest.mark.parametrize("decoder", ["beam(beams=3)", "contrastive", "speculative"])
def test_stop_strings_are_looked_for_without_reading_the_whole_text_again(lm, monkeypatch, decoder):
    """The work for a token does not grow with the text: each candidate's token is looked at, and the whole once."""
    from tunesmith_plugins.engines.stepping import Stepping

    decoded = []
    text = Stepping.text
    monkeypatch.setattr(Stepping, "text", lambda self, ids: (decoded.append(len(ids)), text(self, ids))[1])
    work = []
    for count in (25, 50, 100):
        options = {"decoder": decoder, "max_new_tokens": count, "min_new_tokens": count}
        decoded.clear()
        generate(lm, PROMPTS[:1], stop=["@", "never written"], **options)
        work.append(sum(decoded))
    assert work[2] - work[1] < 3 * (work[1] - work[0])  # 2 where it is linear, 4 where it is quadratic


def test_the_samplers_edits_count_and_its_truncation_does_not(lm):
    def found(sampler):
        return [c.token_ids for c in generate(lm, PROMPTS, sampler=sampler, decoder="beam(beams=3)", max_new_tokens=8)]

    plain = found(None)
    assert found("top_k(k=1)") == plain
    assert found("chain(links=[repetition_penalty(penalty=50.0)])") != plain


@pytest.mark.parametrize(
    "sampler", ["xtc(threshold=0.01, probability=1.0)", "chain(links=[temperature, top_p(p=0.5), xtc])"]
)
def test_with_a_sampler_that_draws_it_is_one_search_without_the_draws_and_says_so(lm, monkeypatch, caplog, sampler):
    from tunesmith_plugins.engines.stepping import Stepping

    read = []
    begin = Stepping.begin
    monkeypatch.setattr(Stepping, "begin", lambda self, prompts: (read.append(len(prompts)), begin(self, prompts))[1])
    options = {"decoder": "beam(beams=4)", "max_new_tokens": 8, "completions": 4}
    plain = generate(lm, PROMPTS, **options)
    assert not caplog.messages
    found = generate(lm, PROMPTS, sampler=sampler, **options)
    assert [c.token_ids for c in found] == [c.token_ids for c in plain]
    assert read == [3, 3], "a search a prompt, not one a completion"
    assert "beam search draws nothing, so these of the sampler do nothing" in caplog.text
    assert "xtc" in caplog.text
    assert ("top_p" in caplog.text) == ("top_p" in sampler)


class Noise(Link):
    """An edit that draws: adds noise of the row's own to all logits."""

    stochastic = True

    def apply(self, logits, rows):
        return logits + 3 * torch.sin(100 * rows.uniform(1)[:, None] * torch.arange(1, 1 + logits.shape[1]))


@frozen(kw_only=True)
class NoiseConfig(SamplerConfig):
    impl = "test"
    name_in_chain = "noise"


def test_a_search_by_edits_that_draw_is_one_search_too_and_does_not_hang_on_who_asks(lm):
    options = {"decoder": "beam(beams=3)", "max_new_tokens": 6, "sampler": Noise(NoiseConfig())}
    found = generate(lm, PROMPTS, seeds=[1, 2, 3], completions=3, **options)
    other = generate(lm, PROMPTS, seeds=[4, 5, 6], completions=3, **options)
    assert [c.token_ids for c in found] != [c.token_ids for c in other]
    for number in range(3):
        mine = found[3 * number : 3 * number + 3]
        assert [c.score for c in mine] == sorted((c.score for c in mine), reverse=True)
        assert len({c.token_ids for c in mine}) == 3
    engine, decoder = Transformers().build(), Beam(beams=3).build()
    engine.sync(lm)
    alone = [Request(prompt_ids=prompt_ids(lm, PROMPTS)[1], seed=2, stream=2)]
    (one,) = engine.generate(alone, decoder, options["sampler"], Limits(max_new_tokens=6), Runtime())
    assert one.token_ids == found[5].token_ids


def test_more_beams_find_likelier_texts_than_greedy(lm):
    options = {"max_new_tokens": 6, "min_new_tokens": 6}
    wide = generate(lm, PROMPTS, decoder="beam(beams=12, early_stopping='never')", **options)
    engine = Transformers().build()
    engine.sync(lm)
    greedy = [c.token_ids for c in generate(lm, PROMPTS, **options)]
    scores = [sum(row) for row in engine.score(list(zip(prompt_ids(lm, PROMPTS), greedy, strict=True)))]
    for score, other in zip(scores, wide, strict=True):
        assert sum(other.logp) >= score - 1e-5
    assert any(sum(w.logp) > score + 1e-3 for score, w in zip(scores, wide, strict=True))


def test_a_sampler_with_a_memory_is_refused():
    class Remembering:
        stochastic = False

        def sample(self, logits, rows, *, top=0, logp=()):
            none = torch.zeros(len(logits))
            ids = torch.zeros(len(logits), dtype=torch.int64)
            return Draw(
                token=ids,
                status=ids.to(torch.uint8),
                logp_raw=none,
                logp_processed=none,
                logp_truncated=none,
                top=(ids[:, None].expand(-1, top), none[:, None].expand(-1, top)),
                state={"a": object()},
            )

    engine = Transformers().build()
    engine.sync(tiny_lm())
    with pytest.raises(ConfigError, match="remembers"):
        list(engine.generate([Request(prompt_ids=(5,))], Beam().build(), Remembering(), Limits(), Runtime()))


@pytest.mark.parametrize("make", [Beam, DiverseBeam])
@pytest.mark.parametrize("stopping", STOPPING)
def test_a_huge_length_penalty_takes_the_longest_or_the_shortest_of_what_was_found(lm, make, stopping):
    """As a moderate one does already that outweighs all log-probabilities; scores are what a float holds."""
    for huge, enough in ((1e6, 250.0), (-1e6, -250.0), (1.7e308, 250.0), (-1.7e308, -250.0)):
        options = {"max_new_tokens": 8, "completions": 4}
        found = generate(lm, PROMPTS, decoder=make(length_penalty=huge, early_stopping=stopping), **options)
        moderate = generate(lm, PROMPTS, decoder=make(length_penalty=enough, early_stopping=stopping), **options)
        assert [c.token_ids for c in found] == [c.token_ids for c in moderate]
        json.dumps([c.score for c in found], allow_nan=False)
        if make is Beam:
            lengths = [len(c.token_ids) for c in found]
            for first in range(0, len(found), 4):
                assert lengths[first : first + 4] == sorted(lengths[first : first + 4], reverse=huge > 0)


def test_ranks_beyond_what_a_float_holds_are_in_the_order_of_their_scores():
    totals = [-0.0, -1e-9, -0.5, -3.0, -3.0000001, -250.0]
    for penalty in (5.0, -5.0, 0.3):  # these a float holds
        pairs = [(total, length) for total in totals[1:] for length in (1, 2, 7, 50)]
        exact = sorted(pairs, key=lambda p: p[0] / p[1] ** penalty)
        assert sorted(pairs, key=lambda p: rank_of(*p, penalty)) == exact
    for penalty in (1e6, -1e6):
        pairs = [(total, length) for total in totals for length in (2, 7, 50)]
        logs = {p: math.inf if p[0] == 0 else penalty * math.log(p[1]) - math.log(-p[0]) for p in pairs}
        ranks = [rank_of(*pair, penalty) for pair in sorted(pairs, key=logs.__getitem__)]
        assert ranks == sorted(ranks)
        assert all(math.isfinite(rank.score) for rank in ranks)
        assert len(set(ranks)) == len(totals[1:]) * 3 + 1  # a total of 0 is a score of 0, whatever the length


@pytest.mark.parametrize("make", [Beam, DiverseBeam])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_length_penalty_that_puts_texts_in_no_order_is_refused(make, value):
    with pytest.raises(ValueError, match="'length_penalty' must be a finite number"):
        make(length_penalty=value)

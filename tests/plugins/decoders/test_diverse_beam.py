import itertools

import pytest
import torch
from beam_models import PROMPTS, with_many_ends

from tunesmith.errors import ConfigError
from tunesmith.generation import component, generate, prompt_ids
from tunesmith.kinds.decoder import Completion, Limits, Request
from tunesmith.runtime import Runtime
from tunesmith.testing import conformance
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.decoders import Beam, DiverseBeam
from tunesmith_plugins.decoders.batch import Row
from tunesmith_plugins.decoders.ranking import Rank, best_first
from tunesmith_plugins.decoders.searching import Candidates


@conformance(DiverseBeam(), DiverseBeam(beams=6, groups=3, penalty=2.0, early_stopping="yes"))
def test_conforms(check):
    check()


@pytest.fixture(scope="module", params=["decoder", "encoder-decoder"])
def lm(request):
    return with_many_ends(request.param)


def logps_after(lm, prompt, written):
    """Log-probabilities of the next token by one pass without a cache, (vocab,) float64."""
    with torch.no_grad():
        if lm.family == "decoder":
            logits = lm.model(torch.tensor([[*prompt, *written]])).logits
        else:
            start = [[lm.model.config.decoder_start_token_id, *written]]
            logits = lm.model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor(start)).logits
    return logits[0, -1].double().log_softmax(-1).tolist()


def plain(lm, prompt, width, groups, penalty, power, ends, steps):
    """Diverse beam search by the definition: every token of every beam is looked at, nothing is kept between steps."""
    running = [[((), 0.0)] for _ in range(groups)]
    finished = [[] for _ in range(groups)]
    for step in range(steps):
        taken = []
        for g in range(groups):
            candidates = []
            for tokens, total in running[g]:
                for token, logp in enumerate(logps_after(lm, prompt, tokens)):
                    candidates.append((total + logp - penalty * taken.count(token), (*tokens, token), total + logp))
            candidates.sort(key=lambda c: -c[0])
            running[g] = []
            for rank, (_, tokens, total) in enumerate(candidates):
                if tokens[-1] in ends or step == steps - 1:
                    if rank < width:
                        finished[g].append((total / len(tokens) ** power, tokens))
                        taken.append(tokens[-1])
                elif len(running[g]) < width:
                    running[g].append((tokens, total))
                    taken.append(tokens[-1])
    return [max(f) for f in finished]


@pytest.mark.parametrize(
    ("width", "groups", "penalty", "power"), [(1, 3, 1.0, 1.0), (2, 2, 0.7, 0.5), (2, 3, 5.0, 1.0)]
)
def test_every_group_finds_what_the_definition_finds(lm, width, groups, penalty, power):
    # "never" with a positive power and no early end: the search goes on while anything could become better.
    decoder = DiverseBeam(
        beams=width * groups, groups=groups, penalty=penalty, length_penalty=power, early_stopping="never"
    )
    found = generate(lm, PROMPTS, decoder=decoder, completions=groups, max_new_tokens=5)
    ends = set(lm.model.generation_config.eos_token_id)
    for number, ids in enumerate(prompt_ids(lm, PROMPTS)):
        mine = found[number * groups : (number + 1) * groups]
        expected = sorted(plain(lm, list(ids), width, groups, penalty, power, ends, 5), key=lambda e: -e[0])
        assert [c.stream for c in mine] == list(range(groups))
        assert sorted(c.details["group"] for c in mine) == list(range(groups))
        assert [c.score for c in mine] == pytest.approx([score for score, _ in expected], abs=1e-4)
        assert [c.token_ids for c in mine] == [tokens for _, tokens in expected]


def test_one_group_is_beam_search(lm):
    options = {"max_new_tokens": 8, "completions": 2}
    one = generate(lm, PROMPTS, decoder=DiverseBeam(beams=3, groups=1, penalty=9.0, length_penalty=1.5), **options)
    beam = generate(lm, PROMPTS, decoder=Beam(beams=3, length_penalty=1.5), **options)
    assert [c.token_ids for c in one] == [c.token_ids for c in beam]
    assert [c.score for c in one] == pytest.approx([c.score for c in beam], abs=1e-5)
    assert not any(c.details for c in one)


def test_without_a_penalty_all_groups_are_one_small_beam_search_whose_texts_are_given_once(lm):
    options = {"max_new_tokens": 6, "completions": 2}
    found = generate(lm, PROMPTS, decoder=DiverseBeam(beams=6, groups=3, penalty=0.0), **options)
    beam = generate(lm, PROMPTS, decoder=Beam(beams=2), **options)
    assert [c.token_ids for c in found] == [c.token_ids for c in beam]
    assert [c.score for c in found] == pytest.approx([c.score for c in beam], abs=1e-5)
    again = generate(lm, PROMPTS, decoder=DiverseBeam(beams=6, groups=3, penalty=0.0), **{**options, "completions": 3})
    for number in range(len(PROMPTS)):
        first, _, third = again[3 * number : 3 * number + 3]
        assert third.token_ids == first.token_ids, "there are but two different texts, which begin anew"


def test_groups_that_agree_give_different_texts(lm):
    """transformers' group beam search gave such a text as often as there were groups that found it."""
    decoder = DiverseBeam(beams=6, groups=3, penalty=0.05)
    found = generate(lm, PROMPTS, decoder=decoder, completions=3, max_new_tokens=6)
    engine = component(None, "engine")
    engine.sync(lm)
    agreed = 0
    for number, ids in enumerate(prompt_ids(lm, PROMPTS)):
        mine = found[3 * number : 3 * number + 3]
        assert len({c.token_ids for c in mine}) == 3
        built = decoder.build()
        members = [Row(0, Request(prompt_ids=ids))]
        limits, sampler = Limits(max_new_tokens=6), component(None, "sampler")
        searches = list(built._search(engine.step_model, members, Candidates.of(sampler, built.name), limits))
        bests = [search.finished[0][1].token_ids for search in searches]
        agreed += len(set(bests)) < 3
        assert mine[0].token_ids in bests
        assert set(bests) <= {c.token_ids for c in mine}
    assert agreed, "of these models some groups agree"


def text_of(tokens, score, group):
    return Rank(score), Completion(
        request=0, id="", stream=0, token_ids=tokens, text="", finish="eos", score=score, details={"group": group}
    )


def test_a_text_is_given_once_and_each_group_has_its_turn():
    first = [text_of((1,), -1.0, 0), text_of((2,), -1.5, 0), text_of((3,), -9.0, 0)]
    second = [text_of((1,), -1.0, 1), text_of((4,), -2.0, 1), text_of((2,), -3.0, 1)]
    third = [text_of((5,), -1.2, 2), text_of((4,), -2.0, 2), text_of((1,), -7.0, 2)]
    ordered = best_first([first, second, third])
    assert [c.token_ids for c in ordered] == [(1,), (5,), (4,), (2,), (3,)]
    assert [c.details["group"] for c in ordered] == [0, 2, 1, 0, 0]


def test_a_large_penalty_keeps_groups_of_one_beam_apart_at_every_step():
    lm = tiny_lm(spread=1.0)
    decoder = DiverseBeam(beams=4, groups=4, penalty=1e6)
    found = generate(lm, PROMPTS, decoder=decoder, completions=4, max_new_tokens=5, min_new_tokens=5)
    for number in range(len(PROMPTS)):
        texts = [c.token_ids for c in found[4 * number : 4 * number + 4]]
        assert all(len(set(step)) == 4 for step in zip(*texts, strict=True))


class Table:
    """Five tokens, 0 ends; log-probabilities hang on the last token and the step."""

    batch_size, joins, vocab_size, eos_token_ids, max_length = 2000, True, 5, frozenset({0}), None
    table = torch.randn(6, 5, 5, generator=torch.Generator().manual_seed(3)).log_softmax(-1)

    def begin(self, prompts):
        return self.step(torch.tensor([p[-1] for p in prompts]), torch.full((len(prompts),), -1))

    def step(self, token_ids, cache):
        return self.table[cache + 1, token_ids], cache + 1

    def select(self, cache, index):
        return cache[index]

    def context(self, prompt):
        return prompt

    def text(self, token_ids):
        return ""

    def score(self, tokens, prompt, power):
        total, last = 0.0, prompt
        for step, token in enumerate(tokens):
            total += self.table[step, last, token].item()
            last = token
        return total / len(tokens) ** power


@pytest.mark.parametrize("groups", [1, 2])
def test_groups_with_room_for_every_text_find_the_best_of_all_texts(groups):
    """The penalty steers what is kept; where all is kept, every group finds the optimum over all texts, and gives what the groups
    before it have not given."""
    model, power, length = Table(), 0.7, 4
    texts = [t for n in range(1, length) for t in itertools.product(range(1, 5), repeat=n - 1)]
    every = [(*t, 0) for t in texts] + list(itertools.product(range(1, 5), repeat=length - 1))
    every = [t for t in every if len(t) <= length]
    every += [(*t, last) for t in itertools.product(range(1, 5), repeat=length - 1) for last in range(5)]
    every = [t for t in every if t[-1] == 0 or len(t) == length]
    assert len(set(every)) == 1 + 4 + 16 + 64 * 5
    decoder = DiverseBeam(
        beams=400 * groups, groups=groups, penalty=3.0, length_penalty=power, early_stopping="never"
    ).build()
    requests = [Request(prompt_ids=(p,), stream=s) for p in (2, 4) for s in range(groups)]
    limits = Limits(max_new_tokens=length)
    for found in decoder.decode(model, requests, component(None, "sampler"), limits, Runtime()):
        prompt = requests[found.request].prompt_ids[0]
        best = sorted(every, key=lambda t: -model.score(t, prompt, power))[found.stream]
        assert found.token_ids == best
        assert found.score == pytest.approx(model.score(best, prompt, power), abs=1e-5)


def test_streams_of_one_prompt_are_one_search():
    rows = []

    class Counted(Table):
        def begin(self, prompts):
            rows.append(len(prompts))
            return super().begin(prompts)

    requests = [Request(prompt_ids=(p,), stream=s) for p in (2, 4, 1) for s in range(4)]
    decoder = DiverseBeam(beams=4, groups=2, penalty=5.0).build()  # large enough for four different texts
    found = list(decoder.decode(Counted(), requests, component(None, "sampler"), Limits(max_new_tokens=3), Runtime()))
    assert rows == [3 * 2]
    by_request = {c.request: c for c in found}
    assert len(by_request) == 12
    for first in range(0, 12, 4):
        best, other, *seconds = [by_request[first + n] for n in range(4)]
        assert best.score >= other.score
        assert {best.details["group"], other.details["group"]} == {0, 1}
        of_group = {c.details["group"]: c for c in (best, other)}
        assert all(c.score < of_group[c.details["group"]].score for c in seconds), "the groups' second texts follow"


def test_mistakes_are_said(lm):
    with pytest.raises(ValueError, match="5 beams cannot be divided evenly among 2 groups"):
        DiverseBeam(beams=5, groups=2)
    with pytest.raises(ConfigError, match="diverse beam search cannot use a sampler that remembers"):
        generate(lm, PROMPTS, decoder="diverse_beam", sampler="mirostat", max_new_tokens=3)

"""Side by side with transformers' own beam search."""

import pytest
import torch

from tunesmith.errors import ConfigError
from tunesmith.generation import generate, prompt_ids
from tunesmith.kinds.sampler import Draw
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.decoders import Beam

PROMPTS = ["the cat sees a tree", "dog", "one two red"]
STOPPING = {"yes": True, "no": False, "never": "never"}


@pytest.fixture(scope="module", params=["decoder", "encoder-decoder"])
def lm(request):
    # of these models "yes" and "no" below give different texts
    lm = tiny_lm(request.param, spread=0.5 if request.param == "encoder-decoder" else 2.0, seed=1)
    lm.model.generation_config.eos_token_id = [1, *range(8, 14)]  # many ends, so that beams end at all lengths
    return lm


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


def test_the_samplers_edits_count_and_its_truncation_does_not(lm):
    def found(sampler):
        return [c.token_ids for c in generate(lm, PROMPTS, sampler=sampler, decoder="beam(beams=3)", max_new_tokens=8)]

    plain = found(None)
    assert found("top_k(k=1)") == plain
    assert found("chain(links=[repetition_penalty(penalty=50.0)])") != plain


def test_more_beams_find_likelier_texts_than_greedy(lm):
    options = {"max_new_tokens": 6, "min_new_tokens": 6}
    greedy = generate(lm, PROMPTS, **options)
    wide = generate(lm, PROMPTS, decoder="beam(beams=12, early_stopping='never')", **options)
    for one, other in zip(greedy, wide, strict=True):
        assert sum(other.logp) >= sum(one.logp) - 1e-5
    assert any(sum(w.logp) > sum(g.logp) + 1e-3 for g, w in zip(greedy, wide, strict=True))


def test_a_sampler_with_a_memory_is_refused():
    class Remembering:
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

    from tunesmith.kinds.decoder import Limits, Request
    from tunesmith.runtime import Runtime
    from tunesmith_plugins.engines import Transformers

    engine = Transformers().build()
    engine.sync(tiny_lm())
    with pytest.raises(ConfigError, match="remembers"):
        list(engine.generate([Request(prompt_ids=(5,))], Beam().build(), Remembering(), Limits(), Runtime()))

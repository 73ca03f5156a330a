import attrs
import pytest

from tunesmith.errors import ConfigError
from tunesmith.generation import generate
from tunesmith.kinds.reward_model import RewardModel, RewardModelConfig
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.decoders import BestOfN

PROMPTS = ["the cat sees a tree", "dog", "one two red"]
HOT = "temperature(temperature=1.5)"


class Judge(RewardModel):
    """The more letters e, the better; no opinion on texts with a full stop."""

    ready = False
    asked = []

    def setup(self, runtime):
        self.ready = True

    def score(self, prompts, completions, **columns):
        assert self.ready
        assert len(set(prompts)) == 1
        self.asked.append(prompts[0])
        return [None if "." in c else float(c.count("e")) for c in completions]


@attrs.frozen(kw_only=True)
class Letters(RewardModelConfig):
    impl = f"{__name__}:Judge"

    def build(self):
        return Judge(self)


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


def drawn(lm, streams):
    """All completions of streams 0 ... streams - 1, by prompt."""
    found = generate(lm, PROMPTS, sampler=HOT, completions=streams, max_new_tokens=6)
    return [found[n * streams : (n + 1) * streams] for n in range(len(PROMPTS))]


def test_the_best_by_reward_of_the_streams_is_kept(lm):
    Judge.asked.clear()
    kept = generate(lm, PROMPTS, sampler=HOT, decoder=BestOfN(n=5, reward=Letters()), max_new_tokens=6)
    for completion, candidates in zip(kept, drawn(lm, 5), strict=True):
        scores = [-1.0 if "." in c.text else float(c.text.count("e")) for c in candidates]
        assert completion.token_ids == candidates[scores.index(max(scores))].token_ids
        assert completion.score == max(scores)
        assert completion.stream == 0
    assert sorted(Judge.asked) == sorted(PROMPTS)


def test_without_a_reward_the_likeliest_by_token_is_kept(lm):
    kept = generate(lm, PROMPTS, sampler=HOT, decoder=BestOfN(n=4), max_new_tokens=6)
    for completion, candidates in zip(kept, drawn(lm, 4), strict=True):
        means = [sum(c.logp) / len(c.logp) for c in candidates]
        assert completion.token_ids == candidates[means.index(max(means))].token_ids
        assert completion.score == pytest.approx(max(means))


def test_other_streams_choose_among_other_completions(lm):
    kept = generate(lm, PROMPTS, sampler=HOT, decoder=BestOfN(n=2), completions=2, max_new_tokens=6)
    candidates = drawn(lm, 4)
    for n in range(len(PROMPTS)):
        assert kept[2 * n].token_ids in [c.token_ids for c in candidates[n][:2]]
        assert kept[2 * n + 1].token_ids in [c.token_ids for c in candidates[n][2:]]


def test_a_judge_without_any_opinion_is_an_error(lm):
    class Silent(Judge):
        def score(self, prompts, completions, **columns):
            return [None] * len(completions)

    @attrs.frozen(kw_only=True)
    class Nothing(RewardModelConfig):
        def build(self):
            return Silent(self)

    with pytest.raises(ConfigError, match="no opinion"):
        generate(lm, PROMPTS, sampler=HOT, decoder=BestOfN(n=2, reward=Nothing()), max_new_tokens=3)

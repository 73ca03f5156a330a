import math

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith import philox
from tunesmith.errors import ConfigError
from tunesmith.kinds.sampler import Link, Rows, SamplerConfig
from tunesmith.runtime import Runtime
from tunesmith.spec import parse
from tunesmith.testing.samplers import chi_square_limit, logits_of, rows_of
from tunesmith_plugins.kernels import reference
from tunesmith_plugins.samplers import Chain, Greedy, MinP, RepetitionPenalty, Temperature, TopK, TopP
from tunesmith_plugins.samplers.chain import named_links, run
from tunesmith_plugins.samplers.walk import Fused, parts_of


class AddBias(Link):
    """A stranger's edit: no kernel knows it."""

    def apply(self, logits, rows):
        return logits + self.value(rows, "bias", torch.float32)[:, None] * (torch.arange(logits.shape[1]) % 3)


@attrs.frozen(kw_only=True)
class Bias(SamplerConfig):
    impl = f"{__name__}:AddBias"
    name_in_chain = "bias"
    bias: float = 0.5

    def build(self):
        return AddBias(self)


class DropEven(Link):
    """A stranger's truncation."""

    truncates = True

    def apply(self, logits, rows):
        return logits.masked_fill(torch.arange(logits.shape[1]) % 2 == 0, -math.inf)


@attrs.frozen(kw_only=True)
class Odd(SamplerConfig):
    name_in_chain = "odd"

    def build(self):
        return DropEven(self)


@attrs.frozen(eq=False)
class Last:
    """The last token of every row, -1 before the first."""

    token: torch.Tensor

    def select(self, index):
        return Last(self.token[index])

    def join(self, others):
        return Last(torch.cat([self.token, *(o.token for o in others)]))


class BanLast(Link):
    """A stateful truncation: never the same token twice running."""

    truncates = True

    def apply(self, logits, rows):
        (state,) = rows.state.values()
        return torch.where(torch.arange(logits.shape[1]) == state.token[:, None], -math.inf, logits)

    def initial_state(self, rows):
        return Last(torch.full((len(rows),), -1))

    def advance(self, state, logits, draw, rows):
        assert bool((logits.gather(1, draw.token[:, None]) > -math.inf).all())
        return Last(draw.token)


@attrs.frozen(kw_only=True)
class NoRepeat(SamplerConfig):
    name_in_chain = "no_repeat"

    def build(self):
        return BanLast(self)


class NeedsSetup(Link):
    """Needs its setup, as a link with weights does; then leaves one token."""

    truncates = True
    keeps = None

    def setup(self, runtime):
        self.keeps = 9

    def apply(self, logits, rows):
        return logits.masked_fill(torch.arange(logits.shape[1]) != self.keeps, -math.inf)


@attrs.frozen(kw_only=True)
class Needy(SamplerConfig):
    def build(self):
        return NeedsSetup(self)


class Unfused(Link):
    """A link with its kernel step taken away."""

    def __init__(self, link):
        super().__init__(link.config)
        self.link = link
        self.truncates = link.truncates

    def apply(self, logits, rows):
        return self.link.apply(logits, rows)


def unfused(config):
    return {name: Unfused(link) for name, link in named_links([c.build() for c in config.flat()]).items()}


def assert_same(first, second):
    for name in ("token", "status", "logp_raw", "logp_processed", "logp_truncated"):
        assert torch.equal(getattr(first, name).nan_to_num(7.0), getattr(second, name).nan_to_num(7.0)), name


LINKS = st.one_of(
    st.builds(Temperature, temperature=st.floats(0.05, 20)),
    st.builds(TopK, k=st.integers(0, 80)),
    st.builds(TopP, p=st.floats(0.01, 1), min_keep=st.integers(1, 3)),
    st.builds(MinP, p=st.floats(0, 1)),
    st.builds(RepetitionPenalty, penalty=st.floats(0.3, 3), window=st.integers(0, 4)),
    st.builds(Bias, bias=st.floats(-3, 3)),
    st.just(Odd()),
)


@settings(max_examples=60, deadline=None)
@given(
    links=st.lists(LINKS, max_size=5),
    batch=st.integers(0, 5),
    vocab=st.integers(2, 70),
    spread=st.sampled_from([0.0, 1.0, 8.0]),
    greedy=st.booleans(),
    half=st.booleans(),
)
def test_fused_runs_give_what_every_link_by_itself_gives(links, batch, vocab, spread, greedy, half):
    config = Chain(links=tuple(links), draw="greedy" if greedy else "categorical")
    logits = logits_of(batch, vocab, seed=batch, spread=spread)
    logits = logits.bfloat16() if half else logits
    rows = rows_of(max(batch, 1), vocab).select(torch.arange(batch))
    fused = config.build().sample(logits, rows, top=2)
    single = run(unfused(config), greedy, logits, rows, 2)
    assert_same(fused, single)
    assert torch.equal(fused.top[0], single.top[0])


def test_neighbouring_kernel_links_are_one_part_and_a_strangers_link_stands_alone():
    config = Chain(links=(Temperature(temperature=0.5), TopK(k=9), Bias(), TopP(p=0.9), MinP(p=0.1)))
    links = named_links([c.build() for c in config.flat()])
    rows = rows_of(2)
    parts = parts_of(links, {name: rows.for_link(name) for name in links})
    assert [len(p.steps) if isinstance(p, Fused) else "single" for p in parts] == [2, "single", 2]


def test_links_work_in_any_order_with_the_meaning_of_that_order():
    logits = torch.tensor([[2.0, 1.0, 0.4, 0.0]])
    rows = rows_of(1, 4)

    def survivors(*links):
        config = Chain(links=links)
        probabilities = torch.zeros(4)
        for seed in range(300):
            draw = config.build().sample(logits, attrs.evolve(rows, seed=torch.tensor([seed])))
            probabilities[draw.token] = draw.logp_truncated.exp()
        return (probabilities > 0).sum().item()

    # by hand: the probabilities are .58 .21 .12 .08; among the first two they are .73 .27
    assert survivors(TopK(k=2), TopP(p=0.7)) == 1
    assert survivors(TopP(p=0.7), TopK(k=2)) == 2


def test_a_nested_chain_stands_for_its_links():
    inner = Chain(links=(TopK(k=9), TopP(p=0.8)))
    nested = Chain(links=(Temperature(temperature=0.7), inner, MinP(p=0.01)))
    flat = Chain(links=(Temperature(temperature=0.7), TopK(k=9), TopP(p=0.8), MinP(p=0.01)))
    assert nested.flat() == flat.flat()
    logits, rows = logits_of(9), rows_of(9)
    assert_same(nested.build().sample(logits, rows), flat.build().sample(logits, rows))


def test_greedy_may_end_a_chain_and_stand_nowhere_else():
    logits, rows = logits_of(5), rows_of(5)
    ended = Chain(links=(RepetitionPenalty(penalty=5.0), Greedy())).build().sample(logits, rows)
    by_draw = Chain(links=(RepetitionPenalty(penalty=5.0),), draw="greedy").build().sample(logits, rows)
    assert_same(ended, by_draw)
    with pytest.raises(ValueError, match="may only come last"):
        Chain(links=(Greedy(), TopK(k=3)))


def test_a_link_alone_is_the_chain_of_one():
    logits, rows = logits_of(7), rows_of(7)
    assert_same(TopP(p=0.6).build().sample(logits, rows), Chain(links=(TopP(p=0.6),)).build().sample(logits, rows))


def test_a_link_that_was_set_up_is_the_one_that_draws():
    link = NeedsSetup(Needy())
    link.setup(Runtime())
    draw = link.sample(logits_of(5), rows_of(5))
    assert draw.token.tolist() == [9] * 5
    sampler = Chain(links=(Temperature(), Needy())).build()
    sampler.setup(Runtime())
    assert sampler.sample(logits_of(5), rows_of(5)).token.tolist() == [9] * 5


def test_parameters_of_rows_take_precedence_and_the_second_link_of_a_name_has_its_own():
    logits, rows = logits_of(3), rows_of(3)
    config = Chain(links=(Temperature(temperature=0.5), TopK(k=20), Temperature(temperature=3.0)))
    own = {"temperature": [0.1, 0.5, 2.0], "temperature#2": [3.0, 1.0, 3.0], "top_k": [1, 5, 50]}
    fields = {"temperature": "temperature", "temperature#2": "temperature", "top_k": "k"}
    parameters = {f"{name}.{fields[name]}": torch.tensor(v, dtype=torch.float64) for name, v in own.items()}
    together = config.build().sample(logits, attrs.evolve(rows, parameters=parameters))
    for row in range(3):
        links = (
            Temperature(temperature=own["temperature"][row]),
            TopK(k=own["top_k"][row]),
            Temperature(temperature=own["temperature#2"][row]),
        )
        index = torch.tensor([row])
        alone = Chain(links=links).build().sample(logits[index], rows.select(index))
        assert together.token[row] == alone.token[0]
        assert together.logp_truncated[row] == alone.logp_truncated[0]


def test_a_parameter_that_no_link_has_is_an_error():
    rows = attrs.evolve(rows_of(2), parameters={"top_p.q": torch.tensor([0.1, 0.2])})
    with pytest.raises(ConfigError, match=r"top_p\.q"):
        TopP(p=0.5).build().sample(logits_of(2), rows)


def test_a_parameter_out_of_range_is_an_error_that_names_the_row():
    rows = attrs.evolve(rows_of(2), parameters={"temperature.temperature": torch.tensor([0.7, 0.0])})
    for config in (Temperature(), Chain(links=(Bias(), Temperature(), Odd()))):
        with pytest.raises(ValueError, match="row 1"):
            config.build().sample(logits_of(2), rows)


def test_a_stateful_link_remembers_and_its_state_follows_the_rows():
    config = Chain(links=(Temperature(temperature=0.1), NoRepeat()))
    sampler = config.build()
    logits, rows = logits_of(4), rows_of(4)
    first = sampler.sample(logits, rows)
    after = attrs.evolve(rows, position=rows.position + 1, state=first.state)
    second = sampler.sample(logits, after)
    assert bool((second.token != first.token).all())
    index = torch.tensor([2, 0])
    moved = sampler.sample(logits[index], after.select(index))
    assert torch.equal(moved.token, second.token[index])


def test_log_probabilities_are_those_of_float64():
    logits, rows = logits_of(6), rows_of(6)
    config = Chain(links=(Temperature(temperature=0.7), TopK(k=8), Bias(bias=0.3)))
    draw = config.build().sample(logits, rows)
    at = draw.token[:, None]
    scaled = logits.double() / 0.7
    bias = 0.3 * (torch.arange(logits.shape[1]) % 3).double()
    kept = reference.top_k((logits / 0.7), torch.full((6,), 8)) > -math.inf
    expected = {
        "logp_raw": logits.double().log_softmax(-1),
        "logp_processed": (scaled + bias).log_softmax(-1),  # edits only: what top-k dropped counts
        "logp_truncated": (scaled + bias).masked_fill(~kept, -math.inf).log_softmax(-1),
    }
    for name, table in expected.items():
        torch.testing.assert_close(getattr(draw, name).double(), table.gather(1, at)[:, 0], atol=2e-6, rtol=0)


def test_the_likeliest_are_those_after_edits_with_equals_by_id():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0, 2.0]])
    draw = Chain(links=(Temperature(temperature=2.0), TopK(k=1))).build().sample(logits, rows_of(1, 5), top=4)
    assert draw.top[0].tolist() == [[1, 2, 4, 0]]
    torch.testing.assert_close(draw.top[1], (logits / 2).log_softmax(-1)[:, [1, 2, 4, 0]])


@pytest.mark.parametrize("spec", ["greedy", "top_k(k=5)", "chain(links=[mirostat])"])
def test_a_number_of_likeliest_tokens_that_is_none_is_named(spec):
    sampler = parse(spec, "sampler").build()
    for top, message in (
        (-1, "top must be 0 or more, not -1"),
        (2.5, "top: a whole number was expected"),
        (True, "bool True"),
    ):
        with pytest.raises(ConfigError, match=message):
            sampler.sample(logits_of(2), rows_of(2), top=top)


def test_a_row_that_an_unknown_link_empties_is_reported():
    logits = torch.full((2, 6), -math.inf)
    logits[0, 2] = 1.0  # even: Odd drops it
    logits[1, 3] = 1.0
    draw = Chain(links=(Temperature(), Odd())).build().sample(logits, rows_of(2, 6))
    assert draw.status.tolist() == [3, 0]
    assert draw.token.tolist() == [-1, 3]
    assert math.isnan(draw.logp_raw[0])


def test_the_draw_is_the_inverse_of_the_stated_philox_number():
    """target = floor(r * total / 2^64), the first index whose running sum of weights exceeds it; by plain Python integers."""
    logits, rows = logits_of(20, 13), rows_of(20, 13)
    draw = Chain().build().sample(logits, rows)
    bits = philox.uniform_bits(rows.seed, rows.stream, rows.position).tolist()
    for row in range(20):
        z = logits[row].double()
        weights = [round(math.exp(float(v - z.max())) * 2**44) for v in z]
        target = (bits[row] % 2**64) * sum(weights) >> 64
        running = [sum(weights[: i + 1]) for i in range(13)]
        assert draw.token[row].item() == next(i for i, total in enumerate(running) if total > target)


@pytest.mark.parametrize("which", ["seed", "stream", "position"])
def test_draws_over_seeds_streams_and_positions_have_the_distribution_of_float64(which):
    """A G-test against probabilities that are computed without any of our code."""
    count, vocab = 40000, 17
    logits = logits_of(1, vocab, seed=3, spread=1.5)
    config = Chain(links=(Temperature(temperature=0.9), TopK(k=12), TopP(p=0.95)))
    numbers = {"seed": torch.full((count,), 5), "stream": torch.zeros(count, dtype=torch.int64)}
    numbers |= {"position": torch.full((count,), 3), which: torch.arange(count)}
    empty = torch.zeros(count, dtype=torch.int64)
    rows = Rows(history=empty[:, None], history_lengths=empty, prompt_lengths=empty, **numbers)
    seen = torch.bincount(config.build().sample(logits.expand(count, -1), rows).token, minlength=vocab).double()

    p = (logits[0].double() / 0.9).softmax(-1)
    order = p.argsort()
    p[order[: vocab - 12]] = 0
    p = p / p.sum()
    order = p.argsort()
    p[order[p[order].cumsum(0) <= 0.05]] = 0
    p = p / p.sum()
    assert bool((seen[p == 0] == 0).all())
    some = p > 0
    g = 2 * (seen[some] * (seen[some] / (count * p[some])).clamp(min=1e-300).log()).sum().item()
    assert g < chi_square_limit(int(some.sum()) - 1)


@pytest.mark.parametrize("links", [(Temperature(temperature=0.7), TopP(p=0.8)), (Bias(), TopK(k=5)), ()])
@pytest.mark.parametrize("wanted", [(), ("processed",), ("raw", "truncated")])
def test_only_the_log_probabilities_asked_for_are_given_and_they_are_the_same(links, wanted):
    sampler = Chain(links=links).build() if Bias() not in links else None
    logits, rows = logits_of(4, 50, seed=1, spread=2.0), rows_of(4)
    if sampler is None:
        built = named_links([config.build() for config in links])
        whole, some = run(built, False, logits, rows), run(built, False, logits, rows, 0, wanted)
    else:
        whole, some = sampler.sample(logits, rows), sampler.sample(logits, rows, logp=wanted)
    assert torch.equal(whole.token, some.token)
    for name in ("raw", "processed", "truncated"):
        found = getattr(some, f"logp_{name}")
        assert torch.equal(found, getattr(whole, f"logp_{name}")) if name in wanted else found is None


def test_a_chain_that_was_called_before_takes_parameters_of_rows_and_new_links():
    logits, rows = logits_of(3, 40, seed=2, spread=3.0), rows_of(3)
    sampler = Chain(links=(Temperature(temperature=0.5),)).build()
    first = sampler.sample(logits, rows)
    hot = attrs.evolve(rows, parameters={"temperature.temperature": torch.full((3,), 50.0)})
    assert not torch.equal(sampler.sample(logits, hot).logp_truncated, first.logp_truncated)
    assert torch.equal(sampler.sample(logits, rows).logp_truncated, first.logp_truncated)
    sampler.use([Temperature(temperature=50.0).build()])
    assert torch.equal(sampler.sample(logits, rows).logp_truncated, sampler.sample(logits, hot).logp_truncated)

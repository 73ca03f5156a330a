"""Chains of links that the kernel does in one call: the same bits as link by link, and a stranger's link fused by the same means."""

import math

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import ConfigError
from tunesmith.kinds.sampler import Link, Rows, SamplerConfig, Step
from tunesmith.testing.samplers import logits_of
from tunesmith_plugins import kernels
from tunesmith_plugins.samplers import (
    XTC,
    AllowedTokens,
    BadWords,
    BiasedSequence,
    Chain,
    Dry,
    DynamicTemperature,
    Epsilon,
    Eta,
    ForcedTokens,
    FrequencyPenalty,
    LengthDecay,
    LogitBias,
    MaxLength,
    MinLength,
    MinP,
    Mirostat,
    NoRepeatNgram,
    PresencePenalty,
    RepetitionPenalty,
    SequenceBias,
    Temperature,
    TopA,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    Typical,
    Watermark,
)
from tunesmith_plugins.samplers.chain import named_links, run
from tunesmith_plugins.samplers.walk import Fused, parts_of

ids = st.integers(0, 6)
sequences = st.lists(st.lists(ids, min_size=1, max_size=3).map(tuple), max_size=4).map(tuple)
ends = st.lists(ids, min_size=1, max_size=3).map(tuple)
numbers = st.floats(-3, 3)
windows = st.integers(0, 4)
LINKS = st.one_of(
    st.builds(Temperature, temperature=st.floats(0.05, 20)),
    st.builds(TopK, k=st.integers(0, 80), ties=st.sampled_from(["hf", "low", "all"])),
    st.builds(TopP, p=st.floats(0.01, 1)),
    st.builds(TopP, p=st.floats(0.01, 1), min_keep=st.integers(1, 60), ties=st.sampled_from(["hf", "low", "all"])),
    st.builds(MinP, p=st.floats(0, 1)),
    st.builds(RepetitionPenalty, penalty=st.floats(0.5, 3), window=windows),
    st.builds(PresencePenalty, penalty=numbers, window=windows, prompt=st.booleans()),
    st.builds(FrequencyPenalty, penalty=numbers | st.just(-3e38), window=windows, prompt=st.booleans()),
    st.builds(Dry, multiplier=st.floats(0, 3), allowed_length=st.integers(1, 2), window=windows),
    st.builds(LogitBias, bias=st.dictionaries(ids.map(str), numbers | st.just(1e300), max_size=4)),
    st.builds(
        SequenceBias,
        sequences=st.lists(
            st.builds(BiasedSequence, tokens=st.lists(ids, min_size=1, max_size=3).map(tuple), bias=numbers), max_size=4
        ).map(tuple),
    ),
    st.builds(LengthDecay, end=ends, start=st.integers(0, 3), factor=st.sampled_from([0.5, 1.1, 1e300])),
    st.builds(NoRepeatNgram, size=st.integers(0, 3), window=windows),
    st.builds(BadWords, sequences=sequences),
    st.builds(AllowedTokens, tokens=st.lists(ids, max_size=4).map(tuple)),
    st.builds(MinLength, end=ends, tokens=st.integers(0, 6)),
    st.builds(MaxLength, end=ends, tokens=st.integers(1, 8)),
    st.builds(ForcedTokens, at=st.dictionaries(st.integers(0, 5).map(str), ids, max_size=3)),
    st.builds(Epsilon, epsilon=st.floats(0, 0.5)),
    st.builds(Eta, epsilon=st.floats(0, 0.5)),
    st.builds(TopA, a=st.floats(0, 1)),
    st.builds(TopNSigma, n=st.floats(0, 4)),
    st.builds(Typical, mass=st.floats(0.01, 1), min_keep=st.integers(1, 9)),
    st.builds(TopH, h=st.floats(0.01, 1), candidates=st.integers(1, 300)),
    st.builds(XTC, threshold=st.sampled_from([0.0, 0.01, 0.1]), probability=st.sampled_from([0.0, 0.5, 1.0])),
    st.builds(Mirostat, tau=st.floats(0.1, 5)),
    st.builds(Mirostat, tau=st.floats(0.1, 5), version=st.just(1), candidates=st.integers(2, 200)),
    st.builds(DynamicTemperature, low=st.floats(0.05, 1), high=st.floats(1, 20), exponent=st.floats(0.1, 4)),
    st.builds(
        Watermark,
        key=st.integers(0, 2**63 - 1),
        gamma=st.floats(0.01, 0.99),
        delta=st.floats(0, 9),
        context=st.integers(1, 5),
    ),
)


class Unfused(Link):
    """A link with its kernel step taken away."""

    def __init__(self, link):
        super().__init__(link.config)
        self.link, self.truncates = link, link.truncates

    def apply(self, logits, rows):
        return self.link.apply(logits, rows)


class UnfusedWithMemory(Unfused):
    """The same of a link with a memory."""

    def initial_state(self, rows):
        return self.link.initial_state(rows)

    def advance(self, state, logits, draw, rows):
        assert logits is not None
        return self.link.advance(state, logits, draw, rows)


def unfused(links):
    """Links by their names, without kernel steps."""
    return {
        name: UnfusedWithMemory(link) if hasattr(link, "advance") else Unfused(link)
        for name, link in named_links(links).items()
    }


def rows_of(batch, seed=0):
    """Rows with short histories of few ids, some of them outside the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 9, (batch,), generator=generator)
    history = torch.randint(-1, 8, (batch, 8), generator=generator)
    prompts = lengths // 2
    number = torch.arange(batch)
    return Rows(
        seed=number + seed, stream=number, position=lengths - prompts, history=history, history_lengths=lengths,
        prompt_lengths=prompts,
    )  # fmt: skip


def assert_same(first, second):
    for name in ("token", "status", "logp_raw", "logp_processed", "logp_truncated"):
        assert torch.equal(getattr(first, name).nan_to_num(7.0), getattr(second, name).nan_to_num(7.0)), name
    for name in ("top", "top_raw", "top_truncated"):
        one, other = getattr(first, name), getattr(second, name)
        assert (one is None) == (other is None)
        for found, expected in zip(one or (), other or (), strict=True):
            assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0)), name


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    links=st.lists(LINKS, max_size=6),
    batch=st.integers(1, 5),
    vocab=st.sampled_from([8, 40, 700]),
    seed=st.integers(0, 50),
    greedy=st.booleans(),
    top=st.sampled_from([0, 0, 1, 5, 50]),
)
def test_fused_chains_give_what_every_link_by_itself_gives(links, batch, vocab, seed, greedy, top):
    config = Chain(links=tuple(links), draw="greedy" if greedy else "categorical")
    logits, rows = logits_of(batch, vocab, seed=seed, spread=2.0), rows_of(batch, seed)
    if seed % 3 == 0:
        logits = logits.masked_fill(logits_of(batch, vocab, seed=seed + 1) > 0.7, -math.inf)
    sampler = config.build()
    whole = sampler.sample(logits, rows, top=top)
    assert_same(whole, run(unfused([c.build() for c in config.flat()]), greedy, logits, rows, top))
    assert_same(whole, sampler.sample(logits, rows, top=top))  # with what was kept from the first call
    moved = attrs.evolve(rows, position=rows.position + 1, history=rows.history.flip(1))
    assert_same(sampler.sample(logits, moved), config.build().sample(logits, moved))  # and nothing stale of it


ALL = (
    RepetitionPenalty(penalty=1.2, window=5), PresencePenalty(penalty=0.3), FrequencyPenalty(penalty=0.2, window=4), Dry(),
    LogitBias(bias={"3": 1.0}), SequenceBias(sequences=(BiasedSequence(tokens=(1, 2), bias=2.0),)), LengthDecay(end=(0,)),
    NoRepeatNgram(size=2), BadWords(sequences=((4, 5), (6,))), MinLength(end=(0,), tokens=4), MaxLength(end=(0,), tokens=9),
    ForcedTokens(at={"2": 3}), ForcedTokens(at={"1": 3, "01": 4}), AllowedTokens(tokens=tuple(range(30))),
    Temperature(temperature=0.8), DynamicTemperature(), Watermark(context=2), TopNSigma(n=3.0),
    Epsilon(epsilon=1e-4), Eta(epsilon=1e-4), TopA(a=0.01), Typical(mass=0.99), TopH(h=0.95), XTC(), Mirostat(tau=9.0),
    Mirostat(tau=9.0, version=1), TopK(k=20), TopK(k=19, ties="low"), TopP(p=0.9), TopP(p=0.8, min_keep=5, ties="low"),
    TopP(p=0.8, ties="all"),
)  # fmt: skip


def test_a_chain_of_all_of_them_is_one_call(monkeypatch):
    calls = []
    draw = kernels.sample_chain
    monkeypatch.setattr(kernels, "sample_chain", lambda *args, **kw: calls.append(args) or draw(*args, **kw))
    monkeypatch.setattr(kernels, "apply_chain", None)
    monkeypatch.setattr(
        kernels, "sample_chain_top", lambda *a, _of=kernels.sample_chain_top, **kw: calls.append(a) or _of(*a, **kw)
    )
    Chain(links=ALL).build().sample(logits_of(3, 40), rows_of(3))
    assert len(calls) == 1
    Chain(links=ALL).build().sample(logits_of(3, 40), rows_of(3), top=4)
    assert len(calls) == 2
    built = named_links([config.build() for config in ALL])
    parts = parts_of(built, {name: rows_of(3) for name in built})
    assert [len(part.steps) for part in parts if isinstance(part, Fused)] == [len(ALL)]


@pytest.mark.parametrize("cut", [False, True])
def test_the_likeliest_are_those_of_float64_raw_processed_and_truncated(cut):
    logits, rows = logits_of(6, 500, seed=5, spread=3.0), rows_of(6)
    links = (Temperature(temperature=0.7), LogitBias(bias={"3": 4.0}), BadWords(sequences=((3,),)), TopK(k=6))
    built = [config.build() for config in links]
    draw = run(unfused(built) if cut else named_links(built), False, logits, rows, 8)
    raw, heated = logits.double(), logits.double() / 0.7
    heated[:, 3] += 4.0
    kept = heated.clone()
    kept[:, 3] = -math.inf
    kept[kept < kept.topk(6).values[:, -1:]] = -math.inf
    for found, z in ((draw.top_raw, raw), (draw.top, heated), (draw.top_truncated, kept)):
        expected, ids = z.log_softmax(-1).topk(8)
        few = expected > -math.inf
        assert torch.equal(found[0][few], ids[few])
        torch.testing.assert_close(found[1].double(), expected, atol=2e-6, rtol=0)
    assert (draw.top_truncated[1] == -math.inf).sum() == 12  # of eight two are not among the six
    only = run(unfused(built) if cut else named_links(built), False, logits, rows, 8, ("processed",))
    assert only.top_raw is None
    assert only.top_truncated is None
    assert torch.equal(only.top[0], draw.top[0])


def test_parameters_of_rows_reach_the_fused_steps():
    config = Chain(links=(PresencePenalty(prompt=True), LengthDecay(end=(0,)), NoRepeatNgram(), MinLength(end=(1,))))
    logits, rows = logits_of(4, 12, spread=2.0), rows_of(4, 3)
    own = {
        "presence_penalty.penalty": torch.tensor([0.0, 5.0, -5.0, 1.0]),
        "presence_penalty.window": torch.tensor([0, 1, 2, 3]),
        "length_decay.factor": torch.tensor([1.0, 2.0, 0.5, 1.0]),
        "no_repeat_ngram.size": torch.tensor([0, 1, 2, 3]),
        "min_length.tokens": torch.tensor([0, 9, 0, 9]),
    }
    together = config.build().sample(logits, attrs.evolve(rows, parameters=own))
    for row in range(4):
        value = {key.replace(".", "_"): each[row].item() for key, each in own.items()}
        links = (
            PresencePenalty(
                prompt=True, penalty=value["presence_penalty_penalty"], window=value["presence_penalty_window"]
            ),
            LengthDecay(end=(0,), factor=value["length_decay_factor"]),
            NoRepeatNgram(size=value["no_repeat_ngram_size"]),
            MinLength(end=(1,), tokens=value["min_length_tokens"]),
        )
        index = torch.tensor([row])
        alone = Chain(links=links).build().sample(logits[index], rows.select(index))
        assert together.token[row] == alone.token[0]
        assert torch.equal(together.logp_truncated[row].nan_to_num(7), alone.logp_truncated[0].nan_to_num(7))


@pytest.mark.parametrize(
    "config",
    [LogitBias(bias={"99": 1.0}), BadWords(sequences=((99, 1),)), AllowedTokens(tokens=(99,)), MinLength(end=(99,)),
     MaxLength(end=(99,)), ForcedTokens(at={"0": 99}), LengthDecay(end=(99,)),
     SequenceBias(sequences=(BiasedSequence(tokens=(99, 1), bias=1.0),))],
)  # fmt: skip
def test_an_id_that_the_vocabulary_lacks_is_said_where_the_link_is_fused_too(config):
    sampler = Chain(links=(Temperature(temperature=0.5), config)).build()
    assert sampler.sample(logits_of(2, 100), rows_of(2)).status.tolist() == [0, 0]
    with pytest.raises(ConfigError, match=r"\[99\], but the vocabulary has 40 tokens"):
        sampler.sample(logits_of(2, 40), rows_of(2))


class NotTwiceLink(Link):
    """A stranger's link: what stands last in the history may not come again, and odd ids are favoured."""

    varies = True

    def check_vocab(self, vocab):
        if self.config.token >= vocab:
            raise ConfigError([f"{self.config.token} is no token of {vocab}"], "favour_last")

    def last(self, rows):
        if not rows.history.shape[1]:
            return torch.full((len(rows), 1), -1)
        place = (rows.history_lengths - 1).clamp(min=0)[:, None]
        return torch.where(rows.history_lengths[:, None] > 0, rows.history.gather(1, place), -1)

    def apply(self, logits, rows):
        changed = logits.float().clone()
        amount = self.value(rows, "amount", torch.float32)
        for row, token in enumerate(self.last(rows)[:, 0].tolist()):
            for each in (token, self.config.token):
                if 0 <= each < logits.shape[1]:
                    changed[row, each] += amount[row] * (0.5 if each == token else 2.0)
                if token == self.config.token:
                    break
        return changed

    def lower(self, rows):
        last = self.last(rows)
        own = torch.where(last == self.config.token, -1, self.config.token)
        amounts = torch.tensor([[0.5, 2.0]]).expand(len(rows), 2)
        return Step(op="bias", values=self.value(rows, "amount"), ids=torch.cat([last, own], 1), amounts=amounts)


@attrs.frozen(kw_only=True)
class NotTwice(SamplerConfig):
    name_in_chain = "favour_last"
    token: int = 3
    amount: float = 1.5

    def build(self):
        return NotTwiceLink(self)


def test_a_strangers_link_is_fused_by_the_same_hooks(monkeypatch):
    config = Chain(links=(Temperature(temperature=0.7), NotTwice(), TopK(k=9)))
    logits, rows = logits_of(6, 30, seed=2, spread=2.0), rows_of(6, 1)
    expected = run(unfused([c.build() for c in config.flat()]), False, logits, rows)
    monkeypatch.setattr(kernels, "apply_chain", None)  # a chain that is cut would need it
    assert_same(config.build().sample(logits, rows), expected)
    with pytest.raises(ConfigError, match="3 is no token of 3"):
        config.build().sample(logits[:, :3], rows)


class Turns:
    """How often each row has drawn."""

    def __init__(self, count):
        self.count = count

    def select(self, index):
        return Turns(self.count[index])

    def join(self, others):
        return Turns(torch.cat([self.count, *(other.count for other in others)]))


class ByTurnLink(Link):
    """A stranger's link with a memory that needs no logits: even tokens and odd ones by turns."""

    truncates = True
    reads_logits = False

    def initial_state(self, rows):
        return Turns(torch.zeros(len(rows), dtype=torch.int64))

    def advance(self, state, logits, draw, rows):
        assert logits is None or self.config.shown
        return Turns(state.count + (draw.token % 2 == state.count % 2))

    def words(self, rows):
        even = 0x55555555
        count = rows.state["by_turn"].count[:, None]
        return torch.where(count % 2 == 0, even, -1 - even).int().expand(len(rows), 2)

    def apply(self, logits, rows):
        bits = (self.words(rows)[:, :, None] >> torch.arange(32) & 1).flatten(1).bool()[:, : logits.shape[1]]
        return logits.masked_fill(~bits, -math.inf)

    def lower(self, rows):
        return Step(op="mask", values=torch.ones(len(rows), dtype=torch.int64), ids=self.words(rows))


@attrs.frozen(kw_only=True)
class ByTurn(SamplerConfig):
    name_in_chain = "by_turn"
    shown: bool = False

    def build(self):
        return ByTurnLink(self)


def test_a_link_with_a_memory_is_fused_where_it_needs_no_logits():
    logits, rows = logits_of(5, 60, seed=4), rows_of(5, 2)
    fused, shown = (Chain(links=(ByTurn(shown=s), TopP(p=0.9))).build() for s in (False, True))
    shown.use([ByTurn(shown=True).build(), Unfused(TopP(p=0.9).build())])
    for turn in range(4):
        draw, other = fused.sample(logits, rows), shown.sample(logits, rows)
        assert_same(draw, other)
        assert (draw.token % 2 == turn % 2).all()
        assert torch.equal(draw.state["by_turn"].count, torch.full((5,), turn + 1))
        rows = attrs.evolve(rows, position=rows.position + 1, state=draw.state)

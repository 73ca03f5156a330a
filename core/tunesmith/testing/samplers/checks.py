"""Checks of samplers: purity, noise that depends on the row alone, and the distribution that is drawn from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from attrs import evolve

from tunesmith.component import Config
from tunesmith.kinds.sampler import STATUS_OK, Draw, Link, Rows, Sampler, chain_of
from tunesmith.testing.conformance import when
from tunesmith.testing.samplers.rows import VOCAB, logits_of, rows_of
from tunesmith.testing.samplers.statistics import chi_square_limit


def check_logits_are_left_as_they_are(config: Config) -> None:
    """``sample`` and ``apply`` write to no tensor they are given."""
    logits, rows = logits_of(4), rows_of(4)
    before, history = logits.clone(), rows.history.clone()
    component = _built(config)
    component.sample(logits, rows)
    if isinstance(component, Link):
        component.apply(logits, rows)
    assert torch.equal(logits, before), "the logits were changed"
    assert torch.equal(rows.history, history), "the history was changed"


def check_the_same_rows_give_the_same_tokens(config: Config) -> None:
    """A token is a function of logits and row: a second call, and another component, give it again."""
    logits, rows = logits_of(16), rows_of(16)
    component = _built(config)
    first = component.sample(logits, rows)
    torch.rand(7)  # a global generator that has moved on must not matter
    _same(first, component.sample(logits, rows), "a second call")
    _same(first, _built(config).sample(logits, rows), "a second component")


def check_tokens_do_not_depend_on_the_batch(config: Config) -> None:
    """Each row alone, and the rows in another order, give the same tokens."""
    logits, rows = logits_of(8), rows_of(8)
    component = _built(config)
    whole = component.sample(logits, rows)
    for number in range(8):
        index = torch.tensor([number])
        alone = component.sample(logits[index], rows.select(index))
        assert alone.token.item() == whole.token[number].item(), f"row {number} alone gives another token"
    order = torch.tensor([5, 2, 7, 0, 1, 6, 4, 3])
    shuffled = component.sample(logits[order], rows.select(order))
    assert torch.equal(shuffled.token, whole.token[order]), "rows in another order give other tokens"


def check_a_removed_token_is_never_drawn(config: Config) -> None:
    """A token at -inf never comes back, wherever it stands."""
    batch = 64
    logits = logits_of(batch)
    allowed = torch.rand(batch, VOCAB, generator=torch.Generator().manual_seed(1)) < 0.2
    allowed[torch.arange(batch), torch.arange(batch) % VOCAB] = True
    draw = _built(config).sample(logits.masked_fill(~allowed, -math.inf), rows_of(batch))
    assert bool((draw.status == STATUS_OK).all()), f"statuses: {draw.status.tolist()}"
    drawn = allowed[torch.arange(batch), draw.token]
    assert bool(drawn.all()), f"a removed token was drawn in rows {(~drawn).nonzero()[:, 0].tolist()}"


def check_what_the_draw_says_is_consistent(config: Config) -> None:
    """Shapes, types and log-probabilities: at most 0, and the raw one is that of the logits."""
    logits = logits_of(6)
    draw = _built(config).sample(logits, rows_of(6), top=3)
    assert draw.token.shape == (6,)
    assert draw.token.dtype == torch.int64, f"token is {draw.token.dtype}, not int64"
    assert draw.status.shape == (6,)
    chosen = draw.token[:, None]
    raw = logits.double().log_softmax(-1).gather(1, chosen)[:, 0]
    assert draw.logp_raw is not None, "logp_raw is missing"
    assert torch.allclose(draw.logp_raw.double(), raw, atol=1e-5), "logp_raw is not that of the logits"
    for name in ("logp_raw", "logp_processed", "logp_truncated"):
        value = getattr(draw, name)
        assert value.shape == (6,), f"{name} has the shape {tuple(value.shape)}"
        assert bool((value <= 1e-6).all()), f"{name} is above 0: {value.tolist()}"
    assert draw.top is not None, "top=3 gave no likeliest tokens"
    ids, logps = draw.top
    assert ids.shape == (6, 3)
    assert logps.shape == (6, 3)
    assert bool((logps[:, :-1] >= logps[:, 1:]).all()), "the likeliest tokens are not in order"


def check_bad_rows_are_reported_and_disturb_no_other(config: Config) -> None:
    """Rows of NaN, of +inf and without any finite value get a status and token -1; the others stay as they were."""
    logits, rows = logits_of(5), rows_of(5)
    component = _built(config)
    healthy = component.sample(logits, rows)
    broken = logits.clone()
    broken[0, 3] = math.nan
    broken[2, 7] = math.inf
    broken[4] = -math.inf
    draw = component.sample(broken, rows)
    assert draw.status.tolist() == [1, 0, 2, 0, 3], f"statuses: {draw.status.tolist()}"
    assert draw.token[[0, 2, 4]].tolist() == [-1, -1, -1], "a bad row has a token"
    assert torch.equal(draw.token[[1, 3]], healthy.token[[1, 3]]), "a good row has another token beside bad ones"


def check_an_empty_batch_is_fine(config: Config) -> None:
    """No rows give no tokens."""
    draw = _built(config).sample(torch.zeros(0, VOCAB), rows_of(4).select(torch.zeros(0, dtype=torch.int64)))
    assert draw.token.shape == (0,)


@when(lambda component: not component.deterministic and not component.stochastic)
def check_draws_follow_the_distribution_they_state(config: Config) -> None:
    """Over many seeds the tokens are distributed as their ``logp_truncated`` says (a chi-square test at 1e-7)."""
    count, vocab = 20000, 11
    logits = logits_of(1, vocab, seed=5, spread=1.0).expand(count, vocab)
    rows = rows_of(1, vocab).select(torch.zeros(count, dtype=torch.int64))
    rows = evolve(rows, seed=torch.arange(count))
    draw = _built(config).sample(logits, rows)
    seen = torch.bincount(draw.token, minlength=vocab).double()
    stated = torch.zeros(vocab, dtype=torch.float64)
    assert draw.logp_truncated is not None, "logp_truncated is missing"
    stated[draw.token] = draw.logp_truncated.double().exp()
    assert abs(stated.sum().item() - 1) < 1e-3, f"the stated probabilities add up to {stated.sum().item():.4f}"
    expected = stated * count
    some = expected > 5
    statistic = ((seen - expected)[some] ** 2 / expected[some]).sum().item()
    limit = chi_square_limit(max(int(some.sum()) - 1, 1))
    assert statistic < limit, f"chi-square {statistic:.1f} is above {limit:.1f}: seen {seen.tolist()}"


@when(Link)
def check_a_truncating_link_only_removes(config: Config) -> None:
    """A link that says it truncates changes no value that it keeps, and always keeps a token."""
    link = config.build()
    if not link.truncates:
        return
    logits, rows = logits_of(8), rows_of(8)
    after = link.apply(logits, rows)
    kept = after > -math.inf
    assert bool(kept.any(-1).all()), "a row has no token left"
    assert torch.equal(after[kept], logits[kept]), "a token that stays has another logit"


@when(Link)
def check_a_link_that_only_removes_says_so(config: Config) -> None:
    """A link that removes tokens and changes no other has ``truncates = True``: ``logp_processed`` is taken before it."""
    link = config.build()
    if link.truncates:
        return
    logits, rows = logits_of(8), rows_of(8)
    after = link.apply(logits, rows)
    kept = after > -math.inf
    only_removes = not bool(kept.all()) and torch.equal(after[kept], logits[kept])
    assert not only_removes, "it only removed tokens, and `truncates` is False; set it to True in the class"


@when(lambda component: callable(getattr(component, "lower", None)))
def check_the_fused_step_does_what_apply_does(config: Config) -> None:
    """A chain draws the same whether it may use the step that ``lower`` gives or has to call ``apply``: the same tokens,
    and every token with the same probability, bit for bit.
    """
    link = config.build()
    logits, rows = logits_of(32), rows_of(32)
    if link.lower(rows) is None:
        return
    fused, plain = (chain_of(each).sample(logits, rows, top=VOCAB) for each in (link, _Unfused(link)))
    assert torch.equal(fused.token, plain.token), "lower and apply draw other tokens"
    assert torch.equal(fused.status, plain.status), "lower and apply give other statuses"
    assert fused.top is not None
    assert plain.top is not None
    for found, expected in zip(fused.top, plain.top, strict=True):
        assert torch.equal(found, expected), "lower and apply differ"


class _Unfused(Link):
    """A link without its ``lower``."""

    def __init__(self, link: Link) -> None:
        super().__init__(link.config)
        self.truncates = link.truncates  # type: ignore[misc]
        self._link = link

    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        return self._link.apply(logits, rows)


CHECKS: tuple[Callable[[Any], None], ...] = (
    check_logits_are_left_as_they_are,
    check_the_same_rows_give_the_same_tokens,
    check_tokens_do_not_depend_on_the_batch,
    check_a_removed_token_is_never_drawn,
    check_what_the_draw_says_is_consistent,
    check_bad_rows_are_reported_and_disturb_no_other,
    check_an_empty_batch_is_fine,
    check_draws_follow_the_distribution_they_state,
    check_a_truncating_link_only_removes,
    check_a_link_that_only_removes_says_so,
    check_the_fused_step_does_what_apply_does,
)


def _built(config: Config) -> Sampler:
    component: Sampler = config.build()
    return component


def _same(first: Draw, second: Draw, what: str) -> None:
    for name in ("token", "status", "logp_raw", "logp_processed", "logp_truncated"):
        same = torch.equal(getattr(first, name), getattr(second, name))
        assert same, f"{what} gives another {name}"

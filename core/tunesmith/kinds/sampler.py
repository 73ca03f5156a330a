"""Sampler: logits and what is known of each row, to one token a row.

A sampler is a chain of *links*, each of which changes logits, and one final draw. The author of a link writes
:meth:`Link.apply` and registers the link as a sampler; ``sample`` of a link alone is the one-link chain with a
categorical draw.

Randomness is counter-based (Philox4x32-10, Salmon et al. 2011): key = the row's seed, counter = (stream, position, draw).
A token is therefore a function of (logits, parameters, the row's history and state, seed, stream, position) and depends
neither on the batch a row is in nor on the order of calls.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from attrs import Factory, evolve, field, frozen

from tunesmith.component import Component, Config
from tunesmith.errors import ConfigError

if TYPE_CHECKING:
    import torch

STATUS_OK, STATUS_NAN, STATUS_POSINF, STATUS_EMPTY = 0, 1, 2, 3
"""Status of a draw: fine; a NaN among the logits; a +inf among them; no finite logit left. Not OK means token -1."""

LOGPS = ("raw", "processed", "truncated")
"""The log-probabilities of a drawn token that :meth:`Sampler.sample` can be asked for, see :class:`Draw`."""


@frozen(kw_only=True)
class SamplerConfig(Config):
    """Base of every sampler's config. ``name_in_chain`` is how per-row parameters address this link; the name of the class
    if it is left empty."""

    kind: ClassVar[str] = "sampler"
    name_in_chain: ClassVar[str] = ""

    @property
    def link_name(self) -> str:
        """The name by which per-row parameters address this link, before a number tells it from another of that name."""
        return self.name_in_chain or type(self).__name__


def seed_bits(seed: int) -> int:
    """Return the int64 with the bits of an unsigned 64-bit seed, as :attr:`Rows.seed` holds it; such an int64 stays as it is.

    Raises:
        ConfigError: For a seed that is no whole number or needs more than 64 bits: of two such seeds one would be the other.
    """
    from tunesmith.given import whole

    found = whole(seed, "a seed", "rows")
    if not -(2**63) <= found < 2**64:
        raise ConfigError([f"a seed has 64 bits, from 0 to 2^64 - 1, and {found} is beyond them"], "rows")
    return found - 2**64 if found >= 2**63 else found


@runtime_checkable
class RowState(Protocol):
    """State of a stateful link for each row of a batch; rows leave and enter a batch, so it can be taken apart."""

    def select(self, index: torch.Tensor) -> RowState:
        """Return the rows at ``index`` (int64, any order, repeats allowed)."""

    def join(self, others: Sequence[RowState]) -> RowState:
        """Return these rows followed by the rows of ``others``."""


@frozen(kw_only=True, eq=False, slots=False)  # made for every token; with slots that takes half as long again
class Rows:
    """What a sampler may know of the rows of a batch. All tensors are on the logits' device.

    Attributes:
        seed: (batch,) int64, the bit pattern of each row's unsigned 64-bit seed.
        stream: (batch,) int64, which completion of a prompt a row is.
        position: (batch,) int64, index of the token to be generated: 0 for the first, never a padded length.
        history: (batch, time) int64, prompt and generated ids, right-padded; only ``history_lengths`` count. The prompt of an
            encoder-decoder is here what its decoder began with (the start token), not what its encoder reads.
        history_lengths: (batch,) int64.
        prompt_lengths: (batch,) int64: the first so many ids of ``history`` are the prompt.
        parameters: ``"link.field"`` to a (batch,) tensor that takes precedence over the config's value. A link that
            stands twice in a chain is addressed as ``link#2`` the second time.
        state: Link to its :class:`RowState`; None until a stateful link has made one.
    """

    seed: torch.Tensor
    stream: torch.Tensor
    position: torch.Tensor
    history: torch.Tensor
    history_lengths: torch.Tensor
    prompt_lengths: torch.Tensor
    parameters: Mapping[str, torch.Tensor] = Factory(dict)
    state: Mapping[str, RowState] | None = None

    def __len__(self) -> int:
        return int(self.seed.shape[0])

    def uniform(self, draw: int) -> torch.Tensor:
        """Return one number in [0, 1) a row, (batch,) float64: the row's own noise.

        Args:
            draw: Which of the random values that a position needs; 0 is the draw of the token, links take others.
        """
        from tunesmith import philox

        return philox.uniform(self.seed, self.stream, self.position, draw)

    def select(self, index: torch.Tensor) -> Rows:
        """Return the rows at ``index`` (int64)."""
        return Rows(
            seed=self.seed[index],
            stream=self.stream[index],
            position=self.position[index],
            history=self.history[index],
            history_lengths=self.history_lengths[index],
            prompt_lengths=self.prompt_lengths[index],
            parameters={k: v[index] for k, v in self.parameters.items()},
            state=None if self.state is None else {k: s.select(index) for k, s in self.state.items()},
        )

    def for_link(self, link: str) -> Rows:
        """Return the same rows with only ``link``'s parameters, under their field names, and only its state."""
        head = link + "."
        own = {k.removeprefix(head): v for k, v in self.parameters.items() if k.startswith(head)}
        state = self.state[link] if self.state is not None and link in self.state else None
        return evolve(self, parameters=own, state=None if state is None else {link: state})


@frozen(kw_only=True, eq=False, slots=False)  # as Rows
class Draw:
    """One token a row, and what is known of it.

    Attributes:
        token: (batch,) int64; -1 where ``status`` is not OK.
        status: (batch,) uint8, one of the STATUS values.
        logp_raw: (batch,) float32, log-probability of the token under the softmax of the logits as given. This and the next
            two are None if they were not asked for.
        logp_processed: (batch,) float32, the same after the links that edit (temperature, penalties, bias) and before
            those that truncate. This is what RL uses.
        logp_truncated: (batch,) float32, the same among the tokens that survived: what the token was drawn with.
        top: ids (batch, n) int64 and processed log-probabilities (batch, n) of the n most likely tokens, or None.
        top_raw: The same under the logits as given, if the raw log-probability was asked for.
        top_truncated: The same among the tokens that survived, if the truncated one was asked for.
        state: The state after this token, for the next call; None if no link keeps one.
    """

    token: torch.Tensor
    status: torch.Tensor
    logp_raw: torch.Tensor | None = None
    logp_processed: torch.Tensor | None = None
    logp_truncated: torch.Tensor | None = None
    top: tuple[torch.Tensor, torch.Tensor] | None = None
    top_raw: tuple[torch.Tensor, torch.Tensor] | None = None
    top_truncated: tuple[torch.Tensor, torch.Tensor] | None = None
    state: Mapping[str, RowState] | None = None


@frozen(kw_only=True, eq=False)
class Step:
    """A link lowered to an operation of the fused kernel.

    Attributes:
        op: One of ``tunesmith_plugins.kernels.supported_steps()``; docs/sampling-kernels.md says what each does.
        values: (batch,), or one element for all rows.
        ids: Of a step that names tokens: (batch or 1, width) int64, padded with -1; ids outside the vocabulary are ignored.
            Of a mask: int32 words, bit i of word w for token 32 w + i. Of a watermark: (batch or 1, 2), key and context.
        amounts: Of a bias: float32 of the shape of ``ids``.
        second: The second parameter of a step that has two, (batch,) or one element; (batch or 1, 2) where it is a pair.
    """

    op: str
    values: torch.Tensor = field()
    ids: torch.Tensor | None = None
    amounts: torch.Tensor | None = None
    second: torch.Tensor | None = None


class Sampler(Component[Any]):
    """Choose the next token of every row of a batch.

    Attributes:
        deterministic: True if nothing is drawn; may depend on the config.
        stochastic: True if more is drawn than the token, so that a row's ``logp_truncated`` holds for its own noise only.
        stands_for: The caller's sampler, of one that an engine has made of it; messages name that.

    Example:
        >>> draw = TopP(p=0.9).build().sample(logits, rows)  # doctest: +SKIP
    """

    deterministic: bool = False
    stochastic: bool = False
    stands_for: Sampler | None = None

    def __repr__(self) -> str:
        return super().__repr__() if self.stands_for is None else repr(self.stands_for)

    @abstractmethod
    def sample(self, logits: torch.Tensor, rows: Rows, *, top: int = 0, logp: Collection[str] = LOGPS) -> Draw:
        """Draw one token a row.

        Args:
            logits: (batch, vocab), float32, float64, bfloat16 or float16; never written to. The last dimension is dense,
                rows may be strided.
            rows: What is known of each row.
            top: Also give the ``top`` most likely tokens, at least with their processed log-probabilities.
            logp: Which log-probabilities of the token to give, of :data:`LOGPS`. Each costs a look at the whole row or less,
                so ask for what is used; more than was asked for may be given.
        """


class Link(Sampler):
    """A sampler that is one step of a chain. Its author writes :meth:`apply` only.

    Attributes:
        truncates: True if the link only removes tokens (sets them to -inf); False if it edits values.
        constrains: Of a link that truncates: whether it forbids tokens by a rule (bad words, a length ...) and not by how likely
            they are. Decoders that search keep to such links, and leave other truncation out.
        varies: True if the step that ``lower`` gives depends on the rows' history, positions or state; it is then asked for
            before every token.
        reads_logits: Of a :class:`Stateful` link: whether ``advance`` looks at the logits. False lets it be fused.
        fixed: Numbers of the config that are the same for all rows, because the link reads them there and not by :meth:`value`.
    """

    truncates: ClassVar[bool] = False
    constrains: ClassVar[bool] = False
    varies: bool = False
    reads_logits: bool = True
    fixed: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def apply(self, logits: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Return changed logits (batch, vocab), a new tensor; removed tokens are -inf.

        ``rows`` holds this link's own parameters (under their field names) and state; read a parameter with :meth:`value`.
        """

    def check_vocab(self, vocab: int) -> None:
        """Raise ConfigError if the config does not fit a vocabulary of this size; nothing to check by default.

        A chain calls it before the first logits of that size: where a link is fused, ``apply`` is not there to check.
        """

    def forced(self, rows: Rows) -> torch.Tensor | None:
        """Return (batch,) bool, rows in which this link leaves no choice at this position; None (the default): in none.

        Of a link that constrains. Decoders that search add nothing to a text's score for a token that was forced.
        """
        return None

    def value(self, rows: Rows, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return the field ``name`` for every row, (batch,): the row's own value, else the config's."""
        import torch

        if name in rows.parameters:
            found = rows.parameters[name]
            return found if dtype is None else found.to(dtype)
        return torch.full((len(rows),), getattr(self.config, name), dtype=dtype, device=rows.seed.device)

    def sample(self, logits: torch.Tensor, rows: Rows, *, top: int = 0, logp: Collection[str] = LOGPS) -> Draw:
        """Draw from the one-link chain with a categorical draw."""
        return self._chain.sample(logits, rows, top=top, logp=logp)

    @cached_property
    def _chain(self) -> Sampler:
        return chain_of(self)


def chain_of(link: Link) -> Sampler:
    """Return the chain of this very link, which may have been set up, with a categorical draw at its end."""
    from tunesmith.registry import samplers

    chain: Any = samplers.create("tunesmith/chain").build()
    chain.use([link])
    found: Sampler = chain
    return found


@runtime_checkable
class Fusable(Protocol):
    """A link that the fused kernel can do."""

    def lower(self, rows: Rows) -> Step | None:
        """Return this link as a kernel step for these rows (own parameters only, as in ``apply``).

        What it is may depend on the config, the number of rows and ``rows.parameters``, and, unless the link says that it
        :attr:`~Link.varies`, on nothing else of the rows: for rows without parameters a chain asks once and keeps the answer.

        None: not with these values, use :meth:`Link.apply`.
        """


@frozen(kw_only=True, eq=False)
class Applied:
    """Rows after the links of a sampler, before any draw.

    Attributes:
        logits: (batch, vocab) float32, -inf where a token was dropped.
        processed: (batch, vocab) float32, after the links that edit alone.
        status: (batch,) uint8; where it is not OK a row's logits have no meaning.
    """

    logits: torch.Tensor
    processed: torch.Tensor
    status: torch.Tensor


@runtime_checkable
class Applies(Protocol):
    """A sampler that can run its links without a draw, and does so faster than one :meth:`Link.apply` after the other."""

    def apply_links(self, logits: torch.Tensor, rows: Rows) -> Applied:
        """Return logits (batch, vocab) after all links; ``rows`` as in :meth:`Sampler.sample`."""


@runtime_checkable
class Stateful(Protocol):
    """A link with memory of its own beyond the history."""

    def initial_state(self, rows: Rows) -> RowState:
        """Return the state of rows at position 0."""

    def advance(self, state: RowState, logits: torch.Tensor, draw: Draw, rows: Rows) -> RowState:
        """Return the state after ``draw``; ``logits`` are those the token was drawn from.

        A link that says ``reads_logits = False`` may get None for them.
        """

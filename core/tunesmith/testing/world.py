"""A world in which the optimum of alignment is known: all answers enumerated, one reward each.

Objective: ``J(pi) = E_pi[r] - beta KL(pi || ref)``. Its maximum is the tilt ``pi* ~ ref exp(r / beta)`` with
``J* = beta log E_ref[exp(r / beta)]``, and ``J* - J(pi) = beta KL(pi || pi*)`` for every policy, which checks the
evaluation itself. An algorithm's score is ``(J - J_ref) / (J* - J_ref)``: 0 for doing nothing, 1 for the optimum.

Imported at run time only.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from attrs import evolve, field, frozen

from tunesmith.data.records import Preference
from tunesmith.lm import LM
from tunesmith.scoring import pad, token_logps_in_batches
from tunesmith.testing.tabular import EOS, tabular_lm


@frozen(kw_only=True, eq=False)
class World:
    """One prompt, all its answers, a reward for each.

    Attributes:
        reference: (answers,) float64, log-probabilities under the reference.
        reward: (answers,) float64.
        answers: Token ids of every answer, the end of sequence included where there is one.
        beta: Weight of the KL term.
        prompt: The prompt's text.
    """

    reference: torch.Tensor
    reward: torch.Tensor
    answers: Sequence[tuple[int, ...]]
    beta: float
    prompt: str = "q0"
    _rewards: dict[str, float] = field(factory=dict)

    def text(self, answer: Sequence[int]) -> str:
        """Return an answer's text."""
        return " ".join(chr(ord("a") + i - 1) for i in answer if i != EOS)

    def reward_of(self, text: str) -> float:
        """Return the reward of an answer's text (white space does not matter)."""
        return self._rewards["".join(text.split())]

    def logps(self, lm: LM, temperature: float = 1.0) -> torch.Tensor:
        """Return the policy's log-probabilities of all answers at a temperature, (answers,) float64."""
        ids, lengths = pad(self.answers)
        prompt = lm.tokenizer(self.prompt).input_ids
        logps, _, _ = token_logps_in_batches(lm, [prompt] * len(lengths), ids, lengths, temperature, batch_size=512)
        return logps.double().sum(-1).cpu()

    @property
    def tilt(self) -> torch.Tensor:
        """Log-probabilities of the optimal policy, (answers,) float64."""
        return torch.log_softmax(self.reference + self.reward / self.beta, dim=0)

    def objective(self, logps: torch.Tensor) -> float:
        """Return ``E[r] - beta KL(pi || ref)`` of a policy by its log-probabilities, (answers,)."""
        p = logps.exp()
        return float((p * (self.reward - self.beta * (logps - self.reference))).sum())

    def preferences(self) -> list[Preference]:
        """Return every ordered pair of answers, weighted by its Bradley-Terry probability ``sigmoid(r_a - r_b)``.

        That is the whole population: an algorithm that learns from it has no sampling error.
        """
        found = []
        texts = [self.text(answer) for answer in self.answers]
        for a, b in itertools.permutations(range(len(texts)), 2):
            probability = float(torch.sigmoid(self.reward[a] - self.reward[b]))
            found.append(
                Preference(id=f"{a}-{b}", prompt=self.prompt, chosen=texts[a], rejected=texts[b], weight=probability)
            )
        return found

    def score(self, logps: torch.Tensor) -> float:
        """Return the share of the attainable gain: 0 for the reference, 1 for the optimum."""
        start, best = self.objective(self.reference), self.objective(self.tilt)
        return (self.objective(logps) - start) / (best - start)

    def kl(self, logps: torch.Tensor) -> float:
        """Return KL(pi || ref), nats."""
        return float((logps.exp() * (logps - self.reference)).sum())

    def distance(self, logps: torch.Tensor, target: torch.Tensor) -> float:
        """Return the total variation distance between two distributions over the answers, in [0, 1]."""
        return float((logps.exp() - target.exp()).abs().sum() / 2)


def every_answer(symbol_count: int, depth: int) -> list[tuple[int, ...]]:
    """Return all answers: up to ``depth`` symbols, shorter ones ended by the end of sequence."""
    symbols = range(1, symbol_count + 1)
    found: list[tuple[int, ...]] = []
    for length in range(depth + 1):
        end = () if length == depth else (EOS,)
        found += [(*answer, *end) for answer in itertools.product(symbols, repeat=length)]
    return found


def exam_world(
    seed: int = 0, *, beta: float = 0.3, symbols: int = 4, depth: int = 4, spread: float = 1.0
) -> tuple[World, LM]:
    """Return a random world and the tabular policy that is its reference.

    With 4 symbols and depth 4 there are 341 answers.

    Args:
        seed: Of the reference (logits normal with standard deviation ``spread``) and the rewards (uniform in [-1, 1]).
        beta: Weight of the KL term.
        symbols: Number of symbols.
        depth: Most tokens of an answer.
        spread: See ``seed``.
    """
    lm = tabular_lm(symbols, depth, seed=seed, spread=spread)
    answers = every_answer(symbols, depth)
    generator = torch.Generator().manual_seed(seed + 1)
    reward = torch.rand(len(answers), generator=generator, dtype=torch.float64) * 2 - 1
    return _world(lm, answers, reward, beta, "q0"), lm


def seq2seq_world(seed: int = 0, *, beta: float = 0.1, width: int = 48) -> tuple[World, LM]:
    """Return a world of 341 answers with a random T5 as reference, to examine an algorithm on a real encoder-decoder.

    The vocabulary is the end of sequence and four symbols, the first of which is also the pad token and the one that the
    decoder starts from: whoever looks for padding by its id fails here. The reward is the mean of random values of
    neighbouring symbols, which a network can learn.

    Args:
        seed: Of the weights and the rewards.
        beta: Weight of the KL term.
        width: Width of the model.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    inner = Tokenizer(models.WordLevel({"</s>": EOS, "a": 1, "b": 2, "c": 3, "d": 4}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = T5Config(
        vocab_size=5,
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=1,
        pad_token_id=1,
        eos_token_id=EOS,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)
        pairs = torch.rand(5, 5, dtype=torch.float64) * 2 - 1
    model.eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    lm = LM(model=model, tokenizer=tokenizer, family="encoder-decoder")
    answers = every_answer(4, 4)
    values = [[pairs[a, b] for a, b in itertools.pairwise((0, *answer))] for answer in answers]
    reward = torch.stack([torch.stack(some).mean() for some in values])
    return _world(lm, answers, reward, beta, "b c"), lm


def _world(lm: LM, answers: Sequence[tuple[int, ...]], reward: torch.Tensor, beta: float, prompt: str) -> World:
    empty = World(reference=reward, reward=reward, answers=answers, beta=beta, prompt=prompt)
    texts: dict[str, Any] = {
        "".join(empty.text(a).split()): float(r) for a, r in zip(answers, reward.tolist(), strict=True)
    }
    return evolve(empty, reference=empty.logps(lm), rewards=texts)

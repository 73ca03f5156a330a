"""The worlds of the exam: random draws of 341 answers, for three kinds of policy.

A tabular policy can be any distribution, so its rewards are independent random numbers. A network cannot, so where one is
examined the reward is a function of neighbouring symbols, which it can learn; reference and policy are the same random
network. Draws with too little to gain would measure noise, and in some the small network cannot come near the optimum, so
the exam takes the first eight seeds in which, at every beta of :data:`BETAS`, the attainable gain ``J* - J_ref`` is at least
:data:`HEADROOM` and the exact gradient of J, which needs no sampling, reaches a score of :data:`REACHED`.

Imported at run time only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch

from tunesmith.lm import LM
from tunesmith.scoring import pad, token_logps
from tunesmith.testing.tabular import EOS, tabular_lm
from tunesmith.testing.world import World, every_answer, world_of

Policy = Literal["tabular", "causal", "seq2seq"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
FAMILY_OF: dict[Policy, str] = {"tabular": "decoder", "causal": "decoder", "seq2seq": "encoder-decoder"}
"""Of which family the models are."""
BETAS = (0.1, 0.3)
"""Weights of the KL term at which the exam is set unless told otherwise."""
HEADROOM = 0.3
"""The least attainable gain at each of :data:`BETAS`."""
REACHED = 0.97
"""The least score of the exact gradient (not converged, so no more is asked), for networks; a table can be any distribution."""
COUNT = 8
"""Worlds for each kind of policy."""
SYMBOLS = DEPTH = 4
"""Symbols of the vocabulary, and most tokens of an answer. Answers of so many tokens have no end of sequence."""

SEEDS: dict[Policy, tuple[int, ...]] = {
    "tabular": (0, 1, 2, 3, 4, 6, 7, 8),
    "causal": (0, 1, 2, 4, 5, 8, 16, 17),
    "seq2seq": (1, 6, 8, 13, 15, 24, 25, 26),
}
"""What :func:`search` finds: the worlds of the exam, in order."""


def search(policy: Policy, count: int = COUNT) -> list[int]:
    """Return the first ``count`` seeds whose worlds have enough to gain, and an optimum within reach, at every beta."""
    return list(itertools.islice(filter(lambda seed: fits(policy, seed), itertools.count()), count))


def fits(policy: Policy, seed: int) -> bool:
    """Return whether a seed's worlds have at least :data:`HEADROOM` to gain and, if a network is examined, can be learned."""
    world, _ = draw(policy, seed)
    if min(world.with_beta(beta).headroom for beta in BETAS) < HEADROOM:
        return False
    return policy == "tabular" or all(ceiling(*draw(policy, seed, beta)) >= REACHED for beta in BETAS)


def ceiling(world: World, lm: LM, *, steps: int = 300, learning_rate: float = 1e-3) -> float:
    """Train ``lm`` along the exact gradient of J over all answers (Adam, linear to zero); return the score that it reaches."""
    ids, lengths = pad(world.answers)
    prompts = [lm.tokenizer(world.prompt).input_ids] * len(lengths)
    optimizer = torch.optim.Adam(lm.model.parameters(), lr=learning_rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        logps = token_logps(lm, prompts, ids, lengths)[0].double().sum(-1)
        gain = (logps.exp() * (world.reward - world.beta * (logps - world.reference))).sum()
        optimizer.zero_grad()
        (-gain).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return world.score(world.logps(lm))


def draw(policy: Policy, seed: int, beta: float = 0.1) -> tuple[World, LM]:
    """Return the world of a seed and the policy that is its reference."""
    makers: dict[Policy, Callable[..., tuple[World, LM]]] = {
        "tabular": exam_world,
        "causal": causal_world,
        "seq2seq": seq2seq_world,
    }
    return makers[policy](seed, beta=beta)


def exam_world(
    seed: int = 0, *, beta: float = 0.3, symbols: int = SYMBOLS, depth: int = DEPTH, spread: float = 1.0
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
    return world_of(lm, answers, reward, beta, "q0"), lm


def causal_world(seed: int = 0, *, beta: float = 0.1, width: int = 64) -> tuple[World, LM]:
    """Return a world of 341 answers with a random Llama as reference, to examine an algorithm on a real decoder-only model.

    The vocabulary is the end of sequence and four symbols. The pad token is the end of sequence, as it is in many models:
    whoever looks for padding by its id never trains the end. The reward is that of :func:`seq2seq_world`.

    Args:
        seed: Of the weights and the rewards.
        beta: Weight of the KL term.
        width: Width of the model.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1 + SYMBOLS,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=16,
        bos_token_id=None,
        pad_token_id=EOS,
        eos_token_id=EOS,
        attention_dropout=0.0,
    )
    return _network_world(seed, beta, lambda: LlamaForCausalLM(config), "decoder", "</s>")


def seq2seq_world(seed: int = 0, *, beta: float = 0.1, width: int = 48) -> tuple[World, LM]:
    """Return a world of 341 answers with a random T5 as reference, to examine an algorithm on a real encoder-decoder.

    The vocabulary is the end of sequence and four symbols, the first of which is also the pad token: whoever looks for
    padding by its id fails here. The reward is the mean of random values of neighbouring symbols, which a network can learn,
    stretched to [-1, 1]. The decoder starts from the end of sequence, which never stands inside an answer: T5 knows relative
    positions only, so after a start that is a symbol too it could not tell one such symbol from several.

    T5 does not scale its attention and divides by the root of the width before its tied head, so its query weights and its
    embeddings are drawn as much smaller and larger as T5's own initialisation has them: otherwise the policy is close to
    uniform and attention saturated, and not even the exact gradient gets far.

    Args:
        seed: Of the weights and the rewards.
        beta: Weight of the KL term.
        width: Width of the model.
    """
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=1 + SYMBOLS,
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=EOS,
        pad_token_id=1,
        eos_token_id=EOS,
    )
    return _network_world(seed, beta, lambda: T5ForConditionalGeneration(config), "encoder-decoder", None, _t5_scale)


def _t5_scale(name: str, config: Any) -> float:
    if name.endswith(".q.weight"):
        return float(config.d_kv**-0.5)
    return float(config.d_model**0.5) if name == "shared.weight" else 1.0


def _network_world(
    seed: int, beta: float, make: Any, family: Any, pad: str | None, scale: Callable[[str, Any], float] = lambda *_: 1.0
) -> tuple[World, LM]:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    generator = torch.Generator().manual_seed(seed)  # of our own: transformers may change how it initialises
    with torch.random.fork_rng(), torch.no_grad():
        model = make()
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() > 1:
                std = 1.5 / parameter.shape[-1] ** 0.5 * scale(name, model.config)
                parameter.normal_(std=std, generator=generator)
    pairs = torch.rand(1 + SYMBOLS, 1 + SYMBOLS, dtype=torch.float64, generator=generator) * 2 - 1
    model.eval()
    words = {"</s>": EOS, **{chr(ord("a") + i): i + 1 for i in range(SYMBOLS)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # The tokenizer of the encoder-decoder names no pad token: a symbol that it took for one would be left out of texts.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", pad_token=pad, padding_side="left" if family == "decoder" else "right"
    )
    lm = LM(model=model, tokenizer=tokenizer, family=family)
    answers = every_answer(SYMBOLS, DEPTH)
    values = [[pairs[a, b] for a, b in itertools.pairwise((EOS, *answer))] for answer in answers]
    reward = torch.stack([torch.stack(some).mean() for some in values])
    low, high = reward.min(), reward.max()
    return world_of(lm, answers, (2 * reward - low - high) / (high - low), beta, "b c"), lm

"""Tokens a second of speculative decoding against ``stepwise`` and transformers' assisted generation.

The model is a LLaMA of random weights whose later layers add little, and the draft model is its first layers: how often they
agree is set by how little that is, and printed. Prompt lookup gets a text that repeats itself. Contenders are called in turn
in one process; ratios are those of the 25th percentiles (and of the medians) of the time a new token takes.

- ``stepwise``: one token a call
- ``draft``, ``draft, tokens``: ``speculative`` with the draft model, verified by distribution and by token
- ``lookup``: ``speculative`` without one
- ``hf``, ``hf draft``, ``hf lookup``: transformers' ``generate`` alone, with ``assistant_model`` and with
  ``prompt_lookup_num_tokens`` (both take one prompt at a time, so they are left out for larger batches)

    python benchmarks/speculative.py [--threads N] [--rounds N] [--tokens N] [--batch N ...] [--share SHARE ...]
        [--draw DRAW ...] [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers

import tunesmith as ts
from tunesmith.generation import generate
from tunesmith_plugins.decoders import Speculative

PROPOSALS = 4
SAMPLERS = {"greedy": "greedy", "sampled": "chain(links=[temperature(temperature=0.8), top_p(p=0.9)])"}
VOCABULARY, WIDTH, LAYERS, DRAFT_LAYERS = 8192, 256, 10, 1


def tokenizer() -> Any:
    """Return a tokenizer of so many words and no special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    inner = Tokenizer(models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner)


def models(share: float) -> tuple[ts.LM, ts.LM]:
    """Return a model and its draft model; the layers that the draft lacks write ``share`` times what the others do."""
    words = tokenizer()
    ends = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": 0}

    def made(layers: int) -> Any:
        config = transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            **ends,
        )
        model: Any = transformers.LlamaForCausalLM(config).eval()
        model.generation_config.eos_token_id = None
        return model

    torch.manual_seed(0)
    large = made(LAYERS)
    with torch.no_grad():
        for parameter in large.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        large.get_input_embeddings().weight.normal_(std=4 / WIDTH**0.5)
        for layer in large.model.layers[DRAFT_LAYERS:]:
            layer.self_attn.o_proj.weight.mul_(share)
            layer.mlp.down_proj.weight.mul_(share)
    small = made(DRAFT_LAYERS)
    small.load_state_dict({k: v for k, v in large.state_dict().items() if k in small.state_dict()})
    return tuple(ts.LM(model=m, tokenizer=words, family="decoder") for m in (large, small))  # type: ignore[return-value]


def contenders(
    large: ts.LM, small: ts.LM, sampler: str, prompts: Sequence[Sequence[int]], count: int
) -> dict[str, Callable[[int], Any]]:
    """Return by name what writes ``count`` tokens behind every prompt, from a seed."""
    drafted = {}
    for verify in ("distribution", "tokens"):
        decoder = Speculative(tokens=PROPOSALS, verify=verify).build()
        decoder.draft_with(small)
        drafted[verify] = decoder

    def ours(decoder: Any) -> Callable[[int], Any]:
        return lambda seed: generate(
            large, prompts, sampler=sampler, decoder=decoder, max_new_tokens=count, seed=seed, engine="transformers"
        )

    def theirs(**more: Any) -> Callable[[int], Any]:
        drawn = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 0} if sampler != "greedy" else {}
        ids = torch.tensor([list(prompt) for prompt in prompts])

        def write(seed: int) -> Any:
            torch.manual_seed(seed)
            return large.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                **{"do_sample": False, **drawn, **more},
            )

        return write

    found = {
        "stepwise": ours(None),
        "draft": ours(drafted["distribution"]),
        "draft, tokens": ours(drafted["tokens"]),
        "lookup": ours(Speculative(tokens=PROPOSALS)),
        "hf": theirs(),
    }
    if len(prompts) == 1:
        small.model.generation_config.num_assistant_tokens = PROPOSALS
        small.model.generation_config.num_assistant_tokens_schedule = "constant"
        small.model.generation_config.assistant_confidence_threshold = 0.0
        found["hf draft"] = theirs(assistant_model=small.model)
        found["hf lookup"] = theirs(prompt_lookup_num_tokens=PROPOSALS)
    return found


def rates(completions: Any) -> str:
    """Return what completions of ``speculative`` tell of themselves, over all of them."""
    if not isinstance(completions, list) or not completions[0].details:
        return ""
    total = {k: sum(c.details[k] for c in completions) for k in ("judged", "accepted", "target_calls")}
    written = sum(len(c.token_ids) for c in completions)
    rate = f"{total['accepted'] / total['judged']:.2f}" if total["judged"] else "none proposed"
    return f"accept rate {rate}, {written / total['target_calls']:.2f} tokens a call"


def measure(writers: dict[str, Callable[[int], Any]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every call, contenders in turn; the first call of each does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    for round_ in range(rounds + 1):
        for name, write in writers.items():
            start = time.perf_counter()
            write(round_)
            if round_:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Print a table for every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--share", type=float, nargs="+", default=[0.02, 0.2])
    parser.add_argument("--draw", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    parser.add_argument("--quick", action="store_true", help="two rounds of few tokens: only to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.tokens = 2, 12
    torch.set_num_threads(options.threads)
    for share in options.share:
        large, small = models(share)
        for batch in options.batch:
            pattern = [[(7 * n + 3 * row) % VOCABULARY for n in range(12)] * 3 for row in range(batch)]
            for how in options.draw:
                sampler = SAMPLERS[how]
                writers = contenders(large, small, sampler, pattern, options.tokens)
                seconds = measure(writers, options.rounds)
                base = {q: quantile(seconds["stepwise"], q) for q in (0.25, 0.5)}
                print(f"\n{how}, batch {batch}, later layers at {share:g}")
                print(f"{'':16}{'against stepwise, p25':>24}{'median':>10}{'tokens/s':>12}")
                for name, took in seconds.items():
                    low, middle = quantile(took, 0.25), quantile(took, 0.5)
                    speed = batch * options.tokens / low
                    line = f"{name:16}{base[0.25] / low:>24.2f}{base[0.5] / middle:>10.2f}{speed:>12.0f}"
                    print(f"{line}  {rates(writers[name](0))}".rstrip(), flush=True)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the empirical quantile."""
    return statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1]


if __name__ == "__main__":
    main()

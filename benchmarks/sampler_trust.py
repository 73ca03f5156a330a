"""What the statistical kit says of ways to draw a token: ours, transformers', llama.cpp's, and imitations of four others.

Runs ``tunesmith.testing.samplers.audit`` on each, says what failed and prints a table: a line a check, a column a sampler.
Nothing is timed: it takes one core some ten minutes, most of them for what draws row by row. The imitations are written
from descriptions, by us, to have the property that the description names; they are not the other projects' code.
llama.cpp is examined where llama-cpp-python is installed. The well-written torch version and the sort of
``benchmarks/sampling.py`` draw by ``torch.multinomial``, so what is said of transformers' draw holds of theirs.

    python benchmarks/sampler_trust.py [--only NAME ...] [--deep] [--markdown]

``--deep`` adds the check that draws 2^24 times, for those that are quick enough for it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper

from tunesmith.testing.samplers import DrawFunction, Finding, audit, drawer, failures, resolves_small_probabilities

TABLE = 1 << 20
_LEVELS = 1 << 24


def transformers_chain() -> DrawFunction:
    """Processors, softmax and torch.multinomial with the global generator, which takes one seed a call: the first row's."""
    processors = LogitsProcessorList([TemperatureLogitsWarper(1.0)])

    def draw(logits: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(int(_keys(seeds[:1], positions[:1])[0]))
        scores = processors(torch.zeros(len(logits), 1, dtype=torch.int64), logits.float())
        return torch.multinomial(scores.softmax(-1), num_samples=1)[:, 0]

    return draw


def exponential_race() -> DrawFunction:
    """The largest of probability over exponential noise, float32, a generator a row: how vLLM's native path is described
    to draw for requests that have a seed."""
    generator = torch.Generator()

    def draw(logits: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        keys = _keys(seeds, positions).tolist()
        found = torch.empty(len(logits), dtype=torch.int64)
        noise = torch.empty(logits.shape[1])
        shared = logits[0].softmax(-1) if len(logits) and logits.stride(0) == 0 else None  # one row in memory
        for row, key in enumerate(keys):
            probabilities = logits[row].softmax(-1) if shared is None else shared
            noise.exponential_(generator=generator.manual_seed(key))
            found[row] = probabilities.div(noise).argmax()
        return found

    return draw


def llama_cpp() -> DrawFunction:
    """llama.cpp's ``dist`` sampler with a seed a row, through llama-cpp-python."""
    import ctypes

    import llama_cpp as cpp
    import numpy as np

    kind = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

    def draw(logits: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        count, vocab = logits.shape
        source, work = np.zeros(vocab, kind), np.empty(vocab, kind)
        source["id"] = np.arange(vocab)
        pointer = ctypes.cast(work.ctypes.data, ctypes.POINTER(cpp.llama_token_data))
        found = torch.empty(count, dtype=torch.int64)
        for row, key in enumerate(_keys(seeds, positions).tolist()):
            if row == 0 or logits.stride(0):
                source["logit"] = logits[row].numpy()
            np.copyto(work, source)
            array = cpp.llama_token_data_array(data=pointer, size=vocab, selected=-1, sorted=False)
            sampler = cpp.llama_sampler_init_dist(key)
            cpp.llama_sampler_apply(sampler, ctypes.byref(array))
            cpp.llama_sampler_free(sampler)
            found[row] = int(work["id"][array.selected])
        return found

    return draw


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """Return well-mixed bits of int32 (a multiply-xorshift hash), in place."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32))):
        x ^= (x >> shift) & ((1 << (32 - shift)) - 1)
        x *= factor
    x ^= (x >> 16) & 0xFFFF
    return x


def _keys(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    from tunesmith import philox

    return (philox.uniform_bits(seeds, torch.zeros_like(seeds), positions) & 0x7FFFFFFF).int()


def gumbel_24_bits() -> DrawFunction:
    """Gumbel-max with float32 uniforms of 24 bits, as FlashInfer's sampling from logits is described: noise within
    [-4.47, 15.94]. Here every row has a seed of its own."""
    uniform = (torch.arange(_LEVELS, dtype=torch.float64) / _LEVELS).clamp(2.0**-126, 1 - 2.0**-23)
    noise = -(-uniform.log()).log().float()

    def draw(logits: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        place = torch.arange(logits.shape[1], dtype=torch.int32) * (0x9E3779B1 - (1 << 32))
        bits = _mixed(_keys(seeds, positions)[:, None] + place) & (_LEVELS - 1)
        return (logits + noise.index_select(0, bits.flatten()).view_as(logits)).argmax(-1)

    return draw


def table_of_gumbels() -> DrawFunction:
    """Gumbel-max with a table of 2^20 numbers, token i of a row at (seed + i) & mask: the scheme that vLLM's issue
    59786 reports of its CPU path. That a position counts as so many seeds is our addition."""
    uniform = torch.rand(TABLE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).clamp(min=1e-12)
    noise = -(-uniform.log()).log().float()
    twice = torch.cat([noise, noise[: TABLE // 2]])

    def draw(logits: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        begins = (seeds + positions) & (TABLE - 1)
        windows = twice.unfold(0, logits.shape[1], 1)  # a view: row b is twice[b : b + vocab]
        return (logits + windows[begins]).argmax(-1)

    return draw


def inverse_cdf_float32() -> DrawFunction:
    """Softmax and running sum in float32, and one uniform number of 24 bits a row."""

    def draw(logits: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        # rows that are one row in memory are summed once
        rows = logits[:1] if logits.stride(0) == 0 else logits
        running = rows.softmax(-1).cumsum(-1)
        u = (_keys(seeds, positions) >> 7).float() / _LEVELS
        if len(rows) == 1:
            found = torch.searchsorted(running[0].contiguous(), u, right=True)
        else:
            found = torch.searchsorted(running.contiguous(), u[:, None], right=True)[:, 0]
        return found.clamp(max=logits.shape[1] - 1)

    return draw


CONTENDERS: dict[str, Callable[[], DrawFunction]] = {
    "tunesmith": lambda: drawer("chain"),
    "transformers": transformers_chain,
    "exponential-race": exponential_race,
    **({"llama.cpp": llama_cpp} if find_spec("llama_cpp") else {}),
    "gumbel-24-bits": gumbel_24_bits,
    "gumbel-table": table_of_gumbels,
    "inverse-cdf-float32": inverse_cdf_float32,
}
QUICK = ("tunesmith", "inverse-cdf-float32")
"""Those that draw 2^24 tokens in seconds."""


def cell(finding: Finding | None) -> str:
    """Return what the table says of a finding."""
    if finding is None:
        return "-"
    if finding.ok:
        return "ok"
    return "FAILS" if finding.p_value == 0 else f"FAILS, p = {finding.p_value:.0e}"


def write(results: dict[str, dict[str, Finding]], markdown: bool) -> None:
    """Print the table."""
    checks = list(dict.fromkeys(check for found in results.values() for check in found))
    rows = [["check", *results], *([c, *(cell(found.get(c)) for found in results.values())] for c in checks)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        print("| " + " | ".join(cells) + " |" if markdown else "  ".join(cells))
        if markdown and number == 0:
            print("|" + "|".join("---" for _ in cells) + "|")


def main() -> int:
    """Run the kit on every contender; return 1 if ours fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="which samplers")
    parser.add_argument("--deep", action="store_true", help="also the check with 2^24 draws")
    parser.add_argument("--markdown", action="store_true", help="print the table for a page of the documentation")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[str, Finding]] = {}
    for name in options.only:
        begun = time.process_time()
        draw = CONTENDERS[name]()
        findings = list(audit(draw))
        if options.deep and name in QUICK:
            findings.append(resolves_small_probabilities(draw, alpha=findings[-1].alpha))
        results[name] = {finding.check: finding for finding in findings}
        print(f"{name}: {time.process_time() - begun:.0f} s of processor time", flush=True)
        print("\n".join(failures(findings)), flush=True)
    write(results, options.markdown)
    return int(any(not f.ok for f in results.get("tunesmith", {}).values()))


if __name__ == "__main__":
    raise SystemExit(main())

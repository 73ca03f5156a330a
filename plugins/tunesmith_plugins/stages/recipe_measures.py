"""What a model takes: bytes on disk, seconds a token, peak memory of a process that does nothing but run it."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, frozen

from tunesmith import spec
from tunesmith.data.encoding import whole_text
from tunesmith.data.records import Example
from tunesmith.errors import PipelineError
from tunesmith.generation import generate
from tunesmith.lm import LM, load
from tunesmith.model_folder import weight_bytes
from tunesmith.runtime import Runtime
from tunesmith_plugins.stages.training.memory import peak_bytes

ROUNDS = 5
"""The models take turns so many times; the median is the speed, the slowest and the fastest round its spread."""
MODULE = "tunesmith_plugins.stages.recipe_measures"


@frozen(kw_only=True)
class Work:
    """What speed and memory are measured at.

    Attributes:
        texts: Prompts that are answered greedily one at a time; for an encoder texts that are read one at a time.
        max_new_tokens: Most tokens of an answer.
        engine: Config of the engine as data; None: the default.
    """

    texts: tuple[str, ...]
    max_new_tokens: int
    engine: Mapping[str, Any] | None = None

    def run(self, lm: LM, runtime: Runtime) -> int:
        """Do it once; return how many tokens were written, or by an encoder read."""
        if lm.family == "encoder":
            return sum(self._read(lm, text) for text in self.texts)
        from tunesmith.kinds.engine import EngineConfig

        engine = None if self.engine is None else spec.load(self.engine, EngineConfig, where="engine")
        quiet = runtime.evolve(progress=False)
        options: dict[str, Any] = {"decoder": "tunesmith/stepwise", "sampler": "tunesmith/greedy", "runtime": quiet}
        return sum(
            len(generate(lm, [text], engine=engine, max_new_tokens=self.max_new_tokens, **options)[0].token_ids)
            for text in self.texts
        )

    @staticmethod
    def _read(lm: LM, text: str) -> int:
        given = lm.tokenizer(text, return_tensors="pt", truncation=True, max_length=512).to(lm.device)
        with lm.evaluating():
            lm.model(**given)
        return int(given["input_ids"].numel())


def work_of(examples: Sequence[Example], family: str, max_new_tokens: int, engine: Any) -> Work:
    """Return what is done with examples: prompts are answered, plain texts begun anew, an encoder reads both."""
    texts = tuple(whole_text(example) if family == "encoder" else example.prompt for example in examples)
    return Work(texts=texts, max_new_tokens=max_new_tokens, engine=None if engine is None else dict(spec.dump(engine)))


def speeds(sources: Mapping[str, str], work: Work, runtime: Runtime) -> dict[str, tuple[float, ...]]:
    """Return tokens a second of every model in each of the rounds in which they take turns."""
    found: dict[str, list[float]] = {label: [] for label in sources}
    for _ in range(ROUNDS):
        for label, source in sources.items():
            lm = load(source, runtime=runtime)
            Work(texts=work.texts[:1], max_new_tokens=2, engine=work.engine).run(lm, runtime)  # warm
            begun = time.perf_counter()
            tokens = work.run(lm, runtime)
            found[label].append(tokens / (time.perf_counter() - begun))
            del lm
            gc.collect()
    return {label: tuple(rates) for label, rates in found.items()}


def memory(source: str, work: Work, runtime: Runtime) -> tuple[int, int]:
    """Return the peak resident bytes of a process that loads and runs a model, and what it had before it loaded it.

    Raises:
        PipelineError: If that process fails.
    """
    asked = {"source": source, "work": asdict(work), "runtime": {**asdict(runtime), "folder": None}}
    done = subprocess.run(
        [sys.executable, "-m", MODULE], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PipelineError(f"the process that measured the memory of {source} failed: {done.stderr.strip()[-500:]}")
    peak, before = json.loads(done.stdout.splitlines()[-1])
    return int(peak), int(before)


def disk(source: str) -> int | None:
    """Return the bytes of a model's weight files; None for one from a hub."""
    folder = Path(source)
    return weight_bytes(folder) if folder.is_dir() else None


def weights(sources: Mapping[str, str], runtime: Runtime) -> tuple[dict[str, int], str]:
    """Return the bytes of every model's weights, all floating-point ones in one type, and the name of that type.

    Files are of whatever type they were saved in, so that their sizes compare types as much as models. The type is the
    runtime's, with ``"auto"`` the first model's. Quantized weights and their scales have types of their own.
    """
    from tunesmith_plugins.compressors.layers import stored_bytes

    found: dict[str, int] = {}
    for label, source in sources.items():
        model = load(source, runtime=runtime).model
        if runtime.dtype == "auto":
            runtime = runtime.evolve(dtype=str(model.dtype).removeprefix("torch."))
        found[label] = stored_bytes(model)
        del model
        gc.collect()
    return found, runtime.dtype


def main() -> None:
    """Read what is asked for from standard input, and print the bytes."""
    asked = json.loads(sys.stdin.read())
    runtime = Runtime(**asked["runtime"])
    work = Work(**{**asked["work"], "texts": tuple(asked["work"]["texts"])})
    with runtime.activated():
        torch.zeros(8, 8) @ torch.zeros(8, 8)  # what torch itself takes
        import transformers.modeling_utils  # noqa: F401

        before = peak_bytes()
        work.run(load(asked["source"], runtime=runtime), runtime)
    print(json.dumps([peak_bytes(), before]))


if __name__ == "__main__":
    main()

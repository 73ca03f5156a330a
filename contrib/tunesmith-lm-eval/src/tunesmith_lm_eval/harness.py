"""tunesmith's models in lm_eval: whatever it can measure, it can measure of any engine, with adapters on or off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM as HarnessLM

from tunesmith import continuation
from tunesmith.errors import TunesmithError
from tunesmith.generation import generate
from tunesmith.kinds.decoder import Limits, Request
from tunesmith.registry import decoders, engines, samplers
from tunesmith.runtime import Runtime

if TYPE_CHECKING:
    from tunesmith.kinds.engine import Engine, EngineConfig
    from tunesmith.lm import LM

SAMPLING = ("temperature", "top_p", "top_k", "num_beams", "repetition_penalty")
"""Options of generation that would change what greedy writing gives."""


class TunesmithLM(HarnessLM):
    """A model of tunesmith as lm_eval sees models.

    Args:
        lm: The model.
        engine: None means ``tunesmith/transformers``.
        runtime: Device and progress; None means the defaults.
        greedy: Also say of each continuation whether greedy writing would give it. Tasks of choices do without, and
            take half the time then.
    """

    def __init__(
        self, lm: LM, *, engine: EngineConfig | None = None, runtime: Runtime | None = None, greedy: bool = True
    ) -> None:
        super().__init__()
        self.lm = lm
        self.runtime = runtime or Runtime()
        self.engine: Engine = (engine or engines.create("tunesmith/transformers")).build()
        self.engine.setup(self.runtime)
        self.engine.sync(lm)
        self.greedy = greedy

    @property
    def tokenizer_name(self) -> str:
        """For lm_eval's cache of requests."""
        return str(self.lm.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the tokenizer's chat template where lm_eval asks for one."""
        return str(self.lm.tokenizer.chat_template) if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation by the tokenizer's template."""
        return str(
            self.lm.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return log-likelihood, and whether greedy writing would give the continuation."""
        pairs = [continuation.encode(self.lm, *request.args) for request in requests]
        sums = [math.fsum(values) for values in continuation.score(self.engine, pairs)]
        return list(zip(sums, self._greedy(pairs), strict=True))

    def _greedy(self, pairs: Sequence[continuation.Pair]) -> list[bool]:
        """Write as many tokens as each continuation has, and compare."""
        result = [False] * len(pairs)
        if not self.greedy:
            return result
        decoder = decoders.create("tunesmith/stepwise").build()
        sampler = samplers.create("tunesmith/greedy").build()
        for length in sorted({len(pair.ids) for pair in pairs}):
            chosen = [i for i, pair in enumerate(pairs) if len(pair.ids) == length]
            asked = [Request(prompt_ids=pairs[i].context_ids[-self._room(length) :]) for i in chosen]
            limits = Limits(max_new_tokens=length)
            for written in self.engine.generate(asked, decoder, sampler, limits, self.runtime):
                place = chosen[written.request]
                result[place] = written.token_ids == pairs[place].ids
        return result

    def _room(self, length: int) -> int:
        """Return how many tokens of a prompt fit before ``length`` new ones."""
        limit = continuation.positions(self.lm)
        if limit is None or self.lm.family == "encoder-decoder":
            return 10**9
        return max(1, limit - length)

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Return the log-likelihood of whole texts."""
        windows = [continuation.windows(self.lm, request.args[0]) for request in requests]
        scored = iter(continuation.score(self.engine, [pair for several in windows for pair in several]))
        return [math.fsum(value for _ in several for value in next(scored)) for several in windows]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Write greedily until a stop string.

        Raises:
            TunesmithError: If a task asks for sampling or beams; it is not silently left out.
        """
        texts = []
        for number, request in enumerate(requests):
            context, options = request.args
            until = options.get("until") or ()
            changed = [k for k in SAMPLING if options.get(k) not in (None, 0, 0.0, 1, 1.0)]
            if options.get("do_sample") and changed:
                raise TunesmithError(
                    f"the task asks for {', '.join(changed)}; this model only writes greedily in lm_eval."
                )
            (completion,) = generate(
                self.lm,
                [context],
                ids=[str(number)],
                engine=self.engine,
                max_new_tokens=int(options.get("max_gen_toks", 256)),
                stop=(until,) if isinstance(until, str) else tuple(until),
                runtime=self.runtime,
            )
            texts.append(completion.text)
        return texts


def evaluate(
    lm: LM,
    tasks: Sequence[str],
    *,
    folder: str = "",
    shots: int | None = None,
    limit: int | None = None,
    engine: EngineConfig | None = None,
    runtime: Runtime | None = None,
) -> dict[str, Any]:
    """Run lm_eval on a model of tunesmith and return lm_eval's results.

    lm_eval's cache of answers is never used: it is not keyed by the model.

    Args:
        lm: The model.
        tasks: Tasks or groups.
        folder: Task files of your own, in which alone the names are looked up; "" means lm_eval's.
        shots: In-context examples; None means what each task says.
        limit: At most so many documents of each task.
        engine: None means ``tunesmith/transformers``.
        runtime: Without ``allow_code``, task files that name Python functions are refused.
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from tunesmith_lm_eval.loading import refuse_code

    runtime = runtime or Runtime()
    refuse_code(folder, runtime)
    found = simple_evaluate(
        model=TunesmithLM(lm, engine=engine, runtime=runtime),
        tasks=list(tasks),
        num_fewshot=shots,
        limit=limit,
        task_manager=TaskManager(include_path=folder or None, include_defaults=not folder),
        bootstrap_iters=0,
        confirm_run_unsafe_code=runtime.allow_code,
    )
    return dict(found or {})

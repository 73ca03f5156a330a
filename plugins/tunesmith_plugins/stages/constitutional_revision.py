"""The stage that lets a model criticise and revise its own answers by written principles (Bai et al. 2022)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunesmith import manifest
from tunesmith.data import load_examples, write_preferences
from tunesmith.data.records import Example, Preference
from tunesmith.generation import component, generate
from tunesmith.kinds.engine import Engine
from tunesmith.kinds.stage import Stage, StageContext
from tunesmith.lm import LM, load
from tunesmith.runtime import derive_seed
from tunesmith_plugins.stages.ai_comparison import compare_both_orders, fill
from tunesmith_plugins.stages.constitution import Principle, read_principles
from tunesmith_plugins.stages.needs import data_to, model_to

CRITIQUE = "{prompt}\n\n{answer}\n\n{request}\n\nCritique: "
REVISION = "{prompt}\n\n{answer}\n\n{critique_request}\n\nCritique: {critique}\n\n{request}\n\nRevision: "


class ConstitutionalRevisionStage(Stage):
    """Answer, criticise, revise; keep the last revisions as a supervised set, and compare them with the first answers."""

    def run(self, context: StageContext) -> dict[str, Any]:
        """Write ``dataset`` (``train.jsonl``) and ``preferences`` (empty unless ``compare``)."""
        config, runtime = self.config, context.runtime
        start, data = model_to("ask", context), data_to("take prompts from", self, context)
        principles = read_principles(Path(config.principles).expanduser())
        lm = load(start, runtime=runtime)
        examples = load_examples(data, config.split, runtime, items=config.items, tokenizer=lm.tokenizer)
        writer = _Writer(self, context, lm)
        if config.compare:
            writer.engine.require({"score"})  # better said before hours of writing
        answers = writer.kept("answers", lambda: writer.write([e.prompt for e in examples], examples, "answer"))
        first = answers
        rows: list[dict[str, Any]] = [{"critiques": [], "revisions": [], "principles": []} for _ in examples]
        for turn in range(config.rounds):
            chosen = [_principle(principles, runtime.seed, example.id, turn) for example in examples]
            critiques, revisions = self._revise(writer, examples, answers, chosen, turn)
            for row, principle, critique, revision in zip(rows, chosen, critiques, revisions, strict=True):
                row["principles"].append(principle.name)
                row["critiques"].append(critique)
                row["revisions"].append(revision)
            answers = revisions
        _write_dataset(context.artifact("dataset"), examples, first, answers, rows)
        preferences = self._preferences(writer, examples, first, answers, principles) if config.compare else []
        write_preferences(context.artifact("preferences"), preferences)
        changed = sum(a.strip() != b.strip() for a, b in zip(first, answers, strict=True))
        won = sum(
            p.chosen == revision
            for p, revision in zip(preferences, _by_id(preferences, examples, answers), strict=True)
        )
        return {
            "prompts": len(examples),
            "principles": len(principles),
            "changed": changed,
            "compared": len(preferences),
            "revision_preferred": won,
        }

    def _revise(
        self, writer: _Writer, examples: list[Example], answers: list[str], chosen: list[Principle], turn: int
    ) -> tuple[list[str], list[str]]:
        asked = list(zip(examples, answers, chosen, strict=True))
        critique_prompts = [
            fill(CRITIQUE, prompt=e.prompt, answer=answer, request=principle.critique) for e, answer, principle in asked
        ]
        critiques = writer.kept(
            f"critiques-{turn}", lambda: writer.write(critique_prompts, examples, f"critique-{turn}")
        )
        revision_prompts = [
            fill(
                REVISION,
                prompt=e.prompt,
                answer=answer,
                critique_request=principle.critique,
                critique=critique,
                request=principle.revision,
            )
            for (e, answer, principle), critique in zip(asked, critiques, strict=True)
        ]
        revisions = writer.kept(
            f"revisions-{turn}", lambda: writer.write(revision_prompts, examples, f"revision-{turn}")
        )
        return critiques, revisions

    def _preferences(
        self, writer: _Writer, examples: list[Example], first: list[str], last: list[str], principles: list[Principle]
    ) -> list[Preference]:
        """Ask which of first answer and last revision is better, in both orders; pairs that differ in nothing are left out."""
        asked = [i for i in range(len(examples)) if first[i].strip() != last[i].strip()]
        chosen = [_principle(principles, writer.seed, examples[i].id, "comparison") for i in asked]
        odds = writer.kept(
            "comparisons",
            lambda: compare_both_orders(
                writer.engine,
                writer.lm,
                [examples[i].prompt for i in asked],
                [first[i] for i in asked],
                [last[i] for i in asked],
                [principle.comparison for principle in chosen],
            ),
        )
        found = []
        for i, log_odds in zip(asked, odds, strict=True):
            if log_odds == 0:
                continue
            better, worse = (first[i], last[i]) if log_odds > 0 else (last[i], first[i])
            found.append(
                Preference(
                    id=examples[i].id,
                    prompt=examples[i].prompt,
                    chosen=better,
                    rejected=worse,
                    group=examples[i].id,
                )
            )
        return found


class _Writer:
    """Generates through one engine, and keeps what is finished in the stage's working folder."""

    def __init__(self, stage: ConstitutionalRevisionStage, context: StageContext, lm: LM) -> None:
        self.lm, self.runtime, self.settings = lm, context.runtime, stage.config.generation
        self.seed, self.folder = context.runtime.seed, context.folder
        self.engine: Engine = component(self.settings.engine, "engine")
        self.engine.setup(context.runtime)
        self.engine.sync(lm)

    def write(self, prompts: Sequence[str], examples: Sequence[Example], what: str) -> list[str]:
        """Return one text a prompt; the seed depends on the example and on what is written."""
        settings = self.settings
        found = generate(
            self.lm,
            prompts,
            ids=[example.id for example in examples],
            engine=self.engine,
            decoder=settings.decoder,
            sampler=settings.sampler,
            max_new_tokens=settings.max_new_tokens,
            min_new_tokens=settings.min_new_tokens,
            stop=settings.stop,
            seed=derive_seed(self.seed, what),
            runtime=self.runtime,
        )
        texts = {c.request: c.text.strip() for c in reversed(found)}
        return [texts[number] for number in range(len(prompts))]

    def kept(self, name: str, make: Callable[[], list[Any]]) -> list[Any]:
        """Return what an earlier, interrupted run has kept under ``name``, or make and keep it."""
        path = self.folder / f"{name}.json"
        if path.is_file():
            kept: list[Any] = json.loads(path.read_text(encoding="utf-8"))
            return kept
        made = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        manifest.write_text(path, json.dumps(made, ensure_ascii=False, allow_nan=False))
        return made


def _principle(principles: Sequence[Principle], seed: int, *names: str | int) -> Principle:
    return principles[derive_seed(seed, "principle", *names) % len(principles)]


def _write_dataset(
    folder: Path, examples: Sequence[Example], first: Sequence[str], last: Sequence[str], rows: Sequence[dict[str, Any]]
) -> None:
    lines = [
        json.dumps(
            {"id": e.id, "prompt": e.prompt, "target": revision, "first_answer": answer, **row}, ensure_ascii=False
        )
        for e, answer, revision, row in zip(examples, first, last, rows, strict=True)
    ]
    (folder / "train.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _by_id(preferences: Sequence[Preference], examples: Sequence[Example], texts: Sequence[str]) -> list[str]:
    by_id = {e.id: text for e, text in zip(examples, texts, strict=True)}
    return [by_id[p.id] for p in preferences]

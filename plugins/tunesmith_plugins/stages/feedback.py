"""The stage that turns rankings into preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunesmith.data import write_preferences
from tunesmith.kinds.stage import Stage, StageContext
from tunesmith_plugins.stages.ranking import candidates as read_candidates
from tunesmith_plugins.stages.ranking import pairs, read_rankings
from tunesmith_plugins.stages.ranking_terminal import ask_all

TYPED = "rankings.jsonl"
"""What was typed so far, in the stage's working folder, in the format of a rankings file."""


class FeedbackStage(Stage):
    """Read rankings from a file, or ask for them in the terminal; write one preference for every decided pair."""

    def run(self, context: StageContext) -> dict[str, Any]:
        """Write ``preferences``; rankings typed in the terminal stay beside them as ``rankings.jsonl``."""
        items = read_candidates(context.inputs["generations"])
        folder = context.artifact("preferences")
        if self.config.rankings:
            rankings = read_rankings(Path(self.config.rankings).expanduser(), items)
        else:
            typed = context.folder / TYPED
            ask_all(items, typed, self.config.annotator, context.runtime.seed)
            rankings = read_rankings(typed, items)
            (folder / TYPED).write_bytes(typed.read_bytes())
        preferences = [pair for ranking in rankings for pair in pairs(items[ranking.id], ranking)]
        write_preferences(folder, preferences)
        return {
            "prompts": len(items),
            "ranked": sum(bool(r.places) for r in rankings),
            "skipped": sum(r.outcome == "skip" for r in rankings),
            "all_bad": sum(r.outcome == "all_bad" for r in rankings),
            "pairs": len(preferences),
        }

"""Diverse beam search: groups of beams that avoid each other's tokens."""

from __future__ import annotations

from typing import ClassVar

from tunesmith_plugins.decoders.beam import BeamDecoder
from tunesmith_plugins.decoders.config_search import DiverseBeam


class DiverseBeamDecoder(BeamDecoder):
    """Beam search in groups; see the config."""

    config: DiverseBeam
    name: ClassVar[str] = "diverse beam search"

    def __init__(self, config: DiverseBeam) -> None:
        self.groups, self.penalty = config.groups, config.penalty
        super().__init__(config)

"""What adapters put before every text takes places of the model's."""

from __future__ import annotations

import pytest

from tunesmith import continuation
from tunesmith.continuation import positions
from tunesmith.runtime import Runtime
from tunesmith.testing.models import WORDS, tiny_lm
from tunesmith_plugins.adapters import LoRA, Prefix, Prompt, PTuning


@pytest.mark.parametrize(
    ("configs", "taken"),
    [
        ((Prompt(tokens=5),), 5),
        ((PTuning(tokens=4),), 4),
        ((Prefix(tokens=3),), 3),
        ((LoRA(),), 0),
        ((Prompt(tokens=5), LoRA(), Prefix(tokens=3)), 8),
    ],
    ids=lambda value: "+".join(type(c).__name__ for c in value) if isinstance(value, tuple) else str(value),
)
def test_they_leave_less_room_for_text(configs, taken) -> None:
    lm = tiny_lm("decoder")
    before = positions(lm)
    for config in configs:
        lm = config.build().attach(lm, Runtime())
    assert positions(lm) == before - taken


def test_prefixes_of_an_encoder_take_no_places() -> None:
    lm = tiny_lm("encoder")
    before = positions(lm)
    assert positions(Prefix(tokens=3).build().attach(lm, Runtime())) == before


def test_a_text_that_just_fits_is_cut_when_they_come_before_it() -> None:
    lm = tiny_lm("decoder")
    room = positions(lm)
    prompt = " ".join(WORDS[i % 20] for i in range(room))
    plain = continuation.encode(lm, prompt, f" {WORDS[1]}")
    cut = continuation.encode(Prompt(tokens=5).build().attach(lm, Runtime()), prompt, f" {WORDS[1]}")
    assert plain.cut == 0
    assert cut.cut == 5
    assert len(cut.context_ids) == len(plain.context_ids) - 5

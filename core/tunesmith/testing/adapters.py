"""Checks of adapters, on tiny random models of the three families. A family that an adapter refuses is left out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import ArtifactError, TunesmithError
from tunesmith.kinds.adapter import Adapter, AdapterConfig, SupportsDisable, SupportsMerge
from tunesmith.lm import LM, load
from tunesmith.runtime import Runtime
from tunesmith.testing.conformance import when
from tunesmith.testing.models import Family, tiny_lm

FAMILIES: tuple[Family, ...] = ("encoder", "decoder", "encoder-decoder")
IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
ANSWER = torch.tensor([[5, 6, 7], [8, 9, 10]])


def outputs(lm: LM) -> torch.Tensor:
    """Return the logits (2, time, vocab) of a padded batch of two rows."""
    extra = {"decoder_input_ids": ANSWER} if lm.family == "encoder-decoder" else {}
    with torch.no_grad():
        logits: torch.Tensor = lm.model(input_ids=IDS, attention_mask=MASK, **extra).logits
    return logits


def move(adapter: Adapter, size: float = 0.3) -> None:
    """Add seeded noise to all parameters of an adapter, as training might."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for _, parameter in adapter.trainable():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def check_attaching_makes_only_itself_trainable(config: AdapterConfig) -> None:
    """After ``attach`` the trainable parameters of the model are those of ``trainable()``, under distinct names."""
    for _, lm in _families(config):
        named = list(lm.adapters[-1].trainable())
        assert named, "nothing is trainable"
        assert len({name for name, _ in named}) == len(named), "two parameters have one name"
        wanted = {id(parameter) for _, parameter in named}
        found = {id(parameter) for parameter in lm.model.parameters() if parameter.requires_grad}
        assert found == wanted, (
            f"{len(found - wanted)} foreign parameters are trainable, {len(wanted - found)} own are not"
        )


@when(lambda component: component.identity)
def check_a_fresh_adapter_changes_no_output(config: AdapterConfig) -> None:
    """Outputs after ``attach`` are those before, bit for bit."""
    for family, lm in _families(config):
        before = outputs(tiny_lm(family))
        assert torch.equal(outputs(lm), before), (
            f"{family}: outputs changed by {(outputs(lm) - before).abs().max():.2e}"
        )


def check_training_reaches_every_parameter_and_nothing_else(config: AdapterConfig) -> None:
    """A gradient step changes every own parameter and the outputs, and not a bit of the rest of the model."""
    for family, lm in _families(config):
        adapter = lm.adapters[-1]
        move(adapter)
        own = {id(parameter) for _, parameter in adapter.trainable()}
        rest = {n: p.detach().clone() for n, p in lm.model.named_parameters() if id(p) not in own}
        mine = {n: p.detach().clone() for n, p in adapter.trainable()}
        before = outputs(lm)
        optimizer = torch.optim.SGD([p for p in lm.model.parameters() if p.requires_grad], lr=0.1)
        extra = {"labels": ANSWER} if family == "encoder-decoder" else {"labels": IDS}
        lm.model.train()
        lm.model(input_ids=IDS, attention_mask=MASK, **extra).loss.backward()
        without = [name for name, p in adapter.trainable() if p.grad is None]
        assert not without, f"{family}: no gradient reaches {without[:3]}"
        optimizer.step()
        lm.model.eval()
        now = dict(lm.model.named_parameters())
        changed = [name for name, value in rest.items() if not torch.equal(now[name], value)]
        assert not changed, f"{family}: training changed {changed[:3]}, which is not the adapter's"
        assert any(not torch.equal(p, mine[n]) for n, p in adapter.trainable()), f"{family}: nothing was trained"
        assert not torch.equal(outputs(lm), before), f"{family}: training changed no output"


def check_saved_and_loaded_it_computes_the_same(config: AdapterConfig) -> None:
    """``save`` then ``load`` on the same model gives equal outputs, bit for bit; what was loaded is frozen."""
    for family, lm in _families(config):
        move(lm.adapters[-1])
        with tempfile.TemporaryDirectory() as folder:
            lm.adapters[-1].save(Path(folder))
            again = config.build().load(tiny_lm(family), Path(folder), Runtime(seed=99))
        assert torch.equal(outputs(again), outputs(lm)), f"{family}: outputs differ after loading"
        assert not any(p.requires_grad for p in again.model.parameters()), f"{family}: a loaded adapter is not frozen"


def check_it_saves_nothing_of_the_model(config: AdapterConfig) -> None:
    """The saved weights are safetensors and as many numbers as ``trainable()`` has."""
    from safetensors.torch import load_file

    for family, lm in _families(config):
        with tempfile.TemporaryDirectory() as name:
            lm.adapters[-1].save(Path(name))
            pickled = [p.name for p in Path(name).rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
            saved = sum(t.numel() for p in Path(name).rglob("*.safetensors") for t in load_file(p).values())
        own = sum(p.numel() for _, p in lm.adapters[-1].trainable())
        assert not pickled, f"{family}: {pickled} is not safetensors"
        assert saved == own, f"{family}: {saved} numbers were saved, and the adapter has {own}"


def check_missing_weights_are_a_clear_error(config: AdapterConfig) -> None:
    """Loading from an empty folder raises ArtifactError."""
    for family, _ in _families(config):
        with tempfile.TemporaryDirectory() as folder:
            try:
                config.build().load(tiny_lm(family), Path(folder), Runtime())
            except ArtifactError:
                continue
        raise AssertionError(f"{family}: an empty folder was loaded without an ArtifactError")


def check_a_saved_model_carries_it(config: AdapterConfig) -> None:
    """``LM.save`` and ``tunesmith.load`` give the model with the adapter back, and the base model alone unchanged."""
    for family, lm in _families(config):
        move(lm.adapters[-1])
        expected = outputs(lm)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            lm.save(folder)
            again = load(folder)
            assert torch.equal(outputs(again), expected), f"{family}: outputs differ after LM.save and load"
            configs = [a.config for a in again.adapters]
            assert configs == [config], f"{family}: adapters after loading are {configs}"
            if not _holds_all(lm):
                plain = outputs(tiny_lm(family))
                assert torch.equal(outputs(load(folder / "base")), plain), f"{family}: the base model was saved changed"


def check_a_copied_model_is_independent(config: AdapterConfig) -> None:
    """A deep copy of the model keeps its outputs when the adapter moves."""
    for family, lm in _families(config):
        twin = deepcopy(lm.model)
        before = outputs(lm)
        move(lm.adapters[-1])
        copied = outputs(LM(model=twin, tokenizer=lm.tokenizer, family=family))
        assert torch.equal(copied, before), f"{family}: the copy moved along"


def check_generation_follows_the_adapted_model(config: AdapterConfig) -> None:
    """``generate`` with its cache, on a padded batch, writes what the adapted model says token by token without one."""
    for family, lm in _families(config):
        if family == "encoder":
            continue
        move(lm.adapters[-1])
        new = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
        ids, mask = (IDS, MASK) if family == "encoder-decoder" else (IDS.flip(1), MASK.flip(1))
        written = lm.model.generate(input_ids=ids, attention_mask=mask, **new)
        for row in range(len(ids)):
            prompt = ids[row][mask[row] == 1]
            told = written[row] if family == "encoder-decoder" else torch.cat([prompt, written[row, ids.shape[1] :]])
            with torch.no_grad():
                extra = {"decoder_input_ids": told[None]} if family == "encoder-decoder" else {}
                logits = lm.model(input_ids=prompt[None] if extra else told[None], **extra).logits[0]
            logits[:, 1] = -torch.inf  # min_new_tokens forbids the end
            first = 0 if extra else len(prompt) - 1
            assert torch.equal(logits[first:-1].argmax(-1), told[first + 1 :]), (
                f"{family}: row {row} was written otherwise"
            )


@when(SupportsDisable)
def check_disabled_it_is_not_there(config: AdapterConfig) -> None:
    """Within ``disabled()`` outputs are the plain model's, bit for bit; afterwards, an error included, they are back."""
    for family, lm in _families(config):
        adapter: Any = lm.adapters[-1]
        move(adapter)
        on, plain = outputs(lm), outputs(tiny_lm(family))
        assert not torch.equal(on, plain), f"{family}: the adapter has no effect"
        try:
            with adapter.disabled():
                assert torch.equal(outputs(lm), plain), f"{family}: disabled it still changes outputs"
                raise _Interruption
        except _Interruption:
            pass
        assert torch.equal(outputs(lm), on), f"{family}: it did not come back on"


@when(SupportsDisable)
def check_two_stack(config: AdapterConfig) -> None:
    """On top of a trained one, a second is the only trainable one, and with it disabled the first stays on exactly."""
    for family, lm in _families(config):
        move(lm.adapters[0])
        first = outputs(lm)
        lm = config.build().attach(lm, Runtime(seed=5))
        second: Any = lm.adapters[-1]
        if second.identity:
            assert torch.equal(outputs(lm), first), f"{family}: a fresh second adapter changed outputs"
        wanted = {id(p) for _, p in second.trainable()}
        assert {id(p) for p in lm.model.parameters() if p.requires_grad} == wanted, (
            f"{family}: not only the last is trainable"
        )
        move(second, 0.2)
        both = outputs(lm)
        assert not torch.equal(both, first), f"{family}: the second has no effect"
        with second.disabled():
            assert torch.equal(outputs(lm), first), f"{family}: with the second off the first is not as it was"
        with tempfile.TemporaryDirectory() as folder:
            lm.save(Path(folder))
            assert torch.equal(outputs(load(folder)), both), f"{family}: the stack changed when saved and loaded"


@when(SupportsMerge)
def check_merged_computes_the_same(config: AdapterConfig) -> None:
    """After ``merge`` outputs agree within 1e-5 of their size, the adapter is gone and the names are the plain model's."""
    for family, lm in _families(config):
        move(lm.adapters[-1])
        before = outputs(lm)
        merged = lm.adapters[-1].merge(lm)  # type: ignore[attr-defined]
        error = (outputs(merged) - before).abs().max() / before.abs().max()
        assert error <= 1e-5, f"{family}: merging changed outputs by {error:.1e} of their size"
        assert not merged.adapters, f"{family}: the adapter is still listed"
        assert set(merged.model.state_dict()) == set(tiny_lm(family).model.state_dict()), (
            f"{family}: names are not plain"
        )
        assert merged.origin is None, f"{family}: origin still names weights that are no longer these"


class _Interruption(Exception):
    """Raised and caught here, to leave a context by an error."""


def _families(config: AdapterConfig) -> Iterator[tuple[Family, LM]]:
    """Yield a fresh tiny model with the adapter on, for each family that it takes."""
    refused = []
    for family in FAMILIES:
        try:
            lm = config.build().attach(tiny_lm(family), Runtime(seed=3))
        except TunesmithError as reason:
            refused.append(f"{family}: {reason}")
            continue
        name = type(config).__name__
        assert isinstance(lm, LM), f"{family}: attach of {name} gave {type(lm).__name__}, not an LM"
        assert lm.adapters, f"{family}: the LM that attach of {name} gave has no adapters; add it to them"
        assert lm.adapters[-1].config is config, f"{family}: the last of the LM's adapters is not the one attached"
        yield family, lm
    assert len(refused) < len(FAMILIES), f"it goes on no family: {'; '.join(refused)}"


def _holds_all(lm: LM) -> bool:
    own = {id(p) for _, p in lm.adapters[-1].trainable()}
    return own >= {id(p) for p in lm.model.parameters()}


CHECKS: tuple[Callable[[Any], None], ...] = (
    check_attaching_makes_only_itself_trainable,
    check_a_fresh_adapter_changes_no_output,
    check_training_reaches_every_parameter_and_nothing_else,
    check_saved_and_loaded_it_computes_the_same,
    check_it_saves_nothing_of_the_model,
    check_missing_weights_are_a_clear_error,
    check_a_saved_model_carries_it,
    check_a_copied_model_is_independent,
    check_generation_follows_the_adapted_model,
    check_disabled_it_is_not_there,
    check_two_stack,
    check_merged_computes_the_same,
)

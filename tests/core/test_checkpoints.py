"""Checkpoints are whole or not there, and states come back bit for bit without pickle."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunesmith import manifest
from tunesmith.checkpoints import (
    Checkpoints,
    load_random,
    load_tree,
    newest_sealed,
    save_random,
    save_tree,
    seal,
    sealing_callback,
)
from tunesmith.errors import ArtifactError


def text(value: str):
    return lambda folder: (folder / "state").write_text(value)


def test_the_newest_is_found_and_the_oldest_go(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.newest() is None
    for step in (1, 2, 10, 100):
        checkpoints.save(step, text(str(step)))
    assert checkpoints.newest().step == 100
    assert (checkpoints.newest().folder / "state").read_text() == "100"
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["step-00000010", "step-00000100"]


def test_a_step_can_be_saved_again(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, text("first"))
    checkpoints.save(5, text("second"))
    assert (checkpoints.newest().folder / "state").read_text() == "second"


def test_what_fails_while_writing_leaves_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, text("1"))

    def half(folder: Path) -> None:
        (folder / "state").write_text("2")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoints.save(2, half)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("moment", ["before the manifest", "before the rename"])
def test_what_a_kill_leaves_is_passed_over_and_removed(tmp_path, moment):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, text("1"))
    left = tmp_path / ".step-00000002.writing-abc"
    left.mkdir()
    (left / "state").write_text("2")
    if moment == "before the rename":
        manifest.write(left, {"kind": "checkpoint"})
    assert checkpoints.newest().step == 1
    assert not left.exists()


@pytest.mark.parametrize("damage", ["truncated", "changed", "added", "removed", "no manifest"])
def test_a_damaged_one_is_passed_over(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, text("one"))
    folder = checkpoints.save(2, text("two"))
    {
        "truncated": lambda: os.truncate(folder / "state", 1),
        "changed": lambda: (folder / "state").write_text("TWO"),
        "added": lambda: (folder / "more").write_text("x"),
        "removed": (folder / "state").unlink,
        "no manifest": (folder / "manifest.json").unlink,
    }[damage]()
    assert manifest.problems(folder)
    assert checkpoints.newest().step == 1


def test_a_link_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="symbolic link"):
        Checkpoints(tmp_path).save(1, lambda folder: (folder / "state").symlink_to("/etc/hostname"))


def test_wrong_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keep"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(ValueError, match="negative"):
        Checkpoints(tmp_path).save(-1, text(""))


def test_clear_removes_all_and_nothing_else(tmp_path):
    (tmp_path / "mine").write_text("x")
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, text("1"))
    checkpoints.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_only_sealed_checkpoints_of_a_trainer_are_resumed_from(tmp_path):
    for step in (9, 10, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "weights").write_text(str(step))
    (tmp_path / "runs").mkdir()
    assert newest_sealed(tmp_path / "nothing") is None
    for step in (9, 10):
        seal(tmp_path / f"checkpoint-{step}")
    assert newest_sealed(tmp_path) == tmp_path / "checkpoint-10"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9", "runs"]
    (tmp_path / "checkpoint-10" / "weights").write_text("11")
    assert newest_sealed(tmp_path) == tmp_path / "checkpoint-9"


def test_the_callback_seals_what_a_trainer_saves(tmp_path):
    from transformers import Trainer, TrainingArguments

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(2, 1)

        def forward(self, x, labels=None):
            return {"loss": ((self.linear(x)[:, 0] - labels) ** 2).mean()}

    data = [{"x": torch.ones(2) * i, "labels": torch.tensor(float(i))} for i in range(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=6, save_steps=2, save_total_limit=2, report_to="none", use_cpu=True,
        disable_tqdm=True, per_device_train_batch_size=2, remove_unused_columns=False,
    )  # fmt: skip
    Trainer(model=Model(), args=arguments, train_dataset=data, callbacks=[sealing_callback()]).train()
    assert newest_sealed(tmp_path) == tmp_path / "checkpoint-6"
    assert manifest.problems(tmp_path / "checkpoint-6") == []
    assert "optimizer.pt" in json.loads((tmp_path / "checkpoint-6" / "manifest.json").read_text())["files"]


def draws():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()


def test_random_states_come_back(tmp_path):
    random.gauss(0, 1)  # leaves half a pair in the state
    np.random.randn()
    save_random(tmp_path)
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert draws() != expected
    load_random(tmp_path)
    assert draws() == expected
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_an_optimizer_state_comes_back_bit_for_bit(tmp_path):
    def model():
        torch.manual_seed(0)
        made = torch.nn.Linear(3, 3).to(torch.bfloat16)
        return made, torch.optim.AdamW([{"params": [made.weight], "lr": 0.1}, {"params": [made.bias], "lr": 0.2}])

    def step(made, optimizer):
        made(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()

    first, optimizer = model()
    step(first, optimizer)
    save_tree(tmp_path, "optimizer", optimizer.state_dict())
    second, other = model()
    second.load_state_dict(first.state_dict())
    other.load_state_dict(load_tree(tmp_path, "optimizer"))
    for made, its in ((first, optimizer), (second, other)):
        made.zero_grad()
        step(made, its)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
trees = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(trees)
def test_any_tree_of_plain_values_comes_back(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("tree")
    save_tree(folder, "t", tree)
    assert repr(load_tree(folder, "t")) == repr(tree)  # NaN is not equal to itself, and 1 is to True
    shutil.rmtree(folder)


def test_other_things_are_refused_by_place(tmp_path):
    with pytest.raises(TypeError, match=r"t\['a'\]\[1\] is a set"):
        save_tree(tmp_path, "t", {"a": [1, {2}]})
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_tree(tmp_path, "t")


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../up", "", "a\\b"])
def test_a_manifest_cannot_name_files_outside(tmp_path, name):
    (tmp_path / "file").write_text("x")
    manifest.write(tmp_path, {})
    record = json.loads((tmp_path / "manifest.json").read_text())
    record["files"] = {name: {"size": 1, "sha256": "0"}}
    (tmp_path / "manifest.json").write_text(json.dumps(record))
    (problem,) = manifest.problems(tmp_path)
    assert "outside its folder" in problem


def test_the_digest_of_a_folder_is_of_its_contents_only(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "file").write_text("x")
        manifest.write(tmp_path / name, {"producer": name})
    assert manifest.digest(tmp_path / "a") == manifest.digest(tmp_path / "b")
    assert manifest.read(tmp_path / "a")["producer"] == "a"


def test_a_text_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "file"
    manifest.write_text(path, "old")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        manifest.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]

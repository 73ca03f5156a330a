"""Places are tried before the work without touching what others have there."""

from __future__ import annotations

import os
import threading

import pytest

from tunesmith.errors import ConfigError
from tunesmith.writable import check_file, check_folder

TOO_LONG = "x" * 300


def check(folder):
    check_folder(folder, "scores are written", "--out", "evaluate")


def test_the_folders_that_were_asked_for_are_neither_made_nor_removed(tmp_path, monkeypatch):
    """Another process may have made them in the meantime, or make them next."""
    touched, mkdir, rmdir = [], os.mkdir, os.rmdir
    monkeypatch.setattr(os, "mkdir", lambda path, *a, **k: (touched.append(str(path)), mkdir(path, *a, **k))[1])
    monkeypatch.setattr(os, "rmdir", lambda path, *a, **k: (touched.append(str(path)), rmdir(path, *a, **k))[1])
    check(tmp_path / "new" / "out")
    (tmp_path / "there").mkdir()
    check(tmp_path / "there")
    check_file(tmp_path / "scores.json", "--json")
    assert touched
    assert not {str(tmp_path / name) for name in ("new", "new/out", "scores.json")} & set(touched)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_way_up_leads_nowhere_else(tmp_path):
    check(tmp_path / "a" / "b" / ".." / ".." / "c")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [TOO_LONG, f"new/{TOO_LONG}"])
def test_a_name_that_is_too_long_is_said(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot be written to .*give another folder @ --out"):
        check(tmp_path / name)


def test_a_link_to_nowhere_is_no_place_for_a_folder(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "far")
    with pytest.raises(ConfigError, match="give another name @ --out"):
        check(tmp_path / "link" / "out")


def test_a_file_whose_name_is_too_long_is_said(tmp_path):
    with pytest.raises(ConfigError, match="may not be written .*give another file"):
        check_file(tmp_path / TOO_LONG, "--json")


def test_a_pipe_is_not_waited_at_until_someone_reads_it(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    asked = threading.Thread(target=check_file, args=(pipe, "--json"), daemon=True)
    asked.start()
    asked.join(20)
    waits = asked.is_alive()
    os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))  # lets it go on
    assert not waits


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ConfigError, match="Is a directory"):
        check_file(tmp_path, "--json")

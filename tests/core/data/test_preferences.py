"""Preference files."""

import json

import pytest

from tunesmith.data import Preference, load_preferences, write_preferences
from tunesmith.errors import DataError

PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}


def test_what_is_written_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pairs = [
        Preference(id="1", prompt="p", chosen="c\n", rejected="r", margin=0.5, weight=1 / 3, group="g"),
        Preference(id="2", prompt="ü", chosen="", rejected="r"),
    ]
    write_preferences(tmp_path / "x.jsonl", pairs)
    assert load_preferences(tmp_path / "x.jsonl") == pairs
    write_preferences("~/y.jsonl", pairs)
    assert load_preferences("~/y.jsonl") == pairs
    assert (tmp_path / "y.jsonl").is_file()
    write_preferences(tmp_path, pairs)  # an artifact's folder
    assert load_preferences(str(tmp_path)) == pairs


def test_trls_columns_are_enough_and_ids_are_stable(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(p) for p in (PAIR, {**PAIR, "chosen": "d"}, PAIR)))
    first, second, third = load_preferences(tmp_path / "x.jsonl")
    assert (first.margin, first.weight, first.group) == (0.0, 1.0, "")
    assert len({first.id, second.id, third.id}) == 3
    assert [p.id for p in load_preferences(tmp_path / "x.jsonl")] == [first.id, second.id, third.id]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "p", "chosen": "c", "reject": "r"}, "line 1: no field 'rejected'; did you mean 'reject'"),
        ({**PAIR, "chosen": ["c"]}, "'chosen' must be text, not list"),
        ({**PAIR, "margin": "much"}, "'margin' must be a finite number, not 'much'"),
        ({**PAIR, "margin": float("nan")}, "finite"),
        ({**PAIR, "weight": -1}, "must not be negative"),
    ],
)
def test_wrong_records_are_named(tmp_path, record, message):
    (tmp_path / "x.jsonl").write_text(json.dumps(record))
    with pytest.raises(DataError, match=message):
        load_preferences(tmp_path / "x.jsonl")


def test_ids_are_unique(tmp_path):
    pair = Preference(id="1", prompt="p", chosen="c", rejected="r")
    with pytest.raises(DataError, match="two preferences have the id '1'"):
        write_preferences(tmp_path / "x.jsonl", [pair, pair])
    (tmp_path / "x.jsonl").write_text((json.dumps({**PAIR, "id": "1"}) + "\n") * 2)
    with pytest.raises(DataError, match="line 2: the id '1' is already that of .*line 1"):
        load_preferences(tmp_path / "x.jsonl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.jsonl"):
        load_preferences(tmp_path / "nothing.jsonl")

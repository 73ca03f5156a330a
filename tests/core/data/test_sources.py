"""Reading files, folders and hub names."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from tunesmith.data import Data, load_examples, load_preferences, readers
from tunesmith.errors import DataError
from tunesmith.runtime import Runtime

RECORDS = [{"q": f"question {i}, really?", "a": f"answer {i}"} for i in range(4)]


def data(source, **options):
    return Data(source=str(source), **{"prompt": "{q}", "target": "{a}", **options})


def write(path, records=RECORDS):
    name = path.name.removesuffix(".gz")
    if name.endswith(".jsonl"):
        text = "\n".join(json.dumps(r) for r in records) + "\n"
    elif name.endswith(".json"):
        text = json.dumps(records)
    elif name.endswith(".csv"):
        text = "q,a\n" + "".join(f'"{r["q"]}",{r["a"]}\r\n' for r in records)
    elif name.endswith(".tsv"):
        text = "q\ta\n" + "".join(f"{r['q']}\t{r['a']}\n" for r in records)
    elif name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
        return path
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.tsv", "x.parquet", "x.jsonl.gz", "x.csv.gz"])
def test_every_format_gives_the_same_examples(tmp_path, name):
    expected = load_examples(data(write(tmp_path / "reference.jsonl")), "train")
    assert load_examples(data(write(tmp_path / name)), "train") == expected
    assert [e.prompt for e in expected] == [r["q"] for r in RECORDS]


@pytest.mark.parametrize(
    ("files", "asked", "found"),
    [
        (["train.jsonl", "test.jsonl"], "test", "test.jsonl"),
        (["dialogsum.train.jsonl", "dialogsum.dev.jsonl"], "validation", "dialogsum.dev.jsonl"),
        (["train.jsonl", "val.jsonl"], "dev", "val.jsonl"),
        (["glue_train.tsv", "glue_dev.tsv"], "valid", "glue_dev.tsv"),
        (["train.jsonl", "dev32.jsonl", "val.jsonl"], "dev32", "dev32.jsonl"),
        (["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"], "test", "test-00000-of-00001.parquet"),
    ],
)
def test_a_folder_has_one_file_a_split(tmp_path, files, asked, found):
    for name in files:
        write(tmp_path / name, [{"q": name, "a": "x"}])
    (tmp_path / "manifest.json").write_text("{}")
    assert [e.prompt for e in load_examples(data(tmp_path), asked)] == [found]


def test_shards_of_a_split_belong_together(tmp_path):
    for i in range(2):
        write(tmp_path / f"train-0000{i}-of-00002.parquet", RECORDS[i * 2 : i * 2 + 2])
    assert [e.targets for e in load_examples(data(tmp_path), "train")] == [(r["a"],) for r in RECORDS]


def test_two_candidates_are_an_error_that_names_them(tmp_path):
    for name in ("one.train.jsonl", "two.train.jsonl"):
        write(tmp_path / name)
    with pytest.raises(DataError, match=r"one\.train\.jsonl, two\.train\.jsonl"):
        load_examples(data(tmp_path), "train")


def test_documents_stand_between_separators(tmp_path):
    for end in ("\n", "\r\n"):
        written = "one\nstory\n<|endoftext|>\nanother\n<|endoftext|>\n".replace("\n", end)
        (tmp_path / "stories.txt").write_bytes(written.encode())
        found = load_examples(Data(source=str(tmp_path / "stories.txt")), "all")
        assert [(e.prompt, e.targets) for e in found] == [("", ("one\nstory",)), ("", ("another",))]
    (tmp_path / "lines.txt").write_bytes(b"first\r\nsecond\r\n")
    for separator in ("\n", "\r\n"):
        asked = Data(source=str(tmp_path / "lines.txt"), prompt="{text}", document_separator=separator)
        assert [e.prompt for e in load_examples(asked, "all")] == ["first", "second"]


def test_a_folder_of_texts_is_one_document_a_file(tmp_path):
    for name in ("b.txt", "a.txt"):
        (tmp_path / name).write_text(f"text of {name}")
    found = load_examples(Data(source=str(tmp_path)), "train")
    assert [e.targets[0] for e in found] == ["text of a.txt", "text of b.txt"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"q": 1}\n{"q": \n[1]\n', r"line 2: .*; line 3: a record must be an object, not list"),
        ("x.jsonl", '{"q": "a", "a": "b"}\n{"q": }\n', r"line 2: Expecting value at column 7\."),
        ("x.jsonl", '{"q": 1, "a": 2, "q": 3}\n', "line 1: field 'q' stands there twice; rename or remove one"),
        ("x.json", '[{"q": 1, "q": 3}]', "field 'q' stands there twice"),
        ("x.json", '{"q": ', "malformed JSON"),
        ("x.json", '{"q": 1}', "must be a list of objects"),
        ("x.csv", "q,a\n1,2,3\n", r"x\.csv, line 2: 3 fields, but the header has 2"),
        ("x.csv", "q,q\n1,2\n", "column 'q' stands there twice"),
        ("x.csv", 'q,a\n"open,2\n', "line"),
        ("x.jsonl", "", "holds no record"),
        ("x.parquet", "no parquet", "no readable parquet file"),
        ("x.docx", "?", r"cannot be read; give one of \.csv"),
    ],
)
def test_malformed_files_say_where(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load_examples(data(tmp_path / name), "train")
    assert name in str(caught.value)


def test_many_malformed_lines_are_counted(tmp_path):
    (tmp_path / "x.jsonl").write_text("nonsense\n" * 9)
    with pytest.raises(DataError, match="line 5:.*; and 4 more"):
        load_examples(data(tmp_path / "x.jsonl"), "train")


def test_other_encodings_are_named(tmp_path):
    (tmp_path / "x.jsonl").write_bytes('{"q": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8 text"):
        load_examples(data(tmp_path / "x.jsonl"), "train")


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tmp_path / "x.csv").write_bytes("\ufeffq,a\n1,2\n".encode())
    assert load_examples(data(tmp_path / "x.csv"), "train")[0].prompt == "1"


def test_a_compressed_file_that_was_cut_or_damaged_is_named(tmp_path):
    whole = gzip.compress(b'{"q": "1", "a": "2"}\n' * 50)
    for number, damaged in enumerate((whole[:-12], whole[:12] + b"\xff" * 8 + whole[20:], b"no gzip")):
        (tmp_path / f"{number}.jsonl.gz").write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{number}.jsonl.gz: cannot be read: "):
            load_examples(data(tmp_path / f"{number}.jsonl.gz"), "train")


def test_a_name_that_neither_a_folder_nor_the_hub_has_is_named(tmp_path, monkeypatch):
    (tmp_path / "dialogues").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=r"there is no file or folder 'dialogs' \(looked from .*Did you mean 'dialogues'\?"
    ):
        load_examples(data("dialogs"), "train", Runtime(offline=True))


@pytest.mark.parametrize(("name", "text", "place"), [
    ("x.jsonl", '{"q": "\\ud83d\\ude00", "a": "b"}\n{"q": "\\uD83D", "a": "b"}\n', "line 2"),
    ("x.json", '[{"q": "\\ud83d\\ude00", "a": "b"}, {"q": "a", "a": ["\\ude00"]}]', "item 2"),
])  # fmt: skip
def test_half_a_character_is_named_before_a_tokenizer_meets_it(tmp_path, name, text, place):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=f"{place}: a text holds half of a character"):
        load_examples(data(tmp_path / name), "train")


@pytest.mark.parametrize("source", ["./" + "x" * 300, "./" + "x" * 300 + "/train.jsonl", "/" + "x" * 300 + "/y/z"])
def test_a_source_longer_than_the_name_of_a_file_is_not_there(source):
    with pytest.raises(DataError, match="there is no file or folder"):
        load_examples(data(source), "train")
    with pytest.raises(DataError, match="there is no such file of preferences"):
        load_preferences(source)


def test_long_fields_are_read(tmp_path):
    write(tmp_path / "x.csv", [{"q": "w " * 200_000, "a": "b"}])
    assert len(load_examples(data(tmp_path / "x.csv"), "train")[0].prompt) == 400_000


def test_tab_separated_text_keeps_its_quotation_marks(tmp_path):
    (tmp_path / "x.tsv").write_text('q\ta\n"unclosed\tyes\n')
    assert load_examples(data(tmp_path / "x.tsv"), "train")[0].prompt == '"unclosed'


@pytest.mark.parametrize(
    ("source", "split", "message"),
    [
        ("trian.jsonl", "train", r"Did you mean .*train\.jsonl"),
        ("folder", "tset", "no file for the split 'tset'; did you mean 'test'"),
        ("folder/test.jsonl", "train", "is the split 'test' by its name, and 'train' was asked for"),
        ("whole.jsonl", "test", "one file without splits"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(tmp_path, source, split, message):
    (tmp_path / "folder").mkdir()
    for name in ("train.jsonl", "whole.jsonl", "folder/train.jsonl", "folder/test.jsonl"):
        write(tmp_path / name)
    with pytest.raises(DataError, match=message):
        load_examples(data(tmp_path / source), split)


def test_offline_no_hub_is_asked():
    with pytest.raises(DataError, match="no network is used"):
        load_examples(data("somebody/some-data-set"), "train", Runtime(offline=True))


@pytest.fixture
def hub(monkeypatch):
    """Stand in for the network under ``datasets``: the name "owner/name" gives the splits that the test says."""
    import datasets

    splits = {}

    def load_dataset(name, subset, revision):
        assert (name, subset, revision) == ("owner/name", "small", "abc")
        return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in splits.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return splits


def test_a_split_of_a_hub_without_records_is_named(hub):
    hub.update(train=[])
    with pytest.raises(DataError, match=r"'owner/name' \(small\): the split holds no record"):
        load_examples(data("owner/name", subset="small", revision="abc"), "train")


def test_a_hub_name_gives_its_splits(hub):
    hub.update(train=RECORDS, validation=RECORDS[:2])
    named = data("owner/name", subset="small", revision="abc")
    assert [e.prompt for e in load_examples(named, "dev")] == [r["q"] for r in RECORDS[:2]]
    assert len(load_examples(named, "train")) == 4
    with pytest.raises(DataError, match=r"'owner/name' \(small\): no split 'test'; there are: 'train', 'validation'"):
        load_examples(named, "test")
    with pytest.raises(DataError, match="row 1: no field 'b'"):
        load_examples(data("owner/name", subset="small", revision="abc", target="{b}"), "train")


def test_a_hub_name_with_one_split_can_be_divided(hub):
    hub.update(train=[{"q": str(i), "a": "x"} for i in range(50)])
    named = data("owner/name", subset="small", revision="abc", fractions={"train": 0.5, "test": 0.5})
    parts = [load_examples(named, split) for split in ("train", "test")]
    assert sum(map(len, parts)) == 50
    assert all(parts)


def test_a_large_file_is_looked_through_for_halves_of_characters_once(tmp_path, monkeypatch):
    looked = []
    look = readers._may_be_cut
    monkeypatch.setattr(readers, "_may_be_cut", lambda text: looked.append(text) or look(text))
    (tmp_path / "many.json").write_text(json.dumps([{"text": "\U0001f600"}] * 20), encoding="utf-8")
    assert len(list(readers.read_file(tmp_path / "many.json", ""))) == 20
    assert len(looked) == 1

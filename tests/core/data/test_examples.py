"""Rendering, ids, splits, in-context examples."""

import json
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data import Data, Example, leaks, load_examples, template
from tunesmith.data.splits import place
from tunesmith.errors import ConfigError, DataError
from tunesmith.testing.models import tiny_tokenizer


def write(path: Path, records) -> Data:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return Data(source=str(path), prompt="Q: {q}\nA: ", target="{a}")


@pytest.fixture
def data(tmp_path) -> Data:
    return write(tmp_path / "x.jsonl", [{"key": f"k{i}", "q": f"q{i}", "a": f"a{i}"} for i in range(30)])


@given(st.text())
def test_values_are_never_read_as_templates(value):
    assert template.render("<{x}>", {"x": value}) == f"<{value}>"


@given(st.text())
def test_doubled_braces_are_literal(text):
    escaped = text.replace("{", "{{").replace("}", "}}")
    assert template.render(escaped, {}) == text


@pytest.mark.parametrize("name", ["x.__class__", "x[0]", "x!r", "x:>10"])
def test_a_field_is_a_plain_name_and_reaches_into_nothing(name):
    with pytest.raises(KeyError):
        template.render(f"{{{name}}}", {"x": "secret"})
    assert template.render(f"{{{name}}}", {name: "a column that is called so"}) == "a column that is called so"


@pytest.mark.parametrize("text", ["{", "}", "{}", "a {b} {", "{a{b}}"])
def test_a_lonely_brace_is_an_error_when_the_config_is_made(text):
    with pytest.raises(ValueError, match="'prompt' is no usable template"):
        Data(source="x", prompt=text)


def test_fractions_must_be_shares():
    for wrong in ({"train": 1.2}, {"train": 0.7, "test": 0.6}, {"train": 0.0}, {"train": -0.1}):
        with pytest.raises(ValueError, match="shares"):
            Data(source="x", fractions=wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "{qq}"}, "line 1: no field 'qq', which the prompt template needs; did you mean 'q'"),
        ({"target": "{b}"}, "no field 'b', which the target '{b}' needs; there are: 'key', 'q', 'a'"),
        ({"id": "kee"}, "no field 'kee', which is to be the id; did you mean 'key'"),
        ({"prompt": "", "target": ""}, "no field 'text'"),
    ],
)
def test_missing_fields_are_named_with_what_is_close(data, changes, message):
    with pytest.raises(DataError, match=message):
        load_examples(evolve(data, **changes), "train")


def test_a_field_that_only_some_records_lack_is_named_with_its_line(tmp_path):
    data = write(tmp_path / "x.jsonl", [{"q": "1", "a": "2"}, {"q": "3"}])
    with pytest.raises(DataError, match="line 2: no field 'a'.*other records have it"):
        load_examples(data, "train")


@pytest.mark.parametrize(
    ("value", "message"), [(None, r"empty \(null\)"), ([1], "a list, not text"), ({"k": 1}, "a dict, not text")]
)
def test_values_that_are_no_text_are_named(tmp_path, value, message):
    with pytest.raises(DataError, match=f"line 1: field 'q' is {message}"):
        load_examples(write(tmp_path / "x.jsonl", [{"q": value, "a": "x"}]), "train")


def test_several_references_come_from_templates_or_a_list(tmp_path):
    data = write(tmp_path / "x.jsonl", [{"q": "1", "s1": "a", "s2": "b", "all": ["c", "d"]}])
    data = evolve(data, target="{summary}", references=("{s1}", "{s2}"))
    assert load_examples(data, "train")[0].targets == ("a", "b")  # no record has "summary"
    assert load_examples(evolve(data, target="{all}", references=("{s1}",)), "train")[0].targets == ("c", "d", "a")


def test_ids_are_the_records_own_or_stable_hashes(data, tmp_path):
    assert [e.id for e in load_examples(evolve(data, id="key"), "train", items=2)] == ["k0", "k1"]
    assert len(load_examples(data, "train", items=None)) == len(load_examples(data, "train")) > 2
    records = [{"q": "x", "a": "1"}, {"a": "1", "q": "x"}, {"q": "y", "a": "1"}]
    first, second, third = (e.id for e in load_examples(write(tmp_path / "y.jsonl", records), "train"))
    assert second == f"{first}-2"  # equal records stay apart
    alone = load_examples(write(tmp_path / "z.jsonl", records[2:]), "train")[0].id
    assert third == alone  # and an id does not depend on the others
    with pytest.raises(DataError, match="line 2: the id '1' .* is already that of .*line 1"):
        load_examples(evolve(write(tmp_path / "y.jsonl", records), id="a"), "train")


def test_in_context_examples_are_rendered_alike_and_never_the_item_itself(data):
    plain = load_examples(data, "train")
    for count in (1, 3):
        for before, after in zip(plain, load_examples(data, "train", shots=count), strict=True):
            *shots, own = after.prompt.split("\n\n")
            assert own == before.prompt
            assert len(shots) == count == len(set(shots))
            known = {e.prompt + e.targets[0] for e in plain if e.id != before.id}
            assert set(shots) <= known


def test_more_shots_keep_the_earlier_ones_and_the_seed_decides(data):
    two, three = (load_examples(data, "train", shots=n)[5].prompt.split("\n\n")[:-1] for n in (2, 3))
    assert three[:2] == two
    other = load_examples(evolve(data, seed=1), "train", shots=3)[5].prompt.split("\n\n")[:-1]
    assert other != three
    assert load_examples(evolve(data, shots=3), "train") == load_examples(data, "train", shots=3)
    assert load_examples(evolve(data, shots=3), "train", shots=0) == load_examples(data, "train")


def test_shots_never_come_from_the_split_that_is_asked_for(data):
    made = evolve(data, fractions={"train": 0.5, "test": 0.5}, shots=2)
    train = {e.prompt + e.targets[0] for e in load_examples(made, "train", shots=0)}
    for example in load_examples(made, "test"):
        assert set(example.prompt.split("\n\n")[:-1]) <= train
    with pytest.raises(DataError, match="set shots_split to another"):
        load_examples(evolve(made, shots_split="test"), "test")


def test_shots_from_the_very_file_that_is_asked_for_are_warned_of(data, caplog):
    train = {e.id: e.prompt + e.targets[0] for e in load_examples(data, "train")}
    for example in load_examples(data, "all", shots=3):
        *shots, _ = example.prompt.split("\n\n")
        assert set(shots) <= set(train.values()) - {train[example.id]}
    (warning,) = caplog.messages
    assert warning.startswith(f"{data.source}: in-context examples come from the very file")
    caplog.clear()
    apart = evolve(data, fractions={"train": 0.5, "test": 0.5}, shots=2)
    for split in ("train", "test"):
        load_examples(apart, split)
    load_examples(data, "all")
    assert not caplog.messages


@pytest.mark.parametrize("wrong", [{"items": -1}, {"shots": -1}, {"items": 2.5}, {"shots": "2"}])
def test_numbers_of_items_and_shots_that_cannot_be_are_refused(data, wrong):
    with pytest.raises(ConfigError, match="at least 0|a whole number was expected"):
        load_examples(data, "train", **wrong)


def test_an_item_with_the_same_prompt_is_no_shot(tmp_path):
    data = write(tmp_path / "x.jsonl", [{"q": "same", "a": "1"}, {"q": "Same ", "a": "2"}, {"q": "other", "a": "3"}])
    with pytest.raises(DataError, match="has only 1"):
        load_examples(data, "train", shots=2)
    assert "other" in load_examples(data, "train", shots=1)[0].prompt


def test_made_splits_are_disjoint_whole_and_of_the_asked_sizes(tmp_path):
    data = write(tmp_path / "x.jsonl", [{"q": f"q{i % 900}", "a": f"a{i}"} for i in range(1000)])
    data = evolve(data, fractions={"train": 0.8, "validation": 0.1, "test": 0.1})
    parts = {name: load_examples(data, name) for name in ("train", "dev", "test")}
    assert sum(map(len, parts.values())) == 1000
    assert 750 < len(parts["train"]) < 850
    assert not leaks(parts["train"], parts["test"])
    assert not leaks(parts["train"], parts["dev"])
    assert len(load_examples(data, "all")) == 1000


def test_adding_records_moves_none(tmp_path):
    records = [{"q": f"q{i}", "a": "a"} for i in range(200)]
    shares = {"train": 0.7, "test": 0.3}
    few = evolve(write(tmp_path / "few.jsonl", records[:100]), fractions=shares)
    many = evolve(write(tmp_path / "many.jsonl", records), fractions=shares)
    assert {e.id for e in load_examples(few, "test")} <= {e.id for e in load_examples(many, "test")}


def test_the_order_of_fractions_means_nothing():
    assert all(
        place(f"text {i}", {"train": 0.6, "test": 0.4}, 0) == place(f"text {i}", {"test": 0.4, "train": 0.6}, 0)
        for i in range(50)
    )


def test_shares_that_only_rounding_keeps_below_one_leave_nothing_out():
    shares = {"a": 0.7, "b": 0.2, "c": 0.1}
    assert shares["a"] + shares["b"] + shares["c"] < 1
    assert all(place(str(i), shares, 0) is not None for i in range(2000))


def test_leaks_report_the_ids_on_both_sides():
    train = [Example(id="1", prompt="The  Cat"), Example(id="2", prompt="dog"), Example(id="3", prompt="the cat")]
    test = [Example(id="9", prompt="the cat "), Example(id="8", prompt="bird")]
    (leak,) = leaks(train, test)
    assert (leak.train, leak.test) == (("1", "3"), ("9",))
    assert leaks(train, test[1:]) == []


def test_a_chat_template_gets_the_prompt_as_a_users_turn(data):
    tokenizer = tiny_tokenizer()
    chat = evolve(data, chat=True)
    with pytest.raises(DataError, match="no tokenizer was given"):
        load_examples(chat, "train")
    with pytest.raises(DataError, match="tokenizer has none"):
        load_examples(chat, "train", tokenizer=tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
    )
    assert load_examples(chat, "train", tokenizer=tokenizer)[0].prompt == "<user>Q: q0\nA: <bot>"


@pytest.mark.realdata
def test_dialogsum_as_it_is_published(real_data):
    data = Data(
        source=str(real_data / "dialogsum"),
        prompt="{dialogue}",
        target="{summary}",
        references=("{summary1}", "{summary2}", "{summary3}"),
        id="fname",
    )
    sizes = {split: len(load_examples(data, split)) for split in ("train", "dev", "test")}
    assert sizes == {"train": 12460, "dev": 500, "test": 500}
    assert all(len(e.targets) == 3 for e in load_examples(data, "test"))
    # one dialogue of the published test set stands in the training set too, up to case and white space
    assert len(leaks(load_examples(data, "train"), load_examples(data, "test"))) == 1


@pytest.mark.realdata
def test_other_published_sets(real_data):
    assert len(load_examples(Data(source=str(real_data / "sst2"), prompt="{text_a}", target="{label}"), "dev")) == 872
    stories = load_examples(Data(source=str(real_data / "tinystories" / "tinystories.txt")), "train")
    assert len(stories) > 1000
    assert stories[0].targets[0].startswith("One day, a little girl")
    assert load_examples(Data(source=str(real_data / "wikitext2")), "test")[0].prompt == ""
    labels = load_examples(Data(source=str(real_data / "davidson-hate"), prompt="{tweet}", target="{class}"), "train")
    assert {e.targets[0] for e in labels} == {"0", "1", "2"}


def test_an_instruction_stands_once_before_everything(data):
    plain = load_examples(data, "train", shots=2)
    told = load_examples(evolve(data, instruction="Answer.\n\n"), "train", shots=2)
    assert [example.prompt for example in told] == ["Answer.\n\n" + example.prompt for example in plain]
    assert [(e.id, e.targets) for e in told] == [(e.id, e.targets) for e in plain]

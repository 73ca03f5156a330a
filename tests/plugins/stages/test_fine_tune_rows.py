"""Rows, spans, packing and order."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data import Example, encoding
from tunesmith.data.encoding import Lengths, Row, Truncation
from tunesmith.errors import ConfigError, DataError
from tunesmith.testing.models import WORDS, tiny_lm, tiny_tokenizer
from tunesmith.training import batches, spans
from tunesmith.training.packing import check, pack
from tunesmith.training.stream import Stream
from tunesmith.training.task import Limits, Task, objective_of

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.eos_token_id


def ids(text):
    return tuple(TOKENIZER(text)["input_ids"])


def test_a_causal_row_has_only_the_answer_in_the_loss():
    cut = Truncation()
    (row,) = encoding.causal(
        [Example(id="a", prompt="the cat ", targets=("sees a dog",))], TOKENIZER, Lengths(input=20, target=9), cut, True
    )
    assert row.input_ids == (*ids("the cat sees a dog"), END)
    assert row.labels == (-100, -100, *ids("sees a dog"), END)
    assert cut.inputs.lost == cut.targets.lost == 0


def test_a_long_causal_prompt_loses_its_beginning_and_keeps_the_answer():
    cut = Truncation()
    example = Example(id="a", prompt="the cat sees a dog ", targets=("yes",))
    (row,) = encoding.causal([example], TOKENIZER, Lengths(input=4, target=9), cut, True)
    assert row.input_ids == (*ids("a dog yes"), END)
    assert (cut.inputs.lost, cut.targets.lost) == (3, 0)


def test_plain_text_is_split_and_nothing_is_lost():
    text = " ".join(WORDS[:10])
    rows = encoding.causal(
        [Example(id="a", prompt="", targets=(text,))], TOKENIZER, Lengths(input=4, target=9), Truncation(), True
    )
    assert tuple(i for row in rows for i in row.input_ids) == (*ids(text), END)
    assert [len(row.input_ids) for row in rows] == [4, 4, 3]
    assert all(row.labels == row.input_ids for row in rows)


def test_plain_texts_are_no_task_for_an_encoder_decoder_to_answer():
    task = Task(objective="seq2seq", lm=tiny_lm("encoder-decoder"), limits=Limits(lengths=Lengths(input=9, target=9)))
    texts = [Example(id=name, prompt="", targets=("the cat",)) for name in "ab"]
    with pytest.raises(DataError, match="would read nothing; give .*objective='span_corruption'"):
        task.rows(texts, Truncation())
    assert len(task.rows([Example(id="c", prompt="dog", targets=("yes",)), *texts], Truncation())) >= 1


def test_a_cut_target_still_ends():
    cut = Truncation()
    (row,) = encoding.seq2seq(
        [Example(id="a", prompt="yes", targets=("the cat sees a dog",))], TOKENIZER, Lengths(input=9, target=3), cut
    )
    assert row.labels == (*ids("the cat"), END)
    assert (cut.targets.shortened, cut.targets.tokens, cut.targets.lost) == (1, 6, 3)


def test_an_example_without_answer_is_named():
    with pytest.raises(DataError, match="'lonely' has no target"):
        encoding.seq2seq([Example(id="lonely", prompt="yes")], TOKENIZER, Lengths(input=9, target=3), Truncation())


def test_an_unknown_class_is_named():
    with pytest.raises(DataError, match="has the class 'maybe'; the model knows 'no', 'yes'"):
        encoding.classification(
            [Example(id="a", prompt="x", targets=("maybe",))],
            TOKENIZER,
            Lengths(input=9, target=3),
            Truncation(),
            ("no", "yes"),
        )


@pytest.mark.parametrize("family", ["encoder", "decoder", "encoder-decoder"])
def test_empty_texts_give_nothing_to_train_on(family):
    limits = Limits(lengths=Lengths(input=9, target=9))
    task = Task(objective=objective_of(family, "auto"), lm=tiny_lm(family), limits=limits)
    empty, full = Example(id="a", prompt="", targets=("",)), Example(id="b", prompt="yes ", targets=("no",))
    rows = task.rows([empty, full], Truncation())
    assert all(row.input_ids for row in rows)
    assert task.collate()(rows)["input_ids"].dtype == torch.long
    with pytest.raises(DataError, match="no row to train on|no example has a prompt"):
        task.rows([empty], Truncation())


def test_a_batch_of_empty_rows_is_of_integers():
    assert batches.padded([[], []], 0).dtype == torch.long


@given(st.integers(2, 600), st.integers(0, 2**32))
def test_span_corruption_loses_nothing(length, seed):
    """Input and target, read together, give the raw tokens back; counts and sizes are those announced."""
    raw = list(range(1000, 1000 + length))
    _, count = spans.counts(length)
    sentinels = list(range(count))
    source, target = spans.corrupt(raw, sentinels, 999, np.random.default_rng(seed))
    assert (len(source), len(target)) == spans.sizes(length)
    assert source[-1] == target[-1] == 999
    holes: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token < count:
            holes[token] = []
            last = token
        else:
            holes[last].append(token)
    assert list(holes) == sentinels
    assert all(holes.values())
    restored = [t for token in source[:-1] for t in (holes[token] if token < count else [token])]
    assert restored == raw


def test_span_corruption_has_the_papers_rates():
    """15 % of the tokens in holes of 3 on average (Raffel et al. 2020, section 3.1.4); every place is in a hole about as often."""
    random = np.random.default_rng(0)
    masks = np.stack([spans.holes(512, random) for _ in range(400)])
    assert masks.sum(1).tolist() == [77] * 400
    starts = (masks & ~np.pad(masks, ((0, 0), (1, 0)))[:, :-1]).sum(1)
    assert starts.tolist() == [26] * 400
    assert not masks[:, 0].any()
    middle = masks[:, 100:400].mean(0)
    assert abs(middle.mean() - 0.15) < 0.01


def test_t5s_own_lengths():
    """512 input tokens take 568 raw ones and give targets of 114: the numbers of the T5 code base."""
    assert spans.raw_length(512, 10_000) == 568
    assert spans.sizes(568)[1] == 114


def test_span_corruption_needs_room_and_sentinels():
    with pytest.raises(ConfigError, match="too small"):
        spans.raw_length(2, 2)
    with pytest.raises(ConfigError, match="no <extra_id_0>"):
        spans.sentinel_ids(TOKENIZER, 100)


def test_masking_asks_for_15_percent_in_the_usual_shares_and_never_for_special_tokens():
    noise = batches.mask_noise(TOKENIZER)
    row = Row(input_ids=(3, *(10,) * 998, END), labels=())
    asked = masked = kept = other = 0
    for seed in range(100):
        found = noise(row, np.random.default_rng(seed))
        assert found.labels[0] == found.labels[-1] == -100
        for seen, label in zip(found.input_ids, found.labels, strict=True):
            if label == -100:
                continue
            assert label == 10
            asked += 1
            masked += seen == TOKENIZER.mask_token_id
            kept += seen == 10
            other += seen not in (TOKENIZER.mask_token_id, 10)
    assert abs(asked / 99_800 - 0.15) < 0.004
    assert abs(masked / asked - 0.8) < 0.02
    assert abs(kept / asked - 0.1) < 0.02
    assert abs(other / asked - 0.1) < 0.02


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_packing_keeps_every_token_once_and_no_row_too_long(sizes):
    rows = [Row(input_ids=tuple(range(i * 100, i * 100 + n)), labels=(5,) * n) for i, n in enumerate(sizes)]
    packed = pack(rows, 20)
    assert all(len(row.input_ids) <= 20 and sum(row.segments) == len(row.input_ids) for row in packed)
    found = []
    for row in packed:
        start = 0
        for size in row.segments:
            found.append(row.input_ids[start : start + size])
            assert row.labels[start] == -100  # nothing is predicted across a border
            start += size
    assert sorted(found) == sorted(row.input_ids for row in rows)


SIZES = {
    "vocab_size": 51, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4,
    "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["Llama", "Mixtral", "GPT2", "Bert", "Roberta"])
def test_packing_is_refused_for_models_in_which_packed_examples_see_each_other(kind, dtype):
    config = getattr(transformers, f"{kind}Config")(**SIZES, is_decoder=True)
    classes = {"GPT2": "GPT2LMHeadModel", "Bert": "BertLMHeadModel"}
    model = getattr(transformers, classes.get(kind, f"{kind}ForCausalLM"))(config)
    first, other, second = [5, 6, 7], [8, 9, 4], [10, 11, 12, 13]
    positions = torch.tensor([[*range(3), *range(4)]])
    with torch.no_grad():
        packed = [
            model.eval()(torch.tensor([[*before, *second]]), position_ids=positions, use_cache=False).logits[:, 3:]
            for before in (first, other)
        ]
    mixes = not torch.allclose(*packed, atol=1e-6)
    assert mixes == (kind in ("Bert", "Roberta"))
    model.to(dtype).train()
    with pytest.raises(ConfigError, match="packed examples would see each other") if mixes else nullcontext():
        check(model, ())
    assert model.training
    assert not model.get_input_embeddings()._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_every_pass_has_every_row_once_in_a_new_order():
    rows = [Row(input_ids=(i,), labels=(i,)) for i in range(10)]
    stream = Stream({"": rows}, {}, 30, seed=1)
    passes = [[stream[p * 10 + i].input_ids[0] for i in range(10)] for p in range(3)]
    assert all(sorted(found) == list(range(10)) for found in passes)
    assert passes[0] != passes[1]
    assert [stream[i].input_ids for i in range(30)] == [
        Stream({"": rows}, {}, 30, seed=1)[i].input_ids for i in range(30)
    ]


def test_tasks_come_in_the_shares_of_their_weights():
    tasks = {"": [Row(input_ids=(0,), labels=())], "b": [Row(input_ids=(1,), labels=())]}
    stream = Stream(tasks, {"b": 0.5}, 6000, seed=1)
    share = sum(stream[i].input_ids[0] for i in range(6000)) / 6000
    assert abs(share - 1 / 3) < 0.02

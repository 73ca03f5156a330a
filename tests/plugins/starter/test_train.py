"""The script that makes the carried models from nothing."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from tunesmith_plugins.starter import train


@pytest.fixture
def few_dialogues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "POOL", 300)
    monkeypatch.setattr(train, "TOKENS", 512)
    monkeypatch.setattr(train, "STEPS", {"seq2seq": 300, "encoder": 300})


@pytest.mark.usefixtures("few_dialogues")
def test_a_handful_of_steps_makes_both_models_and_prints_their_quality(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    train.main(["--out", str(tmp_path), "--steps", "0.01", "--items", "2"])
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    assert "seq2seq step 3/3" in printed
    assert "encoder step 3/3" in printed
    assert "| seq2seq, 5 examples" in printed
    assert "| encoder: loss of masked words" in printed
    for name, kind in (("seq2seq", AutoModelForSeq2SeqLM), ("encoder", AutoModelForMaskedLM)):
        kind.from_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(tmp_path / name)


@pytest.mark.usefixtures("few_dialogues")
def test_equal_seeds_make_equal_weights(tmp_path: Path) -> None:
    pool = train.dg.dialogues("pretrain", 300)
    torch.manual_seed(0)
    for folder in ("a", "b"):
        torch.rand(3)  # whatever ran before does not matter
        train.fit_encoder(tmp_path / folder, pool, steps=4, seed=1)
    first, second = ((tmp_path / folder / "model.safetensors").read_bytes() for folder in ("a", "b"))
    assert first == second


def test_masking_asks_for_about_15_percent_and_never_for_special_tokens() -> None:
    from tunesmith_plugins.starter.carried import model_path

    tokenizer = AutoTokenizer.from_pretrained(model_path("encoder"))
    ids = tokenizer([x.text for x in train.dg.dialogues("train", 200)], padding=True, return_tensors="pt")["input_ids"]
    batch = train.masked(tokenizer, ids, torch.Generator().manual_seed(0))
    asked = batch["labels"] != -100
    words = ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    assert not (asked & ~words).any()
    assert asked.sum() / words.sum() == pytest.approx(0.15, abs=0.01)
    assert (batch["labels"][asked] == ids[asked]).all()
    hidden = (batch["input_ids"] == tokenizer.mask_token_id) & asked
    assert hidden.sum() / asked.sum() == pytest.approx(0.8, abs=0.03)
    assert (batch["input_ids"][~asked] == ids[~asked]).all()

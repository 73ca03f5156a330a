"""The carried models: small, loadable without a network by the Auto classes, and good for what the demo shows."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

from tunesmith_plugins.starter import carried, quality
from tunesmith_plugins.starter import dialogues as dg


@pytest.fixture(scope="module")
def seq2seq():  # type: ignore[no-untyped-def]
    folder = carried.model_path("seq2seq")
    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def encoder():  # type: ignore[no-untyped-def]
    folder = carried.model_path("encoder")
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_both_are_under_their_limits_of_parameters_and_bytes(seq2seq, encoder) -> None:  # type: ignore[no-untyped-def]
    for model, _ in (seq2seq, encoder):
        assert sum(p.numel() for p in model.parameters()) < 700_000
    assert sum(path.stat().st_size for path in carried.FOLDER.rglob("*") if path.is_file()) < 3_000_000


@pytest.mark.parametrize("name", ["seq2seq", "encoder"])
def test_the_weights_on_disk_are_finite_half_precision_safetensors(name: str) -> None:
    folder = carried.model_path(name)  # type: ignore[arg-type]
    assert not [path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        for key in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
            tensor = weights.get_tensor(key)
            assert tensor.dtype == torch.float16, key
            assert tensor.isfinite().all(), key


def test_configurations_name_no_path_of_the_machine_that_wrote_them() -> None:
    for path in carried.FOLDER.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "_name_or_path" not in json.loads(text), path
        assert "/home/" not in text, path
        assert "/tmp/" not in text, path


def test_the_encoder_knows_its_texts_and_starts_a_classifier(encoder) -> None:  # type: ignore[no-untyped-def]
    model, tokenizer = encoder
    texts = [f"{x.text}\nSummary: {x.summary}" for x in dg.dialogues("test", 50)]
    assert (
        quality.masked_loss(model, tokenizer, texts) < 2.3
    )  # 1.97 on the validation split; a model that has learned nothing has 4.5
    head = AutoModelForSequenceClassification.from_pretrained(
        carried.model_path("encoder"), num_labels=1, dtype=torch.float32
    )
    assert head(**tokenizer(texts[:2], padding=True, return_tensors="pt")).logits.shape == (2, 1)


def test_examples_in_the_prompt_help_and_more_of_them_help_more(seq2seq) -> None:  # type: ignore[no-untyped-def]
    none, one, five = (_rouge(seq2seq, shots) for shots in (0, 1, 5))
    assert none + 6 < one
    assert one + 3 < five


def test_an_instruction_that_names_the_form_helps_and_leaves_room_for_tuning(seq2seq) -> None:  # type: ignore[no-untyped-def]
    plain = _rouge(seq2seq, 0)
    named = _rouge(seq2seq, 0, dg.INSTRUCTIONS[dg.TARGET.form])
    assert plain + 4 < named < 75


def test_a_missing_model_is_named_with_the_command_that_makes_it(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(carried, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="starter.train"):
        carried.model_path("encoder")


def _rouge(handle, shots: int, instruction: str = dg.INSTRUCTION) -> float:  # type: ignore[no-untyped-def]
    rows = quality.few_shot_prompts(30, shots, instruction=instruction)
    made = quality.generate(*handle, [prompt for prompt, _ in rows])
    return quality.rouge(made, [reference for _, reference in rows])[0]

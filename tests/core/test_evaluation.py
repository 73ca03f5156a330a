"""What metrics are given, and what is written down, for every family of models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from attrs import evolve
from click.testing import CliRunner
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tunesmith import continuation
from tunesmith.cli.evaluate import evaluate as command
from tunesmith.data.config import Data
from tunesmith.data.records import Example
from tunesmith.errors import ArtifactError, ConfigError, DataError, MissingPower
from tunesmith.evaluation import (
    Greedily,
    classification,
    evaluate,
    read_tables,
    ready_engine,
    write_generations,
    write_scores,
)
from tunesmith.evaluation.losses import token_losses
from tunesmith.evaluation.scores import vocabulary_of
from tunesmith.kinds.metric import MetricConfig
from tunesmith.lm import LM
from tunesmith.registry import metrics, samplers
from tunesmith.report.content import read
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm

OFFLINE = Runtime(offline=True, progress=False)
TEXTS = ["the cat runs", "a dog eats the fish", "who is happy ?", "the bird sees a tree", "not now", "one two three"]


def metric(name: str, **options: object) -> MetricConfig:
    return metrics.create(name, **options)


def examples(prompt: bool = True, count: int = 6) -> list[Example]:
    return [
        Example(id=f"e{i}", prompt=f"{TEXTS[i]} :" if prompt else "", targets=(TEXTS[(i + 1) % 6], TEXTS[i]))
        for i in range(count)
    ]


def engine(lm: LM):
    return None if lm.family == "encoder" else ready_engine(lm, None, OFFLINE)


def by_hand(lm: LM, context: list[int], ids: list[int]) -> list[float]:
    """Losses token by token in float64, one forward pass each, without any batch or padding."""
    losses = []
    for k in range(len(ids)):
        if lm.family == "decoder":
            logits = lm.model(torch.tensor([context + ids[:k]])).logits[0, -1]
        else:
            start = torch.tensor([[lm.model.config.decoder_start_token_id, *ids[:k]]])
            logits = lm.model(input_ids=torch.tensor([context]), decoder_input_ids=start).logits[0, -1]
        losses.append(-logits.double().log_softmax(-1)[ids[k]].item())
    return losses


@torch.no_grad()
def test_losses_of_a_decoder_given_prompts() -> None:
    lm = tiny_lm("decoder")
    found = token_losses(lm, examples(), engine(lm)).losses
    for example, losses in zip(examples(), found, strict=True):
        context, target = (lm.tokenizer.encode(t) for t in (example.prompt, example.targets[0]))
        assert losses == pytest.approx(by_hand(lm, context, target), abs=1e-5)


@torch.no_grad()
def test_losses_of_an_encoder_decoder_count_the_end() -> None:
    lm = tiny_lm("encoder-decoder")
    found = token_losses(lm, examples(), engine(lm)).losses
    for example, losses in zip(examples(), found, strict=True):
        context, target = (lm.tokenizer.encode(t) for t in (example.prompt, example.targets[0]))
        assert losses == pytest.approx(by_hand(lm, context, [*target, lm.tokenizer.eos_token_id]), abs=1e-5)


@torch.no_grad()
def test_losses_of_an_encoder_mask_one_token_at_a_time() -> None:
    lm = tiny_lm("encoder")
    example = Example(id="a", prompt="", targets=("the cat sees a dog",))
    (losses,) = token_losses(lm, [example], None).losses
    ids = lm.tokenizer.encode(example.targets[0])
    expected = []
    for place, answer in enumerate(ids):
        masked = torch.tensor([[*ids[:place], lm.tokenizer.mask_token_id, *ids[place + 1 :]]])
        expected.append(-lm.model(masked).logits[0, place].double().log_softmax(-1)[answer].item())
    assert losses == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_every_token_of_a_plain_text_is_predicted_once_whatever_its_length() -> None:
    """300 words in a model of 128 positions: 128 + 128 + 44, the last window with all the context that fits."""
    lm = tiny_lm("decoder")
    words = [TEXTS[i % 5].split()[i % 2] for i in range(300)]
    (losses,) = token_losses(lm, [Example(id="a", prompt="", targets=(" ".join(words),))], engine(lm)).losses
    ids = lm.tokenizer.encode(" ".join(words))
    assert len(losses) == len(ids) == 300
    for place in (0, 5, 127, 128, 255, 256, 299):
        begin, end = place // 128 * 128, min(place // 128 * 128 + 128, 300)
        context = [lm.tokenizer.bos_token_id, *ids[:place]] if begin == 0 else ids[end - 129 : place]
        logits = lm.model(torch.tensor([context])).logits[0, -1]
        assert losses[place] == pytest.approx(-logits.double().log_softmax(-1)[ids[place]].item(), abs=1e-5)


def test_spaces_at_the_end_of_a_context_move_to_the_continuation() -> None:
    """With a tokenizer that keeps a space with the next word, "the cat " + "runs" would leave no token to score."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    lm = tiny_lm("decoder")
    inner = Tokenizer(
        models.WordLevel({"<unk>": 0, "the": 1, " cat": 2, " runs": 3, " ": 4, "runs": 5}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "merged_with_next")
    lm.tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    moved = continuation.encode(lm, "the cat ", "runs")
    assert (moved.context_ids, moved.ids) == ((1, 2), (3,))


def test_what_does_not_fit_is_cut_from_the_left() -> None:
    lm = tiny_lm("decoder")
    pair = continuation.encode(lm, " ".join(["the"] * 150), " cat runs")
    assert (len(pair.context_ids), len(pair.ids), pair.cut) == (127, 2, 23)
    assert len(pair.context_ids) + len(pair.ids) - 1 == 128


@pytest.mark.parametrize("count", [0, 129])
def test_continuations_that_cannot_be_scored_are_errors(count: int) -> None:
    with pytest.raises(DataError, match="no tokens of its own|longer than the 128"):
        continuation.encode(tiny_lm("decoder"), "the cat", " dog" * count)


def test_an_encoder_continues_nothing() -> None:
    with pytest.raises(MissingPower, match="classification head"):
        continuation.encode(tiny_lm("encoder"), "the", " cat")


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
def test_predictions_are_the_models_own(family: str) -> None:
    from tunesmith import generate

    lm = tiny_lm(family)  # type: ignore[arg-type]
    generation = Greedily(max_new_tokens=5, sampler=samplers.create("temperature", temperature=1.5))
    found = evaluate(
        lm, examples(), [metric("rouge"), metric("exact_match")], generation=generation, runtime=OFFLINE, seed=4
    )
    alone = generate(
        lm, [examples()[3].prompt], ids=["e3"], sampler=generation.sampler, max_new_tokens=5, seed=4, runtime=OFFLINE
    )
    assert found.predictions[3].text == alone[0].text
    assert found.results["rouge"].n == 6
    assert found.results["rouge"].main.low is not None


def test_latency_is_of_single_requests_and_changes_no_text() -> None:
    lm = tiny_lm("decoder")
    generation = Greedily(max_new_tokens=4)
    timed = evaluate(lm, examples(), [metric("latency")], generation=generation, runtime=OFFLINE)
    plain = evaluate(lm, examples(), [metric("exact_match")], generation=generation, runtime=OFFLINE)
    assert [p.text for p in timed.predictions] == [p.text for p in plain.predictions]
    assert timed.results["latency"].main.value > 0


@torch.no_grad()
def test_a_classifier_whose_tokenizer_cannot_pad_is_asked_text_by_text() -> None:
    lm = tiny_lm("decoder", head="classification", labels=("yes", "no"))
    lm.tokenizer.pad_token = None
    found, cut = classification.probabilities(lm, TEXTS, OFFLINE)
    assert cut == 0
    for text, row in zip(TEXTS, found, strict=True):
        logits = lm.model(torch.tensor([lm.tokenizer.encode(text)])).logits[0]
        assert row == pytest.approx(logits.double().softmax(-1).tolist())


def test_texts_are_cut_at_the_positions_that_are_left_behind_the_padding_id() -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    tokenizer = tiny_lm("encoder").tokenizer
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, max_position_embeddings=34, **sizes
    )
    lm = LM(model=RobertaForSequenceClassification(config), tokenizer=tokenizer, family="encoder")
    assert continuation.positions(lm) == 33 - tokenizer.pad_token_id
    assert classification.probabilities(lm, ["cat " * 60], OFFLINE)[1] == 1


@pytest.mark.parametrize("kind", ["Roberta", "Data2VecText", "Xmod", "MPNet", "IBert", "Bert"])
@torch.no_grad()
def test_models_read_as_many_tokens_as_are_said_to_be_readable_and_no_more(kind) -> None:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=51, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=40, pad_token_id=1, languages=["en_XX"], default_language="en_XX",
    )  # fmt: skip
    model = getattr(transformers, f"{kind}Model")(config).eval()
    room = continuation.readable(model, None)
    assert room == (40 if kind == "Bert" else 38)
    assert model(torch.full((1, room), 7)).last_hidden_state.shape[1] == room
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, room + 1), 7))


def test_a_classifier_is_asked_for_its_classes() -> None:
    lm = tiny_lm("encoder", head="classification", labels=("no", "yes"))
    asked = [Example(id=str(i), prompt=t, columns={"label": ("no", "yes")[i % 2]}) for i, t in enumerate(TEXTS)]
    found = evaluate(lm, asked, [metric("accuracy", of="classes"), metric("ece", of="classes")], runtime=OFFLINE)
    with torch.no_grad():
        said = [int(lm.model(**lm.tokenizer(t, return_tensors="pt")).logits.argmax()) for t in TEXTS]
    assert found.results["accuracy"].main.value == pytest.approx(sum(s == i % 2 for i, s in enumerate(said)) / 6)


def test_groups_of_records_resample_together() -> None:
    grouped = [Example(id=e.id, prompt=e.prompt, targets=e.targets, columns={"group": e.id < "e3"}) for e in examples()]
    found = evaluate(tiny_lm("decoder"), grouped, [metric("perplexity")], runtime=OFFLINE)
    assert found.results["perplexity"].clusters == 1 + 3


def test_cut_prompts_are_counted() -> None:
    long = [*examples(count=3), Example(id="long", prompt="cat " * 200, targets=("dog",))]
    found = evaluate(
        tiny_lm("decoder"), long, [metric("exact_match")], generation=Greedily(max_new_tokens=4), runtime=OFFLINE
    )
    assert found.truncated == {"prompts": 1}


def test_two_metrics_of_one_kind_have_two_names() -> None:
    found = evaluate(
        tiny_lm("decoder"), examples(), [metric("perplexity"), metric("perplexity", per="byte")], runtime=OFFLINE
    )
    assert list(found.results) == ["perplexity", "perplexity-byte"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [("accuracy", {"of": "choices"}, "Benchmark stage"), ("accuracy", {"of": "classes"}, "classification head")],
)
def test_columns_that_cannot_be_made_say_what_to_do(name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(tiny_lm("decoder"), examples(), [metric(name, **options)], runtime=OFFLINE)


def test_a_metric_with_a_reward_of_several_models_is_measured(tmp_path: Path) -> None:
    """Its config holds a mapping, so it has no hash."""
    tiny_lm("decoder").save(tmp_path)
    mixed = "reward(model=mix(models={short: length_penalty(most=1), plain: repetition_penalty}))"
    found = evaluate(str(tmp_path), examples(), [mixed], generation=Greedily(max_new_tokens=2), runtime=OFFLINE)
    assert found.results["reward"].n == 6


@pytest.mark.parametrize(("options", "message"), [
    ({"confidence": 95}, "confidence is a level between 0 and 1, as 0.95, and not 95"),
    ({"confidence": "95%"}, "confidence: a number was expected"),
    ({"resamples": -1}, "resamples must be at least 0, not -1"),
    ({"resamples": 1e3}, "resamples: a whole number was expected"),
])  # fmt: skip
def test_levels_and_resamples_that_cannot_be_are_refused_before_a_model_is_read(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate("no-model", examples(), ["rouge"], **options)


def test_examples_with_one_id_are_refused() -> None:
    twice = [Example(id="x", prompt="the"), Example(id="y", prompt="a"), Example(id="x", prompt="dog")]
    with pytest.raises(ConfigError, match="2 examples have the id 'x'; give every example an id of its own"):
        evaluate(tiny_lm("decoder"), twice, [metric("latency")], runtime=OFFLINE)


def test_examples_without_references_are_named() -> None:
    with pytest.raises(DataError, match="'x' has no reference"):
        evaluate(tiny_lm("decoder"), [Example(id="x", prompt="the")], [metric("exact_match")], runtime=OFFLINE)


@pytest.fixture
def two(tmp_path: Path):
    """Evaluations of two models on the same examples."""
    generation = Greedily(max_new_tokens=5)
    return [
        evaluate(
            tiny_lm("decoder", seed=s),
            examples(),
            [metric("perplexity"), metric("rouge")],
            generation=generation,
            runtime=OFFLINE,
        )
        for s in (0, 1)
    ]


def test_the_artifact_is_as_the_contract_says(two, tmp_path: Path) -> None:
    write_scores(tmp_path / "one", two[0])
    compared = write_scores(tmp_path / "two", two[1], versus=tmp_path / "one", label="tuned", versus_label="base")
    records = json.loads((tmp_path / "two" / "scores.json").read_text())
    assert [r["name"] for r in records] == ["perplexity", "rouge"]
    assert {"name", "signature", "n", "scores", "versus"} <= set(records[0])
    assert set(records[0]["scores"]["perplexity"]) == {"value", "low", "high"}
    assert records[0]["versus"]["perplexity"]["p_adjusted"] >= records[0]["versus"]["perplexity"]["p"]
    assert records[0]["n"] == 6
    assert read_tables(tmp_path / "two")["rouge"].equals(two[1].tables["rouge"])
    shown = read(tmp_path / "two")
    assert len(compared) == 2
    assert any(v.startswith("tuned, perplexity: ") and "base" in v for v in shown.verdicts)
    assert [row[0] for row in shown.tables[0].rows[:2]] == ["perplexity", "perplexity"]
    assert shown.samples[0].rows[0]["prompt"] == examples()[0].prompt
    assert json.loads((tmp_path / "one" / "scores.json").read_text())[0]["versus"] is None


def test_generations_are_written_beside_references(two, tmp_path: Path) -> None:
    write_generations(tmp_path, two[0], "greedy")
    lines = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [p.text for p in two[0].predictions]
    assert set(lines[0]) == {"id", "prompt", "sampler", "stream", "text", "token_ids", "logp", "finish", "references"}


def test_comparisons_of_other_examples_or_metrics_are_refused(two, tmp_path: Path) -> None:
    fewer = evaluate(tiny_lm("decoder"), examples(count=4), [metric("perplexity")], runtime=OFFLINE)
    with pytest.raises(DataError, match="same examples"):
        fewer.compare(two[0])
    other = evaluate(
        tiny_lm("decoder"), examples(), [metric("token_f1")], generation=Greedily(max_new_tokens=2), runtime=OFFLINE
    )
    with pytest.raises(ConfigError, match="no metric in common"):
        other.compare(two[0])


def test_a_score_of_other_tokens_is_left_out_of_a_comparison_and_the_report_says_so(two, tmp_path: Path) -> None:
    table = two[0].tables["perplexity"]
    assert table.vocabulary == two[1].tables["perplexity"].vocabulary != ""
    other = evolve(two[0], tables={**two[0].tables, "perplexity": evolve(table, vocabulary="other")})
    compared = write_scores(tmp_path / "one", two[1], versus=other, label="tuned", versus_label="base")
    assert list(compared) == ["rouge"]
    assert any("perplexity: not comparable with base" in sentence for sentence in read(tmp_path / "one").verdicts)
    alone = evolve(other, tables={"perplexity": other.tables["perplexity"]})
    with pytest.raises(DataError, match="different vocabularies"):
        two[1].compare(alone)
    write_scores(tmp_path / "two", two[1], versus=two[0])
    assert not any("not comparable" in sentence for sentence in read(tmp_path / "two").verdicts)


def test_tokens_added_for_padding_or_chats_make_no_other_vocabulary() -> None:
    tokenizer = tiny_lm("decoder").tokenizer
    before = vocabulary_of(tokenizer)
    tokenizer.add_tokens(["<|turn|>"], special_tokens=True)
    assert len(tokenizer) > tokenizer.vocab_size
    assert vocabulary_of(tokenizer) == before
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2}, unk_token="[UNK]"))
    assert vocabulary_of(PreTrainedTokenizerFast(tokenizer_object=words)) != before


def test_damaged_scores_are_an_error(two, tmp_path: Path) -> None:
    write_scores(tmp_path, two[0])
    (tmp_path / "rows" / "rouge.jsonl").write_text("")
    with pytest.raises(ArtifactError, match="evaluate again"):
        read_tables(tmp_path)


def test_rows_outside_the_folder_are_not_read(two, tmp_path: Path) -> None:
    write_scores(tmp_path / "a", two[0])
    records = json.loads((tmp_path / "a" / "scores.json").read_text())
    (tmp_path / "a" / "scores.json").write_text(json.dumps([{**records[0], "name": "../../secret"}]))
    with pytest.raises(ArtifactError, match="outside"):
        read_tables(tmp_path / "a")


def test_an_interrupted_evaluation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second block fails; what the first wrote is not written again, and the end is that of one go."""
    import tunesmith.generation

    monkeypatch.setattr("tunesmith.evaluation.columns.BLOCK", 2)
    runtime = Runtime(offline=True, progress=False, folder=tmp_path)
    calls: list[list[str]] = []
    real = tunesmith.generation.generate

    def counted(lm, prompts, **options):
        calls.append(list(options["ids"]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(lm, prompts, **options)

    monkeypatch.setattr("tunesmith.generation.generate", counted)
    lm, wanted = tiny_lm("decoder"), [metric("rouge")]
    with pytest.raises(KeyboardInterrupt):
        evaluate(lm, examples(), wanted, generation=Greedily(max_new_tokens=3), runtime=runtime)
    found = evaluate(lm, examples(), wanted, generation=Greedily(max_new_tokens=3), runtime=runtime)
    assert calls == [["e0", "e1"], ["e2", "e3"], ["e2", "e3"], ["e4", "e5"]]
    whole = evaluate(lm, examples(), wanted, generation=Greedily(max_new_tokens=3), runtime=OFFLINE)
    assert found.tables["rouge"].equals(whole.tables["rouge"])
    evaluate(tiny_lm("decoder", seed=9), examples(), wanted, generation=Greedily(max_new_tokens=3), runtime=runtime)
    assert len(calls) == 10, "another model must not get this one's texts"


def test_models_and_metrics_may_be_named_as_on_the_command_line(tmp_path: Path) -> None:
    lm = tiny_lm("decoder")
    lm.save(tmp_path)
    named = evaluate(str(tmp_path), examples(), ["rouge(types=['1'])"], generation=Greedily(max_new_tokens=3))
    built = evaluate(lm, examples(), [metric("rouge", types=("1",))], generation=Greedily(max_new_tokens=3))
    assert named.tables["rouge"].equals(built.tables["rouge"])
    once = evaluate(lm, iter(examples()), [metric("rouge", types=("1",))], generation=Greedily(max_new_tokens=3))
    assert once.tables["rouge"].equals(built.tables["rouge"])
    tiny_lm("encoder", head="classification", labels=("no", "yes")).save(tmp_path / "classes")
    labelled = [evolve(example, targets=("yes",)) for example in examples()]
    assert set(evaluate(tmp_path / "classes", labelled, "accuracy(of='classes')").results) == {"accuracy"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a text"], "item 0 is no tunesmith.Example but str"),
        ("a text", "a list of examples was expected, .* not one text"),
        (Example(id="0", prompt="a"), "a list of examples was expected, .* not one example"),
        (Data(source="x.jsonl"), "a list of examples was expected, as tunesmith.data.load_examples returns, not Data"),
    ],
)
def test_what_is_no_list_of_examples_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        evaluate(tiny_lm("decoder"), given, ["rouge"])


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    tiny_lm("decoder").save(tmp_path / "model")
    lines = [json.dumps({"q": t, "a": TEXTS[(i + 1) % 6]}) for i, t in enumerate(TEXTS)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "model"), str(tmp_path / "data.jsonl")


def run(*arguments: str):
    return CliRunner().invoke(command, arguments, catch_exceptions=False)


def test_the_command_prints_scores_with_intervals(files: tuple[str, str], tmp_path: Path) -> None:
    model, data = files
    common = [
        model,
        "--data",
        data,
        "--prompt",
        "{q} :",
        "--target",
        "{a}",
        "--metric",
        "rouge(types=['1'])",
        "--max-new-tokens",
        "4",
    ]
    first = run(*common, "--metric", "perplexity", "--out", str(tmp_path / "out"))
    assert first.exit_code == 0, first.output
    assert "rouge1" in first.output
    assert "n = 6, perplexity|per:token" in first.output
    second = run(*common, "--metric", "perplexity", "--versus", str(tmp_path / "out"))
    assert second.output.count("no effect seen against the earlier evaluation") == 2
    own = ["--sampler", "model", "--decoder", "model"]  # what the model's generation config says
    as_json = json.loads(run(*common, *own, "--items", "3", "--json").output)
    assert as_json["scores"]["rouge"]["n"] == 3


def test_the_command_finds_wrong_places_before_it_reads_anything(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    common = ["no-model", "--data", "./no-data", "--metric", "rouge"]
    with pytest.raises(ConfigError, match="taken is a file, and scores are written to a folder.*@ --out"):
        run(*common, "--out", str(tmp_path / "taken" / "in"))
    with pytest.raises(ArtifactError, match="holds no scores"):
        run(*common, "--versus", str(tmp_path))
    with pytest.raises(DataError, match="no-data"):
        run(*common, "-o", str(tmp_path / "new" / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]  # what was tried left nothing behind


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="where the superuser cannot write is not known here")
@pytest.mark.parametrize("place", ["/proc/scores", "/proc/1/scores/new", "/proc"])
def test_the_command_finds_places_that_cannot_be_written_to_before_it_reads_anything(place: str) -> None:
    with pytest.raises(ConfigError, match=f"{place} cannot be written to .*give another folder @ --out"):
        run("no-model", "--data", "./no-data", "--metric", "rouge", "--out", place)


def test_the_command_finds_wrong_templates_before_it_reads_anything() -> None:
    with pytest.raises(ConfigError, match=r"'prompt' is no usable template: '{' at character 1"):
        run("no-model", "--data", "./no-data", "--metric", "rouge", "--prompt", "{q")


def test_the_command_finds_wrong_names_before_it_reads_anything() -> None:
    with pytest.raises(ConfigError, match="Did you mean rouge"):
        run("no-model", "--data", "no-data", "--metric", "rougr")

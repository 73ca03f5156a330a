"""What compressors read when they calibrate: any head, texts as they are, nothing longer than the model can read."""

import pytest
import torch
import transformers

from tunesmith.data.encoding import IGNORED
from tunesmith.data.records import Example
from tunesmith.errors import ConfigError, DataError, NumericError
from tunesmith.lm import LM, load
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors import GPTQ, Int8, Int8Static, Magnitude, SmoothQuant, SparseGPT, Structured, Wanda
from tunesmith_plugins.compressors.prune_calibration import attention_kept, decoder_ids, forward, most_tokens, reading

RUNTIME = Runtime(progress=False)
CALIBRATED = [
    Int8Static(), SmoothQuant(), GPTQ(), Wanda(), SparseGPT(block_size=32), Structured(ffn=0.5, score="activation"),
]  # fmt: skip
SMALL = {"vocab_size": 30, "pad_token_id": 0, "max_position_embeddings": 16}
BERT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, **SMALL}
SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "decoder_start_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    **SMALL,
}  # fmt: skip
LONG = [Example(id=str(i), prompt="a b c d e f g " * (i + 2), targets=("h i j " * (i + 6),)) for i in range(3)]


def encoder(make, head):
    torch.manual_seed(0)
    model = head(transformers.BertConfig(**BERT)).eval()
    return LM(model=model, tokenizer=make("bert").tokenizer, family="encoder")


def seen_by(lm):
    """Return a list that all inputs of the model come to stand in."""
    seen = []

    def look(_, positional, named):
        seen.append((named["input_ids"], named))

    lm.model.register_forward_pre_hook(look, with_kwargs=True)
    return seen


@pytest.mark.parametrize("compressor", CALIBRATED, ids=lambda c: type(c).__name__)
@pytest.mark.parametrize(
    "head",
    [
        transformers.BertForMaskedLM,
        transformers.BertForSequenceClassification,
        transformers.BertForTokenClassification,
        transformers.BertModel,
    ],
    ids=lambda head: head.__name__,
)
def test_encoders_of_every_head_read_their_texts_as_they_are(make, head, compressor):
    lm = encoder(make, head)
    seen = seen_by(lm)
    data = [Example(id=str(i), prompt="a b c d e f", targets=("g",)) for i in range(4)]
    small, _ = compressor.build().compress(lm, data=data, runtime=RUNTIME)
    text = "a b c d e f" if head is transformers.BertForSequenceClassification else "a b c d e fg"
    expected = lm.tokenizer(text)["input_ids"]
    assert seen
    assert all(row == expected for ids, _ in seen for row in ids.tolist())
    assert not any("labels" in named for _, named in seen)
    assert torch.isfinite(small.model(input_ids=torch.tensor([expected]))[0]).all()


@pytest.mark.parametrize("compressor", CALIBRATED[:5], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("kind", ["bert", "pegasus", "bart"])
def test_texts_are_cut_to_what_the_model_reads(make, kind, compressor):
    if kind == "bert":
        lm = encoder(make, transformers.BertForMaskedLM)
    else:
        config = {"pegasus": transformers.PegasusConfig, "bart": transformers.BartConfig}[kind](**SEQ2SEQ)
        model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
        lm = LM(model=model, tokenizer=make("t5").tokenizer, family="encoder-decoder")
    seen = seen_by(lm)
    compressor.build().compress(lm, data=LONG, runtime=RUNTIME)
    assert max(ids.shape[1] for ids, _ in seen) == 16
    assert max(named.get("decoder_input_ids", ids).shape[1] for ids, named in seen) == 16


def test_an_encoder_decoder_without_a_head_reads_the_targets_shifted(make):
    model = transformers.BartModel(transformers.BartConfig(**SEQ2SEQ)).eval()
    lm = LM(model=model, tokenizer=make("t5").tokenizer, family="encoder-decoder")
    seen = seen_by(lm)
    Int8Static().build().compress(lm, data=[Example(id="0", prompt="a b", targets=("c d",))], runtime=RUNTIME)
    target = lm.tokenizer("c d")["input_ids"]
    assert seen[0][1]["decoder_input_ids"].tolist() == [[0, *target]]


def test_what_a_decoder_reads_needs_tokens_that_the_config_names():
    """M2M100 has no method of its own that tells; padding is asked for only where there is some."""
    model = transformers.M2M100ForConditionalGeneration(transformers.M2M100Config(**SEQ2SEQ))
    whole, padded = torch.tensor([[4, 5, 6]]), torch.tensor([[4, IGNORED, IGNORED]])
    model.config.decoder_start_token_id = 3
    assert decoder_ids(model, whole).tolist() == [[3, 4, 5]]
    assert decoder_ids(model, padded).tolist() == [[3, 4, 0]]
    model.config.pad_token_id = None
    assert decoder_ids(model, whole).tolist() == [[3, 4, 5]]
    with pytest.raises(ConfigError, match=r"m2m_100 .*set model.config.pad_token_id @ pad_token_id"):
        decoder_ids(model, padded)
    model.config.decoder_start_token_id = None
    with pytest.raises(
        ConfigError, match=r"m2m_100 .*set model.config.decoder_start_token_id @ decoder_start_token_id"
    ):
        decoder_ids(model, whole)


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_data_that_gives_nothing_is_told_with_what_to_do(make, kind):
    lm = make(kind)
    if kind == "bert":  # special tokens alone are never masked, so nothing is to be predicted
        text, rule, told = (
            lm.tokenizer.eos_token,
            Structured(ffn=0.5, score="gradient"),
            "^score=.gradient.: .*none of 1 rows has.*",
        )
    else:
        text, rule, told = "", Wanda(), "^Wanda: .*all texts are empty.*"
    with pytest.raises(DataError, match=told + "Give "):
        rule.build().compress(lm, data=[Example(id="0", prompt="", targets=(text,))], runtime=RUNTIME)


BLOCKS = {"block_size": 4, "num_random_blocks": 1, "max_position_embeddings": 256}


def sparse(make, kind):
    """Return a BigBird or BigBird-Pegasus, which read texts of more than 28 tokens in blocks."""
    torch.manual_seed(0)
    if kind == "big_bird":
        config = transformers.BigBirdConfig(**{**BERT, **BLOCKS})
        return LM(
            model=transformers.BigBirdForMaskedLM(config).eval(), tokenizer=make("bert").tokenizer, family="encoder"
        )
    config = transformers.BigBirdPegasusConfig(**{**SEQ2SEQ, **BLOCKS})
    model = transformers.BigBirdPegasusForConditionalGeneration(config).eval()
    return LM(model=model, tokenizer=make("t5").tokenizer, family="encoder-decoder")


@pytest.mark.parametrize("compressor", [Int8(), *CALIBRATED[:5]], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("kind", ["big_bird", "bigbird_pegasus"])
def test_attention_in_blocks_is_still_that_after_short_texts(make, tmp_path, kind, compressor):
    lm = sparse(make, kind)
    kinds = [module.attention_type for module in lm.model.modules() if hasattr(module, "set_attention_type")]
    assert set(kinds) == {"block_sparse"}
    data = [Example(id=str(i), prompt="a b c d e f", targets=("g",)) for i in range(4)]
    small, _ = compressor.build().compress(lm, data=data, runtime=RUNTIME)
    assert kinds == [module.attention_type for module in small.model.modules() if hasattr(module, "set_attention_type")]
    small.save(tmp_path)
    ids = torch.randint(4, 30, (1, 64), generator=torch.Generator().manual_seed(0))
    extra = {"decoder_input_ids": ids[:, :5]} if kind == "bigbird_pegasus" else {}
    with torch.no_grad():
        found, again = (one.model(input_ids=ids, **extra).logits for one in (small, load(tmp_path)))
    assert torch.equal(found, again)


@pytest.mark.parametrize("kind", ["big_bird", "bigbird_pegasus"])
def test_reading_draws_no_random_numbers(make, kind):
    """Putting attention back makes layers with random weights."""
    lm, before = sparse(make, kind), torch.get_rng_state()
    ids = torch.tensor([[4, 5, 6]])
    with reading(lm):
        forward(lm.model, {"input_ids": ids, "labels": ids})
    assert torch.equal(torch.get_rng_state(), before)
    with attention_kept(lm.model), torch.random.fork_rng(devices=[]), lm.evaluating():
        forward(lm.model, {"input_ids": ids, "labels": ids})
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("compressor", CALIBRATED, ids=lambda c: type(c).__name__)
def test_a_decoder_reads_prompts_that_nobody_has_answered(make, compressor):
    lm = make("llama")
    seen = seen_by(lm)
    data = [
        Example(id="0", prompt="a b c"),
        Example(id="1", prompt="d e", targets=("f g",)),
        Example(id="2", prompt=""),
    ]
    compressor.build().compress(lm, data=data, runtime=RUNTIME)
    read = {tuple(row) for ids, _ in seen for row in ids.tolist()}
    assert {row for row in read if len(row) < 20} == {(4, 5, 6, 1), (7, 8, 9, 10, 1), (1,)}


def test_relative_positions_have_no_limit(make):
    lm = make("t5")
    lm.model.config.n_positions = 8  # what files of T5 say it was trained at
    assert most_tokens(lm, 512) == 512
    assert most_tokens(make("gpt2"), 512) == 64


@pytest.mark.parametrize("compressor", [*CALIBRATED, Int8(), Magnitude()], ids=lambda c: type(c).__name__)
def test_a_teacher_is_refused_where_nobody_learns_from_it(make, compressor):
    built = compressor.build()
    assert not built.uses_teacher
    with pytest.raises(ConfigError, match="learns from no teacher"):
        built.compress(make("gpt2"), data=LONG, teacher=make("gpt2"), runtime=RUNTIME)


@pytest.mark.parametrize("compressor", CALIBRATED, ids=lambda c: type(c).__name__)
def test_inputs_that_are_no_numbers_are_an_error(make, compressor):
    lm = make("gpt2")
    lm.model.transformer.h[2].ln_1.weight.data[3] = float("nan")
    with pytest.raises(NumericError):
        compressor.build().compress(lm, data=LONG, runtime=RUNTIME)


@pytest.mark.parametrize(
    "compressor",
    [
        Magnitude(),
        Magnitude(scope="global"),
        Wanda(),
        SparseGPT(block_size=32),
        Structured(ffn=0.5),
        Structured(layers=0.5),
    ],
    ids=str,
)
def test_weights_that_are_no_numbers_are_not_pruned_by_size(make, compressor):
    lm = make("gpt2")
    lm.model.transformer.h[2].mlp.c_fc.weight.data[3, 5] = float("nan")
    before = lm.model.transformer.h[0].mlp.c_fc.weight.clone()
    with pytest.raises(NumericError):
        compressor.build().compress(lm, data=LONG, runtime=RUNTIME)
    assert torch.equal(lm.model.transformer.h[0].mlp.c_fc.weight, before)

"""Models made of another one's layers: types of their weights, and layers that compute what they did."""

import copy

import pytest
import torch
import transformers
from attrs import evolve
from torch import nn

from tunesmith.data.records import Example
from tunesmith.errors import ConfigError
from tunesmith.lm import LM, load
from tunesmith.runtime import Runtime
from tunesmith_plugins.adapters import LoRA, QuantizationAware
from tunesmith_plugins.compressors import GPTQ, Distill, Int8, Int8WeightOnly, Magnitude, Structured, Wanda
from tunesmith_plugins.compressors.student import every_nth, from_config

IDS = torch.tensor([[4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]])
SIZES = {"vocab_size": 30, "hidden_size": 32, "num_attention_heads": 4, "pad_token_id": 0, "eos_token_id": 1}
RUNTIME = Runtime(progress=False)


def logits(model):
    extra = {"decoder_input_ids": IDS[:, :4]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=IDS, **extra).logits


def wide(model):
    """Let the layers of a fresh model matter."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0, 0.3)
    return model.eval()


MAKERS = {
    "every_nth": lambda lm: every_nth(lm, 2),
    "from_config": lambda lm: from_config(lm, {"intermediate_size" if lm.family == "decoder" else "d_ff": 32}),
    "structured": lambda lm: Structured(ffn=0.5).build().compress(lm, runtime=RUNTIME)[0],
}


@pytest.mark.parametrize(
    ("kind", "dtype", "how"),
    [
        ("llama", "bfloat16", "every_nth"), ("llama", "bfloat16", "from_config"), ("llama", "bfloat16", "structured"),
        ("t5", "float16", "every_nth"), ("t5", "float16", "structured"),
    ],
)  # fmt: skip
def test_a_new_model_in_half_precision_is_the_one_that_loads_back(make, tmp_path, kind, dtype, how):
    """Rotary frequencies stay float32, as do the layers that T5 keeps so in float16."""
    runtime = Runtime(dtype=dtype)
    lm = make(kind)
    wide(lm.model)
    lm.save(tmp_path / "large")
    large = load(tmp_path / "large", runtime=runtime)
    small = MAKERS[how](large)
    assert small.model.dtype == large.model.dtype != torch.float32
    small.save(tmp_path / "small")
    again = load(tmp_path / "small", runtime=runtime)
    assert torch.equal(logits(again.model), logits(small.model))


def test_kinds_of_layers_go_with_their_layers(tmp_path):
    """GPT-Neo's windows and SmolLM3's layers without rotary positions; both are lists by layer in the config."""
    neo = transformers.GPTNeoConfig(
        **{**SIZES, "num_heads": 4}, num_layers=4, attention_types=[[["global", "local"], 2]], window_size=3
    )
    smol = transformers.SmolLM3Config(
        **SIZES, num_hidden_layers=4, num_key_value_heads=2, intermediate_size=64, no_rope_layers=[1, 1, 0, 0]
    )
    for kind, model in (
        ("neo", transformers.GPTNeoForCausalLM(neo)),
        ("smol", transformers.SmolLM3ForCausalLM(smol)),
    ):
        lm = LM(model=wide(model), tokenizer=None, family="decoder")
        student = every_nth(lm, 2).model
        layers = lm.model.transformer.h if kind == "neo" else lm.model.model.layers
        for layer in (layers[1], layers[3]):
            layer.forward = (lambda hidden, *_, **__: (hidden,)) if kind == "neo" else (lambda hidden, *_, **__: hidden)
        assert torch.allclose(logits(student), logits(lm.model), atol=1e-5)
        student.save_pretrained(tmp_path / kind)
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / kind)
        assert torch.equal(logits(again), logits(student))


def test_layers_that_compute_by_their_number_stay_where_they_are(make):
    config = transformers.GPT2Config(
        vocab_size=30, n_embd=32, n_layer=4, n_head=4, scale_attn_by_inverse_layer_idx=True
    )
    lm = LM(model=transformers.GPT2LMHeadModel(config), tokenizer=make("gpt2").tokenizer, family="decoder")
    with pytest.raises(ConfigError, match=r"'scaling' follows from a layer's number.*@ keep_every"):
        every_nth(lm, 2)
    with pytest.raises(ConfigError, match=r"'scaling' follows from a layer's number.*@ layers"):
        Structured(layers=0.5).build().compress(lm, runtime=RUNTIME)
    small, _ = Structured(ffn=0.5).build().compress(lm, runtime=RUNTIME)  # where none goes, all is well
    assert small.model.config.n_inner == 64


SEQ2SEQ = {
    "vocab_size": 30, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "decoder_start_token_id": 1, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}  # fmt: skip


@pytest.mark.parametrize("how", ["every_nth", "from_config"])
@pytest.mark.parametrize("kind", ["XGLMForCausalLM", "OpenAIGPTLMHeadModel", "MambaForCausalLM"])
def test_students_of_models_in_half_precision_are_trained_whatever_their_files_leave_out(make, tmp_path, kind, how):
    """XGLM's sines and GPT's mask are in no file; Mamba's logits are float32 in a bfloat16 model."""
    made = getattr(transformers, kind)
    sizes = (
        {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48}
        if kind[:4] == "XGLM"
        else {"hidden_size": 32}
    )
    sizes |= (
        {"n_layer": 2, "n_head": 4} if kind[:4] == "Open" else {"num_hidden_layers": 2} if kind[:5] == "Mamba" else {}
    )
    sizes |= {"vocab_size": 30, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    wide(made(made.config_class(**sizes))).save_pretrained(tmp_path)
    model = made.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    lm = LM(model=model, tokenizer=make("gpt2").tokenizer, family="decoder")
    student = {"keep_every": 2} if how == "every_nth" else {"student": {"num_hidden_layers": 1}}
    data = [Example(id=str(i), prompt="a b", targets=("c d e",)) for i in range(2)]
    small, report = Distill(steps=1, batch_size=2, **student).build().compress(lm, data=data, runtime=RUNTIME)
    assert small.model.dtype == torch.bfloat16
    assert logits(small.model).isfinite().all()
    assert torch.tensor(report.summary["loss"]).isfinite().all()


@pytest.mark.parametrize(
    ("kind", "sizes", "depths"),
    [
        ("MambaForCausalLM", {"vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 4, "state_size": 4}, {"num_hidden_layers": 2}),
        (
            "LEDForConditionalGeneration",
            {
                **SEQ2SEQ, "d_model": 32, "encoder_layers": 4, "decoder_layers": 2, "encoder_attention_heads": 4,
                "decoder_attention_heads": 4, "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64,
                "attention_window": [4, 8, 8, 4],
            },
            {"encoder_layers": 2, "decoder_layers": 1, "attention_window": [4, 8]},
        ),
        (
            "ProphetNetForConditionalGeneration",
            {
                **SEQ2SEQ, "hidden_size": 32, "num_encoder_layers": 4, "num_decoder_layers": 2, "num_encoder_attention_heads": 4,
                "num_decoder_attention_heads": 4, "max_position_embeddings": 64,
            },
            {"num_encoder_layers": 2, "num_decoder_layers": 1},
        ),
    ],
    ids=["mamba", "led", "prophetnet"],
)  # fmt: skip
def test_depths_that_lists_or_other_fields_say_too(make, kind, sizes, depths):
    cls = getattr(transformers, kind)
    family = "decoder" if kind.startswith("Mamba") else "encoder-decoder"
    lm = LM(model=cls(cls.config_class(**sizes)).eval(), tokenizer=make("t5").tokenizer, family=family)
    student = every_nth(lm, 2)
    assert {name: getattr(student.model.config, name) for name in depths} == depths
    source = lm.model.state_dict()
    for name, tensor in student.model.state_dict().items():
        second = name.replace("layers.1.", "layers.2.")  # the second layer is the third one of the model
        assert torch.equal(tensor, source[second]), name
    assert torch.isfinite(logits(student.model)).all()


def test_an_output_layer_that_shows_a_part_of_what_it_makes_is_told_of_chunks(make):
    sizes = {
        **SEQ2SEQ, "hidden_size": 32, "num_encoder_layers": 1, "num_decoder_layers": 1, "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4, "max_position_embeddings": 64,
    }  # fmt: skip
    model = transformers.ProphetNetForConditionalGeneration(transformers.ProphetNetConfig(**sizes)).eval()
    lm = LM(model=model, tokenizer=make("t5").tokenizer, family="encoder-decoder")
    data = [Example(id=str(n), prompt="a b c", targets=("d e",)) for n in range(2)]
    with pytest.raises(ConfigError, match="set chunk=0"):
        Distill(steps=1).build().compress(lm, data=data, runtime=RUNTIME)
    _, report = Distill(steps=1, chunk=0).build().compress(lm, data=data, runtime=RUNTIME)
    assert report.summary["steps"] == 1


def test_depths_that_the_config_does_not_explain_are_an_error_with_its_reason(make):
    class Odd(transformers.LlamaForCausalLM):
        def __init__(self, config):
            if config.num_hidden_layers < 4:
                raise ValueError("'pattern' says 4 layers")
            super().__init__(config)

    config = transformers.LlamaConfig(**SIZES, num_hidden_layers=4, num_key_value_heads=2, intermediate_size=64)
    lm = LM(model=Odd(config), tokenizer=None, family="decoder")
    with pytest.raises(
        ConfigError, match="with fewer layers cannot be made by changing num_hidden_layers.*'pattern' says 4"
    ):
        every_nth(lm, 2)


def test_a_student_without_the_layers_that_its_architecture_needs_is_refused():
    config = transformers.Lfm2Config(
        **SIZES, num_hidden_layers=4, num_key_value_heads=2, layer_types=["conv", "full_attention"] * 2
    )
    lm = LM(model=transformers.Lfm2ForCausalLM(config), tokenizer=None, family="decoder")
    with pytest.raises(ConfigError, match="no layer of the kind 'full_attention' would stay.*does not run"):
        every_nth(lm, 2)
    assert every_nth(lm, 1).model.config.layer_types == config.layer_types


@pytest.mark.parametrize("kind", ["DistilBertForMaskedLM", "MptForCausalLM"])
def test_depths_under_other_names(kind):
    sizes = {"dim": 32, "hidden_dim": 64} if kind.startswith("Distil") else {"d_model": 32}
    config = getattr(transformers, kind).config_class(vocab_size=30, n_layers=4, n_heads=4, **sizes)
    model = getattr(transformers, kind)(config)
    student = every_nth(LM(model=model, tokenizer=None, family="encoder"), 2)
    assert student.model.config.n_layers == 2
    assert student.parameter_count() < LM(model=model, tokenizer=None, family="encoder").parameter_count()


def rwkv(make, used=False):
    """Return an RWKV that divides the weights of its blocks from the third on once it is run in evaluation, and by 4 from the fifth on."""
    torch.manual_seed(0)
    config = transformers.RwkvConfig(
        vocab_size=30, hidden_size=32, attention_hidden_size=32, num_hidden_layers=6, context_length=64, rescale_every=2
    )
    model = transformers.RwkvForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    model.config.architectures = ["RwkvForCausalLM"]
    if used:
        whole = model.rwkv.blocks[5].attention.output.weight.clone()
        logits(model)
        assert not torch.equal(model.rwkv.blocks[5].attention.output.weight, whole)
    return evolve(make("llama"), model=model)


def test_in_float16_inputs_are_divided_and_weights_stay_whole(make, tmp_path):
    """By as much as transformers divides the weights; what passes from block to block is halved as there."""
    rwkv(make).model.save_pretrained(tmp_path)
    theirs, ours = (
        transformers.RwkvForCausalLM.from_pretrained(tmp_path, dtype=torch.float16).eval() for _ in range(2)
    )
    expected = logits(theirs)
    assert not torch.equal(theirs.rwkv.blocks[5].attention.output.weight, ours.rwkv.blocks[5].attention.output.weight)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    lm = evolve(make("llama"), model=ours)
    sizes = []
    for index, block in enumerate(ours.rwkv.blocks):
        block.register_forward_hook(lambda _, __, outputs, index=index: sizes.append(float(outputs[0].norm())))
    found = logits(ours)
    assert torch.allclose(found, expected, rtol=0.01, atol=0.01)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    halved = sizes.copy()
    sizes.clear()
    whole = logits(evolve(lm, model=ours.float()).model)  # another type: nothing is divided
    assert sizes[5] == pytest.approx(4 * halved[5], rel=0.02)
    assert torch.allclose(whole, found.float(), rtol=0.01, atol=0.02)
    lm = evolve(lm, model=ours.half())
    found = logits(lm.model)
    assert torch.equal(logits(copy.deepcopy(lm.model)), found)
    sizes.clear()
    logits(lm.model)
    assert sizes == pytest.approx(halved, rel=0.02)
    tuned = (
        LoRA(rank=2, targets=("output",)).build().attach(lm, RUNTIME)
    )  # in evaluation it is the product with the whole weight
    for name, parameter in tuned.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, 0, 0.1)
    adapted = logits(tuned.model)
    assert not torch.allclose(adapted, found, rtol=0.01, atol=0.02)
    folded = tuned.adapters[0].merge(tuned)
    assert torch.allclose(logits(folded.model), adapted, rtol=0.01, atol=0.02)


def test_weights_that_a_run_has_divided_are_whole_in_files_and_in_new_models(make, tmp_path):
    fresh, used = rwkv(make), rwkv(make, used=True)
    expected = logits(used.model)
    assert torch.equal(expected, logits(fresh.model))
    for lm in (fresh, used):
        assert torch.equal(
            lm.model.rwkv.blocks[5].attention.output.weight, rwkv(make).model.rwkv.blocks[5].attention.output.weight
        )
    used.save(tmp_path / "plain")
    assert torch.equal(logits(load(tmp_path / "plain").model), expected)
    assert torch.equal(logits(used.model), expected)
    data = [Example(id="0", prompt="a b c", targets=("d e f g",))]
    for number, make_small in enumerate(
        (
            lambda lm: every_nth(lm, 2),
            lambda lm: Structured(vocabulary="used").build().compress(lm, data=data, runtime=RUNTIME)[0],
            lambda lm: Wanda().build().compress(lm, data=data, runtime=RUNTIME)[0],
            lambda lm: Magnitude(scope="global").build().compress(lm, runtime=RUNTIME)[0],
        )
    ):
        first, second = rwkv(make), rwkv(make, used=True)
        one, other = make_small(first), make_small(second)
        ids = torch.tensor([[0, 1, 2, 3, 4, 5]])
        found, again = (lm.model.eval()(input_ids=ids).logits for lm in (one, other))
        assert torch.equal(found, again)
        other.save(tmp_path / str(number))
        assert torch.equal(load(tmp_path / str(number)).model(input_ids=ids).logits, found)


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2", "bert"])
@pytest.mark.parametrize(
    ("config", "tolerance"),
    [
        (Structured(ffn=0.01), 0.1),  # one channel
        (Structured(vocabulary="used"), 0.0),
        (Distill(keep_every=1, steps=1, learning_rate=1e-12), 1e-5),
        (Int8(), 0.03),
        (Int8WeightOnly(), 0.03),
        (GPTQ(), 0.03),
        ("quantization-aware", 0.03),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_head_that_was_trained_apart_stays_apart_whatever_the_config_says(make, tmp_path, kind, config, tolerance):
    """As peft's ``modules_to_save`` leaves one behind, and files in which the two differ."""
    lm = make(kind, tied=True)
    head = lm.model.get_output_embeddings()
    assert head.weight is lm.model.get_input_embeddings().weight
    head.weight = nn.Parameter(torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(3)) * 0.3)
    exact = logits(lm.model)
    text = "a b c d e f g h i j k l m n o p q r s t u v w x y z"
    data = [Example(id=str(n), prompt=text, targets=(text,)) for n in range(2)]
    if config == "quantization-aware":
        lm = QuantizationAware().build().attach(lm, RUNTIME)
        config = Int8()
    small, _ = config.build().compress(lm, data=data, runtime=RUNTIME)
    found = logits(small.model)
    assert (found - exact).abs().max() <= tolerance * exact.abs().max()
    small.save(tmp_path)
    assert torch.equal(logits(load(tmp_path).model), found)

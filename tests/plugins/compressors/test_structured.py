"""Structured pruning: the small model is the large one with the same parts at zero, in every family."""

import copy
import itertools
import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tunesmith.data.encoding import IGNORED
from tunesmith.data.records import Example
from tunesmith.errors import ConfigError, DataError
from tunesmith.lm import LM, load
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors import Distill, Int8, Magnitude, Structured
from tunesmith_plugins.compressors.prune import matrix
from tunesmith_plugins.compressors.prune_calibration import calibration_batches, forward
from tunesmith_plugins.compressors.structured_layouts import layout_of, module_list
from tunesmith_plugins.compressors.structured_scores import (
    Part,
    block_gradient,
    block_influence,
    by_activation,
    by_gradient,
)

RUNTIME = Runtime(progress=False)
IDS = torch.tensor([[4, 5, 6, 7, 8, 1], [9, 10, 11, 12, 13, 1]])
DATA = [
    Example(id=str(i), prompt=" ".join("abcdefghij"[i % 7 : i % 7 + 3]), targets=(" ".join("mnopq"[: 2 + i % 3]),))
    for i in range(8)
]
KINDS = ["t5", "t5-gated", "llama", "llama-one-key", "llama-all-keys", "gpt2", "bert"]
HEADED = [kind for kind in KINDS if kind[:2] in ("t5", "ll")]
CASES = [(kind, "magnitude") for kind in KINDS] + [
    (kind, score) for kind in ("t5", "llama", "gpt2") for score in ("activation", "gradient")
]


@pytest.fixture
def large(make):
    """Return a maker of large models; variants are made from the fixtures' configs, with visible biases and norms."""

    def build(kind, seed=0):
        name, _, variant = kind.partition("-")
        lm = make(name, seed)
        if variant:
            config = copy.deepcopy(lm.model.config)
            if variant == "gated":
                config = transformers.T5Config(**{**config.to_dict(), "feed_forward_proj": "gated-gelu"})
            else:
                config.num_key_value_heads = {"one": 1, "all": 4}[variant.split("-")[0]]
            torch.manual_seed(seed)
            lm = LM(model=type(lm.model)(config).eval(), tokenizer=lm.tokenizer, family=lm.family)
        with torch.no_grad():
            for parameter in lm.model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        return lm

    return build


def logits(lm, ids=IDS):
    extra = {"decoder_input_ids": ids[:, :4]} if lm.family == "encoder-decoder" else {}
    with lm.evaluating():
        return lm.model(input_ids=ids, **extra).logits


def stayed(large_rows, small_rows):
    """Return for each small row which large row it is."""
    same = (small_rows[:, None] == large_rows[None]).all(-1)
    assert (same.sum(1) == 1).all()
    return same.float().argmax(1)


def zero_what_is_gone(lm, small):
    """Return the large model with the parts at zero that ``small`` lacks; which, is read from the weights themselves."""
    zeroed = copy.deepcopy(lm)
    for stack in layout_of(lm).stacks:
        _, large_blocks = module_list(zeroed, stack)
        _, small_blocks = module_list(small, stack)
        for block, less in zip(large_blocks, small_blocks, strict=True):
            pairs = [(stack.feed.up[-1], stack.feed.down), *((a.query, a.out) for a in stack.attentions)]
            for up, down in pairs:
                kept = stayed(matrix(block.get_submodule(up)), matrix(less.get_submodule(up)))
                gone = torch.ones(matrix(block.get_submodule(up)).shape[0], dtype=torch.bool)
                gone[kept] = False
                matrix(block.get_submodule(down))[:, gone] = 0
    return zeroed


@pytest.mark.parametrize(("kind", "score"), CASES)
def test_without_heads_and_channels_it_is_the_large_model_with_them_at_zero(large, tmp_path, kind, score):
    lm = large(kind)
    heads = 0.5 if kind in HEADED else 0.0
    small, report = Structured(heads=heads, ffn=0.4, score=score).build().compress(lm, data=DATA, runtime=RUNTIME)
    expected = logits(zero_what_is_gone(lm, small))
    assert torch.allclose(logits(small), expected, atol=1e-4)
    assert not torch.allclose(logits(lm), expected, atol=1e-1)
    assert report.parameters == (lm.parameter_count(nonzero=True), small.parameter_count(nonzero=True))
    assert report.bytes[1] < report.bytes[0]
    assert report.layers[0]["channels"].split(" of ") == ["38", "64"] if kind != "gpt2" else ["77", "128"]
    small.save(tmp_path)
    assert torch.equal(logits(load(tmp_path)), logits(small))


@pytest.mark.parametrize("kind", ["llama", "t5", "gpt2", "bert"])
def test_plain_from_pretrained_loads_it(large, tmp_path, kind):
    lm = large(kind)
    small, _ = (
        Structured(heads=0.5 if kind in HEADED else 0.0, ffn=0.5, layers=0.5).build().compress(lm, runtime=RUNTIME)
    )
    small.save(tmp_path)
    model = type(lm.model).from_pretrained(tmp_path)
    assert sum(p.numel() for p in model.parameters()) == small.parameter_count() < 0.65 * lm.parameter_count()
    for name, tensor in small.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize(("kind", "score"), CASES)
def test_without_layers_it_is_the_large_model_that_passes_them_by(large, kind, score):
    lm = large(kind)
    stacks = layout_of(lm).stacks
    for stack in stacks:  # the first layer shall go: T5's has the position biases of all
        for parameter in module_list(lm, stack)[1][0].parameters():
            parameter.data.mul_(0.3)
    small, report = Structured(layers=0.25, score=score).build().compress(lm, data=DATA, runtime=RUNTIME)
    gone = [row["name"] for row in report.layers if not row["stays"]]
    assert len(gone) == len(stacks)
    if score == "magnitude":
        assert all(name.endswith(".0") for name in gone)
    for name in gone:
        block = lm.model.get_submodule(name)
        if kind == "bert":
            block.forward = lambda hidden, *_, **__: hidden
            continue
        stack = next(s for s in stacks if name.startswith(module_list(lm, s)[0]))
        outs = [stack.feed.down, *(a.out for a in stack.attentions)]
        for out in outs if kind != "gpt2" else [*outs, "attn.c_proj"]:
            layer = block.get_submodule(out)
            layer.weight.data.zero_()
            if layer.bias is not None:
                layer.bias.data.zero_()
    assert torch.allclose(logits(small), logits(lm), atol=1e-4)


ONE = {
    "vocab_size": 30, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "hidden_size": 32, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 40, "max_position_embeddings": 64,
}  # fmt: skip
TWO = {
    "vocab_size": 30, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "d_model": 32, "encoder_layers": 4, "decoder_layers": 3,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 56,
    "max_position_embeddings": 64, "decoder_start_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip
GEMMA = {**ONE, "head_dim": 8, "num_key_value_heads": 2, "query_pre_attn_scalar": 8}
ENCODER = {**ONE, "max_position_embeddings": 66, "embedding_size": 32}
MORE = {
    **dict.fromkeys(("Cohere", "Granite", "Olmo", "Olmo2", "SmolLM3", "StableLm", "Phi", "Starcoder2", "GPTNeoX"), ONE),
    **dict.fromkeys(("Gemma2", "Gemma3"), GEMMA),
    "OPT": {**ONE, "ffn_dim": 40, "word_embed_proj_dim": 32},
    "DistilBert": {**ONE, "dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 40},
    **dict.fromkeys(("Camembert", "Electra", "XLMRoberta"), ENCODER),
    **dict.fromkeys(("Bart", "MBart", "Pegasus", "Marian", "Blenderbot", "BlenderbotSmall", "PLBart", "M2M100"), TWO),
}
SUFFIXES = {
    "DistilBert": "ForMaskedLM",
    **dict.fromkeys(("Camembert", "Electra", "XLMRoberta"), "ForMaskedLM"),
    "Marian": "MTModel",
}


@pytest.mark.parametrize("kind", MORE)
def test_further_architectures_are_cut_as_the_others_are(make, tmp_path, kind):
    """Channels at zero, layers that hand on what they get, and what is saved is read by ``from_pretrained``."""
    sizes = MORE[kind]
    suffix = SUFFIXES.get(kind, "ForConditionalGeneration" if sizes is TWO else "ForCausalLM")
    made = getattr(transformers, f"{kind}{suffix}")
    known = {
        name: value
        for name, value in sizes.items()
        if name in {*made.config_class().to_dict(), *made.config_class.attribute_map}
    }
    torch.manual_seed(0)
    model = made(made.config_class(**known)).eval()
    with torch.no_grad():
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):  # sines are worked out anew
            parameter.add_(torch.randn_like(parameter) * 0.2)
    family = "encoder-decoder" if sizes is TWO else "encoder" if suffix == "ForMaskedLM" else "decoder"
    lm = LM(model=model, tokenizer=make("bert").tokenizer, family=family)
    small, report = (
        Structured(ffn=0.25, layers=0.3, score="activation").build().compress(lm, data=DATA, runtime=RUNTIME)
    )
    gone = [row["name"] for row in report.layers if not row["stays"]]
    assert len(gone) == len(layout_of(lm).stacks)
    expected = copy.deepcopy(lm)
    for stack in layout_of(lm).stacks:
        name, blocks = module_list(expected, stack)
        _, smaller = module_list(small, stack)
        for number, block in enumerate(blocks):
            if f"{name}.{number}" in gone:
                block.forward = lambda hidden, *_, **__: hidden
        stay = [block for number, block in enumerate(blocks) if f"{name}.{number}" not in gone]
        for block, less in zip(stay, smaller, strict=True):
            up, down = (matrix(block.get_submodule(part)) for part in (stack.feed.up[-1], stack.feed.down))
            kept = stayed(up, matrix(less.get_submodule(stack.feed.up[-1])))
            assert len(kept) == len(up) - round(0.25 * len(up))
            lost = torch.ones(len(up), dtype=torch.bool)
            lost[kept] = False
            down[:, lost] = 0
    assert torch.allclose(logits(small), logits(expected), atol=1e-4)
    assert not torch.allclose(logits(lm), logits(expected), atol=1e-2)
    small.save(tmp_path)
    again = made.from_pretrained(tmp_path).eval()
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in model.parameters())
    assert torch.equal(logits(LM(model=again, tokenizer=None, family=family)), logits(small))


@pytest.mark.parametrize("kind", ["Gemma2", "Gemma3"])
def test_gemmas_of_later_years_lose_heads_too(make, tmp_path, kind):
    made = getattr(transformers, f"{kind}ForCausalLM")
    torch.manual_seed(0)
    lm = LM(model=made(made.config_class(**GEMMA)).eval(), tokenizer=make("llama").tokenizer, family="decoder")
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    small, _ = Structured(heads=0.5).build().compress(lm, runtime=RUNTIME)
    assert torch.allclose(logits(small), logits(zero_what_is_gone(lm, small)), atol=1e-4)
    small.save(tmp_path)
    again = made.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(LM(model=again, tokenizer=None, family="decoder")), logits(small))


@pytest.mark.parametrize(
    "config", [Structured(ffn=0.5), Distill(steps=1, batch_size=4, keep_zeros=True)], ids=lambda c: type(c).__name__
)
def test_zeros_of_an_earlier_pruning_are_no_parameters_of_the_report(large, config):
    lm, pruned = Magnitude(pattern="2:4").build().compress(large("llama"), runtime=RUNTIME)
    small, report = config.build().compress(lm, data=DATA, runtime=RUNTIME)
    assert report.parameters == (pruned.parameters[1], small.parameter_count(nonzero=True))
    assert report.parameters[1] < small.parameter_count()


def test_magnitude_counts_a_channels_rows_and_column(large):
    lm = large("llama")
    mlp = lm.model.model.layers[1].mlp
    score = (
        mlp.gate_proj.weight.square().sum(1) + mlp.up_proj.weight.square().sum(1) + mlp.down_proj.weight.square().sum(0)
    )
    expected = score.argsort()[32:].sort().values
    small, _ = Structured(ffn=0.5).build().compress(lm, runtime=RUNTIME)
    kept = stayed(mlp.up_proj.weight, small.model.model.layers[1].mlp.up_proj.weight)
    assert torch.equal(kept, expected)


def test_grouped_queries_go_with_their_keys(large):
    lm = large("llama")
    attention = lm.model.model.layers[0].self_attn
    for weight in (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight):
        weight.data[: weight.shape[0] // 2] *= 0.1  # the first key-value head and its two query heads
    small, _ = Structured(heads=0.5).build().compress(lm, runtime=RUNTIME)
    config, less = small.model.config, small.model.model.layers[0].self_attn
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 8)
    assert torch.equal(less.q_proj.weight, attention.q_proj.weight[16:])
    assert torch.equal(less.v_proj.weight, attention.v_proj.weight[8:])
    assert torch.equal(less.o_proj.weight, attention.o_proj.weight[:, 16:])


def test_the_gradient_score_is_the_derivative_by_a_gate(large):
    lm = large("gpt2")
    lm.model.double()
    batches = calibration_batches(lm, DATA, max_length=32, batch_size=8, seed=0, method="")
    down = lm.model.transformer.h[1].mlp.c_proj
    (found,) = by_gradient(lm, [Part(down=down, up=())], batches)
    expected = torch.zeros(128, dtype=torch.float64)
    for batch in batches:
        gate = torch.ones(128, dtype=torch.float64, requires_grad=True)
        handle = down.register_forward_pre_hook(lambda _, x, gate=gate: (x[0] * gate,))
        expected += torch.autograd.grad(forward(lm.model, batch, loss=True).loss, gate)[0].abs() / len(batches)
        handle.remove()
    assert torch.allclose(found, expected, rtol=1e-8, atol=1e-14)
    assert not any(p.grad is not None for p in lm.model.parameters())


def test_the_activation_score_is_the_norm_of_contributions(large):
    lm = large("llama")
    batches = calibration_batches(lm, DATA, max_length=32, batch_size=8, seed=0, method="")
    out, seen = lm.model.model.layers[2].self_attn.o_proj, []
    (found,) = by_activation(lm, [Part(down=out, up=(), size=8)], batches)
    handle = out.register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, 1)))
    with lm.evaluating():
        for batch in batches:
            forward(lm.model, batch)
    handle.remove()
    x = torch.cat(seen).double()
    columns = torch.stack([(x[:, j : j + 1] * out.weight[:, j].double()).square().sum() for j in range(32)])
    assert torch.allclose(found, columns.view(4, 8).sum(1), rtol=1e-9)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_texts_without_a_token_to_predict_do_not_count_for_gradients(large, kind):
    """Of a decoder the first token is none, and that may be the last of a long text's pieces; an empty one has its end alone."""
    config = Structured(ffn=0.5, score="gradient", max_length=8)
    end = {"llama": "", "bert": " "}[kind]
    nothing = [Example(id="e", prompt="", targets=(end,))]
    rest = (
        [*nothing, Example(id="w", prompt="", targets=(" ".join("abcdefgh"),))] if kind == "llama" else nothing
    )  # 8 letters and an end
    few = [Example(id="f", prompt="", targets=("a b c d e",))]
    batches = calibration_batches(
        large(kind), [*few, *rest], max_length=8, batch_size=8, seed=0, method="x", masks=True
    )
    assert all(bool((batch["labels"][:, kind == "llama" :] != IGNORED).any()) for batch in batches)
    small, _ = config.build().compress(large(kind), data=[*few, *rest], runtime=RUNTIME)
    assert small.parameter_count() < large(kind).parameter_count()
    with pytest.raises(
        DataError, match=r"^score=.gradient.: .*none of 1 texts has a token to predict.*Give longer texts"
    ):
        config.build().compress(large(kind), data=nothing, runtime=RUNTIME)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "t5"])
def test_the_gradient_score_of_a_layer_is_that_of_gates_past_it(large, kind):
    """Attention, biases and all."""
    lm = large(kind)
    lm.model.double().requires_grad_(False)
    batches = calibration_batches(lm, DATA, max_length=32, batch_size=8, seed=0, method="", masks=True)
    for stack in layout_of(lm).stacks:
        _, blocks = module_list(lm, stack)
        found = block_gradient(lm, list(blocks), batches)
        for number, block in enumerate(blocks):
            expected = 0.0
            for batch in batches:
                gates = []

                def passed(_, inputs, named, outputs, gates=gates):
                    x = inputs[0] if inputs else named["hidden_states"]
                    y = outputs[0] if isinstance(outputs, tuple) else outputs
                    gates.append(torch.ones(*y.shape[:2], 1, dtype=torch.float64, requires_grad=True))
                    mixed = x + gates[0] * (y - x)
                    return (mixed, *outputs[1:]) if isinstance(outputs, tuple) else mixed

                handle = block.register_forward_hook(passed, with_kwargs=True)
                (slopes,) = torch.autograd.grad(forward(lm.model, batch, loss=True).loss, gates)
                handle.remove()
                expected += float(slopes.abs().sum()) / len(batches)
            assert float(found[number]) == pytest.approx(expected, rel=1e-4)
    assert not any(p.requires_grad for p in lm.model.parameters())


@pytest.mark.parametrize("score", ["block", "part"])
def test_gradient_scores_are_the_same_where_the_caller_records_no_gradients(large, score):
    lm = large("t5")
    batches = calibration_batches(lm, DATA, max_length=32, batch_size=8, seed=0, method="", masks=True)
    block = lm.model.encoder.block[1]

    def scored():
        if score == "block":
            return block_gradient(lm, [block], batches)
        return by_gradient(lm, [Part(down=block.layer[1].DenseReluDense.wo, up=())], batches)[0]

    expected = scored()
    with torch.no_grad():
        found = scored()
        assert not torch.is_grad_enabled()
    assert float(found.abs().sum()) > 0
    assert torch.equal(found, expected)


def test_half_of_an_encoder_decoder_has_one_stack(large):
    whole = large("t5")
    model = transformers.T5EncoderModel(whole.model.config).eval()
    model.encoder.load_state_dict(whole.model.encoder.state_dict())
    model.shared.load_state_dict(whole.model.shared.state_dict())
    half = LM(model=model, tokenizer=whole.tokenizer, family="encoder")
    config = Structured(heads=0.5, ffn=0.4, score="activation")
    small, report = config.build().compress(half, data=DATA, runtime=RUNTIME)
    assert [row["name"] for row in report.layers] == [f"encoder.block.{number}" for number in range(4)]
    expected = zero_what_is_gone(half, small).model(input_ids=IDS).last_hidden_state
    assert torch.allclose(small.model(input_ids=IDS).last_hidden_state, expected, atol=1e-4)


def test_position_biases_of_a_stack_are_no_weights_of_its_first_layer(large):
    lm = large("t5")
    for stack in (lm.model.encoder, lm.model.decoder):
        for parameter in stack.block[0].parameters():
            parameter.data.mul_(0.5)
        stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.data.mul_(1000)
    _, report = Structured(layers=0.25).build().compress(lm, runtime=RUNTIME)
    assert [row["name"] for row in report.layers if not row["stays"]] == ["encoder.block.0", "decoder.block.0"]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("llama", {"heads": 0.2}, "0.2 of 2 is none.*0.5 takes one @ heads"),
        ("llama-all-keys", {"heads": 0.1, "ffn": 0.5}, "0.1 of 4 is none.*0.25 takes one @ heads"),
        ("t5", {"ffn": 0.001}, "0.001 of 64 is none.*0.0156 takes one @ ffn"),
        ("gpt2", {"layers": 0.1}, "0.1 of 4 is none.*0.25 takes one @ layers"),
    ],
)
def test_a_share_that_takes_none_is_refused(large, kind, options, message):
    with pytest.raises(ConfigError, match=message):
        Structured(**options).build().compress(large(kind), runtime=RUNTIME)


def test_block_influence_is_one_minus_the_cosine(large):
    lm = large("llama")
    batches = calibration_batches(lm, DATA, max_length=32, batch_size=8, seed=0, method="")
    found = block_influence(lm, list(lm.model.model.layers), batches)
    total, count = torch.zeros(3), 0
    with lm.evaluating():
        for batch in batches:
            states = lm.model(**batch, output_hidden_states=True).hidden_states
            total += torch.stack(
                [(1 - torch.cosine_similarity(a, b, dim=-1)).sum() for a, b in itertools.pairwise(states[:4])]
            )
            count += states[0].shape[0] * states[0].shape[1]
    assert torch.allclose(
        found[:3].float(), total / count, rtol=1e-4
    )  # of the last one transformers shows what its norm gives


# vocabulary


@pytest.mark.parametrize("kind", KINDS)
def test_unused_tokens_go_from_model_and_tokenizer(large, tmp_path, kind):
    lm = large(kind)
    small, report = Structured(vocabulary="used").build().compress(lm, data=DATA, runtime=RUNTIME)
    kept = report.summary["kept_token_ids"]
    letters = {lm.tokenizer.vocab[c] for c in "abcdefghi" + "mnop"}
    assert set(kept) == letters | set(range(4))
    assert report.summary["tokens"] == [30, 17] == [lm.model.config.vocab_size, small.model.config.vocab_size]
    ids = lm.tokenizer(["a b c d e f", "m n o p a b"], return_tensors="pt")["input_ids"]
    less = small.tokenizer(["a b c d e f", "m n o p a b"], return_tensors="pt")["input_ids"]
    assert torch.equal(torch.tensor(kept)[less], ids)
    assert torch.allclose(logits(small, less), logits(lm, ids)[..., kept], atol=1e-5)
    assert small.tokenizer("x a")["input_ids"] == [small.tokenizer.unk_token_id, small.tokenizer.vocab["a"]]
    small.save(tmp_path)
    again = load(tmp_path)
    assert again.tokenizer.get_vocab() == small.tokenizer.get_vocab()
    assert torch.equal(logits(again, less), logits(small, less))
    for name in ("pad_token_id", "eos_token_id"):
        if getattr(lm.model.config, name) is not None:
            assert kept[getattr(again.model.config, name)] == getattr(lm.model.config, name)


BARTS = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, "decoder_start_token_id": 1,
}  # fmt: skip
FSMT = {**BARTS, "langs": ["en", "de"], "src_vocab_size": 30, "tgt_vocab_size": 30}
XGLM = {"d_model": 32, "num_layers": 1, "attention_heads": 2, "ffn_dim": 32}
LAYERED = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("BartForConditionalGeneration", BARTS),
        ("GPTNeoXForCausalLM", LAYERED),
        ("ModernBertForMaskedLM", {**LAYERED, "cls_token_id": 1, "sep_token_id": 1, "bos_token_id": 1}),
        ("DistilBertForMaskedLM", {"dim": 32, "hidden_dim": 32, "n_layers": 1, "n_heads": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unused_tokens_go_from_models_whose_parts_are_not_known(make, kind, sizes):
    """Whatever their tensors with a row a token are called."""
    torch.manual_seed(0)
    made = getattr(transformers, kind)
    config = made.config_class(vocab_size=30, pad_token_id=0, eos_token_id=1, **sizes)
    model = made(config).eval()
    if "final_logits_bias" in model.state_dict():
        model.final_logits_bias.normal_()
    family = {"Bart": "encoder-decoder", "GPTN": "decoder"}.get(kind[:4], "encoder")
    lm = LM(model=model, tokenizer=make("bert").tokenizer, family=family)
    small, report = Structured(vocabulary="used").build().compress(lm, data=DATA, runtime=RUNTIME)
    kept = report.summary["kept_token_ids"]
    assert len(kept) == 17
    less = torch.tensor([[4, 5, 6, 1], [7, 8, 9, 1]])
    assert torch.allclose(logits(small, less), logits(lm, torch.tensor(kept)[less])[..., kept], atol=1e-5)


def test_token_numbers_that_a_model_never_had(make, tmp_path):
    """GPT-2's default end in a model with a small vocabulary, a padding of -1 as in the first LLaMA's."""
    lm = make("gpt2")
    lm.model.config.bos_token_id = 50256
    lm.model.config.pad_token_id = -1
    lm.model.generation_config.eos_token_id = [1, 50256]
    small, _ = Structured(vocabulary="used").build().compress(lm, data=DATA, runtime=RUNTIME)
    assert small.model.config.bos_token_id is None
    assert small.model.config.pad_token_id is None
    assert small.model.generation_config.eos_token_id == [1]
    small.save(tmp_path)
    assert load(tmp_path).model.config.vocab_size == 17
    lm = make("gpt2")
    lm.tokenizer.add_special_tokens({"bos_token": "<new>"})
    with pytest.raises(ConfigError, match="embeddings for 30 tokens, and none for <new>"):
        Structured(vocabulary="used").build().compress(lm, data=DATA, runtime=RUNTIME)


@pytest.mark.parametrize("kind", ["RobertaForMaskedLM", "M2M100ForConditionalGeneration", "XGLMForCausalLM"])
def test_positions_that_count_from_the_padding_id(make, kind):
    made = getattr(transformers, kind)
    sizes = {"M2M1": BARTS, "XGLM": XGLM}.get(kind[:4], LAYERED)

    def pruned(pad):
        model = made(made.config_class(vocab_size=30, pad_token_id=pad, bos_token_id=1, eos_token_id=1, **sizes))
        family = "encoder-decoder" if model.config.is_encoder_decoder else "encoder"
        lm = LM(model=model, tokenizer=make("bert").tokenizer, family=family)
        return Structured(vocabulary="used").build().compress(lm, data=DATA, runtime=RUNTIME)[0]

    assert pruned(3).model.config.pad_token_id == 3
    with pytest.raises(ConfigError, match="count positions from their padding id"):
        pruned(25)


def test_tables_whose_size_is_no_vocab_size_are_not_cut(make):
    """FSMT reads another language than it writes; of an EncoderDecoderModel each half has a config."""
    config = transformers.FSMTConfig(pad_token_id=0, bos_token_id=1, eos_token_id=1, **FSMT)
    fsmt = transformers.FSMTForConditionalGeneration(config)
    half = transformers.BertConfig(vocab_size=30, **LAYERED)
    both = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(half, half)
    both.decoder_start_token_id = both.pad_token_id = 0
    for model, told in (
        (fsmt, "reads would keep 30 tokens"),
        (transformers.EncoderDecoderModel(both), "has no vocab_size"),
    ):
        lm = LM(model=model, tokenizer=make("t5").tokenizer, family="encoder-decoder")
        with pytest.raises(ConfigError, match=told):
            Structured(vocabulary="used").build().compress(lm, data=DATA, runtime=RUNTIME)


def test_a_generation_config_names_its_tokens_by_their_new_numbers(large, tmp_path):
    lm = large("llama")
    word = lm.tokenizer.vocab
    used, gone, forced = word["c"], word["x"], word["y"]
    generation = lm.model.generation_config
    generation.suppress_tokens = [gone, used]
    generation.begin_suppress_tokens = [gone]
    generation.bad_words_ids = [[used, word["d"]], [used, gone]]
    generation.sequence_bias = [[[used], -1.5], [[gone, used], 2.0]]
    generation.force_words_ids = [[forced, used], [[word["a"]], [word["b"]]]]
    small, report = Structured(vocabulary="used").build().compress(lm, data=DATA, runtime=RUNTIME)
    kept = report.summary["kept_token_ids"]
    assert gone not in kept
    assert forced in kept
    new = {old: number for number, old in enumerate(kept)}
    found = small.model.generation_config
    assert found.suppress_tokens == [new[used]]
    assert found.begin_suppress_tokens is None
    assert found.bad_words_ids == [[new[used], new[word["d"]]]]
    assert found.sequence_bias == [[[new[used]], -1.5]]
    assert found.force_words_ids == [[new[forced], new[used]], [[new[word["a"]]], [new[word["b"]]]]]
    assert generation.suppress_tokens == [gone, used]


TEXTS = ["the cat sat", "the hat", "a cat that sat"]
EXTRA = ["sit", "then", "catch", "zebra zoo"]


def trained_tokenizer(kind):
    from tokenizers import decoders, trainers

    special = ["<pad>", "</s>", "<unk>"]
    if kind == "bpe-bytes":
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            min_frequency=1,
        )
    elif kind == "wordpiece":
        inner = Tokenizer(models.WordPiece(unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordPieceTrainer(vocab_size=80, special_tokens=special)
    else:
        pieces = [
            *special,
            *sorted({c for text in TEXTS + EXTRA for c in text} - {" "}),
            "▁",
            "th",
            "▁the",
            "▁cat",
            "▁sat",
            "en",
            "▁ze",
        ]
        scores = [(piece, -0.1 * (9 - len(piece)) if len(piece) > 1 else -3.0) for piece in pieces]
        inner = Tokenizer(models.Unigram(scores, unk_id=2))
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = None
    if trainer is not None:
        inner.train_from_iterator((TEXTS + EXTRA) * 3, trainer)
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.mark.parametrize("kind", ["bpe-bytes", "wordpiece", "unigram"])
def test_tokenizers_read_known_texts_as_before_and_any_other_at_all(large, tmp_path, kind):
    lm = large("llama")
    tokenizer = trained_tokenizer(kind)
    config = copy.deepcopy(lm.model.config)
    config.vocab_size = len(tokenizer) + 3  # rows that no token has
    lm = LM(model=type(lm.model)(config).eval(), tokenizer=tokenizer, family="decoder")
    data = [Example(id=t, prompt="", targets=(t,)) for t in TEXTS]
    small, report = Structured(vocabulary="used").build().compress(lm, data=data, runtime=RUNTIME)
    kept = report.summary["kept_token_ids"]
    assert len(kept) < len(tokenizer)
    small.save(tmp_path)
    for less in (small.tokenizer, load(tmp_path).tokenizer):
        for text in TEXTS:
            assert [kept[i] for i in less(text)["input_ids"]] == tokenizer(text)["input_ids"]
        ids = less("then zebra")["input_ids"]
        assert less.unk_token_id not in ids
        assert (
            less.decode(ids, skip_special_tokens=True).replace(" ", "").replace("##", "").replace("▁", "")
            == "thenzebra"
        )


def test_what_cannot_be_done_is_refused_with_its_reason(large, make):
    for kind in ("gpt2", "bert"):
        with pytest.raises(ConfigError, match="no size of a head"):
            Structured(heads=0.5).build().compress(large(kind), runtime=RUNTIME)
    config = transformers.BloomConfig(vocab_size=30, hidden_size=16, n_layer=1, n_head=2)
    bloom = LM(model=transformers.BloomForCausalLM(config), tokenizer=large("llama").tokenizer, family="decoder")
    with pytest.raises(ConfigError, match="'bloom' cannot be pruned by parts"):
        Structured(ffn=0.5).build().compress(bloom, runtime=RUNTIME)
    with pytest.raises(ConfigError, match="nothing would be taken out"):
        Structured().build().compress(large("llama"), runtime=RUNTIME)
    with pytest.raises(ConfigError, match="score='gradient' needs examples to calibrate on"):
        Structured(ffn=0.5, score="gradient").build().compress(large("llama"), runtime=RUNTIME)
    with pytest.raises(ConfigError, match="data"):
        Structured(vocabulary="used").build().compress(large("llama"), runtime=RUNTIME)
    quantized, _ = Int8().build().compress(large("llama"), runtime=RUNTIME)
    with pytest.raises(ConfigError, match="quantized already"):
        Structured(ffn=0.5).build().compress(quantized, runtime=RUNTIME)


def test_what_it_has_lost_comes_back_by_training(make, tmp_path):
    """FineTune (LoRA, then all weights) trains the small model as any other."""
    from tunesmith import Data, Pipeline, output
    from tunesmith_plugins import adapters
    from tunesmith_plugins import stages as st

    rows = [{"x": " ".join("abcdef"[i % 4 : i % 4 + 2]), "y": "m n o"} for i in range(24)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make("llama").save(tmp_path / "large")
    pipeline = Pipeline(
        base=str(tmp_path / "large"),
        data=Data(source=str(tmp_path / "train.jsonl"), prompt="{x} ", target="{y}"),
        stages=(
            st.Compress(name="pruned", compressor=Structured(heads=0.5, ffn=0.5, layers=0.5, score="activation")),
            st.FineTune(name="lora", adapter=adapters.LoRA(rank=8), steps=20, batch_size=8, learning_rate=5e-2),
            st.FineTune(name="full", start=output("pruned"), steps=20, batch_size=8, learning_rate=1e-2),
            st.Compress(name="int8", start=output("lora"), compressor=Int8()),
        ),
    )
    run = pipeline.run(tmp_path / "run", progress=False, threads=1)
    for name in ("lora", "full"):
        history = json.loads((run.output(name, "report") / "report.json").read_text())
        losses = next(iter(history["series"][0]["y"].values()))
        assert losses[-1] < (0.5 if name == "full" else 0.9) * losses[0], name
    assert load(run.output("int8")).model.config.num_attention_heads == 2


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma"])
def test_a_number_of_heads_that_cannot_be_saved_is_refused_before_any_work(make, tmp_path, kind):
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=30, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=8,
        num_key_value_heads=4, head_dim=4, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    lm = LM(
        model=transformers.AutoModelForCausalLM.from_config(config), tokenizer=make("llama").tokenizer, family="decoder"
    )
    if kind == "llama":
        message = (
            r"with 6 of its 8 heads could not be saved: .*multiple.* give 0.5 \(4 of 8 stay\) or 0.75 \(2 of 8 stay\)"
        )
        with pytest.raises(ConfigError, match=message):  # data would be asked for next
            Structured(heads=0.25, score="activation").build().compress(lm, runtime=RUNTIME)
    for share in (0.5, 0.75) if kind == "llama" else (0.25, 0.5, 0.75):
        small, _ = Structured(heads=share).build().compress(lm, runtime=RUNTIME)
        small.save(tmp_path)
        assert torch.equal(logits(load(tmp_path)), logits(small))

"""One layer in several places: int8 as what it is, and a layer of its own in each place of what is saved."""

import copy

import pytest
import torch
import transformers

from tunesmith.data.records import Example
from tunesmith.errors import ConfigError
from tunesmith.lm import LM, load
from tunesmith.runtime import Runtime
from tunesmith_plugins.adapters import QuantizationAware
from tunesmith_plugins.compressors import GPTQ, Int8, Int8Static, Int8WeightOnly, Scheme, SmoothQuant
from tunesmith_plugins.compressors.fused.parts import FusedLayer
from tunesmith_plugins.compressors.int8_linear import Int8Linear

RUNTIME = Runtime(progress=False)
IDS = torch.tensor([[4, 5, 6, 7, 8, 1], [9, 10, 11, 12, 13, 1]])
EXAMPLES = [Example(id="0", prompt="a b c d", targets=("e f",)), Example(id="1", prompt="k l m n o", targets=("q",))]
BLOCKS = {
    "llama": lambda model: model.model.layers,
    "gpt2": lambda model: model.transformer.h,
    "bert": lambda model: model.bert.encoder.layer,
    "t5": lambda model: model.encoder.block,
}


def logits(lm):
    extra = {"decoder_input_ids": IDS[:, :4]} if lm.family == "encoder-decoder" else {}
    with lm.evaluating():
        return lm.model(input_ids=IDS, **extra, use_cache=False).logits  # a cache knows layers by their number


def shared(make, kind):
    """Return a model whose second and third block are one."""
    lm = make(kind)
    blocks = BLOCKS[kind](lm.model)
    blocks[2] = blocks[1]
    return lm


def first_linear(block):
    return next(module for module in block.modules() if isinstance(module, Int8Linear))


CONFIGS = [Int8(rounding="nearest"), Int8WeightOnly(group_size=32), Int8Static(), SmoothQuant(), GPTQ()]


@pytest.mark.parametrize(
    ("kind", "config"),
    [*((kind, Int8()) for kind in BLOCKS), *(("llama", config) for config in CONFIGS)],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_block_in_two_places_is_one_in_int8_and_two_in_files(make, kind, config, tmp_path):
    lm = shared(make, kind)
    before = logits(lm)
    small, report = config.build().compress(lm, runtime=RUNTIME, data=EXAMPLES if config.calibrates else None)
    blocks = BLOCKS[kind](small.model)
    assert blocks[1] is blocks[2]
    assert first_linear(blocks[1]) is first_linear(blocks[2])
    after = logits(small)
    assert (after - before).norm() < 0.08 * before.norm()
    assert isinstance(next(m for m in blocks[1].modules() if isinstance(m, FusedLayer)), FusedLayer)
    lines = [line["name"] for line in report.layers]
    assert len(lines) == len(set(lines))
    block = {"bert": "encoder.layer", "gpt2": "h", "llama": "layers", "t5": "encoder.block"}[kind]
    first, second = ([name for name in lines if f"{block}.{place}." in name] for place in (1, 2))
    assert len(first) == len(second) > 0
    small.save(tmp_path)
    again = load(tmp_path)
    assert torch.equal(logits(again), after)
    again.save(tmp_path / "again")
    assert torch.equal(logits(load(tmp_path / "again")), after)
    assert torch.equal(logits(LM(model=copy.deepcopy(small.model), tokenizer=lm.tokenizer, family=lm.family)), after)


def test_a_linear_layer_in_two_blocks_is_one_in_int8_too(make, tmp_path):
    lm = make("llama")
    first, second = lm.model.model.layers[:2]
    second.mlp = first.mlp
    second.self_attn.o_proj = first.self_attn.o_proj
    before = logits(lm)
    small, _ = Int8().build().compress(lm, runtime=RUNTIME)
    assert first.self_attn.o_proj is second.self_attn.o_proj
    after = logits(small)
    assert (after - before).norm() < 0.05 * before.norm()
    small.save(tmp_path)
    assert torch.equal(logits(load(tmp_path)), after)


def test_experts_in_two_places(tmp_path):
    config = transformers.MixtralConfig(
        vocab_size=30,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(config).eval()
    model.model.layers[2] = model.model.layers[0]
    lm = LM(model=model, tokenizer=None, family="decoder")
    before = logits(lm)
    small, _ = Int8().build().compress(lm, runtime=RUNTIME)
    after = logits(small)
    assert (after - before).norm() < 0.05 * before.norm()
    model.save_pretrained(tmp_path)
    again = transformers.MixtralForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(LM(model=again, tokenizer=None, family="decoder")), after)


def test_its_scheme_is_one_and_skip_leaves_it_float_everywhere(make):
    small, _ = Int8(skip=("layers.2",)).build().compress(shared(make, "llama"), runtime=RUNTIME)
    assert type(small.model.model.layers[1].mlp.up_proj) is torch.nn.Linear
    config = Int8(modules={"layers.2": Scheme(kind="weight_only")})
    with pytest.raises(ConfigError, match=r"layers\.1\..* and model\.layers\.2\..* are one layer in two places"):
        config.build().compress(shared(make, "llama"), runtime=RUNTIME)
    config = Int8(modules={name: Scheme(kind="weight_only") for name in ("layers.1", "layers.2")})
    small, _ = config.build().compress(shared(make, "llama"), runtime=RUNTIME)
    assert first_linear(small.model.model.layers[2]).kind == "weight_only"


def test_training_through_the_rounding_rounds_it_once(make):
    lm = shared(make, "llama")
    layers = lm.model.model.layers
    layers[0].self_attn.o_proj = layers[3].self_attn.o_proj
    trained = QuantizationAware().build().attach(lm, RUNTIME)
    assert layers[0].self_attn.o_proj is layers[3].self_attn.o_proj
    small, _ = Int8().build().compress(trained, runtime=RUNTIME)
    other = shared(make, "llama")
    layers = other.model.model.layers
    layers[0].self_attn.o_proj = layers[3].self_attn.o_proj
    expected, _ = Int8(rounding="nearest").build().compress(other, runtime=RUNTIME)
    assert torch.equal(logits(small), logits(expected))


class Twice(transformers.LlamaForCausalLM):
    """A class that itself puts one block in two places."""

    def __init__(self, config):
        super().__init__(config)
        self.model.layers[1] = self.model.layers[0]


def test_a_class_that_shares_blocks_itself_reads_what_it_saved(make, tmp_path):
    torch.manual_seed(0)
    model = Twice(make("llama").model.config).eval()
    lm = LM(model=model, tokenizer=None, family="decoder")
    small, _ = Int8(rounding="nearest").build().compress(lm, runtime=RUNTIME)
    after = logits(small)
    model.save_pretrained(tmp_path)
    again = Twice.from_pretrained(tmp_path).eval()
    assert again.model.layers[1] is again.model.layers[0]
    assert torch.equal(logits(LM(model=again, tokenizer=None, family="decoder")), after)

"""What users do to a model, done to an int8 one: the same as to any other, or an error that says what to do."""

import copy
import pickle
import weakref

import pytest
import torch
import transformers

from tunesmith.data.records import Example
from tunesmith.errors import ConfigError, MissingPower
from tunesmith.lm import LM, load
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors import Int8, Int8Static, Int8WeightOnly, OutlierSplit
from tunesmith_plugins.compressors.int8_weight import Int8Weight

RUNTIME = Runtime(progress=False)
LAYERS = 2  # the second reads what the int8 first gives
IDS = torch.tensor([[4, 5, 6, 7, 8, 1], [9, 10, 11, 12, 13, 1]])
FAMILIES = ["t5", "llama", "gpt2", "bert"]


def logits(lm, model=None):
    extra = {"decoder_input_ids": IDS[:, :4]} if lm.family == "encoder-decoder" else {}
    model = lm.model if model is None else model
    with torch.no_grad():
        return model(input_ids=IDS, **extra).logits


def small(make, kind, config=None, **options):
    return (
        (config or Int8(rounding="nearest", measure_rows=0)).build().compress(make(kind), runtime=RUNTIME, **options)[0]
    )


def test_a_model_is_not_dequantized_and_says_what_to_do(make):
    small, _ = Int8(measure_rows=0, rounding="nearest").build().compress(make("llama"), runtime=RUNTIME)
    with pytest.raises(MissingPower, match="load the float model"):
        small.model.dequantize()


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_cast_model_runs_in_its_type_and_saves(make, kind, packed, dtype, tmp_path):
    lm = small(make, kind)
    model = lm.model
    if packed:
        logits(lm)
    expected = logits(lm, copy.deepcopy(model))
    if dtype is torch.float64:
        model.double()
    elif dtype is torch.bfloat16:
        model.bfloat16()
    else:
        model.to(dtype)
    found = logits(lm)
    assert found.dtype == dtype
    near = {torch.float64: 1e-2, torch.float16: 2e-2, torch.bfloat16: 5e-2}[dtype]
    assert (found.double() - expected.double()).norm() < near * expected.norm()
    assert all(m.weight_scale.dtype == torch.float32 for m in model.modules() if isinstance(m, Int8Weight))
    lm.save(tmp_path)
    assert (logits(load(tmp_path)).double() - expected.double()).norm() < near * expected.norm()
    model.to(torch.float32)
    assert (logits(lm) - expected).norm() < near * expected.norm()


@pytest.mark.parametrize("config", [Int8WeightOnly(group_size=32), OutlierSplit(), Int8Static()])
def test_every_kind_of_layer_gives_back_the_type_that_it_was_given(make, config):
    data = [Example(id="0", prompt="a b c d", targets=("e f",))] if config.calibrates else None
    lm = small(make, "llama", config, data=data)
    expected = logits(lm)
    found = logits(lm, lm.model.double())
    assert found.dtype == torch.float64
    assert (found - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("cast", ["half", "float"])
def test_casts_that_transformers_refuses_for_quantized_models_say_so(make, cast):
    model = small(make, "llama").model
    with pytest.raises(ValueError, match="not supported for quantized"):
        getattr(model, cast)()


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_vocabulary_stays_as_it_is_and_says_so(make, kind):
    lm = small(make, kind)
    model, expected = lm.model, logits(lm)
    for again in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.resize_token_embeddings() is again.get_input_embeddings()
        again.resize_token_embeddings(30)
        again.resize_token_embeddings(29, pad_to_multiple_of=10)
        for given in ({"new_num_tokens": 33}, {"new_num_tokens": 10}, {"pad_to_multiple_of": 8}):
            with pytest.raises(ConfigError, match=r"is int8 and keeps its 30 tokens.*resize the float model"):
                again.resize_token_embeddings(**given)
        assert torch.equal(logits(lm, again), expected)
        assert again.config.vocab_size == 30


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_vocabulary_of_a_body_stays_as_it_is_too(make, kind):
    lm = small(make, kind)
    for again in (lm.model, copy.deepcopy(lm.model), pickle.loads(pickle.dumps(lm.model))):
        bodies = [module for module in again.modules() if isinstance(module, transformers.PreTrainedModel)]
        assert len(bodies) > 1
        for body in bodies:
            assert body.resize_token_embeddings(30) is body.get_input_embeddings()
            with pytest.raises(ConfigError, match=r"is int8 and keeps its 30 tokens.*resize the float model"):
                body.resize_token_embeddings(33)
        del again
    body = weakref.ref(bodies[-1])
    del bodies
    assert body() is None


def test_a_vocabulary_that_stayed_float_grows(make):
    lm = small(make, "gpt2", Int8(embeddings=False, measure_rows=0))
    expected = logits(lm)
    lm.model.resize_token_embeddings(33, mean_resizing=False)
    found = logits(lm)
    assert found.shape[-1] == 33
    assert torch.equal(found[..., :30], expected)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("embeddings", [True, False])
def test_tying_again_changes_nothing(make, kind, embeddings, tmp_path):
    lm = small(make, kind, Int8(embeddings=embeddings, measure_rows=0))
    expected = logits(lm)
    lm.model.tie_weights()
    assert torch.equal(logits(lm), expected)
    lm.save(tmp_path)
    again = load(tmp_path)
    again.model.tie_weights()
    assert torch.equal(logits(again), expected)
    again.model.tie_weights()
    assert torch.equal(logits(again), expected)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_state_goes_from_one_model_to_another_strictly(make, kind):
    first, second = small(make, kind), small(lambda k: make(k, seed=1), kind)
    expected = logits(first)
    assert not torch.equal(logits(second), expected)
    state = copy.deepcopy(first.model.state_dict())
    assert not any(tensor.is_meta for tensor in state.values())
    second.model.load_state_dict(state)
    assert torch.equal(logits(second), expected)


@pytest.mark.parametrize("kind", ["t5", "llama", "bert"])
@pytest.mark.parametrize(
    "config", [Int8(measure_rows=0), Int8WeightOnly(measure_rows=0), OutlierSplit(threshold=0.5, measure_rows=0)]
)
def test_on_meta_there_are_shapes_and_no_numbers(make, kind, config):
    lm = small(make, kind, config)
    shape, state = logits(lm).shape, copy.deepcopy(lm.model.state_dict())
    lm.model.to("meta")
    assert all(tensor.is_meta for tensor in lm.model.state_dict().values())
    extra = {"decoder_input_ids": IDS[:, :4].to("meta")} if kind == "t5" else {}
    found = lm.model(input_ids=IDS.to("meta"), **extra).logits
    assert found.is_meta
    assert found.shape == shape
    with pytest.raises(NotImplementedError, match="no data"):
        copy.deepcopy(lm.model).to("cpu")
    lm.model.load_state_dict(state, assign=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in lm.model.state_dict().items())


@pytest.mark.parametrize("kind", FAMILIES)
def test_training_mode_and_checkpointed_gradients_give_the_gradients_of_plain_training(make, kind):
    lm = small(make, kind)
    model = lm.model
    expected = logits(lm)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):  # T5's attention
            module.dropout = 0.0
    labels = IDS[:, :4].contiguous() if kind == "t5" else IDS

    def gradients():
        model.zero_grad()
        model(input_ids=IDS, labels=labels).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    assert plain
    assert all(grad.isfinite().all() for grad in plain.values())
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    checkpointed = gradients()
    assert checkpointed.keys() == plain.keys()
    # sums in another order: a value halfway between two steps may be rounded to the other one
    assert all((checkpointed[name] - plain[name]).norm() < 0.01 * plain[name].norm() for name in plain)
    model.gradient_checkpointing_disable()
    model.eval()
    with torch.no_grad():
        assert torch.equal(logits(lm), expected)
    assert isinstance(lm, LM)

"""Models whose layers keep more than keys and values: states of recurrences and convolutions, indices of what to look at."""

import pytest
import torch
import transformers

from tunesmith.errors import ConfigError
from tunesmith.generation import generate
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_tokenizer
from tunesmith_plugins.adapters import Prompt
from tunesmith_plugins.engines import Transformers

PROMPTS = [[5, 9, 30, 12, 7, 8, 40, 41, 9, 22, 6], [17], [21, 33, 5, 6], [9, 9, 9]]
HOT = "chain(links=[temperature(temperature=1.5), top_p(p=0.95)])"
SIZES = {
    "vocab_size": 51,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 3,
}
ATTENTION = {**SIZES, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}


def wide(model):
    """A random model whose logits differ visibly, and which ends texts at many tokens."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.35)
    model.generation_config.eos_token_id = [1, *range(8, 22)]
    return LM(model=model.eval(), tokenizer=tiny_tokenizer(), family="decoder")


def falcon_h1():
    config = transformers.FalconH1Config(
        head_dim=8, mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=4,
        **ATTENTION,
    )  # fmt: skip
    return wide(transformers.FalconH1ForCausalLM(config))


def lfm2():
    config = transformers.Lfm2Config(layer_types=["conv", "full_attention"], block_multiple_of=8, **ATTENTION)
    return wide(transformers.Lfm2ForCausalLM(config))


def mamba():
    return wide(transformers.MambaForCausalLM(transformers.MambaConfig(state_size=8, **SIZES)))


def mamba2():
    config = transformers.Mamba2Config(num_heads=8, head_dim=8, state_size=8, n_groups=1, chunk_size=4, **SIZES)
    return wide(transformers.Mamba2ForCausalLM(config))


def minimax():
    config = transformers.MiniMaxConfig(
        head_dim=8, block_size=4, num_local_experts=2, num_experts_per_tok=1, layer_types=["full_attention", "linear_attention"],
        **ATTENTION,
    )  # fmt: skip
    return wide(transformers.MiniMaxForCausalLM(config))


MODELS = {"falcon h1": falcon_h1, "lfm2": lfm2, "mamba": mamba, "mamba 2": mamba2, "minimax": minimax}


@pytest.fixture(scope="module", params=list(MODELS))
def lm(request):
    return MODELS[request.param]()


def test_rows_that_leave_a_batch_take_all_of_their_states_along(lm):
    options = {"sampler": HOT, "completions": 3, "max_new_tokens": 9}
    alone = generate(lm, PROMPTS, engine=Transformers(batch_size=1), **options)
    assert len({len(c.token_ids) for c in alone}) >= 3
    for size in (4, 16):
        together = generate(lm, PROMPTS, engine=Transformers(batch_size=size), **options)
        assert [c.token_ids for c in together] == [c.token_ids for c in alone]
        for one, other in zip(alone, together, strict=True):
            assert other.logp == pytest.approx(one.logp, abs=1e-4)


@pytest.mark.parametrize("decoder", ["beam(beams=3)", "contrastive(top_k=3)", "guidance(scale=1.5)"])
def test_decoders_that_move_rows_write_what_they_write_without_a_cache(lm, decoder):
    options = {"decoder": decoder, "max_new_tokens": 7}
    found = generate(lm, PROMPTS, engine=Transformers(batch_size=8), **options)
    plain = generate(lm, PROMPTS, engine=Transformers(batch_size=8, kv_cache=False), **options)
    assert [c.token_ids for c in found] == [c.token_ids for c in plain]


def test_a_cache_given_to_select_stays_as_it_was(lm):
    engine = Transformers().build()
    engine.sync(lm)
    model = engine.step_model
    _, cache = model.begin([PROMPTS[0], PROMPTS[2]])
    model.select(cache, torch.tensor([1, 1, 0]))
    going_on, _ = model.step(torch.tensor([7, 8]), cache)
    _, cache = model.begin([PROMPTS[0], PROMPTS[2]])
    expected, _ = model.step(torch.tensor([7, 8]), cache)
    assert torch.equal(going_on, expected)


def test_a_token_is_read_once(lm):
    widths = []
    hook = lm.model.get_input_embeddings().register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    generate(lm, [PROMPTS[0]], max_new_tokens=5, min_new_tokens=5)
    hook.remove()
    assert widths == [len(PROMPTS[0]), 1, 1, 1, 1]


def mistral():
    return wide(transformers.MistralForCausalLM(transformers.MistralConfig(head_dim=8, sliding_window=6, **ATTENTION)))


def mpt():
    config = transformers.MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=64, **{**SIZES, "hidden_size": 32})
    return wide(transformers.MptForCausalLM(config))


@pytest.mark.parametrize("make", [falcon_h1, mamba, minimax, mistral, mpt])
def test_no_padding_comes_between_an_adapters_tokens_and_the_text(make):
    lm = Prompt(tokens=3).build().attach(make(), Runtime())
    options = {"sampler": HOT, "completions": 2, "max_new_tokens": 7}
    alone = [generate(lm, [prompt], ids=[str(n)], **options) for n, prompt in enumerate(PROMPTS)]
    together = generate(lm, PROMPTS, engine=Transformers(batch_size=8), **options)
    assert [c.token_ids for c in together] == [c.token_ids for found in alone for c in found]
    with pytest.raises(ConfigError, match="cannot tell padding from text"):
        generate(lm, PROMPTS[:1], negative_prompts=PROMPTS[1:2], decoder="guidance", max_new_tokens=2)


def test_no_layer_of_them_is_kept_in_8_bits_unless_it_has_keys_and_values_alone(lm):
    if lm.model.config.model_type == "lfm2":
        generate(lm, PROMPTS, engine=Transformers(batch_size=4, cache="int8"), completions=3, max_new_tokens=5)
        return
    with pytest.raises(ConfigError, match="leave cache='int8' out"):
        generate(lm, PROMPTS, engine=Transformers(cache="int8"))

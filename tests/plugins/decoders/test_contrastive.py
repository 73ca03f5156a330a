"""Against the definition, computed by whole forward passes without a cache."""

import pytest
import torch
import transformers

from tunesmith.errors import ConfigError
from tunesmith.generation import component, generate, prompt_ids
from tunesmith.kinds.decoder import Limits, Request
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith.testing import conformance
from tunesmith.testing.models import tiny_lm, tiny_tokenizer
from tunesmith_plugins.adapters import LoRA, Prompt
from tunesmith_plugins.decoders import Beam, Contrastive, Guidance, Speculative
from tunesmith_plugins.engines import Transformers

PROMPTS = ["the cat sees a tree", "dog", "one two red and blue fish in the house"]


@conformance(Contrastive(), Contrastive(top_k=8, alpha=0.9))
def test_conforms(check):
    check()


@pytest.fixture(scope="module", params=["decoder", "encoder-decoder"])
def lm(request):
    return tiny_lm(request.param, spread=1.0)


def whole(lm, prompt, written):
    """Next logits (vocab,) and the states (time, width) of all that the decoder has read, float64."""
    with torch.no_grad():
        if lm.family == "decoder":
            out = lm.model(torch.tensor([[*prompt, *written]]), output_hidden_states=True)
            states = out.hidden_states[-1]
        else:
            start = lm.model.config.decoder_start_token_id
            out = lm.model(
                input_ids=torch.tensor([prompt]),
                decoder_input_ids=torch.tensor([[start, *written]]),
                output_hidden_states=True,
            )
            states = out.decoder_hidden_states[-1]
    return out.logits[0, -1].double(), states[0].double()


def plain(lm, prompt, top_k, alpha, length, ends):
    """The definition, one candidate after the other."""
    written = []
    while len(written) < length and not (written and written[-1] in ends):
        probabilities = whole(lm, prompt, written)[0].softmax(-1)
        best = None
        for token in probabilities.argsort(descending=True)[:top_k].tolist():
            *before, own = whole(lm, prompt, [*written, token])[1]
            similarity = max(torch.cosine_similarity(own, other, dim=0).item() for other in before)
            score = (1 - alpha) * probabilities[token].item() - alpha * similarity
            if best is None or score > best[0]:
                best = (score, token)
        written.append(best[1])
    return tuple(written)


@pytest.mark.parametrize(("top_k", "alpha"), [(1, 0.6), (4, 0.0), (4, 0.6), (6, 0.3), (3, 1.0)])
@pytest.mark.parametrize("size", [1, 8, 64])
def test_tokens_are_those_of_the_definition(lm, top_k, alpha, size):
    before = lm.model.generation_config.eos_token_id
    lm.model.generation_config.eos_token_id = ends = [1, *range(8, 14)]  # rows leave at different times
    try:
        found = generate(
            lm,
            PROMPTS,
            decoder=Contrastive(top_k=top_k, alpha=alpha),
            max_new_tokens=6,
            engine=Transformers(batch_size=size),
        )
    finally:
        lm.model.generation_config.eos_token_id = before
    for completion, ids in zip(found, prompt_ids(lm, PROMPTS), strict=True):
        assert completion.token_ids == plain(lm, list(ids), top_k, alpha, 6, ends)


def test_one_candidate_or_no_weight_is_greedy(lm):
    greedy = generate(lm, PROMPTS, max_new_tokens=7)
    for decoder in (Contrastive(top_k=1), Contrastive(alpha=0.0)):
        found = generate(lm, PROMPTS, decoder=decoder, max_new_tokens=7)
        assert [c.token_ids for c in found] == [c.token_ids for c in greedy]
        for ours, theirs in zip(found, greedy, strict=True):
            assert ours.logp == pytest.approx(theirs.logp, abs=1e-5)
    other = generate(lm, PROMPTS, decoder=Contrastive(alpha=0.8), max_new_tokens=7)
    assert [c.token_ids for c in other] != [c.token_ids for c in greedy]


def test_the_samplers_edits_count(lm):
    def tokens(sampler):
        return [c.token_ids for c in generate(lm, PROMPTS, sampler=sampler, decoder="contrastive", max_new_tokens=6)]

    assert tokens('logit_bias(bias={"9": 10000.0})') == [(9,) * 6] * 3
    assert tokens("top_k(k=1)") == tokens(None)


@pytest.mark.parametrize("adapter", [LoRA(rank=2), Prompt(tokens=3)])
@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
def test_adapters_are_part_of_the_states(family, adapter):
    lm = adapter.build().attach(tiny_lm(family, spread=1.0), Runtime())
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    found = generate(lm, PROMPTS, decoder=Contrastive(top_k=3), max_new_tokens=4)
    for completion, ids in zip(found, prompt_ids(lm, PROMPTS), strict=True):
        assert completion.token_ids == plain(lm, list(ids), 3, 0.6, 4, [1])


def test_mistakes_are_said(lm):
    with pytest.raises(ConfigError, match="remembers"):
        generate(lm, PROMPTS, decoder="contrastive", sampler="mirostat", max_new_tokens=3)
    with pytest.raises(ConfigError, match="GuidedModel shows no hidden states"):
        generate(lm, PROMPTS, decoder=Guidance(decoder=Contrastive()), max_new_tokens=3)
    with pytest.raises(ValueError, match="alpha"):
        Contrastive(alpha=1.5)


@pytest.mark.parametrize("decoder", [Contrastive(top_k=2), Beam(beams=2), Speculative(tokens=2)], ids=repr)
def test_decoders_of_whole_batches_keep_to_the_bound_of_the_cache(decoder):
    engine = Transformers(batch_size=16, cache_tokens=40).build()
    engine.sync(tiny_lm("decoder", spread=1.0))
    model, seen = engine.step_model, []

    def read(prompts):
        seen.append(len(prompts) * (max(map(len, prompts)) + 4))
        return type(model).read(model, prompts)

    model.read = read
    requests = [Request(prompt_ids=tuple(range(5, 5 + n))) for n in (2, 6, 4, 3, 5, 7)]
    rows = 1 if isinstance(decoder, Speculative) else 2
    found = engine.generate(requests, decoder.build(), component(None, "sampler"), Limits(max_new_tokens=4), Runtime())
    assert sorted(c.request for c in found) == list(range(6))
    assert len(seen) > 1
    assert max(seen) * rows <= 40


def test_a_model_with_several_states_a_token_is_refused():
    config = transformers.Gemma3nTextConfig(
        vocab_size=51, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size_per_layer_input=51, hidden_size_per_layer_input=8, laurel_rank=4, num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"], activation_sparsity_pattern=[0.0, 0.0],
    )  # fmt: skip
    lm = LM(model=transformers.Gemma3nForCausalLM(config).eval(), tokenizer=tiny_tokenizer(), family="decoder")
    with pytest.raises(ConfigError, match="shows no hidden states; take a decoder that needs none"):
        generate(lm, ["a cat", "dog"], decoder="contrastive", max_new_tokens=3)

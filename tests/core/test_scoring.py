"""Scoring given completions: every token counts once, padding never does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BartConfig, GPT2Config, LlamaConfig, T5Config
from transformers import BartForConditionalGeneration as Bart
from transformers import GPT2LMHeadModel as GPT2
from transformers import LlamaForCausalLM as Llama
from transformers import T5ForConditionalGeneration as T5

from tunesmith.errors import DataError, MissingPower
from tunesmith.lm import LM
from tunesmith.scoring import decoder_start, pad, token_logps, token_logps_in_batches

VOCAB = 23


def llama() -> LM:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=2,
    )
    return LM(model=Llama(config), tokenizer=None, family="decoder")


def gpt2() -> LM:  # learned absolute positions: a wrong position shows
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=32, bos_token_id=2, eos_token_id=2
    )
    return LM(model=GPT2(config), tokenizer=None, family="decoder")


def t5() -> LM:  # the decoder starts from the pad id
    config = T5Config(
        vocab_size=VOCAB,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    return LM(model=T5(config), tokenizer=None, family="encoder-decoder")


def bart() -> LM:
    config = BartConfig(
        vocab_size=VOCAB, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=40,
        decoder_start_token_id=2, pad_token_id=1, eos_token_id=2, bos_token_id=0, forced_eos_token_id=None,
    )  # fmt: skip
    return LM(model=Bart(config), tokenizer=None, family="encoder-decoder")


@pytest.fixture(params=[llama, gpt2, t5, bart], ids=lambda make: make.__name__)
def lm(request: pytest.FixtureRequest) -> LM:
    torch.manual_seed(0)
    made: LM = request.param()
    for parameter in made.model.parameters():  # T5's own initialisation is nearly uniform
        torch.nn.init.normal_(parameter, std=0.3)
    made.model.double().eval()
    return made


# pads (0), ends (2) and starts stand inside prompts and completions on purpose
PROMPTS = [[5], [3, 0, 7, 2, 9], [4, 4, 1]]
COMPLETIONS = [[0, 8, 2], [2], [6, 0, 0, 11, 2]]


def one_token_at_a_time(lm: LM, prompt: list[int], completion: list[int], temperature: float) -> tuple[list, list]:
    """The definition, without padding or batching: one forward pass a token, softmax in numpy float64."""
    logps, entropies = [], []
    for t, token in enumerate(completion):
        if lm.family == "decoder":
            inputs = {"input_ids": torch.tensor([prompt + completion[:t]])}
        else:
            start = [decoder_start(lm), *completion[:t]]
            inputs = {"input_ids": torch.tensor([prompt]), "decoder_input_ids": torch.tensor([start])}
        with torch.no_grad():
            logits = lm.model(**inputs).logits[0, -1].double().numpy() / temperature
        logp = logits - logits.max()
        logp = logp - np.log(np.exp(logp).sum())
        logps.append(logp[token])
        entropies.append(-(np.exp(logp) * logp).sum())
    return logps, entropies


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_every_token_has_the_log_probability_and_entropy_of_its_own_unpadded_row(lm: LM, temperature: float) -> None:
    ids, lengths = pad(COMPLETIONS)
    with torch.no_grad():
        logps, entropy, values = token_logps(lm, PROMPTS, ids, lengths, temperature)
    assert values is None
    assert logps.shape == entropy.shape == (3, 5)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        expected, entropies = one_token_at_a_time(lm, prompt, completion, temperature)
        assert logps[row, : len(completion)].tolist() == pytest.approx(expected, abs=1e-9)
        assert entropy[row, : len(completion)].tolist() == pytest.approx(entropies, abs=1e-9)
        assert not logps[row, len(completion) :].any()
        assert not entropy[row, len(completion) :].any()


def test_what_stands_behind_a_completion_changes_nothing(lm: LM) -> None:
    ids, lengths = pad(COMPLETIONS)
    other = ids.clone()
    other[torch.arange(ids.shape[1])[None] >= lengths[:, None]] = -100
    with torch.no_grad():
        assert torch.equal(token_logps(lm, PROMPTS, ids, lengths)[0], token_logps(lm, PROMPTS, other, lengths)[0])


def test_values_are_read_where_each_token_was_predicted(lm: LM) -> None:
    ids, lengths = pad(COMPLETIONS)
    weights = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        _, _, values = token_logps(lm, PROMPTS, ids, lengths, value_head=lambda states: states @ weights)
        for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
            for t in range(len(completion)):
                if lm.family == "decoder":
                    out = lm.model(torch.tensor([prompt + completion[:t]]), output_hidden_states=True)
                    state = out.hidden_states[-1][0, -1]
                else:
                    start = torch.tensor([[decoder_start(lm), *completion[:t]]])
                    out = lm.model(torch.tensor([prompt]), decoder_input_ids=start, output_hidden_states=True)
                    state = out.decoder_hidden_states[-1][0, -1]
                assert float(values[row, t]) == pytest.approx(float(state @ weights), abs=1e-9)


def test_gradients_flow_from_the_first_token_to_the_last(lm: LM) -> None:
    ids, lengths = pad(COMPLETIONS)
    for place in range(3):
        lm.model.zero_grad()
        logps, _, _ = token_logps(lm, PROMPTS, ids, lengths)
        logps[2, place].backward()
        assert sum(float(p.grad.abs().sum()) for p in lm.model.parameters() if p.grad is not None) > 0


def test_the_number_of_rows_at_once_changes_nothing(lm: LM) -> None:
    ids, lengths = pad(COMPLETIONS)
    head = torch.nn.Linear(16, 1, dtype=torch.float64)

    def values(states: torch.Tensor) -> torch.Tensor:
        return head(states).squeeze(-1)

    whole = token_logps_in_batches(lm, PROMPTS, ids, lengths, 0.7, values)
    for size in (1, 2):
        parts = token_logps_in_batches(lm, PROMPTS, ids, lengths, 0.7, values, batch_size=size)
        for a, b in zip(whole, parts, strict=True):
            assert a.shape == b.shape
            assert torch.allclose(a, b, atol=1e-12)


REPEATED = [0, 1, 0, 2, 1, 0]


def test_equal_rows_and_prompts_are_computed_once_and_nothing_changes(lm: LM) -> None:
    ids, lengths = pad([COMPLETIONS[row] for row in REPEATED])
    prompts = [PROMPTS[row] for row in REPEATED]
    ids[2], lengths[2] = ids[3], lengths[3]  # the prompt of row 0, another completion
    weights = torch.arange(1.0, 1 + ids.numel(), dtype=torch.float64).reshape(ids.shape)
    alone = [token_logps(lm, [p], i[None], n[None], 0.7) for p, i, n in zip(prompts, ids, lengths, strict=True)]
    (torch.cat([logps for logps, _, _ in alone]) * weights).sum().backward()
    expected = {name: p.grad.clone() for name, p in lm.model.named_parameters()}
    lm.model.zero_grad()
    seen = []
    first = lm.model.get_encoder() if lm.family == "encoder-decoder" else lm.model.get_input_embeddings()
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output: seen.append(
                len(next(iter(output.values())) if isinstance(output, dict) else output)
            )
        )
        for module in (first, lm.model.get_output_embeddings())
    ]
    logps, entropy, _ = token_logps(lm, prompts, ids, lengths, 0.7)
    assert seen == [3 if lm.family == "encoder-decoder" else 4, 4]
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(logps, torch.cat([logps for logps, _, _ in alone]), atol=1e-12, rtol=0)
    torch.testing.assert_close(entropy, torch.cat([entropy for _, entropy, _ in alone]), atol=1e-12, rtol=0)
    (logps * weights).sum().backward()
    for name, parameter in lm.model.named_parameters():
        # the norms of Llama and T5 compute in float32, whatever the model is in
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-5)


def test_in_training_mode_every_row_has_dropout_of_its_own() -> None:
    config = T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=24, dropout_rate=0.5, decoder_start_token_id=0)
    lm = LM(model=T5(config).train(), tokenizer=None, family="encoder-decoder")
    torch.manual_seed(0)
    logps, _, _ = token_logps(lm, [[5, 6]] * 2, torch.tensor([[7, 8]] * 2), torch.tensor([2, 2]))
    assert not torch.allclose(logps[0], logps[1], atol=1e-3)


def test_long_prompts_leave_the_completions_logits_in_their_places(lm: LM) -> None:
    prompts = [[4] * 7, [5, 6] * 4, [3] * 9]
    ids, lengths = pad(COMPLETIONS)
    with torch.no_grad():
        logps, _, _ = token_logps(lm, prompts, ids, lengths)
    for row, (prompt, completion) in enumerate(zip(prompts, COMPLETIONS, strict=True)):
        expected, _ = one_token_at_a_time(lm, prompt, completion, 1.0)
        assert logps[row, : len(completion)].tolist() == pytest.approx(expected, abs=1e-9)


def test_an_entropy_that_nobody_wants_is_no_number(lm: LM) -> None:
    ids, lengths = pad(COMPLETIONS)
    logps, entropy, _ = token_logps_in_batches(lm, PROMPTS, ids, lengths, batch_size=2, entropy=False)
    assert torch.equal(logps, token_logps_in_batches(lm, PROMPTS, ids, lengths, batch_size=2)[0])
    assert entropy.shape == logps.shape
    assert entropy[:, :1].isnan().all()


def test_an_empty_completion_scores_nothing(lm: LM) -> None:
    ids, lengths = pad([[], [4, 2]])
    with torch.no_grad():
        logps, _, _ = token_logps(lm, PROMPTS[:2], ids, lengths)
    assert not logps[0].any()
    assert logps[1].all()


def test_impossible_tokens_give_no_nan_entropy() -> None:
    from tunesmith.testing.tabular import tabular_lm

    lm = tabular_lm(symbols=2, depth=2)
    logps, entropy, _ = token_logps(lm, [[3]], torch.tensor([[1, 0]]), torch.tensor([2]))
    assert logps.tolist()[0] == pytest.approx([-np.log(3)] * 2)
    assert entropy.tolist()[0] == pytest.approx([np.log(3)] * 2)
    entropy.sum().backward()
    assert torch.isfinite(lm.model.table.weight.grad).all()


def test_a_decoder_needs_a_prompt_token() -> None:
    with pytest.raises(DataError, match="row 1"):
        token_logps(llama(), [[3], []], torch.tensor([[1], [1]]), torch.tensor([1, 1]))


def test_an_encoder_cannot_be_scored() -> None:
    lm = llama()
    lm.family = "encoder"
    with pytest.raises(MissingPower):
        token_logps(lm, [[3]], torch.tensor([[1]]), torch.tensor([1]))

"""Side by side with peft's own wrappers, and with the papers' formulas."""

import json

import peft
import pytest
import torch

from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith.testing.adapters import IDS, MASK, move, outputs
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.adapters import IA3, Bottleneck, LoRA, Prefix, Prompt


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder", "encoder"])
@pytest.mark.parametrize("config", [LoRA(rank=2), IA3()], ids=["lora", "ia3"])
def test_peft_itself_reads_what_we_save_and_computes_the_same(family, config, tmp_path):
    lm = config.build().attach(tiny_lm(family), Runtime())
    move(lm.adapters[0])
    expected = outputs(lm)
    lm.adapters[0].save(tmp_path)
    theirs = peft.PeftModel.from_pretrained(tiny_lm(family).model, tmp_path).eval()
    extra = {"decoder_input_ids": torch.tensor([[5, 6, 7], [8, 9, 10]])} if family == "encoder-decoder" else {}
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=IDS, attention_mask=MASK, **extra).logits, expected)


def test_prefix_on_a_decoder_equals_pefts_prefix_tuning(tmp_path):
    lm = Prefix(tokens=3).build().attach(tiny_lm("decoder"), Runtime())
    move(lm.adapters[0])
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    theirs = peft.get_peft_model(tiny_lm("decoder").model, config).eval()
    with torch.no_grad():
        (_, ours), *_ = lm.adapters[0].trainable()
        theirs.prompt_encoder["default"].embedding.weight.copy_(ours)
        row = IDS[:1]
        expected = theirs(input_ids=row, attention_mask=torch.ones_like(row)).logits
        found = lm.model(input_ids=row, attention_mask=torch.ones_like(row)).logits
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("family", ["decoder", "encoder-decoder"])
def test_prompt_equals_given_embeddings(family):
    """The plain model, given the vectors and the text's embeddings as one sequence, computes the same."""
    lm = Prompt(tokens=3).build().attach(tiny_lm(family), Runtime())
    plain = tiny_lm(family).model
    vectors = dict(lm.adapters[0].trainable())["embedding.weight"]
    embeds = torch.cat([vectors.expand(2, -1, -1), plain.get_input_embeddings()(IDS)], dim=1)
    mask = torch.cat([torch.ones(2, 3, dtype=torch.long), MASK], dim=1)
    with torch.no_grad():
        if family == "decoder":
            expected = plain(inputs_embeds=embeds, attention_mask=mask).logits[:, 3:]
        else:
            answer = torch.tensor([[5, 6, 7], [8, 9, 10]])
            expected = plain(inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=answer).logits
    assert torch.allclose(outputs(lm), expected, atol=1e-5)


def test_prompts_of_an_encoder_decoder_have_one_row_a_token_and_each_is_used():
    lm = Prompt(tokens=4).build().attach(tiny_lm("encoder-decoder"), Runtime())
    ((_, rows),) = lm.adapters[0].trainable()
    assert rows.shape[0] == 4  # peft's own default makes 8, of which 4 never matter
    lm.model(input_ids=IDS, attention_mask=MASK, labels=IDS).loss.backward()
    assert (rows.grad.abs().sum(-1) > 0).all()


def test_vocabulary_start_values_are_rows_of_the_embedding_table():
    lm = Prompt(tokens=5).build().attach(tiny_lm("decoder"), Runtime())
    table = tiny_lm("decoder").model.get_input_embeddings().weight
    ((_, rows),) = lm.adapters[0].trainable()
    assert all((table == row).all(-1).any() for row in rows)


def test_lora_is_w_plus_scaled_b_a():
    lm = LoRA(rank=2, alpha=6.0, targets=("self_attn.q_proj",)).build().attach(tiny_lm("decoder"), Runtime())
    move(lm.adapters[0])
    state = {n: p.detach().double() for n, p in lm.adapters[0].trainable()}
    plain = tiny_lm("decoder").model
    merged = lm.adapters[0].merge(lm).model
    for index in range(2):
        name = f"model.layers.{index}.self_attn.q_proj"
        delta = 6.0 / 2 * state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"]
        expected = plain.get_submodule(name).weight.double() + delta
        assert torch.allclose(merged.get_submodule(name).weight.double(), expected, atol=1e-6)


def test_lora_reaches_the_best_approximation_of_its_rank():
    """Eckart and Young (1936): fitting W + D with D of singular values 4, 3, 2, 1 on white inputs leaves 14, 5, 1, 0."""
    torch.manual_seed(0)
    size = 8
    u, v = (torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0] for _ in range(2))
    difference = u[:, :4] @ torch.diag(torch.tensor([4.0, 3, 2, 1], dtype=torch.float64)) @ v[:, :4].T
    for rank, residual in ((1, 14.0), (2, 5.0), (3, 1.0), (4, 0.0)):
        layer = torch.nn.Sequential(torch.nn.Linear(size, size, bias=False, dtype=torch.float64))
        target = layer[0].weight.detach() + difference
        adapter = LoRA(rank=rank, alpha=float(rank), targets=("0",)).build()
        model = adapter.attach(LM(model=layer, tokenizer=None, family="decoder"), Runtime()).model
        parameters = [parameter for _, parameter in adapter.trainable()]
        optimizer = torch.optim.LBFGS(
            parameters, lr=1, max_iter=400, line_search_fn="strong_wolfe", tolerance_grad=1e-10
        )

        def closure(model=model, target=target, optimizer=optimizer):
            optimizer.zero_grad()
            loss = ((model(torch.eye(size, dtype=torch.float64)).T - target) ** 2).sum()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        assert float(closure().detach()) == pytest.approx(residual, abs=1e-3)


@pytest.mark.parametrize("style", ["houlsby", "pfeiffer", "parallel"])
def test_bottlenecks_stand_where_the_papers_put_them(style):
    lm = Bottleneck(style=style, reduction=8).build().attach(tiny_lm("encoder"), Runtime())
    places = {name.rsplit(".", 2)[0] for name, _ in lm.adapters[0].trainable()}
    per_layer = {
        "houlsby": {"attention-output-dense", "output-dense"},
        "pfeiffer": {"output-dense"},
        "parallel": {"output-dense"},
    }
    assert places == {f"bert-encoder-layer-{i}-{end}" for i in range(2) for end in per_layer[style]}


def test_a_parallel_bottleneck_reads_the_sublayers_input_and_a_sequential_one_its_output():
    """Checked by hand on the last feed-forward part of a Llama: out + 4 f(in) and out + f(out)."""
    for style in ("parallel", "pfeiffer"):
        lm = Bottleneck(style=style, reduction=8).build().attach(tiny_lm("decoder"), Runtime())
        move(lm.adapters[0])
        plain = tiny_lm("decoder").model.model.layers[1].mlp
        x = torch.randn(1, 4, 32)
        p = {n.split("layers-1-mlp-down_proj.")[-1]: t for n, t in lm.adapters[0].trainable() if "layers-1" in n}
        with torch.no_grad():
            out = plain(x)
            read = x if style == "parallel" else out
            f = torch.relu(read @ p["down.weight"].T + p["down.bias"]) @ p["up.weight"].T + p["up.bias"]
            expected = out + (4.0 if style == "parallel" else 1.0) * f
            assert torch.allclose(lm.model.model.layers[1].mlp(x), expected, atol=1e-5)


def test_saved_lora_carries_pefts_configuration(tmp_path):
    lm = LoRA(rank=2).build().attach(tiny_lm("decoder"), Runtime())
    lm.adapters[0].save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2

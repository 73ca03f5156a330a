"""What the report of an int8 model says of tied heads and of what stays float, and what is refused."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers

import tunesmith as ts
from tunesmith.errors import ConfigError
from tunesmith.report import content
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors import Int8, Int8Static, Int8WeightOnly, OutlierSplit, Scheme
from tunesmith_plugins.compressors.int8_report import sqnr
from tunesmith_plugins.stages.compress import _content

RUNTIME = Runtime(progress=False)
LAYERS = 2  # the second reads what the int8 first gives


def mixtral(**options: object) -> transformers.MixtralForCausalLM:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, **options,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config).eval()


HEADS = {"gpt2": "lm_head", "t5": "lm_head", "bert": "cls.predictions.decoder"}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("config", [Int8(), Int8WeightOnly(group_size=32), OutlierSplit()])
def test_a_tied_head_has_its_line(make, kind, config):
    lm = make(kind)
    exact = lm.model.get_output_embeddings()
    exact = torch.nn.Linear(32, 30, bias=exact.bias is not None).requires_grad_(False)
    exact.load_state_dict(lm.model.get_output_embeddings().state_dict())
    small, report = config.build().compress(lm, runtime=RUNTIME)
    (line,) = [line for line in report.layers if line["name"] == HEADS[kind]]
    mode = "weight_only" if isinstance(config, Int8WeightOnly) else "dynamic"
    assert line["scheme"] == f"{mode}, tied"
    assert line["shape"] == [30, 32]
    assert all(line.keys() == other.keys() for other in report.layers)
    rows = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert line["output_sqnr_db"] == round(sqnr(exact(rows), small.model.get_output_embeddings()(rows)), 2)
    embedding = next(other for other in report.layers if other["scheme"] == "embedding")
    assert line["sqnr_db"] == embedding["sqnr_db"]
    assert line["int8_us"] > 0
    assert report.summary["float_us"] >= line["float_us"]


def test_a_tied_head_without_measurement_has_a_line_as_the_others(make):
    _, report = Int8(measure_rows=0).build().compress(make("gpt2"), runtime=RUNTIME)
    assert {line["output_sqnr_db"] for line in report.layers} == {None}
    assert "lm_head" in [line["name"] for line in report.layers]


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        (Scheme(kind="weight_only", group_size=32), "group_size=32"),
        (Scheme(kind="outlier_split"), "kind='outlier_split'"),
    ],
)
def test_what_a_tied_head_cannot_be_is_refused(make, scheme, said):
    with pytest.raises(ConfigError, match=f"'lm_head' asks for {said}.*embedding transformer.wte"):
        Int8(modules={"lm_head": scheme}).build().compress(make("gpt2"), runtime=RUNTIME)
    # an untied one can
    untied = Int8(modules={"lm_head": scheme}).build().compress(make("llama"), runtime=RUNTIME)[1]
    assert scheme.kind in [line["scheme"] for line in untied.layers if line["name"] == "lm_head"]


def test_a_static_range_for_a_tied_head_is_refused(make):
    data = [ts.Example(id="0", prompt="a b", targets=("c d",))]
    with pytest.raises(ConfigError, match="kind='static'"):
        Int8Static(modules={"lm_head": Scheme(kind="static")}).build().compress(
            make("gpt2"), data=data, runtime=RUNTIME
        )
    for kind in ("dynamic", "weight_only"):
        config = Int8Static(modules={"lm_head": Scheme(kind=kind)})
        _, report = config.build().compress(make("gpt2"), data=data, runtime=RUNTIME)
        assert f"{kind}, tied" in [line["scheme"] for line in report.layers]


def test_experts_of_an_unknown_kind_stay_float_and_are_named_with_a_warning():
    model = mixtral()
    model.model.layers[0].mlp.experts.temperature = torch.nn.Parameter(torch.ones(4))
    with pytest.warns(UserWarning, match=r"% of the weights stay floating point.*mlp\.experts\.gate_up_proj"):
        _, report = Int8().build().compress(ts.LM(model=model, tokenizer=None, family="decoder"), runtime=RUNTIME)
    left = report.summary["float_weights"]
    assert {"model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"} <= set(left)
    plain = dict(mixtral().named_parameters())
    assert report.summary["float_bytes"] == sum(4 * plain[name].numel() for name in left)
    assert report.summary["float_bytes"] > 0.5 * report.bytes[1]
    tables = _content(report, 0).tables
    assert isinstance(tables[-1], content.Table)
    assert "Still floating point" in tables[-1].note
    assert left[0] in tables[-1].note


@pytest.mark.parametrize(
    "options",
    [
        {"skip": ("experts",)},
        {"modules": {"mlp": Scheme(kind="float")}},
    ],
)
def test_what_was_asked_for_is_named_without_a_warning(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        lm = ts.LM(model=mixtral(), tokenizer=None, family="decoder")
        _, report = Int8(**options).build().compress(lm, runtime=RUNTIME)
    assert "model.layers.0.mlp.experts.gate_up_proj" in report.summary["float_weights"]


@pytest.mark.parametrize("kind", ["gpt2", "t5", "llama"])
def test_only_positions_stay_float_in_dense_models_and_embeddings_where_asked(make, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, report = Int8().build().compress(make(kind), runtime=RUNTIME)
        positions = {"gpt2": 1, "t5": 2, "llama": 0}[kind]
        assert len(report.summary["float_weights"]) == positions
        _, report = Int8(embeddings=False).build().compress(make(kind), runtime=RUNTIME)
        assert len(report.summary["float_weights"]) == positions + 1
        assert report.summary["float_bytes"] >= 4 * 30 * 32


def test_large_tables_of_positions_are_named_without_a_warning():
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=60, hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=4, word_embed_proj_dim=32
    )
    lm = ts.LM(model=transformers.OPTForCausalLM(config).eval(), tokenizer=None, family="decoder")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        _, report = Int8().build().compress(lm, runtime=RUNTIME)
    assert report.summary["float_weights"] == ["model.decoder.embed_positions.weight"]


def test_a_linear_layer_with_a_forward_of_its_own_stays_as_it_is_unless_that_is_known_to_be_plain():
    torch.manual_seed(0)
    config = transformers.FalconConfig(
        vocab_size=30,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        new_decoder_architecture=True,
        num_kv_heads=2,
    )
    model = transformers.FalconForCausalLM(config).eval()

    class Doubled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model.lm_head = Doubled(32, 30, bias=False)
    model.config.tie_word_embeddings = False
    ids = torch.arange(8)[None]
    with torch.no_grad():
        exact = model(ids).logits
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            small, report = (
                Int8().build().compress(ts.LM(model=model, tokenizer=None, family="decoder"), runtime=RUNTIME)
            )
        assert sqnr(exact, small.model(ids).logits) > 34
    assert "lm_head.weight" in report.summary["float_weights"]
    assert "transformer.h.0.mlp.dense_h_to_4h" in [line["name"] for line in report.layers]

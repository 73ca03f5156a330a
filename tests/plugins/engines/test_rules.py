"""What a model's generation config says, against transformers' own ``generate`` with the same config."""

import logging
from types import SimpleNamespace

import pytest
import torch
import transformers

from tunesmith import spec
from tunesmith.data import Example
from tunesmith.errors import ConfigError
from tunesmith.evaluation import evaluate
from tunesmith.generation import generate, prompt_ids
from tunesmith.hf_generate import custom_generate
from tunesmith.kinds.sampler import Sampler
from tunesmith.kinds.stage import StageConfig
from tunesmith.lm import LM
from tunesmith.model_settings import DRAWING, decoder_of, sampler_of
from tunesmith.processes import Processes
from tunesmith.runtime import Runtime, derive_seed
from tunesmith.testing.models import tiny_lm, tiny_tokenizer
from tunesmith_plugins.compressors.distill_texts import _takes_padding_for_text, teacher_texts
from tunesmith_plugins.decoders import Beam, Contrastive, DiverseBeam, Guidance, Stepwise
from tunesmith_plugins.engines import Transformers
from tunesmith_plugins.engines.rules import ModelForcedLink
from tunesmith_plugins.metrics import Rouge
from tunesmith_plugins.rl_algorithms import PPO
from tunesmith_plugins.rl_algorithms.rollouts import Drawer
from tunesmith_plugins.samplers import Greedy, Temperature, presets
from tunesmith_plugins.stages import Generate
from tunesmith_plugins.stages.align_reward import _fitted
from tunesmith_plugins.stages.config import Generation

PROMPTS = ["the cat sees a tree", "dog", "one two red and blue fish in the house"]
SIZES = {"vocab_size": 51, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}
HALVES = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64, "decoder_start_token_id": 1, **SIZES,
}  # fmt: skip
TASTE = {"num_beams": 1, "no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "min_length": 0, "early_stopping": False}

MODELS = {
    # as bart-large-cnn
    "bart": (
        "Bart",
        {"num_beams": 4, "no_repeat_ngram_size": 3, "forced_bos_token_id": 7, "forced_eos_token_id": 1, "min_length": 6,
         "length_penalty": 2.0, "early_stopping": True},
    ),
    "bart, greedy": (
        "Bart",
        {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "forced_bos_token_id": 7, "forced_eos_token_id": [1, 9]},
    ),
    # as opus-mt: padding is a bad word, and an end that is called one is none
    "marian": ("Marian", {"num_beams": 3, "bad_words_ids": [[0], [12, 13], [1]], "forced_eos_token_id": 1}),
    "mbart": (
        "MBart",
        {"num_beams": 3, "forced_bos_token_id": 20, "begin_suppress_tokens": [14, 15, 37], "suppress_tokens": [30, 31, 99]},
    ),
    # as nllb-200
    "m2m100": ("M2M100", {"num_beams": 2, "forced_bos_token_id": 11, "forced_eos_token_id": 1}),
    "llama": (
        "Llama",
        {"eos_token_id": [1, 9, 20], "suppress_tokens": [5, 6, 7, 8], "begin_suppress_tokens": [48, 28, 42],
         "bad_words_ids": [[33], [9], [12, 13]], "forced_eos_token_id": 9, "forced_bos_token_id": 17},
    ),
}  # fmt: skip


def made(name):
    family, settings = MODELS[name]
    if family == "Llama":
        lm = tiny_lm()
    else:
        head = {"Marian": "MarianMTModel"}.get(family, f"{family}ForConditionalGeneration")
        torch.manual_seed(0)
        model = getattr(transformers, head)(getattr(transformers, f"{family}Config")(**HALVES)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.3)
        lm = LM(model=model, tokenizer=tiny_tokenizer(), family="encoder-decoder")
    lm.model.generation_config.forced_eos_token_id = None
    for setting, value in settings.items():
        setattr(lm.model.generation_config, setting, value)
    return lm


def theirs(lm, ids, **options):
    given = torch.tensor([ids])
    mask = torch.ones_like(given)
    found = lm.model.generate(given, attention_mask=mask, pad_token_id=0, **options)
    return tuple(found[0, len(ids) if lm.family == "decoder" else 1 :].tolist())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("most", [1, 7])
def test_texts_are_those_of_transformers_with_the_same_generation_config(name, most):
    lm = made(name)
    prompts = list(prompt_ids(lm, PROMPTS))
    if lm.family == "decoder":
        prompts.append([3])  # behind a single token a forced one is the first
    plain = generate(lm, prompts, max_new_tokens=most)
    asked = generate(lm, prompts, max_new_tokens=most, sampler="model", decoder="model")
    for ids, free, own in zip(prompts, plain, asked, strict=True):
        expected = theirs(lm, ids, max_new_tokens=most)
        assert own.token_ids == expected[: len(own.token_ids)]
        assert own.finish == "eos" or len(own.token_ids) == most
        # without taste: the rules alone, and the same in transformers' own loop
        assert free.token_ids == theirs(lm, ids, max_new_tokens=most, **TASTE)
        assert free.token_ids == theirs(lm, ids, max_new_tokens=most, custom_generate=custom_generate(), **TASTE)


class Own(Sampler):
    """A sampler that is no chain."""

    @classmethod
    def of(cls, plain):
        sampler = cls(plain)
        sampler.plain = plain.build()
        sampler.config = type("Own", (), {})()
        return sampler

    def sample(self, logits, rows, *, top=0, logp=()):
        assert set(rows.parameters) <= {"own.x"}
        return self.plain.sample(logits, rows, top=top, logp=logp)


def test_forced_tokens_have_the_models_own_log_probability():
    """With which a policy is trained, and which ``score`` gives; in a search they cost nothing."""
    lm = made("bart")
    engine = Transformers().build()
    found = generate(lm, PROMPTS, max_new_tokens=4, engine=engine)
    found += generate(lm, PROMPTS, max_new_tokens=4, engine=engine, sampler=Own.of(Greedy()))
    found += generate(lm, PROMPTS, max_new_tokens=4, engine=engine, decoder="contrastive")
    scores = engine.score(list(zip(prompt_ids(lm, PROMPTS) * 3, [c.token_ids for c in found], strict=True)))
    for completion, expected in zip(found, scores, strict=True):
        assert completion.token_ids[0] == 7
        assert completion.logp == pytest.approx(expected, abs=1e-4)
        assert min(completion.logp) < -1
    for completion in generate(lm, PROMPTS, max_new_tokens=4, decoder="beam(beams=2)"):
        assert completion.logp[0] == 0


def test_each_row_ends_at_its_own_length_unless_it_is_told_otherwise():
    lm = made("bart")
    # a forced end is no bad word
    options = {
        "sampler": "chain(links=[bad_words(sequences=[[1]]), temperature, top_k(k=2)])",
        "max_new_tokens": [2, 5, 9],
    }
    for decoder in ("stepwise", "speculative(verify=tokens)", "speculative", "self_consistency(n=2)"):
        found = generate(lm, PROMPTS, decoder=decoder, **options)
        assert [c.token_ids[0] for c in found] == [7, 7, 7]
        assert [len(c.token_ids) for c in found] == [2, 5, 9], decoder
        assert {(c.token_ids[-1], c.finish) for c in found} == {(1, "length")}, decoder
    for other in ({"engine": Transformers(forced_end=False)}, {"max_new_tokens": 5, "min_new_tokens": 5}):
        found = generate(lm, PROMPTS, **{**options, **other})
        assert {c.finish for c in found} == {"length"}
        assert 1 not in {c.token_ids[-1] for c in found}


def test_a_forced_end_is_told_from_the_models_own():
    lm = made("bart")
    pieces = list(generate(lm, PROMPTS, max_new_tokens=[2, 3, 4], stream=True))
    last = [piece.completion for piece in pieces if piece.completion is not None]
    assert {(len(c.token_ids), c.token_ids[-1], c.finish) for c in last} == {(n, 1, "length") for n in (2, 3, 4)}
    examples = [Example(id=text, prompt=text) for text in PROMPTS]
    assert teacher_texts(lm, examples, beams=2, max_new_tokens=4, runtime=Runtime(progress=False))[1] == len(PROMPTS)
    lm.model.generation_config.eos_token_id = [1, 7]  # the forced beginning is an end
    assert {c.finish for c in generate(lm, PROMPTS, max_new_tokens=4)} == {"eos"}


@pytest.mark.parametrize("decoder", ["stepwise", "beam(beams=2)", "contrastive", "speculative"])
def test_what_the_caller_forces_or_allows_goes_before_what_the_model_forces(decoder):
    lm = made("bart")
    lm.model.generation_config.begin_suppress_tokens = [9]

    def written(sampler):
        return [c.token_ids for c in generate(lm, PROMPTS, max_new_tokens=[3, 4, 4], sampler=sampler, decoder=decoder)]

    found = written("forced_tokens(at={'0': 9})")
    assert {(ids[0], ids[-1]) for ids in found} == {(9, 1)}
    found = written("forced_tokens(at={'3': 12})")
    assert [(ids[0], ids[-1]) for ids in found] == [(7, 1), (7, 12), (7, 12)]
    assert {token for ids in written("allowed_tokens(tokens=[20, 21])") for token in ids} <= {20, 21}


def test_rules_of_two_positions_cost_the_others_nothing(monkeypatch):
    """Elsewhere a chain is one kernel call that is planned once, which a link that may have something to say would prevent."""
    asked = []
    for name in ("apply", "lower"):
        plain = getattr(ModelForcedLink, name)
        monkeypatch.setattr(ModelForcedLink, name, lambda *a, plain=plain: asked.append(a[-1].position[0]) or plain(*a))
    generate(made("bart"), PROMPTS, max_new_tokens=8)
    assert {int(position) for position in asked} == {0, 7}


def test_a_sampler_that_is_no_chain_keeps_to_the_rules():
    class Least(Own):
        """The first token that is left."""

        def sample(self, logits, rows, *, top=0, logp=()):
            least = torch.where(logits > -torch.inf, -torch.arange(logits.shape[1]).float(), logits)
            return super().sample(least, rows, logp=logp)

    sampler = Least.of(Greedy())
    lm = made("marian")
    lm.model.generation_config.bad_words_ids = [[0], [2], [3], [5, 5]]
    lm.model.generation_config.forced_bos_token_id = 5
    lm.model.generation_config.eos_token_id = 50
    found = generate(lm, PROMPTS, sampler=sampler, max_new_tokens=[3, 4, 4])
    assert [c.token_ids for c in found] == [(5, 1, 1), (5, 1, 1, 1), (5, 1, 1, 1)]


def test_settings_of_taste_become_a_sampler_and_a_decoder():
    lm = tiny_lm()
    settings = lm.model.generation_config
    # as Llama-3-Instruct
    settings.do_sample, settings.temperature, settings.top_p, settings.eos_token_id = True, 0.6, 0.9, [1, 9]
    settings.repetition_penalty = 1.1
    assert sampler_of(lm) == presets.hf(repetition_penalty=1.1, temperature=0.6, top_p=0.9)
    settings.min_p, settings.top_k, settings.typical_p, settings.top_h = 0.1, 0, 0.8, 0.5
    settings.epsilon_cutoff, settings.eta_cutoff, settings.min_new_tokens = 0.01, 0.02, 3
    names = [link.link_name for link in sampler_of(lm).links]
    assert names == [
        "repetition_penalty",
        "min_length",
        "temperature",
        "top_h",
        "top_p",
        "min_p",
        "typical",
        "epsilon",
        "eta",
    ]
    settings.do_sample, settings.sequence_bias, settings.exponential_decay_length_penalty = (
        False,
        [[[4, 5], 2.0]],
        (3, 1.5),
    )
    names = [link.link_name for link in sampler_of(lm).links]
    assert (sampler_of(lm).draw, names[0], names[-1]) == ("greedy", "sequence_bias", "length_decay")
    for own, expected in [
        ({}, Stepwise()),
        ({"num_beams": 4, "early_stopping": "never", "length_penalty": 2}, Beam(beams=4, early_stopping="never", length_penalty=2.0)),
        ({"num_beams": 4, "do_sample": True}, Beam(beams=4, draws=True)),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.3}, DiverseBeam(groups=2, penalty=0.3)),
        ({"penalty_alpha": 0.6, "top_k": 4}, Contrastive(top_k=4, alpha=0.6)),
        ({"guidance_scale": 2, "num_beams": 3}, Guidance(scale=2.0, decoder=Beam(beams=3))),
    ]:  # fmt: skip
        lm.model.generation_config = transformers.GenerationConfig(**own)
        assert decoder_of(lm) == expected


def test_in_transformers_own_generate_the_calls_settings_draw():
    lm = tiny_lm()
    given = torch.tensor(prompt_ids(lm, PROMPTS[:1]))
    settings = {"do_sample": True, "temperature": 1.7, "top_k": 7, "top_p": 0.9, "max_new_tokens": 6, "pad_token_id": 0}
    found = [
        lm.model.generate(given, custom_generate=custom_generate(sampler, seed=5), **settings).tolist()
        for sampler in ("model", presets.hf(temperature=1.7, top_k=7, top_p=0.9), None)
    ]
    assert found[0] == found[1] != found[2]
    settings["do_sample"] = False
    assert lm.model.generate(given, custom_generate=custom_generate("model"), **settings).tolist() == found[2]
    with pytest.raises(ConfigError, match="no parameter 'top_p.p'"):
        lm.model.generate(given, custom_generate=custom_generate("model", parameters={"top_p.p": 0.5}), **settings)


def test_what_cannot_be_is_said_to_stand_in_the_generation_config():
    lm = tiny_lm()
    lm.model.generation_config.repetition_penalty, lm.model.generation_config.num_beams = -1.0, 10**9
    for model in ({"sampler": "model"}, {"decoder": "model"}):
        with pytest.raises(ConfigError, match=r"(?s)generation config of LlamaForCausalLM.*must be"):
            generate(lm, PROMPTS, **model)
    # and of beams that draw, from what
    lm = made("bart")
    lm.model.generation_config.do_sample = True
    with pytest.raises(ConfigError, match=r"(?s)generation config of Bart.*do_sample.*give sampler='model' too"):
        generate(lm, PROMPTS, decoder="model")
    with pytest.raises(ConfigError, match=r"GreedySampler\(Greedy\(\)\)"):  # not the chain that keeps to the rules
        generate(lm, PROMPTS, decoder="model", sampler="greedy")


def test_what_is_not_used_is_named_once(caplog):
    caplog.set_level(logging.WARNING)
    lm = made("bart")
    lm.model.generation_config.encoder_no_repeat_ngram_size = 3
    generate(lm, PROMPTS[:1], max_new_tokens=1)
    said = caplog.text
    for name in (
        "num_beams=4",
        "no_repeat_ngram_size=3",
        "min_length=6",
        "sampler='model'",
        "encoder_no_repeat_ngram_size=3",
    ):
        assert name in said
    assert "forced" not in said
    generate(lm, PROMPTS[:1], max_new_tokens=1)
    assert caplog.text == said
    caplog.clear()
    generate(made("bart"), PROMPTS[:1], max_new_tokens=1, sampler="model", decoder="model")
    generate(made("bart"), PROMPTS[:1], max_new_tokens=1, sampler="greedy", decoder="stepwise")
    assert caplog.text == ""


def test_each_setting_that_is_not_used_is_named_whatever_was_said_before(caplog):
    caplog.set_level(logging.WARNING)
    lm = tiny_lm()
    settings = lm.model.generation_config
    settings.do_sample, settings.temperature, settings.top_p, settings.min_length = True, 0.6, 0.9, 20
    settings.stop_strings, settings.renormalize_logits = ["x"], True
    settings.prompt_lookup_num_tokens = 3  # saves time, and changes no text
    generate(lm, PROMPTS[:1], max_new_tokens=1, sampler="temperature", decoder="stepwise")
    # of a model whose minimum counts the prompt, sampler='model' does not take it
    first = caplog.text
    assert "stop_strings" in first
    assert "renormalize_logits=True" in first
    assert "prompt_lookup" not in first
    assert "min_length=20 (with the prompt)" in first
    assert "sampler='model'" not in first
    caplog.clear()
    generate(lm, PROMPTS[:1], max_new_tokens=1)
    (record,) = caplog.records
    for name in ("do_sample=True", "temperature=0.6", "top_p=0.9", "sampler='model'"):
        assert name in record.getMessage()
    assert "min_length" not in record.getMessage()


def test_the_steps_of_draws_are_asked_for_by_the_values_that_transformers_goes_by():
    model = tiny_lm().model
    names = {"temperature": 0.5, "top_h": 0.4, "top_k": 3, "top_p": 0.5, "min_p": 0.1, "typical_p": 0.5}
    for changed in (*names, "epsilon_cutoff", "eta_cutoff"):
        for value in (names.get(changed, 0.1), 0, 0.0, 1, 1.0, None):
            settings = transformers.GenerationConfig(do_sample=True)
            for name in DRAWING:
                setattr(settings, name, None)
            setattr(settings, changed, value)
            try:
                theirs = model._get_logits_processor(settings, input_ids_seq_length=2, device="cpu")
            except ValueError:  # no such value
                continue
            step = DRAWING[changed]
            assert [type(p).__name__ for p in theirs] == [step.warper] * step.asked(value), (changed, value)


def test_teachers_and_benchmarks_whose_ways_are_fixed_give_no_advice(caplog):
    caplog.set_level(logging.WARNING)
    lm = made("bart")
    teacher_texts(lm, [Example(id="a", prompt="dog")], beams=1, max_new_tokens=2, runtime=Runtime())
    assert "sampler='model'" not in caplog.text
    padded = SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=True))
    assert not _takes_padding_for_text(SimpleNamespace(_orig_mod=padded))  # as torch.compile wraps it


def test_an_evaluation_may_write_as_the_model_asks():
    lm, examples = made("bart"), [Example(id="a", prompt=PROMPTS[0], targets=("dog",))]
    how = Generation(sampler="model", decoder="model", max_new_tokens=7)
    (found,) = evaluate(lm, examples, [Rouge()], generation=how, runtime=Runtime()).predictions
    (asked,) = generate(lm, PROMPTS[:1], max_new_tokens=7, sampler="model", decoder="model")
    assert found.token_ids == asked.token_ids
    plain = spec.dump(Generate(generation=how, samplers={"own": "model", "drawn": Temperature()}))
    assert spec.load(plain, StageConfig).generation == how
    assert spec.load(plain, StageConfig).samplers == {"own": "model", "drawn": Temperature()}
    with pytest.raises(ConfigError, match="no sampler named 'modle'"):
        spec.load({"use": "generate", "config": {"generation": {"sampler": "modle"}}}, StageConfig)


def test_a_policy_draws_its_last_token_itself():
    """What it is trained on is what it drew: a forced end would be no choice of its own."""
    lm = made("bart")
    lm.model.generation_config.eos_token_id = 50
    lm.model.generation_config.forced_eos_token_id = 50
    # nor is one in what a reward is measured on beforehand
    seen = []
    watching = SimpleNamespace(fit_reference=lambda prompts, texts: seen.extend(texts) or {})
    asked = SimpleNamespace(reference_samples=3, algorithm=PPO(max_new_tokens=4))
    _fitted(watching, asked, SimpleNamespace(runtime=Runtime(progress=False)), lm, PROMPTS, {})
    drawn = generate(
        lm, PROMPTS, sampler="temperature", seed=derive_seed(0, "reference samples"), max_new_tokens=4,
        engine=Transformers(forced_end=False),
    )  # fmt: skip
    assert seen == [c.text for c in drawn]
    assert {len(c.token_ids) for c in drawn} == {4}
    drawer = Drawer(lm, PROMPTS, 1.0, 4, 16, Runtime(), Processes())
    drawn = drawer.draw(range(3), "test")
    assert drawn.ids[:, 0].tolist() == [7, 7, 7]
    assert drawn.ids[:, -1].tolist() != [50, 50, 50]
    pairs = [(p, ids[:n].tolist()) for p, ids, n in zip(drawn.prompt_ids, drawn.ids, drawn.lengths, strict=True)]
    for scores, logps, n in zip(drawer.engine.score(pairs), drawn.drawn_logps, drawn.lengths, strict=True):
        assert logps[:n].tolist() == pytest.approx(scores, abs=1e-4)

"""Adapters of peft switched on, off, over to another, both on, and folded in between two texts, in every way that text is written.

Engines, decoders, samplers and what is handed to transformers are made once and serve through all of it. What each state has
to give is what a plain model gives whose weights have been changed to that state, with everything made anew.
"""

import copy
from contextlib import contextmanager

import peft
import pytest
import torch

from tunesmith import hf
from tunesmith.errors import ConfigError
from tunesmith.generation import component, generate, prompt_ids
from tunesmith.kinds.decoder import Limits, Request
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith.testing.models import tiny_lm

PROMPTS = ["the cat sees a tree", "dog", "one two red and blue fish"]
HOT = "chain(links=[repetition_penalty(penalty=1.3), temperature(temperature=1.5), top_p(p=0.9)])"
COUNT = 6
STATES = ("a", "off", "b", "off", "a folded in", "a", "both", "b")
DECODERS = {
    "stepwise": None,
    "drawn": HOT,
    "beam(beams=3)": None,
    "diverse_beam(beams=4, groups=2)": None,
    "contrastive": None,
    "guidance(scale=2.0)": HOT,
    "guidance(decoder=beam(beams=2))": None,
    "speculative": None,
    'speculative(tokens=3, verify="tokens")': HOT,
    "best_of_n(n=3)": HOT,
    'self_consistency(n=3, answer="text")': HOT,
}


def adapted(family):
    """A model with the adapters ``a`` and ``b`` of peft on it, which change much."""
    lm = tiny_lm(family, seed=1)
    modules = ["q_proj", "v_proj", "up_proj"] if family == "decoder" else ["q", "v", "wi"]
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=modules, init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = peft.get_peft_model(lm.model, config, adapter_name="a")
        model.add_adapter("b", config)
    return LM(model=model.eval(), tokenizer=lm.tokenizer, family=lm.family)


@contextmanager
def switched(model, state):
    if state == "off":
        with model.disable_adapter():
            yield
        return
    model.base_model.set_adapter(["a", "b"] if state == "both" else state[0])
    if state.endswith("folded in"):
        model.merge_adapter()
    try:
        yield
    finally:
        if state.endswith("folded in"):
            model.unmerge_adapter()


def plain(lm, state):
    """The model of a state without any adapter: its weights are that state's."""
    copied = copy.deepcopy(lm.model)
    if state == "off":
        model = copied.unload()
    else:
        model = copied.merge_and_unload(adapter_names=["a", "b"] if state == "both" else [state[0]])
    return LM(model=model, tokenizer=lm.tokenizer, family=lm.family)


@pytest.fixture(scope="module", params=["decoder", "encoder-decoder"])
def lm(request):
    return adapted(request.param)


class Written:
    """Writes in one way, again and again, with what it was made of."""

    def __init__(self, spec, sampler):
        self.decoder = component("stepwise" if spec == "drawn" else spec, "decoder")
        self.sampler = component(sampler, "sampler")
        self.engine = component(None, "engine")

    def __call__(self, lm, prompts=PROMPTS):
        options = {"decoder": self.decoder, "sampler": self.sampler, "engine": self.engine, "max_new_tokens": COUNT}
        return [c.token_ids for c in generate(lm, prompts, **options)]


@pytest.mark.parametrize("spec", DECODERS)
def test_each_state_gives_what_the_plain_model_of_its_weights_gives(lm, spec):
    kept, seen = Written(spec, DECODERS[spec]), {}
    expected = {state: Written(spec, DECODERS[spec])(plain(lm, state)) for state in dict.fromkeys(STATES)}
    for state in STATES:
        with switched(lm.model, state):
            seen[state] = kept(lm)
            assert kept(lm, PROMPTS[:1]) == seen[state][:1], f"{state}: alone"
        assert seen[state] == expected[state], state
    assert len({tuple(seen[state]) for state in ("off", "a", "b", "both")}) == 4, "the states give other texts"


def test_a_draft_model_proposes_the_same_whatever_the_judge_has_on(lm):
    kept = Written("speculative(tokens=3)", None)
    kept.decoder.draft_with(tiny_lm(lm.family, seed=1))
    for state in STATES:
        with switched(lm.model, state):
            assert kept(lm) == Written("stepwise", None)(lm), state


def test_an_adapted_model_may_draft_and_be_switched(lm):
    judge = tiny_lm(lm.family, seed=1)
    expected, kept = Written("stepwise", None)(judge), Written("speculative(tokens=3)", None)
    kept.decoder.draft_with(lm)
    for state in STATES:
        with switched(lm.model, state):
            assert kept(judge) == expected, state


def test_an_engine_that_was_given_the_model_once_follows(lm):
    engine, decoder, sampler = component(None, "engine"), component(None, "decoder"), component(HOT, "sampler")
    engine.sync(lm)
    requests = [Request(prompt_ids=ids, seed=5, stream=n) for n, ids in enumerate(prompt_ids(lm, PROMPTS))]

    def written(engine):
        found = engine.generate(requests, decoder, sampler, Limits(max_new_tokens=COUNT), Runtime())
        return {c.request: c.token_ids for c in found}

    for state in STATES:
        fresh = component(None, "engine")
        fresh.sync(plain(lm, state))
        with switched(lm.model, state):
            assert written(engine) == written(fresh), state


def new_ids(lm, rows, width):
    found = []
    for row in rows[:, width if lm.family == "decoder" else 1 :].tolist():
        end = next((n + 1 for n, token in enumerate(row) if token == lm.tokenizer.eos_token_id), len(row))
        found.append(tuple(row[:end]))
    return found


def test_in_transformers_generate_too(lm):
    side = "left" if lm.family == "decoder" else "right"
    inputs = dict(lm.tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side=side))
    inputs.pop("token_type_ids", None)
    mask = inputs["attention_mask"] if lm.family == "decoder" else None
    width, end = inputs["input_ids"].shape[1], lm.tokenizer.eos_token_id
    draw, greedy = hf.custom_generate(HOT, seed=3), hf.custom_generate("greedy")
    processors = hf.logits_processors(HOT, attention_mask=mask, seed=3, eos_token_id=end, draw=True)
    links = hf.logits_processors("repetition_penalty(penalty=1.3)", attention_mask=mask, eos_token_id=end)

    def written(model, **options):
        return new_ids(lm, model.generate(**inputs, max_new_tokens=COUNT, **options), width)

    for state in STATES:
        alike = plain(lm, state)
        drawn = [c.token_ids for c in generate(alike, PROMPTS, sampler=HOT, seed=3, max_new_tokens=COUNT)]
        likeliest = [c.token_ids for c in generate(alike, PROMPTS, max_new_tokens=COUNT)]
        with switched(lm.model, state):
            assert written(lm.model, custom_generate=draw) == drawn, state
            assert written(lm.model, do_sample=True, top_k=0, logits_processor=processors) == drawn, state
            assert written(lm.model, do_sample=False) == written(lm.model, custom_generate=greedy) == likeliest, state
            assert written(lm.model, do_sample=False, logits_processor=links) == written(
                alike.model, do_sample=False, repetition_penalty=1.3
            ), state


AROUND = {
    "PROMPT_TUNING": lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=3),
    "P_TUNING": lambda task: peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=3, encoder_hidden_size=16),
    "PREFIX_TUNING": lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=3),
    # "the cat"; peft has it for decoder-only models alone
    "an activated LoRA": lambda task: peft.LoraConfig(task_type=task, r=2, alora_invocation_tokens=[5, 15]),
}


@pytest.mark.parametrize(
    ("kind", "family"),
    [*((kind, "decoder") for kind in AROUND), *((kind, "encoder-decoder") for kind in list(AROUND)[:3])],
)
def test_what_works_around_generate_is_refused_step_by_step_and_runs_in_transformers_loop(kind, family):
    plain, lm = tiny_lm(family, seed=1), tiny_lm(family, seed=1)
    task = "CAUSAL_LM" if family == "decoder" else "SEQ_2_SEQ_LM"
    generator = torch.Generator().manual_seed(0)
    model = peft.get_peft_model(lm.model, AROUND[kind](task)).eval()
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    given = (model, lm.tokenizer)
    engine = component(None, "engine")
    engine.sync(LM(model=model, tokenizer=lm.tokenizer, family=family))
    for ask in (lambda: generate(given, PROMPTS, max_new_tokens=4), lambda: engine.score([([7, 9, 5], [6])])):
        with pytest.raises(ConfigError, match=f"{kind}.* wrong one token at a time; .*custom_generate"):
            ask()
    side = "left" if family == "decoder" else "right"
    inputs = lm.tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side=side)
    inputs = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "max_new_tokens": 5}
    theirs = model.generate(**inputs, do_sample=False)
    assert torch.equal(theirs, model.generate(**inputs, custom_generate=hf.custom_generate("greedy")))
    assert not torch.equal(theirs[:, -5:], plain.model.generate(**inputs, do_sample=False)[:, -5:])
    with model.disable_adapter():
        off = [c.token_ids for c in generate(given, PROMPTS, max_new_tokens=4)]
    assert off == [c.token_ids for c in generate(plain, PROMPTS, max_new_tokens=4)]

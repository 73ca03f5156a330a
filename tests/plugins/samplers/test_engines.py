"""The presets beside each engine's own steps, written from their description in plain numpy, one token after the other.

Ties are as common as in bfloat16 logits here, so that the rules for ties count too: transformers and vLLM keep all ties with
the k-th token, and top-p as many tokens as are needed counted from below; llama.cpp keeps exactly k, the likeliest first. Of
several equal tokens XTC and typical keep some there and all here: they are compared where none are equal.
"""

import math
from collections import Counter

import numpy as np
import pytest
from attrs import evolve

from tunesmith.errors import ConfigError
from tunesmith.testing.samplers import logits_of, rows_of
from tunesmith_plugins.samplers import Chain, presets

VOCAB = 61


def softmax(z):
    with np.errstate(invalid="ignore"):
        e = np.exp(z - np.max(z))
    return e / e.sum()


def drop(z, gone):
    return np.where(gone, -np.inf, z)


# --- transformers: every step a new softmax over what is left


def hf_top_k(z, k):
    return drop(z, z < sorted(z, reverse=True)[min(k, len(z)) - 1])


def ascending_top_p(z, p):
    """transformers and vLLM: from the least likely up, drop while the running sum is at most 1 - p; the last one stays."""
    probabilities, z = softmax(z), z.copy()
    running = 0.0
    order = sorted(range(len(z)), key=lambda i: (z[i], i))
    for token in order[:-1]:
        running += probabilities[token]
        if running > 1 - p:
            break
        z[token] = -np.inf
    return z


def hf_typical(z, mass):
    p = softmax(z)
    logp = np.log(np.where(p > 0, p, 1.0))
    logp[p == 0] = -np.inf
    h = -sum(pi * li for pi, li in zip(p, logp, strict=True) if pi > 0)
    shift = np.abs(-logp - h)
    order = sorted(range(len(z)), key=lambda i: shift[i])
    running, count = 0.0, 0
    for token in order:
        running += p[token]
        count += running < mass
    return drop(z, shift > shift[order[min(count, len(z) - 1)]])


def hf_cut(z, bound):
    return drop(z, (softmax(z) < bound) & (z < z.max()))


def hf_eta(z, epsilon):
    p = softmax(z)
    h = -sum(x * math.log(x) for x in p if x > 0)
    return hf_cut(z, min(epsilon, math.sqrt(epsilon) * math.exp(-h)))


def hf_top_h(z, h, candidates=100):
    order = sorted(range(len(z)), key=lambda i: (-z[i], i))[:candidates]
    p = softmax(z[order])
    parts = [-x * math.log(x) if x > 0 else 0.0 for x in p]
    running, kept = 0.0, []
    for token, part in zip(order, parts, strict=True):
        running += part
        if kept and running > h * sum(parts):
            break
        kept.append(token)
    return drop(z, ~np.isin(np.arange(len(z)), kept))


def penalised(z, ids, penalty):
    z = z.copy()
    for token in set(ids):
        z[token] = z[token] * penalty if z[token] < 0 else z[token] / penalty
    return z


def transformers(z, ids, new, o):
    if "repetition_penalty" in o:
        z = penalised(z, ids, o["repetition_penalty"])
    z = z / o.get("temperature", 1.0)
    z = hf_top_h(z, o["top_h"]) if "top_h" in o else z
    z = hf_top_k(z, o.get("top_k", 50)) if o.get("top_k", 50) else z
    z = ascending_top_p(z, o["top_p"]) if "top_p" in o else z
    z = drop(z, softmax(z) < o["min_p"] * softmax(z).max()) if "min_p" in o else z
    z = hf_typical(z, o["typical_p"]) if "typical_p" in o else z
    z = hf_cut(z, o["epsilon_cutoff"]) if "epsilon_cutoff" in o else z
    return hf_eta(z, o["eta_cutoff"]) if "eta_cutoff" in o else z


# --- vLLM: penalties of the output only (repetition: of both), min-p before top-k before top-p


def vllm(z, ids, new, o):
    z = penalised(z, ids, o.get("repetition_penalty", 1.0))
    for token, times in Counter(new).items():
        z[token] -= o.get("frequency_penalty", 0.0) * times + o.get("presence_penalty", 0.0)
    z = z / o.get("temperature", 1.0)
    p = softmax(z)
    z = drop(z, p < o.get("min_p", 0.0) * p.max())
    z = hf_top_k(z, o["top_k"]) if "top_k" in o else z
    return ascending_top_p(z, o["top_p"]) if "top_p" in o else z


# --- llama.cpp: candidates sorted once, each step cuts the list; temperature last


def llamacpp(z, ids, new, o):
    z = z.copy()
    last = o.get("repeat_last_n", 64)
    for token, times in Counter(ids if last < 0 else ids[len(ids) - min(last, len(ids)) :]).items():
        repeat = o.get("repeat_penalty", 1.0)
        z[token] = z[token] * repeat if z[token] <= 0 else z[token] / repeat
        z[token] -= times * o.get("frequency_penalty", 0.0) + o.get("presence_penalty", 0.0)
    if o.get("top_n_sigma", -1) > 0:
        finite = z[np.isfinite(z)]
        z = drop(z, z < finite.max() - o["top_n_sigma"] * math.sqrt(((finite - finite.mean()) ** 2).mean()))
    listed = sorted((i for i in range(len(z)) if np.isfinite(z[i])), key=lambda i: (-z[i], i))[: o.get("top_k", 40)]
    if "typical_p" in o:
        p = softmax(z[listed])
        h = -sum(x * math.log(x) for x in p)
        order = sorted(range(len(listed)), key=lambda i: abs(-math.log(p[i]) - h))
        running, end = 0.0, len(order)
        for place, i in enumerate(order):
            running += p[i]
            if running > o["typical_p"]:
                end = place + 1
                break
        chosen = set(order[:end])
        listed = [token for i, token in enumerate(listed) if i in chosen]
    p = softmax(z[listed])
    running, end = 0.0, len(listed)
    for place, x in enumerate(p):
        running += x
        if running >= o.get("top_p", 0.95):
            end = place + 1
            break
    listed = listed[:end]
    least = z[listed[0]] + (math.log(o.get("min_p", 0.05)) if o.get("min_p", 0.05) else -math.inf)
    listed = [token for token in listed if z[token] >= least]
    if o.get("xtc_probability") == 1.0:
        p = softmax(z[listed])
        above = [place for place, x in enumerate(p) if x >= o.get("xtc_threshold", 0.1)]
        listed = listed[above[-1] :] if len(above) > 1 else listed
    return drop(z, ~np.isin(np.arange(len(z)), listed)) / o.get("temperature", 0.8)


CASES = {
    "hf": (
        transformers,
        presets.hf,
        (
            {},
            {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.12},
            {"repetition_penalty": 1.4, "top_k": 0, "top_p": 0.9},
            {"top_k": 30, "typical_p": 0.7},
            {"top_h": 0.5, "temperature": 1.3},
            {"top_k": 0, "epsilon_cutoff": 0.02, "eta_cutoff": 0.05},
            {"top_k": 7},
        ),
    ),
    "vllm": (
        vllm,
        presets.vllm,
        (
            {"min_p": 0.1, "top_k": 20, "top_p": 0.8, "temperature": 0.7},
            {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.3, "top_k": 9},
            {"top_p": 0.5},
            {"min_p": 0.3, "top_p": 0.6},
        ),
    ),
    "llamacpp": (
        llamacpp,
        presets.llamacpp,
        (
            {},
            {"repeat_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": 0.3},
            {"repeat_penalty": 1.3, "presence_penalty": 0.3, "repeat_last_n": 3},
            {"repeat_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": 0.3, "repeat_last_n": 0},
            {"repeat_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": 0.3, "repeat_last_n": -1},
            {"top_n_sigma": -1.0},
            {"top_n_sigma": 1.2, "top_k": 30, "top_p": 0.99, "min_p": 0.01},
            {"top_k": 5, "top_p": 0.9999},
            {"typical_p": 0.6, "top_k": 20, "top_p": 1.0, "min_p": 0.0},
            {"xtc_probability": 1.0, "xtc_threshold": 0.08, "min_p": 0.01},
        ),
    ),
}


def kinds_of_rows(ties):
    base = logits_of(8, VOCAB, seed=4, spread=1.5)
    yield base
    if not ties:
        return
    yield (base * 2).round() / 2  # ties everywhere
    yield base.bfloat16().float() * 2


@pytest.mark.parametrize(
    ("engine", "options"), [(name, o) for name, (_, _, some) in CASES.items() for o in some], ids=str
)
def test_a_preset_keeps_and_values_what_the_engine_does(engine, options):
    rule, preset, _ = CASES[engine]
    ties = engine != "llamacpp" or not {"xtc_probability", "typical_p"} & set(options)
    rows = rows_of(8, VOCAB)
    rows = evolve(rows, prompt_lengths=rows.history_lengths // 2)
    for logits in kinds_of_rows(ties):
        after = logits
        for link in preset(**options).links:
            after = link.build().apply(after, rows).float()
        for row in range(8):
            ids = rows.history[row, : int(rows.history_lengths[row])].tolist()
            new = ids[int(rows.prompt_lengths[row]) :]
            expected = rule(logits[row].double().numpy(), ids, new, options)
            found = after[row].double().numpy()
            kept, wanted = np.flatnonzero(np.isfinite(found)), np.flatnonzero(np.isfinite(expected))
            assert kept.tolist() == wanted.tolist(), f"row {row}"
            np.testing.assert_allclose(found[kept], expected[kept], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("preset", "options", "messages"),
    [
        (presets.hf, {"top_k": "5"}, ["top_k: a whole number was expected, not str '5'"]),
        (presets.hf, {"top_k": True}, ["top_k: a whole number was expected, not bool True"]),
        (presets.hf, {"top_k": 5.0}, ["top_k: a whole number was expected, not float 5.0"]),
        (presets.hf, {"top_k": None}, ["top_k: a whole number was expected, not NoneType None"]),
        (presets.hf, {"top_k": -1}, ["top_k must be 0 or more: -1"]),
        (presets.llamacpp, {"top_k": 2**60, "top_p": 2}, ["top_k must be at most 9007199254740991", "top_p must be"]),
        (presets.hf, {"temperature": 0}, ["temperature must be above 0: 0.0"]),
        (presets.hf, {"top_p": math.nan}, ["top_p must be a finite number: nan"]),
        (
            presets.hf,
            {"top_p": "0.9", "typical_p": 1.5, "min_p": False, "epsilon_cutoff": -0.1},
            [
                "top_p: a number was expected",
                "typical_p must be above 0",
                "min_p: a number was",
                "epsilon_cutoff must be",
            ],
        ),
        (
            presets.vllm,
            {"top_p": 0, "top_k": -2},
            ["top_p must be above 0 and at most 1: 0", "top_k must be -1 or more: -2"],
        ),
        (presets.vllm, {"temperature": -0.5, "min_p": None}, ["temperature must be 0 or more", "min_p: a number was"]),
        (presets.vllm, {"frequency_penalty": math.inf}, ["frequency_penalty must be a finite number: inf"]),
        (presets.llamacpp, {"repeat_last_n": -2}, ["repeat_last_n must be -1 or more: -2"]),
        (presets.llamacpp, {"xtc_probability": -0.5}, ["xtc_probability must be from 0 to 1: -0.5"]),
        (presets.llamacpp, {"top_n_sigma": "1"}, ["top_n_sigma: a number was expected, not str '1'"]),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_options_of_a_wrong_kind_or_out_of_range_are_all_named(preset, options, messages):
    with pytest.raises(ConfigError) as found:
        preset(**options)
    assert found.value.where == f"presets.{preset.__name__}"
    assert len(found.value.problems) == len(messages)
    for problem, message in zip(found.value.problems, messages, strict=True):
        assert problem.startswith(message)


def test_numbers_of_numpy_and_whole_numbers_are_numbers():
    assert presets.hf(top_k=np.int64(5), top_p=np.float32(0.5), temperature=2) == presets.hf(
        top_k=5, top_p=0.5, temperature=2.0
    )
    assert presets.hf(top_h=None, min_p=None) == presets.hf()
    assert presets.vllm(top_k=-1) == Chain()
    assert presets.llamacpp(top_n_sigma=0.0, repeat_penalty=1.5, repeat_last_n=0) == presets.llamacpp()

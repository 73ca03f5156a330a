"""What the verdicts of the alignment examples rest on: intervals, KL, splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tunesmith as ts
from tunesmith.testing.models import tiny_lm


def test_the_interval_over_prompts_and_seeds_covers_the_truth(example):
    """Effects of prompts and of seeds around a known mean: at least about 95 % of the intervals hold it."""
    held_out, random = example("held_out"), np.random.default_rng(0)
    hits = 0
    for _ in range(60):
        seeds, prompts = random.normal(size=(12, 1)) * 0.3, random.normal(size=(1, 80))
        found = held_out.over_prompts_and_seeds(0.5 + seeds + prompts + random.normal(size=(12, 80)))
        hits += found.low <= 0.5 <= found.high
    assert hits >= 52


def test_an_interval_over_prompts_alone_is_the_normal_one_for_many_prompts(example):
    differences = np.random.default_rng(1).normal(0.2, 1.0, size=2000)
    found = example("held_out").over_prompts(differences)
    half = 1.96 * differences.std() / len(differences) ** 0.5
    assert found.value == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.003)


def test_measured_kl_is_that_of_two_known_models(example, tmp_path):
    """Of single tokens KL is a sum over the vocabulary; the estimate from samples agrees within four standard errors."""
    held_out, runtime = example("held_out"), ts.Runtime(threads=1)
    policy, reference = tiny_lm("decoder", seed=1), tiny_lm("decoder", seed=2)
    prompts = ["the cat sees", "a big dog"]
    bench = held_out.Bench(
        prompts=prompts,
        reference=reference,
        reward=_Constant(),
        judge=lambda texts: {"judge": np.zeros(len(texts))},
        samples=600,
        max_new_tokens=1,
        seed=0,
        runtime=runtime,
    )
    found = held_out.measure(bench, policy, tmp_path / "kept.json")
    for prompt, kl in zip(prompts, found["kl"], strict=True):
        with torch.no_grad():
            ids = torch.tensor([policy.tokenizer(prompt)["input_ids"]])
            here, there = (torch.log_softmax(lm.model(ids).logits[0, -1].double(), -1) for lm in (policy, reference))
        ratio = here - there
        truth = float((here.exp() * ratio).sum())
        noise = float((here.exp() * (ratio - truth) ** 2).sum() / 600) ** 0.5
        assert kl == pytest.approx(truth, abs=4 * noise)
    again = held_out.measure(bench, policy, tmp_path / "kept.json")
    assert all(np.array_equal(found[name], again[name]) for name in found)
    itself = held_out.measure(bench, reference, tmp_path / "kept.json")
    assert np.abs(itself["kl"]).max() < 1e-5


class _Constant:
    def score(self, prompts, completions, **columns):
        return [1.0] * len(prompts)


def test_transcripts_are_split_where_they_part(example):
    hh = example("hh_rlhf")
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert hh.shared(start + " yes", start + " no") == start
    assert hh.shared(start + " yes, it is", start + " yes") == start, "answers that begin alike stay whole"
    assert hh.shared("\n\nHuman: a\n\nAssistant: b", "\n\nHuman: x\n\nAssistant: b") == ""


def test_the_judge_and_the_reward_share_no_row_and_held_out_prompts_begin_no_training_story(
    example, tweets, stories, tmp_path
):
    import argparse

    from tunesmith.data import load_examples

    halves = {"judge": 0.45, "reward": 0.45, "test": 0.1}
    data = ts.Data(source=str(tweets), prompt="{tweet}", target="{class}", fractions=halves)
    rows = [{e.prompt for e in load_examples(data, split, ts.Runtime())} for split in halves]
    assert all(rows)
    assert sum(map(len, rows)) == len(set.union(*rows)), "no row in two splits"
    arguments = argparse.Namespace(stories=stories, folder=tmp_path / "run", quick=True)
    train, held = example("stories_sentiment").openings(arguments)
    assert not set(held) & {e.prompt for e in load_examples(train, "train", ts.Runtime())}

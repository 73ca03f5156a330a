"""For every built-in component one configuration in the short spelling: the example on its reference page."""

from __future__ import annotations

EXAMPLES: dict[str, dict[str, str]] = {
    "adapter": {
        "bottleneck": 'bottleneck(style="parallel", reduction=8)',
        "full": "full",
        "ia3": 'ia3(targets=["k", "v"])',
        "lora": 'lora(rank=16, alpha=32, targets=["q", "v"])',
        "p_tuning": 'p_tuning(tokens=10, network="lstm")',
        "prefix": "prefix(tokens=10, projection=64)",
        "prompt": 'prompt(tokens=10, init="text", text="Summarize the dialogue.")',
    },
    "benchmark": {
        "bigbench": 'bigbench(source="tasks/emoji_movie", shots=2)',
        "glue": 'glue(source="nyu-mll/glue", shots=4)',
        "mmlu": 'mmlu(source="mmlu/", subjects=["astronomy", "virology"])',
        "suite": 'suite(benchmark=glue(source="nyu-mll/glue"), perturbations=["typos", "case"])',
        "superglue": 'superglue(source="aps/super_glue", task="boolq")',
    },
    "compressor": {
        "distill": "distill(keep_every=3, temperature=4.0, steps=1000)",
        "int8": 'int8(skip=["decoder.block.0"])',
        "magnitude": 'magnitude(sparsity=0.3, scope="global")',
    },
    "decoder": {
        "beam": 'beam(beams=8, early_stopping="yes")',
        "best_of_n": 'best_of_n(n=8, reward=classifier(model="judge/", label="polite"))',
        "stepwise": "stepwise",
    },
    "engine": {
        "scripted": 'scripted(answers=["Yes.", "No."], repeat=true)',
        "transformers": "transformers(batch_size=4, max_length=256)",
    },
    "metric": {
        "accuracy": 'accuracy(of="choices_by_characters")',
        "bleu": 'bleu(tokenize="intl", lowercase=true)',
        "chrf": "chrf(word_order=2)",
        "distinct_n": "distinct_n(orders=[1, 2, 3])",
        "ece": 'ece(of="classes", bins=15)',
        "exact_match": 'exact_match(normalize="squad")',
        "hf_evaluate": 'hf_evaluate(module="metrics/wer", aggregation="mean", higher_is_better=false)',
        "latency": "latency",
        "perplexity": 'perplexity(per="word")',
        "rouge": 'rouge(types=["1", "L"], measures=["f", "recall"])',
        "ter": "ter(case_sensitive=true)",
        "token_f1": "token_f1",
        "toxicity": 'toxicity(model="judge/", label="rude", main="share")',
    },
    "reward_model": {
        "classifier": 'classifier(model="judge/", label="polite")',
        "ensemble": 'ensemble(models={"a": trained(reward_model="judge-a/"), "b": trained(reward_model="judge-b/")}, '
        'combine="penalized", coefficient=0.5)',
        "function": 'function(target="my_package.rewards:short_answers")',
        "length_penalty": "length_penalty(most=40)",
        "mix": 'mix(models={"polite": classifier(model="judge/", label="polite"), '
        '"brief": function(target="my_package.rewards:brevity")}, weights={"brief": 0.1})',
        "normalized": 'normalized(reward=classifier(model="judge/", label="polite"))',
        "pairwise": 'pairwise(model="encoder/", steps=200, learning_rate=0.0005)',
        "repetition_penalty": "repetition_penalty(n=2)",
        "trained": 'trained(reward_model="judge/")',
    },
    "rl_algorithm": {
        "dpo": "dpo(beta=0.2, label_smoothing=0.1, steps=200)",
        "ppo": "ppo(steps=50, batch_size=16, kl_coefficient=0.1)",
    },
    "sampler": {
        "chain": "chain(links=[temperature(temperature=0.7), top_p(p=0.9)])",
        "greedy": "greedy",
        "min_p": "min_p(p=0.1)",
        "repetition_penalty": "repetition_penalty(penalty=1.3, window=64)",
        "temperature": "temperature(temperature=0.7)",
        "top_k": "top_k(k=10)",
        "top_p": "top_p(p=0.8)",
    },
    "stage": {
        "align": 'align(name="polite", algorithm=ppo(kl_coefficient=0.1), adapter=lora(rank=8), '
        'reward={"stage": "judge", "artifact": "reward_model"})',
        "benchmark": 'benchmark(name="exams", benchmarks=[glue(source="nyu-mll/glue")], items=100)',
        "compare": 'compare(name="tuned", branches={"full": fine_tune(steps=100), '
        '"lora": fine_tune(adapter=lora, steps=100)}, metrics=[rouge])',
        "compress": 'compress(name="small", compressor=int8)',
        "constitutional_revision": 'constitutional_revision(name="revised", principles="principles.toml", items=100)',
        "evaluate": 'evaluate(name="after", metrics=[rouge, bleu], versus={"stage": "before", "artifact": "scores"})',
        "export": 'export(name="final", folder="my-model")',
        "feedback": 'feedback(name="ranked", generations={"stage": "drafts", "artifact": "generations"}, '
        'rankings="rankings.jsonl")',
        "fine_tune": 'fine_tune(name="tuned", adapter=lora(rank=8), epochs=2.0, validation="validation")',
        "generate": 'generate(name="drafts", samplers={"greedy": greedy, "warm": top_p(p=0.9)}, items=4)',
        "train_reward": 'train_reward(name="judge", reward=pairwise(model="encoder/"), preferences="pairs.jsonl")',
    },
}
"""Kind to short name to short spelling."""

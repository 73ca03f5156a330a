"""``tunesmith gate``: a reward model on functional test cases."""

from __future__ import annotations

import os
from pathlib import Path

import click

from tunesmith.errors import ConfigError
from tunesmith.reward_gate import names


@click.command(name="gate")
@click.argument("reward_model", metavar="REWARD")
@click.option(
    "--suite",
    "suites",
    multiple=True,
    type=click.Choice(names()),
    help="A built-in suite; repeatable.  [default: civility, unless there are cases]",
)
@click.option("--cases", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="JSONL file of your own.")
@click.option("--prompt", default="", help="Prompt of the built-in cases.")
@click.option(
    "--threshold", type=click.FloatRange(0, 1), default=0.75, show_default=True,
    help="Share of cases that must be right in every category.",
)  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1 ...")
@click.option("--allow-code", is_flag=True, help="Let the reward run Python code that it names (function).")
@click.pass_context
def command(
    ctx: click.Context,
    reward_model: str,
    suites: tuple[str, ...],
    cases: Path | None,
    prompt: str,
    threshold: float,
    device: str,
    allow_code: bool,
) -> None:
    """Score REWARD on functional test cases, minimal pairs whose order is beyond dispute.

    REWARD is a short spelling, e.g. 'classifier(model="judge/", label="polite")', or the folder of a reward model that a
    pipeline has trained. The status is 1 if it fails in any category.
    """
    from tunesmith import reward
    from tunesmith.reward_gate import Gate, check, explanation, verdict
    from tunesmith.runtime import Runtime
    from tunesmith.spec import parse

    gate = Gate(
        suites=suites or (() if cases else ("civility",)),
        cases=str(cases or ""),
        prompt=prompt,
        threshold=threshold,
    )
    runtime = Runtime(device=device, allow_code=allow_code)
    # not pathlib's tests, which raise for a spelling that is longer than a name can be
    if os.path.isfile(os.path.join(reward_model, reward.COMPONENT)):
        model = reward.load(Path(reward_model), runtime)
    elif os.path.isdir(reward_model) or reward_model.endswith("/"):
        raise ConfigError(
            [
                f"no reward model is in {reward_model!r}: it has no {reward.COMPONENT}. Give the folder that a TrainReward stage has "
                'written, or a short spelling such as \'classifier(model="judge/", label="polite")\''
            ],
            "tunesmith gate",
        )
    else:
        model = reward.ready(parse(reward_model, "reward_model"), runtime)
    result = check(model, gate)
    click.echo(f"{'':32}{'cases':>6}  share right (95 % interval)")
    for found in result.categories:
        share = f"{found.share:6.1%}  ({found.low:.1%} to {found.high:.1%})"
        line = f"{f'{found.suite}: {found.name}':32}{found.cases:6}  {share:26}{'' if found.passed else '  failed'}"
        click.echo(line.rstrip())
    click.echo(verdict(result) if result.passed else explanation(result))
    ctx.exit(0 if result.passed else 1)

"""What a pipeline checks when it is made."""

from __future__ import annotations

import pytest
from pipeline_toys import Chosen, Fork, Number, Records, Rewarded, Source

import tunesmith as ts
from tunesmith.errors import ConfigError
from tunesmith_plugins import compressors, metrics, reward_models, samplers
from tunesmith_plugins import rl_algorithms as rl
from tunesmith_plugins import stages as st


def problems(*stages, base="base", data=None):
    with pytest.raises(ConfigError) as caught:
        ts.Pipeline(base=base, stages=stages, data=data)
    return caught.value.problems


def nodes(*stages, **options):
    return {node.name: node for node in ts.Pipeline(base="base", stages=stages, **options).nodes}


def test_previous_is_the_nearest_earlier_stage_that_makes_a_model():
    found = nodes(Number(name="a"), Source(name="r"), Rewarded(name="e"), Number(name="b"))
    assert found["a"].start == "base"
    assert found["b"].start.stage == "a"
    assert found["e"].start.stage == "a"


def test_base_and_outputs_can_be_asked_for():
    found = nodes(
        Number(name="a"), Number(name="b"), Number(name="c", start="base"), Number(name="d", start=ts.output("a"))
    )
    assert found["c"].start == "base"
    assert found["d"].start.stage == "a"


def test_a_stage_can_begin_from_a_folder_or_hub_name_of_its_own():
    found = nodes(Number(name="a", start="./elsewhere"), Number(name="b", start="some/model"))
    assert (found["a"].start, found["b"].start) == ("./elsewhere", "some/model")


def test_a_component_inside_a_stage_can_read_the_model_of_an_earlier_one():
    from pathlib import Path

    from tunesmith.pipeline.walk import with_folders

    stage = st.Evaluate(name="e", data=ts.Data(source="d"), metrics=(metrics.Toxicity(model=ts.output("a")),))
    found = nodes(Number(name="a"), stage)
    assert found["e"].inputs["metrics.0.model"].stage == "a"
    ready = with_folders(stage, {"metrics.0.model": Path("/somewhere")})
    assert ready.metrics[0].model == str(Path("/somewhere"))


def test_a_stage_that_uses_no_model_has_no_start_and_needs_no_base():
    pipeline = ts.Pipeline(stages=(Source(name="r"),))
    assert pipeline.nodes[0].start is None


def test_branches_start_where_the_whole_does_and_not_at_each_other():
    found = nodes(Number(name="a"), Fork(name="f", branches={"x": Number(), "y": Number(), "z": Number(start="base")}))
    assert list(found) == ["a", "f/x", "f/y", "f/z", "f"]
    assert found["f/x"].start.stage == found["f/y"].start.stage == "a"
    assert found["f/z"].start == "base"
    assert sorted(found["f"].inputs) == ["x/model", "y/model", "z/model"]


def test_a_fork_inside_a_fork_has_a_path_of_names():
    inner = Fork(branches={"p": Number()})
    found = nodes(Number(name="a"), Fork(name="f", branches={"x": inner}))
    assert list(found) == ["a", "f/x/p", "f/x", "f"]
    assert found["f/x/p"].start.stage == "a"
    assert found["f"].inputs["x/report"].stage == "f/x"


def test_the_output_of_a_branch_is_its_model():
    found = nodes(Fork(name="f", branches={"x": Number()}), Number(name="b", start=ts.output("f", "x")))
    assert (found["b"].start.stage, found["b"].start.artifact) == ("f/x", "model")


def test_previous_after_branches_is_an_error_that_says_what_to_write():
    (problem,) = problems(Fork(name="f", branches={"x": Number(), "y": Number()}), Number(name="b"))
    assert 'start=output("f", "x") or output("f", "y")' in problem
    assert problem.endswith("@ pipeline.stages[1].start")


def test_previous_looks_past_branches_that_make_no_model():
    found = nodes(Number(name="a"), Fork(name="f", branches={"x": Rewarded()}), Number(name="b"))
    assert found["b"].start.stage == "a"


def test_outputs_inside_components_are_inputs_under_their_dotted_paths():
    reward = Chosen(inner=Chosen(inner=ts.output("r", "reward_model")))
    found = nodes(Source(name="r"), Rewarded(name="e", several=(Chosen(), reward, ts.output("r", "reward_model"))))
    assert sorted(found["e"].inputs) == ["several.1.inner.inner", "several.2"]


def test_all_problems_are_found_at_once():
    found = problems(
        Number(),
        Number(name="a"),
        Number(name="a"),
        Number(name="b", start=ts.output("aa")),
        Number(name="c", start=ts.output("a", "modle")),
        Number(name="d", start="basis"),
        Rewarded(name="e", reward=ts.output("a", "model")),
        Rewarded(name="g", reward=ts.output("r", "reward_model")),
        Source(name="r"),
    )
    for part, problem in zip(
        [
            "the stage has no name @ pipeline.stages[0].name",
            "two stages are called 'a' (the other: stages[1])",
            "no earlier stage is called 'aa'; did you mean 'a'?",
            "stage 'a' makes no 'modle'; it makes model; did you mean 'model'?",
            "start must be 'previous', 'base', a path, or an output such as output(\"basis\")",
            "a:model is of kind 'model'; here an artifact of kind 'reward_model' is needed @ pipeline.stages[6].reward",
            "no earlier stage is called 'r'",
        ],
        found,
        strict=True,
    ):
        assert part in problem


def test_without_a_base_the_first_model_stage_is_an_error():
    (problem,) = problems(Number(name="a"), base="")
    assert "no base and no earlier stage makes one @ pipeline.stages[0].start" in problem


def test_a_branch_may_not_have_the_name_of_an_artifact():
    (problem,) = problems(Fork(name="f", branches={"report": Number()}))
    assert "may not be called 'report'" in problem


def test_wrong_types_are_refused_before_the_graph_is_looked_at():
    with pytest.raises(TypeError, match="seed: must be int"):
        ts.Pipeline(base="b", seed="0", stages=())


def test_data_may_come_from_an_earlier_stage_and_nothing_else():
    data = ts.Data(source=ts.output("d", "dataset"))
    found = nodes(Records(name="d"), Rewarded(name="e", data=data))
    assert found["e"].inputs["data.source"].stage == "d"
    (problem,) = problems(Number(name="m"), Rewarded(name="e", data=ts.Data(source=ts.output("m"))))
    assert "of kind 'dataset' is needed @ pipeline.stages[1].data.source" in problem


def test_the_data_of_the_whole_pipeline_may_come_from_its_first_stage():
    data = ts.Data(source=ts.output("d", "dataset"))
    found = nodes(Records(name="d"), Rewarded(name="e"), data=data)
    assert found["d"].data is None
    assert found["e"].inputs["data.source"].stage == "d"


def test_data_that_a_stage_cannot_do_without_are_missed_before_any_work():
    stages = (
        st.FineTune(name="tuned", data=ts.Data(source="own")),
        st.Evaluate(name="scores", metrics=(metrics.Rouge(),)),
    )
    with pytest.raises(
        ConfigError, match=r"needs data, and neither it nor the pipeline has any.*@ pipeline.stages\[1\]"
    ):
        ts.Pipeline(base="b", stages=stages)
    ts.Pipeline(base="b", data=ts.Data(source="d"), stages=stages)


def test_stages_say_whether_they_need_data():
    judge = reward_models.LengthPenalty(most=1)
    rouge, tune = (metrics.Rouge(),), st.FineTune(name="tune")
    needed = [
        (st.Generate(samplers={"greedy": samplers.Greedy()}), True),
        (tune, True),
        (st.Compare(branches={"a": tune}), False),
        (st.Compare(branches={"a": tune}, metrics=rouge), True),
        (st.Recipe(steps=(tune,), metrics=rouge), True),
        (st.Align(algorithm=rl.PPO(), reward=judge), True),
        (st.Align(algorithm=rl.DPO(), preferences="pairs.jsonl"), False),
        (st.Compress(compressor=compressors.Int8()), False),
        (st.ConstitutionalRevision(principles="principles.txt"), True),
    ]
    assert [stage.needs_data() for stage, _ in needed] == [needs for _, needs in needed]

"""Configs of the standard stages."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from attrs import Attribute, evolve, field, frozen
from attrs import validators as v

from tunesmith.alarms import Alarms
from tunesmith.data.config import Data
from tunesmith.kinds.adapter import AdapterConfig
from tunesmith.kinds.benchmark import BenchmarkConfig
from tunesmith.kinds.compressor import CompressorConfig
from tunesmith.kinds.decoder import DecoderConfig, Limits
from tunesmith.kinds.engine import EngineConfig
from tunesmith.kinds.metric import MetricConfig
from tunesmith.kinds.reward_model import RewardModelConfig
from tunesmith.kinds.rl_algorithm import RLAlgorithmConfig
from tunesmith.kinds.sampler import SamplerConfig
from tunesmith.kinds.stage import Output, StageConfig
from tunesmith.reward_gate import Gate
from tunesmith.training.stopping import needs_validation
from tunesmith.typecheck import Checked
from tunesmith_plugins.stages import launching
from tunesmith_plugins.stages.align_mode import mode

IMPLEMENTATIONS = "tunesmith_plugins.stages"


@frozen(kw_only=True)
class Generation(Checked):
    """How a stage generates text.

    Attributes:
        engine: None means ``tunesmith/transformers``.
        decoder: None means ``tunesmith/stepwise``, ``"model"`` the one that the model's generation config asks for.
        sampler: None means ``tunesmith/greedy``, ``"model"`` the one that the model's generation config asks for.
        max_new_tokens: Most new tokens of a completion.
        min_new_tokens: Fewest.
        stop: Strings that end a completion.
    """

    engine: EngineConfig | None = None
    decoder: DecoderConfig | Literal["model"] | None = None
    sampler: SamplerConfig | Literal["model"] | None = None
    max_new_tokens: int = field(default=64, validator=v.ge(1))
    min_new_tokens: int = field(default=0, validator=v.ge(0))
    stop: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        # what cannot be is said when the pipeline is made
        Limits(max_new_tokens=self.max_new_tokens, min_new_tokens=self.min_new_tokens, stop=self.stop)


@frozen(kw_only=True)
class Generate(StageConfig):
    """Write completions for a split's prompts with each of several samplers, side by side on the same prompts.

    Attributes:
        samplers: Label to sampler, or to ``"model"``; empty means the one of ``generation``.
        data: None means the pipeline's.
        split: The split whose prompts are used.
        items: At most so many prompts; 0 means all.
        completions: So many completions of each prompt (streams 0, 1, ...).
        metrics: Computed on what each sampler wrote, with paired tests against the first one.
        generation: Engine, decoder, limits.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.generate:GenerateStage"
    revision: ClassVar[int] = 2
    produces: ClassVar[Mapping[str, str]] = {"generations": "generations", "scores": "scores"}
    samplers: dict[str, SamplerConfig | Literal["model"]] = field(factory=dict)
    data: Data | None = None
    split: str = "test"
    items: int = field(default=0, validator=v.ge(0))
    completions: int = field(default=1, validator=v.ge(1))
    metrics: tuple[MetricConfig, ...] = ()
    generation: Generation = field(factory=Generation)

    def needs_data(self) -> bool:
        """Return True: prompts come from data."""
        return True


@frozen(kw_only=True)
class Evaluate(StageConfig):
    """Generate (or score) on a split and compute metrics with intervals.

    Attributes:
        metrics: At least one.
        data: None means the pipeline's.
        split: The split to evaluate on.
        items: At most so many examples; 0 means all.
        shots: In-context examples, taken from the training split; -1 means what the data says.
        confidence: Level of the intervals.
        versus: The ``scores`` of an earlier stage to compare with by a paired test; None: no comparison.
        generation: How text is generated, where a metric needs predictions.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.evaluate:EvaluateStage"
    revision: ClassVar[int] = 2
    produces: ClassVar[Mapping[str, str]] = {"scores": "scores", "generations": "generations"}
    metrics: tuple[MetricConfig, ...] = field(validator=v.min_len(1))
    data: Data | None = None
    split: str = "test"
    items: int = field(default=0, validator=v.ge(0))
    shots: int = field(default=-1, validator=v.ge(-1))
    confidence: float = field(default=0.95, validator=[v.gt(0), v.lt(1)])
    versus: Output | None = None
    generation: Generation = field(factory=Generation)

    def needs_data(self) -> bool:
        """Return True."""
        return True


def _stage_names(_: Any, attribute: Attribute[Any], value: dict[str, Any]) -> None:
    wrong = [key for key in value if not re.fullmatch(r"[A-Za-z0-9_.-]+", key)]
    if wrong:
        raise ValueError(
            f"'{attribute.name}' has keys that cannot name a stage (letters, digits, '-', '_', '.'): "
            + ", ".join(map(repr, wrong))
        )


@frozen(kw_only=True)
class Compare(StageConfig):
    """Run branches from one start and make one table with paired tests against the first branch.

    Attributes:
        branches: Key to stage. A branch's stage is named ``compare/key`` and needs no name of its own.
        metrics: Evaluated for every branch that makes a model (and for the start); empty: no evaluation.
        data: What is evaluated on, and what branches without data of their own use; None means the pipeline's.
        split: The split to evaluate on.
        items: At most so many examples; 0 means all.
        baseline: Also evaluate the model that the branches start from, if it has the head that the metrics need.
        generation: How text is generated for the evaluation.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.compare:CompareStage"
    produces: ClassVar[Mapping[str, str]] = {"scores": "scores", "report": "report"}
    branches: dict[str, StageConfig] = field(validator=[v.min_len(1), _stage_names])
    metrics: tuple[MetricConfig, ...] = ()
    data: Data | None = None
    split: str = "test"
    items: int = field(default=0, validator=v.ge(0))
    baseline: bool = True
    generation: Generation = field(factory=Generation)

    def expand(self) -> tuple[StageConfig, ...]:
        """Return the branches, named by their keys; each starts where the Compare does and has its data, unless it says
        otherwise.
        """
        given = self.data  # an Export has no such field
        return tuple(
            evolve(
                stage,
                name=key,
                start=self.start if stage.start == "previous" else stage.start,
                **({"data": given} if given is not None and getattr(stage, "data", given) is None else {}),
            )
            for key, stage in self.branches.items()
        )

    def needs_data(self) -> bool:
        """Return whether the branches are measured."""
        return bool(self.metrics)


@frozen(kw_only=True)
class FineTune(StageConfig):
    """Train on a split through the trainers of transformers.

    Attributes:
        adapter: What is trained; None means all weights (``tunesmith/full``).
        objective: ``"auto"`` follows the model's family: seq2seq, causal or masked. ``"span_corruption"`` (Raffel et al. 2020,
            section 3.1.4) and ``"classification"`` must be asked for.
        data: None means the pipeline's.
        mix: Further tasks, label to data, mixed in by ``mix_weights``.
        mix_weights: Label to weight; the main data has weight 1.
        split: Split to train on.
        validation: Split for the validation loss; "" for none.
        epochs: Passes over the data; ignored where ``steps`` is set.
        steps: Number of optimizer steps; 0 means by epochs.
        batch_size: Examples a step and device.
        learning_rate: Peak learning rate.
        max_length: Longest input in tokens; what is cut is reported.
        max_target_length: Longest target (encoder-decoder).
        packing: Put several examples in one row (causal only).
        mask_prompt: Only the answer's tokens are in the loss (causal only).
        held_out: Label to data whose loss is measured before and after (forgetting).
        held_out_split: The split of ``held_out`` that is measured.
        arguments: Further ``TrainingArguments`` (bf16, gradient_checkpointing, report_to, weight_decay ...), passed through.
        early_stopping: Stop after so many evaluations without a better validation loss; 0 means never.
        measure_in_child: Train in a process of its own, so that the reported peak memory is this training's alone.
        launch: Train in several processes: options of ``accelerate launch``, such as ``("--multi_gpu", "--num_processes", "2")``;
            empty: in one. Those for processes of this machine, FSDP and DeepSpeed are taken, and no program or file.
    """

    revision: ClassVar[int] = 2
    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.fine_tune:FineTuneStage"
    produces: ClassVar[Mapping[str, str]] = {"model": "model", "report": "report"}
    adapter: AdapterConfig | None = None
    objective: Literal["auto", "seq2seq", "causal", "masked", "span_corruption", "classification"] = "auto"
    data: Data | None = None
    mix: dict[str, Data] = field(factory=dict)
    mix_weights: dict[str, float] = field(factory=dict)
    split: str = "train"
    validation: str = ""
    epochs: float = field(default=1.0, validator=v.gt(0))
    steps: int = field(default=0, validator=v.ge(0))
    batch_size: int = field(default=16, validator=v.ge(1))
    learning_rate: float = field(default=1e-3, validator=v.gt(0))
    max_length: int = field(default=512, validator=v.ge(1))
    max_target_length: int = field(default=128, validator=v.ge(1))
    packing: bool = False
    mask_prompt: bool = True
    held_out: dict[str, Data] = field(factory=dict)
    held_out_split: str = "test"
    arguments: dict[str, bool | int | float | str] = field(factory=dict)
    early_stopping: int = field(default=0, validator=[v.ge(0), needs_validation])
    measure_in_child: bool = False
    launch: tuple[str, ...] = field(default=(), validator=launching.check, metadata={"identity": launching.deciding})

    @mix_weights.validator
    def _one_weight_a_task(self, attribute: Attribute[Any], value: dict[str, float]) -> None:
        if "" in self.mix:
            raise ValueError("a task of 'mix' needs a label, not ''")
        if alone := sorted(set(self.mix) ^ set(value)):
            raise ValueError(f"every task of 'mix' needs a weight, and every weight of 'mix_weights' a task: {alone}")
        if wrong := {label: weight for label, weight in value.items() if not 0 < weight < math.inf}:
            raise ValueError(f"weights of 'mix_weights' must be finite and > 0: {wrong}")

    @held_out.validator
    def _names_no_task_validation(self, attribute: Attribute[Any], value: dict[str, Data]) -> None:
        if "validation" in value:
            raise ValueError("'validation' is the validation split's own name; choose another label in 'held_out'")

    def needs_data(self) -> bool:
        """Return True."""
        return True


@frozen(kw_only=True)
class TrainReward(StageConfig):
    """Train a reward model on preference pairs.

    Attributes:
        reward: A reward model that can be fitted.
        preferences: A JSONL file with ``prompt``, ``chosen``, ``rejected`` (and optionally ``margin``, ``id``, ``group``), or the
            ``preferences`` of an earlier stage.
        held_out: Share of the pairs kept for the held-out accuracy; whole groups.
        gate: Functional test cases that the trained model is scored on; None: the suite ``civility``, for the report only.
            With ``on_failure="stop"`` a model that fails them is not handed on.
        true_reward: What the preferences were drawn by, where that is known (synthetic data): the report then compares with
            it and with the accuracy that is possible at all.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.train_reward:TrainRewardStage"
    produces: ClassVar[Mapping[str, str]] = {"reward_model": "reward_model", "report": "report"}
    uses_model: ClassVar[bool] = False
    uses_data: ClassVar[bool] = False
    reward: RewardModelConfig
    preferences: str | Output
    held_out: float = field(default=0.1, validator=[v.ge(0), v.lt(1)])
    gate: Gate | None = None
    true_reward: RewardModelConfig | None = None


@frozen(kw_only=True)
class Align(StageConfig):
    """Improve the model with an RL algorithm.

    Attributes:
        algorithm: Online algorithms need ``reward``, offline ones ``preferences``.
        adapter: Put on top for this training; the reference is the model with only this one off. None trains all weights
            against a frozen copy.
        reward: A reward model, or the ``reward_model`` of an earlier stage.
        preferences: A JSONL file or the ``preferences`` of an earlier stage.
        gate: Functional test cases that the reward model must pass before it is used. None: the suite ``civility`` for a
            reward model trained on preferences, as TrainReward hands it over; no gate for functions, classifiers and mixes,
            of which only you know what they mean. ``Gate(on_failure="warn")`` goes on whatever it finds.
        alarms: What an online training is watched for, see :class:`tunesmith.alarms.Alarms`; None: nothing.
        reference_samples: Completions drawn before training for a reward whose scale is fixed on the reference
            (``normalized``), at the algorithm's temperature and length.
        data: Prompts of an online algorithm; None means the pipeline's.
        split: The split whose prompts are used.
        items: At most so many prompts; 0 means all.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.align:AlignStage"
    revision: ClassVar[int] = 2
    produces: ClassVar[Mapping[str, str]] = {"model": "model", "report": "report"}
    algorithm: RLAlgorithmConfig
    adapter: AdapterConfig | None = None
    reward: RewardModelConfig | Output | None = None
    preferences: str | Output | None = field(default=None)
    gate: Gate | None = None
    alarms: Alarms | None = None
    reference_samples: int = field(default=256, validator=v.ge(2))
    data: Data | None = None
    split: str = "train"
    items: int = field(default=0, validator=v.ge(0))

    @preferences.validator
    def _has_something_to_learn_from(self, attribute: Attribute[Any], value: Any) -> None:
        if value is None and self.reward is None:
            raise ValueError(
                "'reward' or 'preferences' is missing: online algorithms need the one, offline ones the other"
            )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.algorithm.accepts:  # other algorithms are asked when the stage runs
            mode(self, self.algorithm.accepts, self.name or "align")

    def needs_data(self) -> bool:
        """Return whether prompts are taken from data: preferences bring their own."""
        return self.preferences is None


@frozen(kw_only=True)
class Compress(StageConfig):
    """Make the model smaller.

    Attributes:
        compressor: The method.
        teacher: A larger model for distillation: a path, hub name or output; None: the model itself.
        data: Calibration or training examples; None means the pipeline's.
        split: The split whose examples are used.
        items: At most so many; 0 means all.
        device_map: Spread the weights over devices as transformers does (``"auto"``); "" puts all on the runtime's.
    """

    revision: ClassVar[int] = 2
    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.compress:CompressStage"
    produces: ClassVar[Mapping[str, str]] = {"model": "model", "report": "report"}
    compressor: CompressorConfig
    teacher: str | Output | None = None
    data: Data | None = None
    split: str = "train"
    items: int = field(default=0, validator=v.ge(0))
    device_map: str = ""


@frozen(kw_only=True)
class Benchmark(StageConfig):
    """Run benchmarks on the model.

    Attributes:
        benchmarks: At least one.
        items: At most so many items of each benchmark; 0 means all.
        confidence: Level of the intervals.
        engine: None means ``tunesmith/transformers``.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.benchmark:BenchmarkStage"
    revision: ClassVar[int] = 2
    produces: ClassVar[Mapping[str, str]] = {"scores": "scores"}
    benchmarks: tuple[BenchmarkConfig, ...] = field(validator=v.min_len(1))
    items: int = field(default=0, validator=v.ge(0))
    confidence: float = field(default=0.95, validator=[v.gt(0), v.lt(1)])
    engine: EngineConfig | None = None


@frozen(kw_only=True)
class Feedback(StageConfig):
    """Turn rankings of several completions into preference pairs.

    Attributes:
        generations: The ``generations`` of an earlier stage whose completions are ranked.
        rankings: A JSONL file of rankings; "" asks in the terminal.
        annotator: Recorded with every ranking typed in the terminal.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.feedback:FeedbackStage"
    produces: ClassVar[Mapping[str, str]] = {"preferences": "preferences"}
    uses_model: ClassVar[bool] = False
    uses_data: ClassVar[bool] = False
    generations: Output
    rankings: str = ""
    annotator: str = ""


@frozen(kw_only=True)
class ConstitutionalRevision(StageConfig):
    """Critique and revise the model's own answers by written principles (Bai et al. 2022, "Constitutional AI").

    Attributes:
        principles: A TOML or JSONL file of principles, each with a critique request and a revision request.
        data: Prompts; None means the pipeline's.
        split: The split whose prompts are used.
        items: At most so many prompts; 0 means all.
        rounds: Revisions of each answer.
        compare: Also ask the model which of two answers follows a principle better, and make preference pairs of that.
        generation: How text is generated.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.constitutional_revision:ConstitutionalRevisionStage"
    revision: ClassVar[int] = 2
    produces: ClassVar[Mapping[str, str]] = {"dataset": "dataset", "preferences": "preferences"}
    principles: str
    data: Data | None = None
    split: str = "train"
    items: int = field(default=0, validator=v.ge(0))
    rounds: int = field(default=1, validator=v.ge(1))
    compare: bool = True
    generation: Generation = field(factory=Generation)

    def needs_data(self) -> bool:
        """Return True: prompts come from data."""
        return True


@frozen(kw_only=True)
class Export(StageConfig):
    """Write the model as a folder for use elsewhere, with a model card.

    Attributes:
        folder: Where to copy it besides the run folder; "" for nowhere.
        merge: Fold adapters into the weights where merging exists; otherwise base and adapter are written for
            ``tunesmith.load``, and the card says so.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.export:ExportStage"
    produces: ClassVar[Mapping[str, str]] = {"model": "model"}
    folder: str = ""
    merge: bool = True

    def outside(self) -> tuple[str, ...]:
        """Return the folder of the copy."""
        return (self.folder,) if self.folder else ()

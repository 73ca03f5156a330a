"""Configs of the standard benchmarks."""

from __future__ import annotations

from typing import ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from tunesmith.kinds.benchmark import BenchmarkConfig
from tunesmith.kinds.metric import MetricConfig

IMPLEMENTATIONS = "tunesmith_plugins.benchmarks"

Scoring = Literal["loglikelihood", "generation", "classification"]


@frozen(kw_only=True)
class Glue(BenchmarkConfig):
    """A task of GLUE (Wang et al. 2018).

    Attributes:
        source: A TSV file, a folder with one file a split, or a name for the ``datasets`` library (``"nyu-mll/glue"``).
        task: SST-2: is a sentence of a film review positive?
        split: The split that is asked.
        shots: Solved examples before every question, drawn from the training split, for each item by the seed; never
            one with the item's own text.
        seed: Seed of the shots.
        scoring: By the log-likelihood of label words, by what the model writes, or by a classification head, which
            reads the plain sentence.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.glue:GlueBenchmark"
    source: str
    task: Literal["sst2"] = "sst2"
    split: str = "validation"
    shots: int = field(default=0, validator=v.ge(0))
    seed: int = 0
    scoring: Scoring = "loglikelihood"


@frozen(kw_only=True)
class SuperGlue(BenchmarkConfig):
    """A task of SuperGLUE (Wang et al. 2019), asked in the form of Brown et al. 2020, appendix G.

    Attributes:
        source: A JSONL file, a folder with one file a split, or a name for the ``datasets`` library
            (``"aps/super_glue"``).
        task: BoolQ (yes or no of a passage), RTE (does it follow?), COPA (cause or effect), CB (RTE with neutral).
        split: The split that is asked.
        shots: Solved examples before every question, drawn from the training split, for each item by the seed; never
            one with the item's own text.
        seed: Seed of the shots.
        scoring: By log-likelihood, by what the model writes, or by a classification head, which reads the plain texts
            (not COPA).
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.superglue:SuperGlueBenchmark"
    source: str
    task: Literal["boolq", "rte", "copa", "cb"]
    split: str = "validation"
    shots: int = field(default=0, validator=v.ge(0))
    seed: int = 0
    scoring: Scoring = "loglikelihood"


@frozen(kw_only=True)
class MMLU(BenchmarkConfig):
    """Massive multitask language understanding (Hendrycks et al. 2021), in its authors' form: four answers by letter.

    Attributes:
        source: The authors' folder (``dev/`` and ``test/`` with ``<subject>_dev.csv`` ...), or a name for the
            ``datasets`` library (``"cais/mmlu"``).
        subjects: Which; empty means all that a local folder has (a hub name needs them named).
        shots: The first so many of the subject's dev questions, in their order, as the authors do.
        scoring: Log-likelihood of the letters, or what the model writes first.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.mmlu:MMLUBenchmark"
    source: str
    subjects: tuple[str, ...] = ()
    shots: int = field(default=5, validator=[v.ge(0), v.le(5)])
    scoring: Literal["loglikelihood", "generation"] = "loglikelihood"


@frozen(kw_only=True)
class BigBench(BenchmarkConfig):
    """A JSON task of BIG-bench (Srivastava et al. 2022).

    Attributes:
        source: A ``task.json``, a folder that has one, or a folder of such folders (subtasks, which become groups).
        shots: Solved examples before every question, drawn from the other examples of the file by the seed; never one
            with the item's own input.
        seed: Seed of the shots.
        max_new_tokens: Longest written answer.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.bigbench:BigBenchBenchmark"
    source: str
    shots: int = field(default=0, validator=v.ge(0))
    seed: int = 0
    max_new_tokens: int = field(default=32, validator=v.ge(1))


@frozen(kw_only=True)
class Suite(BenchmarkConfig):
    """One benchmark seen from several sides, as in HELM (Liang et al. 2022): accuracy, calibration, robustness,
    toxicity, efficiency.

    Robustness is the main metric on items whose question was changed in a way that leaves its meaning, for each way,
    and on the worst of each item's versions.

    Attributes:
        benchmark: What is asked.
        perturbations: ``"typos"`` (neighbouring keys, of one word in ten), ``"case"`` (all lower), ``"contractions"``
            (do not: don't, and back), ``"spaces"`` (one to three for each).
        toxicity: A metric of predictions, usually ``toxicity``; None leaves it out.
        efficiency: Time every item by itself, which takes longer than all together.
        bins: Bins of the calibration error.
        seed: Seed of the perturbations; each item has its own.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.suite:SuiteBenchmark"
    benchmark: BenchmarkConfig
    perturbations: tuple[Literal["typos", "case", "contractions", "spaces"], ...] = (
        "typos",
        "case",
        "contractions",
        "spaces",
    )
    toxicity: MetricConfig | None = None
    efficiency: bool = True
    bins: int = field(default=10, validator=v.ge(1))
    seed: int = 0

"""Configs of the standard metrics."""

from __future__ import annotations

from typing import ClassVar, Literal

from attrs import field, frozen
from attrs import validators as v

from tunesmith.kinds.metric import MetricConfig
from tunesmith.kinds.reward_model import RewardModelConfig
from tunesmith.kinds.stage import Output

IMPLEMENTATIONS = "tunesmith_plugins.metrics"


@frozen(kw_only=True)
class Rouge(MetricConfig):
    """ROUGE (Lin 2004) by rouge-score, in [0, 1]; the mean over examples, never a bootstrap median.

    Attributes:
        types: ``"1"`` to ``"9"`` (n-grams), ``"L"`` (longest common subsequence), ``"Lsum"`` (union of those of lines).
        references: What is done with several references: ``"max_f"`` takes, for each type, the one with the best F
            (rouge-score, evaluate); ``"best_recall"`` the one with the best recall (``-f B`` of ROUGE-1.5.5);
            ``"pooled"`` adds up their counts (``-f A`` of ROUGE-1.5.5); ``"mean"`` averages their scores.
        tokenizer: ``"ascii"`` keeps a-z and 0-9 only, as everywhere in print, and makes 0 of any other script;
            ``"unicode"`` keeps letters, marks and digits of all scripts, each CJK character by itself.
        stemmer: Porter's stemmer (NLTK's variant, as in rouge-score) on words of more than 3 letters.
        measures: F, precision, recall; the first is the main one.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.rouge:RougeMetric"
    types: tuple[str, ...] = field(
        default=("1", "2", "L", "Lsum"),
        validator=[v.min_len(1), v.deep_iterable(v.matches_re(r"[1-9]|L|Lsum"))],
    )
    references: Literal["max_f", "best_recall", "pooled", "mean"] = "max_f"
    tokenizer: Literal["ascii", "unicode"] = "ascii"
    stemmer: bool = True
    measures: tuple[Literal["f", "precision", "recall"], ...] = field(default=("f",), validator=v.min_len(1))


@frozen(kw_only=True)
class Bleu(MetricConfig):
    """Corpus BLEU (Papineni et al. 2002) by sacrebleu, 0 to 100.

    Attributes:
        tokenize: sacrebleu's tokenizer, e.g. ``"13a"``, ``"intl"``, ``"zh"``, ``"char"``, ``"none"``.
        smooth: Smoothing of orders without a match (Chen and Cherry 2014).
        smooth_value: For ``"floor"`` and ``"add-k"``; None is sacrebleu's.
        lowercase: Case does not count.
        order: Longest n-gram.
        effective_order: Leave out orders longer than the text.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.translation:BleuMetric"
    tokenize: str = "13a"
    smooth: Literal["exp", "floor", "add-k", "none"] = "exp"
    smooth_value: float | None = None
    lowercase: bool = False
    order: int = field(default=4, validator=[v.ge(1), v.le(9)])
    effective_order: bool = False


@frozen(kw_only=True)
class ChrF(MetricConfig):
    """chrF (Popovic 2015) by sacrebleu, 0 to 100; chrF++ with ``word_order=2``.

    Attributes:
        char_order: Longest character n-gram.
        word_order: Longest word n-gram.
        beta: Weight of recall.
        lowercase: Case does not count.
        whitespace: Whitespace counts as characters.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.translation:ChrFMetric"
    char_order: int = field(default=6, validator=v.ge(1))
    word_order: int = field(default=0, validator=v.ge(0))
    beta: int = field(default=2, validator=v.ge(1))
    lowercase: bool = False
    whitespace: bool = False


@frozen(kw_only=True)
class Ter(MetricConfig):
    """Translation edit rate (Snover et al. 2006) by sacrebleu, in percent of the reference's length; lower is better.

    Attributes:
        normalized: Split punctuation off.
        no_punct: Leave punctuation out.
        asian_support: Split Asian characters.
        case_sensitive: Case counts.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.translation:TerMetric"
    normalized: bool = False
    no_punct: bool = False
    asian_support: bool = False
    case_sensitive: bool = False


@frozen(kw_only=True)
class ExactMatch(MetricConfig):
    """Share of predictions that equal one of their references.

    Attributes:
        normalize: ``"strip"`` drops outer whitespace; ``"squad"`` also case, punctuation, articles and repeated spaces
            (Rajpurkar et al. 2016); ``"none"`` compares as it stands.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.answers:ExactMatchMetric"
    normalize: Literal["none", "strip", "squad"] = "strip"


@frozen(kw_only=True)
class TokenF1(MetricConfig):
    """Mean F1 of the bags of words of prediction and best reference, in SQuAD's normalisation (Rajpurkar et al. 2016)."""

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.answers:TokenF1Metric"


@frozen(kw_only=True)
class Accuracy(MetricConfig):
    """Share of right answers.

    Attributes:
        of: What is right: ``"labels"``: the written text is the label; ``"classes"``: the most probable class is;
            ``"choices"``, ``"choices_by_characters"``, ``"choices_by_bytes"``: the choice of the highest
            log-likelihood, as it is or divided by the choice's length, is (the first among equals).
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.accuracy:AccuracyMetric"
    of: Literal["labels", "classes", "choices", "choices_by_characters", "choices_by_bytes"] = "labels"


@frozen(kw_only=True)
class ChoiceGrade(MetricConfig):
    """Mean worth of the choice of the highest log-likelihood, where choices are graded: BIG-bench's
    ``multiple_choice_grade`` (Srivastava et al. 2022). Where one choice is worth 1 and the others 0 it is the accuracy.

    Attributes:
        of: The log-likelihood as it is, or divided by the choice's characters or bytes (the first among equals).
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.accuracy:ChoiceGradeMetric"
    of: Literal["choices", "choices_by_characters", "choices_by_bytes"] = "choices"


@frozen(kw_only=True)
class Perplexity(MetricConfig):
    """exp of the mean loss of a unit of text, all examples taken together; lower is better.

    Attributes:
        per: ``"token"`` depends on the tokenizer; ``"word"`` (between whitespace) and ``"byte"`` (UTF-8) do not.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.perplexity:PerplexityMetric"
    per: Literal["token", "word", "byte"] = "token"


@frozen(kw_only=True)
class DistinctN(MetricConfig):
    """Distinct n-grams of all predictions over all their n-grams (Li et al. 2016). It falls as texts are added, so only
    equal numbers of texts compare, and no bootstrap interval would be right: a resample repeats texts.

    Attributes:
        orders: The n's.
        tokens: Words of a text that are counted; the rest is left out.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.diversity:DistinctNMetric"
    orders: tuple[int, ...] = field(default=(1, 2), validator=[v.min_len(1), v.deep_iterable(v.and_(v.ge(1), v.le(9)))])
    tokens: int = field(default=128, validator=v.ge(1))


@frozen(kw_only=True)
class Toxicity(MetricConfig):
    """Probability that a classifier gives a class for what was written; lower is better unless said otherwise.

    Attributes:
        model: Folder or hub name of a sequence classifier, or the model of an earlier stage of the pipeline.
        label: The class, by name or number.
        threshold: From this probability on a text counts for the share.
        main: Which score is the main one: the mean probability, or the share of texts at or above the threshold.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.toxicity:ToxicityMetric"
    model: str | Output
    label: str = "toxic"
    threshold: float = field(default=0.5, validator=[v.gt(0), v.le(1)])
    main: Literal["mean", "share"] = "mean"


@frozen(kw_only=True)
class Reward(MetricConfig):
    """Mean score that a reward model gives what was written; higher is better. After alignment to that reward it says
    what was gained on prompts that were not trained on, and nothing of what was lost: measure that by other metrics.

    Attributes:
        model: A reward model; ``trained(reward_model=...)`` is what a TrainReward stage made.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.reward:RewardMetric"
    model: RewardModelConfig


@frozen(kw_only=True)
class ECE(MetricConfig):
    """Expected calibration error over bins of equal mass (Nixon et al. 2019): how far confidence is from accuracy.
    Resampling adds to it even where it is 0, so it has no bootstrap interval. Lower is better.

    Attributes:
        of: Probabilities of ``"choices"`` (softmax of their log-likelihoods) or of ``"classes"``.
        bins: Number of bins.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.calibration:ECEMetric"
    of: Literal["choices", "classes"] = "choices"
    bins: int = field(default=10, validator=v.ge(1))


@frozen(kw_only=True)
class Latency(MetricConfig):
    """Seconds a request takes by itself, and new tokens a second. Lower seconds are better."""

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.latency:LatencyMetric"


@frozen(kw_only=True)
class HFEvaluate(MetricConfig):
    """A module of the ``evaluate`` library. It is Python code, and runs only where the caller passes ``allow_code``.

    Attributes:
        module: A local folder (with ``name.py`` in ``name/``) or a hub name.
        scores: Keys of its result that are the scores, the main one first; empty means the module's own name.
        aggregation: ``"corpus"`` gives the module all examples at once: what it defines, but without interval and
            test, and only in the process that read the texts. ``"mean"`` gives it every example alone and averages,
            with intervals.
        references: Whether the module is given the first reference or all of them.
        options: Passed to the module's ``compute``.
        higher_is_better: Direction of the main score.
    """

    impl: ClassVar[str] = f"{IMPLEMENTATIONS}.hf_evaluate:HFEvaluateMetric"
    module: str = field(validator=v.min_len(1))
    scores: tuple[str, ...] = ()
    aggregation: Literal["corpus", "mean"] = "corpus"
    references: Literal["first", "all"] = "first"
    options: dict[str, bool | int | float | str] = field(factory=dict)
    higher_is_better: bool = True

    def code_digest(self) -> str:
        """Return the SHA-256 of a local module's Python files, without running them; of a hub module, of its name."""
        import hashlib
        from pathlib import Path

        files = sorted(Path(self.module).glob("*.py"))
        return hashlib.sha256(b"".join(f.read_bytes() for f in files) or self.module.encode()).hexdigest()

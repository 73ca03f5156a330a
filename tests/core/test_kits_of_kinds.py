"""The checks of the kinds find what authors forget: each fails for a component made to fail it, and says what is wrong."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from attrs import evolve, frozen

import tunesmith as ts
from tunesmith.kinds.adapter import Adapter, AdapterConfig
from tunesmith.kinds.compressor import CompressionReport, Compressor, CompressorConfig
from tunesmith.kinds.decoder import Decoder, DecoderConfig
from tunesmith.kinds.engine import Engine, EngineConfig
from tunesmith.kinds.metric import Metric, MetricConfig
from tunesmith.kinds.rl_algorithm import RLAlgorithm, RLAlgorithmConfig
from tunesmith.kinds.sampler import Link, SamplerConfig
from tunesmith.testing import adapters, compressors, decoders, engines, metrics, rl_algorithms
from tunesmith.testing.samplers import checks as samplers

HERE = __name__


@frozen(kw_only=True)
class Halved(CompressorConfig):
    """Half of one matrix becomes 0.

    Attributes:
        fault: What is wrong with it.
    """

    impl: ClassVar[str] = f"{HERE}:Halving"
    fault: str = ""


class Halving(Compressor):
    def compress(self, lm: Any, *, data: Any = None, teacher: Any = None, runtime: Any) -> Any:
        size = sum(p.numel() * p.element_size() for p in lm.model.parameters())
        before = lm.parameter_count(nonzero=True)
        with torch.no_grad():
            weight = next(p for p in lm.model.parameters() if p.dim() == 2)
            weight[: len(weight) // 2] = 0
            if self.config.fault == "random":
                weight.add_(torch.randn(1))
        after = before if self.config.fault == "all counted" else lm.parameter_count(nonzero=True)
        if self.config.fault == "":
            lm.model.to(torch.bfloat16)  # no fault: what is of another type is read as it was saved
        left = sum(p.numel() * p.element_size() for p in lm.model.parameters())
        report = CompressionReport(parameters=(before, after), bytes=(size, left))
        origin = lm.origin if self.config.fault == "origin" else None
        if self.config.fault == "alone":
            return lm
        return evolve(lm, origin=origin), report


@pytest.mark.parametrize(
    ("check", "fault", "message"),
    [
        (compressors.check_every_family_saves_and_loads_with_equal_outputs, "alone", "gave LM, not a pair"),
        (compressors.check_it_no_longer_claims_to_be_the_folder_it_came_from, "origin", "origin is still 'somewhere'"),
        (compressors.check_report_says_what_is_on_disk, "all counted", "parameters is .* is"),
        (compressors.check_family_and_tokenizer_stay, "alone", "gave LM, not a pair"),
        (compressors.check_equal_runs_give_equal_models, "random", "equal runs differ by"),
    ],
)
def test_a_compressor(check, fault, message):
    check(Halved())
    with pytest.raises(AssertionError, match=message):
        check(Halved(fault=fault))


@frozen(kw_only=True)
class Nowhere(AdapterConfig):
    """Says that it is on.

    Attributes:
        returns: What attach gives back.
    """

    impl: ClassVar[str] = f"{HERE}:Absent"
    returns: str = "model"


class Absent(Adapter):
    def attach(self, lm: Any, runtime: Any) -> Any:
        return lm if self.config.returns == "model" else None

    def trainable(self) -> Any:
        return iter(())

    def save(self, folder: Any) -> None:
        """Write nothing."""

    def load(self, lm: Any, folder: Any, runtime: Any) -> Any:
        return lm


def test_an_adapter_that_gives_back_no_model_or_one_without_it():
    with pytest.raises(AssertionError, match="attach of Nowhere gave NoneType, not an LM"):
        adapters.check_attaching_makes_only_itself_trainable(Nowhere(returns="nothing"))
    with pytest.raises(AssertionError, match="has no adapters; add it"):
        adapters.check_attaching_makes_only_itself_trainable(Nowhere())


@frozen(kw_only=True)
class Letters(MetricConfig):
    """Counts letters.

    Attributes:
        times: Each counts so often.
        told: Whether the signature says so.
        listed: Whether rows are a list.
    """

    impl: ClassVar[str] = f"{HERE}:LetterCount"
    times: float = 1.0
    told: bool = True
    listed: bool = False


class LetterCount(Metric):
    needs = frozenset({"prediction"})
    columns = ("letters",)
    scores = ("letters",)

    def rows(self, batch: Any) -> Any:
        rows = np.array([[len(text) * self.config.times] for text in batch["prediction"]])
        return rows.tolist() if self.config.listed else rows

    def score(self, rows: Any) -> dict[str, float]:
        return {"letters": float(rows.mean())}

    @property
    def signature(self) -> str:
        return f"letters|times:{self.config.times}" if self.config.told else "letters"


def test_a_metric_whose_signature_hides_an_option():
    check = metrics.check_options_that_change_numbers_are_in_the_signature
    check(Letters())
    check(Letters(times=2.0))
    with pytest.raises(AssertionError, match="both have the signature 'letters'"):
        check(Untold(times=2.0))


@frozen(kw_only=True)
class Untold(Letters):
    """The signature never names the option."""

    told: bool = False


def test_a_metric_whose_rows_are_a_list():
    metrics.check_rows_are_as_promised(Letters())
    with pytest.raises(AssertionError, match="rows are a list, not a numpy array"):
        metrics.check_rows_are_as_promised(Letters(listed=True))


@frozen(kw_only=True)
class Idle(RLAlgorithmConfig):
    """Trains nothing and reports nothing."""

    impl: ClassVar[str] = f"{HERE}:Idling"


class Idling(RLAlgorithm):
    accepts = frozenset({"online"})

    def train(self, policy: Any, task: Any, runtime: Any) -> Any:
        return {"reward": 1.0}


def test_an_algorithm_that_reports_a_dict():
    with pytest.raises(AssertionError, match="train gave dict, not a TrainingReport"):
        rl_algorithms.check_equal_runs_give_equal_weights(Idle())


@frozen(kw_only=True)
class Third(SamplerConfig):
    """Drops every third token.

    Attributes:
        cools: Also halves the others.
    """

    impl: ClassVar[str] = f"{HERE}:Thinning"
    cools: bool = False


class Thinning(Link):
    def apply(self, logits: Any, rows: Any) -> Any:
        changed = logits / 2 if self.config.cools else logits.clone()
        changed[:, ::3] = float("-inf")
        return changed


def test_a_link_that_only_removes_and_does_not_say_so():
    samplers.check_a_link_that_only_removes_says_so(Third(cools=True))
    with pytest.raises(AssertionError, match="`truncates` is False"):
        samplers.check_a_link_that_only_removes_says_so(Third())


@frozen(kw_only=True)
class Deaf(DecoderConfig):
    """Another decoder, which is not told of limits that requests have of their own.

    Attributes:
        hears: Or is.
    """

    impl: ClassVar[str] = f"{HERE}:DeafDecoder"
    hears: bool = False


class DeafDecoder(Decoder):
    def decode(self, step_model: Any, requests: Any, sampler: Any, limits: Any, runtime: Any) -> Any:
        asked = requests if self.config.hears else [evolve(request, max_new_tokens=None) for request in requests]
        return ts.decoders.create("tunesmith/stepwise").build().decode(step_model, asked, sampler, limits, runtime)


@frozen(kw_only=True)
class DeafEngineConfig(EngineConfig):
    """Another engine, likewise.

    Attributes:
        hears: Or is told.
    """

    impl: ClassVar[str] = f"{HERE}:DeafEngine"
    hears: bool = False


class DeafEngine(Engine):
    def sync(self, lm: Any) -> None:
        self.inner = ts.engines.create("tunesmith/transformers").build()
        self.inner.sync(lm)

    def generate(self, requests: Any, decoder: Any, sampler: Any, limits: Any, runtime: Any) -> Any:
        asked = requests if self.config.hears else [evolve(request, max_new_tokens=None) for request in requests]
        return self.inner.generate(asked, decoder, sampler, limits, runtime)


@pytest.mark.parametrize(("kit", "cls"), [(decoders, Deaf), (engines, DeafEngineConfig)])
def test_a_decoder_or_an_engine_that_ignores_limits_of_single_requests(kit, cls):
    kit.check_a_request_may_have_a_limit_of_its_own(cls(hears=True))
    with pytest.raises(AssertionError, match="tokens where the request has"):
        kit.check_a_request_may_have_a_limit_of_its_own(cls())


@frozen(kw_only=True)
class LateConfig(EngineConfig):
    """Another engine, methods of which begin when their first result is taken.

    Attributes:
        late: Which of them.
    """

    impl: ClassVar[str] = f"{HERE}:LateEngine"
    late: str = ""


class LateEngine(Engine):
    def sync(self, lm: Any) -> None:
        self.inner = ts.engines.create("tunesmith/transformers").build()
        self.inner.sync(lm)

    def generate(self, *work: Any) -> Any:
        return self._ask("generate", work)

    def stream(self, *work: Any) -> Any:
        return self._ask("stream", work)

    def _ask(self, method: str, work: Any) -> Any:
        return self._later(method, work) if method == self.config.late else getattr(self.inner, method)(*work)

    def _later(self, method: str, work: Any) -> Any:
        yield from getattr(self.inner, method)(*work)


@frozen(kw_only=True)
class SeedsByPlaceConfig(EngineConfig):
    """An engine that may seed requests by their places.

    Attributes:
        by_place: Whether it does.
    """

    impl: ClassVar[str] = f"{HERE}:SeedsByPlace"
    by_place: bool = False


class SeedsByPlace(DeafEngine):
    powers = frozenset({"seeds", "any_sampler"})

    def generate(self, requests: Any, decoder: Any, sampler: Any, limits: Any, runtime: Any) -> Any:
        placed = [evolve(request, seed=place) for place, request in enumerate(requests)]
        asked = placed if self.config.by_place else requests
        return self.inner.generate(asked, decoder, sampler, limits, runtime)


def test_an_engine_whose_seeds_are_those_of_the_places():
    engines.check_seeds_are_honoured(SeedsByPlaceConfig())
    with pytest.raises(AssertionError, match="in another order"):
        engines.check_seeds_are_honoured(SeedsByPlaceConfig(by_place=True))


@pytest.mark.parametrize("late", ["generate", "stream"])
def test_an_engine_that_looks_its_model_up_late(late):
    engines.check_completions_keep_to_the_model_they_were_asked_of(LateConfig())
    with pytest.raises(AssertionError, match=f"{late}: after another sync"):
        engines.check_completions_keep_to_the_model_they_were_asked_of(LateConfig(late=late))

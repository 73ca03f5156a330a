"""The kinds of component, one contract a file. This module knows their names only and imports none of them."""

from __future__ import annotations

from attrs import frozen


@frozen(kw_only=True)
class Kind:
    """A kind of component.

    Attributes:
        name: Singular, as in messages: ``"reward_model"``.
        group: Entry-point group: ``"tunesmith.reward_models"``.
        config: Target of the config base class.
        component: Target of the component base class.
    """

    name: str
    group: str
    config: str
    component: str


def _kind(name: str, plural: str, stem: str) -> Kind:
    module = f"tunesmith.kinds.{name}"
    return Kind(name=name, group=f"tunesmith.{plural}", config=f"{module}:{stem}Config", component=f"{module}:{stem}")


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        _kind("adapter", "adapters", "Adapter"),
        _kind("benchmark", "benchmarks", "Benchmark"),
        _kind("compressor", "compressors", "Compressor"),
        _kind("decoder", "decoders", "Decoder"),
        _kind("engine", "engines", "Engine"),
        _kind("metric", "metrics", "Metric"),
        _kind("reward_model", "reward_models", "RewardModel"),
        _kind("rl_algorithm", "rl_algorithms", "RLAlgorithm"),
        _kind("sampler", "samplers", "Sampler"),
        _kind("stage", "stages", "Stage"),
    )
}
"""All kinds by singular name, sorted."""

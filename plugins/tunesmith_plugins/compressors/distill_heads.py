"""Models without their output layer: what enters it, and the layer apart."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from attrs import define, field
from torch import nn
from torch.nn import functional

from tunesmith.errors import ConfigError, NumericError
from tunesmith_plugins.compressors.prune_calibration import attention_kept, decoder_ids, is_classifier

BIAS = "final_logits_bias"
"""What BART and its kin add to the logits behind the output layer."""


def unwrapped(model: Any) -> Any:
    """Return the model inside what trainers put around it for several processes."""
    from transformers import PreTrainedModel  # which takes most of a second

    while not isinstance(model, PreTrainedModel) and isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


def arguments(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return a batch as the model takes it where it shall compute no loss of its own."""
    core = unwrapped(model)
    given: dict[str, Any] = {name: value for name, value in batch.items() if name != "labels"}
    if core.config.is_encoder_decoder and not is_classifier(core):  # classifiers make these of their input
        given["decoder_input_ids"] = decoder_ids(core, batch["labels"])
    if "use_cache" in inspect.signature(core.forward).parameters:
        given["use_cache"] = False
    return given


@define
class Headless:
    """A model whose output layer is run apart.

    Attributes:
        model: As the trainer calls it.
        core: The transformers model in it.
        head: Its output layer.
    """

    model: Any
    core: Any = field(init=False)
    head: nn.Module = field(init=False)
    _seen: torch.Tensor | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self.core = unwrapped(self.model)
        self.head = self.core.get_output_embeddings()

    @property
    def bias(self) -> torch.Tensor | None:
        """What is added to the products with the weight, (vocab,) or None."""
        own, later = getattr(self.head, "bias", None), getattr(self.core, BIAS, None)
        if later is None:
            return own
        return later[0] if own is None else own + later[0]

    def __call__(self, given: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        """Run the model on its arguments; return what enters the output layer (batch, time, width), and its outputs,
        whose logits mean nothing.
        """
        with self._without_head():
            outputs = self.model(**given)
        seen, self._seen = self._seen, None
        if seen is None:
            raise ConfigError([f"{type(self.core).__name__} does not call its output layer; set chunk=0"], "distill")
        return seen, outputs

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden states (tokens, width)."""
        weight = getattr(self.head, "weight", None)
        if isinstance(self.head, nn.Linear) and weight is not None:
            return functional.linear(hidden.to(weight.dtype), weight, self.bias)
        later = getattr(self.core, BIAS, None)
        found: torch.Tensor = self.head(hidden)
        return found if later is None else found + later[0]

    @contextmanager
    def _without_head(self) -> Iterator[None]:
        def stub(hidden: torch.Tensor) -> torch.Tensor:
            self._seen = hidden
            return hidden.new_zeros((*hidden.shape[:-1], 1))

        bias = self.core._buffers.get(BIAS)
        before = self.head.__dict__.get("forward")  # of whoever spreads the model over devices
        self.head.forward = stub
        if bias is not None:  # or it would spread the one column over the vocabulary
            self.core._buffers[BIAS] = bias[:, :1]
        try:
            yield
        finally:
            del self.head.forward
            if before is not None:
                self.head.forward = before
            if bias is not None:
                self.core._buffers[BIAS] = bias


def check(headless: Headless, batch: dict[str, torch.Tensor], who: str) -> None:
    """Check on a few tokens that the logits are the output layer's, so that they can be computed apart.

    Raises:
        ConfigError: If something else is done to them.
        NumericError: If there are NaN among them.
    """
    if who == "student" and not isinstance(headless.head, nn.Linear):
        raise ConfigError(
            [f"the student's output layer is a {type(headless.head).__name__}, not a linear one; set chunk=0"],
            "distill",
        )
    few = {name: value[:1, :16].to(headless.core.device) for name, value in batch.items()}
    training = headless.core.training
    headless.core.eval()
    with attention_kept(headless.core), torch.no_grad():
        given = arguments(headless.core, few)
        exact = headless.model(**given).logits.flatten().float()  # Mamba's are float32 in models of other types too
        hidden, _ = headless(given)
        apart = headless.logits(hidden.flatten(0, -2)).flatten().float()
    headless.core.train(training)
    if exact.isnan().any():
        raise NumericError(f"the {who}'s logits are NaN on an example; look at its weights, or load it in float32.")
    # ProphetNet's output layer sees several streams and shows one
    if apart.shape != exact.shape or not torch.allclose(apart, exact, rtol=1e-3, atol=1e-3):
        raise ConfigError(
            [
                f"the {who}, a {type(headless.core).__name__}, does something to its logits behind the output layer, so they "
                "cannot be computed in chunks; set chunk=0, which holds those of a whole batch"
            ],
            "distill",
        )

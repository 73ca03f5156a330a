"""CTranslate2 as a contender for whole models: a model is converted to its int8 format in a temporary folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Converted:
    """A transformers model in CTranslate2's format, int8; tokens are called ``t0``, ``t1`` ...

    Args:
        model: LLaMA, T5 or BERT.

    Raises:
        ImportError: Without ctranslate2.
    """

    def __init__(self, model: Any) -> None:
        import ctranslate2
        import transformers
        from tokenizers import Tokenizer, models, pre_tokenizers

        self._library: Any = ctranslate2
        self._seq2seq = bool(model.config.is_encoder_decoder)
        self._folder = tempfile.TemporaryDirectory()
        source, self._target = Path(self._folder.name) / "model", Path(self._folder.name) / "converted"
        size = int(model.config.vocab_size)
        inner = Tokenizer(models.WordLevel({f"t{i}": i for i in range(size)}, unk_token="t3"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        special = {"pad_token": "t0", "bos_token": "t1", "eos_token": "t2", "unk_token": "t3", "mask_token": "t4"}
        transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(source)
        if model.config.model_type == "bert":  # the converter asks, and transformers no longer says
            model.config.position_embedding_type = "absolute"
        model.save_pretrained(source)
        ctranslate2.converters.TransformersConverter(str(source)).convert(str(self._target), quantization="int8")

    def decoding(self, ids: torch.Tensor, new: int, threads: int) -> Callable[[], object]:
        """Return a call that writes ``new`` tokens after every row of ids (batch, time), greedily."""
        rows = [[f"t{i}" for i in row] for row in ids.tolist()]
        options: dict[str, Any] = {"device": "cpu", "compute_type": "int8", "intra_threads": threads}
        if self._seq2seq:
            translator = self._library.Translator(str(self._target), **options)
            length = {"max_decoding_length": new, "min_decoding_length": new}
            return lambda: translator.translate_batch(rows, beam_size=1, **length)
        generator = self._library.Generator(str(self._target), **options)
        length = {"max_length": new, "min_length": new}
        return lambda: generator.generate_batch(
            rows, beam_size=1, sampling_topk=1, include_prompt_in_result=False, **length
        )

    def encoding(self, ids: torch.Tensor, threads: int) -> Callable[[], object]:
        """Return a call that encodes ids (batch, time)."""
        encoder = self._library.Encoder(str(self._target), device="cpu", compute_type="int8", intra_threads=threads)
        rows = ids.tolist()
        return lambda: encoder.forward_batch(rows)

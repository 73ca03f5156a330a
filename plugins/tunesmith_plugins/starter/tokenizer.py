"""The tokenizer of the demo's models: whole words, letters for words it does not know, bytes for everything else.

A unigram model (Kudo, 2018) whose pieces are not learned but listed: each word of the generator, with the blank before
it, is one token. Text without blanks beside blanks or line ends comes back unchanged from `decode(encode(text))`;
unknown words are spelled.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

BLANK = "▁"  # what a blank looks like inside a token
SPECIALS = ("<pad>", "</s>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
SENTINELS = 16
_LETTER, _BYTE = -15.0, -30.0  # log-probabilities that make spelling the last resort


def train_tokenizer(texts: Iterable[str], folder: Path, *, family: str) -> None:
    """Writes a fast tokenizer that `AutoTokenizer.from_pretrained(folder)` loads.

    Args:
        texts: what to collect the words from.
        folder: where `tokenizer.json` and `tokenizer_config.json` go.
        family: "encoder-decoder" (ends a text with `</s>`) or "encoder" (`[CLS]` before and `[SEP]` after it). The
            token ids of both are the same.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    counts: Counter[str] = Counter()
    for text in texts:
        for word in re.findall(r"\n+|[^\s]+", text):
            for i, part in enumerate(re.findall(r"\n+|\w+|[^\w\s]", word)):
                counts[BLANK + part if i == 0 else part] += 1
    total = sum(counts.values())
    pieces: dict[str, float] = dict.fromkeys(SPECIALS, 0.0)
    pieces |= {f"<0x{byte:02X}>": _BYTE for byte in range(256)}
    pieces |= dict.fromkeys([BLANK, *string.ascii_letters, *string.digits, *string.punctuation], _LETTER)
    pieces |= {word: math.log(n / total) for word, n in sorted(counts.items())}
    core = Tokenizer(models.Unigram(list(pieces.items()), unk_id=SPECIALS.index("<unk>"), byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n+"), "isolated"),
            pre_tokenizers.Metaspace(replacement=BLANK, prepend_scheme="always"),
        ]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace(Regex(f"{BLANK}(?=\n)|(?<=\n){BLANK}"), ""),
            decoders.Replace(BLANK, " "),
            decoders.Strip(" ", 1, 0),
        ]
    )
    ids = {name: i for i, name in enumerate(SPECIALS)}
    if family == "encoder-decoder":
        core.post_processor = processors.TemplateProcessing("$A </s>", "$A $B </s>", [("</s>", ids["</s>"])])
        special = {"eos_token": "</s>"}
        extra = [f"<extra_id_{i}>" for i in range(SENTINELS)]
    else:
        core.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
        )
        special = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
        extra = []
    PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=1024 if family == "encoder-decoder" else 256,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        extra_special_tokens=extra,
        **special,
    ).save_pretrained(folder)

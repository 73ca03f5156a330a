"""Whatever is drawn at random, what ends is what the format says; a parser of another make looks."""

import itertools
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers

pytest.importorskip("llguidance", reason="the extra 'structured' is not installed")

from tunesmith.errors import ConfigError, NumericError, PluginLoadError
from tunesmith.generation import component, generate, prompt_ids
from tunesmith.hf_generate import custom_generate
from tunesmith.kinds.decoder import Limits, Request
from tunesmith.kinds.sampler import STATUS_EMPTY, STATUS_OK, Rows
from tunesmith.lm import LM
from tunesmith.runtime import Runtime
from tunesmith.testing import conformance
from tunesmith.testing.models import tiny_lm
from tunesmith_plugins.decoders import Guidance, SelfConsistency, Speculative
from tunesmith_plugins.engines import Transformers
from tunesmith_plugins.samplers import Chain, Format, Structured, Temperature, TopK
from tunesmith_plugins.samplers.grammars import tokens_of

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,5}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 2},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "ok"],
    "additionalProperties": False,
}
DATE = r"(19|20)[0-9]{2}-(0[1-9]|1[0-2])-[0-3][0-9]"
SUMS = 'start: sum\nsum: number ("+" number)~1..3\nnumber: /[1-9][0-9]?/'
MOVES = 'root ::= move ("," move)?\nmove ::= [a-h] [1-8]'
END = 257


def byte_tokenizer():
    """A token for every byte, a few for words, and special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: n for n, piece in enumerate(alphabet)}
    vocabulary |= {"<s>": 256, "</s>": END, '{"': 258, '":': 259, "true": 260, "name": 261}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def model_with(tokenizer, family, extra=6):
    """A tiny random model whose output layer is wider than the vocabulary."""
    ids = {"bos_token_id": 256, "eos_token_id": END, "pad_token_id": 256, "vocab_size": len(tokenizer) + extra}
    torch.manual_seed(0)
    if family == "decoder":
        config = transformers.LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
            **ids,
        )
        model = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.T5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=256, dropout_rate=0.0, **ids
        )
        model = transformers.T5ForConditionalGeneration(config)
    return LM(model=model.eval(), tokenizer=tokenizer, family=family)


@pytest.fixture(scope="module", params=["decoder", "encoder-decoder"])
def lm(request):
    return model_with(byte_tokenizer(), request.param)


def written(lm, sampler, count=12, **options):
    options = {"max_new_tokens": 120, "completions": count, "engine": Transformers(batch_size=64), **options}
    return generate(lm, ["a", "bc"], sampler=sampler, **options)


def follows_schema(text):
    value = json.loads(text)
    assert set(value) <= set(SCHEMA["properties"])
    assert set(value) >= set(SCHEMA["required"])
    assert re.fullmatch("[A-Z][a-z]{1,5}", value["name"])
    assert type(value["age"]) is int
    assert 0 <= value["age"] <= 120
    assert type(value["ok"]) is bool
    assert len(value.get("tags", [])) <= 2
    assert set(value.get("tags", [])) <= {"x", "y"}


def follows(pattern):
    return lambda text: re.fullmatch(pattern, text) or pytest.fail(f"{text!r} is not {pattern}")


FORMATS = {
    "schema": ({"json_schema": json.dumps(SCHEMA)}, follows_schema),
    "compact schema": ({"json_schema": json.dumps(SCHEMA), "whitespace": "none"}, follows_schema),
    "regex": ({"regex": DATE}, follows(DATE)),
    "lark": ({"lark": SUMS}, follows(r"[1-9][0-9]?(\+[1-9][0-9]?){1,3}")),
    "gbnf": ({"gbnf": MOVES}, follows("[a-h][1-8](,[a-h][1-8])?")),
}


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_completion_follows_the_format(lm, name):
    options, check = FORMATS[name]
    found = written(lm, Structured(**options))
    assert len({c.text for c in found}) > 6
    for completion in found:
        assert completion.finish == "eos"
        check(completion.text)
        assert "  " not in completion.text


def test_it_stands_anywhere_in_a_chain_and_under_every_drawing_decoder():
    lm = model_with(byte_tokenizer(), "decoder")
    follow = Structured(regex=DATE)
    check = follows(DATE)
    for links in ((Temperature(temperature=2.0), follow), (follow, TopK(k=3)), (follow, Structured(regex="2.*"))):
        for completion in written(lm, Chain(links=links), 4):
            check(completion.text)
    chain = Chain(links=(Temperature(temperature=2.0), follow))
    plain = [c.token_ids for c in written(lm, chain, 4)]
    draft = Speculative(verify="tokens", tokens=3).build()
    draft.draft_with(lm)
    assert [c.token_ids for c in written(lm, chain, 4, decoder=draft)] == plain
    assert [c.token_ids for c in written(lm, chain, 4, decoder="speculative(verify='tokens')")] == plain
    for decoder in (Guidance(scale=2.0), SelfConsistency(n=2, answer="text"), "best_of_n(n=2)"):
        for completion in written(lm, chain, 3, decoder=decoder):
            check(completion.text)


def test_the_end_comes_where_the_text_may_end_and_nowhere_else(lm):
    found = written(lm, Structured(regex="a{2,4}"), 60)
    assert {c.text for c in found} == {"aa", "aaa", "aaaa"}
    assert {len(c.token_ids) for c in found} == {3, 4, 5}


def test_lengths_and_formats_hold_together(lm):
    for least in (3, 4):
        texts = {c.text for c in written(lm, Structured(regex="a{2,4}"), 20, min_new_tokens=least)}
        assert texts == {"a" * n for n in range(max(least, 2), 5)}
    cut = written(lm, Structured(regex="a{2,4}"), 8, max_new_tokens=2)
    assert {(c.text, c.finish) for c in cut} == {("aa", "length")}


def two_models():
    """Models for which "1" and "x" are each other's ids."""
    first, second = byte_tokenizer(), byte_tokenizer()
    pieces = first.get_vocab()
    swapped = {piece: {pieces["1"]: pieces["x"], pieces["x"]: pieces["1"]}.get(n, n) for piece, n in pieces.items()}
    inner = json.loads(second.backend_tokenizer.to_str())
    inner["model"]["vocab"] = swapped
    other = transformers.PreTrainedTokenizerFast(
        tokenizer_object=second.backend_tokenizer.from_str(json.dumps(inner)), bos_token="<s>", eos_token="</s>"
    )
    return [model_with(first, "decoder"), model_with(other, "decoder")]


def test_a_sampler_that_serves_two_models_knows_the_tokens_of_the_one_that_writes():
    """Both texts were asked for before either was written."""
    models = two_models()
    sampler, engine = component("structured(regex='1{3}')", "sampler"), component(None, "engine")
    asked = [generate(lm, ["a"], sampler=sampler, engine=engine, max_new_tokens=8, stream=True) for lm in models]
    assert ["".join(piece.text for piece in stream) for stream in asked] == ["111", "111"]


def test_two_streams_of_one_sampler_are_taken_from_in_turns():
    models = two_models()
    sampler = component("structured(regex='1{3,9}')", "sampler")
    options = {"sampler": sampler, "max_new_tokens": 9, "min_new_tokens": 5, "engine": Transformers(batch_size=2)}
    streams = [generate(lm, list("abcdef"), stream=True, **options) for lm in models]
    texts = [[""] * 6 for _ in models]
    for pieces in itertools.zip_longest(*streams):
        for text, piece in zip(texts, pieces, strict=True):
            if piece is not None:
                text[piece.request] += piece.text
    for one in (one for text in texts for one in text):
        assert re.fullmatch("1{4,9}", one)


def test_threads_with_different_models_share_one_sampler():
    models = two_models()
    sampler = component("structured(regex='1{3,9}')", "sampler")
    start = threading.Barrier(2)

    def write(lm):
        found = []
        start.wait()
        for seed in range(15):
            found += generate(
                lm, list("abc"), sampler=sampler, max_new_tokens=9, seed=seed, engine="transformers(batch_size=2)"
            )
        return [c.text for c in found]

    with ThreadPoolExecutor(2) as pool:
        for texts in pool.map(write, models):
            assert all(re.fullmatch("1{3,9}", text) for text in texts)


def test_a_dead_end_is_an_empty_row():
    lm = model_with(byte_tokenizer(), "decoder")
    with pytest.raises(NumericError, match="no finite value"):
        written(lm, Structured(regex="ab"), 1, min_new_tokens=3)
    sampler = Chain(links=(Structured(regex="ab|cd"), Structured(regex="ax|cd"))).build()
    for link in sampler.links.values():
        link.use_tokenizer(lm.tokenizer, {END})
    a, c, d = (lm.tokenizer.convert_tokens_to_ids(letter) for letter in "acd")
    rows = rows_of(2)
    logits = torch.full((2, 264), -1.0)
    logits[0, a] = logits[1, c] = 50.0
    draw = sampler.sample(logits, rows)
    assert draw.token.tolist() == [a, c]
    draw = sampler.sample(torch.zeros(2, 264), rows_of(2, position=1, state=draw.state))
    assert draw.status.tolist() == [STATUS_EMPTY, STATUS_OK]
    assert draw.token.tolist() == [-1, d]


def rows_of(count, position=0, **more):
    each = torch.arange(count)
    return Rows(
        seed=each,
        stream=each * 0,
        position=each * 0 + position,
        history=torch.zeros(count, 8, dtype=torch.int64),
        history_lengths=each * 0 + 1 + position,
        prompt_lengths=each * 0 + 1,
        **more,
    )


def test_rows_follow_formats_of_their_own_and_keep_them_when_others_come_and_go(lm):
    formats = (
        Format(text="a{1,9}"),
        Format(text="(bc){2,5}"),
        Format(language="json_schema", text='{"enum": ["x", 7]}'),
    )
    wanted = ["a{1,9}", "(bc){2,5}", '"x"|7']
    engine = Transformers(batch_size=4).build()
    engine.sync(lm)
    (ids,) = prompt_ids(lm, ["a"])
    requests = [Request(prompt_ids=ids, seed=n, stream=n, parameters={"structured.which": n % 3}) for n in range(30)]
    sampler, decoder = Structured(formats=formats).build(), component(None, "decoder")
    found = list(engine.generate(requests, decoder, sampler, Limits(max_new_tokens=30), Runtime()))
    assert len({len(c.token_ids) for c in found}) > 4
    for completion in found:
        assert re.fullmatch(wanted[completion.request % 3], completion.text), completion.text
    for request in requests[:6]:
        (alone,) = engine.generate([request], decoder, sampler, Limits(max_new_tokens=30), Runtime())
        assert alone.token_ids == next(c.token_ids for c in found if c.request == request.seed)
    wrong = Request(prompt_ids=ids, parameters={"structured.which": 3})
    with pytest.raises(ConfigError, match="there is no format 3 among 3"):
        list(engine.generate([wrong], decoder, sampler, Limits(), Runtime()))


def test_greedy_takes_the_likeliest_token_that_is_allowed(lm):
    (found,) = generate(lm, ["a"], sampler=Chain(links=(Structured(regex=DATE),), draw="greedy"), max_new_tokens=30)
    follows(DATE)(found.text)


def test_texts_may_hold_any_character(lm):
    for completion in written(lm, Structured(regex="[äßé€]{3}"), 6):
        follows("[äßé€]{3}")(completion.text)


def test_special_tokens_are_no_text(lm):
    tokens = tokens_of(lm.tokenizer, {END})
    assert tokens.vocab_size == len(lm.tokenizer)
    for completion in written(lm, Structured(regex="(?s:.){40}"), 6):
        assert 256 not in completion.token_ids
        assert completion.token_ids.index(END) == len(completion.token_ids) - 1


@pytest.mark.parametrize("decoder", ["stepwise", "speculative(verify=tokens)"])
def test_a_forced_first_token_stands_before_the_format(decoder):
    """As the language of mBART and NLLB."""
    lm = model_with(byte_tokenizer(), "encoder-decoder")
    lm.model.generation_config.forced_bos_token_id = 256
    for completion in written(lm, Structured(regex=DATE), 4, decoder=decoder):
        assert completion.token_ids[0] == 256
        follows(DATE)(completion.text)


@conformance(Structured(regex="[!-~]{1,30}", tokenizer="byte-tokenizer"))
def test_conforms(check, tmp_path, monkeypatch):
    byte_tokenizer().save_pretrained(tmp_path / "byte-tokenizer")
    monkeypatch.chdir(tmp_path)
    check()


def test_a_tokenizer_may_be_named(lm, tmp_path):
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    named = Structured(regex=DATE, tokenizer=str(tmp_path / "tokenizer"))
    assert [c.token_ids for c in written(lm, named, 3)] == [c.token_ids for c in written(lm, Structured(regex=DATE), 3)]


def test_custom_generate_is_given_the_tokenizer(lm):
    sampler = Structured(regex=DATE)
    for prompt in prompt_ids(lm, ["dog", "no fish"]):
        (ours,) = generate(lm, [prompt], sampler=sampler, seeds=[5], max_new_tokens=12)
        draw = custom_generate(sampler, seed=[5], tokenizer=lm.tokenizer)
        ids = torch.tensor([prompt])
        found = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, custom_generate=draw)
        new = found[0, len(prompt) if lm.family == "decoder" else 1 :]
        assert tuple(new.tolist()) == ours.token_ids


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["stories260k", "aren-seq2seq"])
def test_trained_models_of_both_families_follow_formats(name, real_models):
    import tunesmith as ts

    lm = ts.load(real_models / name)
    if name == "stories260k":
        found = generate(
            lm, ["Once upon"], completions=12, sampler=Structured(**FORMATS["schema"][0]), max_new_tokens=150
        )
        for completion in found:
            assert completion.finish == "eos"
            follows_schema(completion.text)
    else:
        letters = sorted(
            {t for t in map(lm.tokenizer.decode, range(len(lm.tokenizer))) if len(t) == 1 and t.isalpha()}
        )[:3]
        pattern = f"[{''.join(letters)}]{{2,4}}"
        for completion in generate(lm, ["ab"], completions=12, sampler=Structured(regex=pattern), max_new_tokens=20):
            assert completion.finish == "eos"
            follows(pattern)(completion.text)


def test_mistakes_are_said(monkeypatch):
    lm = model_with(byte_tokenizer(), "decoder")
    with pytest.raises(ValueError, match="give one of json_schema, regex, lark, gbnf and formats, not none"):
        Structured()
    with pytest.raises(ValueError, match=r"not \['regex', 'lark'\]"):
        Structured(regex="a", lark="b")
    with pytest.raises(ValueError, match="not JSON"):
        Structured(json_schema="{")
    with pytest.raises(ValueError, match="no format 1 among 1"):
        Structured(regex="a", which=1)
    with pytest.raises(ValueError, match="cannot be empty"):
        Format(text="")
    with pytest.raises(ValueError, match="not JSON"):
        Format(language="json_schema", text="{")
    for wrong in (
        {"regex": "[a-"},
        {"lark": "start: nothing"},
        {"gbnf": "root ::= ("},
        {"json_schema": '{"type": "it"}'},
    ):
        with pytest.raises(ConfigError, match=r"structured"):
            written(lm, Structured(**wrong), 1)
    with pytest.raises(ConfigError, match="set 'tokenizer'"):
        Structured(regex="a").build().sample(torch.zeros(1, 8), rows_of(1))
    with pytest.raises(ConfigError, match="not its tokens one behind the other"):
        generate(tiny_lm(), ["dog"], sampler=Structured(regex="a"))
    endless = model_with(byte_tokenizer(), "decoder")
    endless.model.generation_config.eos_token_id = endless.model.config.eos_token_id = None
    endless.tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        written(endless, Structured(regex="a"), 1)


def test_without_the_extra_it_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(PluginLoadError, match=r"pip install 'tunesmith\[structured\]'"):
        Structured(regex="a").build()

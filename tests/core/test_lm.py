"""The model handle: what is saved comes back, and what cannot be loaded is said plainly."""

import json

import pytest
import torch
import transformers
from attrs import evolve

from tunesmith.errors import ArtifactError, ConfigError
from tunesmith.evaluation_mode import evaluation_mode
from tunesmith.lm import ADAPTED, LM, family_of, load
from tunesmith.registry import adapters, compressors
from tunesmith.runtime import Runtime
from tunesmith.testing.adapters import move, outputs
from tunesmith.testing.models import tiny_lm, tiny_tokenizer

FAMILIES = ["encoder", "decoder", "encoder-decoder"]


def adapted(family, *names):
    lm = tiny_lm(family)
    for name in names:
        lm = adapters.create(name).build().attach(lm, Runtime())
        move(lm.adapters[-1])
    return lm


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", ["lm", "classification"])
def test_a_plain_model_comes_back(family, head, tmp_path):
    lm = tiny_lm(family, head=head)
    lm.save(tmp_path)
    again = load(tmp_path)
    assert again.fingerprint == lm.fingerprint
    assert again.family == family
    assert type(again.model) is type(lm.model)
    assert again.origin == str(tmp_path)
    assert not again.model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_save_is_one_for_from_pretrained(family, tmp_path):
    lm = tiny_lm(family)
    lm.save(tmp_path)
    theirs = type(lm.model).from_pretrained(tmp_path).eval()
    assert torch.equal(outputs(LM(model=theirs, tokenizer=None, family=family)), outputs(lm))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "names", [("lora",), ("bottleneck", "lora"), ("prompt",), ("ia3", "prefix", "lora")], ids="+".join
)
def test_a_model_with_adapters_comes_back_and_again_from_there(family, names, tmp_path):
    lm = adapted(family, *names)
    lm.save(tmp_path / "a")
    second = load(tmp_path / "a")
    second.save(tmp_path / "b")
    third = load(tmp_path / "b")
    assert torch.equal(outputs(third), outputs(lm))
    assert third.fingerprint == lm.fingerprint
    assert not any(p.requires_grad for p in third.model.parameters() if id(p) in own_of(third))


def own_of(lm):
    return {id(p) for adapter in lm.adapters for _, p in adapter.trainable()}


@pytest.mark.parametrize("name", ["bottleneck", "prompt", "prefix"])
def test_adapters_on_quantised_weights_come_back_and_leave_a_plain_base(name, tmp_path):
    plain, _ = compressors.create("int8").build().compress(tiny_lm("decoder"), runtime=Runtime())
    fingerprint = plain.fingerprint
    lm = adapters.create(name).build().attach(plain, Runtime())
    move(lm.adapters[0])
    lm.save(tmp_path)
    assert torch.equal(outputs(load(tmp_path)), outputs(lm))
    assert load(tmp_path / "base").fingerprint == fingerprint


def test_without_a_copy_the_folder_points_to_the_base(tmp_path):
    tiny_lm("decoder").save(tmp_path / "base-model")
    lm = adapters.create("lora").build().attach(load(tmp_path / "base-model"), Runtime())
    move(lm.adapters[0])
    lm.save(tmp_path / "tuned", copy_base=False)
    assert not (tmp_path / "tuned" / "base").exists()
    assert torch.equal(outputs(load(tmp_path / "tuned")), outputs(lm))


def test_a_plain_model_saved_over_an_adapted_one_is_plain(tmp_path):
    adapted("decoder", "lora").save(tmp_path)
    tiny_lm("decoder").save(tmp_path)
    assert load(tmp_path).fingerprint == tiny_lm("decoder").fingerprint


def test_a_model_takes_the_place_of_another_whatever_files_that_one_had(tmp_path):
    small, other = tiny_lm("decoder"), tiny_lm("decoder", seed=1)
    other.tokenizer.chat_template = "{{ messages }}"
    other.save(tmp_path / "sharded")
    other.model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    (tmp_path / "sharded/model.safetensors").unlink()
    (tmp_path / "sharded/notes.txt").write_text("mine")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 1
    small.save(tmp_path / "sharded")
    small.save(tmp_path / "new")
    left = {path.name for path in (tmp_path / "sharded").iterdir()} - {
        path.name for path in (tmp_path / "new").iterdir()
    }
    assert left == {"notes.txt"}
    again = load(tmp_path / "sharded")
    assert again.fingerprint == small.fingerprint
    assert again.tokenizer.chat_template is None


def test_a_model_in_shards_takes_the_place_of_one_in_a_file(tmp_path, monkeypatch):
    """transformers reads the one file first."""
    tiny_lm("decoder", seed=1).save(tmp_path)
    small = tiny_lm("decoder")
    whole = small.model.save_pretrained
    monkeypatch.setattr(small.model, "save_pretrained", lambda folder: whole(folder, max_shard_size="20KB"))
    small.save(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert load(tmp_path).fingerprint == small.fingerprint


def test_a_model_does_not_come_to_lie_beside_an_adapter(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds an adapter \(adapter_config\.json\).*another folder"):
        tiny_lm("decoder").save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    before = tiny_lm("decoder", seed=1)
    before.save(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    small = tiny_lm("decoder")

    def full(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(small.model, "save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        small.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert load(tmp_path).fingerprint == before.fingerprint


def test_a_tokenizer_that_is_there_stays_with_a_warning(tmp_path, caplog):
    small = tiny_lm("decoder")
    small.tokenizer.save_pretrained(tmp_path)
    evolve(small, tokenizer=None).save(tmp_path)
    assert "stays, and will be loaded with the model" in caplog.text
    assert len(load(tmp_path).tokenizer) == len(small.tokenizer)


def test_merged_weights_are_not_the_origin_any_more(tmp_path):
    tiny_lm("decoder").save(tmp_path / "base-model")
    lm = adapters.create("lora").build().attach(load(tmp_path / "base-model"), Runtime())
    move(lm.adapters[0])
    expected = outputs(lm)
    merged = lm.adapters[0].merge(lm)
    stacked = adapters.create("bottleneck").build().attach(merged, Runtime())
    stacked.save(tmp_path / "tuned", copy_base=False)  # has to copy all the same
    assert torch.allclose(outputs(load(tmp_path / "tuned")), expected, atol=1e-4)


def test_the_fingerprint_follows_every_weight():
    lm = tiny_lm("encoder-decoder")
    before = lm.fingerprint
    assert tiny_lm("encoder-decoder").fingerprint == before
    assert tiny_lm("encoder-decoder", seed=1).fingerprint != before
    with torch.no_grad():
        next(lm.model.parameters()).view(-1)[0] += 1e-3
    assert lm.fingerprint != before


def test_shared_parameters_count_once():
    lm = tiny_lm("encoder-decoder")
    assert lm.parameter_count() == sum(p.numel() for p in {id(p): p for p in lm.model.parameters()}.values())
    assert lm.parameter_count(trainable=True) == lm.parameter_count()
    assert adapted("encoder-decoder", "lora").parameter_count(trainable=True) == sum(
        p.numel() for _, p in adapted("encoder-decoder", "lora").adapters[0].trainable()
    )


class Signs(torch.nn.Module):
    """Weights of -1, 0 and 1 in a buffer, as a stranger's layer may keep them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("signs", torch.tensor([[1, 0, -1], [0, 0, 1]], dtype=torch.int8))

    def held_weights(self, nonzero):
        return int(self.signs.count_nonzero()) if nonzero else self.signs.numel()


def test_weights_that_are_no_parameters_count_as_what_they_stand_for_and_zeros_are_told_apart():
    lm = tiny_lm("decoder")
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.fill_(1)
        next(lm.model.parameters()).view(-1)[:5] = 0
    before = lm.parameter_count()
    assert lm.parameter_count(nonzero=True) == before - 5
    lm.model.signs = Signs()
    assert lm.parameter_count() == before + 6
    assert lm.parameter_count(nonzero=True) == before - 5 + 3
    assert lm.parameter_count(trainable=True) == before


def test_evaluation_mode_ends_with_the_last_of_several_that_overlap():
    lm = tiny_lm("decoder")
    lm.model.train()
    first, second = evaluation_mode(lm.model), evaluation_mode(lm.model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(module.training for module in lm.model.modules())
    second.__exit__(None, None, None)
    assert all(module.training for module in lm.model.modules())
    lm.model.eval()
    with lm.evaluating(), lm.evaluating():
        pass
    assert not lm.model.training


def test_evaluating_puts_the_mode_back_even_after_an_error():
    lm = tiny_lm("decoder")
    lm.model.train()
    seen = []

    def fail():
        with lm.evaluating():
            seen.append((lm.model.training, torch.is_grad_enabled()))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [(False, False)]
    assert lm.model.training
    assert torch.is_grad_enabled()


def test_new_classes_get_a_new_head_and_known_ones_keep_theirs(tmp_path):
    tiny_lm("encoder", head="classification", labels=("no", "yes")).save(tmp_path)
    same = load(tmp_path, labels=["yes", "no"])
    assert same.model.config.id2label == {0: "no", 1: "yes"}
    assert same.origin == str(tmp_path)
    new = load(tmp_path, labels=["a", "b", "c"])
    assert new.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert new.model.classifier.weight.shape[0] == 3
    assert new.origin is None


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no model folder"):
        load(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="no hub is asked"):
        load("somebody/something", runtime=Runtime(offline=True))


@pytest.mark.parametrize("source", ["./" + "x" * 300, "./" + "x" * 300 + "/b"])
def test_a_name_that_no_folder_can_have_is_said(source):
    with pytest.raises(ConfigError, match=f"'{source}' cannot be read: File name too long"):
        load(source)


def test_near_folders_home_and_files_in_the_place_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_lm("decoder").save(tmp_path / "runs" / "small" / "model")
    assert load("~/runs/small/model").origin == str(tmp_path / "runs" / "small" / "model")
    tiny_lm("decoder").save("~/saved")
    assert load("~/saved").origin == str(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"looked from .*never looked up.*Did you mean 'runs/small/model'\?"):
        load("runs/small/modle")  # too many slashes for a hub name
    with pytest.raises(ConfigError, match=r"'runs/small/model/config.json' is a file; give .*'runs/small/model'"):
        load("runs/small/model/config.json")
    with pytest.raises(
        ConfigError, match=r"'runs/small' holds no model: it has no config.json; models lie in 'runs/small/model'"
    ):
        load("runs/small")
    with pytest.raises(ConfigError, match=r"no config.json; give the folder of a model"):
        load("runs")


def test_a_name_that_neither_a_folder_nor_the_hub_has_is_named(tmp_path, monkeypatch):
    """The hub's own words speak of the network, and whoever mistyped a folder's name did not think of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-model").mkdir()

    def lost(*given, **named):
        raise OSError("no network")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lost)
    with pytest.raises(
        ConfigError, match=r"no model folder 'my-modle' \(looked from .*no network. Did you mean 'my-model'"
    ):
        load("my-modle", runtime=Runtime(offline=False))


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_named(tmp_path, device):
    tiny_lm("decoder").save(tmp_path)
    with pytest.raises(ConfigError, match=f"the device '{device}' cannot be used: .*doctor"):
        load(tmp_path, runtime=Runtime(device=device))


def test_truncated_weights_are_named(tmp_path):
    tiny_lm("decoder").save(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ArtifactError, match="cannot be read"):
        load(tmp_path)


def test_pickled_weights_are_not_read(tmp_path):
    lm = tiny_lm("decoder")
    lm.save(tmp_path)
    torch.save(lm.model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises((ArtifactError, ConfigError)):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format=99), "format 99"),
        (lambda r: r.pop("base"), "is damaged"),
        (lambda r: r["adapters"][0].update(folder="../../elsewhere"), "outside its folder"),
        (lambda r: r["adapters"][0].update(folder="adapter-07"), "cannot be read"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, change, message):
    adapted("decoder", "lora").save(tmp_path)
    record = json.loads((tmp_path / ADAPTED).read_text())
    change(record)
    (tmp_path / ADAPTED).write_text(json.dumps(record))
    with pytest.raises(ArtifactError, match=message):
        load(tmp_path)


def test_families_of_architectures():
    hf = transformers
    assert family_of(hf.T5Config()) == "encoder-decoder"
    assert family_of(hf.BartConfig()) == "encoder-decoder"
    assert family_of(hf.LlamaConfig()) == "decoder"
    assert family_of(hf.GPT2Config()) == "decoder"
    assert family_of(hf.BertConfig()) == "encoder"
    assert family_of(hf.BertConfig(architectures=["BertLMHeadModel"], is_decoder=True)) == "decoder"
    assert family_of(hf.RobertaConfig()) == "encoder"


def test_saving_says_nothing_on_standard_error(tmp_path, capfd):
    lm = tiny_lm("decoder")
    capfd.readouterr()
    lm.save(tmp_path)
    load(tmp_path)
    assert capfd.readouterr().err == ""


def test_a_copy_with_other_attributes_is_a_value():
    lm = tiny_lm("decoder")
    assert evolve(lm, origin="x").origin == "x"
    assert lm.origin is None
    assert len(tiny_tokenizer()) == lm.model.config.vocab_size


def test_a_head_that_was_never_trained_is_no_classifier(tmp_path):
    tiny_lm("encoder").save(tmp_path)
    with pytest.raises(ConfigError, match="saved without a classification head"):
        load(tmp_path, head="classification")
    assert load(tmp_path, head="classification", labels=["no", "yes"]).model.config.num_labels == 2


def test_a_name_of_nobodys_home_is_no_folder():
    with pytest.raises(ConfigError, match="~nobody-of-this-machine/model"):
        load("~nobody-of-this-machine/model", runtime=Runtime(offline=True, progress=False))


def test_what_the_hub_says_is_not_taken_for_a_missing_model(monkeypatch):
    def refuse(*_, **__):
        raise OSError("You are trying to access a gated repo.")

    monkeypatch.setattr("tunesmith.lm._check_source", lambda *_: None)  # these tests may not go online
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(ConfigError, match="'some/model' of the hub cannot be loaded: You are trying to access a gated"):
        load("some/model", runtime=Runtime(progress=False))

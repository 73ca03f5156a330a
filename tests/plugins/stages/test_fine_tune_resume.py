"""After a kill at any moment the same training comes out, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import transformers
from attrs import evolve
from filelock import FileLock

from tunesmith import spec
from tunesmith.data import Data
from tunesmith.kinds.stage import StageContext
from tunesmith.lm import load
from tunesmith.report import content
from tunesmith.runtime import Runtime
from tunesmith.testing.models import WORDS, tiny_lm, tiny_tokenizer
from tunesmith_plugins.adapters import LoRA, Prompt, QuantizationAware
from tunesmith_plugins.stages import FineTune
from tunesmith_plugins.stages.training import child

STAGE = FineTune(
    name="x",
    batch_size=4,
    epochs=3,
    learning_rate=1e-2,
    validation="validation",
    arguments={"save_steps": 3, "eval_steps": 3, "save_total_limit": 50},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    (root / "data").mkdir()
    for split, count in (("train", 30), ("validation", 6)):
        lines = [
            json.dumps({"x": " ".join(WORDS[(i * k + len(split)) % 30] for k in range(1, 7)), "y": WORDS[i]})
            for i in range(count)
        ]
        (root / "data" / f"{split}.jsonl").write_text("\n".join(lines))
    transformers.set_seed(0)
    # dropout in every layer, so that the random state matters
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.2}
    ids = {"vocab_size": len(tiny_tokenizer()), "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **ids)).save_pretrained(
        root / "encoder-decoder"
    )
    tiny_tokenizer().save_pretrained(root / "encoder-decoder")
    for family in ("encoder", "decoder"):
        tiny_lm(family).save(root / family)
    return root


def context_in(place, folder, family) -> StageContext:
    for part in ("work", "out"):
        (place / part).mkdir(parents=True, exist_ok=True)
    return StageContext(
        name="x",
        start=str(folder / family),
        data=Data(source=str(folder / "data"), prompt="{x}", target="{y}"),
        inputs={},
        folder=place / "work",
        out=place / "out",
        runtime=Runtime(seed=11, folder=place / "work"),
    )


def result(context: StageContext):
    """Return what must not depend on interruptions."""
    (series,) = content.read(context.out / "report").series
    return load(context.out / "model").fingerprint, tuple(series.x), series.y


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("encoder-decoder", {}),
        ("encoder-decoder", {"adapter": LoRA(dropout=0.2)}),
        ("encoder-decoder", {"adapter": Prompt(tokens=3)}),
        ("encoder-decoder", {"adapter": QuantizationAware(keep_zeros=True)}),
        ("encoder-decoder", {"early_stopping": 3}),
        ("decoder", {"packing": True, "max_length": 24}),
        ("encoder", {"adapter": LoRA(dropout=0.2)}),
    ],
    ids=str,
)
def test_from_any_checkpoint_the_end_is_the_same(folder, tmp_path, family, options):
    """What a kill leaves, made by hand: whole checkpoints up to some step and a half-written one behind them."""
    config = evolve(STAGE, **options)
    whole = context_in(tmp_path / "whole", folder, family)
    config.build().run(whole)
    expected = result(whole)
    saved = sorted((whole.folder / "trainer").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    assert len(saved) >= 3
    for cut in (0, len(saved) // 2, len(saved) - 1):
        again = context_in(tmp_path / f"cut-{cut}", folder, family)
        (again.folder / "trainer").mkdir()
        for checkpoint in saved[:cut]:
            shutil.copytree(checkpoint, again.folder / "trainer" / checkpoint.name)
        half = again.folder / "trainer" / saved[cut].name
        shutil.copytree(saved[cut], half)
        os.truncate(half / "optimizer.safetensors", 100)
        if options.get("early_stopping"):  # its log of best checkpoints names paths of the first run
            shutil.rmtree(half)
        config.build().run(again)
        assert result(again) == expected


def test_a_finished_training_whose_result_was_not_written_is_not_done_again(folder, tmp_path):
    context = context_in(tmp_path, folder, "encoder-decoder")
    STAGE.build().run(context)
    expected = result(context)
    shutil.rmtree(context.out)
    context.out.mkdir()
    summary = STAGE.build().run(context)
    assert summary["median_step_seconds"] is None  # no step was done
    assert result(context) == expected


def test_a_process_ends_when_the_run_is_killed_even_if_nobody_has_waited_for_it(tmp_path):
    lock = str(tmp_path / child.LOCK)
    holds = "import sys, time, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); time.sleep(60)"
    watches = (
        "import sys, time; from pathlib import Path; from tunesmith_plugins.stages.training import child\n"
        "child._end_with_the_run(Path(sys.argv[1])); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holds, lock], stdout=subprocess.PIPE) as run:
        run.stdout.readline()
        with subprocess.Popen([sys.executable, "-c", watches, lock], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            run.kill()
            try:
                assert process.wait(10) == 1
            finally:
                process.kill()


def test_kill_minus_nine_while_training(folder, tmp_path):
    config = evolve(STAGE, adapter=LoRA(dropout=0.2), epochs=40)
    whole = context_in(tmp_path / "whole", folder, "encoder-decoder")
    config.build().run(whole)
    killed = context_in(tmp_path / "killed", folder, "encoder-decoder")
    request = {
        "config": spec.dump(evolve(config, data=killed.data)),
        "name": "x",
        "start": killed.start,
        "inputs": {},
        "folder": str(killed.folder),
        "out": str(killed.out),
        "runtime": {"seed": 11, "folder": str(killed.folder)},
    }
    (killed.folder / "request.json").write_text(json.dumps(request))
    code = "import sys; from pathlib import Path; from tunesmith_plugins.stages.training.child import main; main(Path(sys.argv[1]))"
    with FileLock(killed.folder / child.LOCK):
        process = subprocess.Popen([sys.executable, "-c", code, str(killed.folder / "request.json")])
        deadline = time.monotonic() + 120
        while len(list((killed.folder / "trainer").glob("checkpoint-*"))) < 4:
            assert time.monotonic() < deadline
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (killed.out / "model").exists(), "it was through before it was killed"
    config.build().run(killed)
    assert result(killed) == result(whole)

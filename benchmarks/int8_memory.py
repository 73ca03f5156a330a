"""Peak memory and disk of making a model int8, against the process that only loads the float model.

    python benchmarks/int8_memory.py [--layers N] [--width N] [--vocab N] [--shard SIZE]

Writes a LLaMA of that shape with random weights to a temporary folder (float32, in shards), and runs each case in a fresh process:
loading and running the float model; ``compress`` and ``save``; both with a float model whose weights lie in no file; quantizing while
it is read and saving; loading and running the int8 model. Prints the largest resident memory of each (``ru_maxrss``), without that of
a process which has imported everything and loaded nothing, and its ratio to the float model's whole process; the time after the
imports; and the bytes on disk.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

START = """
import resource, sys, time, torch, transformers
import tunesmith.hf
from tunesmith.lm import load, LM
from tunesmith.runtime import Runtime
from tunesmith_plugins.compressors import Int8
from tunesmith_plugins.compressors.int8_format import Int8QuantizationConfig
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
source, target = sys.argv[1:3]
ids = torch.arange(8)[None]
auto = transformers.AutoModelForCausalLM
shape = transformers.AutoConfig.from_pretrained(source)
begun = time.process_time()
"""
END = "\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time() - begun)"
COMPRESS = """
lm = LM(model=model, tokenizer=None, family="decoder")
small, _ = config.build().compress(lm, runtime=Runtime(progress=False))
small.model.save_pretrained(target)"""
CASES = {
    "imports alone": "",
    "float model, loaded and run": """
with torch.no_grad(): auto.from_pretrained(source)(input_ids=ids)""",
    "compress and save": """
model = auto.from_pretrained(source); config = Int8()"""
    + COMPRESS,
    "compress to the nearest integers and save": """
model = auto.from_pretrained(source); config = Int8(rounding="nearest")"""
    + COMPRESS,
    "float model in memory of its own, made and run": """
with torch.no_grad(): auto.from_config(shape)(input_ids=ids)""",
    "compress one in memory of its own and save": """
model = auto.from_config(shape); config = Int8()"""
    + COMPRESS,
    "quantize while reading, and save": """
model = auto.from_pretrained(source, quantization_config=Int8QuantizationConfig.on_load(Int8()))
model.save_pretrained(target)""",
    "int8 model, loaded and run": """
with torch.no_grad(): auto.from_pretrained(target)(input_ids=ids)""",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--shard", default="100MB", help="largest file of the float model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name) / "float", Path(name) / "int8"
        write = f"""
import sys, torch, transformers
torch.set_num_threads(1)
config = transformers.LlamaConfig(
    vocab_size={options.vocab}, hidden_size={options.width}, intermediate_size={options.width * 8 // 3 // 64 * 64},
    num_hidden_layers={options.layers}, num_attention_heads={options.width // 64}, tie_word_embeddings=True,
)
model = transformers.LlamaForCausalLM(config)
print(sum(p.numel() for p in model.parameters()))
model.save_pretrained(sys.argv[1], max_shard_size="{options.shard}")
"""
        parameters = int(_run(write, source, target))
        found = {case: _run(START + code + END, source, target).split() for case, code in CASES.items()}
        disk = {folder.name: sum(f.stat().st_size for f in folder.glob("*.safetensors")) for folder in (source, target)}
    peaks = {case: int(peak) / 1024 for case, (peak, _) in found.items()}
    bare, whole = peaks["imports alone"], peaks["float model, loaded and run"]
    print(f"{parameters / 1e6:.1f} million parameters, {disk['float'] / 2**20:.0f} MiB of weights\n")
    print("| process | peak, MiB | of the float process | without imports, MiB | CPU seconds |\n|---|---|---|---|---|")
    for case, peak in peaks.items():
        print(f"| {case} | {peak:.0f} | {peak / whole:.2f} | {peak - bare:.0f} | {float(found[case][1]):.1f} |")
    print(f"\non disk: {disk['int8'] / disk['float']:.4f} of the float model")


def _run(code: str, source: Path, target: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code, str(source), str(target)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    main()

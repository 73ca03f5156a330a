"""How long it takes until something can be seen: imports and light commands, each in fresh processes.

Prints, in seconds, the 25th percentile and the median of each, and the median over that of a bare ``python -c pass``
measured in the same run. The budget is a median under 0.3 s for ``tunesmith plugins list``.

    python benchmarks/startup.py [--quick] [--threads N] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

MAIN = "import sys; from tunesmith.cli import main; sys.exit(main())"
BASE = "python -c pass"
CASES: dict[str, list[str]] = {
    BASE: ["-c", "pass"],
    "import tunesmith": ["-c", "import tunesmith"],
    "import tunesmith_plugins.stages": ["-c", "import tunesmith_plugins.stages"],
    "tunesmith --help": ["-c", MAIN, "--help"],
    "tunesmith plugins list": ["-c", MAIN, "plugins", "list"],
    "tunesmith plugins show top_p": ["-c", MAIN, "plugins", "show", "top_p"],
    "import torch": ["-c", "import torch"],
    "import transformers": ["-c", "import transformers"],
}
SLOW = {"import torch", "import transformers"}
"""For comparison only, and so measured less often."""

BUDGET = {"tunesmith plugins list": 0.3}


def measure(arguments: list[str], repeats: int, env: dict[str, str]) -> list[float]:
    """Return the wall time of so many fresh processes, in seconds; the first, which fills caches, is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], env=env, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return times[1:]


def installed(arguments: list[str]) -> bool:
    """Return whether the case can be run at all here."""
    return subprocess.run([sys.executable, *arguments], capture_output=True).returncode == 0


def main() -> int:
    """Measure everything, print the table, and return 1 if a budget is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="5 processes a case instead of 25")
    parser.add_argument("--threads", type=int, default=1, help="OMP_NUM_THREADS of the processes")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    env = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    repeats = 5 if options.quick else 25
    rows: dict[str, dict[str, float] | None] = {}
    for name, arguments in CASES.items():
        if not installed(arguments):
            rows[name] = None
            continue
        times = measure(arguments, max(2, repeats // 5) if name in SLOW else repeats, env)
        quarter = statistics.quantiles(times, n=4, method="inclusive")[0]
        rows[name] = {"p25": quarter, "median": statistics.median(times), "runs": len(times)}
    base = rows[BASE]
    assert base is not None
    print(f"{'case':<34}{'25 %':>8}{'median':>8}{'ratio':>8}{'runs':>6}")
    for name, row in rows.items():
        if row is None:
            print(f"{name:<34}  not measured (not installed)")
        else:
            ratio = row["median"] / base["median"]
            print(f"{name:<34}{row['p25']:>8.3f}{row['median']:>8.3f}{ratio:>8.1f}{row['runs']:>6.0f}")
    ours = {name: row["median"] for name, row in rows.items() if row is not None and name not in SLOW and name != BASE}
    worst = max(ours, key=lambda name: ours[name])
    print(f"worst of ours: {worst}, {ours[worst]:.3f} s")
    if options.json:
        options.json.write_text(
            json.dumps({"threads": options.threads, "cases": rows}, indent=2) + "\n", encoding="utf-8"
        )
    over = [name for name, limit in BUDGET.items() if ours.get(name, limit) >= limit]
    for name in over:
        print(f"over the budget of {BUDGET[name]} s: {name}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())

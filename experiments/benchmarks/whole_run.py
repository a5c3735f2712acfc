"""What a run costs as a whole process: compilation, training, evaluation.

    python experiments/benchmarks/whole_run.py digits --repeats=3

Runs the command of `make digits` or `make recall` with an empty compilation cache,
alone on the machine, and writes experiments/results/digits_time.json or
recall_time.json: wall clock and CPU-seconds of each run as the operating system counts
them, and the machine's yardstick before and after.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import REFERENCE_GFLOPS, matmul_gflops

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = Path(__file__).resolve().relative_to(ROOT)
RESULTS = ROOT / "experiments" / "results"
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}


def once(task: str, seed: int) -> dict:
    """One run: its wall clock and CPU-seconds, and what its own result says."""
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-m", "a2os2a_jax.main", f"--config=configs/{task}.py"]
        line += [f"--workdir={folder}/run", f"--config.seed={seed}"]
        start = time.perf_counter()
        process = subprocess.Popen(
            line, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        if status:
            sys.exit(f"{' '.join(line)}: exit {os.waitstatus_to_exitcode(status)}")
        result = json.loads(Path(folder, "run", "result.json").read_text())
    return {
        "seed": seed,
        "wall_seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "test": result["test"],
        **{k: result[k] for k in ("parameters", "commit", "device", "versions")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("task", choices=("digits", "recall"))
    args = parser.parse_args()
    task, repeats = args.task, args.repeats
    before = matmul_gflops()
    runs = [once(task, seed) for seed in range(repeats)]
    gflops = (before + matmul_gflops()) / 2
    medians = {
        k: statistics.median(r[k] for r in runs)
        for k in ("wall_seconds", "cpu_seconds")
    }
    scale = gflops / REFERENCE_GFLOPS
    value = {
        "command": f"python {SCRIPT} {task} --repeats={repeats}",
        "what": f"the command of `make {task}` in a process of its own, nothing cached",
        "matmul_gflops": gflops,
        "median": medians,
        "median_scaled_to_reference": {k: v * scale for k, v in medians.items()},
        "reference_gflops": REFERENCE_GFLOPS,
        "runs": runs,
    }
    path = RESULTS / f"{task}_time.json"
    path.write_text(json.dumps(value, indent=1) + "\n")
    for name, text in (("wall_seconds", "wall clock"), ("cpu_seconds", "CPU")):
        print(
            f"{text}: {medians[name]:.0f} s here ({gflops:.0f} GFLOP/s), "
            f"{medians[name] * scale:.0f} s scaled to {REFERENCE_GFLOPS:.0f} GFLOP/s"
        )
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()

"""What a training step of a recipe costs, counted by the compiler, not timed.

    python experiments/benchmarks/cost.py --out=experiments/results/recipe_cost.json

For every recipe that waits for an accelerator: operations of one step (forward,
backward and optimizer, as XLA counts them before it optimizes) and steps of the whole
schedule; for CIFAR 2-256 and 2-512, also the bytes of its arguments and those that it
needs at once beside them (as compiled for this machine, so of a GPU an estimate). The
hours follow from a rate that is assumed, and named so; nothing here was run on a GPU.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from a2os2a_jax.train import setup, step, workdir  # noqa: E402

RECIPES = (  # config, what it is called with, training examples, whether compiled
    ("cifar10", "2-256,20", 50_000, True),
    ("cifar10", "2-256", 50_000, False),
    ("cifar10", "2-512", 50_000, True),
    ("cifar10", "4-384", 50_000, False),
    ("imagenet", "8-512", 1_281_167, False),
    ("imagenet", "10-512", 1_281_167, False),
    ("imagenet", "8-768", 1_281_167, False),
    ("cifar10_dvs", "16", 9_000, False),
    ("dvs128_gesture", "16", 1_176, False),
    ("nmnist", "full", 60_000, False),
)
ASSUMED_TFLOPS = 20.0  # of a data-centre GPU at these models: a guess, to be replaced
COUNTED = 64  # examples at most; of a larger batch, operations grow with it
BYTES = ("argument_size_in_bytes", "temp_size_in_bytes")


def recipe(name: str, mode: str):
    """The config, on made-up examples of its data's shape."""
    path = ROOT / "configs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(mode)
    frames = config.data.timesteps
    config.data.update(name="fake", channels=2 if frames else 3, classes=10)
    config.data.update(area=None, corrupt=None, workers=None, fit=None, slice_by=None)
    config.dtype = "bfloat16"
    return config


def count(config, compiled: bool) -> dict[str, float]:
    """{"flops"} of one step, and BYTES if it is compiled."""
    parts = setup.prepare(config)
    train = parts.dataset.train
    train_step = step.make_train_step(
        parts.model,
        parts.tx,
        parts.rate,
        train,
        key=jax.random.key(0),
        inputs=parts.inputs,
        loss=parts.loss,
    )
    payload = train.fetch(np.arange(config.train.batch))
    lowered = jax.jit(train_step, donate_argnums=0).lower(
        parts.abstract_state(), train.resident, payload
    )
    found = {"flops": lowered.cost_analysis()["flops"]}
    if compiled:
        memory = lowered.compile().memory_analysis()
        found |= {name: getattr(memory, name) for name in BYTES}
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    args = parser.parse_args(argv)
    rows = []
    for name, mode, examples, compiled in RECIPES:
        config = recipe(name, mode)
        t = config.train
        batch = t.batch
        steps = round(examples // batch * t.epochs)
        t.batch = min(batch, COUNTED)
        found = count(config, compiled)
        found["flops"] *= batch / t.batch
        hours = steps * found["flops"] / (ASSUMED_TFLOPS * 1e12) / 3600
        row = {"config": name, "mode": mode, "epochs": t.epochs, "batch": batch}
        rows.append(row | {"steps": steps, **found, "hours_at_assumed": hours})
        print(json.dumps(rows[-1]), flush=True)
    value = {
        "command": "python experiments/benchmarks/cost.py",
        "what": "one training step in bfloat16, counted by XLA; no time was measured",
        "assumed_tflops": ASSUMED_TFLOPS,
        "commit": workdir.commit(),
        "device": f"counted for {jax.devices()[0].device_kind}",
        "versions": workdir.versions(),
        "rows": rows,
    }
    if args.out is not None:
        args.out.write_text(json.dumps(value, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

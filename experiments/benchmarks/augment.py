"""What RandAugment costs beside the training step that waits for it.

    python experiments/benchmarks/augment.py --out=experiments/results/augment_time.json

In one process, on fake images of CIFAR's shape: the training step of columnar 2-512
(T = 4, with the flip of its recipe), and RandAugment alone on a batch of the same size,
both compiled, as medians over repeats. Prints and, with --out, writes JSON.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = Path(__file__).resolve().relative_to(ROOT)
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from machine import matmul_gflops  # noqa: E402

from a2os2a_jax.data import augment  # noqa: E402
from a2os2a_jax.train import parallel, setup, step  # noqa: E402
from a2os2a_jax.train import workdir as workdirs  # noqa: E402

POLICY = "rand-m9-n1-mstd0.4-inc1"


def prepare(variant: str, batch: int) -> setup.Parts:
    """The recipe of configs/cifar10.py on fake images, with a flip as augmentation."""
    path = ROOT / "configs" / "cifar10.py"
    spec = importlib.util.spec_from_file_location("cifar10", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("smoke")
    config.model.update(variant=variant, timesteps=4)
    config.train.batch = batch
    config.augment.update(randaugment=None, mixup=0.0, off_epoch=None)  # timed apart
    return setup.prepare(config)


def seconds(run: Callable[[], object], repeats: int) -> dict:
    """Compilation and first call, then each of `repeats` calls, waited for."""

    def once() -> float:
        start = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - start

    first = once()
    times = [once() for _ in range(repeats)]
    return {"median": statistics.median(times), "all": times, "first": first}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="2-512")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="training steps timed")
    parser.add_argument("--repeats", type=int, default=51, help="augmentations timed")
    parser.add_argument("--resample", default="bicubic", help="bilinear or bicubic")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    args = parser.parse_args()

    parts = prepare(args.variant, args.batch)
    train = parts.dataset.train
    train_step = jax.jit(
        step.make_train_step(
            parts.model,
            parts.tx,
            parts.rate,
            train,
            key=jax.random.key(0),
            inputs=parts.inputs,
            loss=parts.loss,
        ),
        donate_argnums=0,
    )
    resident = parallel.put_whole(train.resident, parts.mesh)
    index = parallel.put_batch(train.fetch(np.arange(args.batch)), parts.mesh)
    images = jax.jit(train.gather)(resident, index)["image"]
    state = parts.fresh_state(jax.random.key(0))

    def one_step():
        nonlocal state
        state, metrics = train_step(state, resident, index)
        return state, metrics

    fn = augment.build(
        randaugment=POLICY,
        resample=args.resample,
        mean=parts.dataset.mean,
        std=parts.dataset.std,
    )
    gflops = matmul_gflops()
    of_step = seconds(one_step, args.steps)
    of_augment = seconds(lambda: fn(jax.random.key(0), images), args.repeats)
    given = " ".join(w for w in sys.argv[1:] if not w.startswith("--out"))
    value = {
        "command": f"python {SCRIPT} {given}".strip(),
        "what": f"{POLICY} ({args.resample}) beside a step of {args.variant}, T = 4",
        "batch": args.batch,
        "image": list(images.shape[1:]),
        "train_step_seconds": of_step,
        "randaugment_seconds": of_augment,
        "ratio": of_augment["median"] / of_step["median"],
        "matmul_gflops": gflops,
        "commit": workdirs.commit(),
        "device": workdirs.device(parts.mesh),
        "versions": workdirs.versions(),
    }
    text = json.dumps(value, indent=1)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

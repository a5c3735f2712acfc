"""What the input side delivers: batches of a small set, and pictures decoded.

    python experiments/benchmarks/input.py [--out=experiments/results/input.json]

Needs imagenet_sample and cifar10 where data are looked for ($A2OS2A_DATA). Rates are of
one core; ratios are taken within the run, since machines differ and have other work.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from a2os2a_jax import data  # noqa: E402
from a2os2a_jax.data import images, pipeline  # noqa: E402
from a2os2a_jax.data.sources import tfds  # noqa: E402
from a2os2a_jax.train import workdir  # noqa: E402

BATCH, PICTURES, REPEATS, SIDE = 256, 128, 7, 224


def interleaved(*functions: Callable[[], None]) -> list[list[float]]:
    """Seconds of each, one after the other, again and again."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(REPEATS):
        for function, found in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            found.append(time.perf_counter() - start)
    return seconds


def small() -> dict[str, float]:
    """Images/s of CIFAR-10 on the host: what training sends, and whole pictures."""
    split = data.load("cifar10").train
    pictures, labels = split.resident
    how = dict(seed=0, size=split.size, batch=BATCH)
    pipeline.train_indices(0, **how)  # the order of the epoch is drawn

    def sent() -> None:
        for step in range(100):
            split.fetch(pipeline.train_indices(step, **how))

    def gathered() -> None:
        for step in range(100):
            index = pipeline.train_indices(step, **how)
            pictures[index], labels[index]

    a, b = interleaved(sent, gathered)
    count = 100 * BATCH
    return {
        "indices_images_per_s": count / statistics.median(a),
        "host_arrays_images_per_s": count / statistics.median(b),
    }


def decoding() -> dict[str, float]:
    """Pillow alone against our reader: the same records, crops and size, one thread."""
    import io

    from PIL import Image

    builder = tfds.open_builder("imagenet_sample", None)
    records = tfds.Encoded("imagenet_sample", "train", os.fspath(builder.data_dir))
    target = images.Target(SIDE, 3, 1000, None, 0.08)
    index = np.linspace(0, len(records) - 1, PICTURES).astype(int)
    encoded = [records[int(i)].image for i in index]
    boxes = []
    for i, content in zip(index, encoded, strict=True):
        width, height = Image.open(io.BytesIO(content)).size
        rng = np.random.RandomState([0, 0, i])
        boxes.append(images.random_box(rng, height, width, 0.08))

    def pillow() -> None:
        for content, box in zip(encoded, boxes, strict=True):
            picture = Image.open(io.BytesIO(content)).convert("RGB")
            np.asarray(picture.resize((SIDE, SIDE), 3, box=box))

    def ours() -> None:
        for i in index:
            rng = np.random.RandomState([0, 0, i])
            images.example(records, int(i), target, rng)

    a, b = interleaved(pillow, ours)
    ratio = statistics.median([y / x for x, y in zip(a, b, strict=True)])
    return {
        "pillow_images_per_s": PICTURES / statistics.median(a),
        "ours_images_per_s": PICTURES / statistics.median(b),
        "ours_over_pillow_seconds": ratio,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    from a2os2a_jax.train import parallel

    found = {
        "command": "python experiments/benchmarks/input.py",
        "commit": workdir.commit(),
        "device": workdir.device(parallel.make_mesh(1)),
        "repeats": REPEATS,
        "small": small(),
        "decoding": decoding(),
    }
    print(json.dumps(found, indent=1))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

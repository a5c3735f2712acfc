"""What the input side delivers: batches of a small set, and pictures decoded.

    python experiments/benchmarks/input.py [--out=experiments/results/input.json]

Needs imagenet_sample and cifar10 where data are looked for ($A2OS2A_DATA). Rates are of
one core; ratios are taken within the run, since machines differ and have other work.
"""

import argparse
import io
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
from PIL import Image  # noqa: E402

from a2os2a_jax import data  # noqa: E402
from a2os2a_jax.data import images, pipeline  # noqa: E402
from a2os2a_jax.data.sources import tfds  # noqa: E402
from a2os2a_jax.train import workdir  # noqa: E402

BATCH, PICTURES, REPEATS, SIDE = 256, 128, 7, 224
IMAGENET_SIDE = 375  # the shorter one of most of its pictures


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


class Encoded(list):
    """Encoded pictures in memory, as the records of a set."""

    def __getitem__(self, index: int) -> images.Record:
        return images.Record(super().__getitem__(index), 0)

    def name(self, index: int) -> str:
        return f"picture {index}"


def enlarged(encoded: Sequence[bytes]) -> list[bytes]:
    """The same as JPEG of ImageNet's size: the sample's are made smaller."""
    found = []
    for content in encoded:
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        scale = IMAGENET_SIDE / min(picture.size)
        size = tuple(round(scale * n) for n in picture.size)
        file = io.BytesIO()
        picture.resize(size, 3).save(file, "JPEG", quality=95)
        found.append(file.getvalue())
    return found


def decoding(records: images.Records, index: Sequence[int]) -> dict[str, float]:
    """Pillow alone against our reader: the same crops and size, one thread.

    Pillow is given the encoded pictures and the crops; ours reads and draws them.
    """
    target = images.Target(SIDE, 3, 1000, None, 0.08)
    encoded = [records[int(i)].image for i in index]
    draws = [images.crop_draws(0, 0, int(i)) for i in index]
    boxes = []
    for content, drawn in zip(encoded, draws, strict=True):
        width, height = Image.open(io.BytesIO(content)).size
        boxes.append(images.random_box(drawn, height, width, 0.08))

    def pillow() -> None:
        for content, box in zip(encoded, boxes, strict=True):
            picture = Image.open(io.BytesIO(content)).convert("RGB")
            np.asarray(picture.resize((SIDE, SIDE), 3, box=box))

    def ours() -> None:
        for i in index:
            images.example(records, int(i), target, images.crop_draws(0, 0, int(i)))

    a, b = interleaved(pillow, ours)
    ratio = statistics.median([y / x for x, y in zip(a, b, strict=True)])
    return {
        "kilobytes_a_picture": statistics.mean(map(len, encoded)) / 1000,
        "pillow_images_per_s": len(index) / statistics.median(a),
        "ours_images_per_s": len(index) / statistics.median(b),
        "ours_over_pillow_seconds": ratio,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    from a2os2a_jax.train import parallel

    builder = tfds.open_builder("imagenet_sample", None)
    records = tfds.Encoded("imagenet_sample", "train", os.fspath(builder.data_dir))
    index = np.linspace(0, len(records) - 1, PICTURES).astype(int)
    large = Encoded(enlarged([records[int(i)].image for i in index]))
    found = {
        "command": "python experiments/benchmarks/input.py",
        "commit": workdir.commit(),
        "device": workdir.device(parallel.make_mesh(1)),
        "repeats": REPEATS,
        "small": small(),
        "decoding": {"imagenet_size": decoding(large, range(PICTURES))},
    }
    found["decoding"]["sample"] = decoding(records, index)
    print(json.dumps(found, indent=1))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

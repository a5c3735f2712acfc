"""Pictures from encoded files: decoding, cropping, and the two kinds of split.

    record i --read--> (JPEG or PNG, label) --decode, crop--> uint8 [S, S, C]

A small set is decoded once and lives on the devices (`resident`); of a large one every
batch is decoded when it is wanted (`streamed`). Both make the same images, x = (pixel /
255 - mean) / std. What cannot be read is counted and named, and stops the program or is
left out, as the caller says; it is never passed over in silence.
"""

import io
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from a2os2a_jax.data import pipeline, stream

RESIDENT_BYTES = 2**30  # a set that takes more is streamed
CENTRE = 0.875  # of the shorter side is what evaluation sees, as 224 of 256
ASPECT = (3 / 4, 4 / 3)  # of a random crop, as in torchvision
CORRUPT = ("error", "skip")
_NAMED = 5  # unreadable records that a message names
_MODES = {1: "L", 3: "RGB"}
THREADS = min(16, 2 * (os.cpu_count() or 1))


class Corrupt(ValueError):
    """A record that cannot be read; the message says which, and what is wrong."""


class Record(NamedTuple):
    """image: encoded bytes, or pixels uint8 [H, W, C]; label: an integer."""

    image: bytes | np.ndarray
    label: int


class Records(Protocol):
    """Random access to a split: `records[i]` is a Record, `name(i)` is for messages."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Record: ...
    def name(self, index: int) -> str: ...


@dataclass(frozen=True)
class View:
    """Some of the records of another, in the order of `indices`."""

    records: Records
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.records[int(self.indices[index])]

    def name(self, index: int) -> str:
        return self.records.name(int(self.indices[index]))


@dataclass(frozen=True)
class Target:
    """What a record has to become.

    Attributes:
      size: S of the image [S, S, C], in pixels.
      channels: C, 1 or 3; pictures of other kinds are converted.
      classes: labels are 0 .. classes-1.
      exact: (H, W) that a picture has to have; None takes any, and crops.
      area: training sees a random part, of this share of the area at least, of aspect
        3/4 to 4/3, resized to [S, S]; None for the middle, as in evaluation.
    """

    size: int
    channels: int
    classes: int
    exact: tuple[int, int] | None = None
    area: float | None = None


def check_corrupt(corrupt: str) -> None:
    """ValueError unless it is a way to meet what cannot be read."""
    if corrupt not in CORRUPT:
        raise ValueError(f"data.corrupt: got {corrupt!r}, expected error or skip")


def open_image(image: bytes | np.ndarray, channels: int):
    """A PIL image of as many channels. Raises Corrupt for what is none, or half one."""
    from PIL import Image

    try:
        if isinstance(image, np.ndarray):
            found = Image.fromarray(
                image.squeeze(-1) if image.shape[-1] == 1 else image
            )
        else:
            found = Image.open(io.BytesIO(image))
        found.load()  # decodes, so cut files are found here
        mode = _MODES[channels]
        return found if found.mode == mode else found.convert(mode)
    except (
        OSError,
        ValueError,
        SyntaxError,
        TypeError,
        Image.DecompressionBombError,
    ) as e:
        raise Corrupt(f"not a whole picture: {' '.join(str(e).split())}") from e


def example(
    records: Records, index: int, target: Target, rng: np.random.RandomState | None
) -> tuple[np.ndarray, int]:
    """(pixels uint8 [S, S, C], label) of a record.

    rng draws the crop of training; None for evaluation.
    Raises:
      Corrupt: no picture, of a wrong size, or a label out of range; names the record.
    """
    try:
        encoded, label = records[index]
        if not 0 <= label < target.classes:
            most = target.classes - 1
            raise Corrupt(f"got label {label}, expected 0 to {most}")
        picture = open_image(encoded, target.channels)
        width, height = picture.size
        if target.exact not in (None, (height, width)):
            want = "x".join(map(str, target.exact))
            raise Corrupt(f"got {height}x{width} pixels, expected {want}")
        if target.exact is None:
            side = (target.size, target.size)
            if rng is not None and target.area is not None:
                box = random_box(rng, height, width, target.area)
            else:
                box = centre_box(height, width)
            # bicubic, and antialiased, as Pillow does where it makes smaller
            picture = picture.resize(side, resample=3, box=box)
        pixels = np.asarray(picture, np.uint8)
        return pixels.reshape(*pixels.shape[:2], target.channels), int(label)
    except Corrupt as error:
        raise Corrupt(f"{records.name(index)}: {error}") from error


def centre_box(height: int, width: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the square in the middle that evaluation sees."""
    side = CENTRE * min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(
    rng: np.random.RandomState, height: int, width: int, area: float
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a random part of a picture, in pixels.

    Its area is uniform in [area, 1] of the whole, the logarithm of its aspect uniform;
    after ten draws that do not fit, the largest part in the middle with an allowed
    aspect. Source: Szegedy et al. 2015, arXiv:1409.4842, as torchvision does it.
    """
    for _ in range(10):
        wanted = height * width * rng.uniform(area, 1)
        aspect = np.exp(rng.uniform(*np.log(ASPECT)))
        w = int(round(np.sqrt(wanted * aspect)))
        h = int(round(np.sqrt(wanted / aspect)))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w + 1), rng.randint(0, height - h + 1)
            return left, top, left + w, top + h
    w = min(width, round(height * ASPECT[1]))
    h = min(height, round(width / ASPECT[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class Skipped:
    """Counts what could not be read, and says so: the first few by name."""

    def __init__(self, what: str, corrupt: str):
        check_corrupt(corrupt)
        self.what, self.corrupt = what, corrupt
        self.indices: set[int] = set()

    def note(self, index: int, error: Corrupt) -> None:
        """Raises the error, or counts it, once for every record."""
        if self.corrupt == "error":
            raise Corrupt(
                f"{self.what}: {error}; data.corrupt=skip leaves such out"
            ) from error
        if index not in self.indices:
            self.indices.add(index)
            if len(self.indices) <= _NAMED:
                print(f"{self.what}: left out {error}", file=sys.stderr)
            elif len(self.indices) == _NAMED + 1:
                print(f"{self.what}: left out more, unnamed", file=sys.stderr)


def decode_all(
    records: Records, target: Target, *, what: str, corrupt: str = "error"
) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [N, S, S, C], labels int32 [N]) of all that can be read.

    `what` names the set in messages. The first of what cannot be read stops it, or its
    number is printed in the end, by `corrupt`.
    """
    skipped = Skipped(what, corrupt)
    shape = target.exact or (target.size, target.size)
    images = np.zeros((len(records), *shape, target.channels), np.uint8)
    labels = np.full(len(records), -1, np.int32)

    def some(indices: np.ndarray) -> None:
        for i in indices:
            try:
                images[i], labels[i] = example(records, int(i), target, None)
            except Corrupt as error:
                skipped.note(int(i), error)

    parts = np.array_split(np.arange(len(records)), max(1, len(records) // 50))
    # decoding small pictures is mostly Python, where threads are in each other's way
    with ThreadPoolExecutor(1 if target.exact else THREADS) as pool:
        list(pool.map(some, parts))
    kept = labels >= 0
    if not kept.any():
        raise ValueError(f"{what}: got no readable example of {len(records)}")
    if not kept.all():
        print(
            f"{what}: {np.sum(~kept):,} of {len(records):,} records left out",
            file=sys.stderr,
        )
        images, labels = images[kept], labels[kept]
    return images, labels


def statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixel / 255 for each channel, exactly summed."""
    pixels = images.reshape(-1, images.shape[-1])
    counts = [np.bincount(channel, minlength=256) for channel in pixels.T]
    levels = np.arange(256) / 255
    mean = [float(n @ levels / n.sum()) for n in counts]
    square = [float(n @ levels**2 / n.sum()) for n in counts]
    std = [max(s - m * m, 0) ** 0.5 or 1.0 for m, s in zip(mean, square, strict=True)]
    return tuple(mean), tuple(std)


def normaliser(
    mean: Sequence[float], std: Sequence[float], size: int
) -> Callable[[jax.Array], jax.Array]:
    """uint8 [B, H, W, C] -> (pixel / 255 - mean) / std, [B, size, size, C], on device.

    Pictures of another size are enlarged or made smaller, bilinear between the centres
    of pixels, antialiased where smaller.
    """
    mean, std = np.float32(mean), np.float32(std)

    def normalise(pixels: jax.Array) -> jax.Array:
        x = pixels.astype(jnp.float32)
        if x.shape[1:3] != (size, size):
            x = jax.image.resize(x, (len(x), size, size, x.shape[-1]), "bilinear")
        shape = (1,) * (x.ndim - 1) + mean.shape
        return (x / 255 - mean.reshape(shape)) / std.reshape(shape)

    return normalise


def streamed(
    records: Records,
    target: Target,
    normalise: Callable[[jax.Array], jax.Array],
    *,
    what: str,
    corrupt: str = "error",
    train: bool = False,
    seed: int = 0,
    workers: int = 0,
) -> pipeline.Split:
    """A split of which every batch is read and decoded on the host when it is wanted.

    In training the crop of an example is a function of (seed, step, index), and the
    batches ahead are prepared in the background, by grain. Of what cannot be read,
    training takes the next example that can; evaluation gets the label -1, which it
    does not count.
    """
    skipped = Skipped(what, corrupt)
    size = len(records)

    def whole(index: int, step: int) -> dict[str, np.ndarray]:
        rng = np.random.RandomState([seed, step, index]) if train else None
        for i in itertools.islice(itertools.count(index), size if train else 1):
            try:
                image, label = example(records, i % size, target, rng)
                return {"image": image, "label": np.int32(label)}
            except Corrupt as error:
                skipped.note(i % size, error)
        if train:
            raise ValueError(f"{what}: got no readable example of {size}")
        shape = (target.size, target.size, target.channels)
        return {"image": np.zeros(shape, np.uint8), "label": np.int32(-1)}

    pool = ThreadPoolExecutor(THREADS)

    def fetch(indices: np.ndarray) -> dict[str, np.ndarray]:
        rows = list(pool.map(lambda i: whole(int(i), 0), indices))
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    def gather(_, payload):
        return {"image": normalise(payload["image"]), "label": payload["label"]}

    def ahead(order: stream.Order, first: int, last: int):
        return stream.batches(
            whole, order, first, last, threads=THREADS, workers=workers
        )

    return pipeline.Split(size, fetch, (), gather, stream=ahead if train else None)

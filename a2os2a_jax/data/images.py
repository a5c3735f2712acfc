"""Pictures from encoded files: decoding, cropping, and the two kinds of split.

    record i --read--> (JPEG or PNG, label) --decode, crop--> uint8 [S, S, C]

A small set is decoded once and lives on the devices (`resident`); of a large one every
batch is decoded when it is wanted (`streamed`). Both make the same images, x = (pixel /
255 - mean) / std. What cannot be read is counted and named, and stops the program or is
left out, as the caller says; it is never passed over in silence.
"""

import contextlib
import io
import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from a2os2a_jax.data import pipeline, stream

RESIDENT_GIB = 1.0  # a set that takes more is streamed, unless data.resident_gib
CENTRE = 0.875  # of the shorter side is what evaluation sees, as 224 of 256
ASPECT = (3 / 4, 4 / 3)  # of a random crop, as in torchvision
TRIES = 10  # to find a random crop that fits
CORRUPT = ("error", "skip")
SHARE = 5  # where no split is there to judge, one of so many examples does
_NAMED = 5  # unreadable records that a message names
_MODES = {1: "L", 3: "RGB"}
_PNG_BITS = 24  # where a PNG says how many a number has, in its first chunk
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
      channels: C, 1 or 3.
      classes: labels are 0 .. classes-1.
      exact: (H, W) that a picture has to have, and as many channels; None takes any,
        crops, and converts grey pictures, or those with transparency.
      area: training sees a random part, of this share of the area at least, of aspect
        3/4 to 4/3, resized to [S, S]; None for the middle, as in evaluation.
    """

    size: int
    channels: int
    classes: int
    exact: tuple[int, int] | None = None
    area: float | None = None


def resident_bytes(gib: float | None) -> float:
    """What a set may take to live on the devices; ValueError for less than nothing."""
    if gib is not None and not gib >= 0:
        raise ValueError(f"data.resident_gib: got {gib}, expected at least 0")
    return 2**30 * (RESIDENT_GIB if gib is None else gib)


def check_corrupt(corrupt: str) -> None:
    """ValueError unless it is a way to meet what cannot be read."""
    if corrupt not in CORRUPT:
        raise ValueError(f"data.corrupt: got {corrupt!r}, expected error or skip")


def check_channels(what: str, channels: int) -> None:
    """ValueError, in the name of a set, unless pictures are grey or coloured."""
    if channels not in _MODES:
        expected = " or ".join(map(str, _MODES))
        raise ValueError(f"{what}: got {channels} channels, expected {expected}")


def hold_out(labels: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """(train, test) indices of a set that has no split to judge by.

    One of five, stratified, always the same ones.
    Raises:
      ValueError: fewer than five.
    """
    if len(labels) < SHARE:
        raise ValueError(
            f"{what}: got {len(labels)} pictures, expected at least {SHARE}, of which "
            "one is for testing"
        )
    return pipeline.stratified(labels, len(labels) // SHARE)


def open_image(image: bytes | np.ndarray, channels: int, *, convert: bool = True):
    """A PIL image of as many channels.

    Raises:
      Corrupt: it is no picture, or half one; its numbers do not fit in a byte, as
        those of a PNG of 16 bits, grey or coloured; or it has other channels, and these
        are not to be converted.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if isinstance(image, np.ndarray):
            found = Image.fromarray(
                image.squeeze(-1) if image.shape[-1] == 1 else image
            )
        else:
            found = Image.open(io.BytesIO(image))
        found.load()  # decodes, so cut files are found here
        if found.mode[0] in "IF":  # which Pillow would clip at 255
            raise Corrupt(
                f"got a picture of 16 bits or more (Pillow's {found.mode}), expected 8"
            )
        if found.format == "PNG" and (bits := image[_PNG_BITS]) > 8:
            # Of colours Pillow keeps the high bytes, and does not say so.
            raise Corrupt(f"got a picture of {bits} bits, expected 8")
        # a palette is a way to write colours
        stored = 3 if found.mode == "P" else len(found.getbands())
        if stored != channels and not convert:
            raise Corrupt(f"got {stored} channels, expected {channels}")
        mode = _MODES[channels]
        return found if found.mode == mode else found.convert(mode)
    except Corrupt:
        raise
    except UnidentifiedImageError as e:  # whose text is the address of a buffer
        raise Corrupt("not a whole picture: of no kind that is known") from e
    except (
        OSError,
        ValueError,
        SyntaxError,
        TypeError,
        Image.DecompressionBombError,
    ) as e:
        raise Corrupt(f"not a whole picture: {' '.join(str(e).split())}") from e


def example(
    records: Records, index: int, target: Target, draws: np.ndarray | None
) -> tuple[np.ndarray, int]:
    """(pixels uint8 [S, S, C], label) of a record.

    draws: for the crop of training, as `crop_draws` gives them; None for evaluation.
    Raises:
      Corrupt: no picture, of a wrong size or with wrong channels, or a label out of
        range; names the record.
    """
    try:
        return _example(*records[index], target, draws)
    except Corrupt as error:
        raise Corrupt(f"{records.name(index)}: {error}") from error


def _example(
    encoded: bytes | np.ndarray,
    label: int,
    target: Target,
    draws: np.ndarray | None,
) -> tuple[np.ndarray, int]:
    if not 0 <= label < target.classes:
        raise Corrupt(f"got label {label}, expected 0 to {target.classes - 1}")
    picture = open_image(encoded, target.channels, convert=target.exact is None)
    width, height = picture.size
    if target.exact not in (None, (height, width)):
        want = "x".join(map(str, target.exact))
        raise Corrupt(f"got {height}x{width} pixels, expected {want}")
    if target.exact is None:
        side = (target.size, target.size)
        if draws is not None and target.area is not None:
            box = random_box(draws, height, width, target.area)
        else:
            box = centre_box(height, width)
        # bicubic, and antialiased, as Pillow does where it makes smaller
        picture = picture.resize(side, resample=3, box=box)
    pixels = np.asarray(picture, np.uint8)
    return pixels.reshape(*pixels.shape[:2], target.channels), int(label)


def centre_box(height: int, width: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the square in the middle that evaluation sees."""
    side = CENTRE * min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def crop_draws(seed: int, step: int, index: int) -> np.ndarray:
    """Numbers in [0, 1), [TRIES, 4], that are a function of seed, step and index.

    From a counter-based generator, whose state is not filled for every picture, and
    from its raw bits, so that no release of numpy moves a crop.
    """
    bits = np.random.Philox(key=[seed, step], counter=[0, 0, 0, index])
    return (bits.random_raw(4 * TRIES) >> np.uint64(11)).reshape(TRIES, 4) * 2.0**-53


def random_box(
    draws: np.ndarray, height: int, width: int, area: float
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a random part of a picture, in pixels.

    Its area is uniform in [area, 1] of the whole, the logarithm of its aspect uniform;
    after as many tries as there are draws [tries, 4] and none that fits, the largest
    part in the middle with an allowed aspect. Source: Szegedy et al. 2015,
    arXiv:1409.4842, as torchvision does it.
    """
    least, most = map(math.log, ASPECT)
    for of_area, of_aspect, across, down in draws.tolist():
        wanted = height * width * (area + (1 - area) * of_area)
        aspect = math.exp(least + (most - least) * of_aspect)
        w = int(round(math.sqrt(wanted * aspect)))
        h = int(round(math.sqrt(wanted / aspect)))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * ASPECT[1]))
    h = min(height, round(width / ASPECT[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


class Skipped:
    """Counts what could not be read, and says so: the first few by name.

    Of the others the number is said when it reaches 10, 100, 1,000, ...
    """

    def __init__(self, what: str, corrupt: str):
        check_corrupt(corrupt)
        self.what, self.corrupt = what, corrupt
        self.indices: set[int] = set()
        self._counting = threading.Lock()

    def note(self, index: int, error: Corrupt) -> None:
        """Raises the error, or counts it, once for every record."""
        if self.corrupt == "error":
            raise Corrupt(
                f"{self.what}: {error}; data.corrupt=skip leaves such out"
            ) from error
        with self._counting:
            if index in self.indices:
                return
            self.indices.add(index)
            count = len(self.indices)
        if count <= _NAMED:
            print(f"{self.what}: left out {error}", file=sys.stderr)
        elif count == _NAMED + 1:
            print(f"{self.what}: left out more, unnamed", file=sys.stderr)
        elif str(count).strip("0") == "1":
            print(f"{self.what}: {count:,} records left out so far", file=sys.stderr)


def decode(
    records: Records, target: Target, *, what: str, corrupt: str = "error"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(images uint8 [N, S, S, C], labels int64 [N], readable bool [N]) of all records.

    Labels are as they are stored, so that a split by them does not depend on pictures;
    -1 where not even that can be read. `what` names the set in messages. The first of
    what cannot be read stops it, or its number is printed in the end, by `corrupt`.
    Raises:
      ValueError: nothing can be read.
    """
    skipped = Skipped(what, corrupt)
    shape = target.exact or (target.size, target.size)
    images = np.zeros((len(records), *shape, target.channels), np.uint8)
    labels = np.full(len(records), -1, np.int64)
    readable = np.zeros(len(records), np.bool_)

    def one(index: int) -> None:
        try:
            encoded, labels[index] = records[index]
            images[index], _ = _example(encoded, int(labels[index]), target, None)
            readable[index] = True
        except Corrupt as error:
            skipped.note(index, Corrupt(f"{records.name(index)}: {error}"))

    def some(indices: np.ndarray) -> None:
        for i in indices:
            one(int(i))

    parts = np.array_split(np.arange(len(records)), max(1, len(records) // 50))
    # decoding small pictures is mostly Python, where threads are in each other's way
    with ThreadPoolExecutor(1 if target.exact else THREADS) as pool:
        list(pool.map(some, parts))
    if not readable.any():
        raise ValueError(f"{what}: got no readable example of {len(records)}")
    if not readable.all():
        print(
            f"{what}: {np.sum(~readable):,} of {len(records):,} records left out",
            file=sys.stderr,
        )
    return images, labels, readable


def decode_all(
    records: Records, target: Target, *, what: str, corrupt: str = "error"
) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8, labels int32) of what can be read; see `decode`."""
    images, labels, readable = decode(records, target, what=what, corrupt=corrupt)
    labels = labels.astype(np.int32)
    if readable.all():
        return images, labels
    return images[readable], labels[readable]


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


@dataclass(frozen=True)
class Reader:
    """Reads and decodes an example of a split, in whatever thread or process.

    Attributes:
      records, target: what is read, and what it has to become.
      seed: of random crops; None sees the middle.
      tries: records that are tried until one can be read, the one asked for first.
    """

    records: Records
    target: Target
    seed: int | None = None
    tries: int = 1

    def __call__(
        self, index: int, step: int
    ) -> tuple[dict[str, np.ndarray], list[tuple[int, str]]]:
        """({"image", "label"}, [(index, why)] of what could not be read on the way).

        The label is -1 where no try was successful.
        """
        draws = None if self.seed is None else crop_draws(self.seed, step, index)
        lost = []
        for i in range(index, index + self.tries):
            try:
                i %= len(self.records)
                image, label = example(self.records, i, self.target, draws)
                return {"image": image, "label": np.int32(label)}, lost
            except Corrupt as error:
                lost.append((i, str(error)))
        target = self.target
        shape = target.exact or (target.size, target.size)
        nothing = np.zeros((*shape, target.channels), np.uint8)
        return {"image": nothing, "label": np.int32(-1)}, lost


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
    if workers < 0:
        raise ValueError(f"data.workers: got {workers}, expected at least 0")
    read = Reader(records, target)
    if train:
        tries = len(records) if corrupt == "skip" else 1
        read = Reader(records, target, seed, tries)

    def note(lost: Sequence[tuple[int, str]]) -> None:
        for index, why in lost:
            skipped.note(index, Corrupt(why))

    def fetch(indices: np.ndarray) -> dict[str, np.ndarray]:
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(lambda i: read(int(i), 0), indices))
        for _, lost in found:
            note(lost)
        return {key: np.stack([row[key] for row, _ in found]) for key in found[0][0]}

    def gather(_, payload):
        return {"image": normalise(payload["image"]), "label": payload["label"]}

    def ahead(order: stream.Order, first: int, last: int):
        batches = stream.batches(
            read, order, first, last, threads=THREADS, workers=workers
        )
        with contextlib.closing(batches):
            for batch, lost in batches:
                note(lost)
                if batch["label"].min() < 0:
                    raise ValueError(
                        f"{what}: got no readable example of {len(records)}"
                    )
                yield batch

    return pipeline.Split(
        len(records), fetch, (), gather, stream=ahead if train else None
    )

"""The protocol every source keeps: a set is a size, and a way from indices to a batch.

    indices [B] --fetch, host--> what travels --gather, device--> {"image", "label"}

Sets that fit in memory live on the devices and only indices travel; generated sets are
a pure function of the index; streamed sets decode in `fetch` and their gather passes on
what came. The caller never changes, and may run many steps in one dispatch.

The order is a pure function of (seed, step), so the step number alone is the position
in the data: resuming is exact, with no iterator to save.
"""

import functools
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from a2os2a_jax.data import checks, tree

PyTree = Any

# Which examples are held out never depends on the seed of a run: scores of two seeds
# must be scores on the same examples.
SPLIT_SEED = 2503
MOST_CLASSES = 2**20  # a head of gigabytes; what is beyond is a slip
AHEAD = 4  # batches of `host_split` that wait for their step in training


@dataclass(frozen=True, eq=False)
class Split:
    """Examples 0 .. size-1. In full: `gather(resident, fetch(indices))`.

    Attributes:
      size: number of examples; of a fresh split, examples that count as one epoch.
      fetch: on the host, indices [B] -> what travels to the devices.
      resident: arrays that `gather` needs, placed once on the devices; () if none.
      gather: traced, (resident, what travelled) -> {"image": [B, ...] float32,
        "label": [B] int32}. Example b depends on index b alone; a label of -1 says
        that it could not be read, and evaluation does not count it.
      fresh: an endless stream: every index, also beyond `size`, is a new example, and
        training never sees one twice. Pass it on to `train_indices`.
      stream: for training where `fetch` takes its time: (order, first, last) -> what
        travels in steps first .. last-1, prepared ahead; order(step): the indices. Use
        `feed`.
      top: (largest label, its index) where all labels are at hand, which `Dataset`
        compares with its number of classes; else None.
    """

    size: int
    fetch: Callable[[np.ndarray], PyTree]
    resident: PyTree
    gather: Callable[[PyTree, PyTree], dict[str, jax.Array]]
    fresh: bool = False
    stream: Callable[[Callable, int, int], Iterator[PyTree]] | None = None
    top: tuple[int, int] | None = None


def feed(
    split: Split, order: Callable[[int], np.ndarray], first: int, last: int
) -> Iterator[PyTree]:
    """What travels to the devices in steps first .. last-1; order(step) is indices.

    Closing the iterator ends what prepares batches ahead: threads, or processes.
    """
    if split.stream is not None:
        yield from split.stream(order, first, last)
    else:
        yield from (split.fetch(order(step)) for step in range(first, last))


BESIDE = ("sizes", "stamp")  # of data.json: what a run knows of its data, no model


class Spec(NamedTuple):
    """What has to be known of a set where it is not at hand; `data.json` of a run.

    Attributes:
      name, shape, classes, class_names, mean, std, about, note: see `Dataset`.
      stored: (H, W) of the pictures as the set stores them, which are then resized to
        `shape`; None where they have any size, or are no pictures.
      crop: share of the shorter side of a picture that evaluation sees of it.
    """

    name: str
    shape: tuple[int, ...]
    classes: int
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    about: str = ""
    note: str = ""
    stored: tuple[int, int] | None = None
    crop: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` takes it."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in self._asdict().items()
        }

    @classmethod
    def from_json(cls, value: Any, what: str = "data.json") -> "Spec":
        """The inverse of `to_json`; `what` names the origin in messages.

        Raises:
          ValueError: no object, one with other keys, or values that do not fit.
        """
        if not isinstance(value, dict):
            raise ValueError(f"{what}: got {str(value)[:40]!r}, expected an object")
        value = {k: v for k, v in value.items() if k not in BESIDE}
        needed = {key for key in cls._fields if key not in cls._field_defaults}
        if differing := (needed - value.keys()) | (value.keys() - set(cls._fields)):
            raise ValueError(
                f"{what}: got the keys {', '.join(value) or 'none'}, which differ in "
                f"{', '.join(sorted(differing))} from those expected"
            )
        spec = cls(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        )
        for key, fits, expected in (
            ("shape", _counts(spec.shape, 2, 4), "2 to 4 positive integers"),
            ("classes", _counts((spec.classes,)), "a positive integer"),
            (
                "stored",
                spec.stored is None or _counts(spec.stored, 2, 2),
                "null or 2 positive integers",
            ),
            ("class_names", _all(str, spec.class_names), "a list of strings"),
        ):
            if not fits:
                got = getattr(spec, key)
                raise ValueError(f"{what}: got {key} {got!r}, expected {expected}")
        channels = spec.shape[-1]
        for key in ("mean", "std"):
            got = getattr(spec, key)
            fits = _all((int, float), got) and len(got) in (1, channels)
            fits = fits and all(
                math.isfinite(x) and (key == "mean" or x > 0) for x in got
            )
            if not fits:
                sign = "positive" if key == "std" else "finite"
                raise ValueError(
                    f"{what}: got {key} {got!r}, expected {sign} numbers, 1 or "
                    f"{channels} of them"
                )
        if not _all((int, float), (spec.crop,)) or not 0 < spec.crop <= 1:
            raise ValueError(
                f"{what}: got crop {spec.crop!r}, expected a number above 0, up to 1"
            )
        if spec.class_names and len(spec.class_names) != spec.classes:
            raise ValueError(
                f"{what}: got {len(spec.class_names)} names of classes, expected "
                f"{spec.classes}"
            )
        return spec

    def class_name(self, label: int) -> str:
        return str(self.class_names[label] if self.class_names else label)


def _all(kind: type | tuple[type, ...], values: Any) -> bool:
    """Whether it is a tuple of these; JSON's true and false are no numbers."""
    return isinstance(values, tuple) and all(
        isinstance(x, kind) and not isinstance(x, bool) for x in values
    )


def _counts(values: Any, least: int = 1, most: int = 1) -> bool:
    """Whether it is a tuple of so many positive integers."""
    whole = _all(int, values) and least <= len(values) <= most
    return whole and all(n > 0 for n in values)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named set with its splits.

    Attributes:
      shape: of one example: (H, W, C), (T, H, W, C), or (N, F) for tokens.
      mean, std: of the normalisation x = (pixel / 255 - mean) / std, for each channel;
        0 and 1 where values are no pixels.
      about: one line on what it is and where it comes from.
      note: what a result has to say of the copy that it was made on; "" for nothing.
      stored, crop: see `Spec`.
      stamp: changes when the files that it was read from do, and is the same for a copy
        of them (`cache.stamp` without times, say); "" for sets that have no files.
    Raises:
      ValueError: more classes than there can be, or a label beyond them.
    """

    name: str
    shape: tuple[int, ...]
    classes: int
    train: Split
    test: Split
    validation: Split | None = None
    class_names: tuple[str, ...] = ()
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    about: str = ""
    note: str = ""
    stored: tuple[int, int] | None = None
    crop: float = 1.0
    stamp: str = ""

    def __post_init__(self):
        if not 1 <= self.classes <= MOST_CLASSES:
            raise ValueError(
                f"{self.name}: got {self.classes} classes, expected 1 to "
                f"{MOST_CLASSES:,}"
            )
        for name in ("train", "test", "validation"):
            top = getattr(getattr(self, name), "top", None)
            if top is not None and top[0] >= self.classes:
                raise ValueError(
                    f"{self.name}: got the label {top[0]} of {name} example {top[1]}, "
                    f"expected 0 to {self.classes - 1}, as there are {self.classes} "
                    "classes"
                )

    @property
    def black(self) -> tuple[float, ...]:
        """A black pixel after normalisation; `augment.build` takes it as `fill`."""
        return tuple(-m / s for m, s in zip(self.mean, self.std, strict=True))

    @property
    def spec(self) -> Spec:
        """What a model has to know of its input."""
        return Spec(**{name: getattr(self, name) for name in Spec._fields})

    def split(self, name: str) -> Split:
        """The split of this name; ValueError naming those there are."""
        splits = {"train": self.train, "test": self.test}
        if self.validation is not None:
            splits["validation"] = self.validation
        if name not in splits:
            expected = ", ".join(splits)
            raise ValueError(f"{self.name}: got split {name!r}, expected {expected}")
        return splits[name]


def resident_split(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    decode: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> Split:
    """Examples in memory: images [N, ...] of any dtype, labels [N].

    `decode` runs on the device, on [B, ...] as stored: bytes stay bytes in memory, and
    scaling and normalising cost one fused pass.

    Raises:
      ValueError: NaN or infinity in an image, a label that is no integer from -1 on, or
        other numbers of both.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if len(images) != len(labels):
        raise ValueError(f"resident_split: {len(images)} images, {len(labels)} labels")
    checks.check_labels("resident_split", "labels", labels)
    checks.check_finite("resident_split", "images", images)

    def gather(resident: PyTree, index: jax.Array) -> dict[str, jax.Array]:
        image, label = (jnp.asarray(x)[index] for x in resident)
        return {"image": decode(image).astype(jnp.float32), "label": label}

    return Split(
        size=len(images),
        fetch=lambda index: np.asarray(index, np.int32),
        resident=(images, labels.astype(np.int32, copy=False)),
        gather=gather,
        top=_top(labels, np.arange(len(labels))),
    )


def host_split(
    images: np.ndarray,
    labels: np.ndarray,
    index: np.ndarray,
    *,
    decode: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> Split:
    """Examples images[index], labels[index], of which a batch travels when wanted.

    For arrays [N, ...] that are too large for the devices, mapped into memory or not.
    In training the batches ahead are gathered in the background, by one thread: a batch
    is one copy of memory, far less than what handing over its examples would cost.
    `decode` runs on the device, on [B, ...] as stored.

    Raises:
      ValueError: a label that is no integer from -1 on. Of images the batch is looked
        at, when it is fetched: NaN or infinity is named by its index in `images`.
    """
    index, labels = np.asarray(index, np.int64), np.asarray(labels)
    checks.check_labels("host_split", "labels", labels)

    def fetch(wanted: np.ndarray) -> dict[str, np.ndarray]:
        rows = index[wanted]
        batch = images[rows]  # which copies
        if (bad := checks.first_not_finite(batch)) is not None:
            raise ValueError(
                f"host_split: got NaN or infinity in images[{rows[bad]}], expected "
                "finite numbers"
            )
        return {"image": batch, "label": labels[rows].astype(np.int32)}

    def gather(_, sent: dict[str, jax.Array]) -> dict[str, jax.Array]:
        image = decode(jnp.asarray(sent["image"])).astype(jnp.float32)
        return {"image": image, "label": jnp.asarray(sent["label"])}

    def stream(order: Callable, first: int, last: int) -> Iterator[PyTree]:
        return _ahead(lambda step: fetch(order(step)), range(first, last))

    top = _top(labels[index], index)
    return Split(len(index), fetch, (), gather, stream=stream, top=top)


def _top(labels: np.ndarray, index: np.ndarray) -> tuple[int, int] | None:
    """(largest label, its example); None of no labels. Example i is index[i]."""
    if not len(labels):
        return None
    at = labels.argmax()
    return int(labels[at]), int(index[at])


def _ahead(make: Callable[[int], PyTree], steps: Iterable[int]) -> Iterator[PyTree]:
    """make(step) of every step, in order, up to AHEAD of them made in the background.

    Whoever stops early and drops or closes it ends the thread.
    """
    pool, waiting = ThreadPoolExecutor(1), deque()
    try:
        for step in steps:
            waiting.append(pool.submit(make, step))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def generated_split(
    size: int,
    make: Callable[..., tuple[jax.Array, jax.Array]],
    *,
    numbers: tuple[int, ...] = (),
    fresh: bool = False,
) -> Split:
    """Examples that are a pure function: make(index, *numbers) -> (image, label).

    All arguments of `make` are uint32 scalars, traced. What is given as `numbers`, a
    seed for one, is data and no part of the program: another seed compiles nothing.
    `fetch` raises ValueError from index 2^32 on, where a stream would start to repeat.
    """

    def fetch(index: np.ndarray) -> np.ndarray:
        if np.max(index) >= 2**32:
            raise ValueError(f"generated data: got index {np.max(index)}, max 2^32 - 1")
        return np.asarray(index, np.uint32)

    def gather(resident: PyTree, index: jax.Array) -> dict[str, jax.Array]:
        image, label = jax.vmap(lambda i: make(i, *resident))(jnp.asarray(index))
        return {"image": image.astype(jnp.float32), "label": label.astype(jnp.int32)}

    resident = tuple(np.asarray(n, np.uint32) for n in numbers)
    return Split(size, fetch, resident, gather, fresh)


def stream_key(stream: int | jax.Array, number: int | jax.Array) -> jax.Array:
    """A key of its own for every pair of 32-bit numbers, for use inside `make`.

    The generator is named: jax's default is a user's setting, and the data are not.
    """
    words = jnp.stack([jnp.uint32(stream), jnp.uint32(number)])
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def check_at_least(least: int, name: str, **counts: int) -> None:
    """ValueError, in the name of a source or function, for a count below `least`."""
    for what, count in counts.items():
        if count < least:
            raise ValueError(f"{name}: got {what} {count}, expected at least {least}")


def stratified(
    labels: np.ndarray,
    count: int,
    *,
    seed: int = SPLIT_SEED,
    key: str = "data.validation",
) -> tuple[np.ndarray, np.ndarray]:
    """Holds out `count` examples, of each class its share (largest remainder).

    Returns (kept, held out): sorted indices into `labels`, in numpy alone, so that no
    release of any library moves an example. ValueError, in the name of the `key` that
    set the count, unless 0 <= count < N.
    """
    labels = np.asarray(labels)
    if not 0 <= count < labels.size:
        most = labels.size - 1
        raise ValueError(f"{key}: got {count} examples, expected 0 to {most}")
    classes, sizes = np.unique(labels, return_counts=True)
    quota, remainder = np.divmod(sizes * count, labels.size)
    largest = np.argsort(-remainder, kind="stable")  # ties: the lower class
    quota[largest[: count - quota.sum()]] += 1
    rng = np.random.RandomState(seed)
    held = [
        rng.permutation(np.flatnonzero(labels == c))[:q]
        for c, q in zip(classes, quota, strict=True)
    ]
    held = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(labels.size), held), held


def files_below(folder: Path) -> list[Path]:
    """All files below the folder, through links, in order; litter is left out.

    What cannot be read is counted on stderr. Raises: see `tree.walk`.
    """
    found = tree.walk(folder)
    if found.lost:
        path, why = found.lost[0]
        print(
            f"{folder}: passed over {len(found.lost):,} that cannot be read, the first "
            f"{path}: {why}",
            file=sys.stderr,
        )
    return found.files


def first_not_finite(split: Split, batches: Iterable[np.ndarray]) -> int | None:
    """The first example, of these batches of indices, that holds NaN or infinity.

    Looked at is what `gather` makes; for messages, as it takes its time.
    """
    resident, gather = jax.device_put(split.resident), jax.jit(split.gather)
    for index in batches:
        images = np.asarray(gather(resident, split.fetch(index))["image"])
        if (i := checks.first_not_finite(images)) is not None:
            return int(index[i])
    return None


def steps_per_epoch(size: int, batch: int) -> int:
    """floor(size / batch): the incomplete last batch of an epoch is dropped."""
    check_at_least(1, "steps_per_epoch", batch=batch)
    if batch > size:
        raise ValueError(f"batch {batch} is larger than the data: {size} examples")
    return size // batch


@dataclass(frozen=True)
class Order:
    """The indices of a step, as a function of it: `train_indices`, or a part of them.

    Plain numbers, which travel to the processes that read; so no data set is in it.

    Attributes:
      seed, size, batch, fresh: see `train_indices`.
      processes, process: of so many processes, the one whose equal part is meant.
    """

    seed: int
    size: int
    batch: int
    fresh: bool = False
    processes: int = 1
    process: int = 0

    def __call__(self, step: int) -> np.ndarray:
        whole = train_indices(
            step, seed=self.seed, size=self.size, batch=self.batch, fresh=self.fresh
        )
        return np.split(whole, self.processes)[self.process]


def train_indices(
    step: int, *, seed: int, size: int, batch: int, fresh: bool = False
) -> np.ndarray:
    """Indices [batch], int64, that training sees at `step`, counted from 0.

    Every epoch is a permutation of its own, drawn from (seed, epoch), less its
    incomplete last batch. With `fresh` the order is plain counting: step * batch + i,
    never the same twice; the seed is then the source's, not the order's.
    """
    steps = steps_per_epoch(size, batch)
    if fresh:
        return step * batch + np.arange(batch, dtype=np.int64)
    epoch, position = divmod(step, steps)
    return _permutation(seed, epoch, size)[position * batch : (position + 1) * batch]


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    # RandomState rather than default_rng: numpy guarantees its stream for good, so a
    # run resumed under a newer numpy goes on in the same order.
    order = np.random.RandomState([seed, epoch]).permutation(size).astype(np.int64)
    order.setflags(write=False)  # it is cached, and callers get views
    return order


def padded_batches(size: int, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every index once, in order: (indices [batch] int64, mask [batch] float32).

    The last batch is filled up with index 0 and mask 0, so that all batches have one
    shape and masked sums are exact for any batch size.
    """
    check_at_least(1, "padded_batches", batch=batch)
    for start in range(0, size, batch):
        index = np.arange(start, start + batch, dtype=np.int64)
        mask = index < size
        yield np.where(mask, index, 0), mask.astype(np.float32)

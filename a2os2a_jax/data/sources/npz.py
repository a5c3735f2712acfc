"""Arrays in a file, or in a folder of pieces: `npz:PATH`.

    train_images uint8 or floats [N, H, W], [N, H, W, C] or [N, T, H, W, C]
    train_labels [N] or [N, 1] of whole numbers, or one-hot [N, classes]
    test_images, test_labels, and val_images, val_labels where a file has them
    class_names [classes], if it has

x_train, y_train, ... are the same in Keras' words; valid and validation are the same as
val, and capital letters as small ones. Other arrays are left aside, and named on
stderr. `archives` says what a folder of pieces is.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from a2os2a_jax.data import archives, catalogue, checks, images, pipeline
from a2os2a_jax.files import expanded

SCHEMES = (("{}_images", "{}_labels"), ("x_{}", "y_{}"))  # of one file, either
WORDS = {  # the first is the one that a message suggests
    "train": ("train",),
    "test": ("test",),
    "validation": ("val", "valid", "validation"),
}
CLASS_NAMES = "class_names"
_LISTED = 8  # names in a message


class Part(NamedTuple):
    """The examples of a split, and what the file calls its arrays."""

    images: np.ndarray
    labels: np.ndarray
    images_name: str
    labels_name: str


def load(
    name: str,
    *,
    size: int | None = None,
    classes: int | None = None,
    data_dir: str | None = None,
    validation: int = 0,
    timesteps: int | None = None,
) -> pipeline.Dataset:
    """Examples as they are stored, normalised by their own statistics.

    Bytes are pixels, x = (pixel / 255 - mean) / std; sequences and floats pass as they
    are.

    Args:
      name: the path; one that is not absolute starts at data_dir, if that is given.
      size: bytes of another are resized on the device; neither sequences nor floats
        are. None takes the stored one, if that is a square.
      classes: at least the largest label plus one; by default that, or as many as
        there are class names, or columns of one-hot labels.
      validation: training examples held out, stratified, always the same ones, in the
        place of those that the file has for it; 0 takes these, if there are any.
      timesteps: T of sequences, to be sure; None takes what there is.
    Raises:
      ValueError: no such file, missing arrays, two names for one, other shapes or
        types, NaN or infinity, labels out of range or, where nothing says how many
        classes there are, beyond the number of examples; a piece that is missing or
        damaged.
    """
    path = (expanded(data_dir or ".") / expanded(name)).resolve()
    archive = archives.scan(path)
    parts, class_names, columns = _parts(path, archive)
    train, test, judge = parts["train"], parts["test"], parts.get("validation")
    count = _class_count(path, parts, classes, class_names, columns)
    x, *frames = train.images, *train.images.shape[1:-3]
    height, width, channels = x.shape[-3:]
    if timesteps not in (None, *frames):
        got = frames[0] if frames else "no"
        raise ValueError(f"data.timesteps: got {timesteps}, {path} has {got} frames")
    if size is None and height != width:
        raise ValueError(f"data.size: got None, {path} has {height}x{width} pixels")
    size = height if size is None else size
    pixels = x.dtype == np.uint8 and not frames
    if (size, size) != (height, width) and not pixels:
        kind = "sequences" if frames else "floats"
        raise ValueError(
            f"data.size: got {size}, {kind} of {path} are {height}x{width}"
        )
    known = catalogue.KNOWN.get(archive.about.get("name", ""))
    about = f"{len(x):,} + {len(test.images):,} of {path.name}"
    mean, std = (0.0,) * channels, (1.0,) * channels
    if pixels:
        found = catalogue.statistics(archive.about.get("name", ""), channels)
        mean, std = found or images.statistics(x)
        decode = images.normaliser(mean, std, size)
    else:
        decode = lambda z: z  # noqa: E731  (counts of events, or floats)

    def split(part: Part, index: np.ndarray | slice = slice(None)) -> pipeline.Split:
        return pipeline.resident_split(
            part.images[index], part.labels[index], decode=decode
        )

    if validation:
        kept, held = pipeline.stratified(train.labels, validation)
        splits = {"train": split(train, kept), "validation": split(train, held)}
    else:
        splits = {"train": split(train), "validation": split(judge) if judge else None}
    return pipeline.Dataset(
        name=f"npz:{name}",
        shape=(*frames, size, size, channels),
        classes=count,
        class_names=class_names or tuple(map(str, range(count))),
        test=split(test),
        mean=mean,
        std=std,
        about=known.about if known else about,
        note=archive.about.get("note", ""),
        stored=None if frames else (height, width),
        stamp=archive.stamp,
        **splits,
    )


def _parts(
    path: Path, archive: archives.Archive
) -> tuple[dict[str, Part], tuple[str, ...], int]:
    """({split: its examples}, class names or (), columns of one-hot labels or 0)."""
    chosen, names_of_classes = _choose(path, archive.names)
    names = [name for pair in chosen.values() for name in pair]
    arrays = archives.read(archive, [*names, *names_of_classes], alike=names_of_classes)
    parts, columns = {}, 0
    for split, (images_name, labels_name) in chosen.items():
        x = _images(f"{path}: got {images_name}", arrays[images_name])
        if not len(x):
            raise ValueError(f"{path}: got no example in {images_name}, expected some")
        y, found = _labels(path, labels_name, arrays[labels_name], len(x))
        parts[split] = Part(x, y, images_name, labels_name)
        columns = max(columns, found)
    first = parts["train"]
    for part in parts.values():
        x = part.images
        if (x.dtype, x.shape[1:]) != (first.images.dtype, first.images.shape[1:]):
            raise ValueError(
                f"{path}: got {part.images_name} {x.dtype} {x.shape}, expected "
                f"{first.images.dtype} {first.images.shape} as {first.images_name}, "
                "but for their number"
            )
        checks.check_finite(str(path), part.images_name, x)
    class_names = [_class_names(path, arrays[name]) for name in names_of_classes]
    return parts, next(iter(class_names), ()), columns


def _choose(
    path: Path, names: Sequence[str]
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """({split: (name of its images, of its labels)}, [name of the class names] or []).

    Says on stderr what is left aside.
    """
    found: dict[tuple[str, int], list[str]] = {}
    schemes: dict[int, list[str]] = {}
    names_of_classes, aside = [], []
    for name in names:
        if name.lower() == CLASS_NAMES:
            names_of_classes.append(name)
        elif name.lower() in _table():
            scheme, split, column = _table()[name.lower()]
            found.setdefault((split, column), []).append(name)
            schemes.setdefault(scheme, []).append(name)
        else:
            aside.append(name)
    if len(schemes) > 1:
        got = " and ".join(_listed(group) for group in schemes.values())
        raise ValueError(
            f"{path}: got two ways to name arrays, {got}, expected one of them"
        )
    for several in (*found.values(), names_of_classes):
        if len(several) > 1:
            raise ValueError(
                f"{path}: got {' and '.join(several)}, names for the same, expected "
                "one of them"
            )
    scheme = SCHEMES[next(iter(schemes), 0)]
    chosen, missing = {}, []
    for split, words in WORDS.items():
        pair = [next(iter(found.get((split, i), ())), None) for i in (0, 1)]
        if split == "validation" and not any(pair):
            continue
        missing += [
            form.format(words[0])
            for form, name in zip(scheme, pair, strict=True)
            if not name
        ]
        chosen[split] = tuple(pair)
    if missing:
        got = _listed(names) or "no array"
        raise ValueError(f"{path}: got {got}, expected {', '.join(missing)}, too")
    if aside:
        print(f"npz:{path}: left aside {_listed(aside)}", file=sys.stderr)
    return chosen, names_of_classes


@functools.cache
def _table() -> dict[str, tuple[int, str, int]]:
    """{name of an array: (its scheme, its split, 0 for images or 1 for labels)}."""
    return {
        form.format(word): (scheme, split, column)
        for scheme, forms in enumerate(SCHEMES)
        for column, form in enumerate(forms)
        for split, words in WORDS.items()
        for word in words
    }


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _images(got: str, x: np.ndarray) -> np.ndarray:
    """[N, H, W, C] or [N, T, H, W, C] of uint8 or floats, as the machine has them.

    Other integers may be pixels of any range, or counts: it is not known which.
    """
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise ValueError(f"{got} {x.dtype} {x.shape}, expected uint8 or floats")
    if x.dtype.kind == "f" and (x.dtype.itemsize > 8 or not x.dtype.isnative):
        x = x.astype(f"f{min(8, x.dtype.itemsize)}")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim not in (4, 5) or 0 in x.shape[1:]:
        raise ValueError(
            f"{got} {x.shape}, expected [N, H, W], [N, H, W, C] or [N, T, H, W, C]"
        )
    if x.shape[-3] <= 4 < min(x.shape[-2:]):
        raise ValueError(
            f"{got} {x.shape}, expected channels last, as np.moveaxis(x, -3, -1) puts "
            "them"
        )
    return x


def _labels(path: Path, name: str, y: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """(integers [N], columns if they were one-hot, else 0) of labels of any form."""
    numbers = y.dtype.kind in "iubf"
    if not numbers or y.shape[:1] != (count,) or y.ndim > 2 or 0 in y.shape:
        raise ValueError(
            f"{path}: got {name} {y.dtype} {y.shape}, expected whole numbers "
            f"[{count}], or one-hot [{count}, classes]"
        )
    columns = y.shape[1] if y.ndim == 2 and y.shape[1] > 1 else 0
    if columns:
        one_hot = ((y == 0) | (y == 1)).all(1) & (y.sum(1) == 1)
        if not one_hot.all():
            raise ValueError(
                f"{path}: got {name} {y.shape}, of which row {one_hot.argmin()} is not "
                "one-hot, expected one class for each example"
            )
        return y.argmax(1), columns
    y = y.reshape(count)
    if y.dtype.kind == "f":
        whole = (y == np.trunc(y)) & (np.abs(y) < 2**53)
        if not whole.all():
            i = whole.argmin()
            raise ValueError(
                f"{path}: got {name}[{i}] = {y[i]}, expected whole numbers, the classes"
            )
    return y if y.dtype.kind in "iu" else y.astype(np.int64), 0


def _class_names(path: Path, names: np.ndarray) -> tuple[str, ...]:
    if names.shape == (0,):  # of any type: there are none
        return ()
    if names.ndim != 1 or names.dtype.kind not in "SUiu":
        raise ValueError(
            f"{path}: got {CLASS_NAMES} {names.dtype} {names.shape}, expected strings "
            "[classes], one for each"
        )
    return tuple(
        x.decode("utf-8", "replace") if isinstance(x, bytes) else str(x)
        for x in names.tolist()
    )


def _class_count(
    path: Path,
    parts: dict[str, Part],
    classes: int | None,
    class_names: tuple[str, ...],
    columns: int,
) -> int:
    """The number of classes; ValueError unless labels are below, and names as many."""
    if classes is not None and len(class_names) not in (0, classes):
        raise ValueError(
            f"data.classes: got {classes}, {path} has {len(class_names)} {CLASS_NAMES}"
        )
    count = classes or len(class_names) or columns
    examples = sum(len(part.labels) for part in parts.values())
    for part in parts.values():
        y, name = part.labels, part.labels_name
        low, high = int(y.argmin()), int(y.argmax())
        if y[low] < 0:
            raise ValueError(
                f"{path}: got {name}[{low}] = {y[low]}, expected 0 or more"
            )
        if count and y[high] >= count:
            said = "data.classes" if classes else f"{CLASS_NAMES} or one-hot labels"
            raise ValueError(
                f"{said}: got {count} classes, {path} has {name}[{high}] = {y[high]}"
            )
        if not count and y[high] >= examples:
            raise ValueError(
                f"{path}: got {name}[{high}] = {y[high]}, expected below {examples:,}, "
                "the number of examples, unless data.classes is set"
            )
    if count:
        return count
    count = 1 + max(int(part.labels.max()) for part in parts.values())
    there = np.unique(parts["train"].labels)
    if len(there) < count:
        lacking = np.setdiff1d(np.arange(count), there)
        print(
            f"npz:{path}: {len(lacking):,} of {count:,} classes, such as "
            f"{lacking[0]}, have no training example",
            file=sys.stderr,
        )
    return count

"""A folder of pictures, a subfolder for each class: `folder:PATH`.

    PATH/train/CLASS/*.jpg    PATH/test/CLASS/*.jpg    PATH/val/CLASS/*.jpg
    PATH/CLASS/*.jpg          then every fifth, stratified, is held out as test

`layout` says which names are those of splits, and what else it takes. Classes are the
names of the subfolders, in alphabetical order. One line on stderr says what was taken
for what, another counts what was passed over: files of other kinds, what other programs
left there, what cannot be read.
"""

import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from a2os2a_jax.data import cache, catalogue, images, layout, pipeline, tree
from a2os2a_jax.data.layout import SUFFIXES
from a2os2a_jax.files import expanded
from a2os2a_jax.texts import line

EXPECTED = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def load(
    name: str,
    *,
    size: int | None = None,
    classes: int | None = None,
    channels: int = 3,
    data_dir: str | None = None,
    validation: int = 0,
    seed: int = 0,
    corrupt: str = "error",
    area: float | None = None,
    workers: int = 0,
    resident_gib: float | None = None,
) -> pipeline.Dataset:
    """Pictures [size, size, channels]: the middle, or random parts in training.

    Args:
      name: the path; one that is not absolute starts at data_dir, if that is given.
      size: needed: the pictures may have any.
      channels: 3, or 1 for grey.
      validation: training pictures held out, stratified, always the same ones; a split
        of the files for that is then passed over. 0 takes this split, if there is one.
      others: as in `tfds.load`. The statistics are computed from the pictures if these
        are decoded once, else ImageNet's (for grey their mean).
    Raises:
      ValueError: no such folder, one that is no set (`layout.find`), a class of
        training without pictures, a link in a circle, or arguments that do not fit.
      images.Corrupt: a picture cannot be read, and corrupt is "error".
      OSError: a file cannot be reached, though it is there.
    """
    images.check_corrupt(corrupt)
    if size is None:
        raise ValueError(f"data.size: got None, folder:{name} needs a size in pixels")
    pipeline.check_at_least(1, "folder", size=size)
    images.check_channels("data.channels", channels)
    root = (expanded(data_dir or ".") / expanded(name)).resolve()
    if not root.is_dir():
        raise ValueError(f"data.name: found no folder {root}")
    found = layout.find(root)
    if classes not in (None, len(found.train)):
        raise ValueError(f"data.classes: got {classes}, {root} has {len(found.train)}")
    parts = _parts(root, found, validation)
    names = tuple(map(_text, found.train))
    target = images.Target(size, channels, len(names), None, area)
    judging, count = len(parts["test"]), sum(map(len, parts.values()))
    bytes_ = count * size * size * channels
    if bytes_ <= images.resident_bytes(resident_gib) and area is None:
        arrays = {
            what: images.decode_all(r, target, what=f"{root} {what}", corrupt=corrupt)
            for what, r in parts.items()
        }
        mean, std = images.statistics(arrays["train"][0])
        decode = images.normaliser(mean, std, size)
        splits = {
            what: pipeline.resident_split(*xy, decode=decode)
            for what, xy in arrays.items()
        }
    else:
        mean, std = catalogue.usual_statistics(channels)
        normalise = images.normaliser(mean, std, size)
        how = dict(corrupt=corrupt, seed=seed, workers=workers)
        splits = {
            what: images.streamed(
                r,
                target,
                normalise,
                what=f"{root} {what}",
                train=what == "train",
                **how,
            )
            for what, r in parts.items()
        }
    return pipeline.Dataset(
        name=f"folder:{name}",
        shape=(size, size, channels),
        classes=len(names),
        class_names=names,
        mean=mean,
        std=std,
        about=f"{count - judging:,} + {judging:,} pictures of {line(root.name)}",
        crop=images.CENTRE,
        stamp=_stamp(found.root, parts),
        **splits,
    )


@dataclass(frozen=True)
class Files:
    """Pictures by path, with labels int32 [N]."""

    paths: tuple[Path, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> images.Record:
        try:
            return images.Record(
                self.paths[index].read_bytes(), int(self.labels[index])
            )
        except FileNotFoundError as error:  # it was there when the tree was listed
            raise images.Corrupt(f"cannot be read: {error}") from error
        except OSError as error:  # no fault of the picture's
            raise OSError(f"{self.name(index)}: {error}") from error

    def name(self, index: int) -> str:
        return f"picture {index}, {line(str(self.paths[index]))}"

    def some(self, indices: np.ndarray) -> "Files":
        return Files(tuple(self.paths[i] for i in indices), self.labels[indices])


def _parts(root: Path, found: layout.Layout, validation: int) -> dict[str, Files]:
    """{"train", "test", perhaps "validation": its pictures}; says what they are.

    Raises:
      ValueError: a class of training, or a split, without pictures; fewer than are to
        be held out.
    """
    below = tree.Level([], [], [], [])
    labels = {name: label for label, name in enumerate(found.train)}
    train = _files(found.train, labels, below, every=True)
    if found.test is None:
        files = train
        train, test = map(files.some, images.hold_out(files.labels, str(root)))
    else:
        test = _files(found.test, labels, below)
    parts = {"train": train, "test": test}
    if validation:
        kept, held = map(train.some, pipeline.stratified(train.labels, validation))
        parts |= {"train": kept, "validation": held}
    elif found.validation is not None:
        parts["validation"] = _files(found.validation, labels, below)
    _say(f"folder:{line(str(root))}: {_taken(root, found, parts, validation)}")
    if passed := _passed_over(root, found.beside, below):
        _say(f"folder:{line(str(root))}: passed over {passed}")
    for what in ("test", "validation"):
        if found.splits and (twice := _shared(parts["train"], parts.get(what))):
            _say(
                f"folder:{line(str(root))}: {twice:,} pictures of {what} are training "
                "ones, too: links to the same files"
            )
    return parts


def _files(
    classes: dict[str, Path],
    labels: dict[str, int],
    below: tree.Level,
    every: bool = False,
) -> Files:
    """The pictures of a split; what else lies there is added to `below`.

    Raises:
      ValueError: there is none; with `every`, a class has none.
    """
    paths: list[Path] = []
    counts = []
    for folder in classes.values():
        there = tree.walk(folder)
        pictures = [p for p in there.files if layout.is_picture(p)]
        if not pictures and every:
            lost = f"; {len(there.lost)} {_lost(folder, there.lost)}"
            lost *= bool(there.lost)
            raise ValueError(
                f"{folder}: found no picture of {len(there.files)} files, expected "
                f"{EXPECTED}{lost} (a folder that is no class has to lie elsewhere)"
            )
        tree.extend(below, there)
        paths += pictures
        counts.append(len(pictures))
    if not paths:
        folder = next(iter(classes.values())).parent
        raise ValueError(f"{folder}: found no picture in any class, expected some")
    found = np.repeat([labels[name] for name in classes], counts)
    return Files(tuple(paths), found.astype(np.int32))


def _stamp(root: Path, parts: dict[str, Files]) -> str:
    """The same however the files are split."""
    paths = [path for files in parts.values() for path in files.paths]
    return cache.stamp(root, sorted(paths, key=os.fspath), times=False)


def _text(name: str) -> str:
    """The name of a folder, bytes that need not be UTF-8, as text that can be written.

    Bytes that are no UTF-8 become \\xe9, so that different names stay different.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _shared(train: Files, other: Files | None) -> int:
    """How many files are in both, by whatever way."""
    known = set(map(tree.identity, train.paths))
    return sum(tree.identity(p) in known for p in other.paths) if other else 0


# ---- what is said


@functools.lru_cache(maxsize=256)
def _say(text: str) -> None:
    """Prints on stderr what was not printed before."""
    print(text, file=sys.stderr)


def _taken(
    root: Path, found: layout.Layout, parts: dict[str, Files], validation: int
) -> str:
    """What was taken for what: splits, and classes."""

    def at(folder: Path) -> str:
        return f"{line(str(folder.relative_to(root)))}/"

    said = [
        f"{at(folder)} is {split} ({_counted(found, parts[split])})"
        for split, folder in found.splits.items()
        if split != layout.VALIDATION or not validation
    ]
    if not said:
        inside = "" if found.root == root else f" in {at(found.root)}"
        judging, training = len(parts["test"]), sum(map(len, parts.values()))
        said = [
            f"each folder{inside} is a class with all below it ({training:,} pictures)"
            f", one in five of each is test ({judging:,})"
        ]
    if validation:
        said.append(f"data.validation holds {validation:,} of train out")
        if found.validation is not None:
            said[-1] += f" in place of {at(found.splits[layout.VALIDATION])}"
    return f"{', '.join(said)}; {len(found.train):,} classes: {layout.few(found.train)}"


def _counted(found: layout.Layout, files: Files) -> str:
    """How many pictures a split has, and of which classes it has none."""
    there = set(files.labels.tolist())
    names = [n for label, n in enumerate(found.train) if label not in there]
    return f"{len(files):,}" + (f", none of {layout.few(names)}" if names else "")


def _passed_over(root: Path, beside: tree.Level, below: tree.Level) -> str:
    """What is no example, counted by kind; "" if there is nothing."""
    other = [p for p in below.files if not layout.is_picture(p)]
    litter, lost = beside.litter + below.litter, beside.lost + below.lost
    apart = beside.folders + beside.files
    kinds = sorted({p.suffix.lower() or p.name for p in other})
    said = {
        f"of other kinds than {EXPECTED} ({layout.few(kinds)})": other,
        f"of other programs ({layout.few(sorted({p.name for p in litter}))})": litter,
        f"beside the classes ({layout.few(p.name for p in apart)})": apart,
        _lost(root, lost): lost,
    }
    return ", ".join(f"{len(paths):,} {what}" for what, paths in said.items() if paths)


def _lost(root: Path, lost: list[tuple[Path, str]]) -> str:
    """Of what cannot be read the first, with the reason."""
    first = [f"{p.relative_to(root)}: {why}" for p, why in lost[:1]]
    return f"that cannot be read ({layout.few(first)}{', …' * (len(lost) > 1)})"

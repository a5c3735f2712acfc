"""A folder of pictures, a subfolder for each class: `folder:PATH`.

    PATH/train/CLASS/*.jpg    PATH/test/CLASS/*.jpg   (or val, validation)
    PATH/CLASS/*.jpg          then every fifth, stratified, is held out as test

Classes are the names of the subfolders, in alphabetical order. Files of other kinds are
left aside, and counted on stderr; hidden ones, and what lies in hidden folders, without
a word.
"""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from a2os2a_jax.data import catalogue, images, pipeline

SUFFIXES = (".jpg", ".jpeg", ".png")
TEST = ("test", "val", "validation")


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
      others: as in `tfds.load`. The statistics are computed from the pictures if these
        are decoded once, else ImageNet's (for grey their mean).
    Raises:
      ValueError: no such folder, one without pictures, a class without any, test
        classes that are none of training, or arguments that do not fit.
      images.Corrupt: a picture cannot be read, and corrupt is "error".
      OSError: a file cannot be reached, though it is there.
    """
    images.check_corrupt(corrupt)
    if size is None:
        raise ValueError(f"data.size: got None, folder:{name} needs a size in pixels")
    pipeline.check_at_least(1, "folder", size=size)
    images.check_channels("data.channels", channels)
    root = (Path(data_dir or ".").expanduser() / Path(name).expanduser()).resolve()
    if not root.is_dir():
        raise ValueError(f"data.name: found no folder {root}")
    train, test, names = _trees(root)
    if classes not in (None, len(names)):
        raise ValueError(f"data.classes: got {classes}, {root} has {len(names)}")
    kept, held = pipeline.stratified(train.labels, validation)
    parts = {"train": images.View(train, kept), "test": test}
    if validation:
        parts["validation"] = images.View(train, held)
    target = images.Target(size, channels, len(names), None, area)
    bytes_ = (len(train) + len(test)) * size * size * channels
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
        about=f"{len(train):,} + {len(test):,} pictures of {root.name}",
        crop=images.CENTRE,
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
        return f"picture {index}, {self.paths[index]}"


def _trees(root: Path) -> tuple[Files, Files, tuple[str, ...]]:
    """(train, test, class names) of either layout."""
    if not (root / "train").is_dir():
        names = _classes(root)
        files = _files(root, names)
        train, test = (
            Files(tuple(files.paths[i] for i in part), files.labels[part])
            for part in images.hold_out(files.labels, str(root))
        )
        return train, test, names
    judge = next((t for t in TEST if (root / t).is_dir()), None)
    if judge is None:
        raise ValueError(
            f"{root}: got the folders {', '.join(_classes(root))}; train is read as a "
            f"split, expected {', '.join(TEST[:-1])} or {TEST[-1]} beside it (a class "
            "of this name has to be called something else)"
        )
    names = _classes(root / "train")
    if extra := sorted(set(_classes(root / judge)) - set(names)):
        raise ValueError(
            f"{root / judge}: got classes {extra}, which {root / 'train'} lacks"
        )
    return _files(root / "train", names), _files(root / judge, names), names


def _classes(folder: Path) -> tuple[str, ...]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    if not names:
        raise ValueError(f"{folder}: found no subfolder, expected one for each class")
    return tuple(names)


@functools.lru_cache(maxsize=8)
def _files(folder: Path, names: tuple[str, ...]) -> Files:
    paths: list[Path] = []
    labels: list[int] = []
    aside: list[Path] = []
    expected = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
    for label, name in enumerate(names):
        inside = folder / name
        there = pipeline.files_below(inside)
        found = [p for p in there if p.suffix.lower() in SUFFIXES]
        aside += [p for p in there if p.suffix.lower() not in SUFFIXES]
        if not found:
            raise ValueError(
                f"{inside}: found no picture of {len(there)} files, expected {expected}"
            )
        paths += found
        labels += [label] * len(found)
    if aside:
        kinds = ", ".join(sorted({p.suffix.lower() or p.name for p in aside}))
        print(
            f"folder:{folder}: {len(aside):,} files that are no {expected} are left "
            f"aside ({kinds})",
            file=sys.stderr,
        )
    return Files(tuple(paths), np.array(labels, np.int32))

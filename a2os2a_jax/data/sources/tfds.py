"""Sets that tensorflow-datasets prepared, by name, read without TensorFlow.

Read are the files of `DIR/NAME/[CONFIG/]VERSION/`, in the file format array_record; the
newest version is taken. The classes are the feature `label`, the pictures `image`.
`python -m a2os2a_jax.data.prepare NAME --data_dir=DIR` makes such files.
"""

import functools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from a2os2a_jax.data import catalogue, images, pipeline

TEST = ("test", "validation", "train")  # the first there is judges


def load(
    name: str,
    *,
    size: int | None = None,
    classes: int | None = None,
    data_dir: str | None = None,
    validation: int = 0,
    seed: int = 0,
    corrupt: str = "error",
    area: float | None = None,
    workers: int = 0,
) -> pipeline.Dataset:
    """Pictures [size, size, C] with the split of the files.

    A set whose pictures are of one size and take 1 GiB at most is decoded once and
    lives on the devices; others are decoded as they are wanted.

    Args:
      name: as in the folder, with /CONFIG where there is one; "tfds:eurosat/rgb".
      size: None takes the stored one; another is made on the device for sets of one
        size, and from the whole picture, on the host, for those of many (224).
      classes: those of the set, nothing else.
      data_dir: the folder that holds NAME; None is $A2OS2A_DATA/tfds where it exists,
        else $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      validation: training examples held out, stratified, always the same ones.
      seed: of the random crops.
      corrupt: what a record does that cannot be read: "error", "skip".
      area: least share of a picture that a random crop of training has (0.08); for
        sets of many sizes. None trains on the middle, as in evaluation.
      workers: processes that decode, for sets that are streamed; 0 uses threads.
    Raises:
      ValueError: a set that is not there (says where it looked and how it is made), is
        not one of labelled pictures, or does not fit the arguments.
      images.Corrupt: a record cannot be read, and corrupt is "error".
    """
    images.check_corrupt(corrupt)
    builder = open_builder(name, data_dir)
    shape, names, count = features(name, builder.info.features)
    if classes not in (None, count):
        raise ValueError(f"data.classes: got {classes}, {name} has {count}")
    *exact, channels = shape
    exact = None if None in exact else tuple(exact)
    channels = 3 if channels is None else channels
    size = _size(name, size, exact)
    if area is not None and exact is not None:
        raise ValueError(f"data.area: got {area}, expected None: {name} has one size")
    target = images.Target(size, channels, count, exact, area)
    known = catalogue.KNOWN.get(name)
    splits = builder.info.splits
    judge = next(s for s in TEST if s in splits)
    total = sum(splits[s].num_examples for s in {"train", judge})
    one = "" if judge != "train" else "; it has one split, which judges, too"
    common = dict(
        name=name,
        shape=(size, size, channels),
        classes=count,
        class_names=names,
        about=(known.about if known else _about(builder)) + one,
    )
    side = exact or (size, size)
    if total * side[0] * side[1] * channels <= images.RESIDENT_BYTES and area is None:
        path = os.fspath(builder.data_dir)
        x, y = _decoded(path, "train", target, corrupt)
        mean, std = (known.mean, known.std) if known else images.statistics(x)
        decode = images.normaliser(mean, std, size)
        kept, held = pipeline.stratified(y, validation)

        def split(x, y):
            return pipeline.resident_split(x, y, decode=decode)

        return pipeline.Dataset(
            train=split(x[kept], y[kept]) if validation else split(x, y),
            test=split(*_decoded(path, judge, target, corrupt)),
            validation=split(x[held], y[held]) if validation else None,
            mean=mean,
            std=std,
            **common,
        )
    reference = known or catalogue.KNOWN["imagenet2012"]
    mean = catalogue.fill(reference.mean if channels == 3 else (0.5,), channels)
    std = catalogue.fill(reference.std if channels == 3 else (0.5,), channels)
    normalise = images.normaliser(mean, std, size)
    source = Encoded(name, "train", builder.as_data_source)
    kept, held = np.arange(len(source)), None
    if validation:
        kept, held = pipeline.stratified(
            _labels(os.fspath(builder.data_dir)), validation
        )

    def streamed(records, what, **kw):
        return images.streamed(
            records, target, normalise, what=f"{name} {what}", corrupt=corrupt, **kw
        )

    how = dict(train=True, seed=seed, workers=workers)
    return pipeline.Dataset(
        train=streamed(images.View(source, kept), "train", **how),
        test=streamed(Encoded(name, judge, builder.as_data_source), judge),
        validation=streamed(images.View(source, held), "train") if validation else None,
        mean=mean,
        std=std,
        **common,
    )


@dataclass
class Encoded:
    """Records of a split as they are stored; opened where and when first asked."""

    set: str
    split: str
    open: object

    @functools.cached_property
    def source(self):
        return self.open(split=self.split, decoders=_skip())

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> images.Record:
        try:
            row = self.source[index]
        except Exception as error:  # whatever the reader raises for a broken file
            raise images.Corrupt(f"cannot be read: {error}") from error
        return images.Record(row["image"], int(row["label"]))

    def name(self, index: int) -> str:
        return f"record {index} of {self.set} {self.split}"


def _skip():
    import tensorflow_datasets as tfds

    return {"image": tfds.decode.SkipDecoding()}


def folder(data_dir: str | None) -> Path:
    """Where sets are looked for."""
    if data_dir is not None:
        return Path(data_dir).expanduser()
    ours = os.environ.get("A2OS2A_DATA")
    if ours and (Path(ours) / "tfds").is_dir():
        return Path(ours) / "tfds"
    theirs = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return Path(theirs).expanduser()


def open_builder(name: str, data_dir: str | None):
    """The tensorflow-datasets builder of the newest version of a set on disk.

    Raises:
      ValueError: nothing is there, or in a file format that needs TensorFlow.
    """
    root = folder(data_dir)
    versions = [
        path.parent
        for path in (root / name).glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    if not versions:
        raise ValueError(
            f"data.name: found no {name} in {root} (data.data_dir, else $A2OS2A_DATA/"
            f"tfds, $TFDS_DATA_DIR); make it: python -m a2os2a_jax.data.prepare {name} "
            f"--data_dir={root}"
        )
    newest = max(versions, key=lambda p: tuple(map(int, p.name.split("."))))
    stored = json.loads((newest / "dataset_info.json").read_text(encoding="utf-8"))
    if (got := stored.get("fileFormat", "tfrecord")) != "array_record":
        raise ValueError(
            f"{newest}: got files of the format {got}, expected array_record, which "
            "needs no TensorFlow; prepare it with file_format='array_record'"
        )
    import tensorflow_datasets as tfds

    return tfds.builder_from_directory(newest)


def features(name: str, features) -> tuple[tuple, tuple[str, ...], int]:
    """(shape of a picture, class names, number of classes), or ValueError."""
    image, label = (
        features[key] if key in features else None for key in ("image", "label")
    )
    classes = getattr(label, "num_classes", None)
    if image is None or classes is None or len(image.shape or ()) != 3:
        got = ", ".join(features.keys())
        raise ValueError(
            f"{name}: got the features {got}, expected a picture 'image' and a class "
            "'label'"
        )
    return tuple(image.shape), tuple(label.names), classes


def _size(name: str, size: int | None, exact: Sequence[int] | None) -> int:
    if size is not None:
        pipeline.check_at_least(1, name, size=size)
        return size
    if exact is None or exact[0] != exact[1]:
        got = "of many sizes" if exact is None else "x".join(map(str, exact))
        raise ValueError(f"data.size: got None, pictures of {name} are {got}")
    return exact[0]


def _about(builder) -> str:
    text = " ".join((builder.info.description or builder.name).split())
    return text if len(text) <= 70 else f"{text[:67]}..."


@functools.lru_cache(maxsize=4)
def _decoded(path: str, split: str, target: images.Target, corrupt: str):
    """All of a split, decoded once in a process."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(path)
    records = Encoded(builder.name, split, builder.as_data_source)
    what = f"{builder.name} {split}"
    x, y = images.decode_all(records, target, what=what, corrupt=corrupt)
    for array in (x, y):
        array.setflags(write=False)  # callers share them
    return x, y


@functools.lru_cache(maxsize=1)
def _labels(path: str) -> np.ndarray:
    """Labels of the training split, without decoding a picture."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(path)
    source = Encoded(builder.name, "train", builder.as_data_source).source
    return np.array([int(row["label"]) for row in source], np.int32)

"""Sets that tensorflow-datasets prepared, by name, read without TensorFlow.

Read are the files of `DIR/NAME/[CONFIG/]VERSION/`, in the file format array_record; the
newest version is taken. The classes are the feature `label`, the pictures `image`.
Where no split is there to judge, one of five of `train` does, stratified, always the
same ones.
`python -m a2os2a_jax.data.prepare NAME --data_dir=DIR` makes such files.
"""

import functools
import json
import os
import re
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from a2os2a_jax.data import cache, catalogue, images, pipeline
from a2os2a_jax.files import expanded

TEST = ("test", "validation")  # the first there is judges, else a part of train
FORMAT = 2  # of the labels that are kept; higher when the same files give others
BEGINNING = 4096  # bytes of a file that a stamp looks at
AGAIN = "copy the set anew, or move it away and prepare it"
# What array_record says where a call of the system fails. Its errors are of one kind
# whatever is wrong, but this may be over in a moment.
SYSTEM = re.compile(r"\w+\(\) failed: ")


class Missing(ValueError):
    """A set that is not there."""


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
    resident_gib: float | None = None,
) -> pipeline.Dataset:
    """Pictures [size, size, C] with the split of the files.

    A set that takes `resident_gib` at most, as it is stored or, if its pictures are of
    many sizes, at `size`, is decoded once and lives on the devices, unless `area` asks
    for random parts; others are decoded as they are wanted.

    Args:
      name: as in the folder, with /CONFIG where there is one; "tfds:eurosat/rgb".
      size: None takes the stored one; another is made on the device for sets of one
        size, and from the whole picture, on the host, for those of many (224).
      classes: those of the set, nothing else.
      data_dir: the folder that holds NAME; None is $A2OS2A_DATA/tfds where it exists,
        else $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      validation: training examples held out, stratified, always the same ones. For
        sets that are streamed the labels are read once, and kept in
        $XDG_CACHE_HOME/a2os2a_jax (~/.cache).
      seed: of the random crops.
      corrupt: what a record does that cannot be read: "error", "skip". It leaves after
        parts are held out, so a picture that cannot be decoded moves no other example.
        A record that cannot be read at all has no class to be held out by, and may.
      area: least share of a picture that a random crop of training has (0.08); for
        sets of many sizes. None trains on the middle, as in evaluation.
      workers: processes that decode, for sets that are streamed; 0 uses threads.
      resident_gib: GiB that a set on the devices takes at most; None for 1.
    Raises:
      ValueError: a set that is not there (says where it looked and how it is made), is
        not one of labelled pictures, or does not fit the arguments; a file of it that
        is not whole, whatever `corrupt` is.
      images.Corrupt: a record cannot be read, and corrupt is "error".
      OSError: a file cannot be reached. Nothing is kept then: it may be there later.
    """
    images.check_corrupt(corrupt)
    builder = open_builder(name, data_dir)
    shape, names, count = features(name, builder.info.features)
    if classes not in (None, count):
        raise ValueError(f"data.classes: got {classes}, {name} has {count}")
    *exact, channels = shape
    exact = None if None in exact else tuple(exact)
    size = _size(name, size, exact)
    if area is not None and exact is not None:
        raise ValueError(f"data.area: got {area}, expected None: {name} has one size")
    target = images.Target(size, channels, count, exact, area)
    known = catalogue.KNOWN.get(name)
    splits = builder.info.splits
    judge = judge_of(name, splits)
    parts = ["train", judge] if judge else ["train"]
    total = sum(splits[part].num_examples for part in parts)
    height, width = exact or (size, size)
    small = total * height * width * channels <= images.resident_bytes(resident_gib)
    path = os.fspath(builder.data_dir)
    files = whole_files(builder, parts)
    state = cache.stamp(path, files)
    records = {part: Encoded(name, part, path) for part in parts}
    about = known.about if known else _about(builder)
    if judge is None:
        about += f"; it has no test split, so one of {images.SHARE} of train judges"
    common = dict(
        name=name,
        shape=(size, size, channels),
        classes=count,
        class_names=names,
        about=about,
        note=known.note if known else "",
        stored=exact,
        crop=images.CENTRE if exact is None else 1.0,
        stamp=stamp(path, files),
    )
    statistics = catalogue.statistics(name, channels)
    if small and area is None:
        arrays = _arrays(records, state, target, validation, corrupt)
        of_train = arrays["train"][0]
        mean, std = statistics or images.statistics(of_train)
        decode = images.normaliser(mean, std, size)
        made = {
            key: pipeline.resident_split(*xy, decode=decode)
            for key, xy in arrays.items()
        }
        return pipeline.Dataset(mean=mean, std=std, **made, **common)
    mean, std = statistics or catalogue.usual_statistics(channels)
    normalise = images.normaliser(mean, std, size)
    how = dict(corrupt=corrupt, seed=seed, workers=workers)
    made = {
        key: images.streamed(
            view, target, normalise, what=f"{name} {key}", train=key == "train", **how
        )
        for key, view in _views(records, state, validation, corrupt).items()
    }
    return pipeline.Dataset(mean=mean, std=std, **made, **common)


@dataclass
class Encoded:
    """Records of a split as they are stored, in the folder `path` of a set.

    Files are opened where and when first asked: other processes get the path.
    """

    set: str
    split: str
    path: str

    @functools.cached_property
    def source(self):
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(self.path)
        return builder.as_data_source(split=self.split, decoders=_skip())

    def __getstate__(self) -> dict[str, str]:
        return {key: value for key, value in vars(self).items() if key != "source"}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> images.Record:
        """A record; OSError, naming it, for a file that cannot be reached."""
        source = self.source
        try:
            row = source[index]
        except MemoryError:
            raise
        except Exception as error:  # whatever the reader raises for a broken file
            text = _one_line(error)
            if isinstance(error, OSError) or SYSTEM.search(text):
                raise OSError(f"{self.name(index)}: {text}") from error
            raise images.Corrupt(f"cannot be read: {text}") from error
        if row["label"] is None:
            raise images.Corrupt("cannot be read: has no label")
        return images.Record(row["image"], int(row["label"]))

    def name(self, index: int) -> str:
        return f"record {index} of {self.set} {self.split}"


def _skip():
    import tensorflow_datasets as tfds

    return {"image": tfds.decode.SkipDecoding()}


def folder(data_dir: str | None) -> Path:
    """Where sets are looked for."""
    if data_dir is not None:
        return expanded(data_dir)
    ours = os.environ.get("A2OS2A_DATA")
    if ours and (Path(ours) / "tfds").is_dir():
        return Path(ours) / "tfds"
    theirs = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    return Path(os.path.expanduser(theirs))  # nothing is there without a home


def open_builder(name: str, data_dir: str | None):
    """The tensorflow-datasets builder of the newest version of a set on disk.

    Raises:
      Missing: nothing is there.
      ValueError: it is there in a file format that needs TensorFlow, or only with
        configs, of which the name lacks one; or what describes it is broken.
    """
    root = folder(data_dir)
    versions = [
        path.parent
        for path in (root / name).glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    if not versions:
        if configs := _configs(root, name):
            raise ValueError(
                f"data.name: got {name}, which has configs, expected one that is in "
                f"{root}: {', '.join(configs)}"
            )
        advice = f"make it: python -m a2os2a_jax.data.prepare {name} --data_dir={root}"
        if name in catalogue.CUTS:
            advice = "it is a cut, which nothing here makes: copy it there"
        raise Missing(
            f"data.name: found no {name} in {root} (data.data_dir, else $A2OS2A_DATA/"
            f"tfds, $TFDS_DATA_DIR); {advice}"
        )
    newest = max(versions, key=lambda p: tuple(map(int, p.name.split("."))))
    stored = _description(newest / "dataset_info.json")
    if (got := stored.get("fileFormat", "tfrecord")) != "array_record":
        raise ValueError(
            f"{newest}: is there in another format, {got}; expected array_record, "
            f"which needs no TensorFlow: move it away and run python -m "
            f"a2os2a_jax.data.prepare {name} --data_dir={root}"
        )
    _description(newest / "features.json")
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(newest)
    except OSError:
        raise
    except Exception as error:  # whatever it raises for fields that are missing
        raise ValueError(
            f"{newest}: tensorflow-datasets cannot open it, {_one_line(error)}; {AGAIN}"
        ) from error


def _description(path: Path) -> dict:
    """The JSON object in a file; ValueError, naming the file, for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: got no JSON, {error}; {AGAIN}") from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{path}: got a {type(found).__name__}, expected a JSON object; {AGAIN}"
        )
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def whole_files(builder, splits: Sequence[str]) -> list[Path]:
    """The files of splits, each of which has as many records as it should.

    Raises:
      ValueError, OSError: as `file_errors`, for the first, with the number of others.
    """
    found = [error for split in splits for error in file_errors(builder, split)]
    if found:
        more = f"; {len(found) - 1:,} others are broken, too" if found[1:] else ""
        raise type(found[0])(f"{found[0]}{more}")
    return [Path(path) for split in splits for path in _shards(builder, split)]


def stamp(home: str | Path, files: Sequence[Path]) -> str:
    """A `Dataset.stamp` of files below `home`, also of how each of them begins.

    Files of array_record are filled up to 64 KiB, so that their sizes say little.
    """
    value = 0
    for path in files:
        with open(path, "rb") as file:
            value = zlib.crc32(file.read(BEGINNING), value)
    return f"{cache.stamp(home, files, times=False)}, {value:08x}"


def file_errors(builder, split: str) -> list[ValueError | OSError]:
    """One error for each file of a split that is not whole; OSError: not reached.

    The end of a file says where its records are, so this reads little, and a file that
    is cut is not taken for thousands of broken records.
    """
    shards = _shards(builder, split)
    with ThreadPoolExecutor(images.THREADS) as pool:
        return list(filter(None, pool.map(_file_error, shards, shards.values())))


def _shards(builder, split: str) -> dict[str, int]:
    """{path of a file: number of its records} by dataset_info.json."""
    info = builder.info.splits[split]
    return dict(zip(map(os.fspath, info.filepaths), info.shard_lengths, strict=True))


def _file_error(path: str, count: int) -> ValueError | OSError | None:
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(path)
    got = reader.num_records()
    try:
        reader.close()  # which raises what was wrong from the start
    except RuntimeError as error:
        text = _one_line(error)
        if SYSTEM.search(text):
            return OSError(f"{path}: {text}")
        size = os.path.getsize(path)
        return ValueError(
            f"{path}: got {size:,} bytes that are no whole array_record file, expected "
            f"{count:,} records; it is cut or damaged: {AGAIN} ({text})"
        )
    if got != count:
        return ValueError(
            f"{path}: got {got:,} records, expected {count:,} by dataset_info.json; "
            f"{AGAIN}"
        )
    return None


def _configs(root: Path, name: str) -> list[str]:
    """Names, with their configs, under which a set is there."""
    found = (path.parents[1] for path in (root / name).glob("*/*/dataset_info.json"))
    return sorted({f"{name}/{folder.name}" for folder in found})


def features(name: str, features) -> tuple[tuple, tuple[str, ...], int]:
    """(shape of a picture, class names, number of classes).

    Raises:
      ValueError: there is no picture, or no class, or classes lack names; or pictures
        are neither grey nor coloured, or have other numbers than bytes.
    """
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
    if len(label.names) != classes:
        raise ValueError(
            f"{name}: got {len(label.names)} names in label.labels.txt, expected "
            f"{classes}; {AGAIN}"
        )
    *sides, channels = image.shape
    channels = 3 if channels is None else channels
    images.check_channels(name, channels)
    if (dtype := np.dtype(image.np_dtype)) != np.uint8:
        raise ValueError(f"{name}: got pictures of {dtype}, expected uint8")
    return (*sides, channels), tuple(label.names), classes


def judge_of(name: str, splits) -> str | None:
    """The split that judges; None where a part of the training split has to."""
    known = catalogue.KNOWN.get(name)
    wanted = (known.judge,) if known and known.judge else TEST
    judge = next((split for split in wanted if split in splits), None)
    needed = ["train", *(wanted if known and known.judge else ())]
    if missing := [split for split in needed if split not in splits]:
        raise ValueError(
            f"{name}: got the splits {', '.join(splits)}, expected {missing[0]}, too"
        )
    return judge


def _size(name: str, size: int | None, exact: Sequence[int] | None) -> int:
    if size is not None:
        pipeline.check_at_least(1, name, size=size)
        return size
    if exact is None or exact[0] != exact[1]:
        got = "of many sizes" if exact is None else "x".join(map(str, exact))
        raise ValueError(f"data.size: got None, pictures of {name} are {got}")
    return exact[0]


def _about(builder) -> str:
    text = " ".join((builder.info.description or builder.name).split()).rstrip(".")
    return text if len(text) <= 70 else f"{text[:67]}..."


def _parts(name: str, labels, validation: int, judged: bool) -> dict[str, np.ndarray]:
    """{part: indices into the training split}; a test part unless a split judges."""
    train, parts = np.arange(len(labels)), {}
    if not judged:
        train, parts["test"] = images.hold_out(labels, name)
    kept, held = pipeline.stratified(labels[train], validation)
    parts["train"] = train[kept]
    if validation:
        parts["validation"] = train[held]
    return parts


def _arrays(
    records: dict[str, Encoded],
    state: str,
    target: images.Target,
    validation: int,
    corrupt: str,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{part: (images, labels)} of all that can be read, decoded."""
    train, *tests = records.values()
    of_train = _decoded(train.set, train.path, train.split, state, target, corrupt)
    parts = _parts(train.set, of_train[1], validation, bool(tests))
    chosen = {key: (of_train, index) for key, index in parts.items()}
    for test in tests:
        of_test = _decoded(test.set, test.path, test.split, state, target, corrupt)
        chosen["test"] = of_test, np.arange(len(of_test[0]))
    arrays = {}
    for key, ((x, y, readable), index) in chosen.items():
        index = index[readable[index]]
        if not len(index):
            raise ValueError(f"{train.set}: got no readable {key} example")
        # what is whole is not copied
        arrays[key] = (x, y) if len(index) == len(x) else (x[index], y[index])
    return arrays


def _views(
    records: dict[str, Encoded], state: str, validation: int, corrupt: str
) -> dict[str, images.Records]:
    """{part: records}, by the labels where a part is held out."""
    train, *tests = records.values()
    views: dict[str, images.Records] = {"train": train}
    if validation or not tests:
        labels = _labels(train.set, train.path, train.split, state, corrupt)
        parts = _parts(train.set, labels, validation, bool(tests))
        views = {key: images.View(train, index) for key, index in parts.items()}
    for test in tests:
        views["test"] = test
    return views


@functools.lru_cache(maxsize=4)
def _decoded(
    set_: str,
    path: str,
    split: str,
    state: str,
    target: images.Target,
    corrupt: str,
):
    """`images.decode` of a split, once in a process for a state of its files."""
    records = Encoded(set_, split, path)
    found = images.decode(records, target, what=f"{set_} {split}", corrupt=corrupt)
    for array in found:
        array.setflags(write=False)  # callers share them
    return found


@functools.lru_cache(maxsize=4)
def _labels(set_: str, path: str, split: str, state: str, corrupt: str) -> np.ndarray:
    """Labels int64 [N] of a split, without decoding a picture; -1 for the unreadable.

    All files have to be read for them, so they are kept, and why a record cannot be
    read with them.
    """
    records = Encoded(set_, split, path)
    skipped = images.Skipped(f"{set_} {split}", corrupt)
    key = {"format": FORMAT, "set": set_, "split": split, "files": state}

    def unreadable(index: int, why: str, again: str = "") -> None:
        skipped.note(index, images.Corrupt(f"{records.name(index)}: {why}{again}"))

    def make(new: cache.New) -> None:
        shape, reasons = (len(records),), {}
        labels = new("labels", shape, np.int64)

        def some(indices: np.ndarray) -> None:
            for i in map(int, indices):
                try:
                    labels[i] = records[i].label
                except images.Corrupt as error:
                    labels[i], reasons[i] = -1, str(error)
                    if corrupt == "error":
                        unreadable(i, reasons[i])

        parts = np.array_split(np.arange(*shape), max(1, len(records) // 1000))
        with ThreadPoolExecutor(images.THREADS) as pool:
            list(pool.map(some, parts))
        cache.keep_json(new, "reasons", reasons)

    say = f"{set_} {split}: reading {len(records):,} labels"
    folders = [cache.user_folder(set_, path, f"labels-{split}")]
    arrays, folder = cache.cached(folders, key, make, say=say) or (None, None)
    if arrays is None:
        print(f"{say}, which can be kept nowhere", file=sys.stderr)
        arrays = cache.in_memory(make)
    again = f"; to read it again delete {folder}" if folder else ""
    reasons = {int(i): why for i, why in cache.kept_json(arrays, "reasons").items()}
    for i in sorted(reasons):
        unreadable(i, reasons[i], again)
    return arrays["labels"]

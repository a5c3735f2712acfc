"""Recordings of event cameras, as frames that count events.

    cifar10_dvs      DIR/cifar10_dvs/CLASS/*.aedat                        128x128
    dvs128_gesture   DIR/dvs128_gesture/{user*.aedat, user*_labels.csv,
                     trials_to_train.txt, trials_to_test.txt}             128x128
    nmnist           DIR/nmnist/{Train, Test}/DIGIT/*.bin                   34x34
    ncaltech101      DIR/ncaltech101/CLASS/*.bin                          180x240
    nmnist_sample    what tensorflow-datasets reads, a cut of N-MNIST       34x34

Capitals, "-" and "_" in names of folders do not matter, and a folder inside in which
everything lies is found (DIR/dvs128_gesture/DvsGesture/...).

Splits: N-MNIST and DVS128 Gesture have their own (of the latter, people 24 to 29 are
test ones, and validation holds out whole people, too). CIFAR10-DVS and N-Caltech101
have none: here one of ten of each class, `pipeline.stratified`, always the same ones
for the same files, judges. Literature takes other tenths.

Frames are made once and kept on disk; values are counts, as float32, with no
normalisation.
"""

import csv
import functools
import json
import os
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from a2os2a_jax.data import cache, catalogue, formats, images, pipeline
from a2os2a_jax.data import frames as framing
from a2os2a_jax.data.sources import tfds

FORMAT = 2  # of the frames that are kept; higher when the same files give others
TENTH = 10  # where there is no split, one of so many examples of a class is a test one
NAMED = 5  # unreadable recordings that a message names

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
GESTURES = (  # in the order of their numbers, from 1
    "hand_clapping right_hand_wave left_hand_wave right_arm_clockwise "
    "right_arm_counter_clockwise left_arm_clockwise left_arm_counter_clockwise "
    "arm_roll air_drums air_guitar other_gestures"
)


class Listing(NamedTuple):
    """Examples that a set has, not yet read.

    read: index -> events; ValueError for content that cannot be read, not naming the
      example; OSError for a file that cannot be reached.
    names: of the examples, for messages.
    labels: int32 [N].
    test: sorted indices of the test examples.
    files: all that was looked at; frames are made again if one of them changes.
    people: whom each example shows, where validation shall have other people.
    """

    read: Callable[[int], formats.Events]
    names: Sequence[str]
    labels: np.ndarray
    test: np.ndarray
    class_names: tuple[str, ...]
    files: Sequence[Path] = ()
    people: np.ndarray | None = None


class Made(NamedTuple):
    """What became of a listing.

    frames: [N, T, H, W, 2], zeros where there is a reason.
    reasons: why examples cannot be read, by index.
    folder: where the frames are kept; None for in memory.
    """

    frames: np.ndarray
    reasons: dict[int, str]
    folder: Path | None = None


class Kind(NamedTuple):
    """A set: its sensor (H, W), classes, folder names, and how it is listed."""

    sensor: tuple[int, int]
    classes: int
    folders: tuple[str, ...]
    listing: Callable[[Path], Listing]


def load(
    name: str,
    *,
    size: int | None = None,
    classes: int | None = None,
    data_dir: str | None = None,
    validation: int = 0,
    timesteps: int = 10,
    slice_by: str = "count",
    fit: str = "pad",
    corrupt: str = "error",
    resident_gib: float | None = None,
    verify: bool = False,
) -> pipeline.Dataset:
    """Frames [timesteps, size, size, 2], channel 0 darker, 1 brighter.

    A set whose frames take `resident_gib` at most, as they are kept, lives on the
    devices; of others the examples of a batch are sent.

    Args:
      name: of the table above.
      size: pixels; None takes the longer side of the sensor. The stem needs a multiple
        of its stride, so 36 or 48 for N-MNIST.
      classes: those of the set, nothing else.
      data_dir: the folder DIR; None is $A2OS2A_DATA/events, and for nmnist_sample as in
        `tfds.load`. Frames are kept in DIR/NAME/.frames-*, or where that cannot be
        written in $XDG_CACHE_HOME/a2os2a_jax (~/.cache).
      validation: training examples held out, stratified, always the same ones. Of
        DVS128 Gesture as many people as it takes to have so many examples or a few
        more, since the test is on people not seen before.
      timesteps: slices of a recording.
      slice_by: "count" for slices of as many events, "time" for slices as long; see
        `frames.to_frames`.
      fit: how frames get to `size`: "pad", "resize", "crop"; see `frames.fit`.
      corrupt: what a recording does that is cut, empty, or has events outside the
        sensor: "error", or "skip" it, the whole of it; how many, and what is wrong
        with the first five, is printed.
      resident_gib: GiB; None for 1.
      verify: compare the checksums of frames that are kept, not only their sizes; those
        that changed are made again.
    Raises:
      ValueError: nothing is there (says where it looked and how it is made), files are
        not those of the set, or arguments do not fit.
      images.Corrupt: what is in a recording cannot be read, and corrupt is "error".
      OSError: a file cannot be reached. Nothing is kept then: it may be there later.
    """
    if name not in KINDS:
        raise ValueError(f"data.name: got {name!r}, expected {', '.join(KINDS)}")
    kind = KINDS[name]
    images.check_corrupt(corrupt)
    pipeline.check_at_least(1, name, timesteps=timesteps)
    if classes not in (None, kind.classes):
        raise ValueError(f"data.classes: got {classes}, {name} has {kind.classes}")
    if slice_by not in framing.SLICES:
        raise ValueError(f"data.slice_by: got {slice_by!r}, expected count or time")
    size = max(kind.sensor) if size is None else size
    framing.check_fit(kind.sensor, size, fit)
    resident_bytes = images.resident_bytes(resident_gib)
    if name == "nmnist_sample":
        path = os.fspath(tfds.open_builder(name, data_dir).data_dir)
        listing, made = _sample(path, timesteps, slice_by, corrupt)
    else:
        home = _home(name, kind, data_dir)
        listing = kind.listing(home)
        fill = functools.partial(
            _fill, listing, kind.sensor, timesteps, slice_by, corrupt
        )
        key = _key(name, home, listing, kind.sensor, timesteps, slice_by)
        made = _kept(home, key, len(listing.labels), fill, resident_bytes, verify)
    _report(name, listing, made, corrupt)
    frames, labels = made.frames, listing.labels
    train = np.setdiff1d(np.arange(len(labels)), listing.test)
    if listing.people is None:
        kept, held = pipeline.stratified(labels[train], validation)
    else:
        kept, held = _whole_people(listing.people[train], validation)
    parts = {"train": train[kept], "test": listing.test, "validation": train[held]}
    # Whoever is skipped leaves after the split is made: it moves no other example.
    bad = np.array(sorted(made.reasons), np.int64)
    parts = {key: np.setdiff1d(index, bad) for key, index in parts.items()}
    for part in ("train", "test", *(["validation"] if validation else [])):
        if not len(parts[part]):
            raise ValueError(f"{name}: got no readable {part} recording")

    def decode(x: jax.Array) -> jax.Array:
        return framing.fit(x.astype(jnp.float32), size, fit)

    def split(index: np.ndarray) -> pipeline.Split:
        if frames.nbytes > resident_bytes:
            return pipeline.host_split(frames, labels, index, decode=decode)
        x = np.asarray(frames[index])
        return pipeline.resident_split(x, labels[index], decode=decode)

    return pipeline.Dataset(
        name=name,
        shape=(timesteps, size, size, 2),
        classes=kind.classes,
        train=split(parts["train"]),
        test=split(parts["test"]),
        validation=split(parts["validation"]) if validation else None,
        class_names=listing.class_names,
        about=catalogue.KNOWN[name].about,
    )


def _whole_people(people: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Holds out people, in an order that never changes, until `count` examples are.

    Returns (kept, held out): sorted indices into `people`, the person of each example.
    ValueError where that leaves nobody to learn from.
    """
    names, who = np.unique(people, return_inverse=True)
    order = np.random.RandomState(pipeline.SPLIT_SEED).permutation(len(names))
    total = np.concatenate([[0], np.cumsum(np.bincount(who)[order])])
    if not 0 <= count <= (most := total[-2]):
        raise ValueError(
            f"hold out: got {count} examples, expected 0 to {most}, those of all "
            "people but one"
        )
    held = np.isin(who, order[: np.searchsorted(total, count)])
    return np.flatnonzero(~held), np.flatnonzero(held)


# Frames: made, kept, reported.


def _fill(
    listing: Listing,
    sensor: tuple[int, int],
    timesteps: int,
    by: str,
    corrupt: str,
    new: cache.New,
) -> None:
    """Makes "frames" [N, T, H, W, 2], uint8 where that is enough, and "reasons".

    Raises:
      images.Corrupt: as of `load`.
      OSError: names the example. Whatever is kept as unreadable is so for good, and
        this may be over in a moment.
    """
    reasons: dict[int, str] = {}
    shape = (len(listing.labels), timesteps, *sensor, 2)
    frames = new("frames", shape, np.uint8)
    for i, name in enumerate(listing.names):
        try:
            made = framing.to_frames(
                listing.read(i), timesteps=timesteps, sensor=sensor, by=by
            )
        except OSError as error:
            raise OSError(f"{name}: {error}; no frames are kept, try again") from error
        except ValueError as error:
            if corrupt == "error":
                raise images.Corrupt(
                    f"{name}: {error}; data.corrupt=skip leaves it out"
                ) from None
            reasons[i] = str(error)
            continue
        if frames.dtype == np.uint8 and made.max() > 255:
            narrow, frames = frames, new("frames", shape, np.uint16)
            for row in range(i):
                frames[row] = narrow[row]
        frames[i] = made
    text = np.frombuffer(json.dumps(reasons).encode(), np.uint8)
    new("reasons", text.shape, np.uint8)[:] = text


def _made(arrays: cache.Arrays, folder: Path | None = None) -> Made:
    """What `_fill` has filled."""
    reasons = json.loads(arrays["reasons"].tobytes())
    return Made(arrays["frames"], {int(i): why for i, why in reasons.items()}, folder)


def _key(
    name: str,
    home: Path,
    listing: Listing,
    sensor: tuple[int, int],
    timesteps: int,
    by: str,
) -> dict:
    """All that frames depend on."""
    return {
        "format": FORMAT,
        "set": name,
        "timesteps": timesteps,
        "slice_by": by,
        "sensor": list(sensor),
        "files": _stamp(home, listing.files),
    }


def _kept(
    home: Path,
    key: dict,
    count: int,
    fill: Callable[[cache.New], None],
    memory_bytes: float,
    verify: bool,
) -> Made:
    """Frames from the cache, `count` of them; made where they are not there."""
    name, sensor, timesteps = key["set"], key["sensor"], key["timesteps"]
    what = f"frames-{timesteps}-{key['slice_by']}"
    user = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    place = f"{name}-{zlib.crc32(os.fsencode(home.resolve())):08x}"
    folders = home / f".{what}", user / "a2os2a_jax" / place / what
    for folder in folders:
        if (arrays := cache.load(folder, key, verify=verify)) is not None:
            return _made(arrays, folder)
    for folder in folders:
        if cache.writable(folder):
            print(
                f"{name}: making frames of {count} examples, {folder}", file=sys.stderr
            )
            return _made(cache.cached(folder, key, fill, verify=verify), folder)
    if count * timesteps * sensor[0] * sensor[1] * 2 <= memory_bytes:
        return _made(cache.in_memory(fill))
    raise ValueError(
        f"{name}: can write its frames to neither {folders[0]} nor {folders[1]}, "
        "expected one of them; set XDG_CACHE_HOME"
    )


def _stamp(home: Path, files: Sequence[Path]) -> str:
    """Changes when a file comes, goes, or is written anew."""
    value = 0
    for path in files:
        state = path.stat()
        line = f"{path.relative_to(home)}\0{state.st_size}\0{state.st_mtime_ns}\n"
        value = zlib.crc32(os.fsencode(line), value)
    return f"{len(files)} files, {value:08x}"


def _report(name: str, listing: Listing, made: Made, corrupt: str) -> None:
    """Says what was skipped, also if that was when the frames were made, long ago."""
    if not made.reasons:
        return
    bad = sorted(made.reasons)
    first = [f"{listing.names[i]}: {made.reasons[i]}" for i in bad[:NAMED]]
    count = f"{len(bad):,} of {len(listing.names):,} recordings cannot be read"
    if corrupt == "error":
        again = f"; to read them again delete {made.folder}" if made.folder else ""
        raise images.Corrupt(
            f"{name}: {count}, the first: {first[0]}; data.corrupt=skip leaves them "
            f"out{again}"
        )
    for line in first:
        print(f"{name}: left out {line}", file=sys.stderr)
    print(f"{name}: {count}; skipped", file=sys.stderr)


# Where the sets are, and what is in them.


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".")


def _child(root: Path, name: str) -> Path | None:
    """The subfolder of this name, whatever its capitals."""
    return next((p for p in _folders(root) if _plain(p.name) == _plain(name)), None)


def _home(name: str, kind: Kind, data_dir: str | None) -> Path:
    """The folder of the set, or ValueError saying how it gets there."""
    if data_dir is None and os.environ.get("A2OS2A_DATA"):
        data_dir = os.path.join(os.environ["A2OS2A_DATA"], "events")
    root = Path(data_dir).expanduser() if data_dir is not None else None
    for folder in kind.folders if root is not None else ():
        if (home := _child(root, folder)) is not None:
            return home
    where = f"in {root}" if root is not None else "as data.data_dir is unset"
    raise ValueError(
        f"data.name: found no folder {kind.folders[0]} {where}; make it: python -m "
        f"a2os2a_jax.data.prepare {name} --data_dir={root or 'DIR'}"
    )


def _inside(home: Path, there: Callable[[Path], bool], expected: str) -> Path:
    """`home`, or the only folder in it, whichever has what is expected."""
    inner = _folders(home)
    for folder in (home, *(inner if len(inner) == 1 else ())):
        if there(folder):
            return folder
    found = ", ".join(sorted(p.name for p in home.iterdir())[:5]) or "nothing"
    raise ValueError(f"{home}: got {found}, expected {expected}")


def _by_class(folders: Sequence[Path], suffix: str) -> tuple[list[Path], list[int]]:
    """(files, labels) of a folder for each class; ValueError for an empty one."""
    paths, labels = [], []
    for label, folder in enumerate(folders):
        found = sorted(p for p in folder.rglob(f"*{suffix}") if p.is_file())
        if not found:
            raise ValueError(f"{folder}: found no recording, expected *{suffix}")
        paths += found
        labels += [label] * len(found)
    return paths, labels


def _tenth(labels: np.ndarray) -> np.ndarray:
    if len(labels) < TENTH:
        raise ValueError(
            f"got {len(labels)} recordings, expected at least {TENTH}, of which one is "
            "for testing"
        )
    return pipeline.stratified(labels, len(labels) // TENTH)[1]


def _recording(path: Path) -> formats.Events:
    """As `formats.read`, but its ValueErrors leave the naming to the caller."""
    try:
        return formats.read(path)
    except ValueError as error:
        raise ValueError(str(error).removeprefix(f"{path}: ")) from error


def _files(paths, labels, test, class_names, upright=lambda events: events) -> Listing:
    """A listing in which every file is an example."""
    return Listing(
        read=lambda i: upright(_recording(paths[i])),
        names=[str(p) for p in paths],
        labels=np.asarray(labels, np.int32),
        test=np.asarray(test, np.int64),
        class_names=tuple(class_names),
        files=paths,
    )


def _cifar10_dvs(home: Path) -> Listing:
    names = CIFAR10.split()

    def there(folder: Path) -> bool:
        return all(_child(folder, name) for name in names)

    root = _inside(home, there, f"a folder for each of {', '.join(names)}")
    paths, labels = _by_class([_child(root, name) for name in names], ".aedat")

    def upright(events: formats.Events) -> formats.Events:
        # As the chip has them the pictures lie on their side. This gives what
        # SpikingJelly and tonic give, row = 127 - raw x and column = 127 - raw y, so
        # that shifts and flips of published recipes mean the same here.
        return events._replace(x=events.y, y=events.x)

    return _files(paths, labels, _tenth(np.array(labels)), names, upright)


def _ncaltech101(home: Path) -> Listing:
    count = KINDS["ncaltech101"].classes

    def there(folder: Path) -> bool:
        return len(_folders(folder)) == count

    root = _inside(home, there, f"{count} folders, one for each class")
    paths, labels = _by_class(_folders(root), ".bin")
    names = [p.name for p in _folders(root)]
    return _files(paths, labels, _tenth(np.array(labels)), names)


def _nmnist(home: Path) -> Listing:
    def there(folder: Path) -> bool:
        return all(_child(folder, part) for part in ("train", "test"))

    root = _inside(home, there, "folders Train and Test")
    digits = "0123456789"
    paths, labels, sizes = [], [], []
    for part in ("train", "test"):
        folder = _child(root, part)
        if missing := [d for d in digits if not (folder / d).is_dir()]:
            raise ValueError(
                f"{folder}: lacks {missing}, expected a folder for a digit"
            )
        found, of = _by_class([folder / d for d in digits], ".bin")
        paths, labels, sizes = paths + found, labels + of, [*sizes, len(found)]
    return _files(paths, labels, np.arange(sizes[0], sum(sizes)), digits)


def _dvs128_gesture(home: Path) -> Listing:
    lists = {"train": "trials_to_train.txt", "test": "trials_to_test.txt"}

    def there(folder: Path) -> bool:
        return all((folder / name).is_file() for name in lists.values())

    root = _inside(home, there, f"{lists['train']} and {lists['test']}")
    trials = {
        part: [n for n in (root / name).read_text("utf-8").split() if n]
        for part, name in lists.items()
    }
    if both := sorted(set(trials["train"]) & set(trials["test"])):
        raise ValueError(f"{root}: got {both[0]} for training and for testing")
    paths, spans, labels, test = [], [], [], []
    files = [root / name for name in lists.values()]
    for part, listed in trials.items():
        if not listed:
            raise ValueError(f"{root / lists[part]}: got no recording, expected some")
        for name in listed:
            path = root / name
            table = path.with_name(f"{path.stem}_labels.csv")
            for file in (path, table):
                if not file.is_file():
                    raise ValueError(f"{root / lists[part]}: found no {file.name} here")
            files += [path, table]
            for label, start, end in _intervals(table):
                if part == "test":
                    test.append(len(labels))
                paths.append(path)
                spans.append((start, end))
                labels.append(label)
    recent = functools.lru_cache(maxsize=1)(_recording)

    def read(i: int) -> formats.Events:
        events = recent(paths[i])  # the examples of a file follow each other
        # in order of time, so that an interval is a piece; its end is not in it
        first, last = np.searchsorted(events.t, spans[i])
        return formats.Events(*(column[first:last] for column in events))

    return Listing(
        read=read,
        names=[f"{p} {a}-{b} us" for p, (a, b) in zip(paths, spans, strict=True)],
        labels=np.asarray(labels, np.int32),
        test=np.asarray(test, np.int64),
        class_names=tuple(GESTURES.split()),
        files=files,
        people=np.array([p.stem.partition("_")[0].lower() for p in paths]),
    )


def _intervals(table: Path) -> list[tuple[int, int, int]]:
    """(label from 0, start, end in microseconds) of each gesture of a recording."""
    columns = ["class", "startTime_usec", "endTime_usec"]
    with open(table, newline="", encoding="utf-8-sig") as file:
        lines = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    if not lines or lines[0] != columns:
        got = ",".join(lines[0]) if lines else "nothing"
        raise ValueError(f"{table}: got {got!r}, expected {','.join(columns)}")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        try:
            gesture, start, end = map(int, line)
        except ValueError:
            raise ValueError(
                f"{table}: got {','.join(line)!r} in row {number}, expected three "
                "whole numbers"
            ) from None
        if not 1 <= gesture <= len(GESTURES.split()) or not start < end:
            raise ValueError(
                f"{table}: got class {gesture} from {start} to {end} in row {number}, "
                "expected 1 to 11, and a start before the end"
            )
        rows.append((gesture - 1, start, end))
    if not rows:
        raise ValueError(f"{table}: got no gesture, expected some")
    return rows


@functools.lru_cache(maxsize=4)
def _sample(path: str, timesteps: int, by: str, corrupt: str) -> tuple[Listing, Made]:
    """Frames of all examples, decoded once in a process: they are few and small."""
    import tensorflow_datasets

    builder = tensorflow_datasets.builder_from_directory(path)
    rows = []
    for part in ("train", "test"):
        rows += list(builder.as_data_source(split=part))
    trained = builder.info.splits["train"].num_examples
    listing = Listing(
        read=lambda i: formats.make(*(rows[i][name] for name in "txyp")),
        names=[f"{path} recording {row['id']}" for row in rows],
        labels=np.array([row["label"] for row in rows], np.int32),
        test=np.arange(trained, len(rows)),
        class_names=tuple("0123456789"),
    )
    sensor = KINDS["nmnist_sample"].sensor
    fill = functools.partial(_fill, listing, sensor, timesteps, by, corrupt)
    made = _made(cache.in_memory(fill))
    return listing._replace(read=None), made  # which lets go of the events


KINDS = {
    "cifar10_dvs": Kind((128, 128), 10, ("cifar10_dvs",), _cifar10_dvs),
    "dvs128_gesture": Kind(
        (128, 128), 11, ("dvs128_gesture", "dvs_gesture"), _dvs128_gesture
    ),
    "nmnist": Kind((34, 34), 10, ("nmnist",), _nmnist),
    "ncaltech101": Kind((180, 240), 101, ("ncaltech101", "caltech101"), _ncaltech101),
    "nmnist_sample": Kind((34, 34), 10, (), None),
}

"""What recordings of event cameras there are: where they lie, and who judges.

    cifar10_dvs      DIR/cifar10_dvs/CLASS/*.aedat                        128x128
    dvs128_gesture   DIR/dvs128_gesture/{user*.aedat, user*_labels.csv,
                     trials_to_train.txt, trials_to_test.txt}             128x128
    nmnist           DIR/nmnist/{Train, Test}/DIGIT/*.bin                   34x34
    ncaltech101      DIR/ncaltech101/CLASS/*.bin                          180x240
    nmnist_sample    what tensorflow-datasets reads, a cut of N-MNIST       34x34

Capitals, "-" and "_" in names of folders do not matter, and a folder inside in which
everything lies is found (DIR/dvs128_gesture/DvsGesture/...).

Splits: N-MNIST and DVS128 Gesture have their own (of the latter, people 24 to 29 are
test ones). CIFAR10-DVS and N-Caltech101 have none: here one of ten of each class,
`pipeline.stratified`, always the same ones for the same files, judges. Literature takes
other tenths.
"""

import csv
import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from a2os2a_jax.data import formats, pipeline

TENTH = 10  # where there is no split, one of so many examples of a class is a test one
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


class Kind(NamedTuple):
    """A set: its sensor (H, W), classes, folder names, and how it is listed.

    `listing` is given the folder of the set; ValueError where files are not those of
    the set. None for one that tensorflow-datasets reads.
    """

    sensor: tuple[int, int]
    classes: int
    folders: tuple[str, ...]
    listing: Callable[[Path], Listing] | None


def home(name: str, data_dir: str | None) -> Path:
    """The folder of the set, or ValueError saying how it gets there."""
    kind = KINDS[name]
    if data_dir is None and os.environ.get("A2OS2A_DATA"):
        data_dir = os.path.join(os.environ["A2OS2A_DATA"], "events")
    root = Path(data_dir).expanduser() if data_dir is not None else None
    for folder in kind.folders if root is not None else ():
        if (found := _child(root, folder)) is not None:
            return found
    where = f"in {root}" if root is not None else "as data.data_dir is unset"
    raise ValueError(
        f"data.name: found no folder {kind.folders[0]} {where}; make it: python -m "
        f"a2os2a_jax.data.prepare {name} --data_dir={root or 'DIR'}"
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and p.name[0] != ".")


def _child(root: Path, name: str) -> Path | None:
    """The subfolder of this name, whatever its capitals."""
    return next((p for p in _folders(root) if _plain(p.name) == _plain(name)), None)


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
        found = [p for p in pipeline.files_below(folder) if p.suffix == suffix]
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


KINDS = {
    "cifar10_dvs": Kind((128, 128), 10, ("cifar10_dvs",), _cifar10_dvs),
    "dvs128_gesture": Kind(
        (128, 128), 11, ("dvs128_gesture", "dvs_gesture"), _dvs128_gesture
    ),
    "nmnist": Kind((34, 34), 10, ("nmnist",), _nmnist),
    "ncaltech101": Kind((180, 240), 101, ("ncaltech101", "caltech101"), _ncaltech101),
    "nmnist_sample": Kind((34, 34), 10, (), None),
}

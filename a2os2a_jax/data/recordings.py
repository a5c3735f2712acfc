"""What recordings of event cameras there are: where they lie, and who judges.

    cifar10_dvs      DIR/cifar10_dvs/CLASS/*.aedat                        128x128
    dvs128_gesture   DIR/dvs128_gesture/{user*.aedat, user*_labels.csv,
                     trials_to_train.txt, trials_to_test.txt}             128x128
    nmnist           DIR/nmnist/{Train, Test}/DIGIT/*.bin                   34x34
    ncaltech101      DIR/ncaltech101/CLASS/*.bin                          180x240
    nmnist_sample    what tensorflow-datasets reads, a cut of N-MNIST       34x34

Capitals, "-" and "_" in names of folders do not matter, nor do capitals in those of
files; a folder inside in which everything lies is found (DIR/dvs128_gesture/DvsGesture/
...), and DIR may be the folder of the set itself.

So may the folder be SpikingJelly's, {download, extract, events_np, ...}: read are the
files of the authors in `extract`, and where these are gone, what SpikingJelly made of
them in `events_np`, which gives the same examples, split and frames:

    cifar10_dvs, ncaltech101    CLASS/*.npz
    nmnist                      {train, test}/DIGIT/*.npz
    dvs128_gesture              {train, test}/NUMBER/user*.npz, gestures from 0 on

Folders and files beside these are passed over, and counted: what is hidden (.DS_Store,
AppleDouble's ._*), __MACOSX, @eaDir, texts, logs. None is ever a class.

Splits: N-MNIST and DVS128 Gesture have their own (of the latter, people 24 to 29 are
test ones). CIFAR10-DVS and N-Caltech101 have none: here one of ten of each class,
`pipeline.stratified`, always the same ones for the same files, judges. Literature takes
other tenths.
"""

import csv
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from a2os2a_jax.data import formats, pipeline
from a2os2a_jax.data.formats import nmnist
from a2os2a_jax.files import expanded

TENTH = 10  # where there is no split, one of so many examples of a class is a test one
INSIDE = ("extract", "events_np")  # of SpikingJelly, the first that has it all
KEPT = ".frames-"  # how the folders start that frames are kept in
NAMED = 5  # of what is passed over that a message names
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
    root: the folder in which all of it was found.
    aside: what was passed over there, as it is no recording.
    lacks: what is not there and need not be, for messages.
    """

    read: Callable[[int], formats.Events]
    names: Sequence[str]
    labels: np.ndarray
    test: np.ndarray
    class_names: tuple[str, ...]
    files: Sequence[Path] = ()
    people: np.ndarray | None = None
    root: Path = Path()
    aside: Sequence[Path] = ()
    lacks: Sequence[str] = ()


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
    root = expanded(data_dir) if data_dir is not None else None
    for folder in kind.folders if root is not None else ():
        if (found := _child(root, folder)) is not None:
            return found
        if root.is_dir() and _plain(root.resolve().name) == _plain(folder):
            return root
    where = f"in {root}" if root is not None else "as data.data_dir is unset"
    raise ValueError(
        f"data.name: found no folder {kind.folders[0]} {where}; make it: python -m "
        f"a2os2a_jax.data.prepare {name} --data_dir={root or 'DIR'}"
    )


def listed(name: str, home: Path) -> Listing:
    """The listing of a set; what is passed over or lacking is printed."""
    listing = KINDS[name].listing(home)
    above = (p for p in listing.root.parents if p.is_relative_to(home))
    aside = [*(path for p in above for path in _litter(p)), *listing.aside]
    if aside:
        names = ", ".join(str(path.relative_to(home)) for path in aside[:NAMED])
        print(
            f"{name}: passed over {len(aside):,} files or folders that are no "
            f"recordings: {names}{', ...' if len(aside) > NAMED else ''}",
            file=sys.stderr,
        )
    for text in listing.lacks:
        print(f"{name}: {text}", file=sys.stderr)
    return listing


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and not _is_litter(p))


def _is_litter(path: Path) -> bool:
    """True for what is hidden, and for folders like __MACOSX, @eaDir, #recycle."""
    first = path.name[0]
    return first == "." or (not first.isalnum() and path.is_dir())


def _child(root: Path, name: str) -> Path | None:
    """The subfolder of this name, whatever its capitals."""
    return next((p for p in _folders(root) if _plain(p.name) == _plain(name)), None)


def _beside(root: Path, folders: Sequence[Path | None]) -> list[Path]:
    """What is in `root` beside these folders, and frames that are kept."""
    beside = (p for p in root.iterdir() if p not in folders)
    return sorted(p for p in beside if not p.name.startswith(KEPT))


def _litter(folder: Path) -> list[Path]:
    return [path for path in _beside(folder, []) if _is_litter(path)]


def _file(root: Path, name: str) -> Path | None:
    """The file of this path below `root`, whatever capitals its name has."""
    path = root / name
    if path.is_file() or not path.parent.is_dir():
        return path if path.is_file() else None
    same = (p for p in path.parent.iterdir() if p.name.lower() == path.name.lower())
    return next((p for p in sorted(same) if p.is_file()), None)


def _places(home: Path, depth: int = 3) -> Iterator[Path]:
    """`home`, then those inside where all of it may lie."""
    yield home
    inner = _folders(home)
    parts = [found for name in INSIDE if (found := _child(home, name)) is not None]
    if not parts and len(inner) == 1:
        parts = inner
    for folder in parts if depth else ():
        yield from _places(folder, depth - 1)


def _inside(home: Path, there: Callable[[Path], bool], expected: str) -> Path:
    """The first of the places that has what is expected."""
    for folder in _places(home):
        if there(folder):
            return folder
    found = ", ".join(sorted(p.name for p in home.iterdir())[:5]) or "nothing"
    raise ValueError(f"{home}: got {found}, expected {expected}")


class Found(NamedTuple):
    """Recordings of some classes: their files and labels, and what else was there."""

    paths: list[Path]
    labels: list[int]
    aside: list[Path]
    empty: list[int]  # classes that have none


def _by_class(
    root: Path, folders: Sequence[Path | None], suffixes: Sequence[str]
) -> Found:
    """What the folders of classes in `root` hold, in files of one of the suffixes.

    Of several kinds the first is taken: an example may lie there in each of them.
    """
    below = [_below(folder) if folder else ([], []) for folder in folders]
    kinds = {path.suffix.lower() for files, _ in below for path in files}
    suffix = next((s for s in suffixes if s in kinds), None)
    found = Found([], [], _beside(root, folders), [])
    for label, (files, litter) in enumerate(below):
        paths = [p for p in files if p.suffix.lower() == suffix]
        found.paths.extend(paths)
        found.labels.extend([label] * len(paths))
        found.aside.extend(litter + [p for p in files if p.suffix.lower() != suffix])
        if not paths:
            found.empty.append(label)
    return found


def _below(folder: Path) -> tuple[list[Path], list[Path]]:
    """(files, litter) below a folder, in the order of their paths; links are followed.

    A link that leads nowhere counts as a file, which cannot be reached.
    Raises:
      ValueError: a link to a folder that it lies in.
    """
    files, litter = [], []
    for path in sorted(folder.iterdir()):
        if _is_litter(path):
            litter.append(path)
        elif not path.is_dir():
            files.append(path)
        elif path.is_symlink() and folder.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"{path}: got a link to a folder that it lies in")
        else:
            inner = _below(path)
            files += inner[0]
            litter += inner[1]
    return files, litter


def _whole(root: Path, names: Sequence[str], suffixes: Sequence[str]) -> Found:
    """`_some`; ValueError for a class that is empty."""
    found = _some(root, names, suffixes)
    for label in found.empty:
        if (folder := _child(root, names[label])) is None:
            raise ValueError(f"{root}: lacks {names[label]}, expected a folder for it")
        raise _nothing(folder, suffixes)
    return found


def _some(root: Path, names: Sequence[str], suffixes: Sequence[str]) -> Found:
    """`_by_class` of folders with these names; ValueError if all are empty."""
    found = _by_class(root, [_child(root, name) for name in names], suffixes)
    if not found.paths:
        raise _nothing(root, suffixes)
    return found


def _nothing(folder: Path, suffixes: Sequence[str]) -> ValueError:
    expected = " or ".join(f"*{suffix}" for suffix in suffixes)
    return ValueError(f"{folder}: found no recording, expected {expected}")


def _tenth(labels: np.ndarray) -> np.ndarray:
    if len(labels) < TENTH:
        raise ValueError(
            f"got {len(labels)} recordings, expected at least {TENTH}, of which one is "
            "for testing"
        )
    return pipeline.stratified(labels, len(labels) // TENTH)[1]


Mend = Callable[[formats.Events], formats.Events]


def _as_is(events: formats.Events) -> formats.Events:
    return events


def _recording(path: Path, mend: Mend = _as_is) -> formats.Events:
    """As `formats.read`, but its ValueErrors leave the naming to the caller."""
    try:
        return formats.read(path, mend)
    except ValueError as error:
        raise ValueError(str(error).removeprefix(f"{path}: ")) from error


def _listing(
    root: Path, found: Found, test, class_names: Sequence[str], mend: dict[str, Mend]
) -> Listing:
    """A listing in which every file is an example, mended by its suffix."""
    paths = found.paths
    return Listing(
        read=lambda i: _recording(paths[i], mend.get(paths[i].suffix.lower(), _as_is)),
        names=[str(p) for p in paths],
        labels=np.asarray(found.labels, np.int32),
        test=np.asarray(test, np.int64),
        class_names=tuple(class_names),
        files=paths,
        root=root,
        aside=found.aside,
    )


def _cifar10_dvs(home: Path) -> Listing:
    names = CIFAR10.split()

    def there(folder: Path) -> bool:
        return all(_child(folder, name) for name in names)

    root = _inside(home, there, f"a folder for each of {', '.join(names)}")
    found = _whole(root, names, (".aedat", ".npz"))

    def upright(events: formats.Events) -> formats.Events:
        # As the chip has them the pictures lie on their side. This gives what
        # SpikingJelly and tonic give, row = 127 - raw x and column = 127 - raw y, so
        # that shifts and flips of published recipes mean the same here.
        return events._replace(x=events.y, y=events.x)

    test = _tenth(np.array(found.labels))
    return _listing(root, found, test, names, {".aedat": upright})


# SpikingJelly keeps the markers of these files among the events.
ATIS = {".npz": nmnist.unmarked}


def _ncaltech101(home: Path) -> Listing:
    count = KINDS["ncaltech101"].classes
    expected = f"{count} folders, one for each class"

    def there(folder: Path) -> bool:
        return len(_folders(folder)) >= count

    root = _inside(home, there, expected)
    folders = _folders(root)
    found = _by_class(root, folders, (".bin", ".npz"))
    kept = [i for i in range(len(folders)) if i not in found.empty]
    if len(kept) != count:
        raise ValueError(
            f"{root}: got {len(kept)} folders with recordings, expected {expected}"
        )
    labels = np.searchsorted(kept, found.labels).tolist()
    aside = [*found.aside, *(folders[i] for i in found.empty)]
    found = found._replace(labels=labels, aside=aside)
    names = [folders[i].name for i in kept]
    return _listing(root, found, _tenth(np.array(labels)), names, ATIS)


def _nmnist(home: Path) -> Listing:
    root = _inside(home, _has_parts, "folders Train and Test")
    digits, suffixes = tuple("0123456789"), (".bin", ".npz")
    parts = _child(root, "train"), _child(root, "test")
    train = _whole(parts[0], digits, suffixes)
    return _parted(
        root, parts, (train, _some(parts[1], digits, suffixes)), digits, ATIS
    )


def _has_parts(folder: Path) -> bool:
    return all(_child(folder, part) for part in ("train", "test"))


def _parted(
    root: Path,
    parts: Sequence[Path],
    found: Sequence[Found],
    class_names: Sequence[str],
    mend: dict[str, Mend],
) -> Listing:
    """A set of two parts, to learn from and to be judged on, which may lack classes."""
    both = Found(*(a + b for a, b in zip(*found, strict=True)))
    both.aside.extend(_beside(root, parts))
    test = np.arange(len(found[0].paths), len(both.paths))
    lacks = [
        f"{folder} has no recording of {', '.join(class_names[i] for i in part.empty)}"
        for folder, part in zip(parts, found, strict=True)
        if part.empty
    ]
    return _listing(root, both, test, class_names, mend)._replace(lacks=lacks)


TRIALS = {"train": "trials_to_train.txt", "test": "trials_to_test.txt"}


def _dvs128_gesture(home: Path) -> Listing:
    def there(folder: Path) -> bool:
        return all(_file(folder, name) for name in TRIALS.values())

    expected = f"{TRIALS['train']} and {TRIALS['test']}, or folders train and test"
    root = _inside(home, lambda folder: there(folder) or _has_parts(folder), expected)
    listing = _gestures_in_pieces(root) if there(root) else _gestures_by_class(root)
    people = [Path(name).name.partition("_")[0].lower() for name in listing.names]
    return listing._replace(people=np.array(people))


def _gestures_by_class(root: Path) -> Listing:
    """Gestures that SpikingJelly cut out."""
    names = GESTURES.split()
    numbers = [str(number) for number in range(len(names))]
    parts = _child(root, "train"), _child(root, "test")
    found = [_some(part, numbers, (".npz",)) for part in parts]
    return _parted(root, parts, found, names, {})


def _gestures_in_pieces(root: Path) -> Listing:
    """Gestures that are intervals of longer recordings."""
    lists = {part: _file(root, name) for part, name in TRIALS.items()}
    trials = {
        # utf-8-sig: an editor may have put a mark at the start
        part: path.read_text("utf-8-sig", errors="replace").split()
        for part, path in lists.items()
    }
    if both := sorted(set(trials["train"]) & set(trials["test"])):
        raise ValueError(f"{root}: got {both[0]} for training and for testing")
    paths, spans, labels, test = [], [], [], []
    files = list(lists.values())
    for part, names in trials.items():
        if not names:
            raise ValueError(f"{lists[part]}: got no recording, expected some")
        for name in names:
            table_name = str(Path(name).with_name(f"{Path(name).stem}_labels.csv"))
            path, table = _file(root, name), _file(root, table_name)
            for file, wanted in ((path, name), (table, table_name)):
                if file is None:
                    raise ValueError(f"{lists[part]}: found no {wanted} here")
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
        root=root,
        aside=_litter(root),
    )


def _intervals(table: Path) -> list[tuple[int, int, int]]:
    """(label from 0, start, end in microseconds) of each gesture of a recording."""
    columns = ["class", "startTime_usec", "endTime_usec"]
    with open(table, newline="", encoding="utf-8-sig", errors="replace") as file:
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

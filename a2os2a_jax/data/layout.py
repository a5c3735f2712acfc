"""Which folder of a set of pictures is what: splits, classes, or a wrapper.

    ROOT/CLASS/*.jpg                               classes, and no split
    ROOT/SPLIT/CLASS/*.jpg                         SPLIT: one to train, one to judge

A folder is a split by its name: one of WORDS in any case, alone or with a word of
AFFIXES or a number (Training, train_set, VAL, testImages, val2017); with any other
words if a folder to train and one to judge share these (seg_train and seg_test). Names
that merely contain such a word (testudo, train_station) are classes. So is a folder
called train with pictures of its own, beside others that are no splits: a split to
train holds folders, its classes. What can be read both ways is an error that says so.

An only folder which holds folders is a wrapper, at the top and in a split.
"""

import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from a2os2a_jax.data import tree
from a2os2a_jax.texts import line

SUFFIXES = (".jpg", ".jpeg", ".png")
TRAIN, TEST, VALIDATION = "train", "test", "validation"
WORDS = {
    "train": TRAIN,
    "training": TRAIN,
    "trainval": TRAIN,
    "test": TEST,
    "testing": TEST,
    "tests": TEST,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "dev": VALIDATION,
    "eval": VALIDATION,
    "evaluation": VALIDATION,
}
AFFIXES = frozenset(
    "set sets data dataset split folder dir image images img imgs picture pictures pic "
    "pics photo photos sample samples example examples jpg jpeg png x px v".split()
)
_GLUED = re.compile(f"({'|'.join(WORDS)})({'|'.join(AFFIXES)})?")
_FEW = 6  # names that a message lists


class Layout(NamedTuple):
    """A set of pictures, by its folders.

    Attributes:
      root: below which all of it lies, inside of wrappers.
      train: {class: its folder}, sorted by class.
      test, validation: the same, of those classes of training that are there; None
        where there is no such split.
      splits: {TRAIN, TEST, VALIDATION: what was taken for it}; {} without splits.
      beside: folders and files beside all these, not used; litter and what is lost.
    """

    root: Path
    train: dict[str, Path]
    test: dict[str, Path] | None
    validation: dict[str, Path] | None
    splits: dict[str, Path]
    beside: tree.Level


def find(root: Path) -> Layout:
    """The layout of the set in the folder.

    Raises:
      ValueError: folders that are no set, or one in more ways than one; says which
        folders were seen.
      OSError: a folder cannot be listed.
    """
    beside = tree.Level([], [], [], [])
    folders = _inside(root, beside)
    if not folders:
        raise ValueError(f"{root}: found no subfolder, expected one for each class")
    root = folders[0].parent
    chosen = _splits(root, folders)
    if chosen is None:
        _check_classes(root, folders)
        return Layout(root, _classes(root, folders), None, None, {}, beside)
    train = _classes(chosen[TRAIN], _inside(chosen[TRAIN], beside))
    judges = {
        role: found
        for role, folder in chosen.items()
        if role != TRAIN and (found := _judge(folder, train, beside))
    }
    if not judges:
        raise ValueError(_unlabelled(root, chosen, train))
    splits = {role: chosen[role] for role in (TRAIN, *judges)}
    if TEST not in judges:
        judges[TEST], splits[TEST] = judges.pop(VALIDATION), splits.pop(VALIDATION)
    beside.folders.extend(f for f in folders if f not in splits.values())
    return Layout(root, train, judges[TEST], judges.get(VALIDATION), splits, beside)


def _inside(
    folder: Path, beside: tree.Level, classes: frozenset[str] = frozenset()
) -> list[Path]:
    """The subfolders, or those of the only one, and so on; none of `classes` is one."""
    above, folders = tree.enter(folder), _listed(folder, beside)
    while len(folders) == 1 and _key(folders[0].name) not in classes:
        above = tree.enter(folders[0], above)
        if not tree.level(folders[0]).folders:
            break  # an only class
        folders = _listed(folders[0], beside)
    return folders


def _listed(folder: Path, beside: tree.Level) -> list[Path]:
    """Its folders; all else is added to what lies beside."""
    found = tree.level(folder)
    tree.extend(beside, found)
    return found.folders


def _classes(folder: Path, folders: list[Path]) -> dict[str, Path]:
    """{class: folder}; ValueError for fewer than two."""
    if len(folders) < 2:
        got = f"one folder, {line(folders[0].name)}" if folders else "no folder"
        raise ValueError(
            f"{folder}: got {got}, expected two or more, one for each class"
        )
    return {f.name: f for f in folders}


def _judge(folder: Path, train: dict[str, Path], beside: tree.Level) -> dict[str, Path]:
    """{class: folder} of a split; {} if it has none of the classes of training.

    Raises:
      ValueError: it has some of them, and others.
    """
    known = {_key(name): name for name in train}
    found: dict[str, Path] = {}
    extra = []
    for inner in _inside(folder, beside, frozenset(known)):
        name = inner.name if inner.name in train else known.get(_key(inner.name))
        if name is None or name in found:
            extra.append(inner)
        else:
            found[name] = inner
    if found and extra:
        raise ValueError(
            f"{folder}: got the classes {few(f.name for f in extra)}, which the split "
            f"to train, {next(iter(train.values())).parent}, lacks"
        )
    return {name: found[name] for name in train if name in found}


def _key(name: str) -> str:
    """The same for names that look the same: systems spell an é in two ways."""
    return unicodedata.normalize("NFC", name)


def _role(name: str) -> tuple[str, tuple[str, ...]] | None:
    """(role, words beside) of a name that could be a split's."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    words = re.findall(r"[^\W\d_]+", apart)
    roles = [m[1] for m in map(_GLUED.fullmatch, words) if m]
    if len(roles) != 1:
        return None
    beside = (w for w in words if not _GLUED.fullmatch(w) and w not in AFFIXES)
    return WORDS[roles[0]], tuple(beside)


def _splits(root: Path, folders: list[Path]) -> dict[str, Path] | None:
    """{role: folder}, one to train and one or two to judge; None if there are none.

    Raises:
      ValueError: some folders are called so, and are no such splits, or too many.
    """
    groups: dict[tuple[str, ...], dict[str, list[Path]]] = {}
    for folder in folders:
        if (found := _role(folder.name)) is not None:
            role, beside = found
            groups.setdefault(beside, {}).setdefault(role, []).append(folder)
    whole = [beside for beside, g in groups.items() if TRAIN in g and len(g) > 1]
    if () in whole or len(whole) == 1:
        group = groups[() if () in whole else whole[0]]
        chosen = {role: _one(root, role, found) for role, found in group.items()}
        if not tree.level(chosen[TRAIN]).folders:
            raise ValueError(
                f"{root}: got the folders {few(f.name for f in chosen.values())}, "
                f"read as splits, and in {line(chosen[TRAIN].name)} no folders, "
                "expected a folder for each class in it (classes of such names "
                "have to be called something else)"
            )
        return chosen
    if whole:
        raise ValueError(
            f"{root}: got the folders {few(f.name for f in folders)}, splits of "
            f"{len(whole)} sets, expected those of one"
        )
    _check_no_part(root, folders, groups)
    return None


def _check_no_part(root: Path, folders: list[Path], groups) -> None:
    """ValueError where folders look like splits, of which one is missing."""
    named = [f for group in groups.values() for found in group.values() for f in found]
    plain = groups.get((), {}).get(TRAIN, [])
    suspects = [f for f in named if _is_split(f)]
    shared = len(suspects) > 1 and set.intersection(
        *({_key(p.name) for p in tree.level(f).folders} for f in suspects)
    )
    every = len(named) == len(folders) and not any(TRAIN in g for g in groups.values())
    if len(folders) > 1 and (shared or every or any(_is_split(f) for f in plain)):
        raise ValueError(
            f"{root}: got the folders {few(f.name for f in folders)}; "
            f"{line((plain or suspects or named)[0].name)} is read as a split, "
            "expected one called train and one called test or val beside it (a class "
            "of such a name has to be called something else)"
        )


def _one(root: Path, role: str, found: list[Path]) -> Path:
    """The folder of a role, of many the one whose name is the bare word."""
    bare = [f for f in found if f.name.lower() in WORDS] if len(found) > 1 else found
    if len(bare) != 1:
        raise ValueError(
            f"{root}: got the folders {few(f.name for f in found)} for {role}, "
            "expected one"
        )
    return bare[0]


def _is_split(folder: Path) -> bool:
    """Whether it holds folders, and no pictures beside them."""
    inside = tree.level(folder)
    return bool(inside.folders) and not any(map(is_picture, inside.files))


def _check_classes(root: Path, folders: list[Path]) -> None:
    """ValueError where a class holds splits of its own."""

    def holds_splits(folder: Path) -> bool:
        roles = {_role(f.name) for f in tree.level(folder).folders}
        return (TRAIN, ()) in roles and bool(roles & {(TEST, ()), (VALIDATION, ())})

    if parted := [folder.name for folder in folders if holds_splits(folder)]:
        raise ValueError(
            f"{root}: got splits in {few(parted)}, expected them outside: train/CLASS/ "
            "and test/CLASS/, or data.name to be the folder that holds train"
        )


def is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _unlabelled(root: Path, chosen: dict[str, Path], train: dict[str, Path]) -> str:
    name = line(chosen[TRAIN].name)
    judges = [
        f"{line(folder.name)} ({few(p.name for p in tree.level(folder).folders)})"
        for role, folder in chosen.items()
        if role != TRAIN
    ]
    got = ", ".join(judges).replace("()", "(no folder)")
    return (
        f"{root}: got no class of {name} in {got}, expected some of {few(train)}; "
        f"data.name=folder:{chosen[TRAIN]} takes {name} alone, and one in five of it "
        "for test"
    )


def few(names: Iterable[str]) -> str:
    """The first of them, as words."""
    names = [line(name, 40) for name in names]
    more = f" and {len(names) - _FEW:,} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more

"""What lies below a folder, through links, less what other programs leave there."""

import os
from pathlib import Path
from typing import NamedTuple

LITTER = frozenset(  # of file managers, archives, network drives; and what is hidden
    "__macosx @eadir thumbs.db ehthumbs.db desktop.ini picasa.ini icon\r $recycle.bin "
    "#recycle @recycle @__thumb #snapshot ~snapshot lost+found __pycache__".split(" ")
) | {"system volume information"}


class Level(NamedTuple):
    """What lies in a folder, or in all below it, each part in order.

    Attributes:
      folders: that are no litter, linked ones too; of a walk none, as it enters them.
      files: that can be read and are no litter.
      litter: files and folders of other programs, into which nobody looks.
      lost: (path, why) of what cannot be read: links that lead nowhere, files and
        folders without permission.
    """

    folders: list[Path]
    files: list[Path]
    litter: list[Path]
    lost: list[tuple[Path, str]]


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left by another program."""
    return name[0] == "." or name.lower() in LITTER


def level(folder: Path) -> Level:
    """What lies in the folder itself.

    Raises:
      OSError: it cannot be listed.
    """
    found = Level([], [], [], [])
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            _sort_in(found, entry, folder / entry.name)
    return found


def _sort_in(found: Level, entry: os.DirEntry, path: Path) -> None:
    try:
        if is_litter(entry.name):
            found.litter.append(path)
        elif entry.is_dir():
            found.folders.append(path)
        elif not entry.is_file():
            dead = entry.is_symlink()
            found.lost.append(
                (path, "a link that leads nowhere" if dead else "no file")
            )
        elif not os.access(path, os.R_OK):
            found.lost.append((path, "no permission to read it"))
        else:
            found.files.append(path)
    except OSError as error:  # a link to itself, a network drive that is gone
        found.lost.append((path, error.strerror or str(error)))


def walk(folder: Path) -> Level:
    """All that lies below the folder; links are followed.

    Raises:
      ValueError: a link leads to a folder that holds it.
      OSError: the folder itself cannot be listed.
    """
    found = Level([], [], [], [])
    _walk(folder, enter(folder, _above(folder)), found)
    for part in found:
        part.sort()
    return found


def _walk(folder: Path, above: frozenset, found: Level) -> None:
    here = level(folder)
    extend(found, here)
    for inner in here.folders:
        try:
            _walk(inner, enter(inner, above), found)
        except OSError as error:
            found.lost.append((inner, error.strerror or str(error)))


def extend(found: Level, more: Level) -> None:
    """Adds what lies in another folder, but not its subfolders."""
    for part, others in zip(found[1:], more[1:], strict=True):
        part += others


def enter(folder: Path, above: frozenset = frozenset()) -> frozenset:
    """`above`, the folders on the way here, and this one.

    Raises:
      ValueError: it is one of those above, so that a walk would never end.
    """
    here = identity(folder)
    if here in above:
        raise ValueError(
            f"{folder}: got a link to {folder.resolve()}, which holds it, expected one "
            "that leads elsewhere"
        )
    return above | {here}


def identity(path: Path) -> tuple[int, int]:
    """Equal for two ways to one file or folder; OSError where there is none."""
    state = path.stat()
    return state.st_dev, state.st_ino


def _above(folder: Path) -> frozenset:
    parents = {*folder.absolute().parents, *folder.resolve().parents}
    return frozenset(map(identity, parents))

"""Arrays of an `.npz` file, or of a folder of such pieces, as they are on disk.

The files `*.npz` of a folder are joined in the order of their names. Pieces that
`experiments/pack.py` writes, piece_*.npz, come with `pieces.json`, which says what they
have to be, so that a missing or a damaged one is found; without it they are refused.
"""

import contextlib
import functools
import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from a2os2a_jax import contents
from a2os2a_jax.data import cache

PIECE = "piece_*.npz"  # what `experiments/pack.py` calls them
MANIFEST = "pieces.json"
ZIP = b"PK"


class Archive(NamedTuple):
    """Attributes:
    pieces: the files, in order.
    digests: sha256 of each, as pieces.json has it; None without that.
    names: of the arrays in any of them.
    about: what else pieces.json says.
    stamp: changes when an array does, its name or its place; see `Dataset.stamp`.
    state: changes also when a file is written anew.
    """

    pieces: tuple[Path, ...]
    digests: tuple[str | None, ...]
    names: tuple[str, ...]
    about: dict[str, Any]
    stamp: str
    state: str


def scan(path: Path) -> Archive:
    """The archive at `path`, a file or a folder, of which no array is read yet.

    Raises:
      ValueError: nothing is there, or what is there is not whole, or no archive.
    """
    digests: dict[Path, str | None] = {}
    about: dict[str, Any] = {}
    if path.is_dir():
        pieces = sorted(path.glob("*.npz"))
        if (path / MANIFEST).exists():
            about = _manifest(path / MANIFEST)
            digests = {path / piece: d for piece, d in about["sha256"].items()}
            pieces = sorted(digests)
        elif loose := [piece for piece in pieces if piece.match(PIECE)]:
            raise ValueError(
                f"{path}: got {len(loose)} pieces and no {MANIFEST}, which says "
                "whether they are all; copy it here, too, or pack the set again"
            )
    else:
        pieces = [path] if path.is_file() else []
    if not pieces:
        raise ValueError(f"data.name: found no .npz file at {path}")
    members = [_members(piece) for piece in pieces]
    names = dict.fromkeys(name for found in members for name, *_ in found)
    value = zlib.crc32(repr(members).encode())
    stamp = f"{len(pieces)} files, {value:08x}"
    home = path if path.is_dir() else path.parent
    return Archive(
        tuple(pieces),
        tuple(digests.get(piece) for piece in pieces),
        tuple(names),
        about,
        stamp,
        f"{stamp}, {cache.stamp(home, pieces)}",
    )


def read(
    archive: Archive, names: Sequence[str], *, alike: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """{name: array} of these names, joined; the arrays cannot be written to.

    They are kept until another archive is read, or this one was written anew.

    Args:
      alike: names of arrays that are the same in every piece.
    Raises:
      ValueError: a file is damaged, an array holds Python objects or does not fit into
        memory, or those of one name do not fit together.
    """
    files = tuple(zip(archive.pieces, archive.digests, strict=True))
    return dict(_read(files, tuple(names), tuple(alike), archive.state))


@functools.lru_cache(maxsize=1)
def _read(
    files: tuple[tuple[Path, str | None], ...],
    names: tuple[str, ...],
    alike: tuple[str, ...],
    state: str,
) -> dict[str, np.ndarray]:
    """`read`; `state` tells this content of the files from an earlier one."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for piece, digest in files:
        if digest is not None:
            _check(piece, digest)
        with _reading(piece), open(piece, "rb") as raw, np.load(raw) as file:
            for name in names:
                if name in file.files:
                    found[name].append(_member(piece, file, name))
                    _check_fits(piece, name, found[name], name in alike)
    joined = {
        name: parts[0] if name in alike or len(parts) == 1 else np.concatenate(parts)
        for name, parts in found.items()
    }
    for array in joined.values():
        array.setflags(write=False)  # callers share them
    return joined


def _members(piece: Path) -> list[tuple[str, int, int]]:
    """(name, CRC-32, bytes) of the arrays of a file, which are not read for it."""
    if not piece.is_file():
        raise ValueError(
            f"{piece}: missing; {MANIFEST} names it: copy it here, or pack the set "
            "again"
        )
    with _reading(piece):
        with open(piece, "rb") as file:
            is_archive = file.read(len(ZIP)) == ZIP
        if not is_archive:
            other = contents.other_than(piece, contents.NPZ)
            raise ValueError(
                f"got {other or 'a file of an unknown kind'}, expected arrays as "
                "np.savez writes them"
            )
        with zipfile.ZipFile(piece) as archive:
            return [
                (info.filename.removesuffix(".npy"), info.CRC, info.file_size)
                for info in archive.infolist()
            ]


def _member(piece: Path, file: Any, name: str) -> np.ndarray:
    """An array of an open file; ValueError for Python objects, and for other files."""
    try:
        array = file[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError(
            f"got Python objects in {name}, which only unpickling would read, expected "
            "a plain array, as np.stack, or np.array without dtype=object, makes it"
        ) from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"got a file {name} that is no array")
    return array


def _check_fits(
    piece: Path, name: str, parts: Sequence[np.ndarray], alike: bool
) -> None:
    """ValueError unless the last of `parts`, of this piece, can join the first."""
    first, last = parts[0], parts[-1]
    if len(parts) == 1:
        return
    if alike:
        fits = np.array_equal(first, last)
    else:
        fits = first.dtype.kind == last.dtype.kind and first.ndim == last.ndim > 0
        fits = fits and first.shape[1:] == last.shape[1:]
    if not fits:
        expected = "the same" if alike else f"{first.dtype} {first.shape}"
        raise ValueError(
            f"got {name} {last.dtype} {last.shape}, expected {expected} as in the "
            "pieces before it"
        )


@contextlib.contextmanager
def _reading(piece: Path) -> Iterator[None]:
    """Errors of reading as ValueErrors in the name of the file."""
    try:
        yield
    except MemoryError as error:
        raise ValueError(f"{piece}: does not fit into memory: {error}") from error
    except ValueError as error:
        raise ValueError(f"{piece}: {error}") from error
    except (EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{piece}: not a whole .npz file: {error}") from error
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"{piece}: cannot be read: {why}") from error


def _manifest(path: Path) -> dict[str, Any]:
    """The content of pieces.json; ValueError if it is not whole."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        about = None
    if not isinstance(about, dict) or not about.get("sha256"):
        raise ValueError(
            f"{path}: not a whole list of pieces; copy it again, or pack the set again"
        )
    return about


def _check(piece: Path, digest: str) -> None:
    """ValueError unless the file has this sha256."""
    with open(piece, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        raise ValueError(
            f"{piece}: not the file that {MANIFEST} describes: copy it again"
        )

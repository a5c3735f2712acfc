"""Arrays that are made once and kept in a folder, which is whole or not there.

They are written to a folder with a name of its own, flushed, described in a manifest,
and renamed last: whoever dies on the way leaves nothing that looks like a result, and
of two that make the same at once the first one wins. A folder that its manifest does
not describe is never used: it is made again, and that is said, once.
"""

import json
import os
import secrets
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from a2os2a_jax.files import expanded

MANIFEST = "manifest.json"
FORMAT = 1  # of the manifest
STALE_SECONDS = 24 * 3600  # what a killed process left is removed after so long
UNUSABLE = (ValueError, KeyError, TypeError, OSError)  # what `_read` raises

Arrays = dict[str, np.ndarray]
New = Callable[..., np.ndarray]


def cached(
    folders: Sequence[str | Path],
    key: dict,
    make: Callable[[New], None],
    *,
    say: str,
    verify: bool = False,
) -> tuple[Arrays, Path] | None:
    """What is kept under `key`, else what `make` makes, kept from now on.

    Args:
      folders: for this result alone; the first that has it, else the first that can be
        written, whose parents are made where missing.
      key: all that the result depends on, as JSON holds it; "files" as of `stamp`.
      make: is given new(name, shape, dtype) -> a zero array on disk, and fills it; a
        second `new` of a name replaces the first.
      say: is printed, with the folder, when something has to be made.
      verify: compare checksums of the files, too, not only their sizes; where the disk
        is in doubt, since it reads all of them.
    Returns:
      ({name: array}, the folder), arrays read-only, mapped into memory; None where
      nothing is kept, nor can be.
    """
    for folder in map(Path, folders):
        if (kept := load(folder, key, verify=verify)) is not None:
            return kept, folder
    for folder in map(Path, folders):
        if writable(folder):
            print(f"{say}, {folder}", file=sys.stderr)
            return _made(folder, key, make, verify), folder
    return None


def _made(folder: Path, key: dict, make: Callable[[New], None], verify: bool) -> Arrays:
    """What `make` makes, or another process at the same time, in `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    working = folder.parent / f"{_working(folder)}{os.getpid()}-{secrets.token_hex(4)}"
    working.mkdir()
    try:
        _write(working, key, make)
        _publish(working, folder, key, verify)
    finally:
        shutil.rmtree(working, ignore_errors=True)
    kept = load(folder, key)
    if kept is None:
        raise OSError(f"{folder}: was made, and is not there")
    return kept


def load(folder: str | Path, key: dict, *, verify: bool = False) -> Arrays | None:
    """What is kept in `folder` under `key`, or None; says so if it cannot be used."""
    folder = Path(folder)
    if not folder.is_dir():
        return None
    try:
        return _read(folder, _plain(key), verify)
    except UNUSABLE as error:
        print(f"{folder}: not used, {error}", file=sys.stderr)
        return None


def writable(folder: str | Path) -> bool:
    """Whether `cached` may make this folder. Asked by doing: flags do not tell all."""
    parent = Path(folder).parent
    probe = parent / f".probe-{secrets.token_hex(4)}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        probe.mkdir()
        probe.rmdir()
    except OSError:
        return False
    return True


def user_folder(name: str, home: str | Path, what: str) -> Path:
    """Where `what` of the set `name`, which lies at `home`, is kept for a user.

    In $XDG_CACHE_HOME/a2os2a_jax (~/.cache); the same by whichever way `home` is named.
    For somebody without a home directory in that of temporary files.
    """
    try:
        user = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    except ValueError:
        user = Path(tempfile.gettempdir())
    place = zlib.crc32(os.fsencode(Path(home).resolve()))
    return user / "a2os2a_jax" / f"{name.replace('/', '-')}-{place:08x}" / what


def stamp(home: str | Path, files: Sequence[Path], *, times: bool = True) -> str:
    """Changes when one of the files below `home` comes, goes, or is written anew.

    times: look at the times of change, too; without them a copy has the same stamp.
    """
    value = 0
    for path in files:
        state = path.stat()
        line = f"{path.relative_to(home)}\0{state.st_size}"
        line += f"\0{state.st_mtime_ns}\n" if times else "\n"
        value = zlib.crc32(os.fsencode(line), value)
    return f"{len(files)} files, {value:08x}"


def keep_json(new: New, name: str, value) -> None:
    """Keeps what JSON can hold beside the arrays; `kept_json` gives it back."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    new(name, text.shape, np.uint8)[:] = text


def kept_json(arrays: Arrays, name: str):
    """What `keep_json` was given; keys of a dict are text."""
    return json.loads(arrays[name].tobytes())


def in_memory(make: Callable[[New], None]) -> Arrays:
    """What `make` makes, for where nothing can be written."""
    arrays: Arrays = {}

    def new(name: str, shape: tuple[int, ...], dtype) -> np.ndarray:
        arrays[name] = np.zeros(shape, dtype)
        return arrays[name]

    make(new)
    for array in arrays.values():
        array.setflags(write=False)
    return arrays


def _write(working: Path, key: dict, make: Callable[[New], None]) -> None:
    arrays: dict[str, np.memmap] = {}
    count = 0

    def new(name: str, shape: tuple[int, ...], dtype) -> np.ndarray:
        nonlocal count
        count += 1
        path = working / f"{name}-{count}.npy"
        if name in arrays:
            Path(arrays[name].filename).unlink()
        array = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), shape)
        arrays[name] = array
        return array

    make(new)
    files = {}
    for name, array in arrays.items():
        array.flush()
        path = Path(array.filename)
        files[name] = {
            "file": path.name,
            "shape": list(array.shape),
            "dtype": array.dtype.str,
            "bytes": path.stat().st_size,
            "crc32": _checksum(path),
        }
        _sync(path)
    manifest = working / MANIFEST
    table = {"format": FORMAT, "key": key, "files": files}
    manifest.write_text(json.dumps(table, indent=1), encoding="utf-8")
    _sync(manifest)


def _read(folder: Path, key: dict, verify: bool) -> Arrays:
    """ValueError, or what reading raises, for what the manifest does not describe."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise ValueError(f"got no {MANIFEST}")
    table = json.loads(manifest.read_text(encoding="utf-8"))
    if table["format"] != FORMAT:
        raise ValueError(f"got format {table['format']}, expected {FORMAT}")
    if table["key"] != key:
        names = sorted(table["key"].keys() | key.keys())
        other = [n for n in names if table["key"].get(n) != key.get(n)]
        how = ("of other files" if n == "files" else f"with another {n}" for n in other)
        raise ValueError(f"it was made {', '.join(how)}")
    arrays = {}
    for name, row in table["files"].items():
        path = folder / row["file"]
        if (size := path.stat().st_size) != row["bytes"]:
            raise ValueError(f"{path.name} has {size} bytes, not {row['bytes']}")
        if verify and _checksum(path) != row["crc32"]:
            raise ValueError(f"{path.name} has another checksum")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if [list(array.shape), array.dtype.str] != [row["shape"], row["dtype"]]:
            raise ValueError(f"{path.name} is {array.dtype} {array.shape}")
        arrays[name] = array
    return arrays


def _publish(working: Path, folder: Path, key: dict, verify: bool) -> None:
    """Renames `working`, unless another process was first with the same."""
    for _ in range(10):  # each round another process may have come in between
        try:
            os.rename(working, folder)
            return
        except OSError:
            if not folder.exists():
                raise
        try:
            _read(folder, _plain(key), verify)
            return
        except UNUSABLE:
            pass  # what `load` has spoken of, or another's that is no better
        old = folder.parent / f"{_working(folder)}old-{secrets.token_hex(4)}"
        try:
            os.rename(folder, old)
        except FileNotFoundError:
            continue
        shutil.rmtree(old, ignore_errors=True)
    raise OSError(f"{folder}: other processes keep changing it")


def _plain(key: dict) -> dict:
    return json.loads(json.dumps(key))  # tuples are lists there


def _working(folder: Path) -> str:
    """How names of folders start that become `folder`; hidden, as data may be near."""
    return f".{folder.name.lstrip('.')}.tmp-"


def _sweep(folder: Path) -> None:
    """Removes what was left of `folder` by processes killed long ago."""
    for path in folder.parent.glob(f"{_working(folder)}*"):
        try:
            newest = max(p.stat().st_mtime for p in [path, *path.iterdir()])
        except OSError:
            continue  # its owner, at work, has just renamed it
        if time.time() - newest > STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            value = zlib.crc32(chunk, value)
    return value


def _sync(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())

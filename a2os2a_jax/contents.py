"""What a file is that does not hold what its name says."""

import re
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

NPZ, SAFETENSORS, TORCH = ".npz", ".safetensors", "torch"
_START = 4096  # bytes that are looked at
_SHOWN = 3
_MAGIC = {
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"BZh": "a bzip2 archive: unpack it",
    b"\xfd7zXZ": "an xz archive: unpack it",
    b"\x28\xb5\x2f\xfd": "a zstandard archive: unpack it",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it",
    b"Rar!": "a RAR archive: unpack it",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x93NUMPY": "one array of numpy.save",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GGUF": "a GGUF file",
}
_PICKLED_TEXT = rb"\((?:lp|dp|p)?\d*\n|c[\w.]+\n[\w.]+\n"  # protocol 0


def other_than(path: Path, kind: str) -> str | None:
    """What the file is, in words, if it is certainly not of `kind`; else None.

    Args:
      kind: NPZ, SAFETENSORS or TORCH.
    """
    if path.is_dir():
        return "a directory"
    with open(path, "rb") as file:
        start = file.read(_START)
    size = path.stat().st_size
    if not start:
        return "an empty file"
    if not any(start):
        return f"{size:,} bytes that begin with zeros: a download that did not finish"
    if start.startswith(b"PK"):
        return _zip(path, kind, size)
    if start[257:262] == b"ustar":
        return _tar(path)
    for magic, words in _MAGIC.items():
        if start.startswith(magic):
            return words
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000:
        return None if kind == SAFETENSORS else "a .safetensors file: name it so"
    pickled = len(start) > 8 and start[0] == 0x80 and start[1] <= 5
    if pickled or re.match(_PICKLED_TEXT, start):
        return None if kind == TORCH else "a pickle: if torch wrote it, name it .pth"
    return _text(start)


def _zip(path: Path, kind: str, size: int) -> str | None:
    if not zipfile.is_zipfile(path):
        return f"a zip archive cut short after {size:,} bytes: download it again"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        return f"a damaged zip archive ({error})"
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return None if kind == TORCH else "a file of torch.save: name it .pth"
    if all(name.endswith(".npy") for name in names):
        return None if kind == NPZ else "an archive of numpy.savez: name it .npz"
    return f"a zip archive of {_some(names)}: unpack it"


def _tar(path: Path) -> str:
    try:
        with tarfile.open(path) as archive:
            names = [member.name for member in archive if not member.isdir()]
    except (tarfile.TarError, OSError, EOFError):
        return "a tar archive that is damaged or cut short: download it again"
    if {"pickle", "storages"} <= set(names):
        return "a file of torch before 0.2, which later ones wrote otherwise"
    return f"a tar archive of {_some(names)}: unpack it"


def _text(start: bytes) -> str | None:
    """What a text is; None where the bytes are no text."""
    start = start.removeprefix(b"\xef\xbb\xbf")
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        size = re.search(rb"^size (\d+)", start, re.MULTILINE)
        of = f" to {int(size[1]):,} bytes" if size else ""
        return f"a git-lfs pointer{of}, not the file: fetch it with `git lfs pull`"
    if re.search(rb"<(?:!doctype\s+html|html|head|body)\b", start, re.IGNORECASE):
        title = re.search(rb"<title[^>]*>\s*(.*?)\s*</title", start, re.I | re.DOTALL)
        called = f" ({_line(title[1])!r})" if title else ""
        return f"an HTML page{called}, not the file: download it again"
    text = start.decode("utf-8", errors="ignore")
    whole = len(text.encode()) > len(start) - 4  # a letter may be cut at the end
    if not whole or re.search(r"[\0-\10\16-\37]", text):
        return None
    return f"a text that begins {_line(start)!r}"


def _line(text: bytes) -> str:
    return " ".join(text.decode("utf-8", errors="replace").split())[:60]


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN]) or 'nothing'}{more}"

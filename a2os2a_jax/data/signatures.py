"""The kind of a file by its first bytes, for messages on one that is not as named."""

from pathlib import Path

_STARTS = (
    (b"\x93NUMPY", "a single array, as np.save writes it"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x89PNG", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"MATLAB 5", "a MATLAB file"),
    (b"PK", "a zip archive"),
    (b"\x80", "a pickle"),  # protocols 2 and later start so
    (b"version https://git-lfs", "a git-lfs pointer; git lfs pull gets the file"),
    (b"<", "a page of HTML or XML, an error of a download perhaps"),
)


def kind(path: Path) -> str:
    """The kind of the file in a few words, such as "a pickle"; OSError if unreadable.

    Known are those that downloads and renamed files bring in place of arrays.
    """
    with open(path, "rb") as file:
        start = file.read(64)
    if not start.strip(b"\0"):
        return "only zeros" if start else "an empty file"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    known = (name for bytes_, name in _STARTS if text.startswith(bytes_))
    other = "text" if all(32 <= b < 127 or b in b"\t\r\n" for b in start) else ""
    return next(known, other or "a file of an unknown kind")

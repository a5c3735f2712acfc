"""Files that appear whole or not at all."""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """An empty file beside `path`, which takes its place once the block has filled it.

    Its mode is that of any new file, by the umask, whatever the writer gave it. If the
    block raises, nothing is left and `path` is as it was.

    Raises:
      OSError: the file cannot be made, or not be put in its place; names it.
    """
    path = Path(path)
    temp = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temp, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
        yield temp
        os.chmod(temp, mode)
        with open(temp, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temp, path)
    except OSError as error:  # of a full disk it does not know the file
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        temp.unlink(missing_ok=True)


def expanded(path: str | os.PathLike) -> Path:
    """`path`, with the home directory for a leading ~ or ~user.

    Raises:
      ValueError: there is no such home directory.
    """
    found = os.path.expanduser(path)
    if found.startswith("~") and not os.path.lexists(found):
        raise ValueError(
            f"got {path}, expected a path without ~: there is no home directory that "
            "HOME or the list of users names"
        )
    return Path(found)


def is_unfinished(name: str) -> bool:
    """Whether `write_atomically` names a file so until it is whole."""
    return re.fullmatch(r"\..+\.tmp", name) is not None

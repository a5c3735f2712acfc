"""stdout and stderr that cost nobody his work: what they cannot take is lost or shown
with backslashes, and never an error."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Lasting:
    """`stream`, whatever becomes of it.

    What its encoding lacks is written with backslashes; once it is gone, as a closed
    terminal or a pipe whose reader has ended, what is written is lost.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            shown = text.encode(encoding, "backslashreplace").decode(encoding)
            return self.write(shown)
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self._lose(error)
            return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        """Sends nowhere what the interpreter flushes at its end: it would complain."""
        if isinstance(error, BrokenPipeError):
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """sys.stdout and sys.stderr are `Lasting` within the block."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (s and Lasting(s) for s in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, Lasting):
                stream.flush()
        sys.stdout, sys.stderr = before

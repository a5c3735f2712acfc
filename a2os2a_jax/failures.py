"""What went wrong, in one line; and work whose failure costs no other."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator

from a2os2a_jax import texts

TRACEBACK = "--traceback shows where it came from"
# What the program raises itself, whose text says all; others are shown with their type.
FORESEEN = (ValueError, OSError, ImportError, FloatingPointError)
MOST = 300  # characters of a text that others wrote
DEVICES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")  # what chooses a kind of device
_NO_DEVICE = re.compile(
    r"initialize backend|failed to initialize|No visible \w+ devices|known backends"
)
_NO_ROOM = re.compile("No space left on device|[Qq]uota exceeded|File too large")


def line(error: BaseException, advice: Callable[[], str] | None = None) -> str:
    """One line on `error` for the one who gave the command; never raises.

    Args:
      advice: what to do where memory ran out; asked for only then, and may fail.
    """
    kind, text = type(error).__name__, _text(error)
    if is_out_of_memory(error):
        return _out_of_memory(error, text, advice)
    if isinstance(error, RuntimeError | AssertionError) and _is_of_device(error, text):
        return _no_device(text)
    if isinstance(error, OSError) and _NO_ROOM.search(text):
        return f"{text}; expected room on the disk that is written to"
    if isinstance(error, ModuleNotFoundError) and text.startswith("No module named"):
        return (
            f"no {error.name} here, expected what training needs: pip install "
            "'.[train]' in a checkout"
        )
    if isinstance(error, FORESEEN) and text:
        return text
    text = texts.line(text, MOST)
    return f"{kind}: {text}; {TRACEBACK}" if text else f"{kind}; {TRACEBACK}"


def is_out_of_memory(error: BaseException) -> bool:
    """True for the host's memory and a device's, not for the room on a disk.

    Libraries that write files call that RESOURCE_EXHAUSTED as well.
    """
    if isinstance(error, MemoryError):
        return True
    text = _text(error)
    if isinstance(error, OSError) or _NO_ROOM.search(text):
        return False
    return "RESOURCE_EXHAUSTED" in text


def _text(error: BaseException) -> str:
    with contextlib.suppress(Exception):
        return texts.line(str(error))
    return ""  # an error that cannot say what it is


def _is_of_device(error: BaseException, text: str) -> bool:
    if _NO_DEVICE.search(text):
        return True
    return not text and any(map(os.environ.get, DEVICES)) and _is_from_jax(error)


def _is_from_jax(error: BaseException) -> bool:
    """True if the innermost frame is jax's own code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return module.partition(".")[0] in ("jax", "jaxlib", "jax_plugins")


def _no_device(text: str) -> str:
    given = [name for name in DEVICES if os.environ.get(name)] or DEVICES[:1]
    got = " and ".join(f"{os.environ.get(name, '')!r}" for name in given)
    return (
        f"{' and '.join(given)}: got {got}, expected a kind of device that is here, or "
        f"none for jax's own choice ({texts.line(text, 160) or 'it did not start'})"
    )


def _out_of_memory(
    error: BaseException, text: str, advice: Callable[[], str] | None
) -> str:
    where = "on the host" if isinstance(error, MemoryError) else "on the device"
    found = f"out of memory {where}" + (f" ({texts.line(text, 160)})" if text else "")
    with contextlib.suppress(Exception):
        if advice is not None:
            found = f"{found}; {advice()}"
    return f"{found}; {TRACEBACK}"


@contextlib.contextmanager
def spared(what: str) -> Iterator[None]:
    """A block that may fail: what it raises is said in a line, and goes no further.

    For what is drawn after the work: a missing library, fonts, memory, a full disk.
    """
    try:
        yield
    except Exception as error:
        text, kind = _text(error), type(error).__name__
        if not isinstance(error, FORESEEN):
            text = f"{kind}: {text}" if text else kind
        print(f"no {what}: {text or kind}", file=sys.stderr)

"""What went wrong, in one line; and work whose failure costs no other."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

TRACEBACK = "--traceback shows where it came from"
# What the program raises itself, whose text says all; others are shown with their type.
FORESEEN = (ValueError, OSError, ImportError, FloatingPointError)
TRAINS = ("train", "preview")
_NO_DEVICE = re.compile(r"initialize backend|No visible \w+ devices|known backends")


def line(error: BaseException, mode: str = "train", config: Any = None) -> str:
    """One line on `error` for the one who gave the command; never raises.

    Args:
      mode: the mode that was run.
      config: of it, where there is one: advice names its numbers.
    """
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return _out_of_memory(error, text, mode, config)
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if isinstance(error, RuntimeError | AssertionError) and (
        _NO_DEVICE.search(text) or (platforms and _is_from_jax(error) and not text)
    ):
        return (
            f"JAX_PLATFORMS: got {platforms!r}, expected a kind of device that is "
            f"here, or none for jax's own choice ({_first(text) or 'it did not start'})"
        )
    if isinstance(error, FORESEEN) and text:
        return text
    kind = type(error).__name__
    return f"{kind}: {text}; {TRACEBACK}" if text else f"{kind}; {TRACEBACK}"


def _is_from_jax(error: BaseException) -> bool:
    """True if the innermost frame is jax's own code."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return module.partition(".")[0] in ("jax", "jaxlib", "jax_plugins")


def _first(text: str, most: int = 160) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _out_of_memory(error: BaseException, text: str, mode: str, config: Any) -> str:
    where = "on the host" if isinstance(error, MemoryError) else "on the device"
    found = f"out of memory {where}" + (f" ({_first(text)})" if text else "")
    with contextlib.suppress(Exception):
        return f"{found}; {_advice(mode, config)}; {TRACEBACK}"
    return f"{found}; {TRACEBACK}"


def _advice(mode: str, config: Any) -> str:
    """What of this config takes the memory, and which keys make it less."""
    if mode not in TRAINS:
        return f"expected a smaller eval.batch than {config.eval.batch}"
    t = config.train
    less = [f"a smaller train.batch than {t.batch}"]
    if t.batch // t.accumulate > 1:
        less.append(f"train.accumulate above {t.accumulate}, of equal batches")
    if not config.model.remat:
        less.append("model.remat=True, which computes blocks again")
    text = f"expected {', or '.join(less)}"
    with contextlib.suppress(Exception):
        from a2os2a_jax.commands import plan
        from a2os2a_jax.train.setup import prepare

        held = plan.numbers(config, prepare(config))["mib"]
        total = sum(size for name, size in held.items() if name != "checkpoint")
        text += f"; --mode=plan estimates {total:.0f} MiB beside the activations"
    return text


@contextlib.contextmanager
def spared(what: str) -> Iterator[None]:
    """A block that may fail: what it raises is said in a line, and goes no further.

    For what is drawn after the work: a missing library, fonts, memory, a full disk.
    """
    try:
        yield
    except Exception as error:
        text, kind = " ".join(str(error).split()), type(error).__name__
        if not isinstance(error, FORESEEN):
            text = f"{kind}: {text}" if text else kind
        print(f"no {what}: {text or kind}", file=sys.stderr)

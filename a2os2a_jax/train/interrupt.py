"""A request to stop, by a signal, that waits for the end of a step.

SIGTERM and Ctrl-C; SIGHUP, which a closed terminal sends; SIGUSR1 and SIGUSR2, by which
schedulers of clusters warn of the end of a job's time.
"""

import os
import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

_STOPS = (signal.SIGTERM, signal.SIGINT)
# forwarded as SIGTERM where jax listens; there are none of these on Windows
_WARNINGS = tuple(
    getattr(signal, name)
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)
SIGNALS = (*_STOPS, *_WARNINGS)


class Interrupt:
    """Within `with Interrupt() as interrupt`, a signal sets what `requested` says.

        one process         SIGNALS are noted; a second SIGINT raises
                            KeyboardInterrupt at once
        several processes   jax's own notifier hears SIGTERM, and the processes agree
                            on a step; SIGHUP, SIGUSR1 and SIGUSR2 are sent on to it as
                            SIGTERM; Ctrl-C is Python's
        not in the main     nothing is installed, and nothing is ever requested:
        thread              only there may a handler be set, and only there does it run

    SIGHUP, SIGUSR1 and SIGUSR2 stay ignored where they are, SIGHUP by nohup for one.
    What handled the signals before does so again afterwards.
    """

    def __init__(self):
        self._name: str | None = None
        self._ctrl_c = 0
        self._before: dict[signal.Signals, object] = {}
        self._several = False

    def __enter__(self) -> "Interrupt":
        self._name, self._ctrl_c = None, 0
        self._several = jax.process_count() > 1
        in_main = threading.current_thread() is threading.main_thread()
        for number in SIGNALS if in_main else ():
            warns = number in _WARNINGS
            if warns and signal.getsignal(number) is signal.SIG_IGN:
                continue
            if warns or not self._several:
                handler = _send_on if self._several else self._note
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_) -> None:
        while self._before:
            number, handler = self._before.popitem()
            # None: not set from Python, which cannot set it again either
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def requested(self, step: int) -> str | None:
        """The name of a signal if the run is to stop after `step`, else None.

        To be asked after every step: with several processes all of them say yes at the
        same one, which may come a step after the signal.
        """
        if not self._several:
            return self._name
        try:
            reached = multihost_utils.reached_preemption_sync_point(step)
        except RuntimeError:  # jax_enable_preemption_service is off
            return None
        return "SIGTERM" if reached else None

    def noted(self) -> bool:
        """Whether a signal has come, asked at any time, also within a step.

        Always False with several processes, which have to agree on a step first.
        """
        return self._name is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._name = self._name or signal.Signals(number).name
        self._ctrl_c += number == signal.SIGINT
        if self._ctrl_c > 1:
            raise KeyboardInterrupt


def _send_on(number: int, frame: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)

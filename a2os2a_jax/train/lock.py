"""One process at a time in a directory: DIR/.lock names the host and the process.

A lock outlives a process that is killed. One of a process of this host that is gone is
taken over at once; process numbers are used again, so the time at which the process
started counts as well. A process of another host is only known to refresh its lock
every BEAT seconds, by the clock of the file system: who finds such a lock watches it,
gives way once it is refreshed, and takes it over once it is STALE seconds old.

Needs the standard library alone.
"""

import contextlib
import errno
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = ".lock"
BEAT, STALE = 20.0, 180.0  # seconds
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
_ENDING = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
_held: dict[Path, "_Lock"] = {}  # of this process


class InUseError(OSError):
    """Another process writes into the directory; the message names it."""


@contextlib.contextmanager
def held(
    folder: str | os.PathLike, mode: str, *, process: int = 0, processes: int = 1
) -> Iterator[None]:
    """Holds `folder` for this thread, which may ask again, until the block ends.

    Also by an error, or a signal that ends the process. A folder that is not there is
    made, and removed again if it is then empty. Where nothing can be written there is
    nothing to hold, and what comes says so itself.

    Args:
      mode: what the process does, for the message of whom it keeps out.
      process, processes: number and count of those that share one run: the first holds
        the folder for all.
    Raises:
      InUseError: another process, or another thread of this one, holds it.
    """
    path = Path(folder) / NAME
    mine = _held.get(path.resolve())
    if process or (mine and mine.holder == _thread()):
        yield
        return
    made = _make(path.parent)
    try:
        lock = _take(path, mode)
    except OSError as error:
        _remove(made)
        if isinstance(error, InUseError) or error.errno not in _UNWRITABLE:
            raise
        yield
        return
    try:
        with lock.beating(), _let_go_when_ended(processes):
            yield
    finally:
        lock.release()
        _remove(made)


class _Lock:
    """A lock file that this process has made, at `path`."""

    def __init__(self, path: Path, record: dict[str, Any]):
        self.path, self.record = path.resolve(), record
        self.holder = _thread()
        self._ended = threading.Event()
        _held[self.path] = self

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        threading.Thread(target=self._refresh, name="lock", daemon=True).start()
        try:
            yield
        finally:
            self._ended.set()

    def _refresh(self) -> None:
        while not self._ended.wait(BEAT):
            if (found := _read(self.path)) == self.record:
                with contextlib.suppress(OSError):
                    os.utime(self.path)
            elif found is not None:
                print(
                    f"{self.path}: {_who(found)} took this process for dead, and both "
                    "write there: stop one",
                    file=sys.stderr,
                )
                return

    def release(self) -> None:
        _held.pop(self.path, None)
        forked = self.holder[0] != os.getpid()  # and the lock is the parent's
        if not forked and _read(self.path) == self.record:
            with contextlib.suppress(OSError):
                self.path.unlink()


def _take(path: Path, mode: str) -> _Lock:
    """The lock at `path`, made now; InUseError if somebody else's lives."""
    record = _myself() | {"mode": mode}
    record["since"] = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    while True:
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            _clear(path)
            continue
        try:
            with open(file, "w", encoding="utf-8") as stream:
                json.dump(record, stream)
        except OSError:  # a full disk
            path.unlink(missing_ok=True)
            raise
        return _Lock(path, record)


def _thread() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def _clear(path: Path) -> None:
    """Returns when the lock at `path` is gone, or was dead and is removed."""
    found = _read(path)
    alive = _alive(found)
    if alive is None:
        alive = _refreshed(path, found)
    if not path.exists() or _read(path) != found:
        return  # it went, or is a third's: look again
    if alive:
        raise InUseError(
            f"workdir {path.parent}: got one in use by {_who(found)}, expected no "
            "other process there: wait for it, or stop it, or take another --workdir; "
            f"if there is none, delete {path}"
        )
    aside = path.with_name(f"{NAME}.{socket.gethostname()}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside) != found:  # another took it over in between: it is theirs
            aside.rename(path)
            return
        aside.unlink()
        print(f"{path}: took over from {_who(found)}, which is gone")


def _refreshed(path: Path, found: dict[str, Any] | None) -> bool:
    """True once the lock has another beat, or is gone; False once it is STALE."""
    beat = first = _beat(path)
    said, end = False, time.monotonic() + STALE
    while beat is not None and beat == first:
        left = min(STALE - (_now(path) - beat), end - time.monotonic())
        if left < 0:
            return False
        if not said:
            print(
                f"{path}: {_who(found)} holds it; watching for {left:.0f} s at most "
                "whether it lives",
                file=sys.stderr,
            )
            said = True
        time.sleep(min(1.0, BEAT / 4))
        beat = _beat(path)
    return True


def _alive(record: dict[str, Any] | None) -> bool | None:
    """True if the process of a lock lives; None where this process cannot tell."""
    here = _myself()
    if record is None or any(record.get(key) != here[key] for key in ("host", "boot")):
        return None
    try:
        os.kill(record["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    state, started = _stat(record["pid"])
    return state not in ("Z", "X") and started in ("", record["started"])


def _myself() -> dict[str, Any]:
    """This process, and what tells its host from others of the same name.

    boot: of the kernel and the namespace of process numbers; containers have their own.
    """
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        boot += " " + os.readlink("/proc/self/ns/pid")
    pid = os.getpid()
    host = socket.gethostname()
    return {"host": host, "boot": boot, "pid": pid, "started": _stat(pid)[1]}


def _stat(pid: int) -> tuple[str, str]:
    """(state, start in ticks of this host) of a process; both empty without /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return "", ""
    fields = text.rpartition(")")[2].split()  # behind the name, which may hold anything
    return fields[0], fields[19]


def _read(path: Path) -> dict[str, Any] | None:
    """What a lock says; None if there is none, or one that was never written whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _beat(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _now(path: Path) -> float:
    """The time by the clock of the file system that `path` is on."""
    probe = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink(missing_ok=True)
    return now


def _who(record: dict[str, Any] | None) -> str:
    if record is None:
        return "a process that left no name"
    pid, host, mode, since = (record.get(k) for k in ("pid", "host", "mode", "since"))
    return f"process {pid} on {host} (--mode={mode}, since {since})"


def _make(folder: Path) -> list[Path]:
    """Makes `folder`; returns what was made, the deepest first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove(made: list[Path]) -> None:
    """Removes the folders that are empty."""
    with contextlib.suppress(OSError):
        for folder in made:
            folder.rmdir()


@contextlib.contextmanager
def _let_go_when_ended(processes: int) -> Iterator[None]:
    """A signal that ends the process at once releases what it holds before.

    Not with several processes, where jax listens to SIGTERM without Python's knowledge.
    """
    before = {}
    if processes == 1 and threading.current_thread() is threading.main_thread():
        for name in _ENDING:
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: Any) -> None:
    for lock in list(_held.values()):
        lock.release()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)

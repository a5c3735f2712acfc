"""Checkpoints of a training state: a thin layer over orbax's v1 API.

DIR/<step>/ is one checkpoint. A save copies the state to the host and returns. Threads
then write it to a temporary directory, rename that, add checksums of ours, and at last
drop what is too old, by a rename as well: whenever the process is killed, no <step> is
left half there. What can still go wrong on a disk (an empty directory, truncated or
missing files, flipped bits) is found when restoring, the last by the checksums: orbax
loads flipped bits, and casts dtypes, without a word.

On a CPU orbax takes views instead of copies, and jax reuses no donated buffer while a
view of it lives: for the caller that is the same, and a test holds them to it.
"""

import contextlib
import json
import logging
import math
import os
import re
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from a2os2a_jax.files import expanded, write_atomically

_STATE, _FILES, _FORMAT = "state", "files.json", 1
_DROPPED = ".dropped"  # ends the name of what is being deleted


class _Hush(logging.Filter):
    """Drops what orbax logs below `level` through absl; other records pass.

    What its threads raise it logs with a traceback, and raises again where we wait.
    """

    level = logging.WARNING

    def filter(self, record: logging.LogRecord) -> bool:
        if "orbax" not in record.pathname:
            return True
        return record.levelno >= self.level and not record.exc_info


_HUSH = _Hush()


def _orbax():
    """`orbax.checkpoint.v1`, imported when first needed (0.7 s), its chatter off."""
    from orbax.checkpoint import v1

    logging.getLogger("absl").addFilter(_HUSH)  # a second time does nothing
    return v1


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No log lines from orbax at all: the caller reports the exception instead."""
    _HUSH.level = logging.CRITICAL + 1
    try:
        yield
    finally:
        _HUSH.level = logging.WARNING


def _sums(path: Path) -> dict[str, list[int]]:
    """{relative name: [bytes, CRC-32]} of every file below `path` but _FILES."""
    sums = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path).as_posix()
        if name == _FILES:
            continue
        size = crc = 0
        with open(file, "rb") as stream:
            while block := stream.read(1 << 22):
                size, crc = size + len(block), zlib.crc32(block, crc)
        sums[name] = [size, crc]
    return sums


def _write_sums(path: Path) -> None:
    text = json.dumps(_sums(path))
    with write_atomically(path / _FILES) as temp:
        temp.write_text(text, encoding="utf-8")


def _verify(path: Path) -> None:
    """Raises OSError on a file that is missing or has changed since it was written.

    Before orbax sees it: orbax reads all leaves at once, and when one fails, the tasks
    of the others outlive its event loop and print tracebacks at any later time. A save
    killed between its commit and `_write_sums` is whole and goes unverified.
    """
    if not (path / _FILES).exists():
        return
    got = _sums(path)
    for name, (size, crc) in json.loads((path / _FILES).read_text()).items():
        if name not in got:
            raise OSError(f"{name} is missing")
        if got[name][0] != size:
            raise OSError(f"{name} has {got[name][0]} bytes, expected {size}")
        if got[name][1] != crc:
            raise OSError(f"{name} has checksum {got[name][1]}, expected {crc}")


def _leaves(tree: Any) -> dict[str, Any]:
    """{"params/Dense_0/kernel": leaf, …}"""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    name = jax.tree_util.keystr
    return {name(path, simple=True, separator="/"): leaf for path, leaf in flat}


def _fields(state: Any) -> Any:
    """A NamedTuple as a dict of the fields that are not None, anything else as it is.

    A field that a later version adds, None where it is not used, is thus no difference.
    """
    if not hasattr(state, "_asdict"):
        return state
    return {k: v for k, v in state._asdict().items() if v is not None}


def _describe(leaf: Any) -> str:
    """Dtype and shape: float32[3,4]."""
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _blank(text: str) -> np.ndarray:
    """An array of this `_describe`; orbax loads the like on the host."""
    dtype, _, shape = text.rstrip("]").partition("[")
    return np.zeros([int(n) for n in shape.split(",") if n], jax.numpy.dtype(dtype))


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of an array or struct; the first device if it has none.

    Raises:
      ValueError: a sharding that does not divide the shape.
    """
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding.shard_shape(leaf.shape)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _differences(got: dict[str, str], expected: dict[str, str]) -> list[str]:
    lines = []
    for name in sorted(got.keys() | expected.keys()):
        if name not in got:
            lines.append(f"{name} is not in it")
        elif name not in expected:
            lines.append(f"{name} {got[name]} is not expected")
        elif got[name] != expected[name]:
            lines.append(f"{name} is {got[name]}, expected {expected[name]}")
    return lines


def _root(error: BaseException) -> BaseException:
    """What lies at the bottom of orbax's chain of errors."""
    while error.__cause__ or (error.__context__ and not error.__suppress_context__):
        error = error.__cause__ or error.__context__
    return error


def _reason(error: BaseException) -> str:
    """The root of `error` in one line."""
    error = _root(error)
    text = " ".join(str(error).split()).strip("\"' ")
    if found := re.search(r"([^:]+) \[os_error_code='?\d", text):  # of tensorstore
        text = found[1].strip()  # it comes last, behind long names of files
    return f"{text[:160]}{'…' * (len(text) > 160)}" or type(error).__name__


class Checkpoints:
    """The checkpoints of one run, in `directory`; also a context manager.

    Args:
      directory: made by the first save; reading never changes it.
      keep: how many of the latest checkpoints to keep, beside the best; None keeps all.
      report: receives one line for each checkpoint skipped or moved aside; stderr if
        None.
    Attributes:
      skipped: {step: reason} of what the last `restore` could not load.
    Raises:
      ValueError: keep below 1.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        keep: int | None = 2,
        report: Callable[[str], None] | None = None,
    ):
        if keep is not None and keep < 1:
            raise ValueError(f"Checkpoints: keep {keep}, expected at least 1 or None")
        self.directory = expanded(directory).absolute()  # orbax takes no relative paths
        self.skipped: dict[int, str] = {}
        self._keep = keep
        self._report = report or (lambda line: print(line, file=sys.stderr))
        self._writer = None
        self._saving: tuple[int, futures.Future] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps on disk, ascending, loadable or not; temporary ones are not.

        As `best`, `meta` and `restore`, it waits for a save that is being written.
        """
        self.wait()
        return self._steps()

    def best(self) -> int | None:
        """The step with the highest score, the earliest of equals; None without one."""
        return self._best(self.steps())

    def save(
        self,
        step: int,
        state: Any,
        meta: dict | None = None,
        score: float | None = None,
    ) -> None:
        """Returns when `state` may be donated or deleted; threads then write it.

        First it waits for the save before this one. Once this one is on disk, all but
        the last `keep` and the best are dropped. The first save removes
        what killed saves left behind. Steps that `restore` skipped are moved aside, to
        <step>.broken-<time>.

        Args:
          step: not yet on disk.
          state: pytree of arrays; NamedTuples, optax states and PRNG keys included.
          meta: JSON values to store with it.
          score: the higher the better; None keeps it out of the contest for `best`.
        Raises:
          FileExistsError: `step` is on disk already, even if it would not load.
          OSError: it, or the save before it, could not be written.
          ValueError: `meta` is not JSON, `score` not finite.
        """
        try:
            json.dumps(meta)
        except TypeError as e:
            raise ValueError(f"checkpoint meta: {e}, expected JSON values") from e
        score = None if score is None else float(score)
        if score is not None and not math.isfinite(score):
            raise ValueError(f"checkpoint score: got {score}, expected a finite number")
        self.wait()
        ocp = _orbax()
        self._move_aside()
        if self._writer is None:
            self._remove_dropped()
        if jax.process_count() > 1:  # the others wait for the one that moves and drops
            multihost_utils.sync_global_devices("checkpoints")
        if self._writer is not None:
            # orbax lists the steps once; every process tells it here, none in a thread
            self._writer.reload()
        else:
            self._writer = ocp.training.Checkpointer(
                self.directory,
                cleanup_tmp_directories=True,  # of killed saves; here is one writer
                preservation_policy=ocp.training.preservation_policies.PreserveAll(),
            )
        step = int(step)
        if step in self._steps():
            raise FileExistsError(
                f"checkpoint {self.directory / str(step)}: got a step that exists, "
                "expected a new one"
            )
        leaves = _leaves(state)
        about = {
            "format": _FORMAT,
            "meta": meta or {},
            "score": score,
            "leaves": {k: _describe(v) for k, v in leaves.items()},
        }
        # force: the default policy passes over a step below the latest, saying nothing
        begun = self._writer.save_checkpointables_async(
            step, {_STATE: _fields(state)}, force=True, custom_metadata=about
        )
        if begun is None:
            raise OSError(f"checkpoint {self.directory / str(step)}: it was not saved")
        thread = futures.ThreadPoolExecutor(1, "checkpoint")
        self._saving = step, thread.submit(self._finish, step, begun)
        thread.shutdown(wait=False)  # no idle thread: it ends with its work

    def wait(self) -> None:
        """Returns when what was saved is durable, with its checksums.

        Raises:
          OSError: it could not be written; said once, and the next save starts afresh.
        """
        if self._saving is None:
            return
        step, done = self._saving
        futures.wait([done])  # Ctrl-C here leaves the save to the next who waits
        self._saving = None
        if (error := done.exception()) is None:
            return
        writer, self._writer = self._writer, None
        for _ in range(2):  # orbax tells of the error again before it closes
            with contextlib.suppress(Exception), _silence():
                writer.close()
        raise OSError(
            f"checkpoint {self.directory / str(step)} could not be written: "
            f"{_reason(error)}"
        ) from error

    def restore(
        self, abstract_state: Any, step: int | None = None
    ) -> tuple[int, Any] | None:
        """The latest checkpoint that loads, or that of `step`.

        Steps that do not load are reported, kept in `skipped`, and passed over.

        Args:
          abstract_state: pytree of jax.ShapeDtypeStruct with the shardings wanted
            (or of arrays); a leaf without sharding goes to the first device.
          step: this one or none.
        Returns:
          (step, state), or None if there is no checkpoint or none of them loads.
        Raises:
          ValueError: the latest readable checkpoint has other leaves, shapes or dtypes,
            naming them, or a sharding does not divide its array; there is no `step`.
          OSError: `step` does not load.
          MemoryError, PermissionError, jax.errors.JaxRuntimeError: as they came.
        """
        self.skipped = {}
        target, steps = jax.tree.map(_abstract, abstract_state), self.steps()
        if step is not None and step not in steps:
            raise ValueError(
                f"checkpoint {self.directory}: got step {step}, expected one of {steps}"
            )
        for each in reversed(steps) if step is None else [step]:
            try:
                about = self._about(each)
                _verify(self.directory / str(each))
                differing = self._compare(about, target)
                state = None if differing else self._load(each, target)
            except Exception as e:  # orbax raises a bare Exception on truncated data
                elsewhere = MemoryError, PermissionError, jax.errors.JaxRuntimeError
                if isinstance(_root(e), elsewhere):
                    raise  # the checkpoint may well be sound
                path = self.directory / str(each)
                if step is not None:
                    raise OSError(
                        f"checkpoint {path} does not load: {_reason(e)}"
                    ) from e
                self.skipped[each] = _reason(e)
                self._report(f"checkpoint {path} skipped: {_reason(e)}")
                continue
            if differing:
                more = f"; and {len(differing) - 3} more" * (len(differing) > 3)
                raise ValueError(
                    f"checkpoint {self.directory / str(each)} is of another state, "
                    f"{len(differing)} leaves differ: {'; '.join(differing[:3])}{more}"
                )
            return each, state
        return None

    def meta(self, step: int) -> dict:
        """The `meta` given to `save` at `step`.

        Raises:
          OSError: it cannot be read.
        """
        self.wait()
        with self._unreadable(step):
            return self._about(step)["meta"]

    def leaves(self, step: int) -> dict[str, str]:
        """{"params/head/kernel": "float32[64,10]", …}: what the state consists of.

        Raises:
          OSError: it cannot be read.
        """
        self.wait()
        with self._unreadable(step):
            return self._about(step)["leaves"]

    def read(self, step: int, names: Iterable[str]) -> dict[str, np.ndarray]:
        """These leaves alone, on the host, whatever else the state consists of.

        Needs neither the model nor the optimizer nor the devices the state was of.

        Raises:
          OSError: it cannot be read, or has no such leaf.
        """
        described = self.leaves(step)
        tree: dict[str, Any] = {}
        for name in names:
            if name not in described:
                raise OSError(
                    f"checkpoint {self.directory / str(step)}: {name} is not in it"
                )
            *path, last = name.split("/")
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[last] = _blank(described[name])
        with self._unreadable(step):
            _verify(self.directory / str(step))
            return _leaves(self._load(step, tree))

    def close(self) -> None:
        """Waits, as `wait` does, and ends orbax's threads; a save may still follow."""
        self.wait()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    @contextlib.contextmanager
    def _unreadable(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as e:  # orbax raises a bare Exception on truncated data
            raise OSError(
                f"checkpoint {self.directory / str(step)}: {_reason(e)}"
            ) from e

    def _finish(self, step: int, begun: Any) -> None:
        """In a thread: what follows the end of orbax's save, in this order."""
        with _silence():
            begun.result()
        if jax.process_index() == 0:
            _write_sums(self.directory / str(step))
            self._drop()

    def _drop(self) -> None:
        """Deletes what is neither among the last `keep` nor the best."""
        steps = self._steps()
        if self._keep is None or len(steps) <= self._keep:
            return
        for step in set(steps) - {*steps[-self._keep :], self._best(steps)}:
            path = self.directory / str(step)
            path.rename(path.with_name(path.name + _DROPPED))
        self._remove_dropped()

    def _remove_dropped(self) -> None:
        """Deletes what `_drop` renamed, now or in a process that was killed."""
        if jax.process_index() == 0:
            for path in self.directory.glob(f"*{_DROPPED}"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _steps(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        names = (path.name for path in self.directory.iterdir())
        return sorted(int(n) for n in names if n.isdecimal() and str(int(n)) == n)

    def _best(self, steps: Sequence[int]) -> int | None:
        """Of ascending `steps`; those that cannot be read have no score."""
        scores: dict[int, float] = {}
        for step in steps:
            with contextlib.suppress(Exception):
                score = self._about(step).get("score")
                scores |= {} if score is None else {step: score}
        return max(scores, key=scores.get, default=None)

    def _about(self, step: int) -> dict:
        """What `save` wrote beside the state. Raises anything on a broken step."""
        path = self.directory / str(step)
        if not path.is_dir() or not any(path.iterdir()):
            raise OSError("got an empty directory or a file, expected a checkpoint")
        # read directly: orbax's metadata call opens every array
        text = (path / "_CHECKPOINT_METADATA").read_text()
        about = json.loads(text).get("custom_metadata") or {}
        if about.get("format") != _FORMAT:
            raise OSError(f"got format {about.get('format')}, expected {_FORMAT}")
        return about

    def _compare(self, about: dict, target: Any) -> list[str]:
        expected = {k: _describe(v) for k, v in _leaves(target).items()}
        return _differences(about["leaves"], expected)

    def _load(self, step: int, target: Any) -> Any:
        """`target` filled; what else the checkpoint has is left where it is."""
        path = self.directory / str(step)
        options = _orbax().options.PyTreeOptions
        options = options(loading=options.Loading(partial_load=True))
        with _silence(), _orbax().Context(pytree_options=options):
            wanted = {_STATE: _fields(target)}
            loaded = _orbax().load_checkpointables(path, wanted)[_STATE]
        return target._replace(**loaded) if hasattr(target, "_asdict") else loaded

    def _move_aside(self) -> None:
        for step in self.skipped if jax.process_index() == 0 else ():
            path = self.directory / str(step)
            if path.exists():
                aside = path.with_name(f"{step}.broken-{time.time_ns() // 10**6}")
                path.rename(aside)
                self._report(f"checkpoint {path} moved aside to {aside.name}")
        self.skipped = {}

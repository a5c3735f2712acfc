"""Checkpoints of a training state: a thin layer over orbax's v1 API.

DIR/<step>/ is one checkpoint. A save writes to a temporary directory and renames it, so
a killed save leaves no <step>. What can still go wrong on a disk (an empty directory,
truncated or missing files, flipped bits) is found when restoring, by a checksum of our
own for the last: orbax loads flipped bits, and casts dtypes, without a word.
"""

import contextlib
import json
import logging
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

_STATE, _FILES, _FORMAT = "state", "files.json", 1


class _Hush(logging.Filter):
    """Drops what orbax logs below `level` through absl; other records pass."""

    level = logging.WARNING

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self.level or "orbax" not in record.pathname


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
    temp = path / f".{_FILES}.tmp"
    text = json.dumps(_sums(path))
    with open(temp, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temp, path / _FILES)


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
    return f"{text[:160]}{'…' * (len(text) > 160)}" or type(error).__name__


class Checkpoints:
    """The checkpoints of one run, in `directory`; also a context manager.

    Args:
      directory: made by the first save; reading never changes it.
      keep: how many of the latest checkpoints to keep; None keeps all.
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
        self.directory = Path(directory).absolute()  # orbax takes no relative paths
        self.skipped: dict[int, str] = {}
        self._keep = keep
        self._report = report or (lambda line: print(line, file=sys.stderr))
        self._writer = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def steps(self) -> list[int]:
        """The steps on disk, ascending, loadable or not; temporary ones are not."""
        if not self.directory.is_dir():
            return []
        names = (path.name for path in self.directory.iterdir())
        return sorted(int(n) for n in names if n.isdecimal() and str(int(n)) == n)

    def save(self, step: int, state: Any, meta: dict | None = None) -> None:
        """Writes `state`, returns when it is durable, then drops all but `keep`.

        The first save removes what killed saves left behind. Steps that `restore`
        skipped are moved aside, to <step>.broken-<time>.

        Args:
          step: not yet on disk.
          state: pytree of arrays; NamedTuples, optax states and PRNG keys included.
          meta: JSON values to store with it.
        Raises:
          FileExistsError: `step` is on disk already, even if it would not load.
          OSError: it could not be written.
          ValueError: `meta` is not JSON.
        """
        try:
            json.dumps(meta)
        except TypeError as e:
            raise ValueError(f"checkpoint meta: {e}, expected JSON values") from e
        ocp = _orbax()
        self._move_aside()
        if self._writer is None:
            policies = ocp.training.preservation_policies
            self._writer = ocp.training.Checkpointer(
                self.directory,
                cleanup_tmp_directories=True,  # of killed saves; here is one writer
                preservation_policy=policies.PreserveAll()
                if self._keep is None
                else policies.LatestN(self._keep),
            )
        step = int(step)
        if step in self.steps():
            raise FileExistsError(
                f"checkpoint {self.directory / str(step)}: got a step that exists, "
                "expected a new one"
            )
        leaves = _leaves(state)
        about = {
            "format": _FORMAT,
            "meta": meta or {},
            "leaves": {k: _describe(v) for k, v in leaves.items()},
        }
        # force: the default policy passes over a step below the latest, saying nothing
        if not self._writer.save_checkpointables(
            step, {_STATE: state}, force=True, custom_metadata=about
        ):
            raise OSError(f"checkpoint {self.directory / str(step)}: it was not saved")
        if jax.process_index() == 0:
            _write_sums(self.directory / str(step))

    def restore(
        self, abstract_state: Any, step: int | None = None
    ) -> tuple[int, Any] | None:
        """The latest checkpoint that loads, or that of `step` if it does.

        Steps that do not load are reported, kept in `skipped`, and passed over.

        Args:
          abstract_state: pytree of jax.ShapeDtypeStruct with the shardings wanted
            (or of arrays); a leaf without sharding goes to the first device.
        Returns:
          (step, state), or None if there is no checkpoint or none of them loads.
        Raises:
          ValueError: the latest readable checkpoint has other leaves, shapes or dtypes,
            naming them, or a sharding does not divide its array.
          MemoryError, PermissionError, jax.errors.JaxRuntimeError: as they came.
        """
        self.skipped = {}
        target = jax.tree.map(_abstract, abstract_state)
        steps = self.steps() if step is None else [step]
        for step in reversed(steps):
            try:
                about = self._about(step)
                _verify(self.directory / str(step))
                differing = self._compare(about, target)
                state = None if differing else self._load(step, target)
            except Exception as e:  # orbax raises a bare Exception on truncated data
                elsewhere = MemoryError, PermissionError, jax.errors.JaxRuntimeError
                if isinstance(_root(e), elsewhere):
                    raise  # the checkpoint may well be sound
                self.skipped[step] = _reason(e)
                self._report(
                    f"checkpoint {self.directory / str(step)} skipped: {_reason(e)}"
                )
                continue
            if differing:
                more = f"; and {len(differing) - 3} more" * (len(differing) > 3)
                raise ValueError(
                    f"checkpoint {self.directory / str(step)} is of another state, "
                    f"{len(differing)} leaves differ: {'; '.join(differing[:3])}{more}"
                )
            return step, state
        return None

    def best(self) -> int | None:
        """The step whose meta has the highest "score"; None if none has one."""
        scores = {step: self.meta(step).get("score") for step in self.steps()}
        scores = {step: score for step, score in scores.items() if score is not None}
        return max(scores, key=scores.get, default=None)

    def meta(self, step: int) -> dict:
        """The `meta` given to `save` at `step`.

        Raises:
          OSError: it cannot be read.
        """
        with self._unreadable(step):
            return self._about(step)["meta"]

    def leaves(self, step: int) -> dict[str, str]:
        """{"params/head/kernel": "float32[64,10]", …}: what the state consists of.

        Raises:
          OSError: it cannot be read.
        """
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
        options = _orbax().options.PyTreeOptions
        options = options(loading=options.Loading(partial_load=True))
        with self._unreadable(step), _silence():
            _verify(self.directory / str(step))
            with _orbax().Context(pytree_options=options):
                return _leaves(self._load(step, tree))

    def close(self) -> None:
        """Waits for what is being written."""
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
        path = self.directory / str(step)
        with _silence():
            return _orbax().load_checkpointables(path, {_STATE: target})[_STATE]

    def _move_aside(self) -> None:
        for step in self.skipped:
            path = self.directory / str(step)
            if path.exists():
                aside = path.with_name(f"{step}.broken-{time.time_ns() // 10**6}")
                path.rename(aside)
                self._report(f"checkpoint {path} moved aside to {aside.name}")
        if self.skipped and self._writer is not None:
            self._writer.reload()
        self.skipped = {}

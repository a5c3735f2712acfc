"""Where numbers go: a JSON-lines file, TensorBoard, the terminal.

A logger is any callable `(record: dict) -> None`. A record is one flat dict with the
keys of metrics.jsonl (step, epoch, split, loss, accuracy as a fraction, lr, …); a value
may be a dict of numbers, such as a firing rate per layer.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from a2os2a_jax.files import write_atomically
from a2os2a_jax.streams import Lasting

Logger = Callable[[dict], None]


def _plain(value: Any, key: str) -> Any:
    """`value` as JSON types: numpy and jax scalars as numbers, NaN and inf as None."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{key}/{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, key) for v in value]
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        array = np.asarray(value)
        if array.ndim:
            return [_plain(v, key) for v in array]
        if array.dtype.kind in "biu":
            return array.item()
        if array.dtype.kind in "fV":  # V: bfloat16 and its kin
            # by its decimal digits: float32 0.1 is written 0.1, not 0.10000000149
            return _plain(float(str(array[()])), key)
    raise ValueError(
        f"metrics: {key} is a {type(value).__name__}, expected a number, a string, "
        "None, an array, or a list or dict of these"
    )


def _complete_lines(path: str | os.PathLike) -> list[str]:
    """The lines of `path` that end in a newline, not a half-written last one."""
    text = Path(path).read_bytes().decode("utf-8", errors="replace")
    return text.split("\n")[:-1]


def _parse(line: str, path: str | os.PathLike, number: int) -> dict:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        record = None
    if not isinstance(record, dict):
        raise ValueError(
            f"{path}, line {number}: got {line[:40]!r}, expected one JSON object"
        )
    return record


def read_lines(path: str | os.PathLike) -> list[dict]:
    """The records of a metrics.jsonl, without a half-written last line.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a complete line that is no JSON object.
    """
    return [_parse(s, path, i) for i, s in enumerate(_complete_lines(path), 1)]


def truncate_after(path: str | os.PathLike, step: int) -> int:
    """Drops the records of steps after `step`, so that a resumed run writes them once.

    Records without a step are kept, a half-written last line is not, and the kept lines
    keep their bytes. Atomic: the file is the old one or the new one. Without a file
    there is nothing to do.

    Returns:
      How many complete records were dropped.
    Raises:
      ValueError: a complete line that is no JSON object.
    """
    path = Path(path)
    if not path.exists():
        return 0
    lines = _complete_lines(path)
    kept = [
        line
        for i, line in enumerate(lines, 1)
        if _parse(line, path, i).get("step", step) <= step
    ]
    with write_atomically(path) as temp:
        with open(temp, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(line + "\n" for line in kept)
    return len(lines) - len(kept)


class JsonLines:
    """Logger that appends each record to `path` as one line of JSON.

    A line is on its way to the file when the call returns. NaN and infinity become
    null, which JSON can hold. Parent directories are made; a half-written last line
    of an earlier run is cut off.

    Raises:
      ValueError: on a value that has no JSON form, naming its key; nothing is written.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+") as file:
            file.seek(0)
            os.truncate(self.path, file.read().rfind(b"\n") + 1)

    def __call__(self, record: dict) -> None:
        line = json.dumps(
            {str(k): _plain(v, str(k)) for k, v in record.items()},
            allow_nan=False,
            ensure_ascii=False,
        )
        # opened anew each time: truncate_after may have replaced the file; what is no
        # UTF-8 in a name is written as JSON escapes it
        text = {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n"}
        with open(self.path, "a", **text) as file:
            file.write(line + "\n")


class TensorBoard:
    """Logger that writes scalars `split/name`, and `split/name/layer` for dicts.

    Strings, lists and None are left out. `start_step`: a run that goes on, or
    starts again, hides what an earlier one wrote for later steps.

    Raises:
      ValueError: when tensorboardX is not installed.
    """

    def __init__(self, directory: str | os.PathLike, start_step: int = 0):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as e:
            raise ValueError(
                "TensorBoard: got no tensorboardX, expected `pip install tensorboardX`"
            ) from e
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        purge = None  # the first step that is written anew
        if start_step or any(directory.iterdir()):
            purge = start_step + 1 if start_step else 0
        self._writer = SummaryWriter(str(directory), purge_step=purge)

    def __call__(self, record: dict) -> None:
        record = dict(record)
        step, split = record.pop("step", None), record.pop("split", None)
        for name, value in record.items():
            self._scalars(f"{split}/{name}" if split else name, value, step)
        self._writer.flush()

    def _scalars(self, tag: str, value: Any, step: int | None) -> None:
        if isinstance(value, Mapping):
            for name, v in value.items():
                self._scalars(f"{tag}/{name}", v, step)
        elif value is not None and not isinstance(value, (str, bytes)):
            value = np.asarray(value)
            if value.ndim == 0:
                self._writer.add_scalar(tag, float(value), step)

    def close(self) -> None:
        """Writes what is left and closes the file."""
        self._writer.close()


def tensorboard_or_none(
    directory: str | os.PathLike, start_step: int = 0
) -> TensorBoard | None:
    """A `TensorBoard`, or None and one line on stderr without tensorboardX."""
    try:
        return TensorBoard(directory, start_step)
    except ValueError as e:
        print(f"no TensorBoard files: {e}", file=sys.stderr)
        return None


def _clock(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Progress:
    """How far training is: a tqdm bar on a terminal, one line per update in a log.

        step   100/900  epoch 4.5  loss 0.4321  acc 87.5 %  lr 2.9e-03  812 img/s  …

    Rates are measured between updates, so the first update, whose steps include the
    compilation, shows none unless `mark` was called after it.

    Args:
      total_steps: the last step.
      start_step: the step resumed from.
      batch: images per step.
      stream: where to write; a bar needs its `isatty()` and tqdm. Once it is gone, what
        is written is lost and nothing else is.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        batch: int = 1,
        stream: TextIO | None = None,
    ):
        self._total, self._batch = total_steps, batch
        self._stream = Lasting(sys.stderr if stream is None else stream)
        self._last: tuple[int, float] | None = None  # step and time of the last mark
        self._measured = (0, 0.0)  # steps and seconds between marks, for the ETA
        self._bar = None
        if self._stream.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return  # lines then
            self._bar = tqdm(
                total=total_steps,
                initial=start_step,
                file=self._stream,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )

    def mark(self, step: int) -> None:
        """Starts the clock at `step`: after compilation, or after an evaluation."""
        self._last = (step, time.perf_counter())

    def update(self, step: int, record: dict) -> float | None:
        """Shows `step` with the record's epoch, loss, accuracy and lr, where present.

        Returns:
          Images per second since the last update or mark; None at the first.
        """
        now, rate = time.perf_counter(), None
        if self._last is not None and step > self._last[0] and now > self._last[1]:
            steps, seconds = step - self._last[0], now - self._last[1]
            rate = steps * self._batch / seconds
            self._measured = (self._measured[0] + steps, self._measured[1] + seconds)
        self._last = (step, now)
        parts = self._parts(step, record, rate)
        if self._bar is not None:
            self._bar.n = step
            self._bar.set_postfix_str("  ".join(parts))
        else:
            width = len(str(self._total))
            self._write("  ".join([f"step {step:>{width}}/{self._total}", *parts]))
        return rate

    def _parts(self, step: int, record: dict, rate: float | None) -> list[str]:
        formats = {
            "epoch": lambda x: f"epoch {x:.1f}",
            "loss": lambda x: f"loss {x:.4f}",
            "accuracy": lambda x: f"acc {100 * x:.1f} %",
            "lr": lambda x: f"lr {x:.1e}",
        }
        parts = [
            text(float(record[key]))
            for key, text in formats.items()
            if record.get(key) is not None
        ]
        if rate is not None:
            parts.append(f"{rate:.0f} img/s" if rate >= 10 else f"{rate:.2f} img/s")
        steps, seconds = self._measured
        if steps:
            left = max(self._total - step, 0) * seconds / steps
            parts.append(f"ETA {_clock(left)}")
        return parts

    def message(self, text: str) -> None:
        """One line of text, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            self._write(text)

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

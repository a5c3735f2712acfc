"""Batches of a large set, prepared ahead of the steps that want them, by grain.

The order of the examples is a function of the step, so a stream may begin at any step:
resuming is exact, whatever the number of threads or workers, and every process of many
reads its own part of the batch.
"""

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = dict[str, np.ndarray]
# step -> indices [b] of its examples; travels to other processes
Order = Callable[[int], np.ndarray]
# (index, step) -> ({key: array}, what could not be read on the way); likewise
Example = Callable[[int, int], tuple[Row, list[Any]]]
AHEAD = 4  # batches, for each thread or worker at the most
# What a batch system or a terminal sends to all processes is for the first of them.
_NOT_FOR_WORKERS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


def batches(
    example: Example,
    order: Order,
    first: int,
    last: int,
    *,
    threads: int = 16,
    workers: int = 0,
) -> Iterator[tuple[Row, list[Any]]]:
    """The batches of steps first .. last-1: {key: [b, ...]} stacked over examples.

    Whoever stops early closes the iterator, which ends threads and processes.

    Args:
      example: called in a thread or another process.
      order: which examples a step wants, and in which order.
      threads: of this process that prepare examples, for 0 workers.
      workers: processes; where decoding in Python itself is what takes the time. They
        compute nothing with jax, see no accelerator, and do not run the program's own
        file, so that a script needs no `if __name__ == "__main__":` for them.
    Yields:
      (batch, what could not be read for it).
    Raises:
      OSError: a worker was ended from outside.
    """
    if first >= last:
        return
    make = _by_processes if workers else _by_threads
    rows = make(example, order, first, last, workers or threads)
    with contextlib.closing(rows):
        yield from rows


def _by_threads(example, order, first, last, threads):
    import grain

    size = len(order(first))

    def one(n: int) -> tuple[Row, list[Any]]:
        step, position = divmod(int(n), size)
        return example(int(order(first + step)[position]), first + step)

    data = grain.MapDataset.range((last - first) * size).map(one)
    ahead = min(AHEAD * size, 2048)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    rows = iter(data.to_iter_dataset(options).batch(size, batch_fn=_stacked))
    try:
        yield from rows
    finally:
        rows.close()


def _by_processes(example, order, first, last, workers):
    import grain

    _parse_flags()

    def batch(n: int) -> _Sealed:
        step = first + int(n)
        return _Sealed(_stacked([example(int(i), step) for i in order(step)]))

    # whole batches: a worker gets every so many-th element of the range
    data = grain.MapDataset.range(last - first).map(batch)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    data = data.to_iter_dataset(options)
    options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
    rows = iter(data.mp_prefetch(options, worker_init_fn=_begin_worker))
    try:
        with _without_program():
            begun = list(itertools.islice(rows, workers))
        for sealed in itertools.chain(begun, rows):
            yield sealed.found
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise OSError(
            f"data.workers: got {workers}, one of which was ended from outside ("
            f"{str(error).partition('.')[0]}); out of memory, perhaps: expected fewer, "
            "or 0, which reads in threads"
        ) from error
    finally:
        rows.close()


@dataclass(frozen=True)
class _Sealed:
    """A batch on its way, of which grain does not see the arrays.

    It would put them into shared memory, and leave some of it behind at the end.
    """

    found: tuple[Row, list[Any]]


def _stacked(found: list[tuple[Row, list[Any]]]) -> tuple[Row, list[Any]]:
    rows = [row for row, _ in found]
    batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    return batch, [item for _, lost in found for item in lost]


def _begin_worker(index: int, count: int) -> None:
    """Lets the first process alone hear signals, and ends this one with it."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # should anything ask: no memory of a GPU
    for name in _NOT_FOR_WORKERS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def _without_program():
    """Hides the file of the program from processes that are started meanwhile.

    Python would run it anew in each of them, all of it where it has no main guard. What
    is theirs to do is sent by value, also if it was defined there.
    """
    program = vars(sys.modules["__main__"])
    kept = {key: program[key] for key in ("__file__", "__spec__") if key in program}
    program.pop("__file__", None)
    program["__spec__"] = None
    try:
        yield
    finally:
        program.update(kept)


def _parse_flags() -> None:
    """For programs that are no absl ones: grain's processes read flags of absl."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

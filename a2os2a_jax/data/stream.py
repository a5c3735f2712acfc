"""Batches of a large set, prepared ahead of the steps that want them, by grain.

The order of the examples is a function of the step, so a stream may begin at any step:
resuming is exact, whatever the number of threads or workers, and every process of many
reads its own part of the batch.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Order = Callable[[int], np.ndarray]  # step -> indices [b] that this process loads
AHEAD = 4  # batches, for each thread or worker at the most


def batches(
    example: Callable[[int, int], dict[str, np.ndarray]],
    order: Order,
    first: int,
    last: int,
    *,
    threads: int = 16,
    workers: int = 0,
) -> Iterator[Any]:
    """The batches of steps first .. last-1: {key: [b, ...]} stacked over examples.

    Args:
      example: (index, step) -> {key: array}, called in a thread or another process.
      order: which examples a step wants, and in which order.
      threads: of this process that prepare examples, for 0 workers.
      workers: processes; where decoding in Python itself is what takes the time.
    """
    import grain

    size = len(order(first)) if first < last else 1

    def stacked(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

    if workers:
        _parse_flags()

        def batch(n: int) -> dict[str, np.ndarray]:
            step = first + int(n)
            return stacked([example(int(i), step) for i in order(step)])

        # whole batches: a worker gets every so many-th element of the range
        data = grain.MapDataset.range(last - first).map(batch)
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        data = data.to_iter_dataset(options)
        options = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
        return iter(data.mp_prefetch(options))

    def one(n: int) -> dict[str, np.ndarray]:
        step, position = divmod(int(n), size)
        return example(int(order(first + step)[position]), first + step)

    data = grain.MapDataset.range((last - first) * size).map(one)
    ahead = min(AHEAD * size, 2048)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return iter(data.to_iter_dataset(options).batch(size))


def _parse_flags() -> None:
    """For programs that are no absl ones: grain's processes read flags of absl."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

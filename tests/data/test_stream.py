import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from a2os2a_jax.data import stream


def order(step):
    return np.array([10 * step, 10 * step + 1, 7])


def one(index, step):
    return {"index": np.int64(index), "step": np.full(2, step)}


def check(batches, first, last):
    batches = list(batches)
    assert len(batches) == last - first
    for step, batch in zip(range(first, last), batches, strict=True):
        np.testing.assert_array_equal(batch["index"], order(step))
        np.testing.assert_array_equal(batch["step"], np.full((3, 2), step))


@pytest.mark.parametrize(("first", "last"), [(0, 5), (3, 5), (2, 2)])
@pytest.mark.parametrize("threads", [0, 4])
def test_batches_come_in_the_order_of_the_steps(first, last, threads):
    check(stream.batches(one, order, first, last, threads=threads), first, last)


def test_slow_examples_do_not_change_the_order():
    def slow(index, step):
        time.sleep(0.02 * (index % 3))
        return one(index, step)

    check(stream.batches(slow, order, 0, 6, threads=8), 0, 6)


def test_they_are_prepared_ahead():
    seen = threading.Event()

    def watched(index, step):
        if step == 3:
            seen.set()
        return one(index, step)

    batches = stream.batches(watched, order, 0, 9, threads=4)
    next(batches)
    assert seen.wait(10)


def test_what_goes_wrong_reaches_the_caller():
    def bad(index, step):
        if step == 2:
            raise ValueError("row 20 is broken")
        return one(index, step)

    batches = stream.batches(bad, order, 0, 5, threads=2)
    with pytest.raises(ValueError, match="row 20 is broken"):
        list(batches)


WORKERS = """
import numpy as np
from a2os2a_jax.data import stream

def order(step):
    return np.array([10 * step, 10 * step + 1, 7])

def one(index, step):
    return {"index": np.int64(index), "step": np.full(2, step)}

if __name__ == "__main__":
    rows = list(stream.batches(one, order, 2, 7, workers=2))
    print([row["index"].tolist() for row in rows])
"""


def test_processes_give_the_same_batches(tmp_path):
    (tmp_path / "w.py").write_text(WORKERS)
    found = subprocess.run(
        [sys.executable, tmp_path / "w.py"], capture_output=True, text=True, cwd="."
    )
    expected = str([order(step).tolist() for step in range(2, 7)])
    assert found.stdout.strip() == expected, found.stderr[-2000:]

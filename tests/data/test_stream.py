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
    lost = [f"{step}: {index}"] if index == 7 else []
    return {"index": np.int64(index), "step": np.full(2, step)}, lost


def check(batches, first, last):
    batches = list(batches)
    assert len(batches) == last - first
    for step, (batch, lost) in zip(range(first, last), batches, strict=True):
        assert lost == [f"{step}: 7"]
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


PROGRAM = """
import dataclasses, os, signal, sys
import numpy as np
from a2os2a_jax.data import stream

@dataclasses.dataclass(frozen=True)
class Example:  # of the program itself, not of a module that others could import
    last: int

    def __call__(self, index, step):
        if step == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"index": np.int64(index), "process": np.int64(os.getpid())}, []

def order(step):
    return np.array([10 * step, 10 * step + 1, 7])

print("begins")
rows = stream.batches(Example(int(sys.argv[1])), order, 2, 7, workers=2)
try:
    found = [row for row, _ in rows]
    print([row["index"].tolist() for row in found])
    print(len({int(row["process"][0]) for row in found} - {os.getpid()}))
except OSError as error:
    print(error)
print("ends")
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "no_guard.py"
    path.write_text(PROGRAM)

    def run(*words, **options):
        return subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=".", **options
        )

    return path, run


def test_processes_give_the_same_batches_to_a_program_without_a_main_guard(program):
    path, run = program
    found = run(path, "-1")
    expected = [order(step).tolist() for step in range(2, 7)]
    lines = ["begins", str(expected), "2", "ends"]
    assert found.stdout.splitlines() == lines, found.stderr[-2000:]
    assert not found.stderr


def test_a_worker_that_dies_ends_the_program_with_one_line(program):
    path, run = program
    found = run("-", "5", input=path.read_text())  # as a notebook: there is no file
    begins, line, ends = found.stdout.splitlines()
    assert line.startswith("data.workers: got 2, one of which was ended from outside")
    assert "exit code -9" in line and not found.stderr, found.stderr[-2000:]

"""One process at a time in a directory, also after one that was killed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from a2os2a_jax import config as configs
from a2os2a_jax import main
from a2os2a_jax.train import lock, loop, workdir

ROOT = Path(__file__).resolve().parents[2]
SMOKE = f"--config={ROOT / 'configs' / 'digits.py'}:smoke"
# jax is not imported: the module is loaded from its file
_HOLD = f"""
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("lock", {lock.__file__!r})
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
with lock.held(sys.argv[1], "train"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "STALE", 1.0)


def plant(folder, age=0.0, **changes):
    """A lock of another process; of another host, unless `changes` say more."""
    record = lock._myself() | {"host": "far", "mode": "train", "since": "noon"}
    path = folder / lock.NAME
    path.write_text(json.dumps(record | changes))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_it_needs_the_standard_library_alone(tmp_path):
    code = _HOLD.replace("time.sleep(60)", "print('jax' in sys.modules)")
    line = [sys.executable, "-S", "-c", code, str(tmp_path)]
    assert subprocess.check_output(line, text=True) == "held\nFalse\n"


def test_a_second_process_is_refused_in_one_line(other, tmp_path, capsys):
    for mode in ("train", "eval", "preview", "certify"):
        assert main.main(["main", SMOKE, f"--workdir={tmp_path}", f"--mode={mode}"])
        out, err = capsys.readouterr()
        (line,) = err.splitlines()
        assert out == "" and line.startswith(f"error: workdir {tmp_path}: got one in")
        for needle in (f"process {other.pid} on ", "--mode=train, since ", "delete "):
            assert needle in line
    with pytest.raises(lock.InUseError, match=f"process {other.pid}"):
        loop.run(configs.default(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [lock.NAME]


@pytest.mark.parametrize("mode", sorted(set(main.MODES) - {"plan", "predict"}))
def test_every_mode_that_writes_there_holds_it(mode, tmp_path, monkeypatch):
    command, seen = importlib.import_module(main.MODES[mode]), []

    def run(config, workdir):
        record = json.loads((tmp_path / "new" / lock.NAME).read_text())
        seen.append((record["mode"], record["pid"]))
        return {"addition_only": True}

    monkeypatch.setattr(command, "run", run)
    folder = tmp_path / "new"
    assert main.main(["main", SMOKE, f"--workdir={folder}", f"--mode={mode}"]) == 0
    assert seen == [(mode, os.getpid())]
    assert list(tmp_path.iterdir()) == []  # made for the lock, and empty


def test_the_lock_of_a_killed_process_is_taken_over(other, tmp_path, capsys):
    other.kill()
    other.wait()
    assert (tmp_path / lock.NAME).exists()
    with lock.held(tmp_path, "eval"):
        assert json.loads((tmp_path / lock.NAME).read_text())["mode"] == "eval"
    assert f"took over from process {other.pid} on " in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_zombie_is_dead(other, tmp_path):
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # and stays unburied
    with lock.held(tmp_path, "eval"):
        pass


def test_a_process_number_that_is_used_again_is_another_process(tmp_path):
    if not lock._myself()["started"]:
        pytest.skip("this host does not tell when a process started")
    plant(tmp_path, host=lock._myself()["host"], started="1")
    with lock.held(tmp_path, "eval"):
        pass


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT"])
def test_a_signal_that_ends_the_process_lets_go(other, tmp_path, name):
    number = signal.Signals[name]
    other.send_signal(number)
    assert other.wait(20) == -number
    assert list(tmp_path.iterdir()) == []


def test_an_error_lets_go_and_handlers_come_back(tmp_path):
    before = [signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(ZeroDivisionError), lock.held(tmp_path / "a" / "b", "train"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    after = [signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)]
    assert after == before


def test_what_a_run_wrote_stays(tmp_path):
    with lock.held(tmp_path / "a", "train"):
        (tmp_path / "a" / "result.json").touch()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["result.json"]


def test_one_thread_may_hold_it_twice_and_another_may_not(tmp_path):
    refused = []

    def other():
        try:
            with lock.held(tmp_path, "train"):
                pass
        except lock.InUseError as error:
            refused.append(str(error))

    (tmp_path / "link").symlink_to(tmp_path)
    with lock.held(tmp_path, "train"):
        with lock.held(tmp_path / "link", "train"):
            pass
        assert (tmp_path / lock.NAME).exists()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1 and f"process {os.getpid()} " in refused[0]


def test_only_the_first_process_of_a_run_holds_it(tmp_path):
    with lock.held(tmp_path, "train"), lock.held(tmp_path, "train", process=1):
        pass


def test_another_host_that_beats_is_refused(tmp_path, quick, capsys):
    path, ended = plant(tmp_path), threading.Event()

    def beat():
        while not ended.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(lock.InUseError, match="on far .--mode=train, since noon"):
            with lock.held(tmp_path, "eval"):
                pass
    finally:
        ended.set()
        thread.join()
    assert "watching for 1 s at most" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == [lock.NAME]


@pytest.mark.parametrize("changes", [{}, {"boot": "another"}], ids=["host", "boot"])
def test_another_host_that_is_silent_is_taken_over(tmp_path, changes, capsys):
    here = {"host": lock._myself()["host"]} if changes else {}
    plant(tmp_path, lock.STALE + 1, **changes, **here)
    with lock.held(tmp_path, "eval"):
        pass
    assert "took over from process" in capsys.readouterr().out


def test_a_fresh_lock_of_a_host_that_died_is_waited_for(tmp_path, quick):
    plant(tmp_path, age=0.8)
    with lock.held(tmp_path, "eval"):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_lock_that_was_never_written_is_no_obstacle_for_long(tmp_path, quick, text):
    (tmp_path / lock.NAME).write_text(text)
    with lock.held(tmp_path, "eval"):
        pass


def test_a_lock_that_goes_while_it_is_looked_at_is_nobodys(tmp_path):
    lock._clear(tmp_path / lock.NAME)  # and it is tried again


def test_a_lock_of_a_clock_that_was_set_back_is_not_watched_for_ever(tmp_path, quick):
    plant(tmp_path, age=-1000.0)
    with lock.held(tmp_path, "eval"):
        pass


def test_the_holder_refreshes_its_lock(tmp_path, quick):
    with lock.held(tmp_path, "train"):
        path = tmp_path / lock.NAME
        os.utime(path, (1, 1))
        end = time.monotonic() + 10
        while path.stat().st_mtime < 2:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_of_two_that_find_a_dead_lock_one_gets_it(tmp_path):
    """What is moved aside may be the lock that the other has just made."""
    path = plant(tmp_path, lock.STALE + 1)
    sound, seen = Path.rename, []

    def late(self, target):
        if not seen:  # the other one is quicker
            seen.append(plant(tmp_path, host=lock._myself()["host"]))
        return sound(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", late)
        with pytest.raises(lock.InUseError), lock.held(tmp_path, "eval"):
            pass
    assert json.loads(path.read_text())["pid"] == os.getpid()
    assert [p.name for p in tmp_path.iterdir()] == [lock.NAME]


def test_where_nothing_can_be_written_there_is_nothing_to_hold(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "file").touch()
    with lock.held(tmp_path / "file" / "run", "train"):
        pass
    monkeypatch.setattr(os, "open", refuse)
    with lock.held(tmp_path, "train"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_lock_makes_no_folder_somebody_elses(tmp_path):
    plant(tmp_path)
    (tmp_path / f"{lock.NAME}.far.12").touch()
    assert workdir.is_free(tmp_path)

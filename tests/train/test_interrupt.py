import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import pytest
from jax.experimental import multihost_utils

from a2os2a_jax.train.interrupt import SIGNALS, Interrupt

ROOT = Path(__file__).resolve().parent.parent.parent


def _handlers():
    return [signal.getsignal(number) for number in SIGNALS]


def test_the_signals_of_closed_terminals_and_of_schedulers_are_among_them():
    names = {"SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"}
    assert {number.name for number in SIGNALS} == names


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_the_handlers_come_back(number):
    before = _handlers()
    with Interrupt() as interrupt:
        assert interrupt.requested(1) is None
        signal.raise_signal(number)
        assert interrupt.requested(1) == interrupt.requested(2) == number.name
    assert interrupt.requested(2) == number.name  # still known
    assert _handlers() == before
    with interrupt:
        assert interrupt.requested(1) is None


def test_a_second_ctrl_c_is_at_once(capfd):
    before = _handlers()
    with pytest.raises(KeyboardInterrupt):
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert interrupt.requested(1) == "SIGINT"
            signal.raise_signal(signal.SIGINT)
            pytest.fail("it went on")
    assert _handlers() == before
    assert capfd.readouterr() == ("", "")


def test_the_first_signal_names_the_request_and_sigterm_may_come_twice():
    with Interrupt() as interrupt:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
            assert interrupt.requested(1) == "SIGTERM"
        with pytest.raises(KeyboardInterrupt):  # somebody is at the keyboard
            signal.raise_signal(signal.SIGINT)


def test_an_error_brings_back_a_handler_of_the_callers():
    heard, ours = [], lambda number, frame: heard.append(number)
    old = signal.signal(signal.SIGTERM, ours)
    try:
        with pytest.raises(ZeroDivisionError), Interrupt():
            raise ZeroDivisionError
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, old)
    assert heard == [signal.SIGTERM]


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_what_nohup_or_the_caller_ignores_stays_ignored(name):
    number = signal.Signals[name]
    old = signal.signal(number, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(number)
            assert interrupt.requested(1) is None
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, old)


def test_outside_the_main_thread_nothing_is_installed():
    before, seen = _handlers(), []

    def work():
        with Interrupt() as interrupt:
            seen.append((_handlers(), interrupt.requested(1)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, None)]


def test_several_processes_ask_jax(monkeypatch):
    asked, before, heard = [], _handlers(), []
    monkeypatch.setattr(os, "kill", lambda pid, number: heard.append(number))

    def reached(step):
        asked.append(step)
        return step == 2

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", reached)
    with Interrupt() as interrupt:
        assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == [
            before[SIGNALS.index(n)] for n in (signal.SIGTERM, signal.SIGINT)
        ]
        assert [interrupt.requested(n) for n in (1, 2)] == [None, "SIGTERM"]
        for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):  # jax hears SIGTERM alone
            signal.raise_signal(signal.Signals[name])
        assert heard == [signal.SIGTERM] * 3
    assert asked == [1, 2] and _handlers() == before

    def off(step):
        raise RuntimeError("the preemption service is off")

    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", off)
    with Interrupt() as interrupt:
        assert interrupt.requested(1) is None


_STEPS = """
import sys, time, jax
if len(sys.argv) > 1:
    jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from a2os2a_jax.train.interrupt import Interrupt
with Interrupt() as interrupt:
    for step in range(1, 600):
        if name := interrupt.requested(step):
            break
        print(step, flush=True)
        time.sleep(0.05)
print(f"stopped at {step} by {name}", flush=True)
"""


def _start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", _STEPS, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_process_that_is_told_to_stop_ends_by_itself():
    process = _start()
    assert process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and out.endswith(" by SIGTERM\n")


@pytest.mark.slow
def test_processes_of_one_run_stop_at_one_step():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [_start(address, n) for n in range(2)]
    for process in processes:
        assert process.stdout.readline() == "1\n"
    processes[1].send_signal(signal.SIGTERM)
    last = [p.communicate(timeout=120)[0].splitlines()[-1] for p in processes]
    assert last[0] == last[1] and last[0].endswith(" by SIGTERM")
    assert [p.returncode for p in processes] == [0, 0]

"""A run that is stopped, interrupted or killed ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax import main
from a2os2a_jax.modules.norm import BatchNorm
from a2os2a_jax.train import checkpoint, loop, metrics, setup
from a2os2a_jax.train.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS, EPOCH, SAVE = 56, 7, 4  # of the toy


class Toy(nn.Module):
    """Compiles at once."""

    frozen = ()

    @nn.compact
    def __call__(self, x, train=False):
        x = BatchNorm(name="bn")(x.reshape(len(x), -1), train)
        self.sow("spikes", "out", x > 0.5)
        self.sow("potentials", "out", x)
        return nn.Dense(4, name="head")(x)


def toy_config(**changes):
    c = configs.default()
    c.data.update(name="fake", size=8, channels=1, classes=4, validation=32)
    c.augment.update(flip=True, shift=1.0)
    c.optim.update(lr=1e-2, warmup_epochs=0.5)
    c.train.update(batch=32, epochs=8.0, log_steps=1, save_epochs=0.5, ema=0.9)
    c.eval.batch = 64
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def run_toy(workdir, loggers=(), **changes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "build", lambda *_, **__: Toy())
        return loop.run(toy_config(**changes), workdir, loggers=loggers)


def last_state(workdir, config):
    """(step, all arrays of the last checkpoint), none of which is broken."""
    checkpoints = Checkpoints(Path(workdir) / "checkpoints")
    step, state = checkpoints.restore(setup.prepare(config).abstract_state())
    assert not checkpoints.skipped
    return step, jax.device_get(state)


def toy_state(workdir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "build", lambda *_, **__: Toy())
        return last_state(workdir, toy_config())


def lines(workdir):
    """{(step, split): record without what a clock says}, each there once."""
    records = metrics.read_lines(Path(workdir) / "metrics.jsonl")
    found = {
        (r["step"], r["split"]): {k: v for k, v in r.items() if k != "images_per_s"}
        for r in records
    }
    assert len(found) == len(records)
    return found


def result(workdir):
    """result.json without what a clock says."""
    found = json.loads((Path(workdir) / "result.json").read_text())
    return {k: v for k, v in found.items() if not k.endswith("_seconds")}


def assert_equal_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes()


def assert_same_run(workdir, whole, state):
    """Files and state of `workdir` are those of the uninterrupted `whole`."""
    assert state(workdir)[0] == state(whole)[0]
    assert_equal_bits(state(workdir)[1], state(whole)[1])
    assert lines(workdir) == lines(whole)
    got, want = result(workdir), result(whole)
    assert {k: got[k] for k in want if k != "config"} == {
        k: want[k] for k in want if k != "config"
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    run_toy(workdir)
    return workdir


class Killed(Exception):
    pass


def at(step, act):
    """A logger that acts once, when `step` is logged."""
    done = []

    def logger(record):
        if record["step"] == step and not done:
            done.append(step)
            act()

    return logger


def kill():
    raise Killed


def stop(workdir, step, how):
    """Runs until `step` and stops there, or is killed right after it."""
    if how == "killed":
        with pytest.raises(Killed):
            run_toy(workdir, loggers=[at(step + 1, kill)])
    elif how == "train.stop_after":
        found = run_toy(workdir, train__stop_after=step)
        assert (found["stopped_at"], "stopped_by" in found) == (step, False)
        assert last_step(workdir) == step
    else:
        number = signal.Signals[how]
        told = at(step - 1, lambda: signal.raise_signal(number))
        scored = (step - 1) % EPOCH == 0 or (step - 1) % SAVE == 0
        step -= scored  # heard while it was to be scored, else in the next step
        found = run_toy(workdir, loggers=[told])
        assert (found["stopped_at"], found["stopped_by"]) == (step, how)
        assert last_step(workdir) == step
    assert not (workdir / "result.json").exists()


def last_step(workdir):
    return Checkpoints(workdir / "checkpoints").steps()[-1]


WAYS = ("SIGTERM", "train.stop_after", "SIGINT", "killed", "SIGHUP", "SIGUSR1")


@pytest.mark.parametrize(
    "cycles", [2, pytest.param(20, marks=pytest.mark.slow)], ids="{}-cycles".format
)
def test_stop_and_go_at_random_steps_changes_nothing(whole, tmp_path, cycles):
    seed = 2 if cycles == 2 else random.randrange(2**32)
    print("seed", seed)  # shown if it fails
    draw = random.Random(seed)
    stops = sorted(draw.sample(range(4, STEPS - 2 - cycles), cycles))
    for number, step in enumerate(stops):
        stop(tmp_path, step + number, WAYS[number % len(WAYS)])  # two apart at least
    run_toy(tmp_path)
    assert_same_run(tmp_path, whole, toy_state)


def test_saves_are_scored_and_the_best_is_kept(whole):
    accuracy = {
        step: r["accuracy"]
        for (step, split), r in lines(whole).items()
        if split == "validation"
    }
    steps = range(1, STEPS + 1)
    assert list(accuracy) == [n for n in steps if n % EPOCH == 0 or n % SAVE == 0]
    saved = {n: a for n, a in accuracy.items() if n % SAVE == 0}
    best = max(saved, key=saved.get)
    checkpoints = Checkpoints(whole / "checkpoints")
    assert checkpoints.best() == best
    assert checkpoints.steps() == sorted({best, STEPS - SAVE, STEPS})


def test_the_config_says_how_many_are_kept(tmp_path):
    run_toy(tmp_path, train__keep=1, data__validation=0, train__stop_after=9)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [9]


@pytest.mark.parametrize(
    ("step", "split", "stops_at"),
    [
        (EPOCH - 1, "train", EPOCH),  # heard in a step that would be validated
        # comes while that is being done, and after the last step
        pytest.param(EPOCH, "train", EPOCH, marks=pytest.mark.slow),
        pytest.param(STEPS, "train", STEPS, marks=pytest.mark.slow),
        (STEPS, "validation", STEPS),  # while the end is judged
    ],
)
def test_a_signal_waits_for_no_score(whole, tmp_path, step, split, stops_at):
    def told(record):
        if (record["step"], record["split"]) == (step, split):
            signal.raise_signal(signal.SIGTERM)

    found = run_toy(tmp_path, loggers=[told])
    assert (found["stopped_at"], found["stopped_by"]) == (stops_at, "SIGTERM")
    assert last_step(tmp_path) == stops_at
    missing = lines(whole).keys() - lines(tmp_path).keys()
    kind = "validation" if split == "train" else "test"
    assert (stops_at, kind) in missing
    run_toy(tmp_path)
    assert_same_run(tmp_path, whole, toy_state)


def test_a_planned_stop_changes_no_best_checkpoint(whole, tmp_path):
    run_toy(tmp_path, train__stop_after=EPOCH + 3)
    run_toy(tmp_path)
    assert_same_run(tmp_path, whole, toy_state)
    best = [Checkpoints(folder / "checkpoints").best() for folder in (tmp_path, whole)]
    assert best[0] == best[1]


def test_a_signal_in_the_first_step_is_heard(whole, tmp_path, monkeypatch):
    sound = jax.block_until_ready

    def signalled(x):
        signal.raise_signal(signal.SIGTERM)
        return sound(x)

    with monkeypatch.context() as patch:
        patch.setattr(jax, "block_until_ready", signalled)
        found = run_toy(tmp_path)
    assert (found["stopped_at"], found["stopped_by"]) == (1, "SIGTERM")
    assert set(lines(tmp_path)) == {(1, "train")}  # and not kept waiting for a score
    assert Checkpoints(tmp_path / "checkpoints").best() is None


def test_a_signal_at_the_end_is_obeyed_and_the_next_start_judges(whole, tmp_path):
    told = at(STEPS, lambda: signal.raise_signal(signal.SIGINT))
    found = run_toy(tmp_path, loggers=[told])
    assert (found["stopped_at"], found["stopped_by"]) == (STEPS, "SIGINT")
    assert not (tmp_path / "result.json").exists()
    run_toy(tmp_path)
    assert_same_run(tmp_path, whole, toy_state)


def test_checkpoints_are_durable_before_there_is_a_result(tmp_path, monkeypatch):
    sound, seen = checkpoint._write_sums, []

    def slow(path):
        assert not (tmp_path / "result.json").exists()
        time.sleep(0.3)
        sound(path)
        seen.append(path.name)

    monkeypatch.setattr(checkpoint, "_write_sums", slow)
    monkeypatch.setattr(loop, "write_json", lambda path, _: seen.append(path.name))
    run_toy(tmp_path, train__epochs=1.0)
    assert seen == ["4", "7", "result.json"]


# ---- the program itself


def start(workdir, *flags):
    command = [sys.executable, "-m", "a2os2a_jax.main", f"--workdir={workdir}", *flags]
    with open(workdir.with_suffix(".out"), "w") as out:
        how = dict(cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        return subprocess.Popen(command, **how)


def output(workdir):
    return workdir.with_suffix(".out").read_text()


def size(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(workdir, process, more):
    """Returns when metrics.jsonl has grown by `more` lines."""
    before, seen = size(workdir), -1
    while seen < before + more:
        assert process.poll() is None, output(workdir)
        time.sleep(0.01)
        seen = size(workdir)
        before = min(before, seen)  # what follows the last checkpoint is cut off


SMOKE = (
    *("--config=configs/digits.py:smoke", "--config.train.steps=120"),
    *("--config.train.log_steps=1", "--config.train.save_epochs=1.5"),
    "--config.model.variant=1-16",
)


def uninterrupted(workdir, flags):
    """The run of a command line, in this process, without figures."""
    at_root = [flag.replace("=configs/", f"={ROOT}/configs/") for flag in flags]
    config, *_ = main.parse(["main", f"--workdir={workdir}", *at_root])
    loop.run(config, workdir)
    return config


def no_figures(workdir):
    """Nothing here looks at them, and to draw them takes seconds."""
    (workdir / "figures").mkdir()
    for name in ("training_curves", "spike_raster"):
        (workdir / "figures" / f"{name}.png").touch()


@pytest.fixture
def quick_compilation(monkeypatch):
    """Halves it, and it takes most of the time here; for programs started, too."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.slow
def test_the_program_survives_sigterm_ctrl_c_and_sigkill(tmp_path, quick_compilation):
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    config = uninterrupted(whole, SMOKE)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process = start(workdir, *SMOKE)
        wait_for(workdir, process, 5)
        process.send_signal(number)
        assert process.wait(60) == 0, output(workdir)
        (saved,) = [s for s in output(workdir).splitlines() if s.startswith("stopped")]
        last = Checkpoints(workdir / "checkpoints").steps()[-1]
        said = f"stopped after step {last} by {number.name}; saved; "
        assert saved == said + "the same command goes on"
        assert max(lines(workdir))[0] == last  # nothing is lost, nothing repeated
        assert not (workdir / "result.json").exists()

    no_figures(workdir)
    process = start(workdir, *SMOKE)
    wait_for(workdir, process, 20)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL

    assert start(workdir, *SMOKE).wait(120) == 0, output(workdir)
    assert "resuming after step" in output(workdir)
    assert_same_run(workdir, whole, lambda folder: last_state(folder, config))


@pytest.mark.slow
def test_a_run_on_digits_survives_five_sigkills_at_random_moments(tmp_path):
    flags = (
        *("--config=configs/digits.py", "--config.train.epochs=4"),
        *("--config.train.save_epochs=0.5", "--config.train.log_steps=1"),
    )
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    config = uninterrupted(whole, flags)

    draw = random.Random(int.from_bytes(os.urandom(4)))
    seen = []
    for number in range(5):
        process = start(workdir, *flags)
        if number:  # the first may be killed while it starts
            wait_for(workdir, process, draw.randint(1, 12))
        time.sleep(draw.uniform(0, 0.5 if number else 5))
        process.kill()
        assert process.wait(60) == -signal.SIGKILL, (seen, output(workdir))
        steps = Checkpoints(workdir / "checkpoints").steps()
        seen.append((size(workdir), steps[-1:]))
    print("lines and last checkpoints when killed:", seen)

    assert start(workdir, *flags).wait(600) == 0, (seen, output(workdir))
    assert_same_run(workdir, whole, lambda folder: last_state(folder, config))

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging as absl_logging

from a2os2a_jax.train import checkpoint
from a2os2a_jax.train.checkpoint import Checkpoints


class State(NamedTuple):
    step: jax.Array
    params: Any
    opt: Any
    key: jax.Array


def _state(step=0, width=5):
    w = jax.random.normal(jax.random.key(step), (64, width))
    params = {"dense": {"w": w, "b": jnp.full(width, step, jnp.bfloat16)}}
    opt = optax.adamw(1e-3).init(params)
    return State(jnp.int32(step), params, opt, jax.random.key(step))


def _abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def _assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with steps 1 and 2, copied by those who break it."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(directory) as c:
        c.save(1, _state(1), {"epoch": 0.5})
        c.save(2, _state(2), {"epoch": 1.0, "names": ["a", None]})
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def test_the_latest_comes_back_whole(saved):
    step, state = Checkpoints(saved).restore(_abstract(_state()))
    assert step == 2
    _assert_equal(state, _state(2))
    assert Checkpoints(saved).meta(2) == {"epoch": 1.0, "names": ["a", None]}


def test_meta_that_is_not_json_is_refused(tmp_path):
    with Checkpoints(tmp_path) as c:
        with pytest.raises(ValueError, match="checkpoint meta: .* expected JSON"):
            c.save(1, {"x": jnp.ones(3)}, {"a": object()})
        assert c.steps() == []


def test_nothing_to_restore(tmp_path):
    c = Checkpoints(tmp_path / "absent")
    assert c.restore(_abstract(_state())) is None and c.steps() == []
    assert not (tmp_path / "absent").exists()  # reading makes no directory


def _save_scored(directory, keep, scores):
    """Saves steps 1, 2, … with these scores; [(steps on disk, the best)]."""
    seen = []
    with Checkpoints(directory, keep) as c:
        for step, score in enumerate(scores, 1):
            c.save(step, {"x": jnp.full(3, step)}, score=score)
            seen.append((c.steps(), c.best()))
    return seen


KEPT = {  # keep, scores -> what is on disk and the best, after each save
    "no scores": (2, [None] * 3, [([1], None), ([1, 2], None), ([2, 3], None)]),
    "one": (1, [None] * 3, [([1], None), ([2], None), ([3], None)]),
    "all": (None, [3, 1, 2], [([1], 1), ([1, 2], 1), ([1, 2, 3], 1)]),
    "the best is old": (1, [0.9, 0.1, 0.2], [([1], 1), ([1, 2], 1), ([1, 3], 1)]),
    "the best is beaten": (1, [0.1, 0.0, 0.2], [([1], 1), ([1, 2], 1), ([3], 3)]),
    "equal: the earlier": (1, [0.5, 0.5, 0.5], [([1], 1), ([1, 2], 1), ([1, 3], 1)]),
    "negative": (1, [-2, -3, -1], [([1], 1), ([1, 2], 1), ([3], 3)]),
    "some without": (1, [None, 0.0, None], [([1], None), ([2], 2), ([2, 3], 2)]),
}


@pytest.mark.parametrize("case", KEPT)
def test_the_latest_and_the_best_are_kept(tmp_path, case):
    keep, scores, want = KEPT[case]
    assert _save_scored(tmp_path, keep, scores) == want
    steps, best = want[-1]
    again = Checkpoints(tmp_path, keep)  # as in a new process
    assert (again.steps(), again.best()) == (steps, best)
    for step in steps:
        _, state = again.restore({"x": jnp.zeros(3, int)}, step)
        np.testing.assert_array_equal(state["x"], np.full(3, step))
    assert sorted(p.name for p in tmp_path.iterdir()) == list(map(str, steps))


def test_the_best_of_an_earlier_process_is_kept(tmp_path):
    _save_scored(tmp_path, 1, [0.7, 0.1])
    with Checkpoints(tmp_path, 1) as c:
        c.save(3, {"x": jnp.full(3, 3)}, score=0.2)
        c.save(4, {"x": jnp.full(3, 4)})
        assert (c.steps(), c.best()) == ([1, 4], 1)


def test_a_step_that_was_dropped_can_be_saved_again(tmp_path):
    with Checkpoints(tmp_path, 1) as c:
        for step in (1, 2):
            c.save(step, {"x": jnp.full(3, step)})
        c.save(1, {"x": jnp.full(3, 7)}, score=1.0)
        assert c.steps() == [1, 2]


def test_a_score_that_no_other_can_beat_or_lose_to_is_refused(tmp_path):
    with Checkpoints(tmp_path) as c:
        for score in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match="score: got .*, expected a finite"):
                c.save(1, {"x": jnp.ones(3)}, score=score)
        assert c.steps() == []


def test_a_checkpoint_that_cannot_be_read_is_not_the_best(tmp_path):
    _save_scored(tmp_path, None, [0.7, 0.1, 0.9])
    os.truncate(tmp_path / "3" / "_CHECKPOINT_METADATA", 9)
    metadata = tmp_path / "1" / "_CHECKPOINT_METADATA"
    about = json.loads(metadata.read_text())
    del about["custom_metadata"]["score"]  # as written before there were scores
    metadata.write_text(json.dumps(about))
    assert Checkpoints(tmp_path).best() == 2


def test_keep_below_1_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep 0, expected at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_a_donated_state_is_stored_as_it_was(tmp_path):
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = {"w": jax.random.normal(jax.random.key(0), (4_000_000,))}
    state |= {"b": jnp.arange(5, dtype=jnp.bfloat16), "step": jnp.int32(7)}
    state = jax.device_put(state, whole)
    step = jax.jit(
        lambda s: jax.tree.map(lambda x: x + jnp.asarray(1, x.dtype), s),
        donate_argnums=0,
        out_shardings=whole,
    )
    state = jax.block_until_ready(step(step(state)))  # compiled
    want, ran = jax.tree.map(lambda x: np.array(x, copy=True), state), 0
    with Checkpoints(tmp_path) as c:
        c.save(1, state)
        while not (tmp_path / "1").exists():  # it is being written meanwhile
            state = jax.block_until_ready(step(state))
            ran += 1
        assert ran
        _, got = c.restore(state)
    _assert_equal(got, want)


@pytest.fixture
def held(monkeypatch):
    """An event that saves wait for when they are about to write their sums."""
    go, write = threading.Event(), checkpoint._write_sums

    def wait_and_write(path):
        assert go.wait(30)
        write(path)

    monkeypatch.setattr(checkpoint, "_write_sums", wait_and_write)
    yield go
    go.set()


def test_a_save_returns_before_it_is_durable_and_wait_after(tmp_path, held):
    with Checkpoints(tmp_path) as c:
        c.save(1, {"x": jnp.ones(3)})
        assert not (tmp_path / "1" / "files.json").exists()
        threading.Timer(0.2, held.set).start()
        c.wait()
        assert (tmp_path / "1" / "files.json").exists()


READS = {
    "steps": lambda c: c.steps() == [1],
    "best": lambda c: c.best() == 1,
    "meta": lambda c: c.meta(1) == {"a": 1},
    "restore": lambda c: c.restore({"x": jnp.ones(3)})[0] == 1,
    "the next save": lambda c: c.save(2, {"x": jnp.ones(3)}) is None,
    "close": lambda c: c.close() is None,
}


@pytest.mark.parametrize("what", READS)
def test_what_follows_a_save_waits_for_it(tmp_path, held, what):
    with Checkpoints(tmp_path) as c:
        c.save(1, {"x": jnp.ones(3)}, {"a": 1}, score=0.5)
        threading.Timer(0.2, held.set).start()
        assert READS[what](c)
        assert (tmp_path / "1" / "files.json").exists()


def test_old_ones_are_dropped_after_the_new_one_is_whole(tmp_path, monkeypatch):
    seen, write = [], checkpoint._write_sums

    def watched(path):
        seen.append(sorted(p.name for p in tmp_path.iterdir()))
        write(path)
        checkpoint._verify(path)

    monkeypatch.setattr(checkpoint, "_write_sums", watched)
    _save_scored(tmp_path, 1, [None, None])
    assert seen == [["1"], ["1", "2"]]  # committed, and no temporary directory


@pytest.mark.parametrize("what", READS)
def test_a_failure_in_the_background_is_told_once(tmp_path, monkeypatch, what):
    def full(_):
        raise OSError("No space left on device")

    c = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_sums", full)
        c.save(1, {"x": jnp.ones(3)})
        with pytest.raises(OSError, match=r"/1 could not be written: No space left"):
            READS[what](c)
    with c:
        c.save(3, {"x": jnp.full(3, 3.0)})
        assert c.restore({"x": jnp.zeros(3)})[0] == 3


def test_a_full_disk_is_told_in_few_words(tmp_path, capfd):
    resource = pytest.importorskip("resource")  # of Unix
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    c, x = Checkpoints(tmp_path), np.random.default_rng(0).random((100, 100))
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=r"/1 could not be written: File too large$"):
            c.save(1, {"x": jnp.asarray(x)})
            c.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capfd.readouterr() == ("", "")


def test_a_failure_of_orbax_in_the_background_is_told_too(tmp_path, capfd):
    from orbax.checkpoint import v1

    sound = v1.training.Checkpointer.save_checkpointables_async

    def obstructed(self, step, *args, **options):
        begun = sound(self, step, *args, **options)
        (tmp_path / str(step) / "in the way").mkdir(parents=True)
        return begun

    with pytest.MonkeyPatch.context() as patch, Checkpoints(tmp_path) as c:
        patch.setattr(
            v1.training.Checkpointer, "save_checkpointables_async", obstructed
        )
        c.save(1, {"x": jnp.ones((1000, 1000))})
        with pytest.raises(OSError, match=r"/1 could not be written: Cannot rename"):
            c.wait()
    assert capfd.readouterr() == ("", "")  # the exception says it
    with Checkpoints(tmp_path, report=lambda line: None) as c:
        assert c.restore({"x": jnp.zeros((1000, 1000))}) is None
        c.save(2, {"x": jnp.ones(3)})
        assert c.restore({"x": jnp.zeros(3)})[0] == 2
        assert not list(tmp_path.glob("*tmp*"))


def test_a_deletion_that_was_killed_is_finished(tmp_path):
    _save_scored(tmp_path, 2, [None, None])
    (tmp_path / "1").rename(tmp_path / "1.dropped")
    shutil.rmtree(tmp_path / "1.dropped" / "state")
    with Checkpoints(tmp_path, 2) as c:
        assert c.steps() == [2]
        c.save(3, {"x": jnp.full(3, 3)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


def test_a_step_asked_for(saved):
    c = Checkpoints(saved)
    for step in (1, 2):
        got, state = c.restore(_abstract(_state()), step)
        assert got == step
        _assert_equal(state, _state(step))
    with pytest.raises(ValueError, match=r"got step 7, expected one of \[1, 2\]"):
        c.restore(_abstract(_state()), 7)
    with pytest.raises(ValueError, match="params/dense/c is not in it"):
        c.restore(_abstract(_params(_state(), c=jnp.zeros(5))), 1)


def test_a_step_asked_for_that_is_broken_is_an_error(copy):
    _flip(copy / "2")
    lines = []
    with Checkpoints(copy, report=lines.append) as c:
        with pytest.raises(OSError, match=r"/2 does not load: state/.* has checksum"):
            c.restore(_abstract(_state()), 2)
        assert c.skipped == {} and not lines
        c.save(3, _state(3))
        assert c.steps() == [2, 3]  # not moved aside: it was not passed over


def test_a_step_is_never_overwritten(copy):
    with Checkpoints(copy) as c:
        with pytest.raises(FileExistsError, match="exists, expected a new one"):
            c.save(2, _state(7))
        _assert_equal(c.restore(_abstract(_state()))[1], _state(2))


def test_a_step_below_the_latest_is_saved_too(copy):
    (copy / "1").rename(copy.parent / "1")
    with Checkpoints(copy) as c:
        c.save(1, _state(1))
        assert c.steps() == [1, 2]


def _data(path):
    return [p for p in path.glob("state/**/d/*") if p.is_file()]


def _truncate(path):
    for p in _data(path):
        os.truncate(p, p.stat().st_size // 2)


def _flip(path):
    p = max(_data(path), key=lambda p: p.stat().st_size)
    data = bytearray(p.read_bytes())
    data[len(data) // 2] ^= 1
    p.write_bytes(data)


def _empty(path):
    shutil.rmtree(path)
    path.mkdir()


def _file(path):
    shutil.rmtree(path)
    path.write_text("")


BREAK = {
    "empty directory": _empty,
    "a file": _file,
    "truncated data": _truncate,
    "missing data": lambda path: [p.unlink() for p in _data(path)],
    "flipped bit": _flip,
    "missing state": lambda path: shutil.rmtree(path / "state"),
    "missing tree": lambda path: (path / "state" / "_METADATA").unlink(),
    "truncated tree": lambda path: os.truncate(path / "state" / "_METADATA", 30),
    "truncated manifest": lambda path: os.truncate(path / "state/manifest.ocdbt", 9),
    "truncated sums": lambda path: os.truncate(path / "files.json", 9),
    "missing metadata": lambda path: (path / "_CHECKPOINT_METADATA").unlink(),
    "truncated metadata": lambda path: os.truncate(path / "_CHECKPOINT_METADATA", 9),
}


@pytest.mark.parametrize("how", BREAK)
def test_a_broken_step_is_reported_and_passed_over(copy, how):
    BREAK[how](copy / "2")
    before = sorted(str(p) for p in copy.rglob("*"))
    lines = []
    c = Checkpoints(copy, report=lines.append)
    step, state = c.restore(_abstract(_state()))
    assert step == 1
    _assert_equal(state, _state(1))
    assert list(c.skipped) == [2] and c.skipped[2]
    assert len(lines) == 1 and "\n" not in lines[0]
    assert lines[0].startswith(f"checkpoint {copy / '2'} skipped: ")
    assert sorted(str(p) for p in copy.rglob("*")) == before  # nothing moved yet


def test_the_reason_names_the_file(copy):
    _flip(copy / "2")
    c = Checkpoints(copy, report=lambda line: None)
    c.restore(_abstract(_state()))
    assert re.match(r"state/.*d/\w+ has checksum \d+, expected \d+$", c.skipped[2])
    _truncate(copy / "1")
    c.restore(_abstract(_state()))
    assert re.match(r"state/.*d/\w+ has \d+ bytes, expected \d+$", c.skipped[1])


def test_a_save_killed_before_its_sums_were_written_still_loads(copy):
    (copy / "2" / "files.json").unlink()
    step, state = Checkpoints(copy).restore(_abstract(_state()))
    assert step == 2
    _assert_equal(state, _state(2))


def test_a_skipped_step_is_moved_aside_by_the_next_save(copy):
    _truncate(copy / "2")
    (copy / "9").mkdir()
    lines = []
    with Checkpoints(copy, report=lines.append) as c:
        assert c.restore(_abstract(_state()))[0] == 1
        c.save(2, _state(7))
        assert c.steps() == [1, 2]
        step, state = c.restore(_abstract(_state()))
    assert step == 2
    _assert_equal(state, _state(7))
    (aside,) = copy.glob("2.broken-*")
    assert _data(aside)  # nothing is lost
    assert len(list(copy.glob("9.broken-*"))) == 1
    assert sum("moved aside to" in line for line in lines) == 2


def test_none_loads(copy):
    _empty(copy / "1")
    _empty(copy / "2")
    c = Checkpoints(copy, report=lambda line: None)
    assert c.restore(_abstract(_state())) is None
    assert sorted(c.skipped) == [1, 2]
    with pytest.raises(OSError, match=r"checkpoints/2: got an empty directory"):
        c.meta(2)


def test_reports_go_to_stderr_by_default(copy, capfd):
    _empty(copy / "2")
    Checkpoints(copy).restore(_abstract(_state()))
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()  # and orbax adds nothing of its own
    assert "2 skipped: got an empty directory" in line


def _params(state, **changes):
    return state._replace(params={"dense": {**state.params["dense"], **changes}})


OTHER = {
    "shape": (
        lambda s: _params(s, w=jnp.zeros((64, 6))),
        r"params/dense/w is float32\[64,5\], expected float32\[64,6\]",
    ),
    "dtype": (
        lambda s: _params(s, b=jnp.zeros(5)),
        r"params/dense/b is bfloat16\[5\], expected float32\[5\]",
    ),
    "more": (lambda s: _params(s, c=jnp.zeros(5)), "params/dense/c is not in it"),
    "fewer": (
        lambda s: s._replace(params={"dense": {"w": s.params["dense"]["w"]}}),
        r"params/dense/b bfloat16\[5\] is not expected",
    ),
    "optimizer": (
        lambda s: s._replace(opt=optax.sgd(1e-3, momentum=0.9).init(s.params)),
        r"7 leaves differ: .*; and 4 more",
    ),
}


@pytest.mark.parametrize("what", OTHER)
def test_another_model_is_an_error_that_names_what_differs(saved, what):
    change, message = OTHER[what]
    c = Checkpoints(saved)
    with pytest.raises(ValueError, match=message) as error:
        c.restore(_abstract(change(_state())))
    assert "\n" not in str(error.value) and c.skipped == {}


def test_trouble_that_is_not_the_checkpoints_is_raised(copy, monkeypatch):
    def denied(*_):
        try:
            raise PermissionError("denied")
        except PermissionError as e:
            raise KeyError("wrapped, as orbax does") from e

    monkeypatch.setattr(Checkpoints, "_load", denied)
    c = Checkpoints(copy)
    with pytest.raises(KeyError):
        c.restore(_abstract(_state()))
    assert c.skipped == {}


def test_a_sharding_that_does_not_fit_is_an_error(saved):
    class Uneven(jax.sharding.SingleDeviceSharding):
        def shard_shape(self, shape):
            raise ValueError("does not divide")

    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=Uneven(jax.devices()[0])
        ),
        _state(),
    )
    with pytest.raises(ValueError, match="does not divide"):
        Checkpoints(saved).restore(target)


_KILLED = """
import os, sys, threading, jax.numpy as jnp
from a2os2a_jax.train.checkpoint import Checkpoints
directory = sys.argv[1]
c = Checkpoints(directory)
c.save(1, {"x": jnp.ones(3)})
def kill():
    while not any(name.startswith("2") for name in os.listdir(directory)):
        pass
    os._exit(9)
threading.Thread(target=kill).start()
c.save(2, {"x": jnp.ones((2000, 2000))})
"""


def test_a_killed_save_is_no_checkpoint(tmp_path):
    code = subprocess.run(
        [sys.executable, "-c", _KILLED, tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
    ).returncode
    assert code == 9
    (left,) = [p.name for p in tmp_path.iterdir() if p.name != "1"]
    assert left.startswith("2.")  # or the test shows nothing
    with Checkpoints(tmp_path) as c:
        assert c.steps() == [1]
        assert c.restore({"x": jnp.zeros(3)})[0] == 1
        (tmp_path / "7.broken-1").mkdir()
        c.save(3, {"x": jnp.full(3, 2.0)})
        step, state = c.restore({"x": jnp.zeros(3)})
    assert step == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "3", "7.broken-1"]
    np.testing.assert_array_equal(state["x"], np.full(3, 2.0))


_TWO_TO_FOUR = """
import sys, jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from a2os2a_jax.train.checkpoint import Checkpoints
P, x = jax.sharding.PartitionSpec, jnp.arange(8.0)
def sharding(n):
    return jax.sharding.NamedSharding(
        jax.sharding.Mesh(np.array(jax.devices()[:n]), "d"), P("d"))
with Checkpoints(sys.argv[1]) as c:
    c.save(1, {"x": jax.device_put(x, sharding(2))})
    want = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(4))
    _, state = c.restore({"x": want})
assert state["x"].sharding == sharding(4), state["x"].sharding
assert (state["x"] == x).all() and not c.skipped
"""


def test_restores_onto_the_shardings_asked_for(tmp_path):
    subprocess.run(
        [sys.executable, "-c", _TWO_TO_FOUR, tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
        check=True,
    )


def test_orbax_is_quiet_and_others_are_not(tmp_path):
    heard = []

    class Handler(logging.Handler):
        def emit(self, record):
            heard.append(record.getMessage())

    logger, handler, level = absl_logging.get_absl_logger(), Handler(), None
    level = absl_logging.get_verbosity()
    logger.addHandler(handler)
    try:
        absl_logging.set_verbosity(absl_logging.INFO)  # as absl's app.run does
        with Checkpoints(tmp_path) as c:
            c.save(1, {"x": jnp.ones(3)})
            c.restore({"x": jnp.ones(3)})
        absl_logging.info("ours")
    finally:
        logger.removeHandler(handler)
        absl_logging.set_verbosity(level)
    assert heard == ["ours"]


def test_importing_the_module_does_not_import_orbax():
    code = "import sys, a2os2a_jax.train.checkpoint as _; assert 'orbax' not in {}"
    code = code.format("str(sys.modules)")
    subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        timeout=60,
    )
    assert checkpoint._HUSH.level == logging.WARNING


def test_some_leaves_are_read_without_knowing_the_rest(copy):
    c, want = Checkpoints(copy), _state(2)
    described = c.leaves(2)
    assert described["params/dense/w"] == "float32[64,5]" and "opt/0/count" in described
    names = ["params/dense/w", "params/dense/b", "step"]
    got = c.read(2, names)
    assert list(got) == sorted(names)
    assert all(isinstance(leaf, np.ndarray) for leaf in got.values())
    assert got["params/dense/b"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(got["params/dense/w"], want.params["dense"]["w"])
    np.testing.assert_array_equal(got["params/dense/b"], want.params["dense"]["b"])
    assert got["step"] == 2
    with pytest.raises(OSError, match="checkpoints/2: params/dense/c is not in it"):
        c.read(2, ["params/dense/c"])
    with pytest.raises(OSError, match="checkpoints/7: "):
        c.leaves(7)
    _flip(copy / "2")
    with pytest.raises(OSError, match="checkpoints/2: .* has checksum"):
        c.read(2, ["params/dense/w"])


def test_the_best_is_that_of_the_highest_score(tmp_path, saved):
    assert Checkpoints(saved).best() is None
    with Checkpoints(tmp_path, keep=None) as c:
        for step, score in enumerate((0.5, 0.9, None, 0.7)):
            c.save(step, {"x": jnp.ones(1)}, score=score)
        assert c.best() == 1


class Before(NamedTuple):
    x: jax.Array


class After(NamedTuple):
    x: jax.Array
    added: jax.Array | None = None


def test_a_field_that_came_later_is_no_difference_while_it_is_unused(tmp_path):
    one = jnp.arange(3.0)
    for name, old, new in (
        ("up", Before(one), After(jnp.zeros(3))),
        ("down", After(one), Before(jnp.zeros(3))),
        ("used", Before(one), After(jnp.zeros(3), jnp.zeros(2))),
    ):
        with Checkpoints(tmp_path / name) as c:
            c.save(1, old)
        with Checkpoints(tmp_path / name) as c:
            if name == "used":
                with pytest.raises(ValueError, match="added is not in it"):
                    c.restore(new)
                continue
            step, got = c.restore(new)
        assert step == 1 and type(got) is type(new)
        np.testing.assert_array_equal(got.x, one)
        assert getattr(got, "added", None) is None


# ---- orbax's list of steps, which it keeps itself


@pytest.fixture
def reloads(monkeypatch):
    """The threads in which orbax was told to look again."""
    from orbax.checkpoint import v1

    sound, seen = v1.training.Checkpointer.reload, []

    def reload(self):
        seen.append(threading.current_thread())
        sound(self)

    monkeypatch.setattr(v1.training.Checkpointer, "reload", reload)
    return seen


def test_orbax_hears_of_dropped_steps_on_the_main_thread(tmp_path, reloads):
    with Checkpoints(tmp_path, 1) as c:
        for step in (1, 2, 3):
            c.save(step, {"x": jnp.full(3, step)})
        known = [each.step for each in c._writer.checkpoints]
    assert known == [2, 3]  # 1 was dropped, and 2 is while 3 is written
    assert reloads and set(reloads) == {threading.main_thread()}


_PROCESS = """
import sys, threading, jax
jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import jax.numpy as jnp
from orbax.checkpoint import v1
from a2os2a_jax.train.checkpoint import Checkpoints
sound, seen = v1.training.Checkpointer.reload, []
def reload(self):
    seen.append(threading.current_thread() is threading.main_thread())
    sound(self)
v1.training.Checkpointer.reload = reload
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
whole = jax.sharding.NamedSharding(mesh, jax.P())
with Checkpoints(sys.argv[3], 1) as c:
    for step in (1, 2, 3):
        c.save(step, {"x": jax.jit(lambda: jnp.full(3, step), out_shardings=whole)()})
    print([each.step for each in c._writer.checkpoints], len(seen), all(seen))
"""


@pytest.mark.slow
def test_every_process_of_a_run_hears_of_them(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    line = [sys.executable, "-c", _PROCESS, address]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    how = dict(env=environment, stdout=subprocess.PIPE, text=True)
    started = [subprocess.Popen([*line, str(n), str(tmp_path)], **how) for n in (0, 1)]
    said = [process.communicate(timeout=120)[0].splitlines() for process in started]
    assert [lines[-1] for lines in said] == ["[2, 3] 2 True"] * 2

import io
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.train import metrics


def _write(path, steps):
    log = metrics.JsonLines(path)
    for step in steps:
        log({"step": step, "split": "train", "loss": 1 / step})


def test_json_lines_hold_plain_numbers(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    metrics.JsonLines(path)(
        {
            "step": np.int64(3),
            "loss": np.float32(0.1),
            "lr": jnp.float32(2.9e-3),
            "half": jnp.bfloat16(0.5),
            "best": np.bool_(True),
            "split": "train",
            "firing_rate": {"stem/neuron_0": jnp.float32(0.25)},
            "per_step": jnp.array([0.5, 0.25]),
            "note": None,
        }
    )
    assert json.loads(path.read_text()) == {
        "step": 3,
        "loss": 0.1,
        "lr": 0.0029,
        "half": 0.5,
        "best": True,
        "split": "train",
        "firing_rate": {"stem/neuron_0": 0.25},
        "per_step": [0.5, 0.25],
        "note": None,
    }


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), jnp.float32("nan")])
def test_what_json_cannot_hold_is_null(tmp_path, value):
    path = tmp_path / "m.jsonl"
    metrics.JsonLines(path)({"step": 1, "loss": value})

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(path.read_text(), parse_constant=refuse)["loss"] is None


def test_names_that_are_no_utf_8_come_back(tmp_path):
    record = {"data": "folder:caf\udce9", "label": "é\n"}
    metrics.JsonLines(tmp_path / "m.jsonl")(record)
    assert metrics.read_lines(tmp_path / "m.jsonl") == [record]


def test_a_value_without_json_form_is_refused_by_name(tmp_path):
    log = metrics.JsonLines(tmp_path / "m.jsonl")
    with pytest.raises(ValueError, match=r"firing_rate/stem is a object, expected"):
        log({"step": 1, "firing_rate": {"stem": object()}})
    assert log.path.read_text() == ""


def test_each_line_is_in_the_file_when_the_call_returns(tmp_path):
    log = metrics.JsonLines(tmp_path / "m.jsonl")
    for step in (1, 2):
        log({"step": step})
        assert metrics.read_lines(log.path)[-1] == {"step": step}


def test_truncate_then_go_on_has_every_step_once(tmp_path):
    path = tmp_path / "m.jsonl"
    _write(path, range(1, 8))
    kept = path.read_text().splitlines()[:5]
    with open(path, "a") as file:
        file.write('{"step": 8, "lo')
    assert metrics.truncate_after(path, 5) == 2
    assert path.read_text().splitlines() == kept
    _write(path, range(6, 9))
    assert [r["step"] for r in metrics.read_lines(path)] == list(range(1, 9))
    assert [p.name for p in tmp_path.iterdir()] == ["m.jsonl"]  # no temporary file


def test_a_logger_goes_on_after_its_file_was_truncated(tmp_path):
    log = metrics.JsonLines(tmp_path / "m.jsonl")
    log({"step": 1})
    log({"step": 2})
    metrics.truncate_after(log.path, 1)
    log({"step": 3})
    assert [r["step"] for r in metrics.read_lines(log.path)] == [1, 3]


def test_a_half_written_line_is_not_read_nor_appended_to(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert metrics.read_lines(path) == [{"step": 1}]
    metrics.JsonLines(path)({"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_truncate_keeps_records_without_a_step_and_needs_no_file(tmp_path):
    path = tmp_path / "m.jsonl"
    assert metrics.truncate_after(path, 3) == 0 and not path.exists()
    path.write_text('{"note": "a"}\n{"step": 4}\n')
    metrics.truncate_after(path, 3)
    assert metrics.read_lines(path) == [{"note": "a"}]


def test_truncate_leaves_the_file_alone_when_interrupted(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    _write(path, range(1, 5))
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(metrics.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        metrics.truncate_after(path, 2)
    assert path.read_bytes() == before


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    for call in (metrics.read_lines, lambda p: metrics.truncate_after(p, 2)):
        with pytest.raises(ValueError, match=r"m\.jsonl, line 2: .*expected one JSON"):
            call(path)


class _Writer:
    """Stands in for tensorboardX.SummaryWriter."""

    def __init__(self, logdir, purge_step=None):
        self.logdir, self.purge_step, self.scalars = logdir, purge_step, {}

    def add_scalar(self, tag, value, step):
        self.scalars[tag, step] = value

    def flush(self):
        pass

    def close(self):
        pass


def test_tensorboard_names(tmp_path, monkeypatch):
    tensorboard_x = pytest.importorskip("tensorboardX")
    monkeypatch.setattr(tensorboard_x, "SummaryWriter", _Writer)
    board = metrics.TensorBoard(tmp_path / "tb", start_step=4)
    board(
        {
            "step": 5,
            "split": "train",
            "loss": jnp.float32(0.5),
            "firing_rate": {"stem/neuron_0": 0.25},
            "note": "text",
            "grad_norm": None,
        }
    )
    assert board._writer.purge_step == 5
    assert board._writer.scalars == {
        ("train/loss", 5): 0.5,
        ("train/firing_rate/stem/neuron_0", 5): 0.25,
    }


def test_tensorboard_hides_what_a_run_wrote_that_starts_again(tmp_path, monkeypatch):
    tensorboard_x = pytest.importorskip("tensorboardX")
    monkeypatch.setattr(tensorboard_x, "SummaryWriter", _Writer)
    assert metrics.TensorBoard(tmp_path)._writer.purge_step is None
    (tmp_path / "events.out.tfevents.1").touch()
    assert metrics.TensorBoard(tmp_path)._writer.purge_step == 0


def test_tensorboard_writes_a_file(tmp_path):
    pytest.importorskip("tensorboardX")
    board = metrics.tensorboard_or_none(tmp_path / "tb")
    board({"step": 1, "split": "test", "loss": 0.5})
    board.close()
    (file,) = (tmp_path / "tb").iterdir()
    assert b"test/loss" in file.read_bytes()


def test_without_tensorboardx_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)  # import fails
    assert metrics.tensorboard_or_none(tmp_path / "tb") is None
    line = capsys.readouterr().err
    assert "pip install tensorboardX" in line and line.count("\n") == 1


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests set, in seconds."""
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    return now


def test_progress_lines_in_a_log(clock):
    stream = io.StringIO()
    progress = metrics.Progress(900, batch=64, stream=stream)
    record = {"epoch": 4.46, "loss": 0.43214, "accuracy": 0.875, "lr": 2.9e-3}
    clock[0] = 60.0  # compilation: shown in no rate
    assert progress.update(50, record) is None
    clock[0] = 64.0
    assert progress.update(100, record) == 50 * 64 / 4
    progress.message("checkpoint saved")
    progress.close()
    assert stream.getvalue().splitlines() == [
        "step  50/900  epoch 4.5  loss 0.4321  acc 87.5 %  lr 2.9e-03",
        "step 100/900  epoch 4.5  loss 0.4321  acc 87.5 %  lr 2.9e-03  800 img/s  "
        "ETA 1:04",
        "checkpoint saved",
    ]


def test_progress_leaves_out_what_lies_before_a_mark(clock):
    progress = metrics.Progress(100, batch=10, stream=io.StringIO())
    clock[0] = 60.0
    progress.mark(1)  # compiled
    clock[0] = 61.0
    assert progress.update(11, {}) == 100
    clock[0] = 90.0  # an evaluation
    progress.mark(11)
    clock[0] = 92.0
    assert progress.update(31, {}) == 100


def test_progress_is_a_bar_on_a_terminal(clock):
    pytest.importorskip("tqdm")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    progress = metrics.Progress(20, start_step=4, batch=8, stream=stream)
    progress.update(5, {"loss": 2.0})
    clock[0] = 1.0
    progress.update(10, {"loss": 1.5, "accuracy": None})
    progress.message("a message")
    progress.close()
    shown = stream.getvalue()
    assert "\r" in shown and "a message\n" in shown
    last = shown.split("\r")[-1]
    assert "10/20" in last and "loss 1.5000  40 img/s  ETA 0:02" in last
    assert "acc" not in last


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_outlives_its_terminal_and_its_pipe(terminal):
    """A closed window, or a dead `tee`, must not cost the checkpoint that follows."""

    class Gone(io.StringIO):
        def isatty(self):
            return terminal

        def write(self, text=""):
            raise BrokenPipeError(32, "Broken pipe")

        flush = write

    progress = metrics.Progress(20, stream=Gone())
    progress.message("a message")
    progress.update(5, {"loss": 2.0})
    progress.close()

import jax
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax import main
from a2os2a_jax.commands import failures, train


def config(**changes):
    c = configs.default()
    c.data.update(name="fake", size=4, channels=1)
    c.model.update(variant="1-16", heads=2)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


EXHAUSTED = jax.errors.JaxRuntimeError(
    "RESOURCE_EXHAUSTED: Out of memory allocating 123456789 bytes.\n[tf-allocator] ..."
)


@pytest.mark.parametrize("error", [EXHAUSTED, MemoryError()])
def test_out_of_memory_says_what_takes_less(error):
    line = failures.line(error, "train", config(train__batch=96))
    assert "\n" not in line and len(line) < 500
    for words in (
        "out of memory on the " + ("host" if not error.args else "device"),
        "a smaller train.batch than 96",
        "train.accumulate above 1",
        "model.remat=True",
        "--mode=plan estimates",
        "MiB",
    ):
        assert words in line
    line = failures.line(error, "train", config(model__remat=True, train__batch=1))
    assert "train.batch than 1" in line
    assert "remat" not in line and "accumulate" not in line
    line = failures.line(error, "eval", config(eval__batch=77))
    assert "a smaller eval.batch than 77" in line and "train" not in line
    assert "out of memory" in failures.line(error, "train", None)


def test_what_nobody_foresaw_says_its_kind_and_how_to_see_more():
    assert failures.line(KeyError("w")) == f"KeyError: 'w'; {failures.TRACEBACK}"
    assert failures.line(AssertionError()) == f"AssertionError; {failures.TRACEBACK}"
    assert failures.line(ValueError()) == f"ValueError; {failures.TRACEBACK}"
    assert failures.line(ValueError("x: got 1,\n expected 2")) == "x: got 1, expected 2"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("two\nlines"),
        AssertionError(),
        MemoryError(),
        EXHAUSTED,
        TypeError("no"),
        RecursionError("deep"),
        KeyError("w"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_comes_from_below_is_one_line(error, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(train, "run", fail)
    argv = ["main", "--config=configs/digits.py:smoke", f"--workdir={tmp_path}"]
    assert main.main(argv) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("error: ")
    assert "--traceback" in err
    with pytest.raises(type(error)):
        main.main([*argv, "--traceback"])


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Unable to initialize backend 'tpu': INTERNAL: no libtpu.so"),
        RuntimeError("Backend 'x' is not in the list of known backends: ['cpu']"),
    ],
)
def test_a_device_that_is_not_there(error, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    line = failures.line(error)
    assert line.startswith("JAX_PLATFORMS: got 'tpu', expected a kind of device")


def test_what_is_spared_is_said_and_goes_no_further(capsys):
    with failures.spared("raster"):
        raise MemoryError
    with failures.spared("curves"):
        raise OSError(28, "No space left on device")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "no raster: MemoryError\nno curves: [Errno 28] No space left on device\n"
    )
    with pytest.raises(KeyboardInterrupt), failures.spared("raster"):
        raise KeyboardInterrupt

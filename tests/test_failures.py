import jax
import pytest

from a2os2a_jax import failures, main
from a2os2a_jax.commands import train

EXHAUSTED = jax.errors.JaxRuntimeError(
    "RESOURCE_EXHAUSTED: Out of memory allocating 123456789 bytes.\n[tf-allocator] ..."
)
FULL = "RESOURCE_EXHAUSTED: Failed to write 17192 bytes: No space left on device [os..."


def test_memory_that_ran_out_comes_with_advice():
    assert failures.line(EXHAUSTED, lambda: "expected less") == (
        "out of memory on the device (RESOURCE_EXHAUSTED: Out of memory allocating "
        f"123456789 bytes. [tf-allocator] ...); expected less; {failures.TRACEBACK}"
    )
    line = f"out of memory on the host; {failures.TRACEBACK}"
    assert failures.line(MemoryError()) == line
    assert failures.line(MemoryError(), lambda: 1 / 0) == line
    assert "less" not in failures.line(KeyError("w"), lambda: "expected less")


@pytest.mark.parametrize(
    "error",
    [
        ValueError(FULL),
        OSError(28, "No space left on device"),
        OSError(122, "Disk quota exceeded"),
        OSError(f"checkpoint 4 could not be written: {FULL}"),
        OSError("checkpoint 4 could not be written: RESOURCE_EXHAUSTED: Error"),
    ],
)
def test_a_full_disk_is_no_lack_of_memory(error):
    assert not failures.is_out_of_memory(error)
    line = failures.line(error, lambda: "a smaller train.batch")
    assert "out of memory" not in line and "train.batch" not in line


def test_a_full_disk_is_called_so():
    line = failures.line(OSError(28, "No space left on device", "runs/a/config.json"))
    assert "runs/a/config.json" in line
    assert line.endswith("; expected room on the disk that is written to")


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("cannot say")


def test_what_nobody_foresaw_says_its_kind_and_how_to_see_more():
    assert failures.line(KeyError("w")) == f"KeyError: 'w'; {failures.TRACEBACK}"
    assert failures.line(AssertionError()) == f"AssertionError; {failures.TRACEBACK}"
    assert failures.line(ValueError()) == f"ValueError; {failures.TRACEBACK}"
    assert failures.line(Mute()) == f"Mute; {failures.TRACEBACK}"
    assert failures.line(ValueError("x: got 1,\n expected 2")) == "x: got 1, expected 2"
    assert len(failures.line(TypeError("long " * 1000))) < 400


def test_a_package_that_is_not_installed_is_named_with_what_brings_it():
    with pytest.raises(ImportError) as caught:
        import no_such_package  # noqa: F401
    line = failures.line(caught.value)
    assert line.startswith("no no_such_package here, ") and "'.[train]'" in line


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
        Mute(),
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
    ("name", "text"),
    [
        (
            "JAX_PLATFORMS",
            "Unable to initialize backend 'tpu': INTERNAL: no libtpu.so",
        ),
        ("JAX_PLATFORMS", "Backend 'x' is not in the list of known backends: ['cpu']"),
        ("JAX_PLATFORM_NAME", "Backend 'tpu' failed to initialize: INTERNAL: no"),
    ],
)
def test_a_device_that_is_not_there(name, text, monkeypatch):
    for each in failures.DEVICES:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "tpu")
    line = failures.line(RuntimeError(text))
    assert line.startswith(f"{name}: got 'tpu', expected a kind of device")


def test_what_is_spared_is_said_and_goes_no_further(capsys):
    with failures.spared("raster"):
        raise MemoryError
    with failures.spared("curves"):
        raise OSError(28, "No space left on device")
    with failures.spared("matrix"):
        raise Mute
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "no raster: MemoryError",
        "no curves: [Errno 28] No space left on device",
        "no matrix: Mute",
    ]
    with pytest.raises(KeyboardInterrupt), failures.spared("raster"):
        raise KeyboardInterrupt

"""Settings and fixtures for all tests: compilation cache, strict shapes, references."""

import functools
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Most of the time goes into compiling, so what was compiled is kept between runs and
# shared by the workers. Environment variables reach programs that tests start, too.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402  (reads the variables above when imported)
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module")
def quick_compilation():
    """Half the time to compile, slower to compute, until the file ends.

    For programs that are compiled once and run a few times, where no machine code is
    what the test is about: whole commands, the blocks of the docs, augmentation.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def x64():
    """Makes jax compute in float64 during this test."""
    with jax.enable_x64(True):
        yield


@functools.cache
def _load(name: str) -> dict[str, np.ndarray]:
    folders = [ROOT / "tests" / "data"]
    if os.environ.get("A2OS2A_PARITY"):
        folders.append(Path(os.environ["A2OS2A_PARITY"]))
    for folder in folders:
        path = folder / f"{name}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            for array in arrays.values():
                array.flags.writeable = False  # tests share them
            return arrays
    where = os.environ.get("A2OS2A_PARITY", "A2OS2A_PARITY, which is unset")
    pytest.skip(f"no reference {name}.npz in tests/data nor in {where}")


@pytest.fixture(scope="session")
def parity():
    """parity(name) -> {key: array}: reference outputs, see tests/data/README.md.

    Looked for in tests/data, then in the directory $A2OS2A_PARITY; else the test is
    skipped. Arrays are read-only; `json.loads(str(data["meta"]))` describes them.
    """
    return _load

"""Files of state dicts: what is read of them, and what is refused."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.interop import torch_files
from tests.interop.torch_format import KERNEL, STATE, equal, save


class Evil:
    """Unpickling one would run a command."""

    def __reduce__(self):
        return (print, ("you have been had",))


def test_numbers_of_any_kind_become_float32_or_stay_float64(tmp_path):
    kinds = {
        "half": KERNEL.astype(np.float16),
        "double": KERNEL.astype(np.float64),
        "whole": np.arange(4),
        "flag": np.array(True),
        "brain": KERNEL.astype(jnp.bfloat16),
        "module.wrapped": KERNEL,
        "module._orig_mod.module.deep": KERNEL,
    }
    np.savez(tmp_path / "model.npz", **kinds)
    got = torch_files.read(tmp_path / "model.npz")
    names = ["half", "double", "whole", "flag", "brain", "wrapped", "deep"]
    assert list(got) == names
    for name, array in got.items():
        assert array.dtype == (np.float64 if name == "double" else np.float32), name
    for name in ("half", "double", "brain", "wrapped", "deep"):
        np.testing.assert_array_equal(got[name], KERNEL, name)
    np.testing.assert_array_equal(got["whole"], [0, 1, 2, 3])


def test_safetensors_is_written_and_read(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    path = tmp_path / "model.safetensors"
    brain = {"brain": KERNEL.astype(jnp.bfloat16)}
    torch_files.write(path, STATE | brain, {"family": "columnar"})
    got = torch_files.read(path)
    equal({k: got[k] for k in STATE}, STATE)
    np.testing.assert_array_equal(got["brain"], KERNEL)
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"family": "columnar"}
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="got a file that exists"):
        torch_files.write(path, STATE, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="got model.npz, expected .safetensors"):
        torch_files.write(tmp_path / "model.npz", STATE, {})
    with pytest.raises(OSError, match="not written"):
        torch_files.write(tmp_path / "none" / "model.safetensors", STATE, {})


@pytest.mark.parametrize("name", ["model.h5", "model", "model.npz.zip", "model.tar"])
def test_an_unknown_kind_of_file_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=re.escape(f"got {name}, expected .npz")):
        torch_files.read(tmp_path / name)


@pytest.mark.parametrize("name", ["model.npz", "model.safetensors", "model.pth"])
def test_no_file_an_empty_one_and_a_damaged_one(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        pytest.importorskip("safetensors")
    with pytest.raises(FileNotFoundError, match=rf"{name}: got no such file"):
        torch_files.read(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{name}: got an empty file"):
        torch_files.read(path)
    if path.suffix == ".npz":
        np.savez(path, **STATE)
    elif path.suffix == ".safetensors":
        path.unlink()
        torch_files.write(path, STATE, {})
    else:
        save(path, STATE)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:5], b"no such file at all"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{name}: (got|not read)") as error:
            torch_files.read(path)
        assert "\n" not in str(error.value)


def test_objects_in_an_npz_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "model.npz", x=np.array([Evil()], object))
    with pytest.raises(ValueError, match="model.npz: not read.*allow_pickle"):
        torch_files.read(tmp_path / "model.npz")


BAD_VALUES = {
    "NaN": (np.array([1, np.nan], np.float32), "NaN or infinite"),
    "infinite": (np.array([-np.inf]), "NaN or infinite"),
    "complex": (np.ones(2, complex), "complex128, expected real"),
    "text": (np.array("weights"), "<U7, expected real"),
}


@pytest.mark.parametrize("kind", BAD_VALUES)
def test_a_bad_value_is_named(tmp_path, kind):
    value, words = BAD_VALUES[kind]
    np.savez(tmp_path / "model.npz", **STATE, **{"block.0.x": value})
    with pytest.raises(ValueError, match=rf"model.npz: block.0.x .*{words}"):
        torch_files.read(tmp_path / "model.npz")


def test_no_tensors_and_one_name_twice(tmp_path):
    np.savez(tmp_path / "model.npz")
    with pytest.raises(ValueError, match="got no tensors"):
        torch_files.read(tmp_path / "model.npz")
    np.savez(tmp_path / "model.npz", **STATE, **{"module.head.bias": np.ones(2)})
    with pytest.raises(ValueError, match="head.bias twice, .* as module.head.bias"):
        torch_files.read(tmp_path / "model.npz")
    np.savez(tmp_path / "model.npz", **STATE)
    with pytest.raises(ValueError, match="expected their average with ema=True"):
        torch_files.read(tmp_path / "model.npz", ema=True)

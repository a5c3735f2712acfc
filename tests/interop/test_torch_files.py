"""Files of state dicts: what is read of them, and what is refused."""

import argparse
import logging
import pickle
import re

import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.interop import torch_files

KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3) / 4
STATE = {"head.weight": KERNEL, "head.bias": np.ones(2, np.float32)}


class Evil:
    """Unpickling one would run a command."""

    def __reduce__(self):
        return (print, ("you have been had",))


def equal(got, want):
    assert list(got) == list(want)
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, name)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def saved(torch, tmp_path):
    """saved(object) -> path of what torch.save made of it; arrays are tensors there."""

    def tensors(tree):
        if isinstance(tree, dict):
            return {key: tensors(value) for key, value in tree.items()}
        return torch.from_numpy(tree.copy()) if isinstance(tree, np.ndarray) else tree

    def save(tree, name="model.pth", **how):
        torch.save(tensors(tree), tmp_path / name, **how)
        return tmp_path / name

    return save


def checkpoint(**state_dicts):
    """As timm's saver writes it."""
    adam = {"state": {0: {"step": 3, "exp_avg": KERNEL}}, "param_groups": [{"lr": 0.1}]}
    return dict(
        epoch=3,
        arch="spikformer",
        **state_dicts,
        optimizer=adam,
        version=2,
        args=argparse.Namespace(lr=5e-4, model="spikformer", mean=(0.5, 0.5, 0.5)),
        amp_scaler={"scale": 65536.0, "growth_factor": 2.0},
        metric=95.51,
    )


# --- .npz and .safetensors ------------------------------------------------------------


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


@pytest.mark.parametrize("name", ["model.bin", "model", "model.npz.zip", "model.tar"])
def test_an_unknown_kind_of_file_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=re.escape(f"got {name}, expected .npz")):
        torch_files.read(tmp_path / name)


@pytest.mark.parametrize("name", ["model.npz", "model.safetensors", "model.pth"])
def test_no_file_an_empty_one_and_a_damaged_one(tmp_path, name):
    path = tmp_path / name
    if path.suffix != ".npz":
        pytest.importorskip("torch" if path.suffix == ".pth" else "safetensors")
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
        import torch

        torch.save({"head.bias": torch.ones(2)}, path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:5], b"no such file at all"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{name}: not read, expected") as error:
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
    with pytest.raises(ValueError, match="got head.bias twice"):
        torch_files.read(tmp_path / "model.npz")
    np.savez(tmp_path / "model.npz", **STATE)
    with pytest.raises(ValueError, match="expected state_dict_ema or model_ema"):
        torch_files.read(tmp_path / "model.npz", ema=True)


def test_without_torch_its_files_say_how_to_convert(tmp_path, monkeypatch):
    (tmp_path / "model.pth.tar").write_bytes(b"anything")
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(ImportError, match=r"model.pth.tar: got no torch.*savez"):
        torch_files.read(tmp_path / "model.pth.tar")


# --- torch ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.pth", "model.pt", "model.pth.tar"])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_torch_files_in_their_usual_shapes(saved, name, key):
    wrapped = {f"module.{name}": value for name, value in STATE.items()}
    tree = wrapped if key is None else checkpoint(**{key: wrapped})
    equal(torch_files.read(saved(tree, name)), STATE)


def test_the_older_format_of_torch_is_read_too(saved):
    tree = checkpoint(state_dict=STATE)
    path = saved(tree, _use_new_zipfile_serialization=False)
    equal(torch_files.read(path), STATE)


def test_the_moving_average_is_taken_when_asked_for(saved, caplog):
    average = {f"module.{name}": value / 2 for name, value in STATE.items()}
    path = saved(checkpoint(state_dict=STATE, state_dict_ema=average))
    with caplog.at_level(logging.WARNING, "a2os2a_jax"):
        equal(torch_files.read(path), STATE)
    assert "holds state_dict and state_dict_ema, took state_dict" in caplog.text
    got = torch_files.read(path, ema=True)
    equal(got, {name: value / 2 for name, value in STATE.items()})
    alone = saved(checkpoint(state_dict_ema=average), "alone.pth")
    caplog.clear()
    equal(torch_files.read(alone), got)
    assert "holds state_dict_ema, took state_dict_ema" in caplog.text
    with pytest.raises(ValueError, match="got epoch, .* expected state_dict_ema"):
        torch_files.read(saved(checkpoint(state_dict=STATE)), ema=True)


def test_tensors_of_torch_of_any_kind(torch, saved):
    tree = {
        "brain": torch.tensor([0.5, 1.25], dtype=torch.bfloat16),
        "half": torch.tensor([0.5, 1.25], dtype=torch.float16),
        "double": torch.tensor([0.5, 1.25], dtype=torch.float64),
        "counter": torch.tensor(3),
        "trained": torch.nn.Parameter(torch.tensor([0.5, 1.25])),
    }
    got = torch_files.read(saved(tree))
    for name in ("brain", "half", "double", "trained"):
        np.testing.assert_array_equal(got[name], [0.5, 1.25], name)
    assert got["double"].dtype == np.float64 and got["brain"].dtype == np.float32
    assert got["counter"] == 3


def test_a_pickle_that_would_run_code_is_refused(saved, tmp_path, capsys):
    for path in (
        saved(checkpoint(state_dict=STATE) | {"more": Evil()}),
        saved(Evil(), "old.pt", _use_new_zipfile_serialization=False),
    ):
        with pytest.raises(ValueError, match="would run print, .*refused") as e:
            torch_files.read(path)
        assert "\n" not in str(e.value) and path.name in str(e.value)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"x": Evil()}))
    with pytest.raises(ValueError, match=r"plain\.pth: "):
        torch_files.read(tmp_path / "plain.pth")
    assert "you have been had" not in capsys.readouterr().out


def test_namespaces_are_allowed_for_the_load_alone(torch, saved):
    before = set(torch.serialization.get_safe_globals())
    torch_files.read(saved(checkpoint(state_dict=STATE)))
    assert set(torch.serialization.get_safe_globals()) == before
    assert argparse.Namespace not in before


def test_what_is_no_state_dict_is_refused(saved):
    with pytest.raises(ValueError, match="got list, expected a state dict"):
        torch_files.read(saved([1, 2]))
    with pytest.raises(ValueError, match="arch is a str, expected a tensor"):
        torch_files.read(saved({"arch": "spikformer"}))

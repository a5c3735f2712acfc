"""Our weights file: what goes in comes out, and what is wrong is named."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from a2os2a_jax.interop import weights


def variables(**other):
    rng = np.random.RandomState(0)
    flat = {
        "params/stem/conv_0/kernel": rng.rand(3, 3, 1, 4).astype("float32"),
        "params/stem/neuron/w": np.float32(0.3),
        "params/head/kernel": jnp.asarray(rng.rand(4, 2), jnp.float32),
        "params/head/bias": np.zeros(2, "float64"),
        "batch_stats/stem/bn_0/mean": rng.rand(6, 4)[::2].T.astype("float32").T,
    }
    return traverse_util.unflatten_dict(flat | other, sep="/")


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


ABOUT = {"step": 7, "weights": "plain", "config": {"seed": 0, "none": None}}


@pytest.mark.parametrize("suffix", weights.SUFFIXES)
def test_what_goes_in_comes_out(tmp_path, suffix):
    path, given = tmp_path / f"model{suffix}", variables()
    given["params"]["wide"] = {"kernel": np.arange(12.0).reshape(3, 4).T}  # Fortran's
    weights.save(path, given, ABOUT)
    got, about = weights.load(path)
    assert about == ABOUT
    assert jax.tree.structure(got) == jax.tree.structure(given)
    for name, array in flat(given).items():
        assert flat(got)[name].dtype == array.dtype
        np.testing.assert_array_equal(flat(got)[name], array, name)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_bfloat16_stays_itself_or_is_refused(tmp_path):
    given = variables(**{"params/head/bias": jnp.arange(2, dtype=jnp.bfloat16) / 3})
    weights.save(tmp_path / "model.safetensors", given)
    got, about = weights.load(tmp_path / "model.safetensors")
    assert about == {} and got["params"]["head"]["bias"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="head/bias is bfloat16, which .npz cannot"):
        weights.save(tmp_path / "model.npz", given)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_other_programs_read_the_file(tmp_path):
    from safetensors.numpy import load_file

    for suffix, read in ((".npz", np.load), (".safetensors", load_file)):
        weights.save(tmp_path / f"m{suffix}", variables(), ABOUT)
        kernel = read(tmp_path / f"m{suffix}")["params/head/kernel"]
        np.testing.assert_array_equal(kernel, variables()["params"]["head"]["kernel"])


@pytest.mark.parametrize("suffix", weights.SUFFIXES)
def test_an_existing_file_stays_as_it_is(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="got a file that exists"):
        weights.save(path, variables())
    assert path.read_text() == "precious"


class Failing:
    def __call__(self, *_, **__):
        raise OSError("No space left on device")


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "savez", Failing())
    with pytest.raises(OSError, match="model.npz: not written: No space left"):
        weights.save(tmp_path / "model.npz", variables())
    assert list(tmp_path.iterdir()) == []


WRONG = {
    "suffix": ("m.pth", {}, {}, ["m.pth", "'.pth'", ".safetensors or .npz"]),
    "NaN": (
        "m.npz",
        {"params/head/bias": np.array([1.0, np.nan])},
        {},
        ["m.npz", "params/head/bias holds NaN"],
    ),
    "bfloat16 infinity": (
        "m.safetensors",
        {"params/head/bias": jnp.full(2, jnp.inf, jnp.bfloat16)},
        {},
        ["params/head/bias holds NaN or infinity"],
    ),
    "collection": (
        "m.npz",
        {"opt_state/count": np.zeros(1)},
        {},
        ["opt_state/count", "expected params/... or batch_stats/..."],
    ),
    "no numbers": (
        "m.npz",
        {"params/head/name": np.array(["a"])},
        {},
        ["params/head/name is <U1", "expected numbers"],
    ),
    "about": ("m.npz", {}, {"path": object()}, ["m.npz: about", "expected JSON"]),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_saved_is_named_and_not_written(tmp_path, what):
    name, other, about, words = WRONG[what]
    with pytest.raises(ValueError) as error:
        weights.save(tmp_path / name, variables(**other), about)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert list(tmp_path.iterdir()) == []


def test_no_arrays_are_no_weights(tmp_path):
    with pytest.raises(ValueError, match="got no arrays, expected names as params/"):
        weights.save(tmp_path / "m.npz", {})


@pytest.mark.parametrize("suffix", weights.SUFFIXES)
def test_a_damaged_file_is_named(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    weights.save(path, variables())
    for keep in (path.stat().st_size // 2, 0):
        broken = tmp_path / f"broken{keep}{suffix}"
        broken.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(
            ValueError, match=rf"{re.escape(broken.name)}: (got|damaged)"
        ):
            weights.load(broken)


def test_a_file_of_another_kind_is_called_what_it_is(tmp_path):
    for suffix in weights.SUFFIXES:
        path = tmp_path / f"model{suffix}"
        path.write_text("<!DOCTYPE html><title>Sign in</title>")
        with pytest.raises(ValueError, match=f"model{suffix}: got an HTML page .'Sign"):
            weights.load(path)


def test_what_is_no_file_of_ours_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="m.npz: got no such file"):
        weights.load(tmp_path / "m.npz")
    np.savez(tmp_path / "torch.npz", **{"head.weight": np.zeros((2, 4))})
    with pytest.raises(ValueError, match="got head.weight, .*torch_weights reads"):
        weights.load(tmp_path / "torch.npz")
    np.savez(tmp_path / "nan.npz", **{"params/a": np.full(2, np.nan)})
    with pytest.raises(ValueError, match="nan.npz: params/a holds NaN"):
        weights.load(tmp_path / "nan.npz")

"""State dicts in files: .npz, .safetensors, and what torch.save wrote.

Of the last kind only tensors are read, and `argparse.Namespace`, since training scripts
keep their arguments beside the weights: a pickle that would run anything else is
refused. Numbers come as float32, or as float64 where they are.
"""

import argparse
import contextlib
import json
import logging
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from a2os2a_jax.files import write_atomically

TORCH = (".pth", ".pt", ".pth.tar", ".pt.tar")
SUFFIXES = (".npz", ".safetensors", *TORCH)
# Where a training script keeps its weights, first those that were trained, then their
# moving average.
PLAIN, AVERAGED = ("state_dict", "model"), ("state_dict_ema", "model_ema")
PREFIXES = ("module.", "_orig_mod.")  # of several devices, of torch.compile
LOG = logging.getLogger("a2os2a_jax")


def read(path: str | os.PathLike, ema: bool = False) -> dict[str, np.ndarray]:
    """The tensors of a file by their names, without what wrappers put in front.

    Args:
      path: ends in .npz, .safetensors, .pth, .pt or .pth.tar (needs torch).
      ema: of a file that holds the moving average as well, take that.
    Raises:
      ValueError: another suffix; a file that is damaged, empty, or no such file inside;
        objects other than tensors; a value that is NaN or infinite. Names the file,
        and the tensor.
      FileNotFoundError: there is no such file.
      ImportError: torch is needed, and not there.
    """
    path = Path(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise ValueError(
            f"torch_weights: got {path.name}, expected {', '.join(SUFFIXES[:-1])}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"torch_weights {path}: got no such file")
    if not path.stat().st_size:
        raise ValueError(f"torch_weights {path}: got an empty file, expected weights")
    if path.suffix.lower() == ".npz":
        found = _npz(path)
    elif path.suffix.lower() == ".safetensors":
        found = _safetensors(path)
    else:
        found = _torch(path)
    arrays: dict[str, np.ndarray] = {}
    for key, value in _state_dict(path, found, ema).items():
        name = _bare(str(key))
        if name in arrays:
            raise ValueError(f"torch_weights {path}: got {name} twice, expected once")
        arrays[name] = _numbers(path, name, value)
    if not arrays:
        raise ValueError(f"torch_weights {path}: got no tensors")
    return arrays


def write(path: str | os.PathLike, arrays, metadata: Mapping[str, str]) -> None:
    """A .safetensors file, all of it or none; an existing one stays as it is.

    Raises:
      ValueError: another suffix. FileExistsError: the file is there already.
      OSError: it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"torch_weights: got {path.name}, expected .safetensors")
    if path.exists():
        raise FileExistsError(
            f"torch_weights {path}: got a file that exists, expected none"
        )
    from safetensors.numpy import save_file

    arrays = {name: np.require(x, requirements="C") for name, x in arrays.items()}
    try:
        with write_atomically(path) as temp:
            save_file(arrays, temp, metadata=dict(metadata))
    except Exception as error:  # safetensors has exceptions of its own
        text = _line(error)
        raise OSError(f"torch_weights {path}: not written: {text}") from error


def _npz(path: Path) -> dict[str, np.ndarray]:
    with _damage(path, ".npz"):
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no archive")
        # opened here: numpy leaves a file open that is no archive
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import safe_open

    with _damage(path, ".safetensors"), safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def metadata(path: str | os.PathLike) -> dict[str, Any]:
    """What a .safetensors file of `write` holds beside its tensors; {} of any other.

    Values are read as JSON where they are that, else they are texts.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        return {}
    from safetensors import safe_open

    with _damage(path, ".safetensors"), safe_open(path, "np") as file:
        texts = file.metadata() or {}
    found: dict[str, Any] = {}
    for key, text in texts.items():
        try:
            found[key] = json.loads(text)
        except json.JSONDecodeError:
            found[key] = text
    return found


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"torch_weights {path}: got no torch, expected it for this kind of file; "
            "or convert where it is: numpy.savez('model.npz', **{name: "
            "x.detach().float().cpu().numpy() for name, x in state_dict.items()})"
        ) from error
    if not hasattr(torch.serialization, "safe_globals"):
        raise ImportError(
            f"torch_weights {path}: got torch {torch.__version__}, expected 2.5 or "
            "newer, which reads no more than it is told to"
        )
    from pickle import UnpicklingError

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        if match := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"torch_weights {path}: loading it would run {match[1]}, expected "
                "tensors alone (and an argparse.Namespace); refused"
            ) from error
        raise ValueError(_damaged(path, "torch", error)) from error
    except Exception as error:  # whatever a damaged file leads to
        raise ValueError(_damaged(path, "torch", error)) from error


def _state_dict(path: Path, found: Any, ema: bool) -> Mapping[str, Any]:
    """The state dict in what a file holds, which may be the whole of it."""
    if not isinstance(found, Mapping):
        raise ValueError(
            f"torch_weights {path}: got {type(found).__name__}, expected a state dict"
        )
    held = [k for k in (*PLAIN, *AVERAGED) if isinstance(found.get(k), Mapping)]
    wanted = [key for key in held if (key in AVERAGED) == ema]
    if ema and not wanted:
        some = ", ".join(map(str, list(found)[:3]))
        raise ValueError(
            f"torch_weights {path}: got {some}, expected {' or '.join(AVERAGED)} with "
            "ema=True"
        )
    if not held:
        return found
    took = (wanted or held)[0]
    if len(held) > 1 or not wanted:
        all_of_them = " and ".join(held)
        LOG.warning("torch_weights %s: holds %s, took %s", path, all_of_them, took)
    return found[took]


def _bare(name: str) -> str:
    while name.startswith(PREFIXES):
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
    return name


def _numbers(path: Path, name: str, value: Any) -> np.ndarray:
    """A tensor as finite numbers of float32 or float64."""
    if hasattr(value, "detach"):  # torch's, of which numpy does not know every dtype
        import torch

        value = value.detach().cpu().to_dense()
        wide = value.dtype == torch.float64
        value = value if value.is_complex() or wide else value.to(torch.float32)
        value = value.numpy()
    if not isinstance(value, np.ndarray | np.number | int | float):
        raise ValueError(
            f"torch_weights {path}: {name} is a {type(value).__name__}, expected a "
            "tensor"
        )
    array = np.asarray(value)
    if array.dtype.str == "|V2":  # numpy's way to store a bfloat16
        wide = array.view(np.uint16).astype(np.uint32) << 16
        array = wide.view(np.float32)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise ValueError(
            f"torch_weights {path}: {name} is {array.dtype}, expected real numbers"
        )
    if array.dtype != np.float64:
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(
            f"torch_weights {path}: {name} has values that are NaN or infinite, "
            "expected finite ones"
        )
    return array


@contextlib.contextmanager
def _damage(path: Path, kind: str):
    try:
        yield
    except Exception as error:  # whatever a damaged file leads to
        raise ValueError(_damaged(path, kind, error)) from error


def _damaged(path: Path, kind: str, error: Exception) -> str:
    return (
        f"torch_weights {path}: not read, expected a whole {kind} file: {_line(error)}"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

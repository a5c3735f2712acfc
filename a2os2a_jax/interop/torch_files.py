"""State dicts in files: .npz, .safetensors, and what torch.save wrote.

Of the last kind nothing is run and torch is not needed: `interop.torch_pickle` reads
it. `interop.torch_entries` finds the state dict in it. Numbers come as float32, or as
float64 where they are.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from a2os2a_jax import contents
from a2os2a_jax.files import expanded, write_atomically
from a2os2a_jax.interop import torch_entries, torch_pickle

TORCH = (".pth", ".pt", ".pth.tar", ".pt.tar", ".ckpt", ".bin")
SUFFIXES = (".npz", ".safetensors", *TORCH)
LOG = logging.getLogger("a2os2a_jax")


class StateDict(NamedTuple):
    """A state dict of a file, and which one it is.

    Attributes:
      arrays: by their names, without what wrappers put in front.
      about: JSON values: "entry" where it is not the whole of the file; "weights",
        "average" or "plain", and "others", where the file has more than one, or an
        average alone.
      notes: the same in words, and what was left out.
    """

    arrays: dict[str, np.ndarray]
    about: dict[str, Any]
    notes: list[str]


def read(
    path: str | os.PathLike, ema: bool = False, entry: str | None = None
) -> dict[str, np.ndarray]:
    """The tensors of a file by their names, without what wrappers put in front.

    Args:
      path: ends in one of SUFFIXES.
      ema: of a file that holds the moving average as well, take that.
      entry: as in `choose`.
    Raises:
      ValueError, FileNotFoundError: as in `choose`; or there is no average.
    """
    found = choose(path, ema, entry)
    if ema and not entry and found.about.get("weights") != "average":
        raise ValueError(
            f"torch_weights {path}: got weights alone, expected their average with "
            f"ema=True, under one of {', '.join(torch_entries.AVERAGED)}"
        )
    for note in found.notes:
        level = logging.WARNING if " took " in note else logging.INFO
        LOG.log(level, "torch_weights %s: %s", path, note)
    return found.arrays


def choose(
    path: str | os.PathLike, average: bool = True, entry: str | None = None
) -> StateDict:
    """The state dict in a file; where it holds two, the average or the other.

    Args:
      path: ends in one of SUFFIXES.
      average: take the moving average of the weights where there is one.
      entry: a path of dots to what is wanted, "ema.module": keys in the file, then what
        names begin with. By itself the usual ones are found.
    Raises:
      ValueError: another suffix; a file that is damaged, empty, or of another kind than
        its name says; no state dict inside, or none known; a tensor of a kind that is
        not read; a value that is NaN or infinite; a pickle that would run a program.
        Names the file, and the tensor.
      FileNotFoundError: there is no such file.
    """
    path = expanded(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise ValueError(
            f"torch_weights: got {path.name}, expected {', '.join(SUFFIXES)}"
        )
    if not path.exists():
        raise FileNotFoundError(f"torch_weights {path}: got no such file")
    suffix = path.suffix.lower()
    kind = suffix if suffix in (".npz", ".safetensors") else "torch"
    if other := contents.other_than(path, kind):
        raise ValueError(f"torch_weights {path}: got {other}; expected weights")
    with _damage(path, kind), _OPENED[kind](path) as tree:
        try:
            chosen = torch_entries.choose(tree, average, entry)
        except ValueError as error:
            raise _Told(f"torch_weights {path}: {error}") from error
        tensors = chosen.tensors.items()
        arrays = {name: _numbers(path, name, value) for name, value in tensors}
    if not arrays:
        raise ValueError(f"torch_weights {path}: got no tensors")
    about: dict[str, Any] = {"entry": chosen.entry} if chosen.entry else {}
    if chosen.average or chosen.others:
        about["weights"] = "average" if chosen.average else "plain"
    if chosen.others:
        about["others"] = list(chosen.others)
    return StateDict(arrays, about, chosen.notes)


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


@contextlib.contextmanager
def _npz(path: Path) -> Iterator[dict[str, np.ndarray]]:
    # opened here: numpy leaves a file open that is no archive
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
        yield {name: file[name] for name in file.files}


@contextlib.contextmanager
def _safetensors(path: Path) -> Iterator[dict[str, np.ndarray]]:
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        yield {name: file.get_tensor(name) for name in file.keys()}


_OPENED = {".npz": _npz, ".safetensors": _safetensors, "torch": torch_pickle.opened}


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


def _numbers(path: Path, name: str, value: Any) -> np.ndarray:
    """A tensor as finite numbers of float32 or float64."""
    if isinstance(value, torch_pickle.Foreign):
        raise _Told(
            f"torch_weights {path}: {name} is a {value.qualified}, expected a dense "
            "tensor of plain numbers"
        )
    if not isinstance(value, np.ndarray):
        try:
            value = value.numpy()
        except ValueError as error:
            raise _Told(f"torch_weights {path}: {name} is of {error}") from error
    array = np.asarray(value)
    if array.dtype.str == "|V2":  # numpy's way to store a bfloat16
        wide = array.view(np.uint16).astype(np.uint32) << 16
        array = wide.view(np.float32)
    if array.dtype.kind not in "fiub" and not _is_small_float(array.dtype):
        raise _Told(
            f"torch_weights {path}: {name} is {array.dtype}, expected real numbers"
        )
    if array.dtype != np.float64:
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise _Told(
            f"torch_weights {path}: {name} has values that are NaN or infinite, "
            "expected finite ones"
        )
    return array


def _is_small_float(dtype: np.dtype) -> bool:
    """Whether it is a bfloat16 or float8, which are not numpy's own."""
    return dtype.kind == "V" and dtype.name.startswith(("bfloat16", "float8"))


class _Told(ValueError):
    """An error that says all there is to say."""


@contextlib.contextmanager
def _damage(path: Path, kind: str):
    try:
        yield
    except (_Told, ImportError, PermissionError):
        raise
    except torch_pickle.Refused as error:
        raise ValueError(f"torch_weights {path}: {error}") from error
    except Exception as error:  # whatever a damaged file leads to
        why = _line(error)
        if isinstance(error, EOFError) or "truncated" in why:
            why = "it is cut short, download it again"
        elif isinstance(error, MemoryError):  # of a size that is damaged, mostly
            why = "it asks for more memory than there is"
        raise ValueError(
            f"torch_weights {path}: not read, expected a whole {kind} file: {why}"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

"""A file of our own for the variables of a model: .safetensors or .npz.

Arrays are named by their place, "params/stem/conv_0/kernel", "batch_stats/stem/bn_0/
mean"; beside them lies a JSON object, `about`, on where they come from. Any program
that reads one of the two formats reads them.

    run, about = train.finetune.source("runs/digits@best")
    weights.save("digits.safetensors", run, about)
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from a2os2a_jax import contents
from a2os2a_jax.files import expanded, write_atomically

SUFFIXES = (".safetensors", ".npz")
COLLECTIONS = ("params", "batch_stats")
_ABOUT = "__about__"  # of an .npz: no variable is called so, it has no "/"


def save(
    path: str | os.PathLike,
    variables: Mapping[str, Any],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes all of the file or none of it; an existing one stays as it is.

    Args:
      path: ends in .safetensors or .npz; the first holds bfloat16, the second cannot.
      variables: {"params": ..., "batch_stats": ...}, the latter where there are any.
      about: JSON values to keep with them.
    Raises:
      ValueError: another suffix, no arrays, a collection of another name, a value that
        is NaN or infinite, a dtype the format has no name for, `about` that is not
        JSON; names the file and the tensor.
      FileExistsError: the file is there already.
      OSError: it cannot be written.
    """
    path = _known(path)
    flat = traverse_util.flatten_dict(jax.device_get(dict(variables)), sep="/")
    arrays = {k: np.require(v, requirements="C") for k, v in flat.items()}
    _check(path, arrays)
    try:
        texts = {k: json.dumps(v, allow_nan=False) for k, v in (about or {}).items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"weights {path}: about: {error}, expected JSON") from error
    npz = path.suffix == ".npz"
    for name, array in arrays.items():
        # numpy would write raw bytes for a dtype that is not its own
        if npz and np.dtype(array.dtype.str) != array.dtype:
            raise ValueError(
                f"weights {path}: {name} is {array.dtype}, which .npz cannot hold; "
                "expected .safetensors"
            )
    if path.exists():
        raise FileExistsError(f"weights {path}: got a file that exists, expected none")
    try:
        with write_atomically(path) as temp:
            if npz:
                everything = {_ABOUT: np.array(json.dumps(texts)), **arrays}
                with open(temp, "wb") as file:  # to a name, numpy adds its suffix
                    np.savez(file, **everything)
            else:
                from safetensors.numpy import save_file

                save_file(arrays, temp, metadata=texts)
    except Exception as error:  # safetensors has exceptions of its own
        raise OSError(f"weights {path}: not written: {_line(error)}") from error


def load(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any]]:
    """(variables, about) of a file that `save` wrote; arrays are numpy's.

    Raises:
      ValueError: another suffix, a file that is damaged or was not written here, a
        value that is NaN or infinite; names the file and the tensor.
      OSError: there is no such file, or it cannot be opened.
    """
    path = _known(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights {path}: got no such file")
    if other := contents.other_than(path, path.suffix):
        raise ValueError(
            f"weights {path}: got {other}; expected a whole {path.suffix} file"
        )
    with _damage(path):
        if path.suffix == ".npz":
            # opened here: numpy leaves a file open that is no archive
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                arrays = {k: file[k] for k in file.files if k != _ABOUT}
                texts = json.loads(str(file[_ABOUT])) if _ABOUT in file.files else {}
        else:
            from safetensors import safe_open

            with safe_open(path, "np") as file:
                arrays = {k: file.get_tensor(k) for k in file.keys()}
                texts = file.metadata() or {}
    _check(path, arrays)
    about = {}
    for key, text in texts.items():
        try:
            about[key] = json.loads(text)
        except json.JSONDecodeError:
            about[key] = text  # another program's metadata
    return traverse_util.unflatten_dict(arrays, sep="/"), about


def written_here(path: str | os.PathLike) -> bool:
    """Whether names are as `save` writes them, and not those of a PyTorch state dict.

    A file that cannot be read counts as ours: `load` then says what is wrong with it.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        return False
    try:
        if suffix == ".npz":
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                names = list(file.files)
        else:
            from safetensors import safe_open

            with safe_open(path, "np") as file:
                names = list(file.keys())
    except ImportError:
        raise
    except Exception:  # zipfile, numpy, safetensors: each has its own
        return True
    return not names or any("/" in name for name in names)


def _known(path: str | os.PathLike) -> Path:
    path = expanded(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"weights {path}: got suffix {path.suffix!r}, expected "
            f"{' or '.join(SUFFIXES)}"
        )
    return path


def _check(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """ValueError unless these are finite numbers at places a model may have."""
    if not any(name.startswith("params/") for name in arrays):
        got = ", ".join(list(arrays)[:3]) or "no arrays"
        raise ValueError(
            f"weights {path}: got {got}, expected names as params/head/kernel; "
            "interop.torch_weights reads state dicts of PyTorch"
        )
    for name, array in arrays.items():
        if not name.startswith(tuple(f"{c}/" for c in COLLECTIONS)):
            expected = " or ".join(f"{c}/..." for c in COLLECTIONS)
            raise ValueError(f"weights {path}: got {name}, expected {expected}")
        try:
            finite = np.isfinite(array).all()
        except TypeError as error:
            raise ValueError(
                f"weights {path}: {name} is {array.dtype}, expected numbers"
            ) from error
        if not finite:
            raise ValueError(f"weights {path}: {name} holds NaN or infinity")


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever a parser raises on a broken file, as one ValueError naming the file."""
    try:
        yield
    except (ImportError, MemoryError, PermissionError):
        raise
    except Exception as error:  # zipfile, numpy, safetensors: each has its own
        raise ValueError(f"weights {path}: damaged: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__

"""A folded model as a folder that any program with jax can run, without this package.

    weights.safetensors   the folded parameters, "params/stem/conv_0/kernel", ...
    model.jaxexport       (weights, images) -> logits, for every batch, of `jax.export`
    model.json            what the model is, takes and gives, and sha256 of both
    load.py               `loader`, which needs jax, numpy and flatbuffers
    README.md             the same as model.json, for people

The weights are an argument of the program, so they are there once.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import export

from a2os2a_jax.files import expanded
from a2os2a_jax.interop import loader, weights

FORMAT = 1
PLATFORMS = ("cpu", "cuda", "tpu")
WEIGHTS, PROGRAM, ABOUT = "weights.safetensors", "model.jaxexport", "model.json"
LOADER, CARD = "load.py", "README.md"
FILES = (WEIGHTS, PROGRAM, ABOUT, LOADER, CARD)
_NEEDED = ("sha256", "kind", "x64", "takes", "returns", "signature")  # of model.json
_OF_THE_WRITER = ("commit", "versions")  # the same export may be written by another


def flat(variables: Mapping[str, Any]) -> dict[str, Any]:
    """{"params/head/kernel": array}, the first argument of the program."""
    return traverse_util.flatten_dict(dict(variables), sep="/")


def program(
    model: nn.Module, variables: Mapping[str, Any], shape: tuple[int, ...]
) -> export.Exported:
    """(weights, images) -> logits, for any batch of at least one, on any platform.

    Args:
      model: as `models.fold` makes it. variables: its params, or their shapes.
      shape: of one example, such as (H, W, C).
    """

    def run(weights, images):
        return model.apply(traverse_util.unflatten_dict(weights, sep="/"), images)

    (batch,) = export.symbolic_shape("b", constraints=["b >= 1"])
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    shapes = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype)
        for name, x in flat(variables).items()
    }
    with _no_places():
        return export.export(jax.jit(run), platforms=PLATFORMS)(shapes, images)


@contextlib.contextmanager
def _no_places() -> Iterator[None]:
    """Programs whose lines name files, not the folders of this machine."""
    key = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, key)
    jax.config.update(key, r".*[/\\]")
    try:
        yield
    finally:
        jax.config.update(key, before)


def write(
    folder: str | os.PathLike,
    model: nn.Module,
    variables: Mapping[str, Any],
    shape: tuple[int, ...],
    about: Mapping[str, Any],
    card: Callable[[Mapping[str, Any]], str],
) -> tuple[dict[str, Any], bool]:
    """Writes the folder, all of it or none.

    Args:
      folder: new; or a folder that holds just what would be written, which stays.
      model, variables, shape: see `program`; the arrays are of one dtype.
      about: JSON values that model.json holds beside what is added here.
      card: of the content of model.json, the text of README.md.
    Returns:
      (content of model.json, whether it was written).
    Raises:
      ValueError: the folder holds something else, or the arrays are of many dtypes.
      OSError: it cannot be written; names it.
    """
    folder = expanded(folder)
    kinds = {jnp.dtype(x.dtype) for x in flat(variables).values()}
    if len(kinds) != 1 or next(iter(kinds)).name not in ("float32", "float64"):
        raise ValueError(
            f"export: got parameters of {', '.join(sorted(map(str, kinds)))}, expected "
            "all of float32, or all of float64"
        )
    (kind,) = kinds
    if folder.exists() and not (folder / ABOUT).is_file():
        raise ValueError(
            f"export: {folder} is there already and holds no {ABOUT}, expected none: "
            "move it, or remove it"
        )
    check_writable(folder.parent, "export", folder)
    made = program(model, variables, shape)
    with writing(folder, "export"):
        return _write(folder, made, variables, shape, kind, about, card)


def check_writable(place: Path, what: str, folder: Path | None = None) -> None:
    """OSError, in the name of `what` and `folder` (None: `place`), unless files can be
    made in `place`, or in what is there of the way to it; leaves nothing."""
    with writing(folder or place, what):
        there = next(p for p in (place, *place.parents) if p.exists())
        with tempfile.TemporaryFile(dir=there):
            pass


@contextlib.contextmanager
def writing(folder: Path, what: str) -> Iterator[None]:
    """An OSError becomes one that says what could not be written where."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{what}: cannot write {folder}: {error.strerror or error}, expected a "
            "folder that can be written"
        ) from error


def _write(folder, made, variables, shape, kind, about, card):
    """`write`, once the program is made."""
    # one name for all: what a killed export left is cleared by the next
    temp = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(parents=True)
    try:
        weights.save(temp / WEIGHTS, variables)
        (temp / PROGRAM).write_bytes(made.serialize(vjp_order=0))
        logits = made.out_avals[0]
        everything = {
            "format": FORMAT,
            **about,
            "takes": {"shape": ["b", *shape], "dtype": "float32"},
            "returns": {"shape": ["b", logits.shape[-1]], "dtype": str(logits.dtype)},
            "kind": kind.str,
            "x64": kind.itemsize == 8,
            "platforms": list(made.platforms),
            "calling_convention": made.calling_convention_version,
            "signature": (
                f"images float32 {['b', *shape]} -> logits {logits.dtype} "
                f"{['b', logits.shape[-1]]}".replace("'", "")
            ),
            "sha256": {name: _digest(temp / name) for name in (WEIGHTS, PROGRAM)},
        }
        text = json.dumps(everything, indent=2, allow_nan=False) + "\n"
        if folder.exists():
            _check_same(folder, json.loads(text))
            return read(folder), False
        (temp / ABOUT).write_text(text, encoding="utf-8")
        shutil.copyfile(loader.__file__, temp / LOADER)
        (temp / CARD).write_text(card(everything), encoding="utf-8")
        os.replace(temp, folder)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return everything, True


def read(folder: str | os.PathLike) -> dict[str, Any]:
    """The content of model.json.

    Raises:
      ValueError: there is none, it is damaged, or of a newer format; names the keys
        that it lacks.
    """
    path = expanded(folder) / ABOUT
    try:
        about = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except (json.JSONDecodeError, OSError):
        about = None
    if not isinstance(about, dict) or "format" not in about:
        raise ValueError(f"export {folder}: got no whole {ABOUT}, expected one")
    if about["format"] != FORMAT:
        raise ValueError(
            f"export {folder}: got format {about['format']!r}, expected {FORMAT}: "
            "written by another version of this program"
        )
    lacks = [key for key in _NEEDED if key not in about]
    digests = about.get("sha256")
    if not isinstance(digests, dict) or digests.keys() != {WEIGHTS, PROGRAM}:
        lacks = [f"sha256 of {WEIGHTS} and {PROGRAM}", *lacks]
    if lacks := [key for key in lacks if key != "sha256"]:
        raise ValueError(
            f"export {folder}: {ABOUT} lacks {', '.join(lacks)}, expected it as "
            "--mode=export wrote it"
        )
    return about


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _check_same(folder: Path, about: Mapping[str, Any]) -> None:
    """ValueError unless `folder` holds what would be written."""
    there = read(folder)
    apart = ("sha256", *_OF_THE_WRITER)
    differing = [
        k for k in about | there if k not in apart and about.get(k) != there.get(k)
    ]
    # the bytes of a program differ from one export to the next
    expected = {**there["sha256"], WEIGHTS: about["sha256"][WEIGHTS]}
    differing += [
        name
        for name, digest in expected.items()
        if not (folder / name).is_file() or _digest(folder / name) != digest
    ]
    if differing:
        raise ValueError(
            f"export: {folder} holds another export, which differs in "
            f"{', '.join(differing)}; expected none: move it, or remove it"
        )

"""Arrays in a file, or in a folder of pieces: `npz:PATH`.

    train_images uint8 or floats [N, H, W, C] or [N, T, H, W, C], train_labels [N]
    test_images, test_labels; x_train, y_train, x_test, y_test are taken, too

The files `*.npz` of a folder are joined in the order of their names. Pieces that
`experiments/pack.py` writes, piece_*.npz, come with `pieces.json`, which says what they
have to be, so that a missing or a damaged one is found; without it they are refused.
"""

import functools
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np

from a2os2a_jax.data import catalogue, images, pipeline

KEYS = ("train_images", "train_labels", "test_images", "test_labels")
PIECE = "piece_*.npz"  # what `experiments/pack.py` calls them
ALIASES = dict(zip(("x_train", "y_train", "x_test", "y_test"), KEYS, strict=True))


def load(
    name: str,
    *,
    size: int | None = None,
    classes: int | None = None,
    data_dir: str | None = None,
    validation: int = 0,
    timesteps: int | None = None,
) -> pipeline.Dataset:
    """Examples as they are stored, normalised by their own statistics.

    Bytes are pixels, x = (pixel / 255 - mean) / std; sequences and floats pass as they
    are.

    Args:
      name: the path; one that is not absolute starts at data_dir, if that is given.
      size: pictures of another are resized on the device; not for sequences. None
        takes the stored one, if that is a square.
      classes: at least the largest label plus one, which is the default.
      validation: training examples held out, stratified, always the same ones.
      timesteps: T of sequences, to be sure; None takes what there is.
    Raises:
      ValueError: no such file, missing arrays, other shapes or types, labels out of
        range, a piece that is missing or damaged.
    """
    path = (Path(data_dir or ".").expanduser() / Path(name).expanduser()).resolve()
    arrays, about = read(path)
    x, y, x_test, y_test = (arrays[key] for key in KEYS)
    for what, images_, labels in (("train", x, y), ("test", x_test, y_test)):
        if images_.ndim not in (4, 5) or images_.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"{path}: got {what}_images {images_.shape}, expected [N, H, W, C] or "
                "[N, T, H, W, C], alike for train and test"
            )
        if images_.dtype != x.dtype or not _is_taken(x.dtype):
            raise ValueError(
                f"{path}: got {what}_images {images_.dtype}, expected uint8 or floats, "
                "alike for train and test"
            )
        if labels.shape != images_.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{path}: got {what}_labels {labels.dtype} {labels.shape}, expected "
                f"integers [{len(images_)}]"
            )
        if not len(images_):
            raise ValueError(f"{path}: got no example in {what}_images, expected some")
    names = tuple(map(str, arrays.get("class_names", ())))
    most = int(max(y.max(), y_test.max())) + 1
    count = classes or len(names) or most
    if most > count or min(y.min(), y_test.min()) < 0 or len(names) not in (0, count):
        raise ValueError(
            f"data.classes: got {count}, {path} has labels up to {most - 1} and "
            f"{len(names)} class names"
        )
    *frames, height, width, channels = x.shape[1:]
    if timesteps not in (None, *frames):
        got = frames[0] if frames else "no"
        raise ValueError(f"data.timesteps: got {timesteps}, {path} has {got} frames")
    if size is None and height != width:
        raise ValueError(f"data.size: got None, {path} has {height}x{width} pixels")
    size = height if size is None else size
    if (size, size) != (height, width) and frames:
        raise ValueError(
            f"data.size: got {size}, sequences of {path} are {height}x{width}"
        )
    pixels = x.dtype == np.uint8
    known = catalogue.KNOWN.get(about.get("name", ""))
    mean, std = (0.0,) * channels, (1.0,) * channels
    if pixels and not frames:
        found = catalogue.statistics(about.get("name", ""), channels)
        mean, std = found or images.statistics(x)
        decode = images.normaliser(mean, std, size)
    else:
        decode = lambda z: z  # noqa: E731  (counts of events, or floats)
    kept, held = pipeline.stratified(y, validation)

    def split(x, y):
        return pipeline.resident_split(x, y, decode=decode)

    return pipeline.Dataset(
        name=f"npz:{name}",
        shape=(*frames, size, size, channels),
        classes=count,
        class_names=names or tuple(map(str, range(count))),
        train=split(x[kept], y[kept]) if validation else split(x, y),
        test=split(x_test, y_test),
        validation=split(x[held], y[held]) if validation else None,
        mean=mean,
        std=std,
        about=known.about if known else f"{len(x):,} + {len(x_test):,} of {path.name}",
        note=about.get("note", ""),
        stored=None if frames else x.shape[1:3],
    )


def _is_taken(dtype: np.dtype) -> bool:
    """Other integers may be pixels of any range, or counts: it is not known which."""
    return dtype == np.uint8 or dtype.kind == "f"


@functools.lru_cache(maxsize=1)
def read(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """({key: array}, what pieces.json says) of a file or a folder of pieces.

    Raises:
      ValueError: nothing is there, or what is there is not whole.
    """
    about: dict = {}
    if path.is_dir():
        pieces = sorted(path.glob("*.npz"))
        manifest = path / "pieces.json"
        if manifest.exists():
            about = _manifest(manifest)
            for piece, digest in about["sha256"].items():
                _check(path / piece, digest)
            pieces = [path / piece for piece in sorted(about["sha256"])]
        elif loose := [piece for piece in pieces if piece.match(PIECE)]:
            raise ValueError(
                f"{path}: got {len(loose)} pieces and no pieces.json, which says "
                "whether they are all; copy it here, too, or pack the set again"
            )
    else:
        pieces = [path] if path.is_file() else []
    if not pieces:
        raise ValueError(f"data.name: found no .npz file at {path}")
    found: dict[str, list[np.ndarray]] = {}
    for piece in pieces:
        try:
            with open(piece, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                for key in file.files:
                    found.setdefault(ALIASES.get(key, key), []).append(file[key])
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{piece}: not a whole .npz file: {error}") from error
    if missing := [key for key in KEYS if key not in found]:
        raise ValueError(f"{path}: got {sorted(found)}, expected {missing}, too")
    names = found.pop("class_names", [()])[0]
    joined = {key: np.concatenate(parts) for key, parts in found.items()}
    return joined | {"class_names": names}, about


def _manifest(path: Path) -> dict:
    """What pieces.json says, or ValueError if it is not whole."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        about = None
    if not isinstance(about, dict) or not about.get("sha256"):
        raise ValueError(
            f"{path}: not a whole list of pieces; copy it again, or pack the set again"
        )
    return about


def _check(piece: Path, digest: str) -> None:
    if not piece.is_file():
        raise ValueError(
            f"{piece}: missing; pieces.json names it: copy it here, or pack the set "
            "again"
        )
    if hashlib.sha256(piece.read_bytes()).hexdigest() != digest:
        raise ValueError(
            f"{piece}: not the file that pieces.json describes: copy it again"
        )

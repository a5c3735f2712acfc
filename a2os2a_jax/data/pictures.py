"""Picture files as a model takes them, by the `Spec` of the set it was trained on.

    file --read, on the host--> uint8 [H, W, C] --inputs, on the device--> [S, S, C]

The same code decodes and normalises as for a folder in training (`images`), so that
the pictures of a set give what its evaluation sees.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from a2os2a_jax.data import images, pipeline, tree
from a2os2a_jax.data.layout import SUFFIXES, is_picture
from a2os2a_jax.files import expanded

ANSWERS = "predictions.json"  # its folder holds figures, which are no pictures
BRIGHT = 0.5  # mean of pixel / 255 above which a picture is more white than black


def check(spec: pipeline.Spec) -> None:
    """ValueError unless the examples of the set are pictures."""
    axes = {2: "tokens (N, F)", 4: "frames (T, H, W, C)"}
    if len(spec.shape) != 3:
        raise ValueError(
            f"--image: {spec.name} has examples of {axes[len(spec.shape)]} = "
            f"{spec.shape}, which cannot be read from a picture; expected a model of "
            "pictures (H, W, C)"
        )
    images.check_channels(f"--image: {spec.name}", spec.shape[-1])


def files(path: str | Path) -> list[Path]:
    """The file, or all pictures in the folder and below it, in order.

    Links are followed. Left out are figures, which lie beside a predictions.json, and
    what other programs left there. A picture without permission, a folder without, or a
    link that leads nowhere counts as a picture, one that `read` cannot read.
    Raises:
      ValueError: nothing is there, a folder without pictures, or a link in a circle.
    """
    path = expanded(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"--image: found no file or folder {path}")
    found = tree.walk(path)
    lost = [p for p, _ in found.lost if p.is_dir() or is_picture(p)]
    drawn = {p.parent for p in found.files if p.name == ANSWERS}
    pictures = [p for p in found.files if is_picture(p) and p.parent not in drawn]
    if not pictures and not lost:
        but = " but figures of predictions" if drawn else ""
        raise ValueError(
            f"--image: {path} has no picture among {len(found.files)} files{but}, "
            f"expected {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        )
    return sorted(pictures + lost)


def read(path: Path, spec: pipeline.Spec) -> np.ndarray:
    """uint8 [H, W, C], of the size that `spec` stores, or of its shape.

    Of a picture of just that size all is seen, unless the set's evaluation crops; of
    another the square in the middle.
    Raises:
      images.Corrupt: it cannot be read; names the file.
    """
    height, width = spec.stored or spec.shape[:2]
    channels = spec.shape[-1]
    try:
        picture = images.open_image(path.read_bytes(), channels)
    except images.Corrupt as error:
        raise images.Corrupt(f"{path}: {error}") from error
    except OSError as error:
        why = error.strerror or error
        if path.is_symlink() and not path.exists():
            why = "a link that leads nowhere"
        raise images.Corrupt(f"{path}: {why}") from error
    if spec.crop != 1.0 or picture.size != (width, height):
        side = spec.crop * min(picture.size)
        left, top = (picture.width - side) / 2, (picture.height - side) / 2
        box = (left, top, left + side, top + side)
        # bicubic, and antialiased, as in `images`
        picture = picture.resize((width, height), resample=3, box=box)
    return np.asarray(picture, np.uint8).reshape(height, width, channels)


def inputs(spec: pipeline.Spec) -> Callable[[jax.Array], jax.Array]:
    """Traced: uint8 [B, H, W, C] of `read` -> float32 [B, *spec.shape]."""
    return images.normaliser(spec.mean, spec.std, spec.shape[0])


def is_inverted(pixels: np.ndarray, spec: pipeline.Spec) -> bool:
    """Whether a grey picture is bright, and those of the set are dark, as digits are.

    pixels: [H, W, C] of `read`.
    """
    known = len(spec.mean) == 1 and 0 < spec.mean[0] < BRIGHT
    return known and bool(pixels.mean() / 255 > BRIGHT)

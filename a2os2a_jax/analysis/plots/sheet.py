"""Pictures in rows, as the model sees them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from a2os2a_jax import texts
from a2os2a_jax.analysis.plots import base

_NAME, _ROW = 22, 60  # characters of a line above a picture, and above a row of them


def contact_sheet(
    images: Any, titles: Sequence[str], path: str | os.PathLike, title: str = ""
) -> Path:
    """Pictures in rows of six, or the frames of an example in a row.

    Args:
      images: [n, H, W, C] or [n, T, H, W, C]. Of one or three channels, values are 0
        (black) to 1; if some lie outside, all are stretched over their range. Of two,
        events: channel 0 (darker) is drawn orange, 1 (brighter) blue, on white.
      titles: n of them.
      path: a .png or .svg to write.
      title: above the sheet.
    Returns:
      path.
    Raises:
      ValueError: another number of axes or channels, or of titles.
    """
    images = np.asarray(images, np.float32)
    if images.ndim not in (4, 5) or images.shape[-1] not in (1, 2, 3):
        raise ValueError(
            f"contact_sheet: got {images.shape}, expected [n, H, W, C] or "
            "[n, T, H, W, C] with 1, 2 or 3 channels"
        )
    if len(titles) != len(images):
        raise ValueError(
            f"contact_sheet: got {len(titles)} titles for {len(images)} pictures"
        )
    count = len(images)
    most = _NAME if images.ndim == 4 else _ROW
    titles = ["\n".join(texts.line(x, most) for x in t.split("\n")) for t in titles]
    if images.ndim == 4:
        columns = min(6, count)
        rows = -(-count // columns)
        cells = list(images)
    else:
        rows, columns = count, images.shape[1]
        cells = [frame for example in images for frame in example]
    height, width = images.shape[-3:-1]
    side = 1.45
    figure = base.figure(
        max(4.0, columns * side), 0.4 + rows * (side * height / width + 0.3)
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    shown = [_pixels(cell, images) for cell in cells]
    for i, axis in enumerate(axes.flat):
        base.bare(axis)
        if i >= len(shown):
            axis.set_visible(False)
            continue
        axis.imshow(shown[i], interpolation="nearest", vmin=0, vmax=1, cmap="gray")
        at = i if images.ndim == 4 else i // columns
        if images.ndim == 4:
            axis.set_title(titles[at], fontsize=7, pad=2)
        elif i % columns == 0:
            text = titles[at].replace("\n", ", ")
            axis.set_title(text, fontsize=7, pad=2, loc="left")
    height = figure.get_figheight()
    base.tight(figure, pad=0.4, rect=(0, 0, 1, 1 - 0.3 / height if title else 1))
    if title:  # after the layout, which would make room for it once more
        figure.suptitle(
            texts.line(title, 80), fontsize=10, y=1 - 0.06 / height, va="top"
        )
    return base.save(figure, path)


def _pixels(image: np.ndarray, all_images: np.ndarray) -> np.ndarray:
    """[H, W] grey or [H, W, 3] colours, 0 to 1, of what may hold anything."""
    if image.shape[-1] == 2:
        most = max(float(np.quantile(all_images, 0.995)), 1e-6)
        off, on = np.moveaxis(np.clip(np.abs(image) / most, 0, 1), -1, 0)
        ink = np.array([[0.84, 0.37, 0.0], [0.0, 0.45, 0.70]], np.float32)
        out = 1 - off[..., None] * (1 - ink[0]) - on[..., None] * (1 - ink[1])
        return np.clip(out, 0, 1)
    low, high = float(all_images.min()), float(all_images.max())
    if low < -0.01 or high > 1.01:  # no pixels; or moved by interpolation
        image = (image - low) / max(high - low, 1e-6)
    image = np.clip(image, 0, 1)
    return image[..., 0] if image.shape[-1] == 1 else image

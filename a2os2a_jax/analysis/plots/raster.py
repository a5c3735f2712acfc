"""The spikes of one example, layer by layer."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from a2os2a_jax import texts
from a2os2a_jax.analysis.plots import base

_SILENT, _SPIKE, _PLUS, _MINUS = "#ffffff", "#1a1a1a", "#2166ac", "#d6301d"
_NAME = 16  # characters of the name of a class
_ROWS, _COLUMNS = 24, 60  # positions and channels shown of a layer, at most


def spike_raster(
    spikes: Mapping[str, Any],
    image: Any,
    path: str | os.PathLike,
    label: int,
    prediction: int,
    class_names: Sequence[str] | None = None,
    title: str = "",
) -> Path:
    """How spikes of one example pass through the layers, timestep by timestep.

    Left the image; then a row per layer: its firing rate, one map of positions ×
    channels per timestep (an even sample of at most 24 × 60), and where on the image
    the layer fires, summed over channels and time, with the most of any place.

    Args:
      spikes: {layer: [T, neurons...]} in the order of the network, one example, no
        batch axis: [T, n], [T, N, D] tokens, [T, H, W, C] space (H = W).
      image: [H, W] or [H, W, C], any range.
      path: a .png or .svg to write.
      label, prediction: class indices.
      class_names: what the indices stand for; the numbers if None.
      title: below the heading, such as model and data.
    Returns:
      path.
    Raises:
      ValueError: no layers, layers that differ in T or lack a time axis, or an image
        of another rank.
    """
    from matplotlib.patches import Patch

    layers = {k: np.asarray(v, np.float32) for k, v in spikes.items()}
    maps = {name: _maps(name, s) for name, s in layers.items()}
    times = {s.shape[0] for s in layers.values()}
    if len(times) != 1:
        raise ValueError(
            f"spike_raster: got timesteps {sorted(times)}, expected layers with one T"
        )
    image = np.asarray(image, np.float32)
    if image.ndim not in (2, 3):
        raise ValueError(
            f"spike_raster: image has shape {image.shape}, expected [H, W] or [H, W, C]"
        )
    (t,) = times
    cell, row, left, where = 1.55, 0.78, 2.3, 0.85  # inches
    captions = {name: _caption(name, s) for name, s in layers.items()}
    names = 0.3 + 0.075 * max(len(x) for c in captions.values() for x in c.split("\n"))
    most = 0.2 + 0.075 * max(len(_most(m)) for m, _ in maps.values())
    width = left + names + max(cell * t + where + most, 5.1)  # the words below
    title = base.folded(title, int(12 * width))
    top = 0.95 + (0.2 * (title.count("\n") + 1) if title else 0)
    height = top + max(0.75 + row * len(layers), 3.75)
    figure = base.figure(width, height)

    def text(x: float, y: float, string: str, **style):
        figure.text(x / width, 1 - y / height, string, **style)

    named = [
        str(i) if class_names is None else texts.line(class_names[i], _NAME)
        for i in (label, prediction)
    ]
    text(0.25, 0.3, f"Spikes of one example over {t} timesteps", size=13, va="center")
    if title:
        text(0.25, 0.5, title, size=10, va="top", linespacing=1.2)
    base.draw_image(base.axes_at(figure, 0.3, top, 1.8, 1.8), image)
    verdict = "correct" if label == prediction else "wrong"
    text(
        0.3,
        top + 1.95,
        f"label: {named[0]}\npredicted: {named[1]}\n({verdict})",
        size=11,
        va="top",
        color="black" if label == prediction else _MINUS,
    )
    kinds = [Patch(facecolor=_SPIKE, label="spike")]
    lows = [s.min() for s in layers.values()]
    if any(low < 0 for low in lows):
        if all(low < 0 for low in lows):
            kinds = []
        kinds += [
            Patch(facecolor=_PLUS, label="spike +1"),
            Patch(facecolor=_MINUS, label="spike −1"),
        ]
    kinds.append(Patch(facecolor=_SILENT, edgecolor="#999999", label="silent"))
    figure.legend(
        handles=kinds,
        loc="upper left",
        bbox_to_anchor=(0.2 / width, 1 - (top + 2.65) / height),
        fontsize=9.5,
        frameon=False,
        handlelength=1.2,
        borderaxespad=0,
    )

    x0 = left + names
    for i in range(t):
        text(x0 + (i + 0.5) * cell, top - 0.12, f"t = {i + 1}", size=10.5, ha="center")
    x_where = x0 + t * cell + 0.1 + (where - 0.1) / 2
    text(x_where, top - 0.12, "where", size=10.5, ha="center")
    for i, (name, (m, grid)) in enumerate(maps.items()):
        y = top + i * row
        text(
            x0 - 0.12,
            y + row / 2 - 0.02,
            captions[name],
            size=9,
            ha="right",
            va="center",
            linespacing=1.25,
        )
        colours, limits, drawn = _colours(m)
        drawn = drawn[:, base.evenly(m.shape[1], _ROWS)][
            :, :, base.evenly(m.shape[2], _COLUMNS)
        ]
        for j in range(t):
            axis = base.axes_at(figure, x0 + j * cell + 0.05, y, cell - 0.1, row - 0.12)
            axis.imshow(
                drawn[j],
                cmap=colours,
                vmin=limits[0],
                vmax=limits[1],
                aspect="auto",
                interpolation="nearest",
            )
            base.bare(axis)
        if grid is not None:
            axis = base.axes_at(
                figure, x_where - (row - 0.12) / 2, y, row - 0.12, row - 0.12
            )
            spots = np.abs(m).sum((0, 2)).reshape(grid)
            high = max(spots.max(), 1)  # a silent layer is dark, not an error
            axis.imshow(
                spots, cmap=base.SHARES, vmin=0, vmax=high, interpolation="nearest"
            )
            base.bare(axis)
            beside = x_where + (row - 0.12) / 2 + 0.07
            text(beside, y + (row - 0.12) / 2, _most(m), size=9, va="center")
    text(
        x0 + 0.05,
        top + row * len(layers) + 0.05,
        "t: an even sample of positions (down) × channels (across).\n"
        "where: spikes at each place, over all channels and t; beside it the most.\n"
        "%: how many of all neurons × timesteps fire.",
        size=9,
        va="top",
        linespacing=1.3,
        color="#444444",
    )
    return base.save(figure, path)


def _maps(name: str, spikes: np.ndarray) -> tuple[np.ndarray, tuple[int, int] | None]:
    """[T, positions, channels], and the (rows, columns) the positions lie on, if any.

    [T, n] has one position; [T, N, D] tokens; [T, H, W, C] space when H = W; all else
    [T, N, ...] is tokens × the rest.
    """
    if spikes.ndim < 2:
        raise ValueError(
            f"spike_raster: {name} has shape {spikes.shape}, expected [T, neurons...]"
        )
    t, grid = spikes.shape[0], None
    if spikes.ndim == 2:
        return spikes[:, None], None
    if spikes.ndim == 4 and spikes.shape[1] == spikes.shape[2]:
        grid = spikes.shape[1:3]
        return spikes.reshape(t, -1, spikes.shape[3]), grid
    side = round(spikes.shape[1] ** 0.5)
    if side > 1 and side * side == spikes.shape[1]:
        grid = (side, side)
    return spikes.reshape(t, spikes.shape[1], -1), grid


def _most(maps: np.ndarray) -> str:
    """The spikes of the place that has most, of [T, positions, channels]."""
    return f"{np.abs(maps).sum((0, 2)).max():.4g}"


def _colours(maps: np.ndarray):
    """Colour map and limits for a layer that is binary, ternary or multi-level."""
    from matplotlib.colors import ListedColormap

    if maps.min() < 0:
        return ListedColormap([_MINUS, _SILENT, _PLUS]), (-1, 1), np.sign(maps)
    if maps.max() > 1:
        return "Greys", (0, maps.max()), maps
    return ListedColormap([_SILENT, _SPIKE]), (0, 1), maps


def _caption(name: str, spikes: np.ndarray) -> str:
    """Name, neurons, firing rate."""
    shape = "×".join(map(str, spikes.shape[1:]))
    rate = f"{shape} · {100 * (spikes != 0).mean():.1f} %"
    if spikes.min() < 0:
        plus, minus = 100 * (spikes > 0).mean(), 100 * (spikes < 0).mean()
        rate += f"\n(+{plus:.1f} %, −{minus:.1f} %)"
    return f"{name}\n{rate}"

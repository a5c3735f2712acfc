"""One picture: what the model sees, its spikes, and its answer as time goes on."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from a2os2a_jax import texts
from a2os2a_jax.analysis.plots import base, raster

_LAYERS, _STEPS, _CLASSES, _CURVES = 18, 8, 5, 3  # at most
_COLOURS, _MARKERS = (base.BLUE, base.ORANGE, base.GREEN), "osD"
_FLAT, _SEEN = 10.0, 0.1  # %: curves that lie between these are enlarged
_NAME, _TITLE = 26, 60  # characters


def prediction(
    pixels: Any,
    spikes: Mapping[str, Any],
    per_step: Any,
    classes: Sequence[str],
    path: str | os.PathLike,
    *,
    probabilities: Sequence[float],
    title: str = "",
) -> Path:
    """Left the picture, the answer, and the probability of the first three classes
    after 1 to T steps; right the spikes, a row for each layer as in `spike_raster`.

    Where the second and the third stay below 10 %, they are drawn once more, enlarged.

    Args:
      pixels: uint8 [H, W, C], 1 or 3 channels, as the model sees it.
      spikes: {layer: [T, neurons...]}, see `spike_raster`; of more than 18 layers an
        even sample is drawn, and of more than 8 steps.
      per_step: [T, classes] probabilities of these classes after 1 to T steps.
      classes: names, the most probable first; five are listed.
      path: a .png or .svg to write.
      probabilities: of the classes, as they were answered.
      title: below the heading.
    Returns:
      path.
    Raises:
      ValueError: shapes that do not fit each other.
    """
    p = np.asarray(per_step, float)
    layers = {k: np.asarray(v, np.float32) for k, v in spikes.items()}
    times = {len(s) for s in layers.values()}
    pixels = np.asarray(pixels)
    if p.shape != (len(p), len(classes)) or times != {len(p)} or not len(p):
        raise ValueError(
            f"prediction: got {p.shape} probabilities, {len(classes)} classes and "
            f"layers of {sorted(times)} steps, expected [T, classes] and one T"
        )
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise ValueError(
            f"prediction: got pixels {pixels.shape}, expected [H, W, 1 or 3]"
        )
    steps = base.evenly(len(p), _STEPS)
    shown = base.evenly(len(layers), _LAYERS)
    names = [list(layers)[i] for i in shown]
    maps = {name: raster._maps(name, layers[name]) for name in names}
    captions = {n: raster._caption(n, layers[n]).replace("\n(", "  (") for n in names}

    cell, row, left, where, margin = 1.45, 0.56, 4.3, 0.75, 0.3  # inches
    widest = max(len(x) for c in captions.values() for x in c.split("\n"))
    label = 0.2 + 0.069 * widest
    most = 0.2 + 0.075 * max(len(raster._most(m)) for m, _ in maps.values())
    width = left + label + cell * len(steps) + where + most
    heading = "What the model sees, how it spikes, what it answers"
    title = base.folded(texts.line(title, 2 * _TITLE), int(12 * width))
    top = 1.0 + (0.2 * (title.count("\n") + 1) if title else 0)
    few = min(len(classes), _CLASSES)
    answer_at, line = top + 2.25, 0.24
    plot_at = answer_at + 0.1 + line * few + 0.35
    rows_end = top + row * len(names)
    notes = [
        "t: an even sample of positions (down) × channels (across).",
        "where: spikes at each place, over all channels and t; beside it the most.",
        "%: how many of all neurons × timesteps fire; red is −1, blue +1.",
    ]
    if len(names) < len(layers):
        notes.append(f"{len(names)} of {len(layers)} layers, evenly chosen.")
    if len(steps) < len(p):
        notes.append(f"{len(steps)} of {len(p)} steps, evenly chosen.")
    room = int((width - left - label) / 0.072)  # characters
    notes = "\n".join(base.folded(note, room) for note in notes)
    curves = 100 * p[:, :_CURVES]
    enlarged = curves.shape[1] > 1 and _SEEN <= curves[:, 1:].max() < _FLAT
    plot_end = plot_at + (4.35 if enlarged else 2.8)
    height = max(plot_end, rows_end + 0.3 + 0.175 * (notes.count("\n") + 1))
    figure = base.figure(width, height)

    def text(x: float, y: float, string: str, **style):
        figure.text(x / width, 1 - y / height, string, **style)

    text(margin, 0.3, heading, size=13, va="center")
    if title:
        text(margin, 0.5, title, size=10, va="top", linespacing=1.2)
    _draw_picture(base.axes_at(figure, margin, top, 2.0, 2.0), pixels)
    size = "×".join(map(str, pixels.shape[:2]))
    text(margin + 2.1, top + 0.02, f"{size} pixels", size=9, va="top", color="#444444")
    for i in range(few):
        y = answer_at + 0.1 + line * i
        if i < _CURVES:
            text(margin + 0.05, y, "■", size=10, va="center", color=_COLOURS[i])
        weight = "bold" if i == 0 else "normal"
        text(
            margin + 0.28,
            y,
            texts.line(classes[i], _NAME),
            size=10.5,
            va="center",
            weight=weight,
        )
        text(
            left - 0.35,
            y,
            f"{100 * probabilities[i]:.1f} %",
            size=10.5,
            va="center",
            ha="right",
            weight=weight,
        )
    where_curves = margin + 0.55, left - margin - 0.95
    axis = base.axes_at(figure, where_curves[0], plot_at, where_curves[1], 2.0)
    _draw_any_time(axis, curves, range(curves.shape[1]))
    axis.set_ylim(0, 100)
    axis.set_title("any-time confidence", fontsize=10.5)
    if enlarged:
        axis = base.axes_at(
            figure, where_curves[0], plot_at + 2.85, where_curves[1], 0.95
        )
        _draw_any_time(axis, curves, range(1, curves.shape[1]))
        axis.set_ylim(0, 1.15 * curves[:, 1:].max())
        axis.locator_params(axis="y", nbins=4)
        axis.set_ylabel("(%)", fontsize=9.5)
        axis.set_title("without the answer, enlarged", fontsize=10.5)
    _draw_layers(
        figure, text, maps, captions, steps, left + label, top, cell, row, where
    )
    text(
        left + label + 0.05,
        rows_end + 0.05,
        notes,
        size=9,
        va="top",
        linespacing=1.3,
        color="#444444",
    )
    return base.save(figure, path)


def _draw_picture(axis, pixels: np.ndarray) -> None:
    """In its own colours: black is 0, white 255."""
    image = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    base.bare(axis)


def _draw_any_time(axis, curves: np.ndarray, which: range) -> None:
    """Some of the columns of [T, classes], percent, over steps."""
    from matplotlib.ticker import MaxNLocator

    steps = np.arange(1, len(curves) + 1)
    for i in reversed(which):  # the first class on top
        axis.plot(
            steps,
            curves[:, i],
            color=_COLOURS[i],
            marker=_MARKERS[i],
            markersize=4.5,
            linewidth=2 if i == 0 else 1.2,
            clip_on=False,
        )
    axis.set_xlim(0.8, len(curves) + 0.2)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("after so many steps", fontsize=9.5)
    axis.set_ylabel("probability (%)", fontsize=9.5)
    base.quiet(axis)
    axis.tick_params(labelsize=9)


def _draw_layers(
    figure, text, maps, captions, steps, x0, top, cell, row, where
) -> None:
    """A row for each layer: its caption, a map for each step, and where it fires."""
    for j, t in enumerate(steps):
        text(x0 + (j + 0.5) * cell, top - 0.12, f"t = {t + 1}", size=10, ha="center")
    side = row - 0.08
    x_where = x0 + len(steps) * cell + where / 2
    text(x_where, top - 0.12, "where", size=10, ha="center")
    for i, (name, (m, grid)) in enumerate(maps.items()):
        y = top + i * row
        text(
            x0 - 0.1,
            y + side / 2,
            captions[name],
            size=8.5,
            ha="right",
            va="center",
            linespacing=1.2,
        )
        colours, limits, drawn = raster._colours(m)
        drawn = drawn[:, base.evenly(m.shape[1], 24)][:, :, base.evenly(m.shape[2], 60)]
        for j, t in enumerate(steps):
            axis = base.axes_at(figure, x0 + j * cell + 0.05, y, cell - 0.1, side)
            axis.imshow(
                drawn[t],
                cmap=colours,
                vmin=limits[0],
                vmax=limits[1],
                aspect="auto",
                interpolation="nearest",
            )
            base.bare(axis)
        if grid is not None:
            axis = base.axes_at(figure, x_where - side / 2, y, side, side)
            spots = np.abs(m).sum((0, 2)).reshape(grid)
            axis.imshow(
                spots,
                cmap=base.SHARES,
                vmin=0,
                vmax=max(spots.max(), 1),
                interpolation="nearest",
            )
            base.bare(axis)
            text(
                x_where + side / 2 + 0.07,
                y + side / 2,
                raster._most(m),
                size=8.5,
                va="center",
            )

"""How often layers fire: by timestep, and by place on the image."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from a2os2a_jax.analysis.plots import base

Rate = Sequence[float] | Mapping[str, Sequence[float]]
_NUMBERED = 24  # timesteps; the cells of more hold no numbers
_IMAGES = 6  # drawn at most


def rate_map(
    rates: Mapping[str, Rate], path: str | os.PathLike, title: str = ""
) -> Path:
    """Share of the neurons of a layer (row) that fire at a timestep (column), in %.

    A ternary layer has two rows, of spikes +1 and of spikes −1. A white line divides
    the parts of the model. Up to 24 timesteps the cells hold their numbers.

    Args:
      rates: {layer: [T] shares in [0, 1], or {"plus": [T], "minus": [T]}}, in the order
        of the network.
      path: a .png or .svg to write.
      title: above the map.
    Returns:
      path.
    Raises:
      ValueError: no layers, layers that differ in T, or what is not a share.
    """
    rows = _rows(rates)
    table = 100 * np.array([values for _, _, values in rows])
    steps = table.shape[1]
    numbered = steps <= _NUMBERED
    row, column = 0.21, 0.52 if numbered else max(0.06, 12 / steps)  # inches
    left = 0.35 + 0.068 * max(len(_label(name, sign)) for name, sign, _ in rows)
    lines = base.folded(title, 64).count("\n") + 1 if title else 0
    top = 0.62 + 0.2 * lines
    wide, high = max(column * steps, 1.2), row * len(rows)
    tall = min(max(high, 1.6), 3.0)  # of the scale
    width, height = max(left + wide + 1.1, 5.2), top + max(high, tall) + 0.25
    figure = base.figure(width, height)
    axis = base.axes_at(figure, left, top, wide, high)
    most = max(table.max(), 1.0)  # a silent network is dark, not an error
    image = axis.imshow(
        table,
        cmap=base.SHARES,
        vmin=0,
        vmax=most,
        aspect="auto",
        interpolation="nearest",
    )
    if numbered:
        for (i, j), value in np.ndenumerate(table):
            axis.text(
                j,
                i,
                _percent(value),
                ha="center",
                va="center",
                fontsize=8,
                color=base.ink(image.cmap(image.norm(value))),
            )
    ticks = np.arange(steps) if numbered else base.evenly(steps, 12)
    axis.set_xticks(ticks, [str(t + 1) for t in ticks])
    axis.set_yticks(range(len(rows)), [_label(name, sign) for name, sign, _ in rows])
    axis.tick_params(labelsize=8.5, length=0, top=False, labeltop=True)
    axis.tick_params(labelbottom=False)
    axis.xaxis.set_label_position("top")
    axis.set_xlabel("timestep", fontsize=10)
    axis.spines[:].set_visible(False)
    parts = [name.split("/")[0] for name, _, _ in rows]
    for i in range(1, len(rows)):
        if parts[i] != parts[i - 1]:
            axis.axhline(i - 0.5, color="white", linewidth=2.5)
    _scale(figure, image, left + wide + 0.25, top, tall, "neurons that fire (%)")
    if title:
        text = base.folded(title, 64)
        figure.text(0.15 / width, 1 - 0.12 / height, text, fontsize=11, va="top")
    return base.save(figure, path)


def _rows(rates: Mapping[str, Rate]) -> list[tuple[str, str, np.ndarray]]:
    """[(layer, sign, [T] shares)]; the sign is empty where spikes have none."""
    rows = []
    for name, of in rates.items():
        split = isinstance(of, Mapping)
        if split and of.keys() != {"plus", "minus"}:
            raise ValueError(
                f"rate_map: {name} has {', '.join(of)}, expected plus and minus"
            )
        signed = {"+": of["plus"], "−": of["minus"]} if split else {"": of}
        for sign, values in signed.items():
            shares = np.asarray(values, float)
            if shares.ndim != 1 or not np.all((shares >= 0) & (shares <= 1)):
                raise ValueError(
                    f"rate_map: {name} has {shares.tolist()}, expected [T] shares "
                    "from 0 to 1"
                )
            rows.append((name, sign, shares))
    lengths = sorted({len(shares) for _, _, shares in rows})
    if len(lengths) != 1 or not lengths[0]:
        raise ValueError(
            f"rate_map: got timesteps {lengths}, expected layers with one T"
        )
    return rows


def _label(name: str, sign: str) -> str:
    return f"{name}  {sign}".rstrip()


def _percent(value: float) -> str:
    """Three digits at most: 0, <0.1, 0.1, 12.3, 100."""
    if 0 < value < 0.05:
        return "<0.1"
    return f"{value:.1f}" if 0 < value < 99.95 else f"{value:.0f}"


def _scale(figure, image, left: float, top: float, high: float, of: str) -> None:
    """The colour scale, in inches from the top left corner."""
    axis = base.axes_at(figure, left, top, 0.16, high)
    bar = figure.colorbar(image, cax=axis)
    bar.outline.set_visible(False)
    axis.tick_params(labelsize=8.5)
    bar.set_label(of, fontsize=9)


def token_activity(
    images: Any, spikes: Mapping[str, Any], path: str | os.PathLike, title: str = ""
) -> Path:
    """Where on the image a layer fires: a map over its tokens, for a few images.

    A token's colour is the share of its channels × timesteps that fire, spikes of
    either sign alike, on one scale for all maps. Below the name of a layer is its share
    over the images drawn.

    Args:
      images: [B, H, W, C], any range; the first 6 are drawn.
      spikes: {layer: [B, T, N, D]} in the order of the network; the N tokens are a
        square, row by row.
      path: a .png or .svg to write.
      title: above all.
    Returns:
      path.
    Raises:
      ValueError: no images, no layers, or arrays of other axes.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or not images.size:
        raise ValueError(
            f"token_activity: images have shape {images.shape}, expected [B, H, W, C]"
        )
    images, given = images[:_IMAGES], len(images)
    maps = {name: _tokens(name, s, given) for name, s in spikes.items()}
    if not maps:
        raise ValueError("token_activity: got no layers, expected some with spikes")
    most = max(1.0, *(m.max() for m in maps.values()))
    captions = [_two_lines(name, m.mean()) for name, m in maps.items()]
    side, gap = 0.78, 0.06  # inches
    names = 0.15 + 0.068 * max(len(s) for c in captions for s in c.split("\n"))
    group = names + len(images) * (side + gap) + 0.15
    groups, rows = _groups(len(maps), group, side + gap)
    text = base.folded(title, int(12 * max(groups * group, 4)))
    top = 0.25 + (0.2 * (text.count("\n") + 1) if title else 0)
    width = max(groups * group + 1.0, 4.5)
    height = max(top + (rows + 1) * (side + gap) + 0.15, top + 2.6)
    figure = base.figure(width, height)
    for at, (caption, m) in enumerate(zip(captions, maps.values(), strict=True)):
        x, y = (at // rows) * group, top + (at % rows + 1) * (side + gap)
        if not at % rows:
            for i, image in enumerate(images):
                place = (x + names + i * (side + gap), top, side, side)
                base.draw_image(base.axes_at(figure, *place), image)
        figure.text(
            (x + names - 0.08) / width,
            1 - (y + side / 2) / height,
            caption,
            fontsize=8.5,
            ha="right",
            va="center",
            linespacing=1.2,
        )
        for i, of_image in enumerate(m[: len(images)]):
            place = (x + names + i * (side + gap), y, side, side)
            axis = base.axes_at(figure, *place)
            drawn = axis.imshow(
                of_image, cmap=base.SHARES, vmin=0, vmax=most, interpolation="nearest"
            )
            base.bare(axis)
    high = min(height - top - 0.2, 2.6)
    of = "channels × steps that fire (%)"
    _scale(figure, drawn, groups * group + 0.15, top, high, of)
    if title:
        figure.text(0.15 / width, 1 - 0.1 / height, text, fontsize=11, va="top")
    return base.save(figure, path)


def _tokens(name: str, spikes: Any, images: int) -> np.ndarray:
    """[B, h, w], the first few of B: % of channels × timesteps that fire."""
    s = np.asarray(spikes)
    side = round(s.shape[2] ** 0.5) if s.ndim == 4 else 0
    if not s.size or s.ndim != 4 or len(s) != images or side * side != s.shape[2]:
        raise ValueError(
            f"token_activity: {name} has shape {s.shape}, expected "
            f"[{images}, T, N, D] with N the square of a whole number"
        )
    share = 100 * (s[:_IMAGES] != 0).mean((1, 3))
    return share.reshape(len(share), side, side)


def _groups(layers: int, width: float, row: float) -> tuple[int, int]:
    """(groups side by side, rows in one) that make the figure nearly a square."""
    ways = [(n, -(-layers // n)) for n in range(1, layers + 1)]
    return min(ways, key=lambda way: max(way[0] * width, (way[1] + 1) * row))


def _two_lines(name: str, percent: float) -> str:
    """The path of a layer, its own name, its share."""
    parent, slash, own = name.rpartition("/")
    return f"{parent}{slash}\n{own}\n{percent:.1f} %".lstrip("\n")

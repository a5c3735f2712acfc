"""Figures as PNG files. matplotlib is imported inside functions; no display is needed.

Colours stay apart for colour-blind readers and in print. Files are written beside
their name and renamed, so a figure is whole or absent.
"""

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_DPI = 150
_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito
_SPLITS = {  # split: (colour, marker, line width)
    "train": (_BLUE, "", 1.2),
    "validation": (_ORANGE, "o", 1.2),
    "test": (_GREEN, "D", 1.2),
}
_SILENT, _SPIKE, _PLUS, _MINUS = "#ffffff", "#1a1a1a", "#2166ac", "#d6301d"
_ROWS, _COLUMNS = 24, 60  # positions and channels shown of a layer, at most


def _figure(width: float, height: float):
    """A figure of its own (inches), outside pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure


def _save(figure, path: str | os.PathLike) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.tmp")
    figure.savefig(temp, format="png", dpi=_DPI, facecolor="white")
    os.replace(temp, path)
    return path


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def training_curves(
    records: Sequence[Mapping[str, Any]], path: str | os.PathLike, title: str = ""
) -> Path:
    """Loss and accuracy (%) against epochs: training as a line, held-out as points.

    Args:
      records: lines of metrics.jsonl: split, epoch (or step), loss, accuracy (a
        fraction); what is absent or null leaves a gap.
      path: the PNG to write.
      title: above both panels.
    Returns:
      path.
    Raises:
      ValueError: no record of a known split with a loss or an accuracy.
    """
    known = [
        r
        for r in records
        if r.get("split") in _SPLITS and ("loss" in r or "accuracy" in r)
    ]
    if not known:
        raise ValueError(
            f"training_curves: got {len(records)} records, expected some with split in "
            f"{', '.join(_SPLITS)} and a loss or an accuracy"
        )
    unit = "epoch" if all("epoch" in r for r in known) else "step"
    figure = _figure(10, 4.2)
    axes = figure.subplots(1, 2)
    panels = (("loss", "loss", 1.0), ("accuracy", "accuracy (%)", 100.0))
    for axis, (key, label, scale) in zip(axes, panels, strict=True):
        for split, (colour, marker, width) in _SPLITS.items():
            of_split = [r for r in known if r["split"] == split and key in r]
            of_split.sort(key=lambda r: r[unit])
            if not of_split:
                continue
            y = [scale * _number(r[key]) for r in of_split]
            last = f"{y[-1]:.1f} %" if key == "accuracy" else f"{y[-1]:.3f}"
            axis.plot(
                [r[unit] for r in of_split],
                y,
                color=colour,
                marker=marker or ("." if len(y) == 1 else None),
                markersize=5,
                linewidth=width,
                label=f"{split} (last {last})",
            )
        axis.set_xlabel(unit, fontsize=11)
        axis.set_ylabel(label, fontsize=11)
        _quiet(axis)
        if axis.lines:
            axis.legend(fontsize=9.5, frameon=True, framealpha=0.9, loc="best")
    low, high = axes[1].get_ylim()
    axes[1].set_ylim(max(low, -2), min(high, 102))
    if title:
        figure.suptitle(title, fontsize=12)
    figure.tight_layout()
    return _save(figure, path)


def _quiet(axis) -> None:
    """A grid behind, no frame."""
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=10)


def confusion(
    counts: Any,
    path: str | os.PathLike,
    class_names: Sequence[str] | None = None,
    title: str = "",
) -> Path:
    """How often examples of a class (row) were taken for which class (column).

    Blue on the diagonal is right, orange beside it wrong; the darker, the larger the
    share of its row, the square root of which sets the colour, so that few errors show;
    white is none. Up to 20 classes the cells hold their counts.

    Args:
      counts: [C, C], rows are labels.
      path: the PNG to write.
      class_names: C of them; the numbers if None.
      title: above the matrix.
    Returns:
      path.
    Raises:
      ValueError: counts that are not square, or other than C names.
    """
    counts = np.asarray(counts)
    classes = len(counts)
    names = range(classes) if class_names is None else class_names
    names = [str(name) for name in names]
    if counts.ndim != 2 or counts.shape[1] != classes or len(names) != classes:
        raise ValueError(
            f"confusion: got counts {counts.shape} and {len(names)} names, expected "
            "[C, C] and C"
        )
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    diagonal = np.eye(classes, dtype=bool)
    side = min(max(3.2, 0.42 * classes), 8.5)  # inches
    label = 0.085 * max(map(len, names))
    figure = _figure(side + label + 1.2, side + label + 1.3)
    axis = figure.subplots()
    for colours, hidden in (("Blues", ~diagonal), ("Oranges", diagonal)):
        axis.imshow(
            np.ma.masked_array(np.sqrt(share), hidden | (counts == 0)),
            cmap=colours,
            vmin=-0.4,  # so that a single example is no shade of white
            vmax=1,
            interpolation="nearest",
        )
    if classes <= 20:
        for row, column in np.argwhere(counts):
            axis.text(
                column,
                row,
                f"{counts[row, column]}",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if share[row, column] > 0.3 else "black",
            )
    ticks = np.arange(classes) if classes <= 40 else _evenly(classes, 20)
    shown = [names[i] for i in ticks]
    long = max(map(len, shown)) > 3
    axis.set_xticks(ticks, shown, rotation=90 if long else 0)
    axis.set_yticks(ticks, shown)
    axis.tick_params(labelsize=10 if classes <= 20 else 8)
    axis.set_xlabel("predicted", fontsize=11)
    axis.set_ylabel("label", fontsize=11)
    right, total = counts.diagonal().sum(), counts.sum()
    axis.set_title(
        f"{_folded(title, 60)}\n{right:,} of {total:,} right".strip(), fontsize=11
    )
    figure.tight_layout()
    return _save(figure, path)


def _folded(title: str, width: int) -> str:
    return textwrap.fill(title, width, break_long_words=False)


def reliability(
    bins: Mapping[str, Sequence[Any]], path: str | os.PathLike, title: str = ""
) -> Path:
    """Accuracy against confidence, bin by bin, and how many examples each bin holds.

    A calibrated model lies on the diagonal; bars below it claim too much. Their gaps,
    weighted by the counts, are the expected calibration error, which is written there.

    Args:
      bins: "count", "accuracy", "confidence" of bins of equal width over (0, 1], as
        `train.evaluate.summary` gives them; None in an empty bin.
      path: the PNG to write.
      title: above both panels.
    Returns:
      path.
    Raises:
      ValueError: lists of unlike length, or no example in any bin.
    """
    count = np.asarray(bins["count"], float)
    accuracy, confidence = (
        100 * np.array([_number(x) for x in bins[key]])
        for key in ("accuracy", "confidence")
    )
    if not len(count) == len(accuracy) == len(confidence) or not count.sum():
        raise ValueError(
            f"reliability: got {len(count)} counts of {count.sum():.0f} examples, "
            f"{len(accuracy)} accuracies, {len(confidence)} confidences, expected as "
            "many of each and an example"
        )
    full = count > 0
    share = 100 * count / count.sum()
    ece = (share * np.abs(accuracy - confidence))[full].sum() / 100
    width = 100 / len(count)
    left = width * np.arange(len(count))
    figure = _figure(5.4, 6.2)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 100], [0, 100], color="#666666", linewidth=1, linestyle="--")
    above.bar(
        left[full],
        accuracy[full],
        width,
        align="edge",
        color=_BLUE,
        edgecolor="white",
        label="accuracy of the bin",
    )
    above.plot(
        confidence[full],
        accuracy[full],
        color=_ORANGE,
        marker="D",
        markersize=5,
        linestyle="none",
        markeredgecolor="white",
        clip_on=False,
        label="at its mean confidence",
    )
    above.set_ylim(0, 100)
    _quiet(above)
    above.set_ylabel("accuracy (%)", fontsize=11)
    above.legend(fontsize=9.5, loc="best", framealpha=0.9)
    above.set_title(
        f"{_folded(title, 56)}\nexpected calibration error {ece:.2f} %".strip(),
        fontsize=11,
    )
    below.bar(left, share, width, align="edge", color="#888888", edgecolor="white")
    _quiet(below)
    below.set_xlim(0, 100)
    below.set_ylim(0, 100)
    below.set_xlabel("confidence of the answer (%)", fontsize=11)
    below.set_ylabel("examples (%)", fontsize=11)
    figure.tight_layout()
    return _save(figure, path)


def any_time(
    accuracies: Sequence[float], path: str | os.PathLike, title: str = ""
) -> Path:
    """Accuracy (%) of the answer after 1 to T steps, of one run of T steps.

    Args:
      accuracies: T fractions.
      path: the PNG to write.
      title: above the curve.
    Returns:
      path.
    Raises:
      ValueError: no accuracies.
    """
    from matplotlib.ticker import MaxNLocator

    y = 100 * np.asarray(accuracies, float)
    if not y.size:
        raise ValueError("any_time: got no accuracies, expected one for each step")
    figure = _figure(5.4, 4)
    axis = figure.subplots()
    steps = np.arange(1, y.size + 1)
    axis.plot(steps, y, color=_BLUE, marker="o", markersize=5, linewidth=1.2)
    low, high = axis.get_ylim()
    room = max(high - low, 1) * 0.12
    axis.set_ylim(max(low - room, -2), min(high + room, 104))
    for i in _evenly(y.size, 8):
        axis.annotate(
            f"{y[i]:.1f}",
            (steps[i], y[i]),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    axis.set_xlim(0.5, y.size + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("steps", fontsize=11)
    axis.set_ylabel("accuracy (%)", fontsize=11)
    _quiet(axis)
    if title:
        axis.set_title(_folded(title, 56), fontsize=11)
    figure.tight_layout()
    return _save(figure, path)


def _evenly(count: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


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


def _colours(maps: np.ndarray):
    """Colour map and limits for a layer that is binary, ternary or multi-level."""
    from matplotlib.colors import ListedColormap

    if maps.min() < 0:
        return ListedColormap([_MINUS, _SILENT, _PLUS]), (-1, 1), np.sign(maps)
    if maps.max() > 1:
        return "Greys", (0, maps.max()), maps
    return ListedColormap([_SILENT, _SPIKE]), (0, 1), maps


def _bare(axis, border: str = "#999999") -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_edgecolor(border)
        spine.set_linewidth(0.6)


def spike_raster(
    spikes: Mapping[str, Any],
    image: Any,
    path: str | os.PathLike,
    label: int,
    prediction: int,
    class_names: Sequence[str] | None = None,
) -> Path:
    """How spikes of one image pass through the layers, timestep by timestep.

    Left the image; then a row per layer: its firing rate, one map of positions ×
    channels per timestep (an even sample of at most 24 × 60), and where on the image
    the layer fires, summed over channels and time.

    Args:
      spikes: {layer: [T, neurons...]} in the order of the network, one example, no
        batch axis: [T, n], [T, N, D] tokens, [T, H, W, C] space (H = W).
      image: [H, W] or [H, W, C], any range.
      path: the PNG to write.
      label, prediction: class indices.
      class_names: what the indices stand for; the numbers if None.
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
    cell, row, left, where, top = 1.55, 0.78, 2.3, 0.85, 0.95  # inches
    captions = {name: _caption(name, s) for name, s in layers.items()}
    names = 0.3 + 0.075 * max(len(x) for c in captions.values() for x in c.split("\n"))
    height = max(top + 0.75 + row * len(layers), 4.7)
    width = left + names + cell * t + where + 0.35
    figure = _figure(width, height)

    def axes(x: float, y: float, w: float, h: float):
        """Axes at inches from the top left corner."""
        box = (x / width, 1 - (y + h) / height, w / width, h / height)
        return figure.add_axes(box)

    def text(x: float, y: float, string: str, **style):
        figure.text(x / width, 1 - y / height, string, **style)

    named = [
        str(i) if class_names is None else class_names[i] for i in (label, prediction)
    ]
    text(0.25, 0.3, f"Spikes of one image over {t} timesteps", size=13, va="center")
    _draw_image(axes(0.3, top, 1.8, 1.8), image)
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
        drawn = drawn[:, _evenly(m.shape[1], _ROWS)][
            :, :, _evenly(m.shape[2], _COLUMNS)
        ]
        for j in range(t):
            axis = axes(x0 + j * cell + 0.05, y, cell - 0.1, row - 0.12)
            axis.imshow(
                drawn[j],
                cmap=colours,
                vmin=limits[0],
                vmax=limits[1],
                aspect="auto",
                interpolation="nearest",
            )
            _bare(axis)
        if grid is not None:
            axis = axes(x_where - (row - 0.12) / 2, y, row - 0.12, row - 0.12)
            spots = np.abs(m).sum((0, 2)).reshape(grid)
            most = max(spots.max(), 1)  # a silent layer is dark, not an error
            axis.imshow(
                spots, cmap="viridis", vmin=0, vmax=most, interpolation="nearest"
            )
            _bare(axis)
    text(
        x0 + 0.05,
        top + row * len(layers) + 0.05,
        "t: an even sample of positions (down) × channels (across).\n"
        "where: spikes at each place, over all channels and t; bright is many.\n"
        "%: how many of all neurons × timesteps fire.",
        size=9,
        va="top",
        linespacing=1.3,
        color="#444444",
    )
    return _save(figure, path)


def _draw_image(axis, image: np.ndarray) -> None:
    if image.ndim == 3 and image.shape[2] not in (3, 4):
        image = image.mean(2)
    low, high = image.min(), image.max()
    image = (image - low) / (high - low if high > low else 1)
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    _bare(axis)


def _caption(name: str, spikes: np.ndarray) -> str:
    """Name, neurons, firing rate."""
    shape = "×".join(map(str, spikes.shape[1:]))
    rate = f"{shape} · {100 * (spikes != 0).mean():.1f} %"
    if spikes.min() < 0:
        plus, minus = 100 * (spikes > 0).mean(), 100 * (spikes < 0).mean()
        rate += f"\n(+{plus:.1f} %, −{minus:.1f} %)"
    return f"{name}\n{rate}"


def contact_sheet(
    images: Any, titles: Sequence[str], path: str | os.PathLike, title: str = ""
) -> Path:
    """Pictures in rows of six, or the frames of an example in a row.

    Args:
      images: [n, H, W, C] or [n, T, H, W, C]. Of one or three channels, values are 0
        (black) to 1; if some lie outside, all are stretched over their range. Of two,
        events: channel 0 (darker) is drawn orange, 1 (brighter) blue, on white.
      titles: n of them.
      path: the PNG to write.
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
    if images.ndim == 4:
        columns = min(6, count)
        rows = -(-count // columns)
        cells = list(images)
    else:
        rows, columns = count, images.shape[1]
        cells = [frame for example in images for frame in example]
    height, width = images.shape[-3:-1]
    side = 1.45
    figure = _figure(
        max(4.0, columns * side), 0.4 + rows * (side * height / width + 0.3)
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    shown = [_pixels(cell, images) for cell in cells]
    for i, axis in enumerate(axes.flat):
        _bare(axis)
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
    figure.tight_layout(pad=0.4, rect=(0, 0, 1, 1 - 0.3 / height if title else 1))
    if title:  # after the layout, which would make room for it once more
        figure.suptitle(title, fontsize=10, y=1 - 0.06 / height, va="top")
    return _save(figure, path)


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

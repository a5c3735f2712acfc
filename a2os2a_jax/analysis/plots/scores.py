"""What an evaluation says: confusion, calibration, accuracy against time."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from a2os2a_jax import texts
from a2os2a_jax.analysis.plots import base

_NAME = 26  # characters of the name of a class


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
      path: a .png or .svg to write.
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
    names = [texts.line(str(name), _NAME) for name in names]
    if counts.ndim != 2 or counts.shape[1] != classes or len(names) != classes:
        raise ValueError(
            f"confusion: got counts {counts.shape} and {len(names)} names, expected "
            "[C, C] and C"
        )
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    diagonal = np.eye(classes, dtype=bool)
    side = min(max(3.2, 0.42 * classes), 8.5)  # inches
    label = 0.085 * max(map(len, names))
    figure = base.figure(side + label + 1.2, side + label + 1.3)
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
    ticks = np.arange(classes) if classes <= 40 else base.evenly(classes, 20)
    shown = [names[i] for i in ticks]
    long = max(map(len, shown)) > 3
    axis.set_xticks(ticks, shown, rotation=90 if long else 0)
    axis.set_yticks(ticks, shown)
    axis.tick_params(labelsize=10 if classes <= 20 else 8)
    axis.set_xlabel("predicted", fontsize=11)
    axis.set_ylabel("label", fontsize=11)
    right, total = counts.diagonal().sum(), counts.sum()
    title = base.folded(title, min(60, int(10 * side + 10)))
    axis.set_title(f"{title}\n{right:,} of {total:,} right".strip(), fontsize=11)
    base.tight(figure)
    return base.save(figure, path)


def reliability(
    bins: Mapping[str, Sequence[Any]], path: str | os.PathLike, title: str = ""
) -> Path:
    """Accuracy against confidence, bin by bin, and how many examples each bin holds.

    A calibrated model lies on the diagonal; bars below it claim too much. Their gaps,
    weighted by the counts, are the expected calibration error, which is written there.

    Args:
      bins: "count", "accuracy", "confidence" of bins of equal width over (0, 1], as
        `train.evaluate.summary` gives them; None in an empty bin.
      path: a .png or .svg to write.
      title: above both panels.
    Returns:
      path.
    Raises:
      ValueError: lists of unlike length, or no example in any bin.
    """
    count = np.asarray(bins["count"], float)
    accuracy, confidence = (
        100 * np.array([base.number(x) for x in bins[key]])
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
    figure = base.figure(5.4, 6.2)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 100], [0, 100], color="#666666", linewidth=1, linestyle="--")
    above.bar(
        left[full],
        accuracy[full],
        width,
        align="edge",
        color=base.BLUE,
        edgecolor="white",
        label="accuracy of the bin",
    )
    above.plot(
        confidence[full],
        accuracy[full],
        color=base.ORANGE,
        marker="D",
        markersize=5,
        linestyle="none",
        markeredgecolor="white",
        clip_on=False,
        label="at its mean confidence",
    )
    above.set_ylim(0, 100)
    base.quiet(above)
    above.set_ylabel("accuracy (%)", fontsize=11)
    above.legend(fontsize=9.5, loc="best", framealpha=0.9)
    above.set_title(
        f"{base.folded(title, 56)}\nexpected calibration error {ece:.2f} %".strip(),
        fontsize=11,
    )
    below.bar(left, share, width, align="edge", color="#888888", edgecolor="white")
    base.quiet(below)
    below.set_xlim(0, 100)
    below.set_ylim(0, 100)
    below.set_xlabel("confidence of the answer (%)", fontsize=11)
    below.set_ylabel("examples (%)", fontsize=11)
    base.tight(figure)
    return base.save(figure, path)


def any_time(
    accuracies: Sequence[float],
    path: str | os.PathLike,
    title: str = "",
    count: int | None = None,
) -> Path:
    """Accuracy (%) of the answer after 1 to T steps, of one run of T steps.

    Args:
      accuracies: T fractions.
      path: a .png or .svg to write.
      title: above the curve.
      count: of the examples, if known; a light band then shows one more or less.
    Returns:
      path.
    Raises:
      ValueError: no accuracies, or a count below 1.
    """
    from matplotlib.ticker import MaxNLocator

    y = 100 * np.asarray(accuracies, float)
    if not y.size:
        raise ValueError("any_time: got no accuracies, expected one for each step")
    if count is not None and count < 1:
        raise ValueError(f"any_time: got {count} examples, expected >= 1")
    figure = base.figure(5.4, 4)
    axis = figure.subplots()
    steps = np.arange(1, y.size + 1)
    axis.plot(steps, y, color=base.BLUE, marker="o", markersize=5, linewidth=1.2)
    of = ""
    if count is not None:
        of, one = f" of {count:,} examples" if count > 1 else " of one", 100 / count
        ends = np.array([0.5, *steps, y.size + 0.5])
        level = np.interp(ends, steps, y)
        axis.fill_between(
            ends,
            level - one,
            level + one,
            color=base.BLUE,
            alpha=0.15,
            linewidth=0,
            label="± one example",
        )
        axis.legend(fontsize=9, loc="best", framealpha=0.9)
    low, high = axis.get_ylim()
    room = max(high - low, 1) * 0.12
    axis.set_ylim(max(low - room, -2), min(high + room, 104))
    for i in base.evenly(y.size, 8):
        axis.annotate(
            f"{y[i]:.1f}",
            (steps[i], y[i]),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )
    axis.set_xlim(0.5, y.size + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("steps", fontsize=11)
    axis.set_ylabel(f"accuracy{of} (%)", fontsize=11)
    base.quiet(axis)
    if title:
        axis.set_title(base.folded(title, 48), fontsize=11)
    base.tight(figure)
    return base.save(figure, path)

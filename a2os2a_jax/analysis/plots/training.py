"""Loss and accuracy while training."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from a2os2a_jax.analysis.plots import base

_SPLITS = {  # split: (colour, marker, line width)
    "train": (base.BLUE, "", 1.2),
    "validation": (base.ORANGE, "o", 1.2),
    "test": (base.GREEN, "D", 1.2),
}


def training_curves(
    records: Sequence[Mapping[str, Any]], path: str | os.PathLike, title: str = ""
) -> Path:
    """Loss and accuracy (%) against epochs: training as a line, held-out as points.

    Args:
      records: lines of metrics.jsonl: split, epoch (or step), loss, accuracy (a
        fraction); what is absent or null leaves a gap.
      path: a .png or .svg to write.
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
    figure = base.figure(10, 4.2)
    axes = figure.subplots(1, 2)
    panels = (("loss", "loss", 1.0), ("accuracy", "accuracy (%)", 100.0))
    for axis, (key, label, scale) in zip(axes, panels, strict=True):
        for split, (colour, marker, width) in _SPLITS.items():
            of_split = [r for r in known if r["split"] == split and key in r]
            of_split.sort(key=lambda r: r[unit])
            if not of_split:
                continue
            y = [scale * base.number(r[key]) for r in of_split]
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
        base.quiet(axis)
        if axis.lines:
            axis.legend(fontsize=9.5, frameon=True, framealpha=0.9, loc="best")
    low, high = axes[1].get_ylim()
    axes[1].set_ylim(max(low, -2), min(high, 102))
    if title:
        figure.suptitle(base.folded(title, 85), fontsize=12)
    base.tight(figure)
    return base.save(figure, path)

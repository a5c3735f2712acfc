"""What an answer costs, part by part, by several accounts."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

from a2os2a_jax.analysis.plots import base

COLOURS = (  # neighbours in a bar differ in lightness
    "#56B4E9",
    "#004D80",
    "#E69F00",
    "#B04A00",
    "#CC79A7",
    "#009E73",
    "#F0E442",
    "#D0D0D0",
    "#4D4D4D",
)
_HATCHES = ("", "////", "....", "xxxx")  # of the second round of colours, and so on
_UNITS = ((1e9, "J"), (1e6, "mJ"), (1e3, "µJ"), (1.0, "nJ"), (1e-3, "pJ"))


def energy_bars(
    accounts: Mapping[str, Mapping[str, float]],
    path: str | os.PathLike,
    title: str = "",
    note: str = "",
) -> Path:
    """Energy of one image as a bar for each account, divided into its parts.

    At the end of a bar is its sum; in a part that is wide enough, its share of the bar.

    Args:
      accounts: {account: {part: nJ}}; a part has one colour in all of them.
      path: a .png or .svg to write.
      title: above the bars.
      note: below them, such as firing rate and break-even rate.
    Returns:
      path.
    Raises:
      ValueError: no accounts, one without parts, or an energy that is negative or not
        finite.
    """
    parts = list(dict.fromkeys(p for of in accounts.values() for p in of))
    for name, of in accounts.items():
        for part, energy in of.items():
            if not (math.isfinite(energy) and energy >= 0):
                raise ValueError(
                    f"energy_bars: {name}, {part} has {energy} nJ, expected a finite "
                    "number >= 0"
                )
        if not of:
            raise ValueError(f"energy_bars: {name} has no parts, expected some")
    if not parts:
        raise ValueError("energy_bars: got no accounts, expected some")
    totals = {name: sum(of.values()) for name, of in accounts.items()}
    most = max(totals.values()) or 1.0
    size, unit = _unit(most)
    names = [base.folded(name, 30) for name in accounts]
    legend_rows = -(-len(parts) // 4)
    note = base.folded(note, 125)
    below = 0.7 + 0.22 * legend_rows
    below += 0.14 + 0.18 * (note.count("\n") + 1) if note else 0
    above = 0.2 + (0.22 * (base.folded(title, 90).count("\n") + 1) if title else 0)
    width, left, right = 10.0, 2.5, 1.15  # inches
    height = above + 0.72 * len(accounts) + below
    figure = base.figure(width, height)
    axis = base.axes_at(
        figure, left, above, width - left - right, height - above - below
    )
    for i, (name, of) in enumerate(accounts.items()):
        start = 0.0
        for part, energy in of.items():
            at = parts.index(part)
            colour = COLOURS[at % len(COLOURS)]
            hatch = _HATCHES[at // len(COLOURS) % len(_HATCHES)]
            axis.barh(
                i,
                energy / size,
                left=start / size,
                height=0.62,
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.5,
                label=part,
            )
            share = f"{100 * energy / totals[name]:.0f} %" if energy else ""
            if energy > (0.008 + 0.012 * len(share)) * most:  # it has the room
                axis.text(
                    (start + energy / 2) / size,
                    i,
                    share,
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color=base.ink(colour),
                )
            start += energy
        axis.annotate(
            _amount(totals[name]),
            (start / size, i),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=10.5,
            fontweight="bold",
        )
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlim(0, most / size)
    base.quiet(axis)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(f"energy of one image ({unit})", fontsize=11)
    handles, labels = axis.get_legend_handles_labels()
    keys = dict(zip(labels, handles, strict=True))
    figure.legend(
        handles=[keys[part] for part in parts],
        labels=parts,
        ncols=4,
        loc="upper center",
        bbox_to_anchor=(0.5, (below - 0.56) / height),
        fontsize=9.5,
        frameon=False,
        borderaxespad=0,
        handlelength=1.4,
    )
    if note:
        figure.text(0.5, 0.12 / height, note, fontsize=9.5, ha="center", va="bottom")
    if title:
        text = base.folded(title, 90)
        figure.text(0.15 / width, 1 - 0.1 / height, text, fontsize=12, va="top")
    return base.save(figure, path)


def _unit(nanojoule: float) -> tuple[float, str]:
    """(nJ in the unit, unit) that makes the number at least 1."""
    return next((u for u in _UNITS if nanojoule >= u[0]), _UNITS[-1])


def _amount(nanojoule: float) -> str:
    size, unit = _unit(nanojoule)
    number = f"{nanojoule / size:#.3g}".rstrip(".")
    return f"{number} {unit}" if nanojoule else "0"

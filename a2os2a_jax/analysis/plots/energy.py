"""What an answer costs, part by part, by several accounts."""

import math
import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
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
    "#5D3FD3",
    "#4D4D4D",
)
_HATCHES = ("", "////", "....", "xxxx")  # of the second round of colours, and so on
_APART, _HEADED = 0.45, 0.8  # between groups, above one with a heading; a bar is 1
_UNITS = ((1e9, "J"), (1e6, "mJ"), (1e3, "µJ"), (1.0, "nJ"), (1e-3, "pJ"))


def energy_bars(
    accounts: Mapping[str, Mapping[str, float]],
    path: str | os.PathLike,
    title: str = "",
    note: str = "",
) -> Path:
    """Estimated energy of one example: a bar for each account, divided into its parts.

    At the end of a bar is its sum; in a part that is wide enough, its share of the bar.
    An account of an ANN (its name has the word) stands beside the one before it, apart
    from others; what both names end or begin with is said once, above the two.

    Args:
      accounts: {account: {part: nJ}}, by constants of 45 nm; a part has one colour in
        all of them.
      path: a .png or .svg to write.
      title: above the bars.
      note: below them, such as firing rate and break-even rate; two lines of it.
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
    at, names, headings, end = _places(accounts)
    legend_rows = -(-len(parts) // 4)
    note = textwrap.fill(note, 125, max_lines=2, placeholder=" …")
    below = 0.7 + 0.22 * legend_rows
    below += 0.14 + 0.18 * (note.count("\n") + 1) if note else 0
    above = 0.2 + (0.22 * (base.folded(title, 90).count("\n") + 1) if title else 0)
    width, left, right = 10.0, 2.5, 1.15  # inches
    bar = 0.14 + 0.17 * max(2, *(name.count("\n") + 1 for name in names))
    height = above + bar * (end + 0.1) + below
    figure = base.figure(width, height)
    axis = base.axes_at(
        figure, left, above, width - left - right, height - above - below
    )
    for y, (name, of) in zip(at, accounts.items(), strict=True):
        start = 0.0
        for part, energy in of.items():
            i = parts.index(part)
            colour = COLOURS[i % len(COLOURS)]
            hatch = _HATCHES[i // len(COLOURS) % len(_HATCHES)]
            axis.barh(
                y,
                energy / size,
                left=start / size,
                height=0.76,
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
                    y,
                    share,
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color=base.ink(colour),
                )
            start += energy
        axis.annotate(
            _amount(totals[name]),
            (start / size, y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=10.5,
            fontweight="bold",
        )
    for y, heading in headings:
        axis.annotate(
            heading,
            (0, y),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            style="italic",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        )
    axis.set_yticks(at, names)
    axis.set_ylim(end, -0.1)
    axis.set_xlim(0, most / size)
    base.quiet(axis)
    axis.grid(visible=False, axis="y")
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel(f"estimated energy of one example ({unit}), 45 nm", fontsize=11)
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


def _places(
    names: Iterable[str],
) -> tuple[list[float], list[str], list[tuple[float, str]], float]:
    """(place of every bar, its label, [(place, heading)], end), down from 0."""
    places, labels, headings, y = [], [], [], 0.0
    for group in _groups(names):
        own, shared = _apart(group)
        y += (_HEADED if shared else _APART) if places or shared else 0
        if shared:
            headings.append((y - 0.3, shared))
        places += [y + i + 0.5 for i in range(len(group))]
        labels += [base.folded(name, 30) for name in own]
        y += len(group)
    return places, labels, headings, y


def _groups(names: Iterable[str]) -> list[list[str]]:
    """An ANN belongs to the account before it."""
    groups: list[list[str]] = []
    for name in names:
        if groups and re.search(r"\bANN\b", name):
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def _apart(names: Sequence[str]) -> tuple[list[str], str]:
    """(what is left of each name, what all share), of phrases divided by commas."""
    phrases = [re.split(r"[,:] ", name) for name in names]
    first, last = [], []
    for shared, at in ((first, 0), (last, -1)):
        while len(names) > 1 and min(map(len, phrases)) > 1:
            if len({p[at] for p in phrases}) > 1:
                break
            (phrase,) = {p.pop(at) for p in phrases}
            shared.append(phrase)
    return [", ".join(p) for p in phrases], ", ".join(first + last[::-1])


def _unit(nanojoule: float) -> tuple[float, str]:
    """(nJ in the unit, unit) that makes the number at least 1."""
    return next((u for u in _UNITS if nanojoule >= u[0]), _UNITS[-1])


def _amount(nanojoule: float) -> str:
    size, unit = _unit(nanojoule)
    number = f"{nanojoule / size:#.3g}".rstrip(".")
    return f"{number} {unit}" if nanojoule else "0"

"""The figures of docs/, from the JSON files in experiments/results.

    python experiments/figures.py       writes docs/figures/*.png

Those of docs/concepts.md need no results; they are in `concepts`.

Colours are those of Okabe and Ito, which stay apart for colour-blind readers; lines
and points differ in dash and shape, too.
"""

import glob
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from a2os2a_jax.analysis import plots  # noqa: E402
from a2os2a_jax.commands.figures import signed_rates  # noqa: E402

RESULTS = ROOT / "experiments" / "results"
FOLDER = ROOT / "docs" / "figures"
BLUE, ORANGE, GREEN, PURPLE, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#555555",
)
DPI, CHANCE, STEPS = 130, 10, 900


class Line(NamedTuple):
    """One setting in a panel: its name there, its files' name before ",seed=S"."""

    label: str
    run: str
    colour: str
    dash: str = "-"


A, OF = "recall,kind=a2os2a", "recall,kind="
PANELS = {
    "paper's rule, learning rate 1e-3": [
        Line("A2OS2A", f"{A},decay_input=False", BLUE),
        Line("VSSA", f"{OF}vssa,decay_input=False", ORANGE, "--"),
        Line("A2OS2A, V binary", f"{A},v=binary,decay_input=False", GREEN, "-."),
        Line("frozen Q and K", f"{OF}frozen_qk,decay_input=False", PURPLE, ":"),
        Line("uniform", f"{OF}uniform", GREY, (0, (6, 2, 1, 2, 1, 2))),
    ],
    "learning rates": [
        Line("A2OS2A, 3e-4", f"{A},lr=3e-4", GREEN),
        Line("A2OS2A, 1e-3", f"{A},decay_input=False", BLUE),
        Line("A2OS2A, 3e-3", f"{A},lr=3e-3", PURPLE),
        Line("VSSA, 3e-4", f"{OF}vssa,lr=3e-4", ORANGE, "--"),
        Line("VSSA, 3e-3", f"{OF}vssa,lr=3e-3", GREY, ":"),
    ],
    "A2OS2A with a scale": [
        Line("none", f"{A},decay_input=False", BLUE),
        Line("1/sqrt N", f"{A},normalise=sqrt", ORANGE, "--"),
        Line("power of two", f"{A},normalise=pow2", GREEN, "-."),
        Line("Shiftmax", f"{A},normalise=shiftmax", PURPLE, ":"),
        Line("k_gain 1/64", f"{A},k_gain=0.015625", GREY, (0, (6, 2, 1, 2, 1, 2))),
    ],
    "A2OS2A with another neuron": [
        Line("arctan surrogate", f"{A},decay_input=False", BLUE),
        Line("sigmoid surrogate", f"{A},surrogate=sigmoid(4)", ORANGE, "--"),
        Line("threshold 1/2", f"{A},v_th=0.5", GREEN, "-."),
        Line("guo", f"{A},rule=guo", PURPLE, ":"),
        Line(
            "guo, k_gain 1/64",
            f"{A},rule=guo,k_gain=0.015625",
            GREY,
            (0, (6, 2, 1, 2, 1, 2)),
        ),
    ],
}


def curves(name: str) -> dict[int, list[float]]:
    """{step: training accuracy of every seed, %} of a setting."""
    found: dict[int, list[float]] = {}
    for path in sorted((RESULTS / "ablation").glob(f"{glob.escape(name)},seed=*.json")):
        for record in json.loads(path.read_text())["curve"]:
            if record["split"] == "train":
                found.setdefault(record["step"], []).append(100 * record["accuracy"])
    return found


def figure(width: float, height: float, **grid):
    """(figure, axes) apart from pyplot, with what all our panels share."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(**grid)
    for axis in axes.ravel():
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return drawn, axes


def save(drawn, path: Path) -> Path:
    drawn.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}")
    drawn.savefig(temp, format="png", dpi=DPI, facecolor="white", metadata={})
    os.replace(temp, path)
    return path


def ablation_curves(folder: Path = FOLDER) -> Path:
    """Training accuracy against steps: median and range over seeds."""
    drawn, axes = figure(12, 6.6, nrows=2, ncols=2, sharex=True, sharey=True)
    for axis, (title, lines) in zip(axes.ravel(), PANELS.items(), strict=True):
        for line in lines:
            by_step = curves(line.run)
            steps, values = list(by_step), list(by_step.values())
            low, high = [min(v) for v in values], [max(v) for v in values]
            axis.fill_between(steps, low, high, color=line.colour, alpha=0.15, lw=0)
            axis.plot(
                steps,
                [statistics.median(v) for v in values],
                color=line.colour,
                linestyle=line.dash,
                linewidth=1.8,
                label=line.label,
            )
        axis.axhline(CHANCE, color="#999999", linewidth=0.8)
        axis.set_title(title, fontsize=11)
        axis.set_xlim(0, STEPS)
        axis.set_ylim(0, 102)
        beside = dict(loc="upper left", bbox_to_anchor=(1.01, 1), handlelength=3.2)
        axis.legend(fontsize=9.5, frameon=False, **beside)
    for axis in axes[-1]:
        axis.set_xlabel("training step")
    for axis in axes[:, 0]:
        axis.set_ylabel("training accuracy (%)")
    return save(drawn, folder / "ablation_curves.png")


GROUPS = {  # first that fits: (label, colour, marker, test of the settings)
    "frozen Q and K, or V": (GREY, "x", lambda s: s[_KIND].startswith("frozen")),
    "guo": (PURPLE, "v", lambda s: s.get("model.neuron.rule") == "guo"),
    "VSSA": (ORANGE, "s", lambda s: s[_KIND] == "vssa"),
    "A2OS2A, V binary": (GREEN, "D", lambda s: s.get(_V) == "binary"),
    "A2OS2A": (BLUE, "o", lambda s: True),
}
_KIND, _V = "model.attention.kind", "model.attention.v"
NEVER = STEPS + 100


def late(row: Mapping[str, Any]) -> float:
    """Median step at which a setting had learned; NEVER for not at all."""
    return statistics.median(NEVER if s is None else s for s in row["reached"])


def near_threshold(folder: Path = FOLDER) -> Path:
    """Steps to 90 % against the start's share near the threshold, and agreement."""
    value = json.loads((RESULTS / "near_threshold.json").read_text())
    drawn, axes = figure(10, 4.2, ncols=2, sharey=True)
    labels = {
        "near": "membranes within 1 of the threshold before training (%)",
        "agrees": "cosine of two batches' gradients at Q and K before training",
    }
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        for name, rows in grouped(value["rows"]).items():
            rows = [row for row in rows if key in row["start"]]
            colour, marker, _ = GROUPS[name]
            scale = 100 if key == "near" else 1
            axis.scatter(
                [scale * row["start"][key] for row in rows],
                [late(row) for row in rows],
                color=colour,
                marker=marker,
                s=42,
                alpha=0.85,
                label=name,
            )
        axis.set_xlabel(label)
    axes[0].set_xscale("log")
    axes[0].set_yticks([200, 400, 600, 800, NEVER], [200, 400, 600, 800, "never"])
    axes[0].set_ylabel("training step with 90 % right")
    axes[0].legend(fontsize=9, loc="lower left", framealpha=0.85)
    return save(drawn, folder / "ablation_near_threshold.png")


def grouped(rows: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """{group: its rows}; every row stands in the first group that fits."""
    found: dict[str, list] = {}
    for row in rows:
        name = next(k for k, (*_, fits) in GROUPS.items() if fits(row["settings"]))
        found.setdefault(name, []).append(row)
    return found


def counted() -> dict[str, Any]:
    """What was counted of Fashion-MNIST: the first row of energy.json."""
    return json.loads((RESULTS / "energy.json").read_text())["rows"][0]


def of(row: Mapping[str, Any]) -> str:
    """Model, data, T and examples."""
    kind = row["config"]["model"]["attention"]["kind"]
    return (
        f"{row['model']}, {kind}, on {row['data']}, T = {row['timesteps']}; "
        f"{row['count']:,} of {row['split']}"
    )


def energy(folder: Path = FOLDER) -> Path:
    """Estimated energy of an example, spiking beside its ANN."""
    row = counted()
    title = f"Estimated energy: {of(row)}"
    return plots.energy_bars(row["bars"], folder / "energy.png", title, row["note"])


def rates(folder: Path = FOLDER) -> Path:
    """Firing rates, layer by timestep."""
    row = counted()
    table = signed_rates(row["rates"], RESULTS / "energy.json")
    return plots.rate_map(table, folder / "rates.png", f"Firing rates: {of(row)}")


def main() -> int:
    from experiments import concepts  # which takes colours and panels from here

    of_results = (ablation_curves, near_threshold, energy, rates)
    for path in (draw() for draw in (*of_results, *concepts.ALL)):
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

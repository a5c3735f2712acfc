"""The figures of docs/concepts.md, drawn by the functions of the package themselves.

Nothing is trained or measured here. `python experiments/figures.py` writes them.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from a2os2a_jax.analysis.plots import base
from a2os2a_jax.functional import attention, neurons, surrogate
from experiments.figures import BLUE, FOLDER, GREEN, GREY, ORANGE, PURPLE, figure, save

# Currents in units of the threshold: a weak constant one, silence, a strong negative
# one, and two pulses.
CURRENT = np.array(
    [0.6] * 7 + [0.0] * 3 + [-0.7] * 6 + [0.0] * 2 + [2.4, 0, 0, 0.9, 0.9, 0, 0],
    np.float32,
)


class Trace(NamedTuple):
    """One neuron under CURRENT, arrays [T]: charged, after the reset, spikes."""

    title: str
    thresholds: tuple[float, ...]
    charged: np.ndarray
    after: np.ndarray
    spikes: np.ndarray


def trace(title: str, thresholds, step: Callable, init: Callable, charge: Callable):
    """Runs a step by hand, to see the membrane between charge and reset."""
    state, rows = init(()), []
    for x in jnp.asarray(CURRENT):
        h = charge(state.v, x)
        state, s = step(state, x)
        rows.append((float(h), float(state.v), float(s)))
    return Trace(title, thresholds, *np.array(rows).T)


def traces() -> list[Trace]:
    """The neurons that the models have, under one current."""
    lif, decayed = neurons.lif_step, dict(decay_input=True)
    guo = functools.partial(neurons.guo_step, form="ternary")
    return [
        trace(
            "LIF: U = H/2 + X, fires at 1",
            (1.0,),
            lif,
            neurons.lif_init,
            neurons.charge,
        ),
        trace(
            "LIF with decayed input: U = (H + X)/2",
            (1.0,),
            functools.partial(lif, **decayed),
            neurons.lif_init,
            functools.partial(neurons.charge, **decayed),
        ),
        trace(
            "ternary: U = H/2 + X, fires at 1 and at -1",
            (1.0, -1.0),
            neurons.ternary_step,
            neurons.ternary_init,
            neurons.charge,
        ),
        trace(
            "guo, ternary: U = H/4 + X, fires at 1/2 and at -1/2",
            (0.5, -0.5),
            guo,
            neurons.guo_init,
            lambda v, x: 0.25 * v + x,
        ),
    ]


def neuron_traces(folder: Path = FOLDER) -> Path:
    """Charge, fire, reset of four neurons under one current."""
    drawn, axes = figure(10, 9.6, nrows=5, sharex=True, height_ratios=[1] + [2] * 4)
    steps = np.arange(1, len(CURRENT) + 1)
    axes[0].bar(steps, CURRENT, width=0.55, color=GREY)
    axes[0].set_title("input X", fontsize=11, loc="left")
    axes[0].set_ylim(-1.0, 2.8)
    for axis, found in zip(axes[1:], traces(), strict=True):
        for y in found.thresholds:
            axis.axhline(y, color=ORANGE, linestyle="--", linewidth=1)
        before = np.concatenate([[0], found.after[:-1]])
        for t, low, high, rest in zip(
            steps, before, found.charged, found.after, strict=True
        ):
            axis.plot([t - 1, t], [low, high], color=BLUE, linewidth=1.6)
            axis.plot([t, t], [high, rest], color=BLUE, linewidth=1, linestyle=":")
        axis.plot(steps, found.charged, "o", color=BLUE, markersize=4)
        for sign, y, marker in ((1, 2.85, "^"), (-1, -2.85, "v")):
            at = steps[found.spikes == sign]
            axis.plot(at, np.full(len(at), y), marker, color=PURPLE, markersize=8)
        axis.set_ylim(-3.4, 3.4)
        axis.set_yticks([-1, 0, 1])
        axis.set_title(found.title, fontsize=11, loc="left")
        axis.set_ylabel("membrane")
    axes[-1].set_xlabel("time step")
    axes[-1].set_xlim(0, len(steps) + 0.7)
    _legend(axes[1])
    return save(drawn, folder / "neuron_traces.png")


def _legend(axis) -> None:
    from matplotlib.lines import Line2D

    def line(label: str, **how: Any):
        return Line2D([], [], label=label, **how)

    handles = [
        line("membrane U, charged", color=BLUE, marker="o", markersize=4),
        line("reset", color=BLUE, linestyle=":", linewidth=1),
        line("threshold", color=ORANGE, linestyle="--", linewidth=1),
        line("spike", color=PURPLE, marker="^", linestyle="none", markersize=8),
    ]
    axis.legend(
        handles=handles,
        ncols=4,
        fontsize=9,
        frameon=False,
        loc="lower right",
        borderaxespad=0.1,
    )


SURROGATES = {  # name in a config -> (colour, dash)
    "atan(2)": (BLUE, "-"),
    "sigmoid(4)": (ORANGE, "--"),
    "rectangle(1)": (GREEN, "-."),
    "triangle(1)": (PURPLE, ":"),
    "straight_through(-0.5,0.5)": (GREY, (0, (6, 2, 1, 2))),
}


def surrogates(folder: Path = FOLDER) -> Path:
    """Curves that stand in for the step, their slopes, and a ternary slope."""
    drawn, axes = figure(12, 4.2, ncols=3)
    x = jnp.linspace(-2, 2, 801)
    axes[0].plot(x, surrogate.heaviside(x), color="black", linewidth=1, label="step")
    for name, (colour, dash) in SURROGATES.items():
        spike = surrogate.by_name(name)
        how = dict(color=colour, linestyle=dash, linewidth=1.8, label=name)
        axes[0].plot(x, spike.curve(x), **how)
        axes[1].plot(x, jax.vmap(jax.grad(spike))(x), **how)
    u = jnp.linspace(-3, 3, 801)
    ternary = surrogate.ternary(surrogate.atan(), 1.0)
    axes[2].plot(u, ternary(u), color="black", linewidth=1, label="spike in {-1, 0, 1}")
    axes[2].plot(u, ternary.curve(u), color=ORANGE, linestyle="--", label="curve")
    axes[2].plot(u, jax.vmap(jax.grad(ternary))(u), color=BLUE, label="slope")
    titles = ("curve behind the step", "its slope: the gradient", "ternary, atan(2)")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("membrane - threshold")
    axes[0].set_ylim(-0.65, 2.3)
    axes[1].set_ylim(-0.05, 1.25)
    axes[2].set_ylim(-1.15, 2.0)
    axes[2].set_xlabel("membrane; thresholds at -1 and 1")
    axes[0].legend(fontsize=8.5, frameon=False, loc="upper left")
    axes[2].legend(fontsize=8.5, frameon=False, loc="upper left")
    return save(drawn, folder / "surrogates.png")


def orders(folder: Path = FOLDER, head_dim: int = 64) -> Path:
    """Additions of one head in both orders, and which one `auto` takes."""
    drawn, axes = figure(7.5, 4.4, squeeze=False)
    axis = axes[0, 0]
    n = np.arange(16, 1025)
    axis.plot(n, additions("qk_v", n, head_dim), color=BLUE, label="(Q Kᵀ) V: 2 N² d")
    axis.plot(
        n,
        additions("q_kv", n, head_dim),
        color=ORANGE,
        linestyle="--",
        label="Q (Kᵀ V): 2 N d²",
    )
    auto = [
        float(additions(attention.resolve_order("auto", i, i, head_dim), i, head_dim))
        for i in n.tolist()
    ]
    axis.plot(n, auto, color=GREEN, linewidth=6, alpha=0.3, label="order = auto")
    marks = {64: "N = d\nCIFAR, 2-512", 196: "ImageNet, 8-512"}
    for tokens, name in marks.items():
        axis.axvline(tokens, color="#999999", linewidth=0.8, linestyle=":")
        axis.text(tokens * 1.05, 1.8e4, name, fontsize=9, color=GREY)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_ylim(1.4e4, 3e8)
    axis.set_xticks([16, 32, 64, 128, 256, 512, 1024])
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set_xlabel("tokens N")
    axis.set_ylabel(f"additions of a head, d = {head_dim}, if all spikes fire")
    axis.legend(fontsize=9.5, frameon=False, loc="upper left")
    return save(drawn, folder / "orders.png")


def additions(order: str, tokens, head_dim: int):
    """Of one head's two matrix products, if all spikes fire: nothing is multiplied."""
    return 2.0 * tokens * (tokens if order == "qk_v" else head_dim) * head_dim


def direct_coding(folder: Path = FOLDER, steps: int = 4) -> Path:
    """One picture shown T times to one LIF neuron a pixel, and the means so far."""
    picture, s = coded(steps)
    drawn, axes = figure(9, 4.6, nrows=2, ncols=steps + 1)
    for axis in axes.ravel():
        axis.set_axis_off()
    shown = dict(cmap="Greys", vmin=0, vmax=1)
    axes[0, 0].imshow(picture, **shown)
    axes[0, 0].set_title("picture x 1.4: input\nX at every step", fontsize=10)
    for t in range(steps):
        axes[0, t + 1].imshow(s[t], **shown)
        axes[0, t + 1].set_title(f"spikes, step {t + 1}", fontsize=10)
        axes[1, t + 1].imshow(s[: t + 1].mean(0), **shown)
        axes[1, t + 1].set_title(f"mean of {t + 1}", fontsize=10)
    axes[1, 0].text(
        0.5,
        0.5,
        "an answer after\nevery step:\nany-time",
        ha="center",
        va="center",
        fontsize=10,
        transform=axes[1, 0].transAxes,
    )
    for axis in [axes[0, 0], *axes[:, 1:].ravel()]:
        axis.set_axis_on()
        axis.grid(False)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[["top", "right", "left", "bottom"]].set_visible(True)
    return save(drawn, folder / "direct_coding.png")


def coded(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """A digit [8, 8] in [0, 1], and the spikes [T, 8, 8] of a LIF neuron a pixel.

    The current is 1.4 times the pixel, so that the darkest fire at every step.
    """
    from sklearn.datasets import load_digits

    picture = load_digits().images[3].astype(np.float32) / 16
    x = jnp.broadcast_to(1.4 * jnp.asarray(picture), (steps, *picture.shape))
    return picture, np.asarray(
        jax.jit(functools.partial(neurons.unroll, neurons.lif_step, neurons.lif_init))(
            x
        )
    )


def seven(folder: Path = FOLDER) -> Path:
    """A digit to predict, drawn here: 64x64, grey, white on black as the digits are."""
    from PIL import Image, ImageDraw, ImageFilter

    picture = Image.new("L", (256, 256))
    pen = ImageDraw.Draw(picture)
    stroke = [(60, 34), (190, 34), (100, 230)]
    pen.line(stroke, fill=255, width=36, joint="curve")
    pen.line([(80, 130), (190, 130)], fill=255, width=30)
    picture = picture.filter(ImageFilter.GaussianBlur(6)).resize((64, 64))
    folder.mkdir(parents=True, exist_ok=True)
    path, temp = folder / "seven.png", folder / ".seven.png"
    picture.save(temp, format="PNG")
    os.replace(temp, path)
    return path


SPIKE, REAL, INK = "#D6E8F5", "#FBE3D2", "#333333"


def block(folder: Path = FOLDER) -> Path:
    """One block as a flow of data, with the alphabet on every arrow.

    Attention above, MLP below; coordinates are inches. It is README's picture, which
    GitHub shows 830 pixels wide: 8.5 inches keep words of 11 points legible there.
    """
    wide, high = 8.5, 4.75
    drawn = base.figure(wide, high)
    axis = base.axes_at(drawn, 0, 0, wide, high)
    axis.set_axis_off()
    axis.set_xlim(0, wide)
    axis.set_ylim(0, high)
    size, tall = 11, 0.44
    first, q, k, v = 4.3, 3.5, 2.85, 2.2
    second, mlp = 1.25, 0.42

    def words(x, y, text, ha="center"):
        axis.text(x, y, text, ha=ha, va="center", fontsize=size)

    def box(left, y, right, text, colour, tall=tall):
        from matplotlib.patches import FancyBboxPatch

        axis.add_patch(
            FancyBboxPatch(
                (left, y - tall / 2),
                right - left,
                tall,
                boxstyle="round,pad=0,rounding_size=0.07",
                facecolor=colour,
                edgecolor=INK,
                linewidth=1,
            )
        )
        words((left + right) / 2, y - 0.01, text)

    def arrow(start, end, label="", colour=BLUE, thick=1.6):
        how = dict(arrowstyle="-|>", color=colour, lw=thick, shrinkA=0, shrinkB=0)
        axis.annotate("", end, start, arrowprops=how | dict(mutation_scale=12))
        words((start[0] + end[0]) / 2, start[1] + 0.17, label)

    def plus(x, y):
        axis.plot([x], [y], "o", markersize=16, color="white", markeredgecolor=INK)
        axis.plot([x - 0.06, x + 0.06], [y, y], color=INK, lw=1.4)
        axis.plot([x, x], [y - 0.06, y + 0.06], color=INK, lw=1.4)

    def membrane(y, adds, start, end):
        arrow((0.12, y), (adds - 0.13, y), colour=ORANGE, thick=3)
        arrow((adds + 0.12, y), (8.4, y), colour=ORANGE, thick=3)
        plus(adds, y)
        words(0.12, y + 0.22, start, ha="left")
        words(8.38, y + 0.22, end, ha="right")

    # attention
    membrane(first, 7.1, r"membrane $U_{l-1}$, real", r"$U'_l$, real")
    words(0.12, k + 0.17, r"$S_{l-1}$", ha="left")
    words(0.12, k - 0.2, "{0, 1}", ha="left")
    axis.plot([0.12, 0.68], [k, k], color=BLUE, lw=1.6)
    axis.plot([0.68, 0.68], [v, q], color=BLUE, lw=1.6)
    rows = (
        (q, r"SN$_b$", "Q in {0, 1}", BLUE, SPIKE),
        (k, "ReLU", "K ≥ 0, real", ORANGE, REAL),
        (v, r"SN$_t$", "V in {−1, 0, 1}", BLUE, SPIKE),
    )
    for y, name, alphabet, colour, fill in rows:
        arrow((0.68, y), (0.95, y))
        box(0.95, y, 1.97, "Linear, BN", REAL)
        arrow((1.97, y), (2.27, y), colour=ORANGE)
        box(2.27, y, 2.9, name, fill)
        arrow((2.9, y), (4.3, y), alphabet, colour)
    box(4.3, k, 5.0, r"$Q\,K^{\top} V$", REAL, tall=q - v + tall)
    arrow((5.0, k), (5.33, k), colour=ORANGE)
    box(5.33, k, 5.91, r"SN$_b$", SPIKE)
    arrow((5.91, k), (6.58, k), "{0, 1}")
    box(6.58, k, 7.6, "Linear, BN", REAL)
    arrow((7.1, k + tall / 2), (7.1, first - 0.14), colour=ORANGE)
    words(5.33, v + 0.08, "blue: spikes; orange: real numbers", ha="left")
    words(5.33, v - 0.16, "SN: neuron, binary (b) or ternary (t)", ha="left")

    # MLP
    membrane(
        second, 5.1, r"$U'_l$ = attention + $U_{l-1}$", r"$U_l$ = MLP + $U'_l$, real"
    )
    arrow((0.62, second), (0.62, mlp + tall / 2), colour=ORANGE)
    box(0.33, mlp, 0.91, "SN", SPIKE)
    arrow((0.91, mlp), (1.68, mlp), "{0, 1}")
    box(1.68, mlp, 2.7, "Linear, BN", REAL)
    arrow((2.7, mlp), (3.15, mlp), colour=ORANGE)
    box(3.15, mlp, 3.73, "SN", SPIKE)
    arrow((3.73, mlp), (4.58, mlp), "{0, 1}")
    box(4.58, mlp, 5.6, "Linear, BN", REAL)
    arrow((5.1, mlp + tall / 2), (5.1, second - 0.14), colour=ORANGE)
    arrow((6.7, second), (6.7, mlp + tall / 2), colour=ORANGE)
    box(6.41, mlp, 6.99, "SN", SPIKE)
    arrow((6.99, mlp), (8.4, mlp), r"$S_l$ in {0, 1}")
    return base.save(drawn, folder / "block.png", math=True)


ALL = (neuron_traces, surrogates, orders, direct_coding, block, seven)

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
    """Operations of one head in both orders, and which one `auto` takes."""
    drawn, axes = figure(7.5, 4.4, squeeze=False)
    axis = axes[0, 0]
    n = np.arange(16, 1025)
    axis.plot(n, operations("qk_v", n, head_dim), color=BLUE, label="(Q Kᵀ) V: 4 N² d")
    axis.plot(
        n,
        operations("q_kv", n, head_dim),
        color=ORANGE,
        linestyle="--",
        label="Q (Kᵀ V): 4 N d²",
    )
    auto = [
        float(operations(attention.resolve_order("auto", i, i, head_dim), i, head_dim))
        for i in n.tolist()
    ]
    axis.plot(n, auto, color=GREEN, linewidth=6, alpha=0.3, label="order = auto")
    marks = {64: "N = d\nCIFAR, 2-512", 196: "ImageNet, 8-512"}
    for tokens, name in marks.items():
        axis.axvline(tokens, color="#999999", linewidth=0.8, linestyle=":")
        axis.text(tokens * 1.05, 3.6e4, name, fontsize=9, color=GREY)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_ylim(2.8e4, 6e8)
    axis.set_xticks([16, 32, 64, 128, 256, 512, 1024])
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.set_xlabel("tokens N")
    axis.set_ylabel(f"operations of a head, d = {head_dim}")
    axis.legend(fontsize=9.5, frameon=False, loc="upper left")
    return save(drawn, folder / "orders.png")


def operations(order: str, tokens, head_dim: int):
    """Products and sums of one head's two matrix products, 2 for each pair."""
    return 4.0 * tokens * (tokens if order == "qk_v" else head_dim) * head_dim


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
    """One block as a flow of data, with the alphabet on every arrow."""
    drawn, axes = figure(13, 5.6, squeeze=False)
    axis = axes[0, 0]
    axis.set_axis_off()
    axis.set_xlim(0, 26)
    axis.set_ylim(0.2, 10.7)
    top, q, k, v, low = 9.6, 6.6, 4.6, 2.6, 4.6

    def box(x, y, text, colour, wide=2.2, high=1.1):
        from matplotlib.patches import FancyBboxPatch

        axis.add_patch(
            FancyBboxPatch(
                (x - wide / 2, y - high / 2),
                wide,
                high,
                boxstyle="round,pad=0.02,rounding_size=0.15",
                facecolor=colour,
                edgecolor=INK,
                linewidth=1,
            )
        )
        axis.text(x, y, text, ha="center", va="center", fontsize=10)

    def arrow(start, end, label="", colour=BLUE, above=0.42, wide=1.6):
        axis.annotate(
            "",
            end,
            start,
            arrowprops=dict(arrowstyle="-|>", color=colour, lw=wide, shrinkA=0),
        )
        if label:
            x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
            axis.text(x, y + above, label, ha="center", va="center", fontsize=9.5)

    # the membrane's own path
    arrow((0.2, top), (12.95, top), colour=ORANGE, wide=3)
    arrow((13.65, top), (22.45, top), colour=ORANGE, wide=3)
    arrow((23.15, top), (25.8, top), colour=ORANGE, wide=3)
    axis.text(0.2, top + 0.5, r"membrane $U_{l-1}$, real", fontsize=10)
    axis.text(16.2, top + 0.5, r"$U'_l$ = attention + $U_{l-1}$", fontsize=10)
    axis.text(23.4, top + 0.5, r"$U_l$ = MLP + $U'_l$", fontsize=10)
    for x in (13.3, 22.8):
        axis.plot([x], [top], "o", markersize=19, color="white", markeredgecolor=INK)
        axis.text(x, top - 0.03, "+", ha="center", va="center", fontsize=15)

    # Q, K, V
    axis.text(0.1, k + 0.45, r"$S_{l-1}$ in {0, 1}", fontsize=10)
    axis.plot([0.2, 2.2], [k, k], color=BLUE, lw=1.6)
    axis.plot([2.2, 2.2], [v, q], color=BLUE, lw=1.6)
    rows = (
        (q, r"SN$_b$", "Q in {0, 1}", BLUE, SPIKE),
        (k, "ReLU", "K ≥ 0, real", ORANGE, REAL),
        (v, r"SN$_t$", "V in {-1, 0, 1}", BLUE, SPIKE),
    )
    for y, name, alphabet, colour, fill in rows:
        arrow((2.2, y), (2.9, y))
        box(4.0, y, "Linear, BN", REAL)
        arrow((5.1, y), (5.7, y), colour=ORANGE)
        box(6.3, y, name, fill, wide=1.2)
        arrow((6.9, y), (9.7, y), alphabet, colour)
    box(10.5, k, r"$Q\,K^{\top} V$", REAL, wide=1.6, high=5.1)
    arrow((11.3, low), (11.8, low), colour=ORANGE)
    box(12.35, low, r"SN$_b$", SPIKE, wide=1.1)
    arrow((12.35, low + 0.55), (12.35, 6.05))
    axis.text(12.55, 5.62, "{0, 1}", fontsize=9.5)
    box(12.75, 6.6, "Linear, BN", REAL)
    arrow((13.3, 7.15), (13.3, top - 0.3), colour=ORANGE)

    # MLP
    arrow((14.6, top), (14.6, low + 0.55), colour=ORANGE)
    box(14.6, low, "SN", SPIKE, wide=1.1)
    arrow((15.15, low), (16.45, low), "{0, 1}")
    box(17.55, low, "Linear, BN", REAL)
    arrow((18.65, low), (19.1, low), colour=ORANGE)
    box(19.65, low, "SN", SPIKE, wide=1.1)
    arrow((20.2, low), (21.5, low), "{0, 1}")
    box(22.6, low, "Linear, BN", REAL)
    arrow((22.8, low + 0.55), (22.8, top - 0.3), colour=ORANGE)
    arrow((24.4, top), (24.4, low + 0.55), colour=ORANGE)
    box(24.4, low, "SN", SPIKE, wide=1.0)
    arrow((24.9, low), (25.8, low))
    axis.text(25.9, low - 1.2, r"$S_l$ in {0, 1}", ha="right", fontsize=10)

    axis.text(
        0.2,
        0.6,
        "blue arrows: spikes        orange arrows: real numbers        "
        "SN: a spiking neuron, binary (b) or ternary (t)",
        fontsize=10,
    )
    return save(drawn, folder / "block.png")


ALL = (neuron_traces, surrogates, orders, direct_coding, block, seven)

"""What all figures share: colours, files, small parts of axes.

matplotlib is imported inside functions; no display is needed. Colours stay apart for
colour-blind readers and in print.
"""

import contextlib
import importlib
import os
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from a2os2a_jax import texts
from a2os2a_jax.files import write_atomically

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito
SHARES = "viridis"  # of what goes from none to many
_DPI = 150
_TITLE = 200  # characters of a title
_FORMATS = {".png": {}, ".svg": {"metadata": {"Date": None}}}


def check_matplotlib() -> None:
    """Imports matplotlib, whatever MPLBACKEND says: it is of pyplot, unused here.

    A notebook sets it for all programs that it starts, to what these may not have.
    Raises:
      ImportError: it is not installed; says how it is.
    """
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise ImportError(
            "matplotlib is not installed (pip install matplotlib)"
        ) from error
    except ValueError:
        backend = os.environ.pop("MPLBACKEND")
        try:
            importlib.import_module("matplotlib")
        finally:
            os.environ["MPLBACKEND"] = backend


def figure(width: float, height: float):
    """A figure of its own (inches), outside pyplot's global state."""
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure


def save(figure, path: str | os.PathLike, math: bool = False) -> Path:
    """Writes PNG or SVG, as the name ends: all of the file or none of it.

    The same figure gives the same bytes, with one version of matplotlib. math: what
    stands between $ is a formula, and not part of the name of a file or a class.

    Raises:
      ValueError: a name with another ending.
    """
    import matplotlib
    from matplotlib.text import Text

    path = Path(path)
    kind = path.suffix.lower()
    if kind not in _FORMATS:
        raise ValueError(
            f"plots: got {path.name!r}, expected a name that ends in .png or .svg"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    settled = {"svg.hashsalt": "a2os2a_jax", "svg.fonttype": "none"}
    for text in [] if math else figure.findobj(Text):
        if r"\mathdefault" not in text.get_text():  # a tick of a logarithmic axis
            text.set_parse_math(False)
    with matplotlib.rc_context(settled), _any_glyph(), write_atomically(path) as temp:
        figure.savefig(
            temp, format=kind[1:], dpi=_DPI, facecolor="white", **_FORMATS[kind]
        )
    return path


def tight(figure, **options) -> None:
    """`figure.tight_layout`, for names in any alphabet."""
    with _any_glyph():
        figure.tight_layout(**options)


@contextlib.contextmanager
def _any_glyph() -> Iterator[None]:
    """Lets what a font lacks be a box, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        yield


def number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def quiet(axis) -> None:
    """A grid behind, no frame."""
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=10)


def folded(title: str, width: int) -> str:
    return textwrap.fill(texts.line(title, _TITLE), width)


def evenly(count: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def bare(axis, border: str = "#999999") -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_edgecolor(border)
        spine.set_linewidth(0.6)


def draw_image(axis, image: np.ndarray) -> None:
    if image.ndim == 3 and image.shape[2] not in (3, 4):
        image = image.mean(2)
    low, high = image.min(), image.max()
    image = (image - low) / (high - low if high > low else 1)
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    bare(axis)


def ink(colour: Any) -> str:
    """Black or white, whichever stands out more on `colour`.

    Contrast is (Y + 0.05) / (Y' + 0.05), of the lighter Y; both are equal at Y = 0.179.
    Source: WCAG 2.1, https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio
    """
    return "black" if luminance(colour) > 0.179 else "white"


def luminance(colour: Any) -> float:
    """Relative luminance of an sRGB colour, 0 (black) to 1 (white)."""
    from matplotlib.colors import to_rgb

    c = np.asarray(to_rgb(colour))
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def axes_at(figure, x: float, y: float, width: float, height: float):
    """Axes at inches from the top left corner of the figure."""
    across, down = figure.get_size_inches()
    box = (x / across, 1 - (y + height) / down, width / across, height / down)
    return figure.add_axes(box)

import numpy as np
import pytest

from a2os2a_jax.analysis.plots import base

# Colours as a reader without the middle cones sees them, of linear RGB.
# Source: Machado et al. 2009, doi:10.1109/TVCG.2009.113, table 1, severity 1.0.
DEUTERANOPIA = np.array(
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]
)
XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)


@pytest.fixture
def figures(monkeypatch):
    """The figures saved, to look inside."""
    kept, save = [], base.save

    def keep(figure, path):
        kept.append(figure)
        return save(figure, path)

    monkeypatch.setattr(base, "save", keep)
    return kept


@pytest.fixture
def share():
    """(path, colour) -> share of the pixels that have exactly this colour."""
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    def share(path, colour):
        pixels = imread(path)[..., :3]
        return (np.abs(pixels - to_rgb(colour)).max(-1) < 1 / 255).mean()

    return share


@pytest.fixture
def seen():
    """colour -> CIE L*a*b* [3] of what a reader with deuteranopia sees."""
    from matplotlib.colors import to_rgb

    def seen(colour):
        c = np.array(to_rgb(colour))
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        xyz = XYZ @ np.clip(DEUTERANOPIA @ linear, 0, 1) / [0.9505, 1.0, 1.089]
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    return seen


@pytest.fixture
def apart():
    """(figure, texts, others): no text leaves it or lies on another or on `others`."""

    def apart(figure, texts, others=()):
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        boxes = [t.get_window_extent(renderer) for t in texts]
        others = [o.get_window_extent(renderer) for o in others]
        for i, box in enumerate(boxes):
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, texts[i]
            assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, texts[i]
            for other in boxes[i + 1 :] + others:
                assert not box.overlaps(other), texts[i]

    return apart

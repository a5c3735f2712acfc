import numpy as np
import pytest

pytest.importorskip("matplotlib")
from matplotlib.image import imread  # noqa: E402

from a2os2a_jax.analysis import plots  # noqa: E402
from a2os2a_jax.analysis.plots import activity  # noqa: E402

RNG = np.random.default_rng(0)
IMAGES = RNG.random((3, 8, 8, 1))


def _rates(blocks, steps):
    names = ("attention/q", "attention/attention_neuron", "mid", "mlp/fc1", "out", "k")
    table = {f"block_{i}/{n}": RNG.random(steps) for i in range(blocks) for n in names}
    v = {"plus": RNG.random(steps), "minus": RNG.random(steps) / 2}
    return table | {f"block_{i}/attention/v_neuron": v for i in range(blocks)}


def test_every_rate_stands_where_it_belongs(tmp_path, figures):
    table = {
        "stem/neuron_0": [0.0, 0.0004],
        "block_0/v": {"plus": [0.123, 1.0], "minus": [0.5, 0.25]},
    }
    path = plots.rate_map(table, tmp_path / "r.png", "digits")
    axis, scale = figures[0].axes
    np.testing.assert_allclose(
        axis.images[0].get_array(), [[0, 0.04], [12.3, 100], [50, 25]]
    )
    shown = {t.get_position(): t.get_text() for t in axis.texts}  # (timestep, row)
    assert shown == {
        (0, 0): "0",
        (1, 0): "<0.1",
        (0, 1): "12.3",
        (1, 1): "100",
        (0, 2): "50.0",
        (1, 2): "25.0",
    }
    rows = [t.get_text() for t in axis.get_yticklabels()]
    assert rows == ["stem/neuron_0", "block_0/v  +", "block_0/v  −"]
    assert [t.get_text() for t in axis.get_xticklabels()] == ["1", "2"]
    assert [line.get_ydata()[0] for line in axis.lines] == [0.5]  # stem | block_0
    colours = {t.get_position(): t.get_color() for t in axis.texts}
    assert colours[0, 0] == "white" and colours[1, 1] == "black"  # dark, bright
    assert scale.get_ylim() == (0, 100) and imread(path).ndim == 3


@pytest.mark.parametrize(("blocks", "steps"), [(1, 1), (8, 3), (1, 24), (1, 60)])
def test_a_map_of_any_size_is_legible(tmp_path, figures, apart, blocks, steps):
    plots.rate_map(_rates(blocks, steps), tmp_path / "r.svg", "a title of words " * 6)
    figure, (axis, scale) = figures[0], figures[0].axes
    assert len(axis.get_yticks()) == 8 * blocks
    assert len(axis.texts) == (8 * blocks * steps if steps <= 24 else 0)
    ticks = axis.get_xticklabels()
    apart(figure, [*figure.texts, axis.xaxis.label, *ticks], [axis, scale])
    apart(figure, axis.get_yticklabels(), [axis, scale])
    apart(figure, axis.texts)
    apart(figure, [scale.yaxis.label], [axis, *scale.get_yticklabels()])


def test_a_silent_network_is_dark(tmp_path, figures):
    plots.rate_map({"n": [0.0, 0.0]}, tmp_path / "r.png")
    zeros = np.zeros((3, 2, 4, 5))
    plots.token_activity(IMAGES, {"n": zeros}, tmp_path / "t.png")
    for figure in figures:
        assert figure.axes[-1].get_ylim() == (0, 1)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, r"got timesteps \[\], expected layers with one T"),
        ({"a": []}, r"got timesteps \[0\], expected"),
        ({"a": [0.1], "b": [0.1, 0.2]}, r"got timesteps \[1, 2\], expected"),
        (
            {"a": [0.1], "b": {"plus": [0.1], "minus": [0.1, 0.2]}},
            r"got timesteps \[1, 2\], ex",
        ),
        ({"a": {"plus": [0.1]}}, "a has plus, expected plus and minus"),
        ({"a": [12.5]}, r"a has \[12.5\], expected \[T\] shares from 0 to 1"),
        ({"a": [float("nan")]}, r"a has \[nan\], expected"),
        ({"a": [[0.1]]}, r"a has \[\[0.1\]\], expected \[T\]"),
    ],
)
def test_rates_that_are_none(table, message, tmp_path):
    with pytest.raises(ValueError, match=f"rate_map: {message}"):
        plots.rate_map(table, tmp_path / "r.png")
    assert not list(tmp_path.iterdir())


def test_a_token_is_as_bright_as_it_is_active(tmp_path, figures):
    few, many = np.zeros((3, 2, 4, 5)), np.zeros((3, 2, 9, 10))
    few[1, :, 3, 0] = 1  # of token 3, one channel at both steps: 1 in 5
    many[2, 0, 5, :5] = -1  # of token 5, five channels at one step: 1 in 4
    path = plots.token_activity(
        IMAGES, {"stem/a": few, "b": many}, tmp_path / "t.png", "digits"
    )
    figure = figures[0]
    *axes, scale = figure.axes
    images = [axis.images[0] for axis in axes]
    assert len(images) == 3 + 2 * 3
    maps = {m.get_array().shape: [] for m in images}
    for m in images:
        maps[m.get_array().shape].append(np.asarray(m.get_array()))
    expected = np.zeros((3, 2, 2))
    expected[1, 1, 1] = 20
    np.testing.assert_allclose(maps[2, 2], expected)
    expected = np.zeros((3, 3, 3))
    expected[2, 1, 2] = 25
    np.testing.assert_allclose(maps[3, 3], expected)
    limits = {m.get_clim() for m in images if m.get_array().shape != (8, 8)}
    assert limits == {(0, 25)} and scale.get_ylim() == (0, 25)  # one scale
    texts = [t.get_text() for t in figure.texts]
    share = 100 * few.sum() / few.size
    assert f"stem/\na\n{share:.1f} %" in texts and "digits" in texts
    assert imread(path).ndim == 3


@pytest.mark.parametrize(("layers", "images"), [(1, 1), (13, 2), (40, 1), (3, 6)])
def test_token_maps_do_not_overlap(tmp_path, figures, apart, layers, images):
    spikes = {
        f"block_{i}/attention/attention_neuron": RNG.random((images, 1, 4, 2)) < 0.3
        for i in range(layers)
    }
    path = tmp_path / "t.svg"
    plots.token_activity(RNG.random((images, 4, 4, 3)), spikes, path, "a title")
    figure = figures[0]
    apart(figure, figure.texts, figure.axes)
    scale = figure.axes[-1]
    apart(figure, [scale.yaxis.label], [*figure.axes[:-1], *scale.get_yticklabels()])
    width, height = figure.get_size_inches()
    assert 1 / 3 < width / height < 3 and max(width, height) < 25


def test_of_many_images_the_first_are_drawn(tmp_path, figures):
    spikes = np.zeros((40, 1, 4, 2))
    spikes[5], spikes[6] = 1, 2
    plots.token_activity(np.ones((40, 4, 4, 3)), {"n": spikes}, tmp_path / "t.png")
    *axes, _ = figures[0].axes
    assert len(axes) == 2 * activity._IMAGES
    np.testing.assert_array_equal(axes[-1].images[0].get_array(), 100)


@pytest.mark.parametrize(
    ("shape", "images", "message"),
    [
        ((3, 2, 6, 5), 3, r"n has shape \(3, 2, 6, 5\), expected \[3, T, N, D\] with"),
        ((3, 2, 4), 3, r"n has shape \(3, 2, 4\), expected"),
        ((3, 2, 4, 5), 2, r"n has shape \(3, 2, 4, 5\), expected \[2,"),
        ((3, 0, 4, 5), 3, r"n has shape \(3, 0, 4, 5\)"),
        ((0, 2, 4, 5), 0, r"images have shape \(0, 8, 8, 1\), expected \[B, H, W, C\]"),
        (None, 3, "got no layers, expected some"),
    ],
)
def test_tokens_that_are_none(shape, images, message, tmp_path):
    layers = {} if shape is None else {"n": np.zeros(shape)}
    with pytest.raises(ValueError, match=f"token_activity: {message}"):
        plots.token_activity(IMAGES[:images], layers, tmp_path / "t.png")
    assert not list(tmp_path.iterdir())

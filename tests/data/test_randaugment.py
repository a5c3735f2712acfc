import functools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from a2os2a_jax.data import augment, randaugment

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(0)
SIZE = 32
FILL = (125, 120, 112)
RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def synthetic():
    """Ramps, waves, noise, a constant, two values, a dot: [8, 32, 32, 3] uint8."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE] / (SIZE - 1)
    flat = [
        255 * np.stack([x, y, 1 - x], -1),
        127.5 + 127 * np.sin(6 * np.stack([x + y, x * y, x - y], -1)),
        rng.uniform(0, 256, (SIZE, SIZE, 3)),
        np.full((SIZE, SIZE, 3), (7, 200, 90)),
        np.where(((x + y) > 1)[..., None], (250, 3, 130), (5, 4, 129)),
        rng.normal(120, 12, (SIZE, SIZE, 3)),
        60 + 20 * np.stack([x, x, y], -1),
        255 * (np.hypot(x - 0.5, y - 0.5) < 0.2)[..., None] * np.ones(3),
    ]
    return np.clip(flat, 0, 255).astype(np.uint8)


@functools.cache
def photographs():
    folder = os.path.join(os.environ.get("A2OS2A_DATA", ""), "tfds")
    if not os.path.isdir(os.path.join(folder, "cifar10")):
        pytest.skip("CIFAR-10 needs A2OS2A_DATA with tfds/cifar10")
    tfds = pytest.importorskip("tensorflow_datasets")
    source = tfds.data_source("cifar10", split="test[:64]", data_dir=folder)
    return np.stack([source[i]["image"] for i in range(64)])


IMAGES = {"synthetic": synthetic, "cifar10": photographs}


def by_pillow(name, array, x, resample="bilinear"):
    """The operation as timm does it, on one image."""
    image = Image.fromarray(array.squeeze())
    fill = FILL if image.mode == "RGB" else FILL[0]
    how = {"resample": RESAMPLE[resample], "fillcolor": fill}
    w, h = image.size
    matrices = {
        "ShearX": (1, x, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, x, 1, 0),
        "TranslateXRel": (1, 0, x * w, 0, 1, 0),
        "TranslateYRel": (1, 0, 0, 0, 1, x * h),
    }
    if name in matrices:
        method = Image.Transform.AFFINE
        out = image.transform(image.size, method, matrices[name], **how)
    elif name == "Rotate":
        out = image.rotate(x, **how)
    elif name == "Posterize":
        out = ImageOps.posterize(image, x)
    elif name == "Solarize":
        out = ImageOps.solarize(image, x)
    elif name == "SolarizeAdd":
        table = [min(255, i + x) if i < 128 else i for i in range(256)]
        out = image.point(table * len(image.getbands()))
    elif name in ("Color", "Contrast", "Brightness", "Sharpness"):
        out = getattr(ImageEnhance, name)(image).enhance(x)
    else:
        out = getattr(ImageOps, name.lower())(image)
    return np.asarray(out).reshape(array.shape)


def by_us(name, images, argument=0, fill=FILL, **kw):
    """Always in batches of 64: there is one program an operation, for all tests."""
    x = np.resize(images, (64, *images.shape[1:]))
    argument = np.resize(np.float32(argument), 64)
    out = randaugment.apply(name, x, argument, fill=jnp.array(fill), **kw)
    return np.asarray(out)[: len(images)]


COLOURS = {
    "AutoContrast": [0],
    "Equalize": [0],
    "Invert": [0],
    "Posterize": [1, 3, 8],
    "Solarize": [0, 26, 128, 256],
    "SolarizeAdd": [0, 50, 110],
    "Color": [0.1, 0.55, 1.0, 1.9],
    "Contrast": [0.1, 0.55, 1.0, 1.9],
    "Brightness": [0.1, 0.55, 1.0, 1.9],
    "Sharpness": [0.1, 0.55, 1.0, 1.9],
}
MOVES = {
    "Rotate": [30, -27.3, 5, 0],
    "ShearX": [0.3, -0.27],
    "ShearY": [0.29, -0.3],
    "TranslateXRel": [0.45, -0.405, 0.25],
    "TranslateYRel": [0.4, -0.45, 0.03],
}


def test_every_operation_is_compared():
    assert COLOURS.keys() | MOVES.keys() == set(randaugment.OPS["timm"])
    assert set(randaugment.OPS["timm"]) == randaugment.EFFECTS.keys()
    assert set(randaugment.OPS["spikformer"]) < set(randaugment.OPS["timm"])


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize("images", IMAGES)
def test_colours_are_pillows_within_one_step(images, name, channels):
    x = IMAGES[images]()[..., :channels]
    for argument in COLOURS[name]:
        if name == "Color" and channels == 1:
            expected = x
        else:
            expected = np.stack([by_pillow(name, image, argument) for image in x])
        got = by_us(name, x, argument).astype(int)
        assert got.shape == x.shape
        worst = np.abs(got - expected).max()
        assert worst <= 1, f"{name} {argument}: off by {worst}"
        assert (got != expected).mean() < 0.01, f"{name} {argument}"


@pytest.mark.parametrize("resample", RESAMPLE)
@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("images", IMAGES)
def test_moves_are_pillows(images, name, resample):
    x = IMAGES[images]()
    for argument in MOVES[name]:
        expected = np.stack([by_pillow(name, image, argument, resample) for image in x])
        got = by_us(name, x, argument, resample=resample).astype(int)
        off = np.abs(got - expected)
        assert off.mean() <= 1, f"{name} {argument}: {off.mean()} on average"
        inner = off[:, 1:-1, 1:-1]
        assert (inner <= 3).mean() >= 0.99, f"{name} {argument}"


@pytest.mark.parametrize("name", ["Rotate", "TranslateXRel", "TranslateYRel"])
def test_height_and_width_are_told_apart(name):
    x, argument = synthetic()[:, 4:24], MOVES[name][0]
    expected = np.stack([by_pillow(name, image, argument) for image in x])
    off = np.abs(by_us(name, x, argument).astype(int) - expected)
    assert off.mean() <= 1 and (off[:, 1:-1, 1:-1] <= 3).mean() >= 0.99


@pytest.mark.parametrize(
    ("name", "resample"),
    [(name, "bilinear") for name in (*COLOURS, *MOVES)]
    + [(name, "bicubic") for name in MOVES],
)
def test_a_constant_image_stays_constant_and_neutral_arguments_change_nothing(
    name, resample
):
    colour = (7, 200, 90)
    constant = np.broadcast_to(np.uint8(colour), (1, SIZE, SIZE, 3))
    argument = {**COLOURS, **MOVES}[name][0]
    out = by_us(name, constant, argument, resample=resample, fill=colour)
    if name in ("AutoContrast", "Equalize", *MOVES):
        np.testing.assert_array_equal(out, constant)
    assert (out == out[:, :1, :1]).all()
    neutral = {"Posterize": 8, "Solarize": 256, "SolarizeAdd": 0} | dict.fromkeys(
        ("Color", "Contrast", "Brightness", "Sharpness"), 1
    )
    if name in neutral or name in MOVES:
        x = synthetic()
        out = by_us(name, x, neutral.get(name, 0), resample=resample)
        np.testing.assert_array_equal(out, x)


def test_no_bits_are_black_and_every_image_has_its_own_argument():
    x = synthetic()
    assert by_us("Posterize", x, 0).max() == 0
    factors = np.linspace(0.2, 1.6, len(x)).astype(np.float32)
    got = by_us("Brightness", x, factors)
    one = [by_us("Brightness", x[i : i + 1], f)[0] for i, f in enumerate(factors)]
    np.testing.assert_array_equal(got, one)
    assert (got != by_us("Brightness", x, factors[0])).any()


def test_a_policy_is_read_as_timm_reads_it():
    got = randaugment.parse("rand-m9-n1-mstd0.4-inc1")
    assert got == (9, 1, 0.4, 10, True, 0.5)
    assert randaugment.parse("rand") == (10, 2, 0, 10, False, 0.5)
    assert randaugment.parse("rand-mstd101") == (10, 2, math.inf, 10, False, 0.5)
    assert randaugment.parse("rand-mstdinf-p1-mmax15-m12-n3-inc0") == (
        12,
        3,
        math.inf,
        15,
        False,
        1,
    )


@pytest.mark.parametrize(
    "text",
    ["", "augmix-m3", "rand-w0", "rand-m", "rand-9", "rand-m9-m8", "rand-n0", "rand-p2"]
    + ["rand-n1.5", "rand-inc2", "rand-mmax0", "rand-minf", "rand-m-1", "rand-"],
)
def test_other_policies_are_refused(text):
    with pytest.raises(ValueError, match="augment.randaugment: got .*, expected e.g."):
        randaugment.parse(text)


def test_unknown_names_are_refused():
    policy = randaugment.parse("rand")
    with pytest.raises(ValueError, match="augment.ops: got 'torch', expected 'timm'"):
        randaugment.transform(policy, ops="torch")
    with pytest.raises(ValueError, match="augment.resample: got 'nearest', expected"):
        randaugment.transform(policy, resample="nearest")
    with pytest.raises(ValueError, match="got 'Cutout', expected"):
        randaugment.apply("Cutout", synthetic())
    with pytest.raises(ValueError, match=r"got images \(9, 9, 2\), expected \(H, W, 1"):
        randaugment.apply("Invert", np.zeros((1, 9, 9, 2), np.uint8))


DRAW = jax.jit(randaugment.draw, static_argnums=(1, 2))


def draws(text, count=15, number=20_000):
    policy = randaugment.parse(text)
    keys = jax.random.split(KEY, number)
    drawn = jax.vmap(lambda key: randaugment.draw(key, policy, count))(keys)
    return jax.tree.map(np.asarray, drawn)


def test_operations_are_as_likely_each_and_half_are_done():
    d = draws("rand-m9")
    share = np.bincount(d.op, minlength=15) / len(d.op)
    assert share.size == 15 and np.abs(share - 1 / 15).max() < 0.009  # 5 sigma
    assert abs(d.done.mean() - 0.5) < 0.018
    assert set(d.sign) == {-1, 1} and abs(d.sign.mean()) < 0.036
    assert (d.magnitude == 9).all()
    for a in (d.op, d.sign):
        assert abs(np.corrcoef(a, d.done)[0, 1]) < 0.036
    assert draws("rand-p1", number=100).done.all()


def test_magnitudes_are_normal_and_cut_off_at_their_ends():
    m = draws("rand-m9-mstd0.4").magnitude
    assert abs(m.mean() - 9) < 0.02 and abs(m.std() - 0.4) < 0.02 and m.max() <= 10
    assert abs((m > 9.4).mean() - 0.159) < 0.013
    m = draws("rand-m9-mstd2").magnitude
    assert m.max() == 10 and abs((m == 10).mean() - 0.309) < 0.017  # above half sigma
    m = draws("rand-m1-mstd2-mmax3").magnitude
    assert m.min() == 0 and m.max() == 3
    assert abs((m == 0).mean() - 0.309) < 0.017
    assert abs((m == 3).mean() - 0.159) < 0.013
    m = draws("rand-m8-mstdinf").magnitude  # uniform in [0, 8]
    assert m.min() < 0.1 and 7.9 < m.max() < 8
    assert abs(m.mean() - 4) < 0.1 and abs(m.std() - 8 / math.sqrt(12)) < 0.05


# timm's arguments, computed by hand from its formulas
@pytest.mark.parametrize(
    ("name", "scale", "magnitude", "sign", "expected"),
    [
        ("Rotate", "INCREASING", 9, -1, -27),
        ("ShearY", "ARGUMENTS", 9, 1, 0.27),
        ("TranslateXRel", "ARGUMENTS", 10, -1, -0.45),
        ("Posterize", "ARGUMENTS", 9, 1, 3),
        ("Posterize", "INCREASING", 9, 1, 1),
        ("Posterize", "INCREASING", 10, 1, 0),
        ("Solarize", "ARGUMENTS", 9, 1, 230),
        ("Solarize", "INCREASING", 9, 1, 26),
        ("Solarize", "INCREASING", 5, 1, 128),
        ("SolarizeAdd", "INCREASING", 9, 1, 99),
        ("SolarizeAdd", "INCREASING", 15, 1, 128),
        ("Color", "ARGUMENTS", 9, -1, 1.72),
        ("Contrast", "INCREASING", 9, -1, 0.19),
        ("Brightness", "INCREASING", 9, 1, 1.81),
        ("Sharpness", "INCREASING", 10, -1, 0.1),
    ],
)
def test_a_magnitude_means_what_it_means_in_timm(
    name, scale, magnitude, sign, expected
):
    function = getattr(randaugment, scale)[name]
    got = function(jnp.float32(magnitude), jnp.float32(sign))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


MEAN, STD = (0.49, 0.47, 0.44), (0.25, 0.24, 0.26)
CERTAIN = "rand-m9-n1-mstd0.4-inc1-p1"


@functools.cache
def of(text, **options):
    return augment.build(randaugment=text, mean=MEAN, std=STD, **options)


def normalised(pixels):
    x = np.asarray(pixels, np.float32) / 255
    return (x - np.float32(MEAN)) / np.float32(STD)


def pixels(images):
    return 255 * (np.asarray(images) * np.float32(STD) + np.float32(MEAN))


@pytest.mark.parametrize(
    ("ops", "resample", "layers"),
    [("timm", "bilinear", 1), ("spikformer", "bicubic", 2)],
)
def test_a_batch_gets_exactly_the_operations_drawn(ops, resample, layers):
    text = f"rand-m9-n{layers}-mstd0.4-inc1-p1"
    x = np.tile(synthetic(), (8, 1, 1, 1))
    got = pixels(of(text, ops=ops, resample=resample)(KEY, normalised(x)))
    np.testing.assert_allclose(got, np.round(got), atol=1e-2)  # whole numbers
    names, policy, seen = randaugment.OPS[ops], randaugment.parse(text), set()
    for i in range(len(x)):
        key = augment._key(jax.random.fold_in(KEY, i), "randaugment")
        want = x[i : i + 1]
        for layer in range(layers):
            d = DRAW(jax.random.fold_in(key, layer), policy, len(names))
            name = names[d.op]
            argument = randaugment.INCREASING[name](d.magnitude, d.sign)
            want = by_us(name, want, argument, resample=resample)
            seen.add(name)
        off = np.abs(got[i] - want[0].astype(np.float32))
        assert (off > 0.01).mean() < 0.01, f"{i}: {name}"
    assert seen == set(names)


def test_what_is_not_done_is_the_identity_on_whole_pixels():
    x = normalised(synthetic())
    np.testing.assert_allclose(of("rand-n2-p0")(KEY, x), x, atol=1e-5)


def test_every_example_draws_its_own_and_sees_no_other():
    fn, x = of(CERTAIN), normalised(np.tile(synthetic()[:2], (8, 1, 1, 1)))
    out = np.asarray(fn(KEY, x))
    np.testing.assert_array_equal(fn(KEY, x), out)
    np.testing.assert_allclose(fn(KEY, x[:5]), out[:5], atol=1e-2)
    other = x.copy()
    other[5:] = 0
    np.testing.assert_array_equal(fn(KEY, other)[:5], out[:5])
    assert len({image.tobytes() for image in out[::2]}) > 4  # the same image
    assert (np.asarray(fn(jax.random.key(1), x)) != out).any()


def test_one_program_serves_all_batches():
    fn, x = of(CERTAIN), normalised(np.tile(synthetic()[:2], (8, 1, 1, 1)))
    fn(KEY, x)
    before = fn._cache_size()
    for seed in range(3):
        fn(jax.random.key(seed), x + seed)
    assert fn._cache_size() == before


def test_frames_and_odd_channels_are_refused():
    fn = of("rand")
    with pytest.raises(ValueError, match=r"randaugment: got \(2, 4, 8, 8, 3\).*no pic"):
        fn(KEY, jnp.zeros((2, 4, 8, 8, 3)))
    with pytest.raises(ValueError, match="augment.randaugment: got .* 1 or 3 channels"):
        fn(KEY, jnp.zeros((2, 8, 8, 2)))
    with pytest.raises(ValueError, match="augment.randaugment: got 'rand-w0'"):
        augment.build(randaugment="rand-w0")

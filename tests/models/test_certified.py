"""Every published size is addition-only once it is folded, and says at what price."""

import time

import jax
import jax.numpy as jnp
import pytest

from a2os2a_jax import models
from a2os2a_jax.analysis import audit
from a2os2a_jax.models import registry


def certify(family, variant, *, order="auto", events=False, fold=True, **options):
    """(report, CPU-seconds) of a published size, on abstract shapes."""
    classes, size, pool, *_ = registry.MODELS[family][variant]
    channels = 2 if events else 3
    options |= dict(num_classes=classes, image_size=size, pool=pool)
    if family == "columnar":
        kind = dict(kind="a2os2a", order=order)
        options["attention"] = kind | options.get("attention", {})
    model = models.build(family, variant, in_channels=channels, **options)
    shape = (1, 4, size, size, channels) if events else (1, size, size, channels)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), images)
    start = time.process_time()
    if fold:
        model, variables = models.fold(model, variables)
    report = audit.certify(
        lambda v, x: model.apply(v, x), variables, images, allow=("input",)
    )
    return report, time.process_time() - start


def accepted(report, steps):
    """Nothing but the first convolution multiplies; once, or at every frame."""
    assert report.addition_only and report.verdict == "addition-only", str(report)
    (first,) = report.products
    assert (first.path, first.allowed) == ("stem/conv_0", True)
    assert first.primitive == "conv_general_dilated"
    assert "stem.py" in first.source
    return first.count // steps


SIZES = [
    *(("columnar", size) for size in registry.COLUMNAR),
    ("spike_driven", "2-512"),
]


@pytest.mark.parametrize("i", range(len(SIZES)), ids=[" ".join(s) for s in SIZES])
def test_a_published_size(i):
    """With one order and input each; all of them below, and slow."""
    events = bool(i % 2)
    report, _ = certify(*SIZES[i], order="q_kv" if events else "qk_v", events=events)
    family, variant = SIZES[i]
    _, size, *_ = registry.MODELS[family][variant]
    taps = (3 * size - 2) ** 2  # of a 3x3 window, in the image
    width = int(variant.split("-")[1]) // 8
    if events:
        assert accepted(report, 4) == taps * 2 * width
    else:
        assert accepted(report, 1) == taps * 3 * width


@pytest.mark.slow
@pytest.mark.parametrize("gain", [1.0, 1 / 64])
@pytest.mark.parametrize("events", [False, True])
@pytest.mark.parametrize("order", ["qk_v", "q_kv"])
@pytest.mark.parametrize(("family", "variant"), SIZES)
def test_every_way_of_it(family, variant, order, events, gain):
    own = {"attention": {"k_gain": gain}} if family == "columnar" else {}
    report, _ = certify(family, variant, order=order, events=events, **own)
    accepted(report, 4 if events else 1)


def test_an_imagenet_model_is_read_in_twenty_seconds():
    report, seconds = certify("columnar", "8-512")
    assert seconds < 20  # about one
    assert report.counts["addition"] > 30e9
    assert set(report.price["addition"]) == {32}


def test_as_trained_it_is_refused_and_told_what_to_do():
    report, _ = certify("columnar", "2-512", fold=False)
    assert report.verdict == "not addition-only"
    refused = {o.path: o for o in report.refused}
    norms = {name for name in refused if "bn" in name}
    assert norms == {name for name in refused if name != "head"}
    assert len(norms) == 5 + 2 * 6
    for name in norms:
        before = name.replace("_bn", "_linear").replace("bn_", "conv_")
        before = before.replace("rpe_linear", "rpe_conv")
        assert refused[name].advice == f"fold it into the weights of {before}"
    assert "fold it into the weights of stem/conv_1" in str(report)

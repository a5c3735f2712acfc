"""What a report says: counts worked by hand, places, the verdict; as text and data."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from a2os2a_jax.analysis.audit import certify, line
from a2os2a_jax.functional import attention, neurons

# Two steps, an image of 4 x 4, 2 channels; 5 channels after the convolution.
IMAGE = jax.ShapeDtypeStruct((2, 4, 4, 2), jnp.float32)
KERNEL = jax.ShapeDtypeStruct((3, 3, 2, 5), jnp.float32)
HEAD = jax.ShapeDtypeStruct((5, 7), jnp.float32)


def convolve(x, w, **how):
    numbers = ("NHWC", "HWIO", "NHWC")
    how = dict(window_strides=(1, 1), padding="SAME", dimension_numbers=numbers) | how
    return lax.conv_general_dilated(x, w, **how)


def unroll(kind, x):
    step, init = getattr(neurons, f"{kind}_step"), getattr(neurons, f"{kind}_init")
    return neurons.unroll(step, init, x)


def network(params, x):
    kernel, head = params
    with jax.named_scope("stem/conv_0"):
        u = convolve(x, kernel)
    with jax.named_scope("stem/neuron_0"):
        s = unroll("lif", u)
    with jax.named_scope("attention"):
        t = s.reshape(2, 16, 1, 5)
        a = attention.a2os2a(t, jax.nn.relu(u).reshape(t.shape), t, "q_kv")
    with jax.named_scope("attention/neuron"):
        s = unroll("ternary", a)
    with jax.named_scope("head"):
        return (s.reshape(2, 16, 5) @ head).sum((0, 1))


def report(**options):
    return certify(network, (KERNEL, HEAD), IMAGE, **options)


def of(found, path):
    """{kind: operations} at a place, sums of multiplied terms left out."""
    total = {}
    for o in found.operations:
        if o.path == path and not o.folds and not o.of:
            total[o.kind] = total.get(o.kind, 0) + o.count
    return total


def test_every_count_is_what_the_hand_finds():
    found = report(allow=("input",))
    # Of 4 outputs in a row the outer ones reach 2 taps, the others 3: 10 per axis.
    taps = 10 * 10 * 2
    assert of(found, "stem/conv_0") == {"multiplication": 2 * taps * 5}
    size = 2 * 16 * 5
    # v/2 + x, then h - v_th; fires; resets by a choice; its membrane is kept.
    assert of(found, "stem/neuron_0") == {
        "shift": size,
        "addition": 2 * size,
        "comparison": size,
        "bitwise": size,
        "select": size,
        "state update": size,
    }
    products = 2 * 16 * 5 * 5  # T N d², twice
    assert of(found, "attention") == {"comparison": size, "addition": 2 * products}
    ternary = of(found, "attention/neuron")
    assert ternary["addition"] == 3 * size  # both thresholds
    assert ternary["shift"] == ternary["state update"] == size
    assert of(found, "head") == {"addition": 2 * 16 * 5 * 7 + 2 * 16 * 7}
    sums = 2 * taps * 5 + (2 + 3) * size + 2 * products + 2 * 16 * 7 * 6
    assert found.counts["addition"] == sums  # those of the image's products, too
    assert found.price["addition"] == {32: sums}
    assert found.price["shift"] == {32: 2 * size}


@pytest.mark.parametrize(
    "how, taps",
    [
        (dict(padding="VALID"), 6 * 6),
        (dict(padding=((2, 2), (2, 2))), 12 * 12),  # each entry under each tap
        (dict(window_strides=(2, 1)), 5 * 10),  # rows 0..2 and 2..3
        (dict(rhs_dilation=(2, 1)), 8 * 10),  # from each row those two away
        (dict(padding=((6, 0), (1, 1))), 9 * 10),  # some see nothing
        (dict(padding=((-1, -1), (1, 1))), 0),  # nothing is left
        (dict(padding=((0, -1), (1, 1))), 3 * 10),
    ],
    ids=str,
)
def test_taps_outside_of_the_image_are_no_additions(how, taps):
    found = certify(
        lambda w, x: convolve((x >= 1).astype(x.dtype), w, **how), KERNEL, IMAGE
    )
    assert found.counts.get("addition", 0) == 2 * taps * 2 * 5


def test_a_grouped_convolution_sees_its_own_channels():
    kernel = jax.ShapeDtypeStruct((3, 3, 1, 4), jnp.float32)

    def f(w, x):
        return convolve((x >= 1).astype(x.dtype), w, feature_group_count=2)

    assert certify(f, kernel, IMAGE).counts["addition"] == 2 * 100 * 4


def test_a_proven_report_says_so_and_what_it_costs():
    found = report(allow=("input",))
    assert found.addition_only and found.verdict == "addition-only"
    text = str(found)
    (first,) = found.allowed
    assert first.path == "stem/conv_0" and first.source.startswith("test_report.py:")
    assert f"but for {first.count:,} permitted products with the input, at" in text
    assert "multiplication-free" in found.summary() and "32 bits" in found.summary()
    for place in ("stem/conv_0", "stem/neuron_0", "attention", "head", "total"):
        assert any(row.startswith(place) for row in text.splitlines()), place
    assert "permitted:" in text and "refused:" not in text
    assert found.inputs == ("argument 1: float32[2, 4, 4, 2]",)


def test_a_refused_report_names_the_place():
    found = report()
    assert not found.addition_only and found.verdict == "not addition-only"
    (product,) = found.refused
    assert product.place == "stem/conv_0"
    assert "NOT addition-only" in found.summary() and "stem/conv_0" in found.summary()
    said = line(product)
    assert said in str(found)
    for part in ("stem/conv_0", "test_report.py:", "multiplication", "2,000 times"):
        assert part in said
    assert "real (32 bits) x real (32 bits): data times parameters" in said


def test_places_that_differ_in_a_number_are_one_row():
    def f(w, x):
        for i in range(3):
            with jax.named_scope(f"block_{i}/mlp"):
                x = x + 1
        return x

    text = str(certify(f, KERNEL, IMAGE))
    (row,) = (r for r in text.splitlines() if r.startswith("block_*/mlp"))
    assert row.split()[1] == str(3 * 64)
    once = str(certify(lambda w, x: f(w, x[:1]), KERNEL, IMAGE))
    assert "block_*/mlp" in once


@pytest.mark.parametrize("allow", [(), ("input",)])
def test_a_report_is_plain_data(allow):
    found = report(allow=allow)
    data = found.to_json()
    assert json.loads(json.dumps(data)) == data
    assert data["addition_only"] == found.addition_only == bool(allow)
    assert data["verdict"] == found.verdict and data["summary"] == found.summary()
    assert data["counts"] == found.counts
    assert data["price"]["addition"] == {"32": found.counts["addition"]}
    (product,) = data["products"]
    assert product["path"] == "stem/conv_0" and product.get("allowed", False) == bool(
        allow
    )
    total = sum(o["count"] for o in data["operations"] if o["kind"] == "addition")
    assert total == found.counts["addition"]
    assert data["inputs"] == list(found.inputs)


def test_what_folds_is_counted_apart():
    def f(params, x):
        kernel, head = params
        return convolve((x >= 1).astype(x.dtype), kernel * 0.3 / kernel.std())

    found = certify(f, (KERNEL, HEAD), IMAGE)
    assert found.addition_only and set(found.counts) == {"comparison", "addition"}
    assert found.to_json()["folds"] == len(found.folds) > 2
    assert "folded" in str(found)


def test_a_unknown_operation_is_among_the_products_of_the_data():
    found = certify(lambda x: jnp.sort(x), IMAGE, params=())
    assert found.verdict == "not proven" and not found.products
    (row,) = found.to_json()["products"]
    assert row["kind"] == "unknown" and row["primitive"] == "sort"

import inspect
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from a2os2a_jax import models
from a2os2a_jax.functional import surrogate
from a2os2a_jax.models.families import FAMILIES
from a2os2a_jax.modules.linear import INITS

IMAGENET, CIFAR, CIFAR_100 = (1000, 224), (10, 32), (100, 32)
# family: variant: (parameters of the public code, those that it allocates and never
# reads, classes and pixels, heads, in millions as the papers print it)
SKELETON = {
    "8-384": (16_816_536, 8 * 8**2, IMAGENET, 8, "16.81"),
    "8-512": (29_689_896, 8 * 8**2, IMAGENET, 8, "29.68"),
    "10-512": (36_006_056, 10 * 8**2, IMAGENET, 8, "36.01"),
    "8-768": (66_339_144, 8 * 8**2, IMAGENET, 8, "66.34"),
    "2-512": (10_279_716, 2 * 8**2, CIFAR_100, 8, "10.28"),
}
PUBLISHED = {
    "columnar": SKELETON,
    "spike_driven": SKELETON,
    "spikformer": {
        "8-512": (29_705_768, 8 * 4 * 512, IMAGENET, 8, "29.68"),  # two LayerNorms
        "4-384": (9_330_874, 4 * 4 * 384, CIFAR, 12, "9.32"),
    },
    "spikingformer": {
        "8-384": (16_828_312, 8 * 4 * 384, IMAGENET, 8, "16.81"),
        "8-512": (29_705_768, 8 * 4 * 512, IMAGENET, 8, "29.68"),
        "8-768": (66_363_208, 8 * 4 * 768, IMAGENET, 8, "66.34"),
        "4-384": (9_326_266, 4 * 4 * 384, CIFAR, 12, "9.32"),
    },
    "qkformer": {
        "10-384": (16_473_688, 0, IMAGENET, 6, "16.47"),
        "10-512": (29_079_336, 0, IMAGENET, 8, "29.08"),
        "10-768": (64_962_760, 0, IMAGENET, 12, "64.96"),
        "4-384": (6_740_884, 0, CIFAR_100, 8, "6.74"),
    },
    "spikingresformer": {
        "ti": (11_180_992, 0, IMAGENET, (1, 3, 6), "11.14"),
        "s": (17_813_824, 0, IMAGENET, (1, 4, 8), "17.76"),
        "m": (35_601_472, 0, IMAGENET, (1, 6, 12), "35.52"),
        "l": (60_375_680, 0, IMAGENET, (2, 8, 16), "60.38"),
        "cifar": (10_793_152, 0, CIFAR, (1, 3, 6), "10.79"),
    },
}
SIZES = [(name, variant) for name, rows in PUBLISHED.items() for variant in rows]
SMALL = dict(num_classes=10, image_size=8)


def shapes(model, size):
    images = jax.ShapeDtypeStruct((1, size, size, model.in_channels), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# --- sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize("family, variant", SIZES)
def test_published_models_have_their_number_of_parameters(family, variant):
    measured, unused, (classes, size), heads, millions = PUBLISHED[family][variant]
    number = measured - unused
    stem = "imagenet" if size == 224 else "cifar"
    row = (classes, size, stem, number, float(millions), heads)
    assert FAMILIES[family].sizes[variant] == row
    how = dict(num_classes=classes, image_size=size)
    model = models.build(family, variant, **how)
    assert count(shapes(model, size)["params"]) == number
    in_stages = (heads,) * 3 if family == "qkformer" else heads
    assert model.heads == in_stages and model.timesteps == 4
    if hasattr(model, "pool"):
        assert model.pool == ("1111" if size == 224 else "0011")
    else:
        assert model.stem == stem
    # some cut, some round, and SpikingResformer's paper leaves out more than a head
    assert abs(number / 1e6 - float(millions)) < (0.09 if "res" in family else 0.011)


def test_no_published_size_is_without_a_number():
    listed = {name: tuple(family.sizes) for name, family in FAMILIES.items()}
    assert listed == {name: tuple(rows) for name, rows in PUBLISHED.items()}


@pytest.mark.parametrize(
    "family, variant, options, number",
    [
        ("qkformer", "4-384", {}, 6_706_234),
        ("spike_driven", "2-512", {}, 10_233_546 - 2 * 8**2),  # talking_heads, unused
        # of two channels, as events come: one filter of 9 weights less for each feature
        ("spikformer", "4-384", dict(in_channels=2), 9_330_874 - 6_144 - 9 * 48),
        ("spikingformer", "4-384", dict(in_channels=2), 9_326_266 - 6_144 - 9 * 48),
        ("spike_driven", "2-512", dict(in_channels=2), 10_233_418 - 9 * 64),
        ("columnar", "2-512", dict(in_channels=2), 10_233_418 - 9 * 64),
        ("qkformer", "4-384", dict(in_channels=2), 6_706_234 - 9 * 48),
        ("spikingresformer", "cifar", dict(in_channels=2), 10_793_152 - 9 * 64),
    ],
)
def test_other_classes_and_channels_have_their_number(family, variant, options, number):
    how = dict(num_classes=10, image_size=32, stem="cifar") | options
    model = models.build(family, variant, **how)
    assert count(shapes(model, 32)["params"]) == number


@pytest.mark.parametrize("family", [name for name in FAMILIES if "res" not in name])
def test_event_frames_of_128_pixels_have_the_stem_that_is_asked_for(family):
    how = dict(num_classes=10, image_size=128, in_channels=2)
    small = models.build(family, "4-256", **how, stem="cifar")
    large = models.build(family, "4-256", **how)
    assert (small.side, large.side) == (32, 8)


def formula(depth, d, classes, channels, ratio):
    """Counted on paper: convolutions and q, k, v without bias, two numbers a BN."""
    widths = [channels, d // 8, d // 4, d // 2, d]
    convs = [9 * a * b for a, b in zip(widths, widths[1:], strict=False)] + [9 * d * d]
    norms = 2 * (sum(widths[1:]) + d)
    attention = 4 * d * d + d + 4 * 2 * d
    mlp = 2 * ratio * d * d + (ratio + 1) * d + 2 * (ratio + 1) * d
    return sum(convs) + norms + depth * (attention + mlp) + d * classes + classes


@pytest.mark.parametrize(
    "variant, options",
    [
        ("1-8", dict(heads=1)),
        ("3-40", dict(heads=5, in_channels=2, mlp_ratio=2)),
        ("2-64", dict(pool="1010", timesteps=1)),
        ("4-48", dict(heads=3, pool="0000")),
    ],
)
def test_any_depth_and_width_build(variant, options):
    model = models.build("columnar", variant, **SMALL, **options)
    depth, dim = map(int, variant.split("-"))
    want = formula(depth, dim, 10, model.in_channels, model.mlp_ratio)
    assert count(shapes(model, 8)["params"]) == want
    assert (model.depth, model.dim) == (depth, dim)


def test_a_model_without_attention_has_no_attention_parameters():
    model = models.build("columnar", "2-64", attention="none", **SMALL)
    names = traverse_util.flatten_dict(shapes(model, 8)["params"], sep="/")
    assert not [name for name in names if "attention" in name]


def test_defaults_are_those_of_the_paper():
    model = models.build("columnar", "2-64", **SMALL)
    assert (model.heads, model.timesteps, model.in_channels) == (8, 4, 3)
    assert (model.mlp_ratio, model.shortcut, model.dtype) == (4, "full", jnp.float32)
    assert model.attention == dict(
        kind="a2os2a",
        q="binary",
        k="relu",
        v="ternary",
        scale=None,
        v_th=None,
        order="auto",
        k_gain=1,
        normalise=None,
        freeze=None,
        projection=True,
        bias=None,
    )
    paper = dict(rule="paper", tau=2, v_th=1, decay_input=False, surrogate="atan")
    paper |= dict(v_reset=0, soft_reset=False, detach_reset=True, learn_tau=False)
    assert model.neuron == paper
    vssa = models.build("columnar", "2-64", attention="vssa", **SMALL).attention
    assert (vssa["k"], vssa["v"], vssa["scale"], vssa["v_th"]) == (
        "binary",
        "binary",
        0.125,
        0.5,
    )


def test_defaults_of_the_spike_driven_transformer_are_those_of_its_code():
    model = models.build("spike_driven", "2-64", **SMALL)
    assert (model.heads, model.timesteps, model.mlp_ratio) == (8, 4, 4)
    assert (model.readout, model.shortcut) == ("membrane", "full")
    own = dict(q="binary", k="binary", v="binary", v_th=0.5, k_gain=1)
    own |= dict(freeze=None, projection=True, bias=None, dilate=False)
    assert model.attention == dict(kind="sdsa") | own
    code = dict(rule="paper", tau=2, v_th=1, decay_input=True, surrogate="sigmoid")
    code |= dict(v_reset=0, soft_reset=False, detach_reset=True, learn_tau=False)
    assert model.neuron == code
    assert surrogate.by_name("sigmoid") is surrogate.sigmoid(4)
    shapes_of = [
        shapes(models.build(name, "2-64", **SMALL), 8)
        for name in ("columnar", "spike_driven")
    ]
    assert shapes_of[0] == shapes_of[1]


CODE = dict(rule="paper", tau=2, v_th=1, v_reset=0, soft_reset=False)
CODE |= dict(detach_reset=True, learn_tau=False, decay_input=True, surrogate="sigmoid")
SSA = dict(kind="ssa", q="binary", k="binary", v="binary", scale=0.125, v_th=0.5)
SSA |= dict(order="auto", k_gain=1, normalise=None, freeze=None, projection=True)
OWN = {  # (family, variant, stem): what it has of its own, as ZOO of its public code
    ("spikformer", "2-64", "cifar"): dict(
        attention=SSA | dict(bias=True), residual="spikes", stem="sps", readout="mean"
    ),
    ("spikformer", "2-64", "imagenet"): dict(
        attention=SSA | dict(bias=None), residual="spikes", stem="sps", pool="1111"
    ),
    ("spikingformer", "2-64", "cifar"): dict(
        attention=SSA | dict(bias=None),
        residual="membrane",
        stem="tokenizer",
        readout="potential",
    ),
    ("qkformer", "4-64", "cifar"): dict(
        attention=SSA | dict(bias=None),
        depths=(1, 1, 2),
        heads=(8, 8, 8),
        over_batch=False,
        token_attention=dict(kind="qk_token", q="binary", k="binary", v_th=0.5)
        | dict(k_gain=1, freeze=None, projection=True, bias=None),
    ),
    ("qkformer", "10-384", "imagenet"): dict(depths=(1, 2, 7), heads=(6, 6, 6), side=1),
    ("spikingresformer", "ti", "imagenet"): dict(
        neuron=CODE | dict(surrogate="atan"),
        pairs=(1, 2, 3),
        planes=(64, 192, 384),
        patch_sizes=(4, 2, 1),
        group_size=64,
        head_bias=False,
    ),
}


@pytest.mark.parametrize("case", OWN, ids=" ".join)
def test_defaults_of_the_peers_are_those_of_their_code(case):
    family, variant, stem = case
    how = dict(num_classes=10, image_size=16, stem=stem)
    model = models.build(family, variant, **how)
    for key, want in (dict(neuron=CODE, timesteps=4, mlp_ratio=4) | OWN[case]).items():
        assert getattr(model, key) == want, key
    assert not model.whole_sequences


def test_what_is_given_goes_before_the_familys_own_and_none_is_not_given():
    def build(**options):
        return models.build("spike_driven", "2-64", **SMALL, **options)

    plain = build()
    nothing = dict(attention=None, readout=None, neuron=None)
    assert build(**nothing) == build(attention={}, neuron={}) == plain
    part = build(attention=dict(kind=None, k_gain=0.5), neuron=dict(tau=3.0, rule=None))
    assert part.attention == plain.attention | dict(k_gain=0.5)
    assert part.neuron == plain.neuron | dict(tau=3.0)
    other = build(
        attention="a2os2a", readout="mean", neuron=dict(decay_input=False), heads=4
    )
    assert (other.attention["kind"], other.readout) == ("a2os2a", "mean")
    assert not other.neuron["decay_input"] and other.neuron["surrogate"] == "sigmoid"
    guo = build(neuron=dict(rule="guo")).neuron
    assert guo == models.build("columnar", "2-64", **SMALL, neuron=guo).neuron
    mixed = models.build("columnar", "2-64", **SMALL, attention="sdsa")
    assert (mixed.attention["kind"], mixed.readout) == ("sdsa", "mean")


@pytest.mark.parametrize("size, pool", [(32, "0011"), (64, "1111"), (224, "1111")])
def test_the_stem_pools_as_the_size_wants(size, pool):
    assert models.build("columnar", "1-8", num_classes=2, image_size=size).pool == pool


def test_the_arguments_are_those_announced():
    parameters = inspect.signature(models.build).parameters
    positional = [n for n, p in parameters.items() if p.kind == p.POSITIONAL_OR_KEYWORD]
    assert positional == ["name", "variant"]
    assert {
        "num_classes",
        "image_size",
        "in_channels",
        "timesteps",
        "heads",
        "pool",
    } <= (set(parameters))
    assert {"attention", "neuron", "shortcut", "dtype"} <= set(parameters)


# --- errors ---------------------------------------------------------------------------

ERRORS = {  # what is wrong: (arguments over the good ones, words of the message)
    "unknown name": (dict(name="vit"), ["name", "'vit'", "'columnar'"]),
    "variant words": (dict(variant="small"), ["variant", "'small'", "2-512"]),
    "variant zero": (dict(variant="0-64"), ["variant", "'0-64'", "depth-dim"]),
    "variant number": (dict(variant=64), ["variant", "64", "depth-dim"]),
    "dim for the stem": (dict(variant="1-12", heads=1), ["12", "multiple of 8"]),
    "heads": (dict(heads=5), ["heads", "got 5", "divisor of dim 64"]),
    "default heads": (
        dict(variant="1-36", stem="tokens", image_size=None),
        ["heads", "got 8", "divisor of dim 36"],
    ),
    "heads of stages": (dict(heads=(1, 2)), ["heads", "(1, 2)", "an integer >= 1"]),
    "no heads": (dict(heads=0), ["heads", "got 0", ">= 1"]),
    "no steps": (dict(timesteps=0), ["timesteps", "got 0", ">= 1"]),
    "half a step": (dict(timesteps=1.5), ["timesteps", "1.5", "integer"]),
    "no classes": (dict(num_classes=0), ["num_classes", "got 0", ">= 1"]),
    "no channels": (dict(in_channels=0), ["in_channels", "got 0", ">= 1"]),
    "no mlp": (dict(mlp_ratio=0), ["mlp_ratio", "got 0", ">= 1"]),
    "image size": (
        dict(image_size=30),
        ["image_size", "got 30", "multiple of 4", "0011"],
    ),
    "no image size": (dict(image_size=None), ["image_size", "got None", "pixels"]),
    "pool length": (dict(pool="011"), ["pool", "'011'", "four"]),
    "pool digits": (dict(pool="0012"), ["pool", "'0012'", "0 or 1"]),
    "pool number": (dict(pool=11), ["pool", "'11'", "four"]),
    "shortcut": (
        dict(shortcut="none"),
        ["shortcut", "'none'", "'full'", "'attention'"],
    ),
    "stem": (dict(stem="patch"), ["stem", "'patch'", "'sps'", "'tokens'"]),
    "readout": (dict(readout="max"), ["readout", "'max'", "'mean'", "'membrane'"]),
    "option of sdsa": (
        dict(name="spike_driven", attention=dict(order="qk_v")),
        ["'sdsa'", "qk_v", "k_gain"],
    ),
    "dtype": (dict(dtype="float16"), ["dtype", "'float16'", "'float32'"]),
    "float64": (dict(dtype="float64"), ["dtype", "float64", "jax_enable_x64"]),
    "tokens with a size": (dict(stem="tokens"), ["'tokens'", "image_size 8"]),
    "tokens with a pool": (
        dict(stem="tokens", image_size=None, pool="0011"),
        ["'tokens'", "pool", "0011"],
    ),
    "attention kind": (dict(attention="softmax"), ["kind", "'softmax'", "'vssa'"]),
    "attention option": (dict(attention=dict(head=2)), ["attention", "head", "k_gain"]),
    "attention order": (
        dict(attention=dict(order="vk_q")),
        ["order", "'vk_q'", "q_kv"],
    ),
    "attention k": (dict(attention=dict(k="real")), ["attention.k", "'real'", "relu"]),
    "attention v": (
        dict(attention=dict(v="relu")),
        ["attention.v", "'relu'", "ternary"],
    ),
    "attention none": (
        dict(attention=dict(kind="none", order="qk_v")),
        ["'none'", "no options", "qk_v"],
    ),
    "neuron of text": (dict(neuron=dict(v_th="x")), ["neuron.v_th", "'x'", "number"]),
    "threshold with guo": (
        dict(neuron=dict(rule="guo"), attention=dict(kind="vssa", v_th=1.0)),
        ["attention.v_th", "1.0", "guo"],
    ),
    "neuron option": (dict(neuron=dict(theta=1)), ["neuron", "theta", "v_th"]),
    "neuron rule": (dict(neuron=dict(rule="lif")), ["rule", "'lif'", "paper", "guo"]),
    "surrogate": (dict(neuron=dict(surrogate="erf")), ["surrogate", "'erf'", "atan"]),
    "surrogate number": (
        dict(neuron=dict(surrogate="atan(-1)")),
        ["surrogate", "'atan(-1)'", "positive"],
    ),
    "no drop path": (dict(drop_path=1.0), ["drop_path", "got 1.0", "0 <= it < 1"]),
    "residual": (dict(residual="none"), ["residual", "'none'", "'spikes'"]),
    "scale of the stem": (dict(stem="small"), ["stem", "'small'", "'imagenet'"]),
    "over the batch": (
        dict(neuron_over_batch=True),
        ["neuron_over_batch", "True", "columnar", "expected qkformer"],
    ),
    "patch sizes": (
        dict(patch_sizes=(2, 1)),
        ["model.patch_sizes", "(2, 1)", "expected None with columnar"],
    ),
    "group size": (
        dict(name="qkformer", variant="3-64", group_size=8),
        ["model.group_size", "got 8", "expected None with qkformer"],
    ),
    "membranes of counts": (
        dict(residual="spikes", readout="membrane"),
        ["readout", "'membrane'", "'mean' or 'query'", "no membrane"],
    ),
    "potentials of counts": (
        dict(name="spikingformer", residual="spikes"),
        ["readout", "'potential'", "'mean' or 'query'", "no membrane"],
    ),
    "shortcut of counts": (
        dict(name="spikformer", shortcut="attention"),
        ["shortcut", "'attention'", "'full'", "no membrane"],
    ),
    "a map of tokens": (
        dict(stem="tokens", image_size=None, attention="sdsa3"),
        ["attention.kind", "'sdsa3'", "'tokens'", "a square map"],
    ),
    "a dilated map of tokens": (
        dict(stem="tokens", image_size=None, attention=dict(kind="sdsa", dilate=True)),
        ["attention.kind", "'sdsa'", "'tokens'", "a square map"],
    ),
    "patch": (
        dict(attention=dict(kind="dssa", patch=4)),
        ["attention.patch", "got 4", "a divisor of 2"],
    ),
    "chunk": (
        dict(attention="statten", timesteps=3),
        ["attention.chunk", "got 2", "a divisor of model.timesteps 3"],
    ),
    "chunk of qkformer": (
        dict(name="qkformer", variant="3-64", attention=dict(kind="statten", chunk=3)),
        ["attention.chunk", "got 3", "a divisor of model.timesteps 4"],
    ),
    "depth of qkformer": (
        dict(name="qkformer", variant="2-64"),
        ["variant", "'2-64'", "a depth of 3 or more", "'cifar'"],
    ),
    "depth of a large qkformer": (
        dict(name="qkformer", variant="3-64", image_size=64),
        ["variant", "'3-64'", "a depth of 4 or more", "'imagenet'"],
    ),
    "width of qkformer": (
        dict(name="qkformer", variant="3-36"),
        ["variant", "dim is 36", "a multiple of 8"],
    ),
    "heads of qkformer": (
        dict(name="qkformer", variant="3-48"),
        ["heads", "got 8", "a divisor of dim 12"],  # of its first stage
    ),
    "heads of its stages": (
        dict(name="qkformer", variant="3-64", heads=(2, 4)),
        ["heads", "got (2, 4)", "one for each of"],
    ),
    "image of qkformer": (
        dict(name="qkformer", variant="3-64", image_size=10),
        ["image_size", "got 10", "a multiple of 4", "'cifar'"],
    ),
    "large image of qkformer": (
        dict(name="qkformer", variant="4-64", image_size=72),
        ["image_size", "got 72", "a multiple of 16", "'imagenet'"],
    ),
    "no image of qkformer": (
        dict(name="qkformer", variant="3-64", image_size=None),
        ["image_size", "got None", "an integer >= 1"],
    ),
    "pool of qkformer": (
        dict(name="qkformer", variant="3-64", pool="0011"),
        ["model.pool", "'0011'", "expected None with qkformer"],
    ),
    "shortcut of qkformer": (
        dict(name="qkformer", variant="3-64", shortcut="attention"),
        ["model.shortcut", "'attention'", "expected None with qkformer"],
    ),
    "stem of qkformer": (
        dict(name="qkformer", variant="3-64", stem="sps"),
        ["model.stem of qkformer", "'sps'", "'cifar'"],
    ),
    "readout of qkformer": (
        dict(name="qkformer", variant="3-64", readout="query"),
        ["model.readout of qkformer", "'query'", "'mean'"],
    ),
    "residual of qkformer": (
        dict(name="qkformer", variant="3-64", residual="membrane"),
        ["model.residual of qkformer", "'membrane'", "'spikes'"],
    ),
    "pool of spikingresformer": (
        dict(name="spikingresformer", variant="ti", pool="1111"),
        ["model.pool", "'1111'", "expected None with spikingresformer"],
    ),
    "readout of spikingresformer": (
        dict(name="spikingresformer", variant="ti", readout="mean"),
        ["model.readout of spikingresformer", "'mean'", "'potential'"],
    ),
    "attention of spikingresformer": (
        dict(name="spikingresformer", variant="ti", attention="ssa"),
        ["attention", "'ssa'", "spikingresformer", "'dssa'", "patch_sizes"],
    ),
    "patch of spikingresformer": (
        dict(
            name="spikingresformer",
            variant="ti",
            attention=dict(kind="dssa", patch=2),
        ),
        ["attention", "'patch': 2", "spikingresformer", "patch_sizes"],
    ),
    "variant of spikingresformer": (
        dict(name="spikingresformer", variant="2-64.128.256x"),
        ["variant", "'2-64.128.256x'", "'ti' or 's'", "1.2.3-64.192.384"],
    ),
    "stages of spikingresformer": (
        dict(name="spikingresformer", variant="1.2-64"),
        ["planes is (64,)", "expected 2 of them"],
    ),
    "heads of spikingresformer": (
        dict(name="spikingresformer", variant="1.1-64.128", heads=(1, 1, 1)),
        ["heads is (1, 1, 1)", "expected 2 of them"],
    ),
    "real heads of spikingresformer": (
        dict(name="spikingresformer", variant="1.1-64.128", heads=2.0),
        ["heads is (2.0, 2.0)", "integers >= 1"],
    ),
    "patch sizes of spikingresformer": (
        dict(name="spikingresformer", variant="1.1-64.128", patch_sizes=3),
        ["stage 1", "side is 8", "a multiple of the patch, 3"],
    ),
    "group size of spikingresformer": (
        dict(name="spikingresformer", variant="1.1-64.128", group_size=96),
        ["stage 1", "hidden width is 256", "group size, 96"],
    ),
    "image of spikingresformer": (
        dict(name="spikingresformer", variant="1.1.1-64.128.256", image_size=10),
        ["image_size is 10", "a multiple of 4"],
    ),
    "guo with a threshold": (
        dict(neuron=dict(rule="guo", v_th=2.0)),
        ["guo", "v_th", "2.0"],
    ),
}


@pytest.mark.parametrize("wrong", ERRORS)
def test_errors_name_what_was_got_and_expected(wrong):
    arguments, words = ERRORS[wrong]
    good = dict(name="columnar", variant="1-64", **SMALL)
    with pytest.raises(ValueError) as error:
        models.build(**(good | arguments))
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    "shape",
    [(2, 8, 8, 1), (2, 9, 8, 3), (8, 8, 3), (1, 2, 3, 8, 8, 3), (2, 4, 8, 4, 3)],
)
def test_images_of_another_shape_are_refused(shape):
    model = models.build("columnar", "1-64", **SMALL)
    want = f"images: got {shape}, expected [B, 8, 8, 3] or [B, T, 8, 8, 3]"
    with pytest.raises(ValueError, match=re.escape(want)):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))


def test_a_sequence_of_no_frames_is_refused():
    model = models.build("columnar", "1-64", **SMALL)
    with pytest.raises(ValueError, match=r"got \(2, 0, 8, 8, 3\), expected T >= 1"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 0, 8, 8, 3)))


@pytest.mark.parametrize("shape", [(2, 5, 7), (5, 6), (1, 1, 2, 5, 6)])
def test_tokens_of_another_shape_are_refused(shape):
    model = models.build(
        "columnar",
        "1-64",
        num_classes=2,
        image_size=None,
        stem="tokens",
        in_channels=6,
    )
    want = f"images: got {shape}, expected [B, N, 6] or [B, T, N, 6]"
    with pytest.raises(ValueError, match=re.escape(want)):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))


# --- what init and apply give ---------------------------------------------------------


@pytest.fixture(scope="module")
def fresh(quick_jit):
    """(model, images, variables) by the model's own init."""
    model = models.build(
        "columnar",
        "1-64",
        timesteps=2,
        heads=2,
        attention=dict(k_gain=1 / 64),
        neuron=dict(learn_tau=True, tau=4.0),
        **SMALL,
    )
    images = jnp.asarray(
        np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32
    )
    # Another generator than the default, only because it compiles faster.
    key = jax.random.key(3, impl="unsafe_rbg")
    init = quick_jit(lambda key: model.init(key, images, train=False))
    return model, images, init(key)


def test_initial_values(fresh):
    _, _, variables = fresh
    assert set(variables) == {"params", "batch_stats"}
    kernels = []
    flat = traverse_util.flatten_dict(jax.device_get(variables), sep="/")
    for name, value in flat.items():
        collection, *_, module, leaf = name.split("/")
        if leaf == "kernel":
            kernels.append(value.ravel())
            spread = 0.02 / np.sqrt(2 * value.size)
            assert abs(value.std() - 0.02) < 5 * spread, name
            assert abs(value.mean()) < 5 * 0.02 / np.sqrt(value.size), name
            continue
        start = {"scale": 1.0, "var": 1.0, "w": -np.log(4.0 - 1)}.get(leaf, 0.0)
        if (module, leaf) == ("k_bn", "scale"):
            start = 1 / 64
        np.testing.assert_array_equal(value, np.float32(start), err_msg=name)
    largest = np.abs(np.concatenate(kernels)).max()
    assert 3.5 * 0.02 < largest < 6 * 0.02  # not cut at two standard deviations
    firsts = [kernel[0] for kernel in kernels]
    assert len(set(firsts)) == len(firsts), "two layers start alike"


STARTS = {  # (family, variant, stem): rules of its convolutions, its maps, its head
    ("columnar", "1-16", "cifar"): ("normal", "normal", "normal"),
    ("spike_driven", "1-16", "imagenet"): ("normal", "normal", "torch"),
    ("spikformer", "1-16", "cifar"): ("torch", "normal", "normal"),
    ("spikformer", "1-16", "imagenet"): ("torch", "torch", "normal"),
    ("spikingformer", "1-16", "cifar"): ("torch", "torch", "normal"),
    ("spikingformer", "1-16", "imagenet"): ("torch", "torch", "normal"),
    ("qkformer", "3-32", "cifar"): ("torch", "torch", "normal"),
    ("spikingresformer", "1.1-64.64", "imagenet"): ("normal", "normal", "normal"),
}


@pytest.mark.parametrize("start", STARTS, ids=" ".join)
def test_every_layer_starts_by_the_rule_of_its_public_code(start):
    """Uniform within 1 / sqrt(inputs), biases as well; or normal, and biases zero."""
    family, variant, stem = start
    model = models.build(family, variant, num_classes=10, image_size=16, stem=stem)
    found, convs = {}, set()

    def see(call, args, kwargs, context):
        module, name = context.module, "/".join(context.module.path)
        if isinstance(module, nn.Dense | nn.Conv) and context.method_name == "__call__":
            found[name] = module, args[0].shape[-1]
            convs.update({name} if isinstance(module, nn.Conv) else ())
        return call(*args, **kwargs)

    with nn.intercept_methods(see):
        shapes(model, 16)
    assert len(found) > 10 and "head" in found
    early = {name for name in found if name.startswith("stem/") or "/embed/" in name}
    assert convs >= early - {f"stage_{i}/embed/res_conv" for i in (1, 2, 3)} != set()
    rules = dict(zip(("early", "map", "head"), STARTS[start], strict=True))
    for name, (module, inputs) in found.items():
        where = "early" if name in early else "head" if name == "head" else "map"
        assert module.kernel_init is INITS[rules[where]], name
        if not module.use_bias:
            continue
        bias = module.bias_init(jax.random.key(7), (400,), jnp.float32)
        if rules[where] == "normal":
            assert not bias.any(), name
        else:
            bound = inputs**-0.5
            assert 0.97 * bound < np.abs(bias).max() <= bound, name
            assert abs(bias.std() - bound / 3**0.5) < 0.1 * bound, name
    with_bias = {name.rpartition("/")[2] for name in found if found[name][0].use_bias}
    parts = {"proj_linear", "fc1_linear", "fc2_linear", "head"}
    if family == "spikingresformer":
        parts = set()
    if (family, stem) == ("spikformer", "cifar"):
        parts |= {f"{x}_linear" for x in "qkv"}
    assert with_bias == parts


LAYERS = {  # a model of one block: layer -> its alphabet
    **{f"stem/neuron_{i}": {0, 1} for i in range(3)},
    "stem/rpe_neuron": {0, 1},
    "stem_neuron": {0, 1},
    "block_0/attention/q_neuron": {0, 1},
    "block_0/attention/v_neuron": {-1, 0, 1},
    "block_0/attention/attention_neuron": {0, 1},
    "block_0/mid_neuron": {0, 1},
    "block_0/mlp/fc1_neuron": {0, 1},
    "block_0/out_neuron": {0, 1},
}
ALPHABETS = {
    "a2os2a": LAYERS,
    "vssa": LAYERS | {f"block_0/attention/{x}_neuron": {0, 1} for x in "kv"},
}


@pytest.mark.parametrize("kind", ALPHABETS)
def test_spikes_are_sown_in_spikes_only_and_keep_their_alphabet(x64, case, kind):
    model = case("1-32", attention=kind, timesteps=2, pool="0000")
    logits, spikes, _ = model(model.images)  # asserts that every layer fires
    assert {name: set(np.unique(s)) for name, s in spikes.items()} == ALPHABETS[kind]
    assert {s.shape[:2] for s in spikes.values()} == {(4, 2)}
    _, sown = model.forward(model.variables, model.images)
    assert set(sown) == {"spikes"}
    plain = jax.eval_shape(model.model.apply, model.variables, model.images)
    assert (plain.shape, plain.dtype) == (logits.shape, logits.dtype)


def test_training_changes_batch_stats_alone(fresh):
    model, images, variables = fresh
    _, changed = jax.eval_shape(
        lambda: model.apply(variables, images, train=True, mutable=True)
    )
    # Everything was mutable: the caller asked for membranes and the rest as well.
    asked = {"spikes", "potentials", "membrane", "features"}
    assert set(changed) == {"params", "batch_stats"} | asked
    _, changed = jax.eval_shape(
        lambda: model.apply(variables, images, train=True, mutable=["batch_stats"])
    )
    assert set(changed) == {"batch_stats"}


def test_what_cannot_be_kept_raises(fresh):
    model, images, variables = fresh
    with pytest.raises(Exception, match="batch_stats"):
        jax.eval_shape(lambda: model.apply(variables, images, train=True))


def test_scalars_of_numpy_are_taken_as_pythons_are():
    options = dict(timesteps=2, heads=2, in_channels=3, mlp_ratio=2, drop_path=0.5)
    given = {key: np.asarray(value)[()] for key, value in options.items()}
    same = dict(num_classes=3, image_size=8, attention=dict(kind="vssa", scale=0.125))
    numpy = dict(num_classes=np.int64(3), image_size=np.uint8(8))
    numpy |= dict(attention=dict(kind="vssa", scale=np.float32(0.125)))
    assert models.build("columnar", "1-16", **given, **numpy) == models.build(
        "columnar", "1-16", **options, **same
    )

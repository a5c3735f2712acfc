import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from a2os2a_jax import models
from a2os2a_jax.functional import surrogate
from a2os2a_jax.models import registry

PUBLISHED = {  # variant: (parameters, options, in millions as the papers print it)
    "8-384": (16_816_024, dict(num_classes=1000, image_size=224), "16.81"),
    "8-512": (29_689_384, dict(num_classes=1000, image_size=224), "29.68"),
    "10-512": (36_005_416, dict(num_classes=1000, image_size=224), "36.01"),
    "8-768": (66_338_632, dict(num_classes=1000, image_size=224), "66.34"),
    "2-512": (10_279_588, dict(num_classes=100, image_size=32), "10.28"),
}
SMALL = dict(num_classes=10, image_size=8)


def shapes(model, size):
    images = jax.ShapeDtypeStruct((1, size, size, model.in_channels), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# --- sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize("variant", PUBLISHED)
@pytest.mark.parametrize("family", registry.MODELS)
def test_published_models_have_their_number_of_parameters(family, variant):
    number, options, millions = PUBLISHED[variant]
    model = models.build(family, variant, **options)
    assert count(shapes(model, options["image_size"])["params"]) == number
    assert model.pool == ("1111" if options["image_size"] == 224 else "0011")
    assert registry.MODELS[family].keys() == PUBLISHED.keys()
    assert registry.MODELS[family][variant] == (
        options["num_classes"],
        options["image_size"],
        model.pool,
        number,
        float(millions),
    )
    assert abs(number / 1e6 - float(millions)) < 0.01  # some cut, some round


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
        k="relu",
        v="ternary",
        scale=None,
        v_th=None,
        order="auto",
        k_gain=1,
        normalise=None,
        freeze=None,
        projection=True,
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
    own = dict(k="binary", v="binary", v_th=0.5, k_gain=1, freeze=None, projection=True)
    assert model.attention == dict(kind="sdsa") | own
    code = dict(rule="paper", tau=2, v_th=1, decay_input=True, surrogate="sigmoid")
    code |= dict(v_reset=0, soft_reset=False, detach_reset=True, learn_tau=False)
    assert model.neuron == code
    assert surrogate.by_name("sigmoid") is surrogate.sigmoid(4)
    shapes_of = [
        shapes(models.build(name, "2-64", **SMALL), 8) for name in registry.MODELS
    ]
    assert shapes_of[0] == shapes_of[1]


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
    "later name": (
        dict(name="qkformer"),
        ["'qkformer'", "not built yet", "'columnar'"],
    ),
    "variant words": (dict(variant="small"), ["variant", "'small'", "2-512"]),
    "variant zero": (dict(variant="0-64"), ["variant", "'0-64'", "depth-dim"]),
    "variant number": (dict(variant=64), ["variant", "64", "depth-dim"]),
    "dim for the stem": (dict(variant="1-12", heads=1), ["12", "multiple of 8"]),
    "heads": (dict(heads=5), ["heads", "got 5", "divisor of dim 64"]),
    "default heads": (dict(variant="1-36"), ["heads", "got 8", "divisor of dim 36"]),
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
    "attention k": (dict(attention=dict(k="ternary")), ["attention.k", "relu"]),
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

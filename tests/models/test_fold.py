"""A folded model gives what the trained one gives, in float64 to the last spike."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from a2os2a_jax import models
from a2os2a_jax.models import registry
from a2os2a_jax.models.fold import partner
from a2os2a_jax.modules.head import FoldedHead
from a2os2a_jax.modules.norm import BatchNorm

TOKENS = dict(stem="tokens", image_size=None, in_channels=6, tokens=5)
DRIVEN = dict(
    family="spike_driven", neuron=dict(v_th=0.5)
)  # decayed input: half a drive
CASES = {  # options of `build` (variant 1-64, T 2), order of the head
    "images": (
        dict(pool="0001", attention=dict(order="qk_v"), neuron=dict(v_th=1.25)),
        "spikes",
    ),
    "tokens": (TOKENS | dict(attention=dict(order="q_kv")), "counts"),
    "vssa, query": (TOKENS | dict(attention="vssa", readout="query"), "bits"),
    "sqrt": (TOKENS | dict(attention=dict(normalise="sqrt")), "bits"),
    "pow2, another rest": (
        TOKENS
        | dict(attention=dict(normalise="pow2", v_th=0.5), neuron=dict(v_reset=-0.5)),
        "spikes",
    ),
    "shiftmax, k_gain": (
        TOKENS | dict(attention=dict(normalise="shiftmax", k_gain=0.25)),
        "spikes",
    ),
    "guo": (
        TOKENS
        | dict(neuron=dict(rule="guo"), readout="membrane")
        | dict(attention=dict(kind="vssa", v="ternary")),
        "spikes",
    ),
    "decayed input": (
        TOKENS
        | dict(attention=dict(scale=0.2, v_th=0.3), readout="membrane")
        | dict(neuron=dict(decay_input=True, tau=4 / 3, v_th=0.6, v_reset=-0.25)),
        "counts",
    ),
    "soft reset": (
        TOKENS
        | dict(attention=dict(normalise="sqrt"), shortcut="attention")
        | dict(neuron=dict(decay_input=True, soft_reset=True, v_th=0.5)),
        "spikes",
    ),
    "learnt tau": (
        TOKENS | dict(neuron=dict(decay_input=True, learn_tau=True, v_th=0.5)),
        "spikes",
    ),
    "uniform, no projection": (
        TOKENS | dict(attention=dict(kind="uniform", projection=False), remat=True),
        "spikes",
    ),
    "spike_driven": (
        DRIVEN | dict(pool="0001", neuron=dict(v_th=0.7), static=True),
        "bits",
    ),
    "spike_driven, other readout": (DRIVEN | TOKENS | dict(readout="mean"), "spikes"),
}


class Folded:
    """A case with statistics of its batch, folded, and what both give.

    per_step [B, T, classes], logits [B, classes]; spikes and folded_spikes by layer.
    static: one frame, in place of a sequence.
    """

    def __init__(self, case, quick_jit, layers, options, head):
        options = dict(timesteps=2, batch=8, calibrate=False) | options
        static = options.pop("static", False)
        made = case("1-64", **options)
        self.model = made.model
        self.x = x = made.images[:, 0] if static else made.images

        def unfolded(initial):
            _, kept = made.eager(initial, x, train=True)
            stats = made.batch_statistics(kept["batch_stats"])
            variables = initial | {"batch_stats": stats}
            return variables, *made.eager(variables, x, per_step=True)

        self.variables, self.per_step, sown = quick_jit(unfolded)(made.initial)
        self.spikes = layers(sown)
        self.tokens = options.get("tokens")
        self.folded, self.params = self.fold(self.variables, head)
        self.run = quick_jit(lambda p: self.folded.apply(p, x, mutable=["spikes"]))
        self.logits, sown = self.run(self.params)
        self.folded_spikes = layers(sown)

    def fold(self, variables, head="spikes"):
        return models.fold(self.model, variables, head=head, tokens=self.tokens)


@pytest.fixture(scope="module")
def folded(case, quick_jit, layers):
    """folded(name) -> Folded; each is made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = Folded(case, quick_jit, layers, *CASES[name])
        return made[name]

    return get


def same(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-10)


def names(tree):
    return traverse_util.flatten_dict(tree, sep="/")


@pytest.mark.parametrize("name", CASES)
def test_the_folded_model_gives_the_same(x64, folded, name):
    both = folded(name)
    want = both.per_step.mean(1)
    assert np.ptp(want, axis=0).max() > 1e-3
    same(both.logits, want)
    np.testing.assert_array_equal(both.logits.argmax(-1), want.argmax(-1))
    assert both.spikes.keys() == both.folded_spikes.keys()
    for layer, s in both.spikes.items():
        np.testing.assert_array_equal(both.folded_spikes[layer], s, err_msg=layer)


@pytest.mark.parametrize("name", CASES)
def test_no_batch_norm_is_left(x64, folded, name):
    both = folded(name)
    assert type(both.folded) is type(both.model) and set(both.params) == {"params"}
    left = names(both.params["params"])
    before = names(both.variables["params"])
    normed = {n.removesuffix("/scale") for n in before if n.endswith("/scale")}
    assert normed and not [n for n in left if n.endswith("scale")]
    biases = {n.removesuffix("/bias") for n in left if n.endswith("/bias")}
    assert biases == normed | {"head"}
    init = jax.eval_shape(both.folded.init, jax.random.key(0), both.x)
    assert names(init["params"]).keys() == left.keys() and set(init) == {"params"}
    for key, leaf in names(init["params"]).items():
        assert (leaf.shape, leaf.dtype) == (left[key].shape, left[key].dtype), key


@pytest.mark.parametrize("name", ["tokens", "spike_driven"])
def test_each_step_of_the_folded_model_gives_the_same(x64, folded, quick_jit, name):
    both = folded(name)
    run = quick_jit(lambda p: both.folded.apply(p, both.x, per_step=True))
    same(run(both.params), both.per_step)


def test_a_stream_of_the_folded_model_gives_the_same(x64, folded, quick_jit):
    both = folded("sqrt")
    init, step = both.folded.stream(both.params)
    state, step = quick_jit(init, static_argnums=(0, 1))(8, 5), quick_jit(step)
    for t in range(2):
        state, logits = step(state, both.x[:, t])
        same(logits, both.per_step[:, t])


# --- mistakes that have to be seen ----------------------------------------------------


def without(leaf, variables):
    """The variables with every such leaf of a linear map or BN set to 0."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x * 0 if "/".join(k.key for k in path).endswith(leaf) else x,
        variables,
    )


@pytest.mark.parametrize("leaf", ["fc1_linear/bias", "k_bn/bias", "v_bn/mean"])
def test_a_part_that_is_forgotten_is_seen(x64, folded, leaf):
    both = folded("tokens")
    _, params = both.fold(without(leaf, both.variables), "counts")
    assert np.abs(both.run(params)[0] - both.logits).max() > 1e-4


def test_an_eps_that_is_forgotten_is_seen(x64, folded, monkeypatch):
    both = folded("tokens")
    monkeypatch.setattr(BatchNorm, "eps", 0.0)
    _, params = both.fold(both.variables, "counts")
    assert np.abs(both.run(params)[0] - both.logits).max() > 1e-4


@pytest.mark.parametrize("wrong", ["tau", "scale"])
def test_a_threshold_that_is_forgotten_is_seen(x64, folded, quick_jit, wrong):
    both = folded("decayed input")
    right = both.folded
    if wrong == "tau":
        model = right.clone(neuron=dict(both.model.neuron) | dict(decay_input=False))
    else:
        model = right.clone(attention=dict(right.attention) | dict(scale=None))
    logits = quick_jit(lambda p: model.apply(p, both.x))(both.params)
    assert np.abs(logits - both.logits).max() > 1e-4


NO_IMAGES = dict(stem="tokens", image_size=None, in_channels=6)
SMALL = dict(num_classes=3, image_size=8, heads=2)


def build(name="columnar", **options):
    return models.build(name, "1-16", **SMALL | options)


def shapes_of(model):
    frame = (8, 8, 3) if model.stem == "sps" else (5, model.in_channels)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *frame)))


# --- float32 --------------------------------------------------------------------------


def test_each_layer_in_float32_agrees_on_the_input_of_the_other(x64, folded, quick_jit):
    """Not from end to end: a flipped spike would be followed by others."""
    double = folded("images")
    model = double.model.clone(dtype=jnp.dtype("float32"))
    variables = jax.tree.map(lambda x: x.astype(jnp.float32), double.variables)
    small, params = models.fold(model, variables)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"float32"}
    x = double.x.astype(jnp.float32)

    def trace(model, variables, feed=None):
        """({layer: input}, {BN: output}, logits), with the inputs of `feed`."""
        inputs, outputs = {}, {}

        def see(call, args, kwargs, context):
            name = "/".join(context.module.path)
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            if isinstance(context.module, nn.Dense | nn.Conv | FoldedHead):
                args = (feed[name] if feed else args[0], *args[1:])
                inputs[name] = args[0]
            y = call(*args, **kwargs)
            if isinstance(context.module, BatchNorm):
                outputs[name] = y
            elif name == "block_0/out_neuron":
                inputs["spikes"] = y
            return y

        with nn.intercept_methods(see):
            logits = model.apply(variables, x)
        return inputs, outputs | {"head": logits}

    @quick_jit
    def both(variables, params):
        inputs, want = trace(model, variables)
        inputs["head"] = inputs["spikes"]  # before the mean
        return want, trace(small, params, inputs)[1]

    want, got = jax.device_get(both(variables, params))
    assert got.keys() == want.keys() and len(got) == 5 + 6 + 1
    for name, y in want.items():
        assert y.dtype == np.float32
        np.testing.assert_allclose(
            got[name], y, rtol=0, atol=1e-5 * np.abs(y).max(), err_msg=name
        )


def test_float32_is_folded_in_float64():
    """So that a number is rounded once, at the end."""
    model = models.build("columnar", "1-8", num_classes=2, heads=1, **NO_IMAGES)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1, 6)))
    variables = jax.tree.map(
        lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), shapes
    )
    _, params = models.fold(model, variables, tokens=1)
    norm, layer = (
        variables["params"]["stem"]["bn"],
        variables["params"]["stem"]["linear"],
    )
    stats = variables["batch_stats"]["stem"]["bn"]
    factor = norm["scale"] / np.sqrt(stats["var"].astype(np.float64) + 1e-5)
    kernel = (layer["kernel"] * factor).astype(np.float32)
    bias = (norm["bias"] - stats["mean"] * factor).astype(np.float32)
    np.testing.assert_array_equal(params["params"]["stem"]["linear"]["kernel"], kernel)
    np.testing.assert_array_equal(params["params"]["stem"]["bn"]["bias"], bias)


def test_in_bfloat16_the_bias_goes_onto_a_membrane_in_float32():
    model = build(dtype="bfloat16")
    model, params = models.fold(model, shapes_of(model))
    seen = {}

    def see(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if context.method_name == "__call__" and hasattr(y, "dtype"):
            seen.setdefault(type(context.module).__name__, set()).add(str(y.dtype))
        return y

    def run(params):
        with nn.intercept_methods(see):
            return model.apply(params, jnp.zeros((1, 8, 8, 3)))

    logits = jax.eval_shape(run, params)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"float32"}
    assert seen["Conv"] == seen["Dense"] == seen["LIF"] == {"bfloat16"}
    assert seen["BatchNorm"] == {"float32"} and logits.dtype == jnp.float32


# --- shapes alone, and what is refused ------------------------------------------------


@pytest.mark.parametrize("name", registry.MODELS)
def test_shapes_fold_without_numbers(name):
    model = build(name)
    shapes = shapes_of(model)
    _, params = models.fold(model, shapes)
    zeros = jax.tree.map(lambda s: jnp.ones(s.shape, s.dtype), shapes)
    _, numbers = models.fold(model, zeros)
    assert jax.tree.all(
        jax.tree.map(
            lambda s, x: (
                isinstance(s, jax.ShapeDtypeStruct)
                and (s.shape, s.dtype) == (x.shape, x.dtype)
            ),
            params,
            numbers,
        )
    )
    traced = jax.eval_shape(lambda v: models.fold(model, v)[1], shapes)
    assert traced == params


def dropped(name):
    def change(flat):
        del flat[name]

    return change


def put(name, shape):
    def change(flat):
        flat[name] = jax.ShapeDtypeStruct(shape, jnp.float32)

    return change


REFUSED = {  # options of build, change of the flat variables, of fold, words
    "order": ({}, None, dict(head="sums"), ["head", "'sums'", "'counts'"]),
    "no tokens": (
        NO_IMAGES,
        None,
        {},
        ["number of tokens", "tokens=N", "'mean'"],
    ),
    "no token": (NO_IMAGES, None, dict(tokens=0), ["tokens is 0", ">= 1"]),
    "tokens of images": ({}, None, dict(tokens=9), ["got 9 tokens", "4"]),
    "a statistic missing": (
        {},
        dropped("batch_stats/stem/bn_1/var"),
        {},
        ["missing ['batch_stats/stem/bn_1/var']"],
    ),
    "superfluous": (
        {},
        put("params/block_0/attention/q_linear/bias", (16,)),
        {},
        ["superfluous ['params/block_0/attention/q_linear/bias']"],
    ),
    "shape": (
        {},
        put("params/block_0/mlp/fc1_bn/scale", (16,)),
        {},
        ["params/block_0/mlp/fc1_bn/scale is (16,), expected (64,)"],
    ),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_does_not_fit_is_named(wrong):
    options, change, how, words = REFUSED[wrong]
    model = build(**options)
    flat = names(shapes_of(model))
    if change:
        change(flat)
    with pytest.raises(ValueError) as error:
        models.fold(model, traverse_util.unflatten_dict(flat, sep="/"), **how)
    message = str(error.value)
    assert message.startswith("fold: ") and "\n" not in message
    assert [word for word in words if word not in message] == [], message


@pytest.fixture(scope="module")
def small():
    """(folded model, shapes of its parameters)."""
    model = build()
    return models.fold(model, shapes_of(model))


def test_a_folded_model_is_not_folded_again(small):
    with pytest.raises(ValueError, match="fold: got a model folded already"):
        models.fold(*small)


@pytest.mark.parametrize(
    "shape, options, words",
    [
        ((2, 8, 8, 3), dict(train=True), "got train=True, expected False"),
        ((2, 3, 8, 8, 3), {}, "got 3 frames, expected timesteps = 4"),
    ],
)
def test_calls_of_a_folded_model_that_are_refused(small, shape, options, words):
    model, params = small
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda p: model.apply(p, jnp.zeros(shape), **options), params)


def test_a_folded_model_takes_any_length_step_by_step(small):
    model, params = small
    x = jnp.zeros((2, 3, 8, 8, 3))
    out = jax.eval_shape(lambda p: model.apply(p, x, per_step=True), params)
    assert out.shape == (2, 3, 3)


def test_a_folded_head_knows_its_number_of_tokens():
    model = build(**NO_IMAGES)
    model, params = models.fold(model, shapes_of(model), tokens=5)
    for n, good in ((5, True), (6, False)):
        x = jnp.zeros((2, n, 6))
        if good:
            assert jax.eval_shape(model.apply, params, x).shape == (2, 3)
        else:
            with pytest.raises(ValueError, match="got 6 tokens, expected 5"):
                jax.eval_shape(model.apply, params, x)


@pytest.mark.parametrize(
    "norm, layer",
    [
        ("q_bn", "q_linear"),
        ("rpe_bn", "rpe_conv"),
        ("bn_2", "conv_2"),
        ("bn", "linear"),
    ],
)
def test_norms_and_what_they_follow_go_by_name(norm, layer):
    params = {
        ("a", norm, "scale"): jnp.ones(3),
        ("a", layer, "kernel"): np.ones((2, 3)),
    }
    assert partner(("a", norm), params) == ("a", layer)
    params["a", layer, "kernel"] = np.ones((3, 2))
    with pytest.raises(ValueError, match=rf"a/{norm} is \(3,\) wide, expected \(2,\)"):
        partner(("a", norm), params)
    del params["a", layer, "kernel"]
    with pytest.raises(
        ValueError, match=f"a/{norm} has nothing in front of it.*{layer}"
    ):
        partner(("a", norm), params)

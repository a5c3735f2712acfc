"""A folded model gives what the trained one gives, in float64 to the last spike."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from a2os2a_jax import models
from a2os2a_jax.analysis import audit
from a2os2a_jax.models.fold import partner
from a2os2a_jax.modules.neuron import Neuron
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
    "tokens": (TOKENS | dict(attention=dict(order="q_kv"), timesteps=3), "counts"),
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
        | dict(
            neuron=dict(decay_input=True, soft_reset=True, v_th=0.5, detach_reset=False)
        ),
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
        DRIVEN | dict(pool="0001", neuron=dict(v_th=0.7), static=True, timesteps=3),
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
        self.static = static = options.pop("static", False)
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

    def fold(self, variables, head="spikes", **how):
        how = dict(head=head, tokens=self.tokens) | how
        return models.fold(self.model, variables, **how)


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


# --- step by step, without the product with T -----------------------------------------


@pytest.mark.parametrize(
    ("name", "head"), [("tokens", "bits"), ("spike_driven", "spikes")]
)
def test_folded_for_single_steps_it_gives_the_same_by_additions(
    x64, folded, quick_jit, name, head
):
    both = folded(name)
    model, params = both.fold(both.variables, head, per_step=True)
    assert (model.timesteps, model.folded_steps) == (3, 1)

    def whole(params, x):
        return model.apply(params, x, per_step=True)

    def step(params, state, frame):
        return model.stream(params)[1](state, frame)

    same(quick_jit(whole)(params, both.x), both.per_step)
    init, _ = model.stream(params)
    state = jax.eval_shape(lambda: init(8, both.tokens))
    state = start = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), state)
    run = quick_jit(step)
    for t in range(3):
        frame = both.x if both.static else both.x[:, t]
        state, logits = run(params, state, frame)
        same(logits, both.per_step[:, t])

    for fn, inputs in ((whole, [both.x]), (step, [start, frame])):
        report = audit.certify(fn, params, *inputs, allow=("input",))
        assert report.addition_only, str(report)
        assert {o.path.split("/")[0] for o in report.products} == {"stem"}


def test_folded_for_whole_sequences_a_single_step_is_multiplied_by_their_length(
    x64, folded
):
    both = folded("tokens")

    def run(params, x):
        return both.folded.apply(params, x, per_step=True)

    report = audit.certify(run, both.params, both.x, allow=("input",))
    assert {o.path for o in report.refused} == {"head"}
    assert "times 3" in str(report)


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


@pytest.mark.parametrize("name", ["images", "spike_driven", "decayed input", "sqrt"])
def test_each_layer_in_float32_agrees_on_the_same_input(x64, folded, quick_jit, name):
    """Not from end to end: a flipped spike would be followed by others.

    A layer is what lies between two neurons, or a neuron and the end of a BN; its
    output is measured by the threshold where it reaches a neuron. All are fed the
    spikes of the unfolded model in float64.
    """
    double = folded(name)
    model = double.model.clone(dtype=jnp.dtype("float32"))
    variables = jax.tree.map(lambda x: x.astype(jnp.float32), double.variables)
    small, params = models.fold(model, variables, tokens=double.tokens)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"float32"}
    x = double.x.astype(jnp.float32)
    spikes = {name: s.astype(np.float32) for name, s in double.spikes.items()}

    def outputs(model, variables):
        """{BN, neuron or head: what it gives, is given, or gives}."""
        found = {}

        def see(call, args, kwargs, context):
            module, name = context.module, "/".join(context.module.path)
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            if isinstance(module, Neuron):
                tau = module.tau if module.decay_input else 1
                found[name] = args[0] / (tau * module.v_th)
                return spikes[name]
            y = call(*args, **kwargs)
            if isinstance(module, BatchNorm):
                found[name] = y
            return y

        with nn.intercept_methods(see):
            logits = model.apply(variables, x)
        return found | {"head": logits}

    both = quick_jit(lambda v, p: (outputs(model, v), outputs(small, p)))
    want, got = jax.device_get(both(variables, params))
    norms = {n for n in names(variables["params"]) if n.endswith("/scale")}
    assert got.keys() == want.keys()
    assert len(got) == len(norms) + len(spikes) + 1
    for layer, y in want.items():
        assert y.dtype == got[layer].dtype == np.float32
        np.testing.assert_allclose(
            got[layer], y, rtol=0, atol=1e-5 * np.abs(y).max(), err_msg=layer
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


@pytest.mark.parametrize("name", ["columnar", "spike_driven"])
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


def put(name, leaf):
    """A tuple is a shape alone, in float32."""

    def change(flat):
        struct = isinstance(leaf, tuple)
        flat[name] = jax.ShapeDtypeStruct(leaf, jnp.float32) if struct else leaf

    return change


NORM = "params/stem/bn_1/scale"


REFUSED = {  # options of build, change of the flat variables, of fold, words
    "order": ({}, None, dict(head="sums"), ["head", "'sums'", "'counts'"]),
    "no tokens": (
        NO_IMAGES,
        None,
        {},
        ["number of tokens", "tokens=N", "'mean'"],
    ),
    "no token": (NO_IMAGES, None, dict(tokens=0), ["tokens is 0", ">= 1"]),
    "true tokens": (NO_IMAGES, None, dict(tokens=True), ["tokens is True", ">= 1"]),
    "half a token": (NO_IMAGES, None, dict(tokens=2.5), ["tokens is 2.5", ">= 1"]),
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
    "a list": ({}, put(NORM, [1.0] * 4), {}, [f"{NORM} is a list", "an array (4,)"]),
    "none": ({}, put(NORM, None), {}, [f"{NORM} is a NoneType", "an array (4,)"]),
    "not a number": (
        {},
        put(NORM, np.array([1, np.nan, 1, -np.inf], np.float32)),
        {},
        [f"{NORM} has 2 entries that are NaN or infinite", "finite"],
    ),
    "no name": ({}, put("params/0", (4,)), {}, ["superfluous ['params/0']"]),
    "double": (
        {},
        put(NORM, np.ones(4)),
        {},
        [f"{NORM} is float64, expected float32"],
    ),
    "half": (
        dict(dtype="bfloat16"),
        put(NORM, jnp.ones(4, jnp.bfloat16)),
        {},
        [f"{NORM} is bfloat16, expected float32"],
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


def test_arguments_that_are_no_model_or_no_variables_are_named():
    model = build()
    with pytest.raises(
        ValueError, match="^fold: got a dict as model, expected .*build"
    ):
        models.fold(shapes_of(model), model)
    for nothing, kind in ((None, "NoneType"), ([], "list"), (model, "Columnar")):
        with pytest.raises(
            ValueError, match=f"^fold: got a {kind} as variables, expected a mapping"
        ):
            models.fold(model, nothing)


def test_any_integer_is_a_number_of_tokens():
    model = build(**NO_IMAGES)
    shapes = shapes_of(model)
    want, _ = models.fold(model, shapes, tokens=5)
    got, _ = models.fold(model, shapes, tokens=np.int64(5))
    assert got == want and type(got.tokens) is int


@pytest.mark.parametrize("loose", [False, True])
@pytest.mark.parametrize(
    "neuron", [dict(soft_reset=True, v_th=0.2), dict(v_reset=-0.3)]
)
def test_a_folded_model_resets_without_products(neuron, loose):
    """Whatever the gradient went through in training."""
    model = build(neuron=neuron | dict(detach_reset=not loose))
    model, params = models.fold(model, shapes_of(model))
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    report = audit.certify(model.apply, params, x, allow=("input",))
    assert report.addition_only, str(report)
    assert [o.path for o in report.products] == ["stem/conv_0"]


@pytest.fixture(scope="module")
def small():
    """small(**how) -> (folded model, shapes of its parameters)."""
    model = build()
    shapes = shapes_of(model)
    return functools.cache(lambda **how: models.fold(model, shapes, **how))


def test_a_folded_model_is_not_folded_again(small):
    with pytest.raises(ValueError, match="fold: got a model folded already"):
        models.fold(*small())


@pytest.mark.parametrize(
    "shape, options, how, words",
    [
        ((2, 8, 8, 3), dict(train=True), {}, "got train=True, expected False"),
        ((2, 3, 8, 8, 3), {}, {}, "got 3 frames, expected 4,"),
        ((2, 3, 8, 8, 3), {}, dict(per_step=True), "got 3 frames, expected 1,"),
        ((2, 8, 8, 3), {}, dict(per_step=True), "got 4 frames, expected 1,"),
    ],
)
def test_calls_of_a_folded_model_that_are_refused(small, shape, options, how, words):
    model, params = small(**how)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda p: model.apply(p, jnp.zeros(shape), **options), params)


def test_a_folded_model_takes_any_length_step_by_step(small):
    model, params = small()
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

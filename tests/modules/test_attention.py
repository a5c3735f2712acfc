import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.functional import attention as products
from a2os2a_jax.interop import torch_weights
from a2os2a_jax.modules import attention, neuron

PREFIX = "blocks.0.attn."  # under which interop's table knows the module's names
NEURONS = {"q_lif": "q", "v_lif": "v", "attn_lif": "attention"}


def module(kind="a2os2a", *, dim=32, heads=4, dtype="float64", neurons=None, **options):
    return attention.SpikingSelfAttention(
        dim=dim,
        heads=heads,
        options=attention.resolve({"kind": kind} | options),
        neuron=neuron.resolve(neurons),
        dtype=jnp.dtype(dtype),
    )


def from_torch(state_dict):
    named = {PREFIX + name: value for name, value in state_dict.items()}
    tree = torch_weights.to_variables(named, dtype=jnp.float64)
    return {key: value["block_0"]["attention"] for key, value in tree.items()}


def to_torch(collection, tree, like):
    named = {PREFIX + name: value for name, value in like.items()}
    nested = {collection: {"block_0": {"attention": tree}}}
    flat = torch_weights.from_variables(nested, named)
    return {name.removeprefix(PREFIX): value for name, value in flat.items()}


def part(data, prefix):
    return {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}


def close(got, want, name=""):
    bound = 1e-9 if want.dtype == np.float64 else 2e-7  # float32 has rounded already
    atol = bound * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=name)


def steps_first(x):
    return np.asarray(x).swapaxes(0, 1)


@pytest.fixture(scope="module")
def reference(parity):
    """(data, {mode: everything we compute})."""
    data = parity("prim_a2os2a_attention_a")
    with jax.enable_x64(True):
        variables = from_torch(part(data, "sd/"))
        x, cotangent = (
            jnp.asarray(data[f"in/{key}"], jnp.float64).swapaxes(0, 1)
            for key in ("x", "cotangent")
        )

        def run(params, x, train):
            out, kept = module(neurons=dict(decay_input=True)).apply(
                variables | {"params": params},
                x,
                train,
                mutable=["spikes", "batch_stats", "intermediates"],
                capture_intermediates=True,
            )
            return (out * cotangent).sum(), (out, kept)

        grad = jax.value_and_grad(run, (0, 1), has_aux=True)
        both = jax.jit(lambda p, x: {m: grad(p, x, m == "train") for m in modes})
        modes = ("train", "eval")
        return data, jax.device_get(both(variables["params"], x))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_reference_is_reproduced(reference, mode):
    data, ours = reference
    (loss, (out, kept)), (grads, grad_x) = ours[mode]
    close(steps_first(out), data[f"{mode}/out"])
    close(loss, data[f"{mode}/loss"])
    close(steps_first(grad_x), data[f"{mode}/grad_x"])
    for theirs, name in NEURONS.items():
        (s,) = kept["spikes"][f"{name}_neuron"]["out"]
        np.testing.assert_array_equal(steps_first(s), data[f"{mode}/spk/{theirs}"])
        assert 0.02 < np.mean(s != 0) < 0.7
    for name in ("q_bn", "k_bn", "v_bn", "proj_bn"):
        (y,) = kept["intermediates"][name]["__call__"]
        close(steps_first(y), data[f"{mode}/act/{name}"], name)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_every_gradient_of_the_reference_is_reproduced(reference, mode):
    data, ours = reference
    _, (grads, _) = ours[mode]
    want = part(data, f"{mode}/grad/")
    got = to_torch("params", grads, want)
    zero = json.loads(str(data["meta"]))[mode]["grads_numerically_zero"]
    assert len(want) >= (13 if mode == "train" else 9)
    for name, value in want.items():
        if f"grad/{name}" in zero:
            np.testing.assert_allclose(got[name], 0, atol=1e-12)
        else:
            close(got[name], value, name)


def test_the_running_statistics_of_the_reference_are_reproduced(x64, reference):
    data, ours = reference
    (_, (_, kept)), _ = ours["train"]
    want = part(data, "train/sd_after/")
    got = to_torch("batch_stats", kept["batch_stats"], want)
    assert len(got) == 8
    for name, value in got.items():
        close(value, want[name], name)
    (_, (_, kept)), _ = ours["eval"]
    before = from_torch(part(data, "sd/"))["batch_stats"]
    chex.assert_trees_all_equal(kept["batch_stats"], before)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_spike_driven_block_is_reproduced(x64, parity, mode):
    """The public module has the neuron in front and the membrane shortcut in it."""
    data = parity("prim_sdt_sdsa_a")
    named = {f"block.0.attn.{k}": v for k, v in part(data, "sd/").items()}
    tree = torch_weights.to_variables(named, "spike_driven", jnp.float64)
    variables = {key: value["block_0"]["attention"] for key, value in tree.items()}
    rule = neuron.DEFAULTS | dict(decay_input=True, surrogate="sigmoid")
    layer, first = module("sdsa", neurons=rule), neuron.make("binary", rule)

    def tokens(x):  # [T, B, D, H, W] -> [B, T, N, D]
        x = jnp.asarray(x, jnp.float64).transpose(1, 0, 3, 4, 2)
        return x.reshape(*x.shape[:2], -1, x.shape[-1])

    @jax.jit
    def run(x):
        def forward(x):
            how = dict(mutable=["spikes", "batch_stats"])
            out, kept = layer.apply(
                variables, first.apply({}, x), mode == "train", **how
            )
            return ((out + x) * tokens(data["in/cotangent"])).sum(), (out + x, kept)

        return jax.value_and_grad(forward, has_aux=True)(x)

    (loss, (out, kept)), grad_x = run(tokens(data["in/x"]))
    for got, key in ((out, "out"), (grad_x, "grad_x")):
        want = data[f"{mode}/{key}"]
        assert want.dtype == np.float64
        close(got, np.asarray(tokens(want)), key)
    close(loss, data[f"{mode}/loss"])
    for name in ("q", "k", "v"):
        (s,) = kept["spikes"][f"{name}_neuron"]["out"]
        np.testing.assert_array_equal(s, tokens(data[f"{mode}/spk/{name}_lif"]))
    (s,) = kept["spikes"]["attention_neuron"]["out"]
    assert s.shape == (2, 4, 1, 32) and 0.02 < s.mean() < 0.7
    theirs = data[f"{mode}/spk/talking_heads_lif"].reshape(4, 2, 1, 32)  # heads, d
    np.testing.assert_array_equal(steps_first(s), theirs)


# --- alphabets and options ------------------------------------------------------------

KINDS = {  # options: alphabets of q, k and v, the scale, the product's own threshold
    "a2os2a": (dict(), ("binary", "relu", "ternary"), None, 1.0),
    "vssa": (dict(kind="vssa"), ("binary", "binary", "binary"), 0.125, 0.5),
    "k binary": (dict(k="binary"), ("binary", "binary", "ternary"), None, 1.0),
    "v binary": (dict(v="binary"), ("binary", "relu", "binary"), None, 1.0),
    "scaled": (dict(scale=0.25, v_th=0.75), ("binary", "relu", "ternary"), 0.25, 0.75),
}
VALUES = {"binary": {0, 1}, "ternary": {-1, 0, 1}}


def variables_of(layer, s):
    rng = np.random.default_rng(0)

    def leaf(path, want):
        kernel = path[-1].key == "kernel"
        value = rng.normal(0, 0.02, want.shape) if kernel else np.ones(want.shape)
        return jnp.asarray(value * (path[-1].key not in ("bias", "mean")), want.dtype)

    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), s, False))
    return jax.tree_util.tree_map_with_path(leaf, shapes)


@pytest.fixture(scope="module")
def spikes():
    draw = np.random.default_rng(1).uniform(size=(2, 2, 64, 32))
    return jnp.asarray(draw < 0.3, jnp.float32)


@pytest.mark.parametrize("name", KINDS)
def test_factors_have_the_alphabets_asked_for(monkeypatch, spikes, name):
    options, alphabets, scale, v_th = KINDS[name]
    layer = module(dim=32, heads=2, dtype="float32", **options)
    variables = variables_of(layer, spikes)
    calls, sound = [], products.a2os2a

    def spy(q, k, v, *rest):
        calls.append((q, k, v, sound(q, k, v, *rest)))
        return calls[-1][-1]

    monkeypatch.setattr(products, "a2os2a", spy)

    @jax.jit
    def run(s):
        _, kept = layer.apply(variables, s, True, mutable=["spikes", "batch_stats"])
        return calls.pop(), kept["spikes"]["attention_neuron"]["out"][0]

    (*factors, product), fired = jax.device_get(run(spikes))
    for x, alphabet in zip(factors, alphabets, strict=True):
        assert x.shape == (2, 2, 64, 2, 16)
        if alphabet == "relu":
            assert (x >= 0).all() and 0.3 < (x > 0).mean() < 0.7
            assert len(np.unique(x)) > 100
        else:
            assert set(np.unique(x)) == VALUES[alphabet]
    q, k, v = (x.astype(np.float64) for x in factors)
    want = np.einsum("btnhd,btmhd,btmhe->btnhe", q, k, v)
    np.testing.assert_allclose(product, want, rtol=1e-4, atol=1e-4)
    # From rest the membrane is the product.
    first = product.reshape(spikes.shape)[:, 0] * np.float32(scale or 1)
    np.testing.assert_array_equal(fired[:, 0], first >= v_th)
    assert 0.02 < fired.mean() < 0.99


def test_the_gain_of_k_scales_the_product_and_nothing_else(spikes):
    for gain in (1.0, 1 / 64):
        layer = module(dim=32, heads=2, dtype="float32", k_gain=gain)
        init = jax.jit(layer.init, static_argnums=2)
        params = init(jax.random.key(0, impl="unsafe_rbg"), spikes, False)["params"]
        for name in ("q_bn", "k_bn", "v_bn", "proj_bn"):
            want = gain if name == "k_bn" else 1.0
            np.testing.assert_array_equal(params[name]["scale"], np.full(32, want))


def test_resolve_completes_a_kind():
    assert (
        attention.resolve("a2os2a")
        == attention.resolve({})
        == dict(
            kind="a2os2a",
            q="binary",
            bias=None,
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
    )
    given = dict(kind="vssa", order="q_kv", scale=None)
    assert attention.resolve(given) == dict(
        kind="vssa",
        q="binary",
        bias=None,
        k="binary",
        v="binary",
        scale=0.125,
        v_th=0.5,
        order="q_kv",
        k_gain=1,
        normalise=None,
        freeze=None,
        projection=True,
    )
    assert given == dict(kind="vssa", order="q_kv", scale=None)
    assert attention.resolve("none") == dict(kind="none")
    unused = dict(kind="none", order="auto", k=None, k_gain=1.0)  # as configs have them
    assert attention.resolve(unused) == dict(kind="none")
    of_v = dict(v="ternary", v_th=None, freeze=None, projection=True, bias=None)
    for kind in ("uniform", "v_only"):
        assert attention.resolve(kind) == dict(kind=kind) | of_v
    assert attention.resolve("sdsa") == dict(
        kind="sdsa",
        q="binary",
        bias=None,
        dilate=False,
        k="binary",
        v="binary",
        v_th=0.5,
        k_gain=1,
        freeze=None,
        projection=True,
    )
    for kind, letters in (("frozen_qk", "qk"), ("frozen_v", "v")):
        got = attention.resolve(kind)
        assert got == attention.resolve("a2os2a") | dict(kind=kind, freeze=letters)
    shift = attention.resolve(dict(normalise="shiftmax"))
    assert (shift["scale"], shift["v_th"]) == (None, 0.5)
    sqrt = attention.resolve(dict(kind="vssa", normalise="sqrt"))
    assert (sqrt["scale"], sqrt["v_th"]) == (None, 0.5)


REFUSED = {
    "k of xnor": dict(kind="xnor", k="relu"),
    "q of qk_token": dict(kind="qk_token", q="ternary"),
    "scale and normalise": dict(scale=0.5, normalise="sqrt"),
    "normalise": dict(normalise="softmax"),
    "order of shiftmax": dict(normalise="shiftmax", order="q_kv"),
    "freeze": dict(freeze="x"),
    "freeze twice": dict(freeze="qq"),
    "freeze of what is not there": dict(kind="uniform", freeze="q"),
    "freeze of a frozen kind": dict(kind="frozen_qk", freeze="v"),
    "k of uniform": dict(kind="uniform", k="binary"),
    "scale of v_only": dict(kind="v_only", scale=0.5),
    "order of sdsa": dict(kind="sdsa", order="q_kv"),
    "v_th": dict(v_th="1"),
    "k_gain": dict(k_gain="1"),
    "q of reals": dict(q="relu"),
    "k of no kind": dict(k="real"),
    "alpha": dict(kind="xnor", alpha=0),
    "alpha elsewhere": dict(alpha=0.5),
    "chunk": dict(kind="statten", chunk=0),
    "half a chunk": dict(kind="statten", chunk=1.5),
    "levels": dict(kind="integer", levels=0),
    "levels elsewhere": dict(kind="ssa", levels=4),
    "integers without levels": dict(v="integer"),
    "patch": dict(kind="dssa", patch=0),
    "order of dssa": dict(kind="dssa", order="qk_v"),
    "bias": dict(bias="yes"),
    "dilate": dict(kind="sdsa", dilate="yes"),
    "dilate elsewhere": dict(dilate=True),
    "order of bsa": dict(kind="bsa", order="q_kv"),
    "shiftmax of statten": dict(kind="statten", normalise="shiftmax"),
    "shiftmax of xnor": dict(kind="xnor", normalise="shiftmax"),
    "v of sasa": dict(kind="sasa", v="binary"),
    "freeze of sasa": dict(kind="sasa", freeze="v"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_resolve_refuses(name):
    *_, (key, value) = REFUSED[name].items()
    with pytest.raises(ValueError) as error:
        attention.resolve(REFUSED[name])
    message = str(error.value)
    assert "\n" not in message and key in message and repr(value) in message, message


# --- controls: what is left of the product --------------------------------------------


def run(layer, variables, s):
    """(out, what the attention's neuron got, {neuron: spikes})."""
    got = []
    sound = neuron.make

    def spy(form, options, *, name, **how):
        made = sound(form, options, name=name, **how)
        return (
            made if name != "attention_neuron" else lambda x: got.append(x) or made(x)
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neuron, "make", spy)
        out, kept = layer.apply(variables, s, True, mutable=["spikes", "batch_stats"])
    return out, got[0], {k: v["out"][0] for k, v in kept["spikes"].items()}


@pytest.mark.parametrize("kind", ["uniform", "v_only"])
def test_controls_without_comparison_know_v_alone(spikes, kind):
    layer = module(kind, dim=32, heads=2, dtype="float32")
    variables = variables_of(layer, spikes)
    names = {"v_linear", "v_bn", "proj_linear", "proj_bn"}
    assert variables["params"].keys() == names
    out, product, fired = run(layer, variables, spikes)
    v = np.asarray(fired["v_neuron"])
    assert set(np.unique(v)) == {-1, 0, 1}
    want = v.sum(2, keepdims=True) + np.zeros_like(v) if kind == "uniform" else v
    np.testing.assert_array_equal(product, want)
    assert out.shape == spikes.shape and np.ptp(out) > 0.1


@pytest.mark.parametrize("how", ["sqrt", "pow2", "shiftmax"])
def test_a_normalised_product_is_what_it_says(spikes, how):
    plain = module(dim=32, heads=2, dtype="float32")
    layer = module(dim=32, heads=2, dtype="float32", normalise=how)
    variables = variables_of(layer, spikes)
    factors = []
    with pytest.MonkeyPatch.context() as patch:
        sound = products.a2os2a
        patch.setattr(products, "a2os2a", lambda *a: factors.extend(a) or sound(*a))
        _, whole, _ = run(plain, variables, spikes)
    _, product, _ = run(layer, variables, spikes)
    if how == "shiftmax":
        q, k, v, _ = factors
        scores = jnp.einsum("btnhd,btmhd->bthnm", q, k)
        want = jnp.einsum("bthnm,btmhd->btnhd", products.shiftmax(scores), v)
        np.testing.assert_allclose(product.reshape(want.shape), want, atol=1e-6)
        assert 0.2 < np.abs(product).max() <= 1
    else:
        scale = {"sqrt": 1 / 8, "pow2": 1 / 64}[how]  # 64 tokens
        np.testing.assert_array_equal(product, whole * scale)


def test_without_the_projection_the_spikes_go_on(spikes):
    layer = module(dim=32, heads=2, dtype="float32", projection=False)
    variables = variables_of(layer, spikes)
    assert not {"proj_linear", "proj_bn"} & variables["params"].keys()
    out, _, fired = run(layer, variables, spikes)
    np.testing.assert_array_equal(out, fired["attention_neuron"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_the_projection_sdsa_hands_on_the_masked_query(spikes, dtype):
    layer = module("sdsa", dim=32, heads=2, dtype=dtype, projection=False)
    variables = variables_of(layer, spikes.astype(dtype))
    out, sums, fired = run(layer, variables, spikes.astype(dtype))
    assert sums.dtype == out.dtype == jnp.float32
    q, k, v = (np.asarray(fired[f"{x}_neuron"], np.float32) for x in "qkv")
    np.testing.assert_array_equal(sums, (k * v).sum(2, keepdims=True))
    mask = np.asarray(fired["attention_neuron"], np.float32)
    assert mask.shape == (2, 2, 1, 32) and set(np.unique(mask)) == {0, 1}
    np.testing.assert_array_equal(out, q * mask)


FROZEN = {
    "frozen_qk": ("frozen_qk", {}, {"q", "k"}),
    "frozen_v": ("frozen_v", {}, {"v"}),
    "vssa, k": ("vssa", dict(freeze="k"), {"k"}),
    "v_only": ("v_only", dict(freeze="v"), {"v"}),
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_weights_get_no_gradient_and_their_norms_do(spikes, name):
    kind, options, still = FROZEN[name]
    layer = module(kind, dim=32, heads=2, dtype="float32", **options)
    variables = variables_of(layer, spikes)

    @jax.jit
    @jax.grad
    def gradient(params):
        both = variables | {"params": params}
        out, _ = layer.apply(both, spikes, True, mutable=["batch_stats"])
        return (out * jnp.sin(jnp.arange(out.size).reshape(out.shape))).sum()

    grads = gradient(variables["params"])
    for which in "qkv":
        if f"{which}_linear" in grads:
            moved = np.abs(grads[f"{which}_linear"]["kernel"]).max() > 0
            assert moved == (which not in still), which
            assert np.abs(grads[f"{which}_bn"]["scale"]).max() > 0
    patterns = attention.frozen(layer.options)
    assert set(patterns) == {f"{which}_linear/kernel" for which in still}


# --- what was written from the text: by hand, from the spikes of the module -----------


def heads(x):
    """[B, T, N, D] as [B, T, heads, N, d], of two heads of 16 channels."""
    return np.asarray(x, np.float64).reshape(*x.shape[:3], 2, 16).swapaxes(2, 3)


def statten(q, k, v):
    """T = 2 is one chunk: every query sees the 64 tokens of both steps."""
    both = zip(np.moveaxis(k, 1, 0), np.moveaxis(v, 1, 0), strict=True)
    context = sum(np.swapaxes(kt, -1, -2) @ vt for kt, vt in both)
    return q @ context[:, None] / np.sqrt(64)


def xnor(q, k, v, alpha=0.5):
    both = q @ np.swapaxes(k, -1, -2)
    neither = (1 - q) @ np.swapaxes(1 - k, -1, -2)
    return (both + alpha * neither) @ v / 8


def sdsa3(q, k, v):
    return q @ (np.swapaxes(k, -1, -2) @ v) / 8


def bsa(q, k, v):
    scores = q @ np.swapaxes(k, -1, -2)
    rows = np.log2((2.0**scores).sum(-1, keepdims=True))
    return 2.0 ** (scores - np.ceil(rows)) @ v


def integer(q, k, v):
    return q @ np.swapaxes(k, -1, -2) @ v / 4  # sqrt(16)


def sasa(q, k, v):
    return (q * k).sum(-2, keepdims=True)


def qk_channel(q, k, v):
    return q.sum(-2, keepdims=True)


BY_HAND = {  # kind: (what its neuron gets, threshold, what goes on, options)
    "statten": (statten, 0.5, None, {}),
    "xnor": (xnor, 7.5, None, dict(v_th=7.5)),
    "sdsa3": (sdsa3, 0.5, None, {}),
    "bsa": (bsa, 0.125, None, dict(v_th=0.125)),
    "integer": (integer, None, None, dict(scale=None)),
    "sasa": (sasa, 4.0, "q", dict(v_th=4.0)),
    "qk_channel": (qk_channel, 12.0, "k", dict(v_th=12.0)),
}


def fired_at(x, threshold):
    """Of a neuron with tau = 2 and a hard reset, over axis 1."""
    v, out = np.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = v / 2 + x[:, t]
        out.append(h >= threshold)
        v = np.where(out[-1], 0, h)
    return np.stack(out, 1)


def depthwise(kernel, s):
    """3x3 of the map of 8 x 8, zeros around it; then BN by the batch's statistics."""
    image = np.pad(s.reshape(4, 8, 8, 32), [(0, 0), (1, 1), (1, 1), (0, 0)])
    y = sum(
        image[:, i : i + 8, j : j + 8] * kernel[i, j, 0] for i, j in np.ndindex(3, 3)
    )
    y = (y - y.mean((0, 1, 2))) / np.sqrt(y.var((0, 1, 2)) + 1e-5)
    return y.reshape(s.shape)


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_kind_from_the_text_is_what_its_equation_says(spikes, kind):
    product, threshold, mask, options = BY_HAND[kind]
    layer = module(
        kind, dim=32, heads=2, dtype="float32", projection=False, **options
    ).clone(side=8)
    variables = variables_of(layer, spikes)
    jitted = jax.jit(lambda s: run(layer, variables, s))
    out, got, fired = jax.device_get(jitted(spikes))
    alphabet = {0, 1}
    if kind == "bsa":
        alphabet = {-1, 0, 1}
    elif kind == "integer":
        alphabet = {0, 1 / 4, 2 / 4, 3 / 4}
    parts = [fired.get(f"{x}_neuron") for x in "qkv"]
    q, k, v = (None if x is None else heads(x) for x in parts)
    rare = {1} if kind == "integer" else set()
    assert all(alphabet <= set(np.unique(x)) <= alphabet | rare for x in (q, k))
    assert (v is None) == (kind in ("sasa", "qk_channel"))
    want = product(q, k, v)
    np.testing.assert_allclose(heads(got), want, rtol=1e-5, atol=1e-5)
    s = fired["attention_neuron"]
    if threshold is None:  # an integer neuron, of which the first step is from rest
        first = np.clip(np.round(got[:, 0]), 0, 4) / 4
        np.testing.assert_array_equal(s[:, 0], first)
        assert len(np.unique(first)) > 1
    else:
        np.testing.assert_array_equal(s, fired_at(got, np.float32(threshold)))
        assert 0.02 < s.mean() < 0.9
    goes_on = s * (fired[f"{mask}_neuron"] if mask else 1)
    if kind == "sasa":
        kernel = np.asarray(variables["params"]["depth_conv"]["kernel"])
        branch = depthwise(kernel, np.asarray(spikes))
        assert np.abs(branch).max() > 0.5
        np.testing.assert_allclose(out - goes_on, branch, rtol=0, atol=1e-4)
    else:
        np.testing.assert_array_equal(out, goes_on)


def test_every_kind_from_the_text_is_done_by_hand():
    from_text = {
        n for n, kind in attention.KINDS.items() if kind.parity == "from the text"
    }
    assert from_text == BY_HAND.keys()

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.modules import neuron
from a2os2a_jax.modules.dssa import DSSA, KEEP, fold_scales, scale
from tests.compiling import quick_options

RESFORMER = neuron.resolve(dict(decay_input=True))
KEPT = ["spikes", "batch_stats"]
RATES = dict(x_rate="firing_rate_x", a_rate="firing_rate_attn")
SPIKING = dict(attention_neuron="activation_attn", out_neuron="activation_out")
NORMS = dict(y_bn="norm.bn", proj_bn="norm_proj.bn")
KERNELS = dict(y_conv="W", proj_linear="Wproj")


def part(data, prefix):
    return {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}


def close(got, want, name=""):
    bound = 1e-9 if want.dtype == np.float64 else 2e-7  # float32 has rounded already
    atol = bound * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=name)


def tokens(x):
    """[T, B, C, H, W] as [B, T, N, C]."""
    x = np.asarray(x, np.float64)
    return jnp.asarray(x.reshape(*x.shape[:3], -1).transpose(1, 0, 3, 2))


def theirs(x, like):
    """[B, T, N, C] as [T, B, C, H, W]; [B, T, heads, M, N] with the steps first."""
    x = np.asarray(x).swapaxes(0, 1)
    return x if x.shape == like.shape else np.moveaxis(x, -1, 2).reshape(like.shape)


def from_torch(sd):
    sd = {name: np.asarray(value, np.float64) for name, value in sd.items()}
    params = {
        "y_conv": {"kernel": sd["W.weight"].transpose(2, 3, 1, 0)},
        "proj_linear": {"kernel": sd["Wproj.weight"][:, :, 0, 0].T},
    }
    stats = {ours: sd[name].reshape(-1) for ours, name in RATES.items()}
    for ours, name in NORMS.items():
        params[ours] = {"scale": sd[f"{name}.weight"], "bias": sd[f"{name}.bias"]}
        mean, var = sd[f"{name}.running_mean"], sd[f"{name}.running_var"]
        stats[ours] = {"mean": mean, "var": var}
    return jax.tree.map(jnp.asarray, {"params": params, "batch_stats": stats})


def module(dtype="float64", **changes):
    how = dict(dim=32, heads=4, side=4, patch=2, neuron=RESFORMER) | changes
    return DSSA(**how, dtype=jnp.dtype(dtype))


def with_block(variables, u, train, layer):
    """(U + DSSA(SN(U)), what the neuron in front and DSSA keep)."""
    first = neuron.make("binary", RESFORMER, dtype=layer.dtype)
    s = first.apply({}, u)
    out, kept = layer.apply(variables, s, train, mutable=KEPT)
    return u + out, (s, kept)


@pytest.fixture(scope="module")
def reference(parity):
    """(data, variables, {mode: (((loss, (out, s, kept)), (gradients, grad_x)))})."""
    data = parity("prim_resformer_dssa_a")
    with jax.enable_x64(True):
        variables = from_torch(part(data, "sd/"))
        x, cotangent = tokens(data["in/x"]), tokens(data["in/cotangent"])

        def run(params, x, stats, train):
            both = {"params": params, "batch_stats": stats}
            out, kept = with_block(both, x, train, module())
            return (out * cotangent).sum(), (out, kept)

        grad = jax.value_and_grad(run, (0, 1), has_aux=True)
        compiled = jax.jit(grad, static_argnums=3, compiler_options=quick_options())
        stats = variables["batch_stats"]
        zero = stats | {name: jnp.zeros(4) for name in RATES}
        run = functools.partial(compiled, variables["params"], x)
        results = {
            "train": run(stats, True),
            "eval": run(stats, False),
            "train_from_zero_rates": run(zero, True),
        }
        return data, variables, jax.device_get(results)


@pytest.mark.parametrize("mode", ["train", "eval", "train_from_zero_rates"])
def test_the_reference_is_reproduced(reference, mode):
    data, variables, ours = reference
    (loss, (out, (s, kept))), (grads, grad_x) = ours[mode]
    close(theirs(out, data[f"{mode}/out"]), data[f"{mode}/out"])
    close(theirs(grad_x, data[f"{mode}/grad_x"]), data[f"{mode}/grad_x"])
    if f"{mode}/loss" in data:
        close(loss, data[f"{mode}/loss"])
        want = part(data, f"{mode}/spk/")
        got = {SPIKING[n]: kept["spikes"][n]["out"][0] for n in kept["spikes"]}
        got |= {"activation_in": s}
        assert set(got) == set(want) and all(
            0.02 < x.mean() < 0.7 for x in got.values()
        )
        for name, x in want.items():
            np.testing.assert_array_equal(theirs(got[name], x), x, name)
    weights = part(data, f"{mode}/grad/")
    got = {}
    for ours_, name in NORMS.items():
        got[f"{name}.weight"], got[f"{name}.bias"] = (
            grads[ours_][key] for key in ("scale", "bias")
        )
    got["W.weight"] = grads["y_conv"]["kernel"].transpose(3, 2, 0, 1)
    got["Wproj.weight"] = grads["proj_linear"]["kernel"].T[:, :, None, None]
    assert len(weights) == {"train": 6, "eval": 4}.get(mode, 0)
    for name, want in weights.items():
        close(got[name], want, name)


@pytest.mark.parametrize("mode", ["train", "eval", "train_from_zero_rates"])
def test_statistics_and_rates_move_in_training_alone(reference, mode):
    data, variables, ours = reference
    stats = ours[mode][0][1][1][1]["batch_stats"]
    if mode == "eval":
        old = variables["batch_stats"]
        chex.assert_trees_all_equal(stats, old)
        return
    want = part(data, f"{mode}/sd_after/")
    for ours_, name in RATES.items():
        assert np.ptp(want[name]) > 0
        close(stats[ours_], want[name].reshape(-1), name)
    for ours_, name in NORMS.items():
        for key in ("mean", "var"):
            if f"{name}.running_{key}" in want:
                close(stats[ours_][key], want[f"{name}.running_{key}"], name)
    assert len(want) == (8 if mode == "train" else 2)


# --- without a reference --------------------------------------------------------------


def spikes(shape, rate=0.3, dtype="float32", seed=0):
    return jnp.asarray(np.random.default_rng(seed).random(shape) < rate, dtype)


def variables_of(layer, s, rates=0.2, seed=0):
    rng = np.random.default_rng(seed)

    def leaf(path, want):
        name = path[-1].key
        if name.endswith("_rate"):
            value = rates * (1 + np.arange(want.size))
        else:
            value = rng.normal(0, 0.3, want.shape) + 1.5 * (name in ("scale", "var"))
        return jnp.asarray(value, want.dtype)

    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), s, True))
    return jax.tree_util.tree_map_with_path(leaf, shapes)


def small(dtype="float32", **changes):
    return module(dtype, **(dict(dim=8, heads=2) | changes))


@pytest.fixture(scope="module")
def case():
    """(layer, variables, spikes)."""
    layer, s = small(), spikes((2, 3, 16, 8))
    return layer, variables_of(layer, s), s


def test_it_computes_what_it_says(case):
    """Against loops in numpy, with neurons that see the loop's sums."""
    layer, variables, s = case
    sums, sound = {}, neuron.make

    def spy(form, options, *, name, **how):
        made = sound(form, options, name=name, **how)
        return lambda x: sums.update({name: x}) or made(x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neuron, "make", spy)
        _, kept = layer.apply(variables, s, False, mutable=KEPT)
    p, stats = jax.device_get((variables["params"], variables["batch_stats"]))
    kernel = np.asarray(p["y_conv"]["kernel"], np.float64)  # [2, 2, 8, 16]
    image = np.asarray(s, np.float64).reshape(2, 3, 4, 4, 8)
    y = np.zeros((2, 3, 2, 2, 16))
    for i, j in np.ndindex(2, 2):
        patch_ = image[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
        y[:, :, i, j] = np.einsum("btuvc,uvco->bto", patch_, kernel)
    gain = p["y_bn"]["scale"] / np.sqrt(stats["y_bn"]["var"] + 1e-5)
    y = (y - stats["y_bn"]["mean"]) * gain + p["y_bn"]["bias"]
    y = y.reshape(2, 3, 4, 2, 8)  # keys, heads, y1 and y2
    a = np.asarray(kept["spikes"]["attention_neuron"]["out"][0])
    assert a.shape == (2, 3, 2, 4, 16) and 0.02 < a.mean() < 0.98
    for h, x_rate, a_rate in ((0, 0.2, 0.2), (1, 0.4, 0.4)):
        mine = np.asarray(s)[..., 4 * h : 4 * h + 4]
        scores = np.einsum("btmd,btnd->btmn", y[:, :, :, h, :4], mine)
        want = scores / np.sqrt(x_rate * 4)
        got = sums["attention_neuron"][:, :, h]
        np.testing.assert_allclose(got, want, atol=1e-5)
        out = np.einsum("btmn,btmd->btnd", a[:, :, h], y[:, :, :, h, 4:])
        got = sums["out_neuron"][..., 4 * h : 4 * h + 4]
        np.testing.assert_allclose(got, out / np.sqrt(a_rate * 4), atol=1e-5)


def test_a_rate_keeps_most_of_what_it_was(case):
    layer, variables, s = case

    def stats(variables):
        return layer.apply(variables, s, True, mutable=KEPT)[1]["batch_stats"]

    now = np.asarray(s).reshape(2, 3, 16, 2, 4).mean((0, 1, 2, 4))
    old = variables["batch_stats"]
    got = stats(variables)["x_rate"]
    np.testing.assert_allclose(got, KEEP * old["x_rate"] + (1 - KEEP) * now, rtol=1e-6)
    # All zero: the rate itself. One of two: that head has never fired, and goes slowly.
    for start, want in (([0, 0], now), ([0.2, 0], [0.999 * 0.2, 0] + 0.001 * now)):
        held = variables | {"batch_stats": old | {"x_rate": jnp.asarray(start, "f4")}}
        np.testing.assert_allclose(stats(held)["x_rate"], want, rtol=1e-5)


def test_initialising_moves_no_rate(case):
    layer, _, s = case
    init = jax.jit(layer.init, static_argnums=2, compiler_options=quick_options())
    made = init(jax.random.key(0), s, True)
    for name in RATES:
        assert made["batch_stats"][name].shape == (2,)
        assert not made["batch_stats"][name].any()


def test_what_never_fired_has_the_scale_one(case):
    layer, variables, s = case
    np.testing.assert_allclose(scale(np.array([0.0, 0.25]), 16), [1, 0.5])
    silent = jnp.zeros_like(s)
    zero = {name: jnp.zeros(2) for name in RATES}
    variables = variables | {"batch_stats": variables["batch_stats"] | zero}
    for train in (False, True):
        out, kept = layer.apply(variables, silent, train, mutable=KEPT)
        assert np.isfinite(out).all()
    assert not kept["batch_stats"]["x_rate"].any()


@pytest.mark.parametrize("rates", [0.2, 0.0])
def test_the_scales_fold_into_the_convolution(case, rates):
    layer, variables, s = case
    variables = variables_of(layer, s, rates)
    want, kept = layer.apply(variables, s, False, mutable=KEPT)
    p, stats = variables["params"], variables["batch_stats"]

    def without_norm(bn, kernel):
        factor = p[bn]["scale"] / np.sqrt(stats[bn]["var"] + 1e-5)
        bias = p[bn]["bias"] - stats[bn]["mean"] * factor
        return kernel * factor.reshape((1,) * (kernel.ndim - 1) + (-1,)), bias

    kernel, bias = fold_scales(
        *without_norm("y_bn", p["y_conv"]["kernel"]),
        stats["x_rate"],
        stats["a_rate"],
        keys=4,
    )
    folded = {"y_conv": {"kernel": kernel}, "y_bn": {"bias": bias}}
    kernel, bias = without_norm("proj_bn", p["proj_linear"]["kernel"])
    folded |= {"proj_linear": {"kernel": kernel}, "proj_bn": {"bias": bias}}
    inference = small(folded=True)
    got, sown = inference.apply({"params": folded}, s, False, mutable=KEPT)
    chex.assert_trees_all_equal(sown["spikes"], kept["spikes"])
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert "batch_stats" not in sown
    shapes = jax.eval_shape(inference.init, jax.random.key(0), s, False)
    assert jax.tree.map(jnp.shape, dict(shapes)) == jax.tree.map(
        jnp.shape, {"params": folded}
    )


def test_the_fold_takes_numpy_in_its_own_precision():
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(2, 2, 4, 8)), rng.normal(size=8)
    x_rate, a_rate = np.array([0.1, 0.3]), np.array([0.25, 0.0])
    got = fold_scales(kernel, bias, x_rate, a_rate, keys=16)
    first, second = 1 / np.sqrt(x_rate * 2), [0.5, 1.0]
    factor = np.repeat([first[0], second[0], first[1], second[1]], 2)
    assert all(isinstance(x, np.ndarray) and x.dtype == np.float64 for x in got)
    np.testing.assert_allclose(got[0], kernel * factor, rtol=1e-15)
    np.testing.assert_allclose(got[1], bias * factor, rtol=1e-15)


@pytest.mark.parametrize("wrong", ["a_rate", "bias", "kernel"])
def test_a_fold_of_other_sizes_is_refused(wrong):
    sizes = dict(kernel=(2, 2, 4, 8), bias=(8,), x_rate=(2,), a_rate=(2,))
    sizes[wrong] = {"kernel": (2, 2, 4, 6)}.get(wrong, (3,))
    with pytest.raises(ValueError, match="fold_scales: got kernel"):
        fold_scales(**{name: np.ones(shape) for name, shape in sizes.items()}, keys=4)


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((1, 1, 15, 8), {}, r"spikes \(1, 1, 15, 8\), expected \[B, T, 16, 8\]"),
        ((1, 1, 16, 4), {}, r"expected \[B, T, 16, 8\], a map of side 4"),
        ((1, 1, 9, 8), dict(side=3), "side is 3, expected a multiple of the patch, 2"),
        ((1, 1, 16, 8), dict(heads=3), "dim is 8, expected a multiple of 3 heads"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(shape, changes, message):
    with pytest.raises(ValueError, match=f"DSSA: .*{message}"):
        jax.eval_shape(
            small(**changes).init, jax.random.key(0), jnp.zeros(shape), False
        )


def test_bfloat16_keeps_membranes_and_rates_in_float32(case):
    s = spikes((2, 3, 16, 8), dtype="bfloat16")
    layer = small("bfloat16")
    variables = variables_of(layer, s)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("f4")}
    out, kept = layer.apply(variables, s, True, mutable=KEPT)
    assert out.dtype == jnp.float32
    assert kept["batch_stats"]["a_rate"].dtype == jnp.float32
    kinds = {leaf.dtype for leaf in jax.tree.leaves(kept["spikes"])}
    assert kinds == {jnp.dtype("bfloat16")}

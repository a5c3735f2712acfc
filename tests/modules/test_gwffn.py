import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.modules import neuron
from a2os2a_jax.modules.gwffn import GWFFN
from tests.compiling import quick_options

RESFORMER = neuron.resolve(dict(decay_input=True))
KEPT = ["spikes", "batch_stats"]
LAYERS = {"up": "up", "group": "conv.0", "down": "down"}  # ours, theirs
SPIKING = {"group_neuron": "conv.0.0", "down_neuron": "down.0"}


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
    """[B, T, N, C] as [T, B, C, H, W]."""
    return np.moveaxis(np.asarray(x).swapaxes(0, 1), -1, 2).reshape(like.shape)


def kernel_name(layer):
    return "group_conv" if layer == "group" else f"{layer}_linear"


def from_torch(sd):
    params, stats = {}, {}
    for ours, name in LAYERS.items():
        kernel = sd[f"{name}.1.weight"].transpose(2, 3, 1, 0)
        kernel = kernel if ours == "group" else kernel[0, 0]
        params[kernel_name(ours)] = {"kernel": kernel}
        scale, bias = sd[f"{name}.2.bn.weight"], sd[f"{name}.2.bn.bias"]
        params[f"{ours}_bn"] = {"scale": scale, "bias": bias}
        running = {key: sd[f"{name}.2.bn.running_{key}"] for key in ("mean", "var")}
        stats[f"{ours}_bn"] = running
    both = {"params": params, "batch_stats": stats}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), both)


def module(dtype="float64", **changes):
    how = dict(side=4, ratio=4, group_size=16, neuron=RESFORMER) | changes
    return GWFFN(**how, dtype=jnp.dtype(dtype))


@pytest.fixture(scope="module")
def reference(parity):
    """(data, variables, {mode: everything of U + GWFFN(SN(U))})."""
    data = parity("prim_resformer_gwffn_a")
    with jax.enable_x64(True):
        variables = from_torch(part(data, "sd/"))
        x, cotangent = tokens(data["in/x"]), tokens(data["in/cotangent"])

        def run(params, x, train):
            s = neuron.make("binary", RESFORMER, dtype=x.dtype).apply({}, x)
            both = variables | {"params": params}
            out, kept = module().apply(both, s, train, mutable=KEPT)
            return ((x + out) * cotangent).sum(), (x + out, s, kept)

        grad = jax.value_and_grad(run, (0, 1), has_aux=True)
        compiled = jax.jit(grad, static_argnums=2, compiler_options=quick_options())
        both = {m: compiled(variables["params"], x, m == "train") for m in MODES}
        return data, variables, jax.device_get(both)


MODES = ("train", "eval")


@pytest.mark.parametrize("mode", MODES)
def test_the_reference_is_reproduced(reference, mode):
    data, variables, ours = reference
    (loss, (out, s, kept)), (grads, grad_x) = ours[mode]
    close(theirs(out, data[f"{mode}/out"]), data[f"{mode}/out"])
    close(loss, data[f"{mode}/loss"])
    close(theirs(grad_x, data[f"{mode}/grad_x"]), data[f"{mode}/grad_x"])
    fired = {SPIKING[n]: kept["spikes"][n]["out"][0] for n in kept["spikes"]}
    fired |= {"up.0": s}
    want = part(data, f"{mode}/spk/")
    assert set(fired) == set(want)
    for name, x in want.items():
        assert 0.02 < x.mean() < 0.7
        np.testing.assert_array_equal(theirs(fired[name], x), x, name)
    got = {}
    for layer, name in LAYERS.items():
        kernel = grads[kernel_name(layer)]["kernel"]
        kernel = kernel if layer == "group" else kernel[None, None]
        got[f"{name}.1.weight"] = kernel.transpose(3, 2, 0, 1)
        for key, torch in (("scale", "weight"), ("bias", "bias")):
            got[f"{name}.2.bn.{torch}"] = grads[f"{layer}_bn"][key]
    weights = part(data, f"{mode}/grad/")
    assert len(weights) == (9 if mode == "train" else 6)
    for name, value in weights.items():
        close(got[name], value, name)


def test_statistics_move_in_training_alone(reference):
    data, variables, ours = reference
    want = part(data, "train/sd_after/")
    stats = ours["train"][0][1][2]["batch_stats"]
    for layer, name in LAYERS.items():
        for key in ("mean", "var"):
            value = want[f"{name}.2.bn.running_{key}"]
            close(stats[f"{layer}_bn"][key], value, name)
    stats = ours["eval"][0][1][2]["batch_stats"]
    chex.assert_trees_all_equal(stats, variables["batch_stats"])


def variables_of(layer, s):
    rng = np.random.default_rng(0)

    def leaf(path, want):
        value = rng.normal(0, 0.8, want.shape)
        if path[-1].key in ("scale", "var"):
            value = 0.5 + np.abs(value)
        return jnp.asarray(value, want.dtype)

    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), s, True))
    return jax.tree_util.tree_map_with_path(leaf, shapes)


def test_a_group_sees_its_own_channels_and_the_next_pixels():
    """The sum in front of the last neuron is u and the convolution of u's spikes."""
    layer = module("float32", ratio=2, group_size=4)
    s = jnp.asarray(np.random.default_rng(0).random((1, 2, 16, 4)) < 0.4, "float32")
    variables = variables_of(layer, s)
    sums, sound = {}, neuron.make

    def spy(form, options, *, name, **how):
        made = sound(form, options, name=name, **how)
        return lambda x: sums.update({name: x}) or made(x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neuron, "make", spy)
        _, kept = layer.apply(variables, s, False, mutable=KEPT)
    fired = np.asarray(kept["spikes"]["group_neuron"]["out"][0])
    assert 0.02 < fired.mean() < 0.98 and fired.shape == (1, 2, 16, 8)
    image = np.pad(fired.reshape(1, 2, 4, 4, 8), [(0, 0)] * 2 + [(1, 1)] * 2 + [(0, 0)])
    p, stats = jax.device_get((variables["params"], variables["batch_stats"]))
    kernel, stats = p["group_conv"]["kernel"], stats["group_bn"]
    assert kernel.shape == (3, 3, 4, 8)
    want = np.zeros((1, 2, 4, 4, 8))
    for i, j, group in np.ndindex(3, 3, 2):
        own = slice(4 * group, 4 * group + 4)
        seen = image[:, :, i : i + 4, j : j + 4, own]
        want[..., own] += seen @ kernel[i, j, :, own]
    gain = p["group_bn"]["scale"] / np.sqrt(stats["var"] + 1e-5)
    want = (want - stats["mean"]) * gain + p["group_bn"]["bias"]
    got = np.asarray(sums["down_neuron"] - sums["group_neuron"])
    np.testing.assert_allclose(got, want.reshape(got.shape), atol=1e-5)


def test_folded_it_has_biases_of_norms_alone():
    layer = module("float32", folded=True)
    s = jnp.zeros((1, 1, 16, 16))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), s, False)
    kernels = {kernel_name(name): {"kernel"} for name in LAYERS}
    assert shapes.keys() == {"params"}
    assert {name: set(leaves) for name, leaves in shapes["params"].items()} == (
        kernels | {f"{name}_bn": {"bias"} for name in LAYERS}
    )


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((1, 1, 15, 16), {}, r"\(1, 1, 15, 16\), expected \[B, T, 16, D\]"),
        ((1, 16, 16), {}, r"\(1, 16, 16\), expected \[B, T, 16, D\]"),
        ((1, 1, 16, 16), dict(group_size=48), "width is 64, .*group size, 48"),
        ((1, 1, 16, 16), dict(group_size=0), "width is 64, .*group size, 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(shape, changes, message):
    layer = module("float32", **changes)
    with pytest.raises(ValueError, match=f"GWFFN: .*{message}"):
        jax.eval_shape(layer.init, jax.random.key(0), jnp.zeros(shape), False)

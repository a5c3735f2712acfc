"""Small models with running statistics of a batch, and calls that are compiled once."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from a2os2a_jax import models
from tests.compiling import quick_options


def made_variables(model, images, jitter):
    """Variables as `init` makes them (see test_registry.py), drawn by numpy, because
    compiling `init` takes longer than the rest; scales and biases moved by `jitter`."""
    rng = np.random.default_rng(1)
    start = {"scale": 1.0, "var": 1.0, "w": -math.log(model.neuron["tau"] - 1)}

    def leaf(path, want):
        module, name = path[-2].key, path[-1].key
        value = np.full(want.shape, start.get(name, 0.0))
        if name == "kernel":
            value = rng.normal(0, 0.02, want.shape)
        elif path[0].key == "params" and name in ("scale", "bias"):
            value = value + rng.normal(0, 1, want.shape) * jitter
        if (module, name) == ("k_bn", "scale"):
            value = value * model.attention["k_gain"]
        return jnp.asarray(value, want.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree_util.tree_map_with_path(leaf, shapes)


class Case:
    """A model with variables and inputs.

    images: [B, T, H, W, C], or [B, T, N, F] with the stem `tokens`; all frames differ.
    initial, variables: as initialised, and with running statistics of these images.
    """

    def __init__(
        self,
        variant="2-32",
        *,
        family="columnar",
        batch=4,
        tokens=5,
        jitter=0.1,
        calibrate=True,
        **options,
    ):
        options = {"image_size": 8, "timesteps": 3, "heads": 2, "dtype": "float64"} | (
            options
        )
        self.options = {"num_classes": 10} | options
        self.model = models.build(family, variant, **self.options)
        size, channels = self.model.image_size, self.model.in_channels
        frame = (tokens, channels) if size is None else (size, size, channels)
        draw = np.random.default_rng(0).normal(
            size=(batch, options["timesteps"], *frame)
        )
        # Eighths are the same number in every dtype.
        self.images = jnp.asarray(np.round(draw * 8) / 8, self.model.dtype)
        self.initial = made_variables(self.model, self.images, jitter)
        self.forward = jax.jit(
            self.eager,
            static_argnames=("train", "per_step"),
            compiler_options=quick_options(),
        )
        if calibrate:
            _, _, stats = self(self.images, train=True, variables=self.initial)
            self.variables = self.initial | {
                "batch_stats": self.batch_statistics(stats)
            }

    def eager(self, variables, images, *, train=False, per_step=False):
        """(logits, mutated collections)."""
        kept = ["spikes", "batch_stats"] if train else ["spikes"]
        return self.model.apply(
            variables, images, train=train, per_step=per_step, mutable=kept
        )

    def __call__(self, images, *, variables=None, train=False, per_step=False):
        """(logits, {layer: spikes}, running statistics afterwards); all layers fire."""
        variables = self.variables if variables is None else variables
        out = self.forward(variables, images, train=train, per_step=per_step)
        logits, sown = jax.device_get(out)
        spikes = by_layer(sown)
        check_alive(spikes)
        return logits, spikes, sown.get("batch_stats")

    def batch_statistics(self, stats):
        """Those of the last batch, out of the running ones after a first step."""
        old = self.initial["batch_stats"]
        return jax.tree_util.tree_map_with_path(
            lambda path, new, o: (
                new if path[-1].key.endswith("_rate") else (new - 0.9 * o) / 0.1
            ),
            stats,
            old,
        )

    @functools.cached_property
    def stream(self):
        """(init, step) of the model, compiled."""
        init, step = self.model.stream(self.variables)
        how = dict(compiler_options=quick_options())
        return jax.jit(init, static_argnums=(0, 1), **how), jax.jit(step, **how)


def by_layer(sown):
    """{"block_0/mid_neuron": spikes [B, T, ...]}."""
    flat = traverse_util.flatten_dict(sown["spikes"], sep="/")
    return {name.removesuffix("/out"): s for name, (s,) in flat.items()}


def check_alive(spikes, low=0.02, high=0.70):
    """No comparison of silence with silence: every layer fires, and not always."""
    rates = {name: float(np.mean(np.asarray(s) != 0)) for name, s in spikes.items()}
    dead = {name: rate for name, rate in rates.items() if not low < rate < high}
    assert rates and not dead, f"layers outside of {low} to {high}: {dead}"


@pytest.fixture(scope="session")
def case():
    """case(variant, **options) -> Case; equal ones are made once."""
    made = {}

    def get(variant="2-32", **options):
        key = (variant, repr(sorted(options.items())))
        if key not in made:
            made[key] = Case(variant, **options)
        return made[key]

    return get


@pytest.fixture(scope="session")
def quick_jit():
    """jax.jit that compiles in half the time."""
    return functools.partial(jax.jit, compiler_options=quick_options())


@pytest.fixture(scope="session")
def layers():
    """layers(collections) -> {layer: spikes}, after a look that every one fires."""

    def get(sown, low=0.02, high=0.70):
        spikes = by_layer(sown)
        check_alive(spikes, low, high)
        return spikes

    return get

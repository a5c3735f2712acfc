"""A run on a folder of pictures, with weights that fire, which nobody had to train."""

import jax
import jax.numpy as jnp
import numpy as np

from a2os2a_jax import config as configs
from a2os2a_jax.train import checkpoint, setup, workdir
from tests.analysis.test_brute_force import made

NAMES = ("blue", "green", "red")
SCORES = {"accuracy": 0.5, "top5": 1.0, "loss": 1.25, "count": 9}


def pictures(root, train=3, test=3):
    """NAMES, PNG and JPEG, of 10 to 14 pixels a side."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for channel, name in enumerate(reversed(NAMES)):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 160, (*rng.integers(10, 15, 2), 3))
                pixels[..., channel] += 90
                end = "jpg" if i % 2 else "png"
                Image.fromarray(np.uint8(pixels)).save(folder / f"{i}.{end}")
    return root


def config(root, **changes):
    c = configs.default()
    c.data.update(name=f"folder:{root}", size=8)
    c.model.update(variant="1-16", timesteps=2, heads=2, pool="0001")
    c.train.update(batch=4, steps=6)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def run(folder, c, *, steps=(4, 6), finished=True):
    """Writes the run; returns {step: variables}."""
    parts = setup.prepare(c)
    workdir.claim(folder, c)
    workdir.write_json(folder / workdir.DATA, parts.dataset.spec.to_json())
    empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), parts.abstract_state())
    images = jnp.zeros((1, *parts.dataset.shape))
    found = {}
    with checkpoint.Checkpoints(folder / "checkpoints") as checkpoints:
        for step in steps:
            variables = made(parts.model, images, seed=step)
            variables = jax.tree.map(
                lambda x, like: jnp.asarray(x, like.dtype),
                {
                    "params": variables["params"],
                    "batch_stats": variables["batch_stats"],
                },
                empty.variables,
            )
            state = empty._replace(step=jnp.int32(step), **variables)
            checkpoints.save(step, state, {"spent": {}}, None)
            found[step] = jax.device_get(variables)
    if finished:
        result = {"steps": steps[-1], "config": configs.to_json(c), "commit": "abc"}
        workdir.write_json(folder / "result.json", result | {"test": SCORES})
    return found

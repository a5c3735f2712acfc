"""load(folder)(images) -> logits. Needs jax, numpy and flatbuffers alone."""

import functools
import json
from hashlib import sha256
from pathlib import Path

import jax.export
import numpy as np


def load(folder):
    info = json.loads(Path(folder, "model.json").read_text())
    data, program = (Path(folder, name).read_bytes() for name in info["sha256"])
    if [sha256(x).hexdigest() for x in (data, program)] != [*info["sha256"].values()]:
        raise ValueError(f"{folder}: damaged: sha256 is not as in its model.json")
    at = 8 + int.from_bytes(data[:8], "little")  # of the numbers, behind their table
    table = {k: t for k, t in json.loads(data[8:at]).items() if "shape" in t}
    for k, t in table.items():
        table[k] = np.ndarray(t["shape"], info["kind"], data, at + t["data_offsets"][0])
    call = jax.jit(jax.export.deserialize(bytearray(program)).call)
    with _wide(info["x64"]):
        weights = jax.device_put(table)
    run = functools.partial(_checked, call, info["x64"])
    return jax.tree_util.Partial(run, weights)  # of images


def _wide(x64):  # for as long as it takes: it is a setting of all that jax does
    return jax.enable_x64(x64 or jax.config.jax_enable_x64)


def _checked(call, x64, weights, images):
    with _wide(x64), np.errstate(over="ignore"):  # of float64, found below
        images = jax.numpy.asarray(images)
    if not isinstance(images, jax.core.Tracer):  # neurons answer NaN with silence
        finite = jax.numpy.isfinite(images).all(range(1, images.ndim))
        if not finite.all():
            bad = finite.argmin()
            raise ValueError(f"got NaN or infinity in images[{bad}], expected numbers")
    with _wide(x64):
        return call(weights, images)


if __name__ == "__main__":
    print(json.loads(Path(__file__).with_name("model.json").read_text())["signature"])

"""--mode=preview: what the model sees in training, as a contact sheet."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from a2os2a_jax import texts
from a2os2a_jax.analysis import plots
from a2os2a_jax.data import pipeline
from a2os2a_jax.files import expanded
from a2os2a_jax.train.setup import Parts, prepare
from a2os2a_jax.train.workdir import PREVIEW

EXAMPLES, FRAMES = 24, 8  # shown, at most


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Draws the first examples of training, in their order, as they are augmented.

    Images and targets are those of step 1 of a run with this config (of one device,
    with train.accumulate=1). Nothing is trained.

    Returns:
      {"images" [n, ...] as the model gets them, "labels" [n], "targets" [n] or
      [n, classes]}.
    Raises:
      ValueError: a config that cannot be trained, or data that are not pictures.
    """
    parts = prepare(config)
    if len(parts.dataset.shape) == 2:
        raise ValueError(
            f"data.name: got {parts.dataset.name}, whose examples are tokens "
            f"{parts.dataset.shape}, expected pictures or frames"
        )
    seen = first(config, parts)
    path = expanded(workdir) / PREVIEW
    if jax.process_index() == 0:
        draw(parts, seen, path)
        a = seen["images"]
        print(
            f"{parts.dataset.name}: {len(a)} of {parts.dataset.train.size:,} "
            f"training examples {list(a.shape[1:])}, values {a.min():.2f} to "
            f"{a.max():.2f}, mean {a.mean():.2f}, standard deviation {a.std():.2f}"
        )
        print(f"wrote {path}")
        print("next: the same command without --mode=preview trains on these")
    return seen


def first(config: ConfigDict, parts: Parts, step: int = 0) -> dict[str, np.ndarray]:
    """The batch of a step, counted from 0, as the model gets it; see `run`."""
    split, batch = parts.dataset.train, config.train.batch
    order = pipeline.Order(config.seed, split.size, batch, split.fresh)
    (payload,) = pipeline.feed(split, order, step, step + 1)
    _, key = jax.random.split(jax.random.key(config.seed))  # as in train.loop

    @jax.jit
    def batch_of(resident, payload):
        found = split.gather(resident, payload)
        step_key = jax.random.fold_in(key, step)
        images, targets = parts.inputs(found, step_key, jnp.int32(step))
        return {"images": images, "labels": found["label"], "targets": targets}

    return jax.device_get(batch_of(split.resident, payload))


def draw(parts: Parts, seen: dict[str, np.ndarray], path: Path) -> None:
    """The contact sheet of what `first` gave."""
    data = parts.dataset
    images = seen["images"][:EXAMPLES]
    mean, std = (np.asarray(x, np.float32) for x in (data.mean, data.std))
    if images.ndim == 5:  # frames fill a row: fewer examples, and not every frame
        images = images[: EXAMPLES // 3]
        every = math.ceil(images.shape[1] / FRAMES)
        images = images[:, ::every]
    titles = [_title(t, data.class_names) for t in seen["targets"][: len(images)]]
    plots.contact_sheet(
        images * std + mean,
        titles,
        path,
        title=f"{data.name}: what the model sees in its first step",
    )


def _title(target: np.ndarray, names: tuple[str, ...]) -> str:
    """One class, or a line for each with its share."""

    def name(label) -> str:
        return texts.line(names[label]) if names else str(label)

    if not target.ndim:
        return name(int(target))
    shares = [(float(target[c]), c) for c in np.flatnonzero(target > 0.005)]
    shares.sort(reverse=True)
    if len(shares) == 1:
        return name(shares[0][1])
    return "\n".join(f"{name(c)} {100 * share:.0f} %" for share, c in shares)

"""What the features of a trained model are worth: a linear classifier of few examples.

Nothing is chosen on the examples it is scored on: the classifier is scikit-learn's
logistic regression with its own C = 1, on features brought to mean 0 and deviation 1 by
the labelled examples alone.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from a2os2a_jax.data import pipeline
from a2os2a_jax.train import parallel

MAX_BYTES = 2**31  # of raw inputs; a set with more has no control beside it


class Examples(NamedTuple):
    """features [N, D], labels [N]; inputs [N, pixels], or None."""

    features: np.ndarray
    labels: np.ndarray
    inputs: np.ndarray | None


def parse_shots(text: str) -> tuple[int, ...]:
    """ "1,5,10" -> (1, 5, 10), ascending; ValueError unless these are integers >= 1."""
    parts = [part.strip() for part in str(text).split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(
            f"eval.shots: got {text!r}, expected integers >= 1 as in '1,5,10'"
        )
    return tuple(sorted({int(part) for part in parts}))


def draw(
    labels: np.ndarray, classes: int, shots: Sequence[int], draws: int
) -> list[dict[int, np.ndarray]]:
    """For each draw {shots: indices [shots * classes]}, of each class as many.

    Fixed for a set, whatever the seed of a run, so that two runs are compared on the
    same examples. Within a draw those of fewer shots are among those of more.

    Raises:
      ValueError: a class has fewer examples than shots.
    """
    counts = np.bincount(labels, minlength=classes)
    if max(shots) > counts.min():
        raise ValueError(
            f"eval.shots: got {max(shots)}, expected at most {counts.min()}, the "
            f"training examples of class {counts.argmin()}"
        )
    drawn = []
    for number in range(draws):
        # RandomState: numpy guarantees its stream for good
        rng = np.random.RandomState([pipeline.SPLIT_SEED, number])
        order = [rng.permutation(np.flatnonzero(labels == c)) for c in range(classes)]
        drawn.append({k: np.concatenate([o[:k] for o in order]) for k in shots})
    return drawn


def labels_of(split: pipeline.Split, mesh: Mesh, batch: int) -> np.ndarray:
    """[size] of a split, in its order."""
    every = np.arange(split.size)
    return _run(
        lambda _, example: {"label": example["label"]}, split, mesh, every, batch
    )["label"]


def extract(
    model: nn.Module,
    variables: Any,
    split: pipeline.Split,
    mesh: Mesh,
    indices: np.ndarray,
    *,
    batch: int,
    inputs: bool = True,
) -> Examples:
    """What the model sows as "features" of these examples, in evaluation mode.

    Raises:
      ValueError: the model sows none.
    """

    def step(variables: Any, example: dict[str, jax.Array]) -> dict[str, jax.Array]:
        image = example["image"]
        _, sown = model.apply(variables, image, train=False, mutable=["features"])
        if "features" not in sown:
            raise ValueError(
                f"probe: got {type(model).__name__}, which sows no features, expected "
                "a model that does"
            )
        out = {"features": sown["features"]["out"][0], "label": example["label"]}
        if inputs:
            out["inputs"] = image.reshape(len(image), -1)
        return out

    found = _run(step, split, mesh, indices, batch, variables)
    return Examples(found["features"], found["label"], found.get("inputs"))


def fits(count: int, shape: Sequence[int]) -> bool:
    """Whether the raw inputs of so many examples are kept in memory."""
    return 4 * count * math.prod(shape) <= MAX_BYTES


def accuracy(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, test_y: np.ndarray
) -> float:
    """Of a classifier fitted on the first two, on the last two; a fraction.

    Raises:
      ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError(
            "a probe needs scikit-learn: pip install scikit-learn"
        ) from error
    classifier = make_pipeline(
        StandardScaler(), LogisticRegression(C=1.0, max_iter=1000)
    )
    classifier.fit(train_x.astype(np.float64), train_y)
    return float((classifier.predict(test_x.astype(np.float64)) == test_y).mean())


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, sample standard deviation); of one value there is none."""
    mean = float(np.mean(values))
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else None


def _run(
    function, split, mesh, indices, batch, variables=None
) -> dict[str, np.ndarray]:
    """function(variables, batch of examples) of these examples, on the host."""
    batch = -(-min(batch, len(indices)) // mesh.size) * mesh.size
    resident = parallel.put_whole(split.resident, mesh)

    def step(variables, resident, payload):
        return function(variables, split.gather(resident, payload))

    step = jax.jit(step, out_shardings=parallel.whole(mesh))
    found = []
    for position, mask in pipeline.padded_batches(len(indices), batch):
        wanted = parallel.local_part(np.asarray(indices)[position])
        payload = parallel.put_batch(split.fetch(wanted), mesh)
        rows = jax.device_get(step(variables, resident, payload))
        found.append({key: value[mask > 0] for key, value in rows.items()})
    return {key: np.concatenate([f[key] for f in found]) for key in found[0]}

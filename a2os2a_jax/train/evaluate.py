"""Exact evaluation: every example once, whatever the batch size or device count."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from a2os2a_jax.data import pipeline
from a2os2a_jax.train import parallel, step


def size_of(split: pipeline.Split, examples: int | None) -> int:
    """How many are scored; ValueError if `examples` are more than the split has."""
    size = split.size if examples is None else examples
    if not 1 <= size <= split.size:
        raise ValueError(
            f"eval.examples: got {examples}, expected 1 to {split.size}, the size "
            "of the split"
        )
    return size


class Evaluator:
    """Scores variables of `model` on `split`; compiles once.

    Args:
      batch: examples at a time; rounded up to share evenly among the devices, and the
        last batch is padded, which no result depends on.
      examples: only the first so many; None for all.
    Raises:
      ValueError: more examples are asked for than there are.
    """

    def __init__(
        self,
        model: nn.Module,
        split: pipeline.Split,
        mesh: Mesh,
        *,
        batch: int,
        examples: int | None = None,
    ):
        self.size = size_of(split, examples)
        self._batch = -(-min(batch, self.size) // mesh.size) * mesh.size
        self._split, self._mesh = split, mesh
        self._resident = parallel.put_whole(split.resident, mesh)
        self._score = jax.jit(
            step.make_eval_step(model, split), out_shardings=parallel.whole(mesh)
        )
        self._activity = jax.jit(
            step.make_activity_step(model, split), out_shardings=parallel.whole(mesh)
        )

    def __call__(self, variables: Any) -> dict[str, float]:
        """{"accuracy", "top5" (fractions), "loss", "count"} over the whole split."""
        sums: dict[str, Any] = {}
        for indices, mask in pipeline.padded_batches(self.size, self._batch):
            payload = self._send(self._split.fetch, indices)
            mask = self._send(lambda x: x, mask)
            new = self._score(variables, self._resident, payload, mask)
            sums = jax.tree.map(lambda a, b: a + b, sums, new) if sums else new
        total = {k: float(v) for k, v in jax.device_get(sums).items()}
        count = total["count"]
        return {
            "accuracy": total["correct"] / count,
            "top5": total["correct5"] / count,
            "loss": total["loss"] / count,
            "count": int(count),
        }

    def activity(self, variables: Any) -> dict[str, dict[str, float]]:
        """{"firing_rate", "near_threshold"} of every layer, over the first batch.

        Of its padding nothing counts. See `step.make_activity_step`.
        """
        indices, mask = next(pipeline.padded_batches(self.size, self._batch))
        payload = self._send(self._split.fetch, indices)
        mask = self._send(lambda x: x, mask)
        rates = self._activity(variables, self._resident, payload, mask)
        return jax.tree.map(float, jax.device_get(rates))

    def _send(self, fetch: Callable[[np.ndarray], Any], indices: np.ndarray) -> Any:
        return parallel.put_batch(fetch(parallel.local_part(indices)), self._mesh)

"""Exact evaluation: every example once, whatever the batch size or device count."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from a2os2a_jax.data import pipeline
from a2os2a_jax.train import parallel, step

ACTIVITY = 2048  # examples whose activity is measured, at most


class Abandoned(Exception):
    """An evaluation was told to stop before its last batch."""


def size_of(split: pipeline.Split, examples: int | None) -> int:
    """How many are scored; ValueError if `examples` are more than the split has."""
    size = split.size if examples is None else examples
    if not 1 <= size <= split.size:
        raise ValueError(
            f"eval.examples: got {examples}, expected 1 to {split.size}, the size "
            "of the split"
        )
    return size


def summary(sums: dict[str, np.ndarray]) -> dict[str, Any]:
    """What is written of an evaluation, from the sums of `step.make_report_step`.

    Returns:
      accuracy, top5, loss, count: as `Evaluator.__call__` gives them.
      any_time: T accuracies, after 1 to T steps; the last is accuracy.
      ece: expected calibration error, sum over bins of count_b / count times
        |accuracy_b - confidence_b|. Source: Guo et al. 2017, arXiv:1706.04599.
      bins: {"count", "accuracy", "confidence"}, a list each, over bins of the
        confidence of equal width; None in an empty bin.
      per_class: C accuracies, None for a class without examples.
      per_class_count: C counts of examples.
      confusion: C lists of C counts, a row for each label, a column for each answer;
        None of more than `step.CONFUSION` classes.
    Raises:
      ValueError: nothing was counted.
    """
    count = _counted(sums)
    any_time = (sums["correct"] / count).tolist()
    bins = {
        "count": sums["bin_count"].tolist(),
        "accuracy": _shares(sums["bin_correct"], sums["bin_count"]),
        "confidence": _shares(sums["bin_confidence"], sums["bin_count"]),
    }
    gaps = np.abs(sums["bin_correct"] - sums["bin_confidence"])
    return {
        "accuracy": any_time[-1],
        "top5": int(sums["correct5"]) / count,
        "loss": float(sums["loss"]) / count,
        "count": count,
        "any_time": any_time,
        "ece": float(gaps.sum() / count),
        "bins": bins,
        "per_class": _shares(sums["class_correct"], sums["class_count"]),
        "per_class_count": sums["class_count"].tolist(),
        "confusion": sums["confusion"].tolist() if "confusion" in sums else None,
    }


def _counted(sums: dict[str, np.ndarray]) -> int:
    """The number of examples that count, or ValueError if none does."""
    if not (count := int(sums["count"])):
        raise ValueError(
            "evaluation: got 0 examples that count, expected some; what cannot be read "
            "(data.corrupt=skip) has the label -1 and does not"
        )
    return count


def _shares(part: np.ndarray, of: np.ndarray) -> list[float | None]:
    """part / of, None where nothing is."""
    return [float(p / n) if n else None for p, n in zip(part, of, strict=True)]


def sample(size: int, most: int) -> np.ndarray:
    """Indices of at most `most` of `size` examples, at random, ascending.

    The same ones at every call: a set may be sorted by class, and its first examples
    are then no picture of it.
    """
    drawn = np.random.RandomState(pipeline.SPLIT_SEED).permutation(size)[:most]
    return np.sort(drawn)


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
        self._report = jax.jit(
            step.make_report_step(model, split), out_shardings=parallel.whole(mesh)
        )
        self._activity = jax.jit(
            step.make_activity_step(model, split), out_shardings=parallel.whole(mesh)
        )

    def __call__(
        self, variables: Any, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """{"accuracy", "top5" (fractions), "loss", "count"} over the whole split.

        `stop` is asked before every batch; Abandoned is raised when it says yes.
        ValueError if there is nothing to count, for an example that is not finite, and
        for a label that is no class of the model.
        """
        total = self._sum(self._score, variables, stop)
        self._check(total)
        count = _counted(total)
        return {
            "accuracy": int(total["correct"]) / count,
            "top5": int(total["correct5"]) / count,
            "loss": float(total["loss"]) / count,
            "count": count,
        }

    def report(self, variables: Any) -> dict[str, Any]:
        """All that one pass over the whole split tells; see `summary`.

        For models whose `apply` takes per_step. The logits are the mean of those of the
        steps, so that the loss may differ from `__call__`'s in the last digits.
        """
        total = self._sum(self._report, variables)
        self._check(total)
        return summary(total)

    def activity(self, variables: Any) -> dict[str, Any]:
        """{"firing_rate": {layer: share}, "near_threshold": likewise, "examples": n}.

        Of n examples: all of the split, or of a larger one ACTIVITY, see `sample`;
        less what cannot be read. Exact for any batch. See `step.make_activity_step`.
        """
        chosen = sample(self.size, ACTIVITY)
        rows = []
        for indices, mask in pipeline.padded_batches(len(chosen), self._batch):
            payload = self._send(self._split.fetch, chosen[indices])
            mask = self._send(lambda x: x, mask)
            rows.append(self._activity(variables, self._resident, payload, mask))
        rows = jax.device_get(rows)
        kept = np.concatenate([row["counted"] for row in rows]) > 0
        examples = _counted({"count": kept.sum()})

        def share(kind: str, layer: str) -> float:
            hits = np.concatenate([row[kind][layer][0] for row in rows])
            entries = int(rows[0][kind][layer][1])
            return int(hits[kept].sum(dtype=np.int64)) / (examples * entries)

        kinds = ("firing_rate", "near_threshold")
        found = {kind: {k: share(kind, k) for k in rows[0][kind]} for kind in kinds}
        return found | {"examples": examples}

    def _sum(
        self, score: Callable, variables: Any, stop: Callable = lambda: False
    ) -> dict[str, np.ndarray]:
        """Sums of `score` over the split: counts on the device, the rest in float64."""
        counts: dict[str, Any] = {}
        rest: list[dict[str, jax.Array]] = []
        for indices, mask in pipeline.padded_batches(self.size, self._batch):
            if stop():
                raise Abandoned
            payload = self._send(self._split.fetch, indices)
            mask = self._send(lambda x: x, mask)
            new = score(variables, self._resident, payload, mask)
            exact = {k: v for k, v in new.items() if v.dtype.kind == "i"}
            counts = {k: counts[k] + v if counts else v for k, v in exact.items()}
            rest.append({k: v for k, v in new.items() if k not in exact})
        rows = jax.device_get(rest)
        floats = {k: sum(np.float64(row[k]) for row in rows) for k in rows[0]}
        return jax.device_get(counts) | floats

    def _check(self, sums: dict[str, np.ndarray]) -> None:
        """ValueError for what a score would not show; see `step._faults`."""
        if sums["not_finite"]:
            batches = pipeline.padded_batches(self.size, self._batch)
            bad = pipeline.first_not_finite(self._split, (i for i, _ in batches))
            raise ValueError(
                f"evaluation: got NaN or infinity in {sums['not_finite']} examples, "
                f"the first {bad}, expected finite numbers"
            )
        if sums["beyond"]:
            raise ValueError(
                f"evaluation: got {sums['beyond']} labels that are no class of the "
                "model, expected smaller ones"
            )

    def _send(self, fetch: Callable[[np.ndarray], Any], indices: np.ndarray) -> Any:
        return parallel.put_batch(fetch(parallel.local_part(indices)), self._mesh)

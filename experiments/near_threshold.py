"""Does the product's distance to the threshold tell which setting learns recall?

    python experiments/near_threshold.py        (after ablation.py; some minutes)

What a run shows after training may be the effect of its failing. So every setting with
32 pairs, Q and K and the config's learning rate is also made anew as it was before its
first step, from the config and seed in its result file, and looked at on its first
batches, as training steps do, but without stepping. Of the neuron behind Q K^T V:

    near     share of membranes within 1 of the threshold
    slope    mean slope of the surrogate at the membranes
    std      standard deviation of the membranes
    fires    firing rate

of the gradient of the loss at the kernels of Q, K and V, frozen ones left out:

    norm     its norm, mean over batches
    share    the same over the norm of the gradient at all parameters
    agrees   mean cosine between two batches at the kernels of Q and K: 1 where all
             batches want the same, 0 where the gradient is noise

and of the curve of the run: `reached`, the first logged step at which 50 steps of
training were right for 90 %. Writes experiments/results/near_threshold.json, with rank
correlations over settings.
"""

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from a2os2a_jax import config as configs  # noqa: E402
from a2os2a_jax.functional import surrogate  # noqa: E402
from a2os2a_jax.train import losses, setup  # noqa: E402
from a2os2a_jax.train import workdir as workdirs  # noqa: E402

RESULTS = ROOT / "experiments" / "results"
BATCHES, RIGHT = 8, 0.9
LAYER = "block_0/attention/attention_neuron"
COMPARES = "block_0/attention/q_neuron"
AFTER = ("near", "fires")
START = ("near", "slope", "std", "fires", "norm", "share", "agrees")


def compares(run: Mapping[str, Any]) -> bool:
    """Whether a run has Q and K, 32 pairs and the config's own learning rate.

    With one block `model.shortcut` changes nothing, so that setting is left out.
    """
    return (
        run["config"]["data"]["pairs"] == 32
        and COMPARES in run["activity"]["firing_rate"]
        and "optim.lr" not in run["settings"]
        and "model.shortcut" not in run["settings"]
    )


def reached(curve: Sequence[Mapping[str, Any]], right: float = RIGHT) -> int | None:
    """The first training step of the curve with that accuracy; None if there is none"""
    train = [r for r in curve if r["split"] == "train"]
    return next((r["step"] for r in train if r["accuracy"] >= right), None)


def parts_of(run: Mapping[str, Any]) -> setup.Parts:
    """Model and data of a result file, made by this or an earlier version."""
    old = configs.flatten(run["config"])
    config = configs.default()
    given = {key: value for key, value in old.items() if value is not None}
    config.update_from_flattened_dict(given)
    return setup.prepare(config)


def slope_of(neuron: Mapping[str, Any]):
    """distance to the threshold -> slope of the surrogate, elementwise."""
    if neuron["rule"] == "guo":  # the curve clamp(u, 0, 1), threshold 1/2
        return lambda d: (jnp.abs(d) <= 0.5).astype(d.dtype)
    curve = surrogate.by_name(neuron["surrogate"]).curve
    return lambda d: jax.vmap(jax.grad(curve))(d.ravel()).reshape(d.shape)


def at_start(parts: setup.Parts, neuron: Mapping[str, Any]):
    """(variables, images [n, B, ...], labels [n, B]) -> {name in START: []}, jitted."""
    slope = slope_of(neuron)

    def loss(params, batch_stats, images, labels):
        logits, kept = parts.model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats", "potentials", "spikes"],
        )
        return losses.cross_entropy(logits, labels).mean(), kept

    @jax.jit
    def measure(variables, images, labels):
        def one(batch):
            grad = jax.grad(loss, has_aux=True)
            grads, kept = grad(variables["params"], variables["batch_stats"], *batch)
            (d,) = _at(kept["potentials"], LAYER)["out"]
            (s,) = _at(kept["spikes"], LAYER)["out"]
            attention = _at(grads, LAYER.rpartition("/")[0])
            qk, qkv = (
                jnp.concatenate(
                    [attention[f"{x}_linear"]["kernel"].ravel() for x in names]
                )
                for names in ("qk", "qkv")
            )
            total = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads)))
            norm = jnp.sqrt(jnp.square(qkv).sum())
            found = {"near": (jnp.abs(d) < 1).mean(), "slope": slope(d).mean()}
            found |= {"mean": d.mean(), "square": jnp.square(d).mean()}
            return found | {"fires": s.mean(), "norm": norm, "share": norm / total}, qk

        found, qk = jax.lax.map(one, (images, labels))
        found = {k: v.mean() for k, v in found.items()}
        found["std"] = jnp.sqrt(found.pop("square") - found.pop("mean") ** 2)
        return found | {"agrees": agreement(qk)}

    return measure


def agreement(g: jax.Array) -> jax.Array:
    """Mean cosine of two different rows of [n, d]; nan where a row is all 0."""
    unit = g / jnp.sqrt(jnp.square(g).sum(1, keepdims=True))
    n = len(g)
    return (jnp.square(unit.sum(0)).sum() - n) / (n * (n - 1))


def _at(tree: Mapping[str, Any], path: str):
    for key in path.split("/"):
        tree = tree[key]
    return tree


def ranks(values: Sequence[float]) -> np.ndarray:
    """1 for the least; equal values share the mean of their ranks."""
    x = np.asarray(values, float)
    return np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x])


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation, -1 to 1."""
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def setting(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row: the runs of a setting, before and after training."""
    measure, starts = None, []
    for run in runs:
        parts = parts_of(run)  # the seed decides the stream of training examples
        measure = measure or at_start(parts, run["config"]["model"]["neuron"])
        init_key, _ = jax.random.split(jax.random.key(run["seed"]))  # as train/loop.py
        split, size = parts.dataset.train, run["config"]["train"]["batch"]
        batch = split.gather(split.resident, split.fetch(np.arange(BATCHES * size)))
        images, labels = (
            x.reshape(BATCHES, size, *x.shape[1:])
            for x in (batch["image"], batch["label"])
        )
        variables = parts.fresh_state(init_key).variables
        found = jax.device_get(measure(variables, images, labels))
        starts.append({k: float(found[k]) for k in START if np.isfinite(found[k])})
    steps = [reached(run["curve"]) for run in runs]
    activity = [run["activity"] for run in runs]
    return {
        "settings": runs[0]["settings"],
        "seeds": [run["seed"] for run in runs],
        "accuracies": [run["test"]["accuracy"] for run in runs],
        "reached": steps,
        "start": {k: statistics.fmean(s[k] for s in starts) for k in starts[0]},
        "after": {
            "near": statistics.fmean(a["near_threshold"][LAYER] for a in activity),
            "fires": statistics.fmean(a["firing_rate"][LAYER] for a in activity),
        },
    }


def correlations(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """{"start near": {"accuracy": rank correlation, "reached": ..., "settings": n}}.

    Of medians over seeds; "never" is later than every step. Left out is a setting
    without the number: of frozen Q and K no gradient is known.
    """
    found = {}
    for when, names in (("start", START), ("after", AFTER)):
        for name in names:
            have = [row for row in rows if name in row[when]]
            x = [row[when][name] for row in have]
            found[f"{when} {name}"] = {
                "accuracy": spearman(
                    x, [statistics.median(row["accuracies"]) for row in have]
                ),
                "reached": spearman(x, [late(row) for row in have]),
                "settings": len(have),
            }
    return found


def late(row: Mapping[str, Any]) -> float:
    """Median over seeds of the step at which a setting had learned."""
    return statistics.median(math.inf if s is None else s for s in row["reached"])


def learns(row: Mapping[str, Any]) -> bool:
    """Whether Q, K and V are all trained."""
    return not row["settings"]["model.attention.kind"].startswith("frozen")


def main() -> int:
    files = sorted((RESULTS / "ablation").glob("*.json"))
    runs = [run for f in files if compares(run := json.loads(f.read_text()))]
    groups: dict[tuple, list[dict]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        groups.setdefault(tuple(run["settings"].items()), []).append(run)
    rows = []
    for same in groups.values():
        rows.append(row := setting(same))
        start = ", ".join(f"{k} {v:.4g}" for k, v in row["start"].items())
        print(f"{row['settings']}: {start}; {row['accuracies']}", flush=True)
    value = {
        "command": "python experiments/near_threshold.py",
        "what": "the neuron behind Q K^T V before and after training on 32-key recall",
        "batches": BATCHES,
        "reached_accuracy": RIGHT,
        "commit": workdirs.commit(),
        "runs_of": sorted({run["commit"] for run in runs}),
        "device": workdirs.device(parts_of(runs[0]).mesh),
        "rank_correlations": {
            "all settings": correlations(rows),
            "nothing frozen": correlations([row for row in rows if learns(row)]),
        },
        "rows": rows,
    }
    path = RESULTS / "near_threshold.json"
    path.write_text(json.dumps(value, indent=1) + "\n")
    print(json.dumps(value["rank_correlations"], indent=1))
    print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

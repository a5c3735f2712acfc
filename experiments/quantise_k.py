"""How many bits K needs: K of a trained A2OS2A is rounded, nothing trained again.

    python experiments/quantise_k.py             (runs of ablation.py, about a minute)
    python experiments/quantise_k.py --runs=DIR  (where they lie)

K = ReLU(BN(S W_K)) takes one of 2^bits levels. The step is, of 40 fractions of the
largest K, the one with the least squared error on 512 training examples; in a second
row it is a power of two, chosen the same way, so that K is an integer up to a shift.
Writes experiments/results/quantise_k.json.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
from sweep import summary  # noqa: E402

from a2os2a_jax import config as configs  # noqa: E402
from a2os2a_jax.functional import spikes  # noqa: E402
from a2os2a_jax.train import workdir as workdirs  # noqa: E402

NAME = "recall,kind=a2os2a,decay_input=False,seed={}"
SEEDS, BITS, EXAMPLES = range(3), range(8, 0, -1), 512


def load(folder: Path):
    """(config, parts, variables) of a run, made by this or an earlier version."""
    old = configs.flatten(workdirs.read_json(folder / "config.json"))
    config = configs.default()
    given = {key: value for key, value in old.items() if value is not None}
    config.update_from_flattened_dict(given)
    parts, _, variables = workdirs.load_trained(config, folder)
    return config, parts, variables


def keys(parts, variables) -> dict[str, np.ndarray]:
    """{layer: K} over the first training examples."""
    found = {}

    def record(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if context.module.name == "k_bn":
            found["/".join(context.module.path)] = jax.nn.relu(out)
        return out

    split = parts.dataset.train
    batch = split.gather(split.resident, split.fetch(np.arange(EXAMPLES)))
    with nn.intercept_methods(record):
        parts.model.apply(variables, batch["image"])
    return {name: np.asarray(k) for name, k in found.items()}


def steps(k: np.ndarray, bits: int) -> Iterator[tuple[str, float]]:
    """("any" or "power of two", step with the least squared error among its kind)."""
    peak = float(k.max())
    fractions = np.linspace(1 / 40, 1, 40) * peak / (2**bits - 1)
    exponents = np.arange(np.floor(np.log2(fractions[0])), np.log2(peak) + 1)
    for kind, candidates in (("any", fractions), ("power of two", 2.0**exponents)):
        errors = [
            np.square(np.asarray(spikes.quantise(k, bits, s)) - k).mean()
            for s in candidates
        ]
        yield kind, float(candidates[int(np.argmin(errors))])


def rounding(bits: int | None, step: Mapping[str, float]):
    """For `nn.intercept_methods`: K of each layer is rounded to its step.

    What the BN of K hands on is changed, and no other call; with None for `bits`, none.
    """

    def rounded(call, args, kwargs, context):
        out = call(*args, **kwargs)
        if bits is None or context.module.name != "k_bn":
            return out
        name = "/".join(context.module.path)
        return spikes.quantise(jax.nn.relu(out), bits, step[name])

    return rounded


def accuracy(config, parts, variables, bits: int | None, step: dict) -> float:
    """On the whole test split, K of each layer rounded to its step."""
    with nn.intercept_methods(rounding(bits, step)):  # while it is traced
        return parts.evaluator(config, "test")(variables)["accuracy"]


def measure(folder: Path) -> dict:
    """Accuracies of one run."""
    config, parts, variables = load(folder)
    k = keys(parts, variables)
    rows = [{"bits": None, "step": "not rounded"}]
    rows[0]["accuracy"] = accuracy(config, parts, variables, None, {})
    for bits in BITS:
        chosen: dict[str, dict[str, float]] = {}
        for name, array in k.items():
            for kind, step in steps(array, bits):
                chosen.setdefault(kind, {})[name] = step
        for kind, step in chosen.items():
            right = accuracy(config, parts, variables, bits, step)
            rows.append({"bits": bits, "step": kind, "steps": step, "accuracy": right})
    return {"seed": config.seed, "device": workdirs.device(parts.mesh), "rows": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/sweeps/ablation")
    args = parser.parse_args()
    runs = [measure(args.runs / NAME.format(seed)) for seed in SEEDS]
    rows = []
    for i, row in enumerate(runs[0]["rows"]):
        right = [run["rows"][i]["accuracy"] for run in runs]
        about = {"bits": row["bits"], "step": row["step"], "n": len(right)}
        rows.append(about | {"test_accuracy": summary(right), "accuracies": right})
    value = {
        "command": "python experiments/quantise_k.py",
        "what": "test accuracy (fraction) with K rounded after training",
        "runs_of": NAME.format("0, 1, 2"),
        "commit": workdirs.commit(),
        "device": runs[0]["device"],
        "rows": rows,
        "runs": runs,
    }
    path = ROOT / "experiments" / "results" / "quantise_k.json"
    path.write_text(json.dumps(value, indent=1) + "\n")
    for row in rows:
        a = {k: 100 * v for k, v in row["test_accuracy"].items()}
        print(
            f"bits {row['bits']}, {row['step']}: median {a['median']:.2f} % "
            f"({a['min']:.2f} to {a['max']:.2f})"
        )
    print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

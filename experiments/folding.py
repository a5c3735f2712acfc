"""What folding changes in float32, on real data: spikes that flip, and accuracy.

    python experiments/folding.py        (Fashion-MNIST in $A2OS2A_DATA; some minutes)

The committed weights of Fashion-MNIST and, of a model of their own, digits (trained
here, seeds 0 to 2, into runs/folding) are folded; both models see the whole test set. A
spike flips where the two differ. Each layer fed the other's input differs by rounding
alone (tests/models/test_fold.py); end to end one flipped spike moves what follows.
Writes experiments/results/folding.json.
"""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from a2os2a_jax import models  # noqa: E402
from a2os2a_jax.analysis import rates  # noqa: E402
from a2os2a_jax.train import finetune, loop, setup  # noqa: E402
from a2os2a_jax.train import workdir as workdirs  # noqa: E402

WEIGHTS = "zoo:fashion_mnist"
SEEDS, BATCH = range(3), 100


def config_of(name: str, seed: int = 0):
    """That of configs/NAME.py."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"configs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.seed = seed
    return config


def fashion() -> tuple[Any, setup.Parts, dict[str, Any]]:
    """(config, parts, variables) of the committed weights."""
    config = config_of("fashion_mnist")
    return config, setup.prepare(config), finetune.source(WEIGHTS)[0]


def digits(seed: int) -> tuple[Any, setup.Parts, dict[str, Any]]:
    """The same of a run that is made unless it is there."""
    config, folder = config_of("digits", seed), ROOT / f"runs/folding/digits-{seed}"
    loop.run(config, str(folder))
    parts, _, variables = workdirs.load_trained(config, folder)
    return config, parts, variables


def compare(parts: setup.Parts, variables: dict[str, Any]) -> dict[str, Any]:
    """Both models on the whole test set."""
    split = parts.dataset.test
    folded, inference = models.fold(parts.model, variables)

    @jax.jit
    def both(image):
        out = []
        for model, given in ((parts.model, variables), (folded, inference)):
            logits, sown = model.apply(given, image, mutable=["spikes"])
            out.append((logits, rates.layers(sown["spikes"])))
        (a, spikes), (b, others) = out
        flips = {n: (spikes[n] != others[n]).sum(dtype=jnp.int32) for n in spikes}
        return a, b, flips, {n: s.size for n, s in spikes.items()}

    gather = jax.jit(split.gather)
    right, changed, worst = [0, 0], 0, 0.0
    flips: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for start in range(0, split.size, BATCH):
        indices = np.arange(start, min(start + BATCH, split.size))
        batch = gather(split.resident, split.fetch(indices))
        a, b, flipped, size = jax.device_get(both(batch["image"]))
        label = np.asarray(batch["label"])
        right[0] += int((a.argmax(-1) == label).sum())
        right[1] += int((b.argmax(-1) == label).sum())
        changed += int((a.argmax(-1) != b.argmax(-1)).sum())
        worst = max(worst, float(np.abs(a - b).max()))
        for name in flipped:
            flips[name] = flips.get(name, 0) + int(flipped[name])
            sizes[name] = sizes.get(name, 0) + int(size[name])
    return {
        "examples": split.size,
        "accuracy": right[0] / split.size,
        "accuracy_folded": right[1] / split.size,
        "predictions_changed": changed,
        "largest_logit_change": worst,
        "flip_rate": sum(flips.values()) / sum(sizes.values()),
        "flip_rate_of_layers": {n: flips[n] / sizes[n] for n in flips},
        "spikes": sum(sizes.values()),
    }


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    rows = []
    for name, seed, made in [
        ("fashion_mnist", 0, fashion),
        *(("digits", seed, lambda seed=seed: digits(seed)) for seed in SEEDS),
    ]:
        config, parts, variables = made()
        rows.append(
            {"data": name, "model": f"{config.model.name} {config.model.variant}"}
            | {"seed": seed, **compare(parts, variables)}
        )
        r = rows[-1]
        print(
            f"{name}, seed {seed}: {100 * r['accuracy']:.2f} % -> "
            f"{100 * r['accuracy_folded']:.2f} % folded, {r['predictions_changed']} of "
            f"{r['examples']:,} answers change, {r['flip_rate']:.2e} of the spikes flip"
        )
    value = {
        "command": "python experiments/folding.py",
        "what": "float32, folded against unfolded, whole test set",
        "commit": workdirs.commit(),
        "device": workdirs.device(parts.mesh),
        "versions": workdirs.versions(),
        "rows": rows,
    }
    path = ROOT / "experiments" / "results" / "folding.json"
    path.write_text(json.dumps(value, indent=1) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

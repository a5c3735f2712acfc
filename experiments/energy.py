"""Activity and energy of trained models over the whole test set.

    python experiments/energy.py         (Fashion-MNIST in $A2OS2A_DATA; some minutes)

The committed weights of Fashion-MNIST, and digits over three seeds (trained by
folding.py, or here, into runs/folding). The same as --mode=energy, which does it for a
run of one's own. Writes experiments/results/energy.json.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "experiments"))

import folding  # noqa: E402

from a2os2a_jax.commands import energy  # noqa: E402


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    rows = []
    for weights, made in [
        (folding.WEIGHTS, folding.fashion),
        *(
            (f"trained here, seed {seed}", lambda seed=seed: folding.digits(seed))
            for seed in folding.SEEDS
        ),
    ]:
        config, parts, variables = made()
        config.eval.batch = 200
        rows.append(energy.account(config, parts, variables) | {"weights": weights})
        print(f"{energy.table(rows[-1]['work'])}\n\n{energy.text(rows[-1])}\n")
    value = {
        "command": "python experiments/energy.py",
        "what": "counts and energies of one example, means over the whole test set; "
        "energies are estimates, counts times the constants named",
        "commit": rows[0]["commit"],
        "device": rows[0]["device"],
        "rows": rows,
    }
    path = ROOT / "experiments" / "results" / "energy.json"
    path.write_text(json.dumps(value, indent=1) + "\n")
    print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What recall gives to who knows the values, but not which is bound to which key.

    python experiments/recall_floor.py

The best answer without keys is the value that occurs most often. Writes how often it is
right, for 8, 16, 24 and 32 pairs, into experiments/results/recall_floor.json.
"""

import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES, CLASSES = 1_000_000, 10


def floor(pairs: int, seed: int = 0) -> dict[str, float]:
    """Mean of (most frequent value's count) / pairs, and its standard error."""
    rng = np.random.RandomState(seed)
    counts = rng.multinomial(pairs, [1 / CLASSES] * CLASSES, EXAMPLES)
    share = counts.max(1) / pairs
    error = share.std(ddof=1) / np.sqrt(EXAMPLES)
    return {"pairs": pairs, "accuracy": float(share.mean()), "error": float(error)}


def main() -> int:
    value = {
        "command": "python experiments/recall_floor.py",
        "what": "accuracy of answering the most frequent value, values uniform over 10",
        "classes": CLASSES,
        "examples": EXAMPLES,
        "seed": 0,
        "rows": [floor(pairs) for pairs in (8, 16, 24, 32)],
    }
    path = ROOT / "experiments" / "results" / "recall_floor.json"
    path.write_text(json.dumps(value, indent=1) + "\n")
    print(json.dumps(value["rows"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""--mode=eval: the last checkpoint of a run, scored on a split."""

import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from a2os2a_jax.train import workdir as workdirs


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Scores `eval.split`, prints them, adds a line to DIR/evaluations.jsonl."""
    parts, step, variables = workdirs.load_trained(config, workdir)
    scores = parts.evaluator(config, config.eval.split)(variables)
    record = {"step": step, "split": config.eval.split, **scores}
    record |= {"commit": workdirs.commit(), "device": workdirs.device(parts.mesh)}
    path = Path(workdir) / "evaluations.jsonl"
    if jax.process_index() == 0:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    print(
        f"step {step}, {config.eval.split}: accuracy {100 * scores['accuracy']:.2f} %, "
        f"top-5 {100 * scores['top5']:.2f} %, loss {scores['loss']:.4f}, "
        f"{scores['count']:,} examples"
    )
    print(f"wrote a line to {path}")
    return record

"""Puts finished runs into the package as weights to start from: `zoo:NAME`.

    python experiments/zoo.py digits runs/digits
    python experiments/zoo.py fashion_mnist --weights=FILE.safetensors --record=RUN.json
    python experiments/zoo.py --cards     (the cards again, after a table of seeds)

A run is the ordinary command's; or weights are taken that were saved before, with the
file that a sweep kept of their run. Which seed is taken is decided beforehand: the
first, 0. How much the seeds differ is beside it, from the tables that have several.
What is there already is not replaced.
"""

import argparse
import hashlib
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"
sys.path.insert(0, str(ROOT))

from a2os2a_jax import zoo  # noqa: E402

MOST_BYTES = 2_000_000
LICENCE = "Apache-2.0, as this package"
SEEDS = {  # name -> table of the same config over several seeds
    "digits": "digits_seeds",
    "recall": "recall_seeds",
}
COMMANDS = {
    name: f"python -m a2os2a_jax.main --config=configs/{name}.py --workdir=runs/{name}"
    for name in ("digits", "recall", "fashion_mnist")
}
KEPT = ("commit", "device", "versions", "seed", "steps", "epochs", "effective_batch")
KEPT += ("train_seconds", "cpu_seconds")
SHORT = ("step", "epoch", "split", "loss", "accuracy", "lr", "grad_norm", "count")


def add(name: str, run: str, weights: Path | None = None, record: Path | None = None):
    """Writes zoo/NAME, all of it or none.

    Args:
      run: the directory of a finished run; or, with weights and record, "".
    Raises:
      ValueError: the folder is there, the run is not finished, or the weights are
        larger than MOST_BYTES.
    """
    from a2os2a_jax.interop import weights as files
    from a2os2a_jax.train import finetune, inference

    place = zoo.HOME / name
    if place.exists():
        raise ValueError(f"zoo: {name} is there already, expected a new name")
    if weights is None:
        folder = Path(run)
        variables, about = finetune.source(run)
        result = json.loads((folder / "result.json").read_text())
        text = (folder / "metrics.jsonl").read_text()
        log = [json.loads(line) for line in text.splitlines()]
    else:
        folder = weights.parent
        variables, about = files.load(weights)
        result = json.loads(record.read_text())
        log = result["curve"]
    if about["step"] != result["steps"] or about["commit"] != result["commit"]:
        raise ValueError(f"zoo: {name}: the weights are not those of the run's end")
    config = inference.from_json(about["config"], name)
    spec = inference.spec_of(config, folder).to_json()
    kept = {k: about[k] for k in ("step", "weights", "commit", "config")}
    kept["config"]["data"]["data_dir"] = None
    temp = place.with_name(f".{name}.unfinished")
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir(parents=True)
    try:
        files.save(temp / zoo.WEIGHTS, variables, {**kept, "data": spec})
        size = (temp / zoo.WEIGHTS).stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"zoo: {name}: {size:,} bytes, expected {MOST_BYTES:,}")
        lines = [{k: _short(r[k]) for k in SHORT if k in r} for r in log]
        (temp / zoo.LOG).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        made = card_of(name, kept["config"], spec, result, temp / zoo.WEIGHTS)
        (temp / zoo.CARD).write_text(json.dumps(made, indent=2) + "\n")
        (temp / "README.md").write_text(page(name, made))
        temp.rename(place)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return place


def card_of(name, config, spec, result, weights: Path) -> dict[str, Any]:
    from a2os2a_jax.commands.export import terms

    m, test = config["model"], result["test"]
    of = f"{m['name']} {m['variant']}, {m['attention']['kind']}, T = {m['timesteps']}"
    return {
        "about": f"{of}: {100 * test['accuracy']:.2f} % of {test['count']:,} test "
        f"examples of {spec['name']}",
        "model": of,
        "parameters": result["parameters"],
        "data": spec["about"],
        "classes": spec["classes"],
        "test": {k: test[k] for k in ("accuracy", "top5", "loss", "count")},
        "trained": {"command": COMMANDS[name], **{k: result[k] for k in KEPT}},
        "over_seeds": over_seeds(name),
        "terms": {"weights": LICENCE, "data": terms(spec["name"])},
        "bytes": weights.stat().st_size,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "tpu": "never run on a TPU",
    }


def over_seeds(name: str) -> dict[str, Any] | None:
    """The same config over several seeds, from its table; None if there is none."""
    if name not in SEEDS:
        return None
    table = SEEDS[name]
    value = json.loads((RESULTS / f"{table}.json").read_text())
    (row,) = value["rows"]
    a = row["test_accuracy"]
    return {
        "file": f"experiments/results/{table}.json",
        "seeds": row["seeds"],
        **{k: a[k] for k in ("mean", "std", "median", "min", "max")},
        "commits": value["commits"],
    }


def page(name: str, card: dict[str, Any]) -> str:
    """The card for people."""
    trained, test, seeds = card["trained"], card["test"], card["over_seeds"]
    spread = "One run; how much seeds differ was not measured."
    if seeds:
        spread = (
            f"{len(seeds['seeds'])} runs of this config at another commit, seeds "
            f"{seeds['seeds'][0]} to {seeds['seeds'][-1]}: {100 * seeds['mean']:.2f} ± "
            f"{100 * seeds['std']:.2f} % ({100 * seeds['min']:.2f} to "
            f"{100 * seeds['max']:.2f}), "
            f"`{seeds['file']}`."
        )
    versions = ", ".join(f"{k} {v}" for k, v in trained["versions"].items())
    kind = "tasks" if name == "recall" else "pictures"
    facts = {
        "data": card["data"],
        "test": f"accuracy {100 * test['accuracy']:.2f} %, top-5 "
        f"{100 * test['top5']:.2f} %, loss {test['loss']:.4f}, of {test['count']:,} "
        "examples, looked at once, after the last step",
        "seed": f"{trained['seed']}, chosen before it was run. {spread}",
        "trained": f"{trained['epochs']:g} epochs, {trained['steps']:,} steps of an "
        f"effective batch of {trained['effective_batch']}; "
        f"{trained['train_seconds']:,.0f} s of wall clock and "
        f"{trained['cpu_seconds']:,.0f} CPU-seconds, on {trained['device']}",
        "commit": f"{trained['commit']}; {versions}",
        "command": f"`{trained['command']}`; log: `{zoo.LOG}`",
        "file": f"`{zoo.WEIGHTS}`, {card['bytes']:,} bytes, sha256 `{card['sha256']}`",
        "terms": f"weights {card['terms']['weights']}; data {card['terms']['data']}",
        "hardware": card["tpu"],
    }
    lines = [
        f"# zoo:{name}",
        "",
        f"{card['model']}, {card['parameters']:,} parameters.",
        "",
        *(f"- {key}: {value}" for key, value in facts.items()),
        "",
        f"It knows {kind} like those it was trained on; nothing was measured on any "
        "other.",
    ]
    return "\n".join(lines) + "\n"


def _short(value: Any) -> Any:
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.6g}")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", choices=COMMANDS)
    parser.add_argument("run", nargs="?", default="")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--cards", action="store_true")
    args = parser.parse_args()
    if args.cards:
        for name in zoo.names():
            card = {**zoo.card(name), "over_seeds": over_seeds(name)}
            folder = zoo.HOME / name
            (folder / zoo.CARD).write_text(json.dumps(card, indent=2) + "\n")
            (folder / "README.md").write_text(page(name, card))
        return 0
    try:
        if not args.name or bool(args.run) == bool(args.weights and args.record):
            raise ValueError(
                "zoo: expected a name, and a run or --weights and --record"
            )
        print(f"wrote {add(args.name, args.run, args.weights, args.record)}")
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""--mode=train: train or go on training, then two figures and a table."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from a2os2a_jax import failures
from a2os2a_jax.analysis import plots
from a2os2a_jax.commands import figures
from a2os2a_jax.files import expanded
from a2os2a_jax.train import loop, metrics
from a2os2a_jax.train import workdir as workdirs


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Trains, draws what is not drawn yet, prints a table; returns the result."""
    folder = expanded(workdir)
    finished = (folder / "result.json").exists()
    result = loop.run(config, workdir)
    if "stopped_by" in result:
        print(
            f"stopped after step {result['stopped_at']} by {result['stopped_by']}; "
            "saved; the same command goes on"
        )
        return result
    if "stopped_at" in result:
        print(
            f"stopped after step {result['stopped_at']}, as train.stop_after says; the"
        )
        print(f"same command without it goes on. Checkpoint: {folder / 'checkpoints'}")
        return result
    drawn = draw(config, folder)
    if finished:
        print(f"{folder} holds this run already, finished earlier:")
    print(table(result))
    print(f"wrote {folder}: result.json, metrics.jsonl, config.json, data.json,")
    print("      checkpoints/")
    for figure in drawn:
        print(f"      {figure}")
    print(f"next: the same command with --mode=eval scores {folder} again, and a new")
    print("      --workdir with --config.seed=1 or --config.model.attention.kind=none")
    print("      shows how much of it is the seed, and how much the attention;")
    print(f"      --mode=export --workdir={folder} makes a folder to carry away")
    return result


def table(result: dict[str, Any]) -> str:
    """A few lines for people."""
    split = result["config"]["eval"]["split"]  # a finished run's, not ours
    scores, m = result[split], result["config"]["model"]
    rows = [
        (
            "model",
            f"{m['name']} {m['variant']}, {m['attention']['kind']}, "
            f"T = {m['timesteps']}, {result['parameters']:,} parameters",
        ),
        (
            "trained",
            f"{result['epochs']:.3g} epochs, {result['steps']:,} steps, "
            f"seed {result['seed']}",
        ),
        (
            "time",
            f"{result['train_seconds']:.0f} s of wall clock, "
            f"{result['cpu_seconds']:.0f} CPU-s, on {result['device']}",
        ),
        (
            f"{split} accuracy",
            f"{100 * scores['accuracy']:.2f} % of {scores['count']:,}",
        ),
        (f"{split} top-5", f"{100 * scores['top5']:.2f} %"),
        (f"{split} loss", f"{scores['loss']:.4f}"),
        ("firing rate", _range(result["activity"])),
    ]
    width = max(len(name) for name, _ in rows)
    rule = "-" * 72
    return "\n".join([rule, *(f"{name:<{width}}  {text}" for name, text in rows), rule])


def _range(activity: dict[str, Any]) -> str:
    rates = activity["firing_rate"]
    low, high = min(rates, key=rates.get), max(rates, key=rates.get)
    return (
        f"{100 * np.mean(list(rates.values())):.1f} % on average, from "
        f"{100 * rates[low]:.1f} % ({low}) to {100 * rates[high]:.1f} % ({high})"
        # older runs looked at the first batch
        + (f", of {n:,} examples" if (n := activity.get("examples")) else "")
    )


def draw(config: ConfigDict, folder: Path) -> list[Path]:
    """The figures that are not there yet: training curves, spikes of one image."""
    curves = folder / "figures" / "training_curves.png"
    raster = folder / "figures" / "spike_raster.png"
    wanted = [path for path in (curves, raster) if not path.exists()]
    if not wanted or jax.process_index():
        return []
    with failures.spared("figures"):
        plots.check_matplotlib()
        with failures.spared("training curves"):
            if curves in wanted:
                plots.training_curves(
                    metrics.read_lines(folder / "metrics.jsonl"),
                    curves,
                    f"{config.data.name}: {figures.model_of(config)}",
                )
        with failures.spared("spike raster"):
            if raster in wanted:
                _draw_raster(config, folder, raster)
    return [path for path in wanted if path.exists()]


def _draw_raster(config: ConfigDict, folder: Path, path: Path) -> None:
    """As --mode=figures draws it, of what the run ended with."""
    parts, _, variables = workdirs.load_trained(config, folder)
    split = workdirs.read_json(folder / "config.json")["eval"]["split"]
    seen = figures.seen_of(config, parts, variables, split, np.arange(1))
    title = figures.raster_title(figures.what(config, parts), split)
    figures.spike_raster(seen, path, title, parts.dataset.class_names)

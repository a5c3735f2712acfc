"""--mode=probe: how good the features of a run are, by a few labelled examples a class.

The classifier is fitted on examples drawn from the training split of `config.data`, or
of `eval.data`, and scored on `eval.split`. Beside it stands the same on raw pixels: the
difference is what the model adds.
"""

import copy
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from a2os2a_jax import config as configs
from a2os2a_jax.files import expanded
from a2os2a_jax.train import evaluate, finetune, metrics, probe, setup
from a2os2a_jax.train import workdir as workdirs

RULE = "-" * 72


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Prints a table, adds a line to DIR/evaluations.jsonl; returns that line.

    Raises:
      ValueError: no run of this config is there, or `eval.*` asks for what it or the
        data have not; names the key.
    """
    folder, c = expanded(workdir), config.eval
    shots = probe.parse_shots(c.shots)
    if c.split == "train":
        raise ValueError(
            "eval.split: got 'train', expected another: the labelled examples are "
            "drawn from it"
        )
    if c.average != 1:
        raise ValueError(f"eval.average: got {c.average}, expected 1: one checkpoint")
    home = copy.deepcopy(config)
    if _is_other(config):
        home.eval.update(split="test", examples=None)  # the others are of eval.data
    of_training, _ = workdirs.open_run(home, folder)
    changed = workdirs.changed_data(folder, of_training.dataset)
    variables, about = finetune.of_run(
        folder, str(c.checkpoint), average=c.ema, key="eval.checkpoint"
    )
    parts, model = _probed(config, of_training)

    data, mesh = parts.dataset, parts.mesh
    test = data.split(c.split)
    count = evaluate.size_of(test, c.examples)
    labels = probe.labels_of(data.train, mesh, c.batch)
    drawn = probe.draw(labels, data.classes, shots, c.draws)
    chosen = np.unique(np.concatenate([each[max(shots)] for each in drawn]))
    how = dict(batch=c.batch, inputs=probe.fits(count + len(chosen), data.shape))
    labelled = probe.extract(model, variables, data.train, mesh, chosen, **how)
    scored = probe.extract(model, variables, test, mesh, np.arange(count), **how)

    accuracies: dict[str, dict[str, list[float]]] = {}
    for kind in ("features", "inputs") if how["inputs"] else ("features",):
        x, test_x = getattr(labelled, kind), getattr(scored, kind)
        accuracies[kind] = {str(k): [] for k in shots}
        for each in drawn:
            for k, indices in each.items():
                rows = np.searchsorted(chosen, indices)
                accuracies[kind][str(k)].append(
                    probe.accuracy(
                        x[rows], labelled.labels[rows], test_x, scored.labels
                    )
                )
    record = {
        "mode": "probe",
        "step": about["step"],
        "weights": about["weights"],
        "data": data.name,
        "split": c.split,
        "count": count,
        "classes": data.classes,
        "shots": list(shots),
        "draws": c.draws,
        "accuracy": accuracies["features"],
        "accuracy_of_inputs": accuracies.get("inputs"),
        **({"changed": {"data.changed": changed}} if changed else {}),
        "commit": workdirs.commit(),
        "device": workdirs.device(mesh),
    }
    path = folder / "evaluations.jsonl"
    try:
        if jax.process_index() == 0:
            metrics.JsonLines(path)(record)
    finally:  # it is told even where it cannot be kept
        print(table(record))
    if not how["inputs"]:
        print(f"raw inputs left out: they take more than {probe.MAX_BYTES >> 30} GiB")
    if not np.ptp(scored.features, axis=0).any():
        print("features are the same for every example: no spike reaches the head, or")
        print("all do; result.json has the firing rates")
    if not _is_other(config):
        print(
            f"The run was trained on {data.name}, with all labels: this says how well"
        )
        print("its features separate, not how they transfer (--config.eval.data=...)")
    if jax.process_index() == 0:
        print(f"wrote a line to {path}")
    print(f"next: --mode=train with --config.init_from={folder} and a new --workdir")
    print("      trains all weights from here, on this or other data")
    return record


def table(record: dict[str, Any]) -> str:
    """Shots, and mean ± standard deviation of features and of raw inputs."""
    rows = [("shots a class", "labelled", "features", "raw inputs")]
    for k in map(str, record["shots"]):
        inputs = record["accuracy_of_inputs"]
        rows.append(
            (
                k,
                f"{int(k) * record['classes']:,}",
                _percent(record["accuracy"][k]),
                _percent(inputs[k]) if inputs else "-",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join(f"{text:>{width}}" for text, width in zip(row, widths, strict=True))
        for row in rows
    ]
    many = record["draws"] > 1
    what = "mean ± standard deviation over the draws" if many else "one draw"
    return "\n".join(
        [
            RULE,
            f"step {record['step']} ({record['weights']} weights), accuracy on "
            f"{record['count']:,} examples of {record['data']}, {record['split']}",
            *lines,
            what,
            RULE,
        ]
    )


def _percent(values: list[float]) -> str:
    mean, deviation = probe.spread(values)
    if deviation is None:
        return f"{100 * mean:.2f} %"
    return f"{100 * mean:.2f} ± {100 * deviation:.2f} % ({len(values)} draws)"


def _is_other(config: ConfigDict) -> bool:
    return config.eval.data not in (None, config.data.name)


def _probed(config: ConfigDict, trained: setup.Parts) -> tuple[setup.Parts, Any]:
    """(parts of what is probed, the trained model as it takes these examples)."""
    c, new = config.eval, copy.deepcopy(config)
    if not _is_other(config) and (c.size, c.timesteps) == (None, None):
        return trained, trained.model
    if _is_other(config):
        fresh = configs.default().data
        fresh.update(name=c.data, data_dir=config.data.data_dir)
        if c.split == "validation":
            fresh.validation = config.data.validation
        new.data.update(fresh.to_dict())
    new.data.size = new.data.size if c.size is None else c.size
    if c.timesteps is not None:
        new.model.timesteps = c.timesteps
    if pool := getattr(trained.model, "pool", None):
        new.model.pool = pool  # else its default would follow the new size
    # nothing is trained on it: it may be smaller than a batch
    new.train.update(batch=trained.mesh.size, accumulate=1)
    new.optim.warmup_epochs = 0.0
    new.augment = configs.default().augment
    parts = setup.prepare(new)
    model, old = parts.model, trained.dataset
    if parts.dataset.shape[-1] != old.shape[-1]:
        raise ValueError(
            f"eval.data: got {parts.dataset.name} of {parts.dataset.shape[-1]} "
            f"channels, expected {old.shape[-1]}, those of {old.name}"
        )
    if parts.dataset.classes != old.classes:  # the head is not asked, but has a shape
        model = model.clone(num_classes=old.classes)
    return parts, model

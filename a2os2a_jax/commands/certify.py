"""--mode=certify: is the model addition-only at inference, for every input?

The model of the config is folded (`models.fold`) and read equation by equation
(`analysis.audit`). Shapes suffice; where the workdir holds a run, it is its last
checkpoint that is folded, so that weights which do not fit the model are found.
"""

import copy
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from a2os2a_jax import config as configs
from a2os2a_jax import models
from a2os2a_jax.analysis import audit
from a2os2a_jax.data.catalogue import KNOWN
from a2os2a_jax.files import expanded
from a2os2a_jax.train import setup, trained
from a2os2a_jax.train import workdir as workdirs

FILE = workdirs.CERTIFICATE
ALLOW = ("input",)  # the first layer reads an image, not spikes


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Prints the table and the verdict, writes DIR/certificate.json; returns it.

    Raises:
      ValueError: the config describes no model, or the workdir holds another's run.
    """
    folder = expanded(workdir)
    parts, variables, of = _weights(config, folder)
    shape = (1, *parts.dataset.shape)
    tokens = shape[-2] if parts.model.stem == "tokens" else None
    reports = {
        head: certify(
            *models.fold(parts.model, variables, head=head, tokens=tokens), shape
        )
        for head in models.head_orders(parts.model)
    }
    report = next(iter(reports.values()))
    as_trained = certify(parts.model, variables, shape)
    record = {
        "model": f"{config.model.name} {config.model.variant}",
        "data": config.data.name,
        "weights": of,
        "commit": workdirs.commit(),
        "versions": workdirs.versions(),
        "config": {k: v for k, v in config.to_dict().items() if k == "model"},
        "as_trained": {
            "verdict": as_trained.verdict,
            "summary": as_trained.summary(),
            "places": list(dict.fromkeys(o.place for o in as_trained.refused)),
        },
        "heads": {name: head_of(r) for name, r in reports.items()},
        **report.to_json(),
    }
    try:
        if jax.process_index() == 0:
            path = workdirs.write_new(folder / FILE, record)
    finally:  # it is told even where it cannot be kept
        print(f"{report}\n\n{text(record)}")
    if jax.process_index() == 0:
        print(f"wrote {path}")
        print(f"next: {_next(record, (folder / 'config.json').exists(), folder)}")
    return record


def exit_code(record: dict[str, Any]) -> int:
    """1 when a multiplication remains, or nothing is proven."""
    return 0 if record["addition_only"] else 1


def _next(record: dict[str, Any], is_run: bool, folder: Path) -> str:
    if not record["addition_only"]:
        return (
            "the table names the places; docs/certificate.md says what each rule asks"
        )
    if is_run:
        return f"--mode=energy counts what {folder} adds on its data, and the cost"
    return f"--mode=train --workdir={folder} trains it, then --mode=energy counts"


def certify(model: nn.Module, variables: Any, shape: tuple[int, ...]) -> audit.Report:
    """The report on `model.apply` in evaluation mode, of one input shape."""
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return audit.certify(lambda v, x: model.apply(v, x), variables, images, allow=ALLOW)


def _weights(config: ConfigDict, folder: Path) -> tuple[setup.Parts, Any, str]:
    """(parts, variables or their shapes, what they are)."""
    if (folder / "config.json").exists():
        found = trained.load(config, folder)
        steps = ", ".join(map(str, found.steps))
        return found.parts, found.variables, f"{found.weights} of step {steps}"
    if not workdirs.is_free(folder):
        raise ValueError(
            f"workdir {folder} is not empty and holds no config.json, expected a new "
            "or empty directory, or one of this program's"
        )
    unset = configs.default().eval
    for key in ("checkpoint", "average", "data", "timesteps", "size"):
        if (got := config.eval[key]) != unset[key]:
            raise ValueError(
                f"eval.{key}: got {got!r}, expected {unset[key]!r} without a run in "
                f"workdir {folder}"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)  # before the work, lest it be in vain
    except OSError as error:
        raise OSError(f"workdir {folder} cannot be made: {error.strerror}") from error
    parts = setup.prepare(_without_data(config))
    return parts, parts.abstract_state().variables, "shapes alone, no weights"


def _without_data(config: ConfigDict) -> ConfigDict:
    """The same model for made-up data of the same shape, where the shape is known."""
    known, d = KNOWN.get(config.data.name), config.data
    size = d.size or (known and known.size)
    if known is None or not size:
        return config
    new = copy.deepcopy(config)
    new.data = configs.default().data
    new.data.update(
        name="fake",
        size=size,
        channels=d.channels or known.channels,
        classes=d.classes or known.classes,
        timesteps=d.timesteps,
    )
    new.train.update(batch=jax.device_count(), accumulate=1)
    new.optim.warmup_epochs = 0.0
    new.eval.split = "test"
    new.augment = configs.default().augment
    return new


def head_of(report: audit.Report) -> dict[str, Any]:
    """What the head alone takes."""
    own = [o for o in report.operations if not o.folds and (o.path or "head") == "head"]
    kinds = {"additions": 0, "products": 0}
    for o in own:
        if o.kind == audit.ADDITION and not o.of:
            kinds["additions"] += o.count
        elif o in report.products:
            kinds["products"] += o.count
    return {"verdict": report.verdict, **kinds}


def text(record: dict[str, Any]) -> str:
    """What the table does not say."""
    rows = [("weights", record["weights"])]
    rows.append(("as trained", record["as_trained"]["summary"].partition(";")[0]))
    for name, head in record["heads"].items():
        what = f"at most {head['additions']:,} additions"
        if head["products"]:
            what += f", {head['products']:,} products"
        how = {
            "spikes": "weighted first, summed after",
            "counts": "counted first, weighted after",
            "bits": "counted first, weighted bit by bit",
        }[name]
        rows.append((f"head={name}", f"{how}: {what}; model {head['verdict']}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)

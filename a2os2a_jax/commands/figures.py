"""--mode=figures: all that can be drawn of a trained run, as PNG and SVG."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from a2os2a_jax import config as configs
from a2os2a_jax.analysis import rates
from a2os2a_jax.commands import eval as evaluation
from a2os2a_jax.train import evaluate, metrics, trained
from a2os2a_jax.train import workdir as workdirs

IMAGES = 4  # of the token activity
_ENDINGS = (".png", ".svg")


class Missing(Exception):
    """The run holds nothing to draw this figure from; the message says what."""


class Figure(NamedTuple):
    """Attributes:
    name: of the files, without an ending.
    data: () -> what is drawn; on every process, for it may compute. Raises Missing.
    draw: (data, path) writes it.
    source: the file that the numbers are from, if any.
    """

    name: str
    data: Callable[[], Any]
    draw: Callable[[Any, Path], Any]
    source: Path | None = None


class Seen(NamedTuple):
    """What the first batch of a split does in the model, on the host.

    Attributes:
      images: of the first n <= IMAGES examples: [n, H, W, C], or [n, N, F] tokens; the
        mean of all frames where there are some.
      labels, logits: theirs, [n] and [n, classes].
      spikes: theirs, {layer: [n, T, neurons...]} in the order of the network.
      rates: {layer: Rates of [T]} of all `count` examples of the batch.
      count: int.
    """

    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    spikes: dict[str, np.ndarray]
    rates: dict[str, rates.Rates]
    count: int


def run(config: ConfigDict, workdir: str) -> list[Path]:
    """Draws into DIR/figures/ what is not there yet, and says what it did.

    A figure that is there is kept, unless the file with its numbers is newer. If other
    weights, data, T or examples are asked for than those the run ended with, the names
    end in a tag that says so, as in --mode=eval.

    Returns:
      The files written.
    Raises:
      ValueError: an option that does not fit the run, see `trained.load`; or a file of
        the run that is not as expected.
      ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "--mode=figures: matplotlib is not installed (pip install matplotlib)"
        ) from error
    folder, written = Path(workdir), []
    for figure in _figures(config, trained.load(config, folder), folder):
        paths = [folder / "figures" / f"{figure.name}{end}" for end in _ENDINGS]
        due = [path for path in paths if not _is_there(path, figure.source)]
        try:
            data = figure.data() if due else None
        except Missing as reason:
            print(f"no {figure.name.split('_step')[0].replace('_', ' ')}: {reason}")
            continue
        for path in paths if jax.process_index() == 0 else []:
            if path in due:
                figure.draw(data, path)
                written.append(path)
                print(f"wrote {path}")
            else:
                print(f"kept  {path}, which is there already")
    return written


def _is_there(path: Path, source: Path | None) -> bool:
    """Whether the figure is there, and no older than what it is drawn from."""
    if not path.exists():
        return False
    if source is None or not source.exists():
        return True
    return source.stat().st_mtime_ns <= path.stat().st_mtime_ns


def _figures(config: ConfigDict, found: trained.Trained, folder: Path) -> list[Figure]:
    from a2os2a_jax.analysis import plots

    m, dataset = configs.filled(config).model, found.parts.dataset
    model = f"{m.name} {m.variant}, {m.attention.kind}"
    what = f"{model}, on {dataset.name}"
    tag = _tag(config, found, folder)
    end, of = (f"_{tag}", f"{what}, {tag.replace('-', ', ')}") if tag else ("", what)
    seen = functools.cache(lambda: first_batch(config, found))
    energy = folder / "energy.json"

    def rate_map(data, path):
        table, origin = data
        plots.rate_map(table, path, f"Firing rates: {of}; {origin}")

    def token_activity(layers, path):
        plots.token_activity(seen().images, layers, path, f"Token activity: {of}")

    def energy_bars(data, path):
        plots.energy_bars(data["bars"], path, f"Energy: {of}", data.get("note", ""))

    def of_one_image(_, path):
        s = seen()
        plots.spike_raster(
            {name: spikes[0] for name, spikes in s.spikes.items()},
            s.images[0],
            path,
            label=int(s.labels[0]),
            prediction=int(s.logits[0].argmax()),
            class_names=dataset.class_names,
        )

    log = folder / "metrics.jsonl"
    return [
        Figure(
            "training_curves",
            lambda: records(log),
            lambda data, path: plots.training_curves(
                data, path, f"{config.data.name}: {model}"
            ),
            log,
        ),
        Figure(
            f"any_time{end}",
            lambda: any_time(config, found, folder),
            lambda data, path: plots.any_time(data, path, f"Any-time accuracy: {of}"),
        ),
        Figure(f"spike_raster{end}", seen, of_one_image),
        Figure(
            f"rate_map{end}",
            lambda: rate_table(config, found, energy, seen),
            rate_map,
            energy,
        ),
        Figure(f"token_activity{end}", lambda: token_layers(seen()), token_activity),
        Figure(
            f"energy_bars{end}",
            lambda: bars(config, found, energy),
            energy_bars,
            energy,
        ),
    ]


def _tag(config: ConfigDict, found: trained.Trained, folder: Path) -> str:
    """Empty for what the run ended with, else the tag of `evaluation`."""
    ended = workdirs.read_json(folder / "config.json")["eval"]
    asked = {key: config.eval[key] for key in ("split", "examples")}
    as_ended = (
        not found.changed
        and found.steps == (found.parts.total_steps,)
        and all(ended.get(key) == value for key, value in asked.items())
    )
    return "" if as_ended else evaluation.tag(config, found)


def _size(config: ConfigDict, found: trained.Trained) -> int:
    """How many examples are asked for."""
    split = found.parts.dataset.split(config.eval.split)
    return evaluate.size_of(split, config.eval.examples)


def _over(config: ConfigDict, found: trained.Trained, count: int) -> str:
    split = config.eval.split
    all_of_it = count == found.parts.dataset.split(split).size
    return f"{'all' if all_of_it else 'first'} {count:,} of {split}"


def records(log: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; Missing if there are none."""
    lines = metrics.read_lines(log) if log.exists() else []
    if not lines:
        raise Missing(f"{log.name} is not there, or empty")
    return lines


def any_time(config: ConfigDict, found: trained.Trained, folder: Path) -> list[float]:
    """T accuracies: the last that --mode=eval wrote of the same, else scored now."""
    split, log = config.eval.split, folder / "evaluations.jsonl"
    same = {
        "split": split,
        "steps": list(found.steps),
        "weights": found.weights,
        "changed": found.changed,
        "count": _size(config, found),
    }
    for line in reversed(metrics.read_lines(log) if log.exists() else []):
        if line.get("any_time") and same.items() <= line.items():
            return line["any_time"]
    return found.parts.evaluator(config, split).report(found.variables)["any_time"]


def first_batch(config: ConfigDict, found: trained.Trained) -> Seen:
    """One pass of the first `eval.batch` examples of `eval.split`."""
    parts = found.parts
    split = parts.dataset.split(config.eval.split)
    count = min(_size(config, found), config.eval.batch)
    order: list[str] = []  # of the layers in the network; jit returns them sorted

    @jax.jit
    def forward(variables, resident, payload):
        batch = split.gather(resident, payload)
        images, labels = batch["image"], batch["label"]
        logits, sown = parts.model.apply(variables, images, mutable=["spikes"])
        layers = rates.layers(sown["spikes"])
        order.extend(layers)
        few = (images, labels, logits, layers)
        measured = rates.measure_rates(
            sown["spikes"], per_step=True, mask=jnp.where(labels < 0, 0, 1)
        )
        return jax.tree.map(lambda x: x[:IMAGES], few), measured

    payload = split.fetch(np.arange(count))
    few, measured = jax.device_get(forward(found.variables, split.resident, payload))
    images, labels, logits, spikes = few
    if images.ndim == (5 if config.model.stem == "sps" else 4):
        images = images.mean(1)  # over frames
    return Seen(
        images,
        labels,
        logits,
        {name: np.asarray(spikes[name], np.float32) for name in order},
        {name: measured[name] for name in order},
        count,
    )


def token_layers(seen: Seen) -> dict[str, np.ndarray]:
    """{layer: [n, T, N, D]} of the layers whose tokens tile a square image.

    Raises:
      Missing: the examples are no images, or no layer has such tokens.
    """
    found = {}
    for name, s in seen.spikes.items() if seen.images.ndim == 4 else ():
        if s.ndim == 5 and s.shape[2] == s.shape[3]:
            s = s.reshape(*s.shape[:2], -1, s.shape[-1])
        if s.ndim == 4 and round(s.shape[2] ** 0.5) ** 2 == s.shape[2]:
            found[name] = s
    if not found:
        raise Missing("no layer has tokens that are places on a square image")
    return found


def rate_table(
    config: ConfigDict,
    found: trained.Trained,
    energy: Path,
    seen: Callable[[], Seen],
) -> tuple[dict[str, Any], str]:
    """({layer: [T], or plus and minus}, over what): from energy.json, if it has them.

    Raises:
      ValueError: energy.json has a layer without plus and minus.
    """
    try:
        measured = _energy(config, found, energy, "rates")
    except Missing:
        s = seen()
        table = {
            name: {"plus": r.plus, "minus": r.minus} if r.minus.any() else r.rate
            for name, r in s.rates.items()
        }
        return table, _over(config, found, s.count)
    table = {}
    order = [layer.name for layer in found.parts.layers(config)]  # JSON has none
    for name in sorted(measured, key=lambda n: (order + [n]).index(n)):
        of = measured[name]
        if not isinstance(of, dict) or not {"plus", "minus"} <= of.keys():
            raise ValueError(
                f"{energy}: rates of {name} are {str(of)[:60]}, expected an object "
                "with plus and minus"
            )
        signed = "-1" in of.get("alphabet", "") or any(of["minus"])
        plus, minus = of["plus"], of["minus"]
        table[name] = {"plus": plus, "minus": minus} if signed else plus
    return table, _over(config, found, _size(config, found))


def bars(config: ConfigDict, found: trained.Trained, energy: Path) -> dict[str, Any]:
    """energy.json: bars {account: {part: nJ}}, and perhaps a note.

    Raises:
      Missing: there is none of these weights.
    """
    return {
        "bars": _energy(config, found, energy, "bars"),
        "note": workdirs.read_json(energy).get("note") or "",
    }


def _energy(
    config: ConfigDict, found: trained.Trained, path: Path, key: str
) -> dict[str, Any]:
    """What energy.json has under `key`, if it is of the same weights and data."""
    if not path.exists():
        raise Missing("run --mode=energy first")
    record = workdirs.read_json(path)
    same = {
        "weights": f"{found.weights} of step {', '.join(map(str, found.steps))}",
        "changed": found.changed,
        "split": config.eval.split,
        "count": _size(config, found),
    }
    for name, want in same.items():
        if record.get(name, want) != want:
            raise Missing(
                f"{path.name} is not of this run as asked ({name} is {record[name]}, "
                f"expected {want}): run --mode=energy with the same options"
            )
    if not isinstance(record.get(key), dict):
        raise ValueError(f"{path}: got no {key}, expected an object of that name")
    return record[key]

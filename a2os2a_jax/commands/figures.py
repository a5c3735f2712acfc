"""--mode=figures: all that can be drawn of a trained run, as PNG and SVG."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from a2os2a_jax import config as configs
from a2os2a_jax.analysis import plots, rates
from a2os2a_jax.commands import eval as evaluation
from a2os2a_jax.files import expanded
from a2os2a_jax.train import evaluate, metrics, setup, trained
from a2os2a_jax.train import workdir as workdirs

IMAGES = 4  # of the token activity
ENERGY = "energy.json"
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


class Counted(NamedTuple):
    """What --mode=energy wrote of just what is asked for.

    Attributes:
      path: of the file; None if there is none.
      record: what it says.
      why: there is none.
    """

    path: Path | None
    record: Mapping[str, Any]
    why: str = ""


class Seen(NamedTuple):
    """What some examples of a split do in the model, on the host.

    Attributes:
      images: of the first n <= IMAGES examples: [n, H, W, C], or [n, N, F] tokens; the
        mean of all frames where there are some.
      labels, logits: theirs, [n] and [n, classes].
      spikes: theirs, {layer: [n, T, neurons...]} in the order of the network.
      rates: {layer: Rates of [T]} of all `count` examples.
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

    A figure that is there is kept, unless a file with its numbers is newer: of those of
    --mode=energy, the latest of just what is asked for. If other weights, data, T or
    examples are asked for than those the run ended with, the names end in a tag that
    says so, as in --mode=eval.

    Returns:
      The files written.
    Raises:
      ValueError: an option that does not fit the run, see `trained.load`; or a file of
        the run that is not as expected.
      ImportError: matplotlib is not installed.
    """
    plots.check_matplotlib()
    folder, written = expanded(workdir), []
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
    print(f"next: {_next(folder)}")
    return written


def _next(folder: Path) -> str:
    if not (folder / ENERGY).exists():
        return "--mode=energy counts the whole split; then this again adds the bars"
    return f"--mode=export makes a folder of {folder} that runs without this package"


def _is_there(path: Path, source: Path | None) -> bool:
    """Whether the figure is there, and no older than what it is drawn from."""
    if not path.exists():
        return False
    if source is None or not source.exists():
        return True
    return source.stat().st_mtime_ns <= path.stat().st_mtime_ns


def _figures(config: ConfigDict, found: trained.Trained, folder: Path) -> list[Figure]:
    parts, split = found.parts, config.eval.split
    size, tag = _size(config, found), _tag(config, found, folder)
    end, of = f"_{tag}" if tag else "", what(config, parts, tag)
    see = functools.partial(seen_of, config, parts, found.variables, split)
    some = evaluate.sample(size, config.eval.batch)
    seen = functools.cache(lambda: see(some))
    energy = counted(config, found, folder)

    def rate_map(data, path):
        table, origin = data
        plots.rate_map(table, path, f"Firing rates: {of}; {origin}")

    def token_activity(layers, path):
        images = seen().images
        few = _over(config, found, len(images), drawn=True)
        plots.token_activity(images, layers, path, f"Token activity: {of}; {few}")

    def energy_bars(data, path):
        steps = f", T = {data['timesteps']}" if data["timesteps"] else ""
        over = _over(config, found, size)
        title = f"Estimated energy: {of}{steps}; {over}"
        plots.energy_bars(data["bars"], path, title, data["note"])

    log = folder / "metrics.jsonl"
    return [
        Figure(
            "training_curves",
            lambda: records(log),
            lambda data, path: plots.training_curves(
                data, path, f"{config.data.name}: {model_of(config)}"
            ),
            log,
        ),
        Figure(
            f"any_time{end}",
            lambda: any_time(config, found, folder),
            lambda data, path: plots.any_time(
                data, path, f"Any-time accuracy: {of}", size
            ),
        ),
        Figure(
            f"spike_raster{end}",
            lambda: see(np.arange(1)),
            lambda data, path: spike_raster(
                data, path, raster_title(of, split), parts.dataset.class_names
            ),
        ),
        Figure(
            f"rate_map{end}",
            lambda: rate_table(config, found, energy, seen),
            rate_map,
            energy.path,
        ),
        Figure(f"token_activity{end}", lambda: token_layers(seen()), token_activity),
        Figure(f"energy_bars{end}", lambda: bars(energy), energy_bars, energy.path),
    ]


def model_of(config: ConfigDict) -> str:
    m = configs.filled(config).model
    return f"{m.name} {m.variant}, {m.attention.kind}"


def what(config: ConfigDict, parts: setup.Parts, tag: str = "") -> str:
    """Model, data, and the words of the tag, for titles."""
    tagged = f", {tag.replace('-', ', ')}" if tag else ""
    return f"{model_of(config)}, on {parts.dataset.name}{tagged}"


def raster_title(of: str, split: str) -> str:
    return f"{of}; the first of {split}"


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


def _over(
    config: ConfigDict, found: trained.Trained, count: int, drawn: bool = False
) -> str:
    split = config.eval.split
    all_of_it = count == found.parts.dataset.split(split).size
    if drawn and not all_of_it:
        return f"{count:,} of {split}, drawn at random"
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


def seen_of(
    config: ConfigDict,
    parts: setup.Parts,
    variables: Any,
    split: str,
    indices: np.ndarray,
) -> Seen:
    """One pass of these examples of the split."""
    split = parts.dataset.split(split)
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

    payload = split.fetch(indices)
    few, measured = jax.device_get(forward(variables, split.resident, payload))
    images, labels, logits, spikes = few
    if images.ndim == (5 if config.model.stem != "tokens" else 4):
        images = images.mean(1)  # over frames
    return Seen(
        images,
        labels,
        logits,
        {name: np.asarray(spikes[name], np.float32) for name in order},
        {name: measured[name] for name in order},
        len(indices),
    )


def spike_raster(
    seen: Seen, path: Path, title: str, class_names: Sequence[str] | None
) -> Path:
    """Draws the first example."""
    return plots.spike_raster(
        {name: spikes[0] for name, spikes in seen.spikes.items()},
        seen.images[0],
        path,
        label=int(seen.labels[0]),
        prediction=int(seen.logits[0].argmax()),
        class_names=class_names,
        title=title,
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
    energy: Counted,
    seen: Callable[[], Seen],
) -> tuple[dict[str, Any], str]:
    """({layer: [T], or plus and minus}, over what): counted on all, or else seen.

    Raises:
      ValueError: the file of --mode=energy has a layer without plus and minus.
    """
    if energy.path is None:
        s = seen()
        table = {
            name: {"plus": r.plus, "minus": r.minus} if r.minus.any() else r.rate
            for name, r in s.rates.items()
        }
        return table, _over(config, found, s.count, drawn=True)
    order = [layer.name for layer in found.parts.layers(config)]  # JSON has none
    measured = _object(energy, "rates")
    measured = {
        name: measured[name]
        for name in sorted(measured, key=lambda n: (order + [n]).index(n))
    }
    table = signed_rates(measured, energy.path)
    return table, _over(config, found, _size(config, found))


def signed_rates(rates: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """{layer: [T], or plus and minus where its spikes have signs}.

    rates: of the file at path, {layer: {"plus", "minus", "alphabet"}}.
    """
    table = {}
    for name, of in rates.items():
        if not isinstance(of, dict) or not {"plus", "minus"} <= of.keys():
            raise ValueError(
                f"{path}: rates of {name} are {str(of)[:60]}, expected an object "
                "with plus and minus"
            )
        signed = "-1" in of.get("alphabet", "") or any(of["minus"])
        plus, minus = of["plus"], of["minus"]
        table[name] = {"plus": plus, "minus": minus} if signed else plus
    return table


def bars(energy: Counted) -> dict[str, Any]:
    """{"bars": {account: {part: nJ}}, "note", "timesteps"}, the latter perhaps None.

    Raises:
      Missing: --mode=energy wrote nothing of what is asked for.
    """
    if energy.path is None:
        raise Missing(energy.why)
    return {
        "bars": _object(energy, "bars"),
        "note": energy.record.get("note") or "",
        "timesteps": energy.record.get("timesteps"),
    }


def counted(config: ConfigDict, found: trained.Trained, folder: Path) -> Counted:
    """The latest that --mode=energy wrote of these weights, data and examples.

    Raises:
      ValueError: a file that is no JSON object, before one that fits is found.
    """
    want = {
        "weights": f"{found.weights} of step {', '.join(map(str, found.steps))}",
        "changed": found.changed,
        "split": config.eval.split,
        "count": _size(config, found),
    }
    why = "run --mode=energy first"
    for i, path in enumerate(_kept(folder / ENERGY)):
        record = workdirs.read_json(path)
        wrong = [name for name in want if record.get(name) != want[name]]
        if not wrong:
            return Counted(path, record)
        if not i:
            name = wrong[0]
            why = (
                f"{path.name} is not of this run as asked ({name} is "
                f"{record.get(name)}, expected {want[name]}): run --mode=energy with "
                "the same options"
            )
    return Counted(None, {}, why)


def _kept(path: Path) -> list[Path]:
    """The file and the earlier ones that `workdir.write_new` kept, the newest first."""
    numbered = {
        int(number): other
        for other in path.parent.glob(f"{path.stem}.*{path.suffix}")
        if (number := other.name.split(".")[1]).isdecimal()
        and other.name == f"{path.stem}.{number}{path.suffix}"
    }
    earlier = [numbered[number] for number in sorted(numbered, reverse=True)]
    return [path, *earlier] if path.exists() else earlier


def _object(energy: Counted, key: str) -> dict[str, Any]:
    value = energy.record.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"{energy.path}: got no {key}, expected an object")
    return value

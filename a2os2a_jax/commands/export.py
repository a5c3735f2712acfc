"""--mode=export: a trained run as a folder that needs jax, numpy and flatbuffers alone.

DIR/export/ of the last checkpoint, DIR/export_step4/ of another. What is in it:
`interop.export`, docs/export.md.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from a2os2a_jax import config as configs
from a2os2a_jax import texts
from a2os2a_jax.commands import certify
from a2os2a_jax.data import pipeline
from a2os2a_jax.data.catalogue import KNOWN
from a2os2a_jax.files import expanded
from a2os2a_jax.interop import export
from a2os2a_jax.train import inference, metrics
from a2os2a_jax.train import workdir as workdirs

UNKNOWN = "not known"
UNSTATED = "not stated by whoever trained it"
MADE_UP = "none: made up by this program"
TERMS = {  # of data that are in no catalogue
    "digits": "CC BY 4.0 at UCI (Alpaydin and Kaynak 1998), as shipped with "
    "scikit-learn (BSD-3-Clause)",
    "fake": MADE_UP,
    "recall": MADE_UP,
}
SCORES = ("accuracy", "top5", "loss", "count")


def run(config: ConfigDict, workdir: str) -> dict[str, Any]:
    """Writes the folder, and says what it holds; returns the content of model.json.

    Raises:
      ValueError: no run is there, `eval.*` asks for what it has not, or the folder is
        there and holds something else.
      OSError: the folder cannot be written; names it.
    """
    folder = expanded(workdir)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"workdir {folder}: got no config.json, expected the DIR of a trained run"
        )
    place = folder / name_of(config)
    if not jax.process_index():
        export.check_writable(folder, "export", place)
    ready = inference.load(config, workdir)
    model, variables = inference.folded(ready.model, ready.spec, ready.variables)
    about = {
        **describe(ready, folder),
        "certificate": certificate(model, variables, ready.spec),
    }
    if jax.process_index():
        return about
    about, written = export.write(
        place, model, variables, ready.spec.shape, about, card
    )
    print(text(about))
    if written:
        print(f"wrote {place}: {', '.join(export.FILES)}")
    else:
        print(f"kept  {place}, which holds the same already")
    print("next: " + "\n      ".join(_next(place, ready.spec)))
    return about


def _next(place: Path, spec: pipeline.Spec) -> list[str]:
    """Commands: classes of pictures, where it takes any; and what load.py prints."""
    lines = [f"python {shlex.quote(str(place / export.LOADER))}"]
    if len(spec.shape) == 3:
        lines.insert(
            0,
            "python -m a2os2a_jax.main --mode=predict "
            f"--workdir={shlex.quote(str(place))} --image=FILE_OR_FOLDER",
        )
    return lines


def name_of(config: ConfigDict) -> str:
    """export, with a tag for other weights than a run ends with."""
    c = config.eval
    tag = "" if c.checkpoint == "last" else f"_{c.checkpoint}"
    if str(c.checkpoint).isdecimal():
        tag = f"_step{c.checkpoint}"
    return "export" + tag + ("" if c.ema else "_without_ema")


def describe(ready: inference.Ready, folder: Path) -> dict[str, Any]:
    """What model.json says of a run, but for the certificate and the program."""
    spec, config = ready.spec, configs.to_json(ready.config)
    config["data"]["data_dir"] = None  # of no use elsewhere
    name = _without_folders(config["data"]["name"])
    config["data"]["name"] = name
    if config["init_from"]:
        config["init_from"] = _without_folders(f":{config['init_from']}")[1:]
    m = config["model"]
    of = f"{m['name']} {m['variant']}, {m['attention']['kind']}, T = {m['timesteps']}"
    result = folder / "result.json"
    return {
        "model": of,
        "parameters": sum(x.size for x in jax.tree.leaves(ready.variables["params"])),
        "dtype": ready.config.dtype,
        "step": ready.about["step"],
        "weights": ready.about["weights"],
        "metrics": scores(ready, folder),
        "seed": ready.config.seed,
        "trained_by": _picked(
            workdirs.read_json(result) if result.exists() else {},
            ("commit", "device", "versions", "steps", "epochs", "effective_batch"),
        ),
        "commit": workdirs.commit(),
        "versions": workdirs.versions(),
        "data": spec._replace(name=_without_folders(spec.name)).to_json(),
        "terms": {"data": terms(config["data"]["name"]), "weights": UNSTATED},
        "config": config,
    }


def _picked(record: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: record.get(key) for key in keys}


def _without_folders(name: str) -> str:
    """folder:DIR/photos -> folder:photos; other names as they are."""
    scheme, colon, path = name.partition(":")
    if not colon or scheme == "tfds":
        return name
    return f"{scheme}:{Path(path).name or path}"


def terms(name: str) -> str:
    """The licence of a data set, as far as it is known."""
    known = KNOWN.get(name)
    return known.terms if known else TERMS.get(name, UNKNOWN)


def scores(ready: inference.Ready, folder: Path) -> dict[str, Any] | None:
    """{"split", "accuracy", ...} of just these weights, if a file of the run has them.

    Of result.json, or the last that --mode=eval wrote; None if neither has any.
    """
    step, result = ready.about["step"], folder / "result.json"
    if result.exists() and ready.config.eval.ema:
        record = workdirs.read_json(result)
        split = record["config"]["eval"]["split"]
        if record["steps"] == step:
            return {"split": split, **_picked(record[split], SCORES)}
    log = folder / "evaluations.jsonl"
    average = ready.about["weights"] == "average"
    for line in reversed(metrics.read_lines(log) if log.exists() else []):
        plain = "ema" in line.get("changed", {}) or not average
        same = set(line.get("changed", {})) <= {"ema"} and plain != average
        if line.get("steps") == [step] and same:
            return {"split": line["split"], **_picked(line, SCORES)}
    return None


def certificate(model: Any, variables: Any, spec: pipeline.Spec) -> dict[str, Any]:
    """What --mode=certify says of the folded model, at one example."""
    report = certify.certify(model, variables, (1, *spec.shape))
    found = report.to_json()
    return {
        **{k: found[k] for k in ("verdict", "addition_only", "summary", "counts")},
        "products": [
            {k: p.get(k) for k in ("kind", "count", "path", "source", "allowed")}
            for p in found["products"]
        ],
        "head": certify.head_of(report),
    }


# ---- for people


def text(about: Mapping[str, Any]) -> str:
    """A few lines of what was exported."""
    data = pipeline.Spec.from_json(about["data"])
    rows = [
        ("model", f"{about['model']}, {about['parameters']:,} parameters"),
        ("weights", f"step {about['step']:,}, {about['weights']}, folded"),
        ("scores", _scored(about)),
        ("takes", f"{_takes(about)}, x = {formula(data)}"),
        ("certificate", about["certificate"]["summary"].partition(";")[0]),
        ("platforms", ", ".join(about["platforms"])),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _takes(about: Mapping[str, Any]) -> str:
    return f"images {about['takes']['dtype']} {_axes(about['takes'])}"


def _axes(of: Mapping[str, Any]) -> str:
    return f"[{', '.join(map(str, of['shape']))}]"


def formula(data: pipeline.Spec) -> str:
    """How a pixel becomes what the model takes."""
    if len(data.shape) != 3:
        return "as the data set gives it"
    mean, std = (_numbers(values) for values in (data.mean, data.std))
    return f"(pixel / 255 - {mean}) / {std}"


def _numbers(values: tuple[float, ...]) -> str:
    texts = [f"{value:.4g}" for value in values]
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"


def _scored(about: Mapping[str, Any]) -> str:
    found = about["metrics"]
    if not found:
        return "none on record of these weights"
    return (
        f"{found['split']} accuracy {100 * found['accuracy']:.2f} % of "
        f"{found['count']:,}, loss {found['loss']:.4f}, seed {about['seed']}"
    )


def card(about: Mapping[str, Any]) -> str:
    """README.md of the folder."""
    data = pipeline.Spec.from_json(about["data"])
    trained, found = about["trained_by"], about["certificate"]
    classes = f"{data.classes}"
    if data.class_names:
        few = ", ".join(texts.line(name, 60) for name in data.class_names[:20])
        classes += f": {few}" + (", …" if data.classes > 20 else "")
    size = ""
    if len(data.shape) == 3:
        height, width, channels = data.shape
        colours = {1: "grey", 3: "red, green, blue"}.get(channels, "")
        size = f" Height {height}, width {width}, {channels} channel"
        size += "s" if channels > 1 else ""
        size += f" ({colours})." if colours else "."
        if data.stored and data.stored != data.shape[:2]:
            size += " The set's pictures are {}x{}, and are enlarged.".format(
                *data.stored
            )
        if data.crop != 1:
            size += (
                f" A picture is cut to the square in its middle, {data.crop:g} of its "
                "shorter side, and resized (bicubic)."
            )
    note = f" {data.note}." if data.note else ""
    kind = ""
    if about["config"]["model"]["attention"]["kind"] == "a2os2a":
        kind = (
            " with addition-only attention (A2OS2A, Guo et al. 2025, arXiv:2503.00226)"
        )
    lines = [
        f"# {about['model']}, trained on {texts.line(data.name)}",
        "",
        f"A spiking transformer{kind}, exported by a2os2a_jax. It stands alone: no "
        "other file, and no package but jax, numpy and flatbuffers, is needed.",
        "",
        "## Load",
        "",
        "```python",
        "from load import load  # in this folder",
        "",
        'model = load(".")',
        "logits = model(images)  # softmax of them for probabilities",
        "```",
        "",
        "## What it takes and gives",
        "",
        f"- takes `images`, {about['takes']['dtype']} `{_axes(about['takes'])}`, any "
        f"batch b >= 1, normalised: x = {formula(data)}.{size}",
        f"- gives logits, {about['returns']['dtype']} `{_axes(about['returns'])}`",
        f"- classes, {classes}",
        f"- runs on {', '.join(about['platforms'])}; computes in {about['dtype']}",
        "",
        "## What it is",
        "",
        f"- model: {about['model']}, {about['parameters']:,} parameters before folding",
        f"- data: {texts.line(data.about or data.name)}.{note}",
        f"- weights: {about['weights']}, step {about['step']}, seed {about['seed']}; "
        f"trained at commit {trained['commit'] or UNKNOWN}, on "
        f"{trained['device'] or UNKNOWN}",
        f"- scores: {_scored(about)}",
        f"- certificate of the folded model: {found['summary']}",
        "",
        "What it answers on anything but pictures of this kind is not known, and "
        "nothing was measured of it.",
        "",
        "## Terms",
        "",
        f"- data: {about['terms']['data']}",
        f"- weights: {about['terms']['weights']}",
        "- `load.py`: Apache-2.0, as a2os2a_jax",
        "",
        "`model.json` holds all of this, the whole config, and the sha256 of "
        f"`{export.WEIGHTS}` and `{export.PROGRAM}`.",
    ]
    return "\n".join(lines) + "\n"

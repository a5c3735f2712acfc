"""--mode=predict: the classes of your own pictures, by a run, an export or zoo:NAME.

Everything is written to a folder of its own, --out, or predictions/NAME, where NAME is
the model's: what predicted stays as it is.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from a2os2a_jax.analysis import rates
from a2os2a_jax.data import images, pictures
from a2os2a_jax.train import inference, metrics
from a2os2a_jax.train import workdir as workdirs

FIGURES = 8  # pictures that are drawn, unless --figures
LINES = 50  # of the table
BATCH = 32
OUT = "predictions"
LOG, ABOUT = "predictions.jsonl", "predictions.json"
_MANY = 1000  # classes up to which all probabilities are written


class Answer(NamedTuple):
    """Of one picture, on the host.

    Attributes:
      path: of the file.
      pixels: uint8 [H, W, C], as the model sees it but for the normalisation.
      logits: [classes], of the program that answers.
      per_step: [T, classes], of the model step by step.
      spikes: {layer: [T, neurons...]} in the order of the network; None if not drawn.
    """

    path: Path
    pixels: np.ndarray
    logits: np.ndarray
    per_step: np.ndarray
    spikes: dict[str, np.ndarray] | None


def run(
    config: ConfigDict,
    workdir: str,
    *,
    image: str | None = None,
    top: int = 5,
    out: str | None = None,
    figures: int = FIGURES,
) -> list[dict[str, Any]]:
    """Prints a table, writes predictions.jsonl and figures; returns the lines.

    Args:
      config: as the model was trained, `inference.config_of`.
      workdir: the DIR of a run, an exported folder, or zoo:NAME.
      image: a picture, or a folder of pictures.
      top: classes that are told of a picture.
      out: new or empty folder; None is predictions/NAME, or NAME-2, ...
      figures: how many pictures are drawn, the first ones.
    Raises:
      ValueError: no picture can be read, the model takes none, `out` is not empty, or
        an option does not fit.
    """
    if image is None:
        raise ValueError("--image: got none, expected a picture or a folder of them")
    if top < 1 or figures < 0:
        raise ValueError(
            f"--top, --figures: got {top} and {figures}, expected at least 1 and 0"
        )
    _check_out(out)
    files = pictures.files(image)
    ready = inference.load(config, workdir)
    pictures.check(ready.spec)
    spec, top = ready.spec, min(top, ready.spec.classes)
    readable = _Readable(files, spec)
    first = next(iter(readable), None)
    if first is None:
        raise ValueError(
            f"--image: got no readable picture of {len(files)}; the first: "
            f"{readable.unread[0]}"
        )
    folder = _folder(out, ready.name)
    folder.mkdir(parents=True, exist_ok=True)
    readable = _Readable(files, spec)
    root = Path(image).expanduser()
    lines, drawn, disagreeing, inverted = [], [], [], 0
    log = metrics.JsonLines(folder / LOG)
    draw = _drawer(ready, folder) if figures else None
    for answer in answers(ready, readable, figures if draw else 0):
        line = record(answer, ready, root, top)
        log(line)
        lines.append(line)
        inverted += pictures.is_inverted(answer.pixels, spec)
        by_steps = answer.per_step.mean(0).argmax()
        if ready.exported is not None and by_steps != answer.logits.argmax():
            disagreeing.append(line["file"])
        if answer.spikes is not None and draw:
            drawn.append(draw(answer, line, drawn))
    print(table(lines, ready, top))
    _notes(readable, disagreeing, inverted, len(files), ready)
    workdirs.write_json(
        folder / ABOUT,
        {
            "model": ready.about,
            "data": spec.name,
            "classes": list(spec.class_names) or spec.classes,
            "probability": "softmax of the logits",
            "per_step": "softmax of the mean of the logits of the steps so far",
            "read": len(lines),
            "not_read": [str(error) for error in readable.unread],
            "commit": workdirs.commit(),
            "versions": workdirs.versions(),
        },
    )
    print(f"wrote {folder}: {LOG}, {ABOUT}")
    for path in drawn:
        print(f"      {path}")
    if len(lines) > len(drawn) and draw:
        print(f"      {len(lines) - len(drawn):,} more are drawn by --figures=N")
    print(f"next: {_next(ready, workdir)}")
    return lines


class _Readable:
    """(path, pixels) of the files that can be read; the others are in `unread`."""

    def __init__(self, files: Sequence[Path], spec):
        self.files, self.spec = files, spec
        self.unread: list[images.Corrupt] = []

    def __iter__(self) -> Iterator[tuple[Path, np.ndarray]]:
        for path in self.files:
            try:
                yield path, pictures.read(path, self.spec)
            except images.Corrupt as error:
                self.unread.append(error)


def answers(
    ready: inference.Ready, readable: _Readable, figures: int
) -> Iterator[Answer]:
    """An Answer for each picture, in order; with spikes for the first so many."""
    batch: list[tuple[Path, np.ndarray]] = []
    size = min(BATCH, len(readable.files))
    order: list[str] = []  # of the layers in the network; jit returns them sorted
    normalise = jax.jit(pictures.inputs(ready.spec))

    @jax.jit
    def forward(variables, x):
        per_step, sown = ready.model.apply(
            variables, x, per_step=True, mutable=["spikes"]
        )
        layers = rates.layers(sown["spikes"])
        order.extend(layers)
        return per_step, layers

    done = 0

    def of(batch):
        nonlocal done
        filled = batch + batch[:1] * (size - len(batch))  # one shape, compiled once
        x = normalise(np.stack([pixels for _, pixels in filled]))
        per_step, layers = forward(ready.variables, x)
        logits = per_step.mean(1) if ready.exported is None else ready.exported(x)
        logits, per_step = jax.device_get((logits, per_step))
        wanted = max(0, min(len(batch), figures - done))
        seen = jax.device_get({k: v[:wanted] for k, v in layers.items()})
        for i, (path, pixels) in enumerate(batch):
            spikes = None
            if i < wanted:
                spikes = {k: np.asarray(seen[k][i], np.float32) for k in order}
            yield Answer(path, pixels, logits[i], per_step[i], spikes)
        done += len(batch)

    for item in readable:
        batch.append(item)
        if len(batch) == size:
            yield from of(batch)
            batch = []
    if batch:
        yield from of(batch)


def softmax(logits: np.ndarray) -> np.ndarray:
    """[..., classes], in float64."""
    wide = np.asarray(logits, np.float64)
    e = np.exp(wide - wide.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def any_time(per_step: np.ndarray) -> np.ndarray:
    """Probabilities [T, classes] after 1 to T steps, of the mean of logits so far."""
    steps = np.arange(1, len(per_step) + 1)[:, None]
    return softmax(np.cumsum(np.asarray(per_step, np.float64), 0) / steps)


def record(
    answer: Answer, ready: inference.Ready, root: Path, top: int
) -> dict[str, Any]:
    """The line of a picture in predictions.jsonl."""
    p, spec = softmax(answer.logits), ready.spec
    best = np.argsort(-p, kind="stable")[:top]
    name = answer.path.relative_to(root) if root.is_dir() else answer.path
    line = {
        "file": name.as_posix(),
        "class": spec.class_name(int(best[0])),
        "label": int(best[0]),
        "probability": float(p[best[0]]),
        "top": [[spec.class_name(int(c)), float(p[c])] for c in best],
        "per_step": any_time(answer.per_step)[:, best].tolist(),  # of the top classes
    }
    if spec.classes <= _MANY:
        line["probabilities"] = p.tolist()
    return line


def table(lines: Sequence[dict[str, Any]], ready: inference.Ready, top: int) -> str:
    """File, class, probability, and the next classes; the first LINES of them."""
    rows = [("file", "class", "probability", "next" if top > 1 else "")]
    for line in lines[:LINES]:
        others = ", ".join(f"{_short(c)} {100 * p:.1f} %" for c, p in line["top"][1:])
        rows.append(
            (
                _short(line["file"], 40, end=False),
                _short(line["class"]),
                f"{100 * line['probability']:.1f} %",
                others,
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    texts = [
        f"{file:<{widths[0]}}  {name:<{widths[1]}}  {p:>{widths[2]}}  {rest}".rstrip()
        for file, name, p, rest in rows
    ]
    if len(lines) > LINES:
        texts.append(f"… and {len(lines) - LINES:,} more, in {LOG}")
    step = ready.about.get("step")
    of = f"{ready.about['source']}" + (f", step {step:,}" if step is not None else "")
    return "\n".join([f"{of}: {_count(len(lines), 'picture')}", *texts])


def _short(text: str, most: int = 24, end: bool = True) -> str:
    """At most so many characters, with an ellipsis at its end or its start."""
    if len(text) <= most:
        return text
    return text[: most - 1] + "…" if end else "…" + text[-most + 1 :]


def _notes(
    readable: _Readable, disagreeing: list[str], inverted: int, count: int, ready
) -> None:
    """What has to be said beside the table."""
    for error in readable.unread[:5]:
        print(f"left out {error}", file=sys.stderr)
    if readable.unread:
        of = f"{len(readable.unread):,} of {_count(count, 'picture')}"
        print(f"left out in all: {of}, unreadable", file=sys.stderr)
    if disagreeing:
        print(
            f"the exported program and the model rebuilt from its weights disagree in "
            f"the class of {len(disagreeing)}: {', '.join(disagreeing[:5])}; the class "
            "is the program's, spikes and steps are the model's"
        )
    if inverted:
        mean = ready.spec.mean[0]
        print(
            f"hint: {_count(inverted, 'picture')} more bright than dark; those of "
            f"{ready.spec.name} are white on black (mean {mean:.2f} of 1): invert yours"
        )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("s" if number != 1 else "")


def _check_out(out: str | None) -> None:
    if out is None:
        return
    folder = Path(out).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out: {folder} is not empty, expected a new folder")


def _folder(out: str | None, name: str) -> Path:
    """--out, or the first of predictions/NAME, NAME-2, ... that is not there."""
    if out is not None:
        return Path(out).expanduser()
    name, number = re.sub(r"[^\w.-]+", "_", name), 1
    while (folder := Path(OUT, name + (f"-{number}" if number > 1 else ""))).exists():
        number += 1
    return folder


def _drawer(ready: inference.Ready, folder: Path):
    """(answer, line, drawn) -> path of its figure; None without matplotlib."""
    try:
        import matplotlib  # noqa: F401

        from a2os2a_jax.analysis import plots
    except ImportError:
        print("no figures: matplotlib is not installed (pip install matplotlib)")
        return None

    def draw(answer: Answer, line: dict[str, Any], drawn: Sequence[Path]) -> Path:
        name = Path(line["file"]).with_suffix("")
        below = name.name if name == answer.path.with_suffix("") else str(name)
        stem = re.sub(r"[^\w.-]+", "_", below)
        stem = stem.strip("_")[-80:] or "picture"
        path, number = folder / f"{stem}.png", 2
        while path in drawn:  # a.png and a.jpg
            path, number = folder / f"{stem}-{number}.png", number + 1
        return plots.prediction(
            answer.pixels,
            answer.spikes,
            line["per_step"],
            [name for name, _ in line["top"]],
            path,
            probabilities=[p for _, p in line["top"]],
            title=f"{Path(line['file']).name}; {ready.name}, trained on "
            f"{ready.spec.name}",
        )

    return draw


def _next(ready: inference.Ready, workdir: str) -> str:
    if ready.exported is None and (Path(workdir) / "config.json").is_file():
        return f"--mode=export --workdir={workdir} makes it run without this package"
    return "docs/export.md says what is in the files, and how to load the model"

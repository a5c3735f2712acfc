"""--mode=predict: the classes of your own pictures, by a run, an export or zoo:NAME.

Everything is written to a folder of its own, --out, or predictions/NAME, where NAME is
the model's: what predicted stays as it is.
"""

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from a2os2a_jax import failures, texts
from a2os2a_jax.analysis import plots, rates
from a2os2a_jax.data import checks, images, pictures
from a2os2a_jax.files import expanded
from a2os2a_jax.interop.export import check_writable, writing
from a2os2a_jax.train import inference, metrics
from a2os2a_jax.train import workdir as workdirs

FIGURES = 8  # pictures that are drawn, unless --figures
LINES = 50  # of the table
BATCH = 32
OUT = "predictions"
LOG, ABOUT = "predictions.jsonl", pictures.ANSWERS
EVERY = 10.0  # seconds between two lines of progress
_MANY = 1000  # classes up to which all probabilities are written


class Answer(NamedTuple):
    """Of one picture, on the host.

    Attributes:
      path: of the file.
      pixels: uint8 [H, W, C], as the model sees it but for the normalisation.
      logits: [classes], of the program that answers.
      per_step: [T, classes], of the model step by step.
    """

    path: Path
    pixels: np.ndarray
    logits: np.ndarray
    per_step: np.ndarray


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

    A line is written as soon as its picture is answered; until all are,
    predictions.json says that it is not finished. A figure that fails is named on
    stderr, and costs nothing else.

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
      OSError: the folder cannot be written; names it.
    """
    if not image:
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
    about = {
        "model": ready.about,
        "data": spec.name,
        "classes": list(spec.class_names) or spec.classes,
        "probability": "softmax of the logits",
        "per_step": "softmax of the mean of the logits of the steps so far",
        "commit": workdirs.commit(),
        "versions": workdirs.versions(),
    }
    with writing(folder, "--out"):
        folder.mkdir(parents=True, exist_ok=True)
        workdirs.write_json(folder / ABOUT, {"finished": False, **about})
        log = metrics.JsonLines(folder / LOG)
    readable = _Readable(files, spec)
    root = expanded(image)
    lines, drawn, disagreeing, inverted = [], [], [], 0
    draw = _drawer(ready, folder) if figures else None
    progress = _progress(len(files))
    try:
        for answer in answers(ready, readable):
            line = record(answer, ready, root, top)
            with writing(folder, "--out"):
                log(line)
            lines.append(line)
            inverted += pictures.is_inverted(answer.pixels, spec)
            by_steps = answer.per_step.mean(0).argmax()
            if ready.exported is not None and by_steps != answer.logits.argmax():
                disagreeing.append(_flat(line["file"]))
            if draw and len(lines) <= figures:
                drawn += draw(answer, line, drawn)
            progress(len(lines) + len(readable.unread))
    except BaseException:  # also where somebody stops it
        if lines:
            done = f"{len(lines):,} of {_count(len(files), 'picture')}"
            print(f"answered before: {done}, in {folder / LOG}", file=sys.stderr)
        raise
    counts = {
        "read": len(lines),
        "not_read": [str(error) for error in readable.unread],
    }
    with writing(folder, "--out"):
        workdirs.write_json(folder / ABOUT, {"finished": True, **about, **counts})
    print(table(lines, ready, top))
    _notes(readable, disagreeing, inverted, len(files), ready)
    print(f"wrote {folder}: {LOG}, {ABOUT}")
    for path in drawn:
        print(f"      {path}")
    if len(lines) > figures and draw:
        print(f"      {len(lines) - figures:,} more are drawn by --figures=N")
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


def answers(ready: inference.Ready, readable: _Readable) -> Iterator[Answer]:
    """An Answer for each picture, in order."""
    batch: list[tuple[Path, np.ndarray]] = []
    size = min(BATCH, len(readable.files))
    normalise = jax.jit(pictures.inputs(ready.spec))
    forward = jax.jit(lambda v, x: ready.model.apply(v, x, per_step=True))

    def of(batch):
        filled = batch + batch[:1] * (size - len(batch))  # one shape, compiled once
        stack = np.stack([pixels for _, pixels in filled])
        checks.check_finite("predict", "pictures", stack)  # bytes always are
        x = normalise(stack)
        per_step = forward(ready.variables, x)
        logits = per_step.mean(1) if ready.exported is None else ready.exported(x)
        logits, per_step = jax.device_get((logits, per_step))
        for i, (path, pixels) in enumerate(batch):
            yield Answer(path, pixels, logits[i], per_step[i])

    for item in readable:
        batch.append(item)
        if len(batch) == size:
            yield from of(batch)
            batch = []
    if batch:
        yield from of(batch)


def spikes_of(ready: inference.Ready) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """pixels [H, W, C] -> {layer: [T, neurons...]} in the order of the network.

    A program of its own, for one picture: spikes of a batch would take gigabytes of a
    large model, and few pictures are drawn.
    """
    order: list[str] = []  # jit returns the layers sorted
    normalise = jax.jit(pictures.inputs(ready.spec))

    @jax.jit
    def forward(variables, x):
        _, sown = ready.model.apply(variables, x, mutable=["spikes"])
        layers = rates.layers(sown["spikes"])
        order[:] = layers
        return layers

    def of(pixels: np.ndarray) -> dict[str, np.ndarray]:
        layers = jax.device_get(forward(ready.variables, normalise(pixels[None])))
        return {name: np.asarray(layers[name][0], np.float32) for name in order}

    return of


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
        # names are bytes, which need not be of UTF-8
        "file": os.fsencode(name.as_posix()).decode("utf-8", "replace"),
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


def _flat(text: str) -> str:
    """On one line: names of files may hold line breaks."""
    return texts.line(text)


def _short(text: str, most: int = 24, end: bool = True) -> str:
    """At most so many characters of one line, the middle or the start cut out."""
    if end:
        return texts.line(text, most)
    text = _flat(text)
    return text if len(text) <= most else "…" + text[-most + 1 :]


def _notes(
    readable: _Readable, disagreeing: list[str], inverted: int, count: int, ready
) -> None:
    """What has to be said beside the table."""
    for error in readable.unread[:5]:
        print(f"left out {_flat(str(error))}", file=sys.stderr)
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


def _progress(total: int) -> Callable[[int], None]:
    """Of how many are done: a line on stderr every EVERY seconds; none of one batch."""
    last = time.monotonic()

    def of(done: int) -> None:
        nonlocal last
        if BATCH < total > done and time.monotonic() - last >= EVERY:
            last = time.monotonic()
            print(f"{done:,} of {total:,} pictures", file=sys.stderr, flush=True)

    return of


def _check_out(out: str | None) -> None:
    """ValueError, OSError: what would be found once the model is loaded."""
    if out is None:
        check_writable(Path(OUT), "--out")
        return
    if not out:
        raise ValueError("--out: got none, expected a new or empty folder")
    folder = expanded(out)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"--out: {folder} is not empty, expected a new folder")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out: {folder} is a file, expected a new folder")
    check_writable(folder, "--out")


def _folder(out: str | None, name: str) -> Path:
    """--out, or the first of predictions/NAME, NAME-2, ... that is not there."""
    if out is not None:
        return expanded(out)
    name, number = re.sub(r"[^\w.-]+", "_", name), 1
    while (folder := Path(OUT, name + (f"-{number}" if number > 1 else ""))).exists():
        number += 1
    return folder


def _drawer(ready: inference.Ready, folder: Path):
    """(answer, line, drawn) -> [path of its figure], [] if it failed; None without
    matplotlib."""
    see = None
    with failures.spared("figures"):
        plots.check_matplotlib()
        see = spikes_of(ready)
    if see is None:
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
            see(answer.pixels),
            line["per_step"],
            [name for name, _ in line["top"]],
            path,
            probabilities=[p for _, p in line["top"]],
            title=f"{_flat(Path(line['file']).name)}; {ready.name}, trained on "
            f"{ready.spec.name}",
        )

    def tried(answer, line, drawn) -> list[Path]:
        with failures.spared(f"figure of {_flat(line['file'])}"):
            return [draw(answer, line, drawn)]
        return []

    return tried


def _next(ready: inference.Ready, workdir: str) -> str:
    if ready.exported is None and (Path(workdir) / "config.json").is_file():
        return (
            "python -m a2os2a_jax.main --mode=export "
            f"--workdir={shlex.quote(str(workdir))}"
        )
    return "docs/export.md says what is in the files, and how to load the model"

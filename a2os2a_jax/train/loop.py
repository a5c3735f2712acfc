"""Training as one story: data, model, state, resume, steps, evaluation, result.

`run` is what --mode=train calls, and what a notebook calls. The same call resumes: the
step number alone says where in the data and in the randomness a run was.
"""

import functools
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from a2os2a_jax import config as configs
from a2os2a_jax import data as datasets
from a2os2a_jax.data import augment, pipeline
from a2os2a_jax.models import build
from a2os2a_jax.train import metrics, optim, parallel, step
from a2os2a_jax.train.checkpoint import Checkpoints
from a2os2a_jax.train.evaluate import Evaluator

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class NonFiniteError(FloatingPointError):
    """The loss or the gradient was NaN or infinite; the message names the step."""


class Parts(NamedTuple):
    """What a config describes, before anything is trained."""

    dataset: pipeline.Dataset
    model: nn.Module
    mesh: Mesh
    tx: optax.GradientTransformation
    rate: optax.Schedule
    total_steps: int
    epoch_steps: int

    def abstract_state(self) -> step.TrainState:
        """Shapes, dtypes and shardings of the state, for `Checkpoints.restore`."""
        make = functools.partial(step.init_state, self.model, self.tx)
        shapes = jax.eval_shape(make, jax.random.key(0), self._example())
        sharding = parallel.whole(self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
        )

    def fresh_state(self, key: jax.Array) -> step.TrainState:
        """The initial state, whole on every device."""
        make = functools.partial(step.init_state, self.model, self.tx)
        make = jax.jit(make, out_shardings=parallel.whole(self.mesh))
        return make(key, self._example())

    def _example(self) -> jax.Array:
        return jnp.zeros((1, *self.dataset.shape), jnp.float32)

    def evaluator(self, config: ConfigDict, split: str) -> Evaluator:
        c = config.eval
        examples = c.examples if split == c.split else None
        return Evaluator(
            self.model,
            self.dataset.split(split),
            self.mesh,
            batch=c.batch,
            examples=examples,
        )


def prepare(config: ConfigDict) -> Parts:
    """Everything that can be wrong with a config is found here, in seconds.

    Raises:
      ValueError: names the key, what was got and what was expected.
    """
    configs.check(config)
    d, m, o, t = config.data, config.model, config.optim, config.train
    options = {"channels": d.channels, "keys": d.pairs}
    dataset = datasets.load(
        d.name,
        size=d.size,
        classes=d.classes,
        data_dir=d.data_dir,
        validation=d.validation,
        seed=config.seed,
        timesteps=d.timesteps,
        **{k: v for k, v in options.items() if v is not None},
    )
    dataset.split(config.eval.split)
    mesh = parallel.make_mesh(config.mesh.data)
    parallel.check_batch("train.batch", t.batch, mesh)
    attention = {k: v for k, v in m.attention.items() if k != "freeze"}
    model = build(
        m.name,
        m.variant,
        num_classes=dataset.classes,
        image_size=dataset.shape[-3] if m.stem == "sps" else None,
        in_channels=dataset.shape[-1],
        timesteps=m.timesteps,
        heads=m.heads,
        pool=m.pool,
        attention=attention,
        neuron=m.neuron.to_dict(),
        shortcut=m.shortcut,
        dtype=config.dtype,
        stem=m.stem,
        readout=m.readout,
        mlp_ratio=m.mlp_ratio,
        remat=m.remat,
    )
    epoch_steps = pipeline.steps_per_epoch(dataset.train.size, t.batch)
    total_steps = max(1, round(t.epochs * epoch_steps)) if t.steps is None else t.steps
    rate = optim.schedule(
        lr=o.lr,
        warmup_lr=o.warmup_lr,
        min_lr=o.min_lr,
        warmup_steps=round(o.warmup_epochs * epoch_steps),
        total_steps=total_steps,
    )
    tx = optim.adamw(rate, weight_decay=o.weight_decay, clip=o.clip)
    return Parts(dataset, model, mesh, tx, rate, total_steps, epoch_steps)


def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    loggers: Sequence[metrics.Logger] = (),
) -> dict[str, Any]:
    """Trains, or goes on training, or reports what is finished already.

    Args:
      config: see `a2os2a_jax.config.default`; files in `configs/` make one.
      workdir: made if it is not there. Receives config.json, metrics.jsonl,
        checkpoints/, tensorboard/ and, at the end, result.json.
      loggers: called with every record that goes to metrics.jsonl.
    Returns:
      What result.json holds; with "stopped_at" instead of scores if `train.stop_after`
      ended the run early.
    Raises:
      ValueError: a config that cannot be run, or a workdir that belongs to another one.
      OSError: a workdir that cannot be made.
      NonFiniteError: the loss or gradient was not finite; the last checkpoint is kept.
    """
    parts = prepare(config)
    workdir = Path(workdir)
    c, main_process = config.train, jax.process_index() == 0
    if finished := claim(workdir, config):
        return finished
    start_wall, start_cpu = time.perf_counter(), time.process_time()

    # ---- state: from the last checkpoint that loads, or from the seed
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    checkpoints = Checkpoints(workdir / "checkpoints")
    spent = {"train_seconds": 0.0, "cpu_seconds": 0.0}
    if restored := checkpoints.restore(parts.abstract_state()):
        start, state = restored
        spent = checkpoints.meta(start)["spent"]
    else:
        start, state = 0, parts.fresh_state(init_key)
        if checkpoints.skipped:
            print(f"no checkpoint of {workdir} loads: starting again from the seed")
    parameters = sum(x.size for x in jax.tree.leaves(state.params))

    # ---- where the numbers go
    log_path = workdir / "metrics.jsonl"
    progress = metrics.Progress(parts.total_steps, start, c.batch)
    loggers = list(loggers)
    if main_process:
        metrics.truncate_after(log_path, start)
        loggers.append(metrics.JsonLines(log_path))
        board = metrics.tensorboard_or_none(workdir / "tensorboard", start)
        loggers += [board] if board else []
    m, kind = config.model, jax.devices()[0].device_kind
    progress.message(
        f"{m.name} {m.variant}, {m.attention.kind}, T = {m.timesteps}: "
        f"{parameters:,} parameters; {parts.dataset.name}: "
        f"{parts.dataset.train.size:,} training examples; {parts.mesh.size} x {kind}"
    )
    if start:
        progress.message(f"resuming after step {start:,} of {parts.total_steps:,}")

    def log(record: dict[str, Any]) -> None:
        for logger in loggers:
            logger(record)

    # ---- what is compiled
    train = parts.dataset.train
    a = config.augment
    train_step = step.make_train_step(
        parts.model,
        parts.tx,
        parts.rate,
        train,
        key=step_key,
        augment=augment.build(
            flip=a.flip,
            shift=a.shift,
            rotate=a.rotate,
            zoom=a.zoom,
            fill=parts.dataset.black,
        ),
        label_smoothing=c.label_smoothing,
    )
    whole = parallel.whole(parts.mesh)
    train_step = jax.jit(train_step, donate_argnums=0, out_shardings=(whole, whole))
    resident = parallel.put_whole(train.resident, parts.mesh)
    held_out = parts.dataset.validation is not None
    validate = parts.evaluator(config, "validation") if held_out else None

    def validation(now: int) -> None:
        scores = validate(state.variables)
        activity = validate.activity(state.variables)
        means = {k: _mean(v) for k, v in activity.items()}
        log(
            {"step": now, "epoch": now / parts.epoch_steps, "split": "validation"}
            | scores
            | means
        )
        progress.message(
            f"  validation after epoch {now / parts.epoch_steps:.1f}: "
            f"accuracy {100 * scores['accuracy']:.2f} %, loss {scores['loss']:.4f}"
        )
        progress.mark(now)

    def spent_so_far() -> dict[str, float]:
        return {
            "train_seconds": spent["train_seconds"] + time.perf_counter() - start_wall,
            "cpu_seconds": spent["cpu_seconds"] + time.process_time() - start_cpu,
        }

    # ---- steps
    window: list[tuple[int, dict[str, jax.Array]]] = []  # logged when it is full
    record: dict[str, Any] = {}

    def drain() -> dict[str, float]:
        """Means of the window; the numbers are fetched here, and looked at."""
        rows = jax.device_get([row for _, row in window])
        for (at, _), row in zip(window, rows, strict=True):
            for name in ("loss", "grad_norm"):
                if not math.isfinite(row[name]):
                    raise NonFiniteError(
                        f"step {at}: {name} is {float(row[name])}, expected a finite "
                        "number; the last checkpoint is that of step "
                        f"{max(checkpoints.steps(), default=0)}. Lower optim.lr or set "
                        "optim.clip"
                    )
        window.clear()
        means = {k: _mean({i: r[k] for i, r in enumerate(rows)}) for k in rows[0]}
        return means | {"lr": float(rows[-1]["lr"])}

    every = {
        "save": max(1, round(c.save_epochs * parts.epoch_steps)),
        "validate": max(1, round(config.eval.epochs * parts.epoch_steps)),
    }
    last = min(parts.total_steps, c.stop_after or parts.total_steps)
    try:
        for now in range(start + 1, last + 1):
            indices = pipeline.train_indices(
                now - 1,
                seed=config.seed,
                size=train.size,
                batch=c.batch,
                fresh=train.fresh,
            )
            payload = train.fetch(parallel.local_part(indices))
            payload = parallel.put_batch(payload, parts.mesh)
            state, row = train_step(state, resident, payload)
            window.append((now, row))
            if now == start + 1:
                jax.block_until_ready(row)  # compiled: the clock of the rates starts
                progress.mark(now)
            saves = now % every["save"] == 0 or now == last
            validates = validate and (now % every["validate"] == 0 or now == last)
            if now % c.log_steps == 0 or saves or validates:
                record = {"step": now, "epoch": now / parts.epoch_steps}
                record |= {"split": "train"} | drain()
                record["images_per_s"] = progress.update(now, record)
                log(record)
            if validates:
                validation(now)
            if saves:
                checkpoints.save(now, state, {"spent": spent_so_far()})
                progress.mark(now)
    finally:
        progress.close()
        checkpoints.close()

    # ---- the end
    result = {
        "task": parts.dataset.name,
        "config": configs.to_json(config),
        "commit": commit(),
        "device": device(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "seed": config.seed,
        "steps": last,
        "epochs": last / parts.epoch_steps,
        **spent_so_far(),
        "parameters": parameters,
    }
    if last < parts.total_steps:
        return result | {"stopped_at": last}
    evaluator = parts.evaluator(config, config.eval.split)
    scores = evaluator(state.variables)
    activity = evaluator.activity(state.variables)
    means = {k: _mean(v) for k, v in activity.items()}
    at = {"step": last, "epoch": last / parts.epoch_steps, "split": config.eval.split}
    log(at | scores | means)
    result |= {"train": {k: record.get(k) for k in ("loss", "accuracy")}}
    result |= {config.eval.split: scores, "activity": activity}
    result |= spent_so_far()
    if main_process:
        write_json(workdir / "result.json", result)
    return result


def claim(workdir: Path, config: ConfigDict) -> dict[str, Any] | None:
    """Makes `workdir` this config's, or finds that it is.

    Returns:
      The result of a finished run of the same config, else None.
    Raises:
      ValueError: it holds another config's run, or files that no run made.
      OSError: it cannot be made or written.
    """
    mine = configs.to_json(config)
    path = workdir / "config.json"
    if path.exists():
        if differing := configs.differences(json.loads(path.read_text()), mine):
            raise ValueError(
                f"workdir {workdir} holds a run of another config: "
                f"{'; '.join(differing)}. Take another --workdir"
            )
        result = workdir / "result.json"
        return json.loads(result.read_text()) if result.exists() else None
    if workdir.is_dir() and any(workdir.iterdir()):
        raise ValueError(
            f"workdir {workdir} is not empty and holds no config.json, expected a new "
            "or empty directory, or one of this program's"
        )
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"workdir {workdir} cannot be made: {error.strerror}"
            ) from error
        write_json(path, mine)
    return None


def load_trained(
    config: ConfigDict, workdir: str | os.PathLike
) -> tuple[Parts, int, dict[str, Any]]:
    """(parts, step, variables) of the last checkpoint of a run.

    Raises:
      ValueError: no run of this config is there, or it has no checkpoint that loads.
    """
    workdir = Path(workdir)
    if not (workdir / "config.json").exists():
        raise ValueError(
            f"workdir {workdir}: got no config.json, expected a run to load"
        )
    parts = prepare(config)
    claim(workdir, config)
    checkpoints = Checkpoints(workdir / "checkpoints")
    restored = checkpoints.restore(parts.abstract_state())
    if restored is None:
        raise ValueError(
            f"workdir {workdir}: got no checkpoint, expected one that loads"
        )
    return parts, restored[0], restored[1].variables


def write_json(path: Path, value: Any) -> None:
    """Writes all of the file or none of it."""
    temp = path.with_name(f".{path.name}.tmp")
    temp.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    os.replace(temp, path)


def commit() -> str | None:
    """The commit this runs from, "+changes" if files differ; None outside git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        ask = functools.partial(
            subprocess.run, capture_output=True, text=True, check=True, timeout=10
        )
        name = ask([*git, "rev-parse", "HEAD"]).stdout.strip()
        dirty = ask([*git, "status", "--porcelain", "--untracked-files=no"]).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return name + ("+changes" if dirty.strip() else "")


def device() -> str:
    """For example "2 x TPU v5 lite", "1 x cpu (x86_64, 2 cores)"."""
    devices = jax.devices()
    text = f"{len(devices)} x {devices[0].device_kind}"
    if devices[0].platform == "cpu":
        text += f" ({platform.machine()}, {os.cpu_count()} cores)"
    return text


def _mean(values: dict[Any, Any]) -> float:
    return float(sum(map(float, values.values())) / len(values))

"""Training as one story: data, model, state, resume, steps, evaluation, result.

`run` is what --mode=train calls, and what a notebook calls. The same call resumes: the
step number alone says where in the data and in the randomness a run was.
"""

import contextlib
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from a2os2a_jax import config as configs
from a2os2a_jax.analysis import summary
from a2os2a_jax.data import pipeline
from a2os2a_jax.files import expanded
from a2os2a_jax.train import finetune, metrics, parallel, step
from a2os2a_jax.train.checkpoint import Checkpoints
from a2os2a_jax.train.evaluate import Abandoned, Evaluator
from a2os2a_jax.train.interrupt import Interrupt
from a2os2a_jax.train.setup import prepare
from a2os2a_jax.train.trained import EMA, PLAIN
from a2os2a_jax.train.workdir import (
    claim,
    commit,
    device,
    held,
    settle_data,
    versions,
    write_json,
)


class NonFiniteError(FloatingPointError):
    """Something was NaN or infinite: loss, gradient, parameters, running statistics.

    The message names it and the step.
    """


def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    loggers: Sequence[metrics.Logger] = (),
) -> dict[str, Any]:
    """Trains, or goes on training, or reports what is finished already.

    Args:
      config: see `a2os2a_jax.config.default`; files in `configs/` make one.
      workdir: made if it is not there. Receives config.json, data.json,
        metrics.jsonl, checkpoints/, tensorboard/ and, at the end, result.json.
      loggers: called with every record that goes to metrics.jsonl.
    Returns:
      What result.json holds; with "stopped_at" instead of scores if `train.stop_after`
      or a signal (see `interrupt`) ended the run early; a signal also by its name, as
      "stopped_by". Either way the state is saved, and the same call goes on.
    Raises:
      ValueError: a config that cannot be run, or a workdir that belongs to another one,
        or to other data.
      OSError: a workdir that cannot be made, or that another process uses.
      NonFiniteError: loss, gradient or state was not finite; the last checkpoint is
        kept.
    """
    workdir = expanded(workdir)
    with held(workdir, "train"):
        return _run(config, workdir, loggers)


def _run(
    config: ConfigDict, workdir: Path, loggers: Sequence[metrics.Logger]
) -> dict[str, Any]:
    parts = prepare(config)
    c, main_process = config.train, jax.process_index() == 0
    if config.init_from is not None:
        fresh = parts.abstract_state().variables
        finetune.check(config.init_from, workdir, fresh, config.eval.ema)
    finished = claim(workdir, config)
    settle_data(workdir, config, parts.dataset)
    if finished:
        return finished
    start_wall, start_cpu = time.perf_counter(), time.process_time()

    # ---- state: from the last checkpoint that loads, or from init_from and the seed
    init_key, step_key = jax.random.split(jax.random.key(config.seed))
    checkpoints = Checkpoints(workdir / "checkpoints", c.keep)
    spent = {"train_seconds": 0.0, "cpu_seconds": 0.0}
    origin: dict[str, Any] = {}  # {"init_from": ...}
    notes: list[str] = []
    if restored := checkpoints.restore(parts.abstract_state()):
        start, state = restored
        meta = checkpoints.meta(start)
        spent = meta["spent"]
        origin = {k: meta[k] for k in ("init_from",) if k in meta}
    else:
        start, state = 0, parts.fresh_state(init_key)
        if checkpoints.skipped:
            print(f"no checkpoint of {workdir} loads: starting again from the seed")
        if config.init_from is not None:
            state, origin["init_from"], notes = finetune.begin(
                config.init_from, state, config, parts.mesh
            )
            # a restart begins from this, also if the run it came from has gone on
            checkpoints.save(0, state, {"spent": spent, **origin}, None)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))

    # ---- where the numbers go
    log_path = workdir / "metrics.jsonl"
    earlier: list[dict[str, Any]] = []  # what a resumed run has logged already
    progress = metrics.Progress(parts.total_steps, start, c.batch)
    loggers = list(loggers)
    if main_process:
        metrics.truncate_after(log_path, start)
        earlier = metrics.read_lines(log_path) if log_path.exists() else []
        loggers.append(metrics.JsonLines(log_path))
        board = metrics.tensorboard_or_none(workdir / "tensorboard", start)
        loggers += [board] if board else []
    m, kind = configs.filled(config).model, jax.devices()[0].device_kind
    progress.message(
        f"{m.name} {m.variant}, {m.attention.kind}, T = {m.timesteps}: "
        f"{parameters:,} parameters; {parts.dataset.name}: "
        f"{parts.dataset.train.size:,} training examples; {parts.mesh.size} x {kind}"
    )
    parted = f" = {c.accumulate} micro-batches of {c.batch // c.accumulate}"
    progress.message(
        f"batch {c.batch}{parted if c.accumulate > 1 else ''}, which is what batch "
        "normalisation sees"
    )
    if parts.ema is not None:
        progress.message(
            "evaluated is the moving average of weights and BN statistics, decay "
            f"{parts.ema}; saved are that and the weights themselves"
        )
    for note in notes:
        progress.message(note)
    if start:
        progress.message(f"resuming after step {start:,} of {parts.total_steps:,}")
    elif main_process:
        progress.message(summary.text(parts.layers(config)))

    def log(record: dict[str, Any]) -> None:
        for logger in loggers:
            logger(record)

    # ---- what is compiled
    train = parts.dataset.train
    train_step = step.make_train_step(
        parts.model,
        parts.tx,
        parts.rate,
        train,
        key=step_key,
        inputs=parts.inputs,
        loss=parts.loss,
        accumulate=c.accumulate,
        ema=parts.ema,
        frozen=parts.frozen,
    )
    whole = parallel.whole(parts.mesh)
    if c.dispatch > 1:
        train_step = step.make_many_steps(train_step, c.dispatch)
    train_step = jax.jit(train_step, donate_argnums=0, out_shardings=(whole, whole))
    resident = parallel.put_whole(train.resident, parts.mesh)
    held_out = parts.dataset.validation is not None
    validate = parts.evaluator(config, "validation") if held_out else None

    interrupt = Interrupt()
    judged: dict[tuple[int, str], tuple[dict, dict]] = {}

    def logged(now: int, split: str) -> bool:
        at = {"step": now, "split": split}
        return any(at.items() <= r.items() and "top5" in r for r in earlier)

    def judge(evaluator: Evaluator, now: int, split: str) -> tuple[dict, dict] | None:
        """(scores, activity) of the state at step `now`; measured and logged once.

        None if a signal comes: who sent it may not wait for a score.
        """
        if (now, split) not in judged:
            try:
                scores = evaluator(state.judged, stop=interrupt.noted)
            except Abandoned:
                return None
            activity = evaluator.activity(state.judged)
            judged[now, split] = scores, activity
            at = {"step": now, "epoch": now / parts.epoch_steps, "split": split}
            if not logged(now, split):
                log(at | scores | _of_layers(activity, config.eval.layers))
        return judged[now, split]

    def spent_so_far() -> dict[str, float]:
        return {
            "train_seconds": spent["train_seconds"] + time.perf_counter() - start_wall,
            "cpu_seconds": spent["cpu_seconds"] + time.process_time() - start_cpu,
        }

    # ---- steps
    # (steps of a dispatch, their metrics), logged when it is full
    window: list[tuple[range, dict[str, jax.Array]]] = []
    of_training = [r for r in earlier if r.get("split") == "train" and "lr" in r]
    record = of_training[-1] if of_training else {}
    finite = jax.jit(step.finite, out_shardings=whole)

    def fail(at: int, what: str) -> None:
        saved = f"step {max(checkpoints.steps())}" if checkpoints.steps() else "none"
        advice, bad = "Lower optim.lr or set optim.clip", None
        seen = (order(now - 1) for steps, _ in window for now in steps)
        with contextlib.suppress(Exception):  # no memory, say: it is for a word only
            bad = pipeline.first_not_finite(train, seen)
        if bad is not None:
            advice = f"It comes from the data: training example {bad} is not finite"
        raise NonFiniteError(
            f"step {at}: {what}, expected finite numbers; last checkpoint: {saved}. "
            f"{advice}"
        )

    def drain() -> dict[str, float]:
        """Means of the window; the numbers are fetched here, and looked at."""
        rows = []
        for steps, found in zip(
            [steps for steps, _ in window],
            jax.device_get([found for _, found in window]),
            strict=True,
        ):
            if c.dispatch == 1:
                rows.append(found)
            else:
                rows += [{k: v[i] for k, v in found.items()} for i in range(len(steps))]
        all_steps = [at for steps, _ in window for at in steps]
        for at, row in zip(all_steps, rows, strict=True):
            for name in ("loss", "grad_norm"):
                if not math.isfinite(row[name]):
                    fail(at, f"{name} is {float(row[name])}")
        for name, is_finite in jax.device_get(finite(state.variables)).items():
            if not is_finite:
                fail(all_steps[-1], f"{name} holds NaN or infinity")
        window.clear()
        means = {k: _mean({i: r[k] for i, r in enumerate(rows)}) for k in rows[0]}
        return means | {"lr": float(rows[-1]["lr"])}

    every = {
        "save": max(1, round(c.save_epochs * parts.epoch_steps)),
        "validate": max(1, round(config.eval.epochs * parts.epoch_steps)),
    }
    last = max(start, min(parts.total_steps, c.stop_after or parts.total_steps))

    def saved_at(now: int) -> bool:
        """Whether a run that nothing stops saves there, and so scores, too."""
        return now % every["save"] == 0 or now == parts.total_steps

    def validated_at(now: int) -> bool:
        return bool(validate) and (saved_at(now) or now % every["validate"] == 0)

    order = pipeline.Order(
        seed=config.seed,
        size=train.size,
        batch=c.batch,
        fresh=train.fresh,
        processes=jax.process_count(),
        process=jax.process_index(),
    )
    feed = pipeline.feed(train, order, start, last)

    def dispatch(done: int) -> range:
        """Sends the next steps, as many as go at once; returns which."""
        nonlocal state
        if c.dispatch == 1:
            payload = parallel.put_batch(next(feed), parts.mesh)
            state, row = train_step(state, resident, payload)
            steps = range(done + 1, done + 2)
        else:
            # up to the next one that somebody wants to look at
            ends = [done + c.dispatch, last]
            ends += [done + n - done % n for n in (c.log_steps, every["save"])]
            if validate:
                ends.append(done + every["validate"] - done % every["validate"])
            steps = range(done + 1, min(ends) + 1)
            payloads = [next(feed) for _ in steps]
            payloads += payloads[:1] * (c.dispatch - len(steps))
            payloads = parallel.put_batches(payloads, parts.mesh)
            state, row = train_step(state, resident, payloads, np.int32(len(steps)))
        window.append((steps, row))
        if done == start:
            jax.block_until_ready(row)  # compiled: the clock of the rates starts
            progress.mark(steps[-1])
        return steps

    stopped_by, final_scores = None, None
    closing = contextlib.closing
    with interrupt, checkpoints, closing(progress), closing(feed):
        if start and validated_at(start) and not logged(start, "validation"):
            judge(validate, start, "validation")  # a signal had no time for it
        now = start
        while now < last:
            now = dispatch(now)[-1]
            saves, validates = saved_at(now) or now == last, validated_at(now)
            stopped_by, score = interrupt.requested(now), None
            if now % c.log_steps == 0 or saves or validates or stopped_by:
                record = {"step": now, "epoch": now / parts.epoch_steps}
                record |= {"split": "train", "batch": c.batch} | drain()
                record["images_per_s"] = progress.update(now, record)
                log(record)
            if validates and not stopped_by:
                if found := judge(validate, now, "validation"):
                    score = found[0]["accuracy"]
                    progress.message(
                        f"  validation after epoch {now / parts.epoch_steps:.1f}: "
                        f"accuracy {100 * score:.2f} %, loss {found[0]['loss']:.4f}"
                    )
                    progress.mark(now)
                else:
                    stopped_by = interrupt.requested(now)
            if saves or stopped_by:
                meta = {"spent": spent_so_far(), **origin}
                checkpoints.save(now, state, meta, score)
                progress.mark(now)
            if stopped_by:
                last = now
                break
        if last == parts.total_steps and not stopped_by:
            split = config.eval.split
            final = (
                validate if split == "validation" else parts.evaluator(config, split)
            )
            final_scores = judge(final, last, split)
            stopped_by = None if final_scores else interrupt.requested(last)

    # ---- the end
    result = {
        "task": parts.dataset.name,
        "data": {"about": parts.dataset.about, "note": parts.dataset.note},
        "config": configs.to_json(config),
        "commit": commit(),
        "device": device(parts.mesh),
        "versions": versions(),
        "seed": config.seed,
        "steps": last,
        "epochs": last / parts.epoch_steps,
        **spent_so_far(),
        "parameters": parameters,
        "effective_batch": c.batch,
        "weights": PLAIN if parts.ema is None else EMA,  # those that are scored
        **origin,
    }
    if stopped_by:  # also while the end was judged, which the next start does again
        return result | {"stopped_at": last, "stopped_by": stopped_by}
    if last < parts.total_steps:
        return result | {"stopped_at": last}
    scores, activity = final_scores
    result |= {"train": {k: record.get(k) for k in ("loss", "accuracy")}}
    result |= {split: scores, "activity": activity}
    result |= spent_so_far()
    if main_process:
        write_json(workdir / "result.json", result)
    return result


def _of_layers(activity: dict[str, Any], each: bool) -> dict[str, Any]:
    """What is logged of `Evaluator.activity`: means, and the layers if `each`."""
    kinds = {k: v for k, v in activity.items() if k != "examples"}
    means = {kind: _mean(layers) for kind, layers in kinds.items()}
    means["activity_examples"] = activity["examples"]
    return means | ({"layers": kinds} if each else {})


def _mean(values: dict[Any, Any]) -> float:
    return float(sum(map(float, values.values())) / len(values))

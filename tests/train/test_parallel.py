"""One device and eight give the same numbers, in a process that has eight of them.

This file is that process, too: `python tests/train/test_parallel.py FILE` measures and
writes FILE.npz.
"""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax import models
from a2os2a_jax.data import augment
from a2os2a_jax.data.sources import fake
from a2os2a_jax.train import (
    checkpoint,
    evaluate,
    loop,
    losses,
    metrics,
    parallel,
    setup,
    step,
)

DEVICES, BATCH = (1, 8), 16
EVALUATIONS = [(7, None), (64, 37)]  # batch, examples


def measure() -> dict[str, np.ndarray]:
    """Of one training step, and of evaluations, on 1 and on 8 devices, in float64."""
    data = fake.load(size=8, channels=1)
    model = models.build(
        "columnar",
        "1-16",
        num_classes=10,
        image_size=8,
        in_channels=1,
        timesteps=2,
        heads=2,
        pool="0001",
        dtype="float64",
    )
    tx = optax.sgd(1.0)  # new = old - gradient
    moves = augment.build(flip=True, shift=1.0, rotate=10.0, fill=data.black)
    key = jax.random.key(1)
    one = jnp.zeros((1, *data.shape))
    start = jax.jit(functools.partial(step.init_state, model, tx))
    start = jax.device_get(start(jax.random.key(0), one))
    train_step = step.make_train_step(
        model,
        tx,
        lambda n: 1.0,
        data.train,
        key=key,
        inputs=step.Inputs(moves),
        loss=losses.make("cross_entropy", smoothing=0.1),
    )

    in_halves = step.make_train_step(
        model,
        tx,
        lambda n: 1.0,
        data.train,
        key=key,
        inputs=step.Inputs(moves),
        accumulate=2,
    )

    def watched(state, resident, payload):
        """The step, and what went in and out of its forward pass."""
        images = data.train.gather(resident, payload)["image"]
        images = moves(jax.random.fold_in(key, state.step), images)
        logits, kept = model.apply(
            state.variables, images, train=True, mutable=["batch_stats", "spikes"]
        )
        rates = [(s != 0).mean() for s in jax.tree.leaves(kept["spikes"])]
        new, metrics = train_step(state, resident, payload)
        return new, metrics, {"images": images, "logits": logits, "rates": rates}

    out = {}
    for count in DEVICES:
        mesh = parallel.make_mesh(count)
        whole = parallel.whole(mesh)
        state = parallel.put_whole(start, mesh)
        payload = data.train.fetch(np.arange(BATCH)[::-1])
        payload = parallel.put_batch(payload, mesh)
        assert len(payload.addressable_shards) == count
        assert payload.addressable_shards[0].data.shape == (BATCH // count,)
        resident = parallel.put_whole(data.train.resident, mesh)
        halves = jax.jit(in_halves, out_shardings=whole)
        halves = halves.lower(state, resident, payload).compile()
        new, _ = halves(state, resident, payload)
        gradient = jax.tree.map(lambda a, b: a - b, start.params, new.params)
        leaves = [np.ravel(x) for x in jax.tree.leaves((gradient, new.batch_stats))]
        out[f"halves/{count}"] = np.concatenate(leaves)
        moved = re.findall(r"all-(?:gather|to-all)\(", halves.as_text())
        out[f"halves move/{count}"] = np.array(len(moved))
        run = jax.jit(watched, out_shardings=(whole, whole, None))
        new, metrics, seen = run(state, resident, payload)
        for leaf in jax.tree.leaves(new):
            assert leaf.sharding.is_fully_replicated
            assert len(leaf.addressable_shards) == count
        gradient = jax.tree.map(lambda a, b: a - b, start.params, new.params)
        for name, tree in {
            "loss": metrics["loss"],
            "accuracy": metrics["accuracy"],
            "grad_norm": metrics["grad_norm"],
            "statistics": new.batch_stats,
            "gradient": gradient,
            **seen,
        }.items():
            leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
            out[f"{name}/{count}"] = np.concatenate(leaves)
        if (
            count == 1
        ):  # evaluation with the statistics of this batch: else all is silent
            variables = {
                "params": start.params,
                "batch_stats": jax.tree.map(
                    lambda new, old: (np.asarray(new) - 0.9 * old) / 0.1,
                    new.batch_stats,
                    start.batch_stats,
                ),
            }
        for batch, examples in EVALUATIONS:
            evaluator = evaluate.Evaluator(
                model, data.test, mesh, batch=batch, examples=examples
            )
            scores = evaluator(parallel.put_whole(variables, mesh))
            out[f"evaluation/{batch}/{examples}/{count}"] = np.array(
                [scores[k] for k in ("accuracy", "top5", "loss", "count")]
            )
    index = np.arange(data.test.size, dtype=np.uint32)
    batch = data.test.gather(data.test.resident, index)
    logits = jax.jit(model.apply)(variables, batch["image"])
    return out | {"test_logits": logits, "test_labels": batch["label"]}


RUNS = {  # how many devices take steps 1 and 2, how many step 3
    "one": (1, 1),
    "eight, then one": (8, 1),
}


def train(folder: Path) -> dict[str, np.ndarray]:
    """Parameters and scores of whole runs on 1 and 8 devices, and across a change."""
    c = configs.default()
    c.dtype = "float64"
    c.data.update(name="fake", size=8, channels=1, classes=4)
    c.model.update(variant="1-16", timesteps=2, heads=2, pool="0001")
    c.augment.flip = True
    c.optim.update(lr=1e-3, warmup_lr=1e-3)
    c.train.update(batch=BATCH, steps=3, log_steps=1)
    c.eval.update(batch=32, examples=50)
    out = {}
    for name, (first, last) in RUNS.items():
        workdir = folder / name
        c.mesh.data = first
        c.train.stop_after = None if first == last else 2
        result = loop.run(c, workdir)
        if first != last:
            assert result["stopped_at"] == 2
            c.train.stop_after, c.mesh.data = None, last
            result = loop.run(c, workdir)
        assert result["device"].startswith(f"{last} x "), result["device"]
        state = checkpoint.Checkpoints(workdir / "checkpoints").restore(
            setup.prepare(c).abstract_state()
        )[1]
        leaves = [np.asarray(x).ravel() for x in jax.tree.leaves(state.variables)]
        out[f"trained/{name}"] = np.concatenate(leaves)
        scores = [result["test"][k] for k in ("accuracy", "top5", "loss", "count")]
        out[f"scores/{name}"] = np.array(scores)
        records = metrics.read_lines(workdir / "metrics.jsonl")
        out[f"losses/{name}"] = np.array([r["loss"] for r in records])
    return out


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    from tests.compiling import quick_flags  # not for the process of its own

    path = tmp_path_factory.mktemp("devices") / "measured.npz"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {quick_flags()}",
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }
    subprocess.run(
        [sys.executable, __file__, path], env=environment, check=True, timeout=300
    )
    with np.load(path) as file:
        return dict(file)


def test_the_comparison_is_not_one_of_silence_with_silence(measured):
    rates = measured["rates/1"]
    assert rates.size == 11 and rates.min() > 0.02 and rates.max() < 0.7
    assert measured["gradient/1"].size > 5000
    assert (np.abs(measured["gradient/1"]) > 1e-6).mean() > 0.8
    assert np.ptp(measured["logits/1"]) > 0.1 and measured["loss/1"] > 0.5
    assert np.ptp(measured["test_logits"], axis=0).min() > 0.02


@pytest.mark.parametrize(
    "name",
    ["images", "logits", "loss", "accuracy", "grad_norm", "statistics", "gradient"],
)
def test_a_training_step_is_the_same_on_1_and_on_8_devices(measured, name):
    one, eight = measured[f"{name}/1"], measured[f"{name}/8"]
    assert np.abs(one - eight).max() <= 1e-10 * np.abs(one).max()


def test_micro_batches_are_the_same_on_1_and_on_8_devices(measured):
    """And no example travels: each device takes its share of each part."""
    one, eight = measured["halves/1"], measured["halves/8"]
    assert np.abs(one - eight).max() <= 1e-10 * np.abs(one).max()
    whole = np.concatenate([measured["gradient/1"], measured["statistics/1"]])
    assert np.abs(one - whole).max() > 1e-3 * np.abs(whole).max()
    assert measured["halves move/8"] == 0


def test_every_example_of_a_batch_is_augmented_in_its_own_way(measured):
    images = measured["images/8"].reshape(BATCH, -1)
    plain = fake.load(size=8, channels=1).train
    plain = plain.gather(plain.resident, np.arange(BATCH, dtype=np.uint32)[::-1])
    assert (np.abs(images - plain["image"].reshape(BATCH, -1)).max(1) > 0.1).all()


@pytest.mark.parametrize("count", DEVICES)
@pytest.mark.parametrize(("batch", "examples"), EVALUATIONS)
def test_evaluation_is_exact_for_any_batch_and_devices(
    measured, batch, examples, count
):
    logits, labels = measured["test_logits"], measured["test_labels"]
    n = examples or len(labels)
    logits, labels = logits[:n], labels[:n]
    of_label = logits[np.arange(n), labels]
    rank = (logits > of_label[:, None]).sum(1)
    loss = np.log(np.exp(logits).sum(1)) - of_label
    got = measured[f"evaluation/{batch}/{examples}/{count}"]
    want = [(rank < 1).mean(), (rank < 5).mean(), loss.mean(), n]
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [name for name in RUNS if name != "one"])
@pytest.mark.parametrize("what", ["trained", "scores", "losses"])
def test_a_run_is_the_same_on_other_devices_and_across_a_change(measured, what, name):
    want, got = measured[f"{what}/one"], measured[f"{what}/{name}"]
    assert want.shape == got.shape and np.abs(want).max() > 0.1
    assert np.abs(want - got).max() <= 1e-6 * np.abs(want).max()


@pytest.mark.parametrize("data", [0, -2, 99])
def test_a_mesh_that_cannot_be_made_is_refused(data):
    expected = len(jax.devices())
    with pytest.raises(
        ValueError, match=f"mesh.data: got {data}, expected -1 or 1 to {expected}, the"
    ):
        parallel.make_mesh(data)


def test_minus_one_takes_all_devices():
    assert parallel.make_mesh().size == len(jax.devices())
    assert parallel.make_mesh(1).size == 1


class Four:
    size = 4


@pytest.mark.parametrize("batch", [1, 6, 63])
def test_a_batch_the_devices_cannot_share_is_refused(batch):
    parallel.check_batch("train.batch", 64, Four)
    with pytest.raises(
        ValueError, match=f"train.batch: got {batch}, expected a multiple of 4"
    ):
        parallel.check_batch("train.batch", batch, Four)


def test_a_single_process_loads_the_whole_batch():
    indices = np.arange(6)
    np.testing.assert_array_equal(parallel.local_part(indices), indices)


def test_several_processes_share_a_batch_in_order(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    parts = []
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        parts.append(parallel.local_part(np.arange(6)))
    np.testing.assert_array_equal(parts, [[0, 1], [2, 3], [4, 5]])


def test_put_keeps_values_and_dtypes():
    mesh = parallel.make_mesh(1)
    tree = {"a": np.arange(4, dtype=np.uint8), "b": np.ones((2, 3), np.float32)}
    for put in (parallel.put_batch, parallel.put_whole):
        got = put(tree, mesh)
        for name, value in tree.items():
            assert got[name].dtype == value.dtype
            np.testing.assert_array_equal(got[name], value)


class OnGpu:
    """A mesh of one device that says it is a GPU."""

    class devices:
        class _Device:
            platform = "gpu"

        flat = (_Device,)


def test_determinism_on_a_gpu_needs_the_flag_before_jax_starts(monkeypatch):
    cpu = parallel.make_mesh(1)  # before the flag: jax ends at one it does not know
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1")
    parallel.check_deterministic(cpu)  # which has it anyway
    with pytest.raises(
        ValueError, match="deterministic: got XLA_FLAGS='--xla_other=1'"
    ):
        parallel.check_deterministic(OnGpu)
    parallel.make_deterministic()
    parallel.make_deterministic()
    wanted = "--xla_other=1 --xla_gpu_deterministic_ops=true"
    assert os.environ["XLA_FLAGS"] == wanted
    parallel.check_deterministic(OnGpu)


if __name__ == "__main__":
    np.savez(sys.argv[1], **measure(), **train(Path(sys.argv[1]).parent))

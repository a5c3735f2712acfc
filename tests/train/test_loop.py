import dataclasses
import functools
import json
from pathlib import Path

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax import data
from a2os2a_jax.data import pipeline
from a2os2a_jax.data.sources import fake
from a2os2a_jax.modules.norm import BatchNorm
from a2os2a_jax.train import loop, metrics, setup, step
from a2os2a_jax.train import workdir as workdirs
from a2os2a_jax.train.checkpoint import Checkpoints

EPOCH, STEPS, LOG = 7, 14, 3  # steps

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Toy(nn.Module):
    """Compiles at once; `squash` hides what is not finite, as spikes do."""

    squash: bool
    frozen = ()

    @nn.compact
    def __call__(self, x, train=False):
        x = BatchNorm(name="bn")(x.reshape(len(x), -1), train)
        if self.squash:
            x = jax.lax.stop_gradient(x > 0.5).astype(x.dtype)
        self.sow("spikes", "out", x)
        self.sow("potentials", "out", x)
        return nn.Dense(4, name="head")(x)


def config(**changes):
    c = configs.default()
    c.data.update(name="fake", size=8, channels=1, classes=4, validation=32)
    c.model.update(variant="1-16", timesteps=2, heads=2, pool="0001")
    c.augment.flip = True
    c.optim.update(lr=1e-2, warmup_epochs=0.5)
    c.train.update(batch=32, epochs=2.0, log_steps=LOG, save_epochs=1.0)
    c.eval.batch = 64
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


@functools.cache
def _arrays():
    """The fake data, as arrays: programs then do not depend on what is in them."""
    made = fake.load(size=8, channels=1, classes=4, validation=32)

    def arrays(split):
        index = np.arange(split.size, dtype=np.uint32)
        return jax.device_get(split.gather(split.resident, index))

    return made, {name: arrays(made.split(name)) for name in NAMES}


NAMES = ("train", "validation", "test")


def run(workdir, *, bad=None, seen=None, toy=None, loggers=(), known=None, **changes):
    """`loop.run` on the fake data.

    known: fields of the data set that are not those of the fake one.

    bad: value of a pixel of the training example that comes in step 6.
    seen: a list that receives (split, indices fetched).
    toy: train Toy(squash=toy).
    """
    made, arrays = _arrays()
    splits = {}
    for name in NAMES:
        image, label = arrays[name]["image"].copy(), arrays[name]["label"]
        if name == "train" and bad is not None:
            how = dict(seed=0, size=len(image), batch=32)
            image[pipeline.train_indices(5, **how)[3], 0, 0] = bad
        split = pipeline.resident_split(np.zeros_like(image), label)
        split = dataclasses.replace(split, resident=(image, label))  # not looked at

        def fetch(index, name=name, sound=split.fetch):
            if seen is not None:
                seen.append((name, np.array(index)))
            return sound(index)

        splits[name] = dataclasses.replace(split, fetch=fetch)
    with pytest.MonkeyPatch.context() as patch:
        splits |= known or {}
        patch.setattr(
            data, "load", lambda *_, **__: dataclasses.replace(made, **splits)
        )
        if toy is not None:
            patch.setattr(setup, "build", lambda *_, **__: Toy(toy))
        return loop.run(config(**changes), workdir, loggers=loggers)


def state(workdir):
    """(steps on disk, all arrays of the last checkpoint)."""
    checkpoints = Checkpoints(Path(workdir) / "checkpoints")
    last = setup.prepare(config()).abstract_state()
    found = checkpoints.restore(last)
    assert not checkpoints.skipped
    return checkpoints.steps(), jax.device_get(found[1])


def lines(workdir, start=0):
    """The records from step `start` on, without what a clock says."""
    records = metrics.read_lines(Path(workdir) / "metrics.jsonl")
    return [
        {k: v for k, v in r.items() if k != "images_per_s"}
        for r in records
        if r["step"] >= start
    ]


def result(workdir):
    """result.json without what a clock says."""
    found = json.loads((Path(workdir) / "result.json").read_text())
    return {k: v for k, v in found.items() if not k.endswith("_seconds")}


def assert_equal_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes()


TRACES = {  # evaluation and activity: once for validation, once for test
    "make_train_step": 1,
    "make_eval_step": 2,
    "make_activity_step": 2,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: workdir, result, records, indices seen.

    It traces each program as often as TRACES says and no more: more is an error.
    """
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    records, seen = [], []
    chex.clear_trace_counter()
    with pytest.MonkeyPatch.context() as patch:
        for name, most in TRACES.items():
            make = getattr(step, name)
            patch.setattr(
                step,
                name,
                lambda *args, make=make, most=most, **options: chex.assert_max_traces(
                    make(*args, **options), n=most
                ),
            )
        found = run(workdir, seen=seen, loggers=[records.append])
    return workdir, found, records, seen


def test_training_lowers_the_loss_by_a_clear_margin(whole):
    train = [r for r in lines(whole[0]) if r["split"] == "train"]
    assert train[0]["loss"] > 1.3  # ln 4 is 1.386
    assert train[-1]["loss"] < train[0]["loss"] - 0.15
    assert train[-1]["accuracy"] > train[0]["accuracy"] + 0.2


def test_files_of_a_run(whole):
    workdir, found, *_ = whole
    assert {p.name for p in workdir.iterdir()} == {
        "config.json",
        "data.json",
        "metrics.jsonl",
        "checkpoints",
        "tensorboard",
        "result.json",
    }
    assert json.loads((workdir / "config.json").read_text()) == configs.to_json(
        config()
    )
    assert json.loads((workdir / "result.json").read_text()) == found
    assert list((workdir / "tensorboard").iterdir())
    assert state(workdir)[0] == [EPOCH, STEPS]


def test_keys_of_the_metrics(whole):
    common = {"step", "epoch", "split", "loss", "accuracy"}
    for record in metrics.read_lines(whole[0] / "metrics.jsonl"):
        if record["split"] == "train":
            own = {"batch", "lr", "images_per_s", "grad_norm"}
            assert record.keys() == common | own
        else:
            own = {"top5", "count", "firing_rate", "near_threshold"}
            own |= {"activity_examples"}
            assert record.keys() == common | own
            assert 0 <= record["firing_rate"] < 0.7 and record["near_threshold"] > 0
        assert record["epoch"] == record["step"] / EPOCH


def test_what_is_logged_when(whole):
    got = [(r["step"], r["split"]) for r in lines(whole[0])]
    assert got == [
        *((n, "train") for n in (3, 6, 7)),
        (7, "validation"),
        *((n, "train") for n in (9, 12, 14)),
        (14, "validation"),
        (14, "test"),
    ]
    by = {(r["step"], r["split"]): r for r in lines(whole[0])}
    rate = setup.prepare(config()).rate
    for n in (3, 6, 14):  # of the last step in the window
        assert by[n, "train"]["lr"] == pytest.approx(float(rate(n - 1)), rel=1e-5)
    assert (by[14, "validation"]["count"], by[14, "test"]["count"]) == (32, 100)


def test_loggers_receive_every_record(whole):
    workdir, _, records, *_ = whole
    assert records == metrics.read_lines(workdir / "metrics.jsonl")


def test_keys_of_the_result(whole):
    _, found, *_ = whole
    assert found["task"] == "fake" and found["seed"] == 0
    assert found["data"]["about"] and found["data"]["note"] == ""
    assert found["config"] == configs.to_json(config())
    assert found["versions"].keys() == set(workdirs.PACKAGES)
    assert found["versions"]["jax"] == jax.__version__
    assert found["steps"] == STEPS and found["epochs"] == 2
    assert found["train_seconds"] > 0 and found["cpu_seconds"] > 0
    assert found["test"].keys() == {"accuracy", "top5", "loss", "count"}
    assert found["test"]["count"] == 100
    assert found["test"] == {k: lines(whole[0])[-1][k] for k in found["test"]}
    assert {"commit", "device", "activity", "train"} <= found.keys()
    assert jax.devices()[0].device_kind in found["device"]
    parameters = jax.tree.leaves(state(whole[0])[1].params)
    assert found["parameters"] == sum(x.size for x in parameters)


def test_layers_are_logged_on_request(tmp_path):
    run(tmp_path, toy=False, eval__layers=True)
    judged = [r for r in lines(tmp_path) if r["split"] != "train"]
    assert len(judged) == 3
    for record in judged:
        for name in ("firing_rate", "near_threshold"):
            assert record["layers"][name].keys() == {"out"}
            assert record[name] == pytest.approx(record["layers"][name]["out"])
    activity = result(tmp_path)["activity"]
    assert activity.pop("examples") == judged[-1]["activity_examples"]
    assert activity == judged[-1]["layers"]


def test_every_epoch_is_a_permutation_of_its_own(whole):
    seen = [index for name, index in whole[3] if name == "train"]
    assert len(seen) == STEPS
    first, second = np.concatenate(seen[:EPOCH]), np.concatenate(seen[EPOCH:])
    for epoch in (first, second):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(224))
    assert (first != second).mean() > 0.9 and (first != np.arange(224)).mean() > 0.9


def test_test_examples_are_seen_at_the_end_only(whole):
    names = [name for name, _ in whole[3]]
    assert names.index("test") > max(i for i, n in enumerate(names) if n != "test")


def test_nothing_is_compiled_after_the_first_of_its_kind(tmp_path):
    """Not only traced once: a change of sharding or layout would compile again."""
    compiled, at = [], {}

    def listen(event, *_, **__):
        if "compile" in event:
            compiled.append(event)

    def count(record):
        at[record["step"], record["split"]] = len(compiled)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(tmp_path, toy=False, loggers=[count], train__log_steps=1)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert at[1, "train"] > 0 and at[7, "validation"] > at[6, "train"]
    assert at[1, "train"] == at[6, "train"]
    assert at[8, "train"] == at[14, "validation"] < at[14, "test"]


def test_one_seed_gives_one_result_bit_for_bit(whole, tmp_path):
    run(tmp_path)
    assert_equal_bits(state(tmp_path)[1], state(whole[0])[1])
    assert lines(tmp_path) == lines(whole[0])
    assert result(tmp_path) == result(whole[0])


def test_another_seed_gives_other_parameters_order_and_augmentation(tmp_path):
    seen, records = {0: [], 1: []}, {0: [], 1: []}
    for seed in seen:
        how = dict(seen=seen[seed], toy=False, loggers=[records[seed].append])
        run(tmp_path / str(seed), seed=seed, **how)
    (_, a), (_, b) = ((seen[s][0]) for s in seen)
    assert (a != b).any()
    assert records[0][0]["loss"] != records[1][0]["loss"]


def test_the_seed_reaches_initialisation_and_augmentation(tmp_path, monkeypatch):
    monkeypatch.setattr(  # the order alone stays the same
        pipeline, "train_indices", lambda step, **_: np.arange(32) + step
    )
    first = {}
    for seed in (0, 0, 1):
        keys, records = [], []
        sound = step.make_train_step

        def spy(*args, key, keys=keys, sound=sound, **options):
            keys.append(jax.random.key_data(key).tolist())
            return sound(*args, key=key, **options)

        with monkeypatch.context() as patch:
            patch.setattr(step, "make_train_step", spy)
            workdir = tmp_path / f"{seed}-{len(first)}"
            how = dict(toy=False, train__stop_after=1, train__log_steps=1)
            run(workdir, seed=seed, loggers=[records.append], **how)
        first.setdefault(seed, []).append((keys, records[0]["loss"]))
    assert first[0][0] == first[0][1]
    (keys, loss), (other_keys, other_loss) = first[0][0], first[1][0]
    assert keys != other_keys and loss != other_loss


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_as_if_nothing_had_happened(whole, tmp_path, capsys):
    def kill(record):
        if record["step"] == 12:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, loggers=[kill])
    assert lines(tmp_path)[-1]["step"] == 9  # lost: the last checkpoint is of step 7
    assert not (tmp_path / "result.json").exists()
    seen = []
    capsys.readouterr()
    run(tmp_path, seen=seen)
    assert "resuming after step 7 of 14" in capsys.readouterr().err
    assert [name for name, _ in seen].count("train") == STEPS - EPOCH
    assert_equal_bits(state(tmp_path)[1], state(whole[0])[1])
    assert lines(tmp_path) == lines(whole[0])
    assert result(tmp_path) == result(whole[0])


def test_stop_after_then_the_same_command_ends_the_same(whole, tmp_path):
    found = run(tmp_path, train__stop_after=5, train__log_steps=2)
    assert found["stopped_at"] == found["steps"] == 5 and "test" not in found
    assert not (tmp_path / "result.json").exists()
    assert state(tmp_path)[0] == [5]
    rates = [r["lr"] for r in lines(tmp_path) if r["split"] == "train"]
    run(tmp_path)
    assert_equal_bits(state(tmp_path)[1], state(whole[0])[1])
    after = [r for r in lines(tmp_path) if r["step"] > EPOCH - 1]
    assert after == lines(whole[0], EPOCH)
    steps = [(r["step"], r["split"]) for r in lines(tmp_path)]
    assert len(set(steps)) == len(steps) and steps == sorted(
        steps, key=lambda at: at[0]
    )
    assert [n for n, split in steps if split == "train"] == [2, 4, 5, 6, 7, 9, 12, 14]
    assert result(tmp_path)["test"] == result(whole[0])["test"]
    rate = setup.prepare(config()).rate  # that of the whole run
    assert rates == pytest.approx([float(rate(n)) for n in (1, 3, 4)], rel=1e-5)


OPTIONS = dict(
    train__ema=0.9,
    train__accumulate=2,
    train__loss="tet",
    model__drop_path=0.2,
    optim__name="lamb",
    optim__schedule="linear",
    optim__layer_decay=0.5,
    optim__freeze="stem/conv_0/kernel",
)


@pytest.mark.slow
def test_every_option_of_training_survives_a_stop(tmp_path, capsys):
    def arrays(workdir):
        checkpoints = Checkpoints(workdir / "checkpoints")
        abstract = setup.prepare(config(**OPTIONS)).abstract_state()
        return jax.device_get(checkpoints.restore(abstract)[1])

    short = OPTIONS | dict(eval__epochs=9.0)
    whole = run(tmp_path / "whole", train__steps=6, **short)
    said = capsys.readouterr().err
    assert "batch 32 = 2 micro-batches of 16, which is what batch" in said
    assert "evaluated is the moving average of weights and BN statistics" in said
    run(tmp_path / "parts", train__steps=6, train__stop_after=4, **short)
    parts = run(tmp_path / "parts", train__steps=6, **short)
    a, b = arrays(tmp_path / "whole"), arrays(tmp_path / "parts")
    assert_equal_bits(a, b)
    assert whole["test"] == parts["test"]
    assert whole["weights"] == "average of the weights (EMA)"
    assert whole["effective_batch"] == 32

    start = setup.prepare(config(**OPTIONS)).fresh_state(
        jax.random.split(jax.random.key(0))[0]
    )
    still = [tree["stem"]["conv_0"]["kernel"] for tree in (start.params, a.params)]
    np.testing.assert_array_equal(*still)
    head = [tree["head"]["kernel"] for tree in (start.params, a.params)]
    assert np.abs(head[0] - head[1]).max() > 0
    parts = setup.prepare(config(**OPTIONS))
    scores = parts.evaluator(config(**OPTIONS), "test")(a.ema)
    assert scores == whole["test"] != parts.evaluator(config(), "test")(a.variables)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A finished run of the toy model."""
    workdir = tmp_path_factory.mktemp("runs") / "quick"
    return workdir, run(workdir, toy=False)


def _stamps(workdir):
    return {
        p.relative_to(workdir): (p.stat().st_mtime_ns, p.read_bytes())
        for p in workdir.rglob("*")
        if p.is_file()
    }


MAY_DIFFER = {
    "nothing": {},
    "mesh": {"mesh__data": 1},
    "eval": {"eval__batch": 7, "eval__examples": 3, "eval__epochs": 2.0},
    "split": {"eval__split": "validation"},
    "train": {"train__log_steps": 1, "train__stop_after": 2},
}


@pytest.mark.parametrize("what", MAY_DIFFER)
def test_a_finished_run_is_reported_and_left_alone(quick, what):
    workdir, found = quick
    before, seen = _stamps(workdir), []
    assert run(workdir, toy=False, seen=seen, **MAY_DIFFER[what]) == found
    assert _stamps(workdir) == before and not seen


def test_another_config_is_refused_with_the_keys_that_differ(quick):
    workdir, before = quick[0], _stamps(quick[0])
    with pytest.raises(ValueError) as error:
        run(workdir, toy=False, optim__lr=0.5, seed=4, train__log_steps=1)
    text = str(error.value)
    assert "optim.lr was 0.01, is 0.5" in text and "seed was 0, is 4" in text
    assert str(workdir) in text and "log_steps" not in text and "\n" not in text
    assert _stamps(workdir) == before


def test_a_run_goes_on_with_other_data_on_purpose_alone(tmp_path):
    run(tmp_path, toy=False, train__stop_after=EPOCH, known={"stamp": "1 files, a"})
    before = _stamps(tmp_path)
    other = dict(toy=False, known={"stamp": "2 files, b"})
    with pytest.raises(ValueError, match="stamp was '1 files, a', is '2 files, b'"):
        run(tmp_path, **other)
    assert _stamps(tmp_path) == before
    other["data__data_dir"] = str(tmp_path)  # where they are is no matter
    assert run(tmp_path, data__changed=True, **other)["steps"] == STEPS
    kept = {name: json.loads((tmp_path / name).read_text()) for name in KEPT}
    assert [kept[name]["stamp"] for name in KEPT] == ["1 files, a", "2 files, b"]
    with pytest.raises(ValueError, match="is '1 files, a'.*data.changed=True"):
        run(tmp_path, toy=False, known={"stamp": "1 files, a"})  # which is finished


KEPT = ("data.1.json", "data.json")


def test_a_run_that_failed_in_its_first_steps_makes_room_for_another(tmp_path, capsys):
    with pytest.raises(loop.NonFiniteError, match="last checkpoint: none"):
        run(tmp_path, toy=False, bad=np.nan)
    failed = (tmp_path / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    found = run(tmp_path, toy=False, optim__lr=1e-3, train__stop_after=2)
    said = capsys.readouterr().out
    assert "nothing was trained: optim.lr was 0.01, is 0.001" in said
    assert found["stopped_at"] == 2 and failed
    assert (tmp_path / "metrics.1.jsonl").read_bytes() == failed
    assert [r["lr"] < 1e-3 for r in lines(tmp_path)] == [True]


def test_a_run_killed_while_it_is_judged_is_judged_again(quick, tmp_path):
    def kill(record):
        if record["split"] == "test":
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, toy=False, loggers=[kill])
    seen = []
    found = run(tmp_path, toy=False, seen=seen)
    assert {name for name, _ in seen} == {"test"}
    assert lines(tmp_path) == lines(quick[0])
    assert (found["test"], found["train"]) == (quick[1]["test"], quick[1]["train"])
    (tmp_path / "result.json").unlink()  # killed a moment later
    assert run(tmp_path, toy=False)["test"] == found["test"]
    assert lines(tmp_path) == lines(quick[0])


def test_a_run_judged_on_its_validation_split_scores_it_once(tmp_path):
    seen, records = [], []
    how = dict(toy=False, seen=seen, loggers=[records.append])
    found = run(tmp_path, eval__split="validation", eval__examples=20, **how)
    last = [r for r in records if r["step"] == STEPS and r["split"] == "validation"]
    assert len(last) == 1 and last[0]["count"] == found["validation"]["count"] == 20
    assert last[0]["accuracy"] == found["validation"]["accuracy"]
    assert {name for name, _ in seen} == {"train", "validation"}
    assert [r["split"] for r in lines(tmp_path)].count("validation") == 2


def test_stop_after_behind_the_last_checkpoint_says_where_the_run_is(tmp_path):
    run(tmp_path, toy=False, train__stop_after=9)
    found = run(tmp_path, toy=False, train__stop_after=4)
    assert found["stopped_at"] == found["steps"] == 9
    assert state_steps(tmp_path) == [EPOCH, 9]


def state_steps(workdir):
    return Checkpoints(Path(workdir) / "checkpoints").steps()


BAD = {  # pixel, squash -> what is named
    "loss": (np.nan, False, "loss is nan"),
    "statistics, behind a finite loss": (
        np.nan,
        True,
        "batch_stats/bn/mean holds NaN or infinity",
    ),
    "overflow of a variance": (1e25, True, "batch_stats/bn/var holds NaN or infinity"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_not_finite_stops_the_run(what, tmp_path):
    value, squash, named = BAD[what]
    how = dict(toy=squash, bad=value, train__save_epochs=0.5)  # saves at 4, 8, ...
    with pytest.raises(
        loop.NonFiniteError, match=f"^step 6: {named}.*last checkpoint: step 4"
    ) as error:
        run(tmp_path, **how)
    advice = "Lower optim.lr or set optim.clip"
    if np.isnan(value):  # of a finite input the rate may be at fault
        example = pipeline.train_indices(5, seed=0, size=EPOCH * 32, batch=32)[3]
        advice = f"It comes from the data: training example {example} is not finite"
    assert str(error.value).endswith(advice)
    assert "\n" not in str(error.value)
    assert state_steps(tmp_path) == [4] and not (tmp_path / "result.json").exists()
    at = [(r["step"], r["split"]) for r in lines(tmp_path)]  # a save brings a score
    assert at == [(3, "train"), (4, "train"), (4, "validation")]
    with pytest.raises(loop.NonFiniteError, match="^step 6: "):  # and loads again
        run(tmp_path, **how)


def test_a_spiking_model_hides_nan_and_is_stopped_all_the_same(tmp_path):
    records = []
    with pytest.raises(loop.NonFiniteError, match="^step 6: grad_norm is nan") as error:
        run(tmp_path, bad=np.nan, loggers=[records.append])
    assert "last checkpoint: none" in str(error.value)
    assert np.isfinite([r["loss"] for r in records]).all()


def test_a_rate_that_is_far_too_large_stops_the_run(tmp_path):
    # no loss is needed for it: the statistics overflow, and all becomes finite again
    with pytest.raises(loop.NonFiniteError, match=r"^step \d: "):
        run(tmp_path, toy=True, optim__lr=1e38, optim__warmup_epochs=0.0)
    assert state_steps(tmp_path) == []


LATE = {  # what only shapes or later parts tell
    "eval.examples": dict(eval__examples=5000),
    "augment.zoom": dict(augment__zoom=2.0),
    "learn_tau": dict(model__neuron__learn_tau=True, model__neuron__tau=1.0),
    "eval.split|got split": dict(eval__split="dev"),
    "optim.warmup_epochs": dict(optim__warmup_epochs=2.0),
    "mesh.data": dict(mesh__data=99),
}


@pytest.mark.parametrize("named", LATE)
def test_what_is_wrong_is_found_before_anything_is_written(named, tmp_path):
    with pytest.raises(ValueError, match=named):
        run(tmp_path / "new", **LATE[named])
    assert not (tmp_path / "new").exists()


def test_an_image_augmentation_of_tokens_is_found_before_anything_is_written(tmp_path):
    c = configs.default()
    c.data.update(name="recall", pairs=4)
    c.model.update(variant="1-16", timesteps=1, heads=2, stem="tokens")
    c.augment.flip = True
    with pytest.raises(ValueError, match=r"augment: got \(1, 5, 15\)"):
        loop.run(c, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---- several steps in one call of the device


def test_steps_that_go_together_stop_and_go_on_bit_for_bit(tmp_path):
    """Where a run is looked at, stopped or saved moves no bit of what it computes."""
    short = dict(train__dispatch=4, toy=False)
    whole = run(tmp_path / "whole", **short)
    run(tmp_path / "parts", train__stop_after=5, train__log_steps=2, **short)
    parts = run(tmp_path / "parts", **short)
    assert whole["test"] == parts["test"] and whole["steps"] == STEPS
    assert whole["activity"] == parts["activity"]
    lines = metrics.read_lines(tmp_path / "whole" / "metrics.jsonl")
    at = [r["step"] for r in lines if r["split"] == "train"]
    assert at == sorted({*range(LOG, STEPS + 1, LOG), EPOCH, STEPS})
    one = run(tmp_path / "one", toy=False)  # another program: the same up to rounding
    assert one["train"]["loss"] == pytest.approx(whole["train"]["loss"], rel=1e-4)
    assert one["test"]["loss"] == pytest.approx(whole["test"]["loss"], rel=1e-4)


def test_a_loss_that_is_not_finite_is_found_in_the_middle_of_a_call(tmp_path):
    with pytest.raises(loop.NonFiniteError, match="step 6: loss is nan"):
        run(tmp_path, bad=np.nan, toy=False, train__dispatch=4)

"""What is taken over from another run, what is not, and that it is said."""

import functools
import json
import shutil

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from a2os2a_jax import config as configs
from a2os2a_jax import models
from a2os2a_jax.interop import torch_files, torch_weights, weights
from a2os2a_jax.modules.norm import BatchNorm
from a2os2a_jax.train import finetune, loop, setup
from a2os2a_jax.train.checkpoint import Checkpoints
from a2os2a_jax.train.step import TrainState
from a2os2a_jax.train.workdir import write_json
from tests.interop import torch_format

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Toy(nn.Module):
    """Compiles at once; takes any resolution, as the real ones do."""

    num_classes: int
    width: int = 8
    frozen = ()

    @nn.compact
    def __call__(self, x, train=False):
        self.sow("spikes", "out", x)
        self.sow("potentials", "out", x)
        x = nn.Dense(self.width, name="body")(x.mean((1, 2)))
        x = BatchNorm(name="bn")(x, train)
        return nn.Dense(self.num_classes, name="head")(x)


@pytest.fixture
def toy(monkeypatch):
    def build(*_, num_classes, **__):
        return Toy(num_classes)

    monkeypatch.setattr(setup, "build", build)


def config(**changes):
    c = configs.default()
    c.data.update(name="fake", size=8, channels=1, classes=4)
    c.model.update(variant="1-16", timesteps=2, heads=2, pool="0001")
    c.train.update(batch=32, steps=3, log_steps=2, save_epochs=1 / 8)
    c.eval.batch = 64
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def flat(tree):
    return traverse_util.flatten_dict(dict(tree), sep="/")


@functools.cache
def shapes(variant="1-16", size=8, steps=2, classes=4, channels=1, **options):
    """Of the variables of a columnar model; nothing is computed."""
    options = {"heads": 2, "pool": "0001", **options}
    if "kind" in options:
        options["attention"] = options.pop("kind")
    if "learn_tau" in options:
        options["neuron"] = dict(learn_tau=options.pop("learn_tau"))
    model = models.build(
        "columnar",
        variant,
        num_classes=classes,
        image_size=size,
        in_channels=channels,
        timesteps=steps,
        **options,
    )
    images = jnp.zeros((1, size, size, channels))
    return jax.eval_shape(model.init, jax.random.key(0), images)


def filled(tree, seed=0, dtype=None):
    """Numbers at the places of `tree`."""
    rng = np.random.RandomState(seed)
    return jax.tree.map(
        lambda x: rng.uniform(0.1, 1, x.shape).astype(dtype or x.dtype), tree
    )


def make_run(
    folder, variables, *, tx=None, steps=(5,), ema=None, score=None, **changes
):
    """The directory of a run with these weights, of any optimizer; step 5 unless said.

    Every step has the variables plus its number.
    """
    folder.mkdir()
    write_json(folder / "config.json", configs.to_json(config(**changes)))
    opt_state = (tx or optax.sgd(0.1, momentum=0.9)).init(variables["params"])
    with Checkpoints(folder / "checkpoints", keep=None) as checkpoints:
        for step in steps:
            add = functools.partial(jax.tree.map, lambda x, n=step: jnp.asarray(x) + n)
            state = TrainState(
                jnp.int32(step),
                add(variables["params"]),
                add(variables["batch_stats"]),
                opt_state,
                None if ema is None else add(ema),
            )
            checkpoints.save(step, state, score=score[step] if score else None)
    return folder


def toy_variables(classes=4, width=8):
    make = functools.partial(Toy(classes, width).init, jax.random.key(0))
    made = jax.eval_shape(make, jnp.zeros((1, 8, 8, 1)))
    return filled({k: made[k] for k in ("params", "batch_stats")})


def last(workdir, c):
    """(step, state) of the last checkpoint of a run."""
    abstract = setup.prepare(c).abstract_state()
    return Checkpoints(workdir / "checkpoints").restore(abstract)


# ---- transfer


def test_another_t_and_another_resolution_fit():
    old = filled(shapes())
    got, notes = finetune.transfer(old, shapes(size=16, steps=5))
    assert jax.tree.structure(got) == jax.tree.structure(old)
    for name, array in flat(got).items():
        np.testing.assert_array_equal(array, flat(old)[name], name)
    assert notes == ["head: as many classes there as here: taken over"]


def test_a_head_of_other_classes_is_fresh_and_said_to_be():
    old, fresh = filled(shapes(), 0), filled(shapes(classes=7), 1)
    got, notes = finetune.transfer(old, fresh)
    assert notes == ["head: 4 classes there, 7 here: initialised anew"]
    heads = 0
    for name, array in flat(got).items():
        head = name.startswith("params/head/")
        np.testing.assert_array_equal(array, flat(fresh if head else old)[name], name)
        heads += head
    assert heads == 2


def test_dtypes_are_those_of_the_fresh_ones():
    got, notes = finetune.transfer(filled(shapes(), dtype="float64"), shapes())
    assert {x.dtype for x in jax.tree.leaves(got)} == {np.dtype("float32")}
    assert "dtype: float64 there, float32 here: converted" in notes


OTHER = {
    "dim": (dict(variant="1-24"), ["dim (model.variant): 24 there, 16 here"]),
    "dim and classes": (dict(variant="1-24", classes=7), ["dim (model.variant): 24"]),
    "depth": (
        dict(variant="2-16"),
        ["depth (model.variant): 2 there, 1 here", "block_1/", "there, not here"],
    ),
    "channels": (dict(channels=3), ["channels of the data: 3", "[3,3,3,2] there"]),
    "mlp": (dict(mlp_ratio=2), ["model.mlp_ratio: 2 there, 4 here", "mlp/fc"]),
    "no attention": (
        dict(kind="none"),
        ["projections (model.attention): none there, k proj q v here", "missing there"],
    ),
    "learnt tau": (dict(learn_tau=True), ["learn_tau: True there, False here"]),
}


@pytest.mark.parametrize("what", OTHER)
def test_every_other_difference_is_an_error_with_its_probable_cause(what):
    options, words = OTHER[what]
    with pytest.raises(ValueError) as error:
        finetune.transfer(filled(shapes(**options)), shapes())
    message = str(error.value)
    assert "\n" not in message and "tensors differ: " in message
    assert [word for word in words if word not in message] == [], message
    (cause,) = message.split("Probably ")[1:]
    assert cause.count(" there, ") == 1, cause  # and nothing that is the same


def test_what_is_not_finite_is_not_taken():
    old = filled(shapes())
    old["batch_stats"]["stem"]["bn_1"]["var"][0] = np.nan
    with pytest.raises(ValueError, match="batch_stats/stem/bn_1/var holds NaN"):
        finetune.transfer(old, shapes())


def test_a_head_that_is_not_there_is_fresh_and_said_to_be():
    old, fresh = filled(shapes(), 0), filled(shapes(), 1)
    del old["params"]["head"]
    got, notes = finetune.transfer(old, fresh)
    assert notes == ["head: none there, 4 classes here: initialised anew"]
    want = flat(old) | {n: x for n, x in flat(fresh).items() if "/head/" in n}
    assert flat(got).keys() == want.keys()
    for name, array in flat(got).items():
        np.testing.assert_array_equal(array, want[name], name)
    wide = filled(shapes(variant="1-24"))
    del wide["params"]["head"]
    with pytest.raises(ValueError, match="dim .model.variant.: 24 there, 16 here"):
        finetune.transfer(wide, fresh)
    del old["params"]["block_0"]
    with pytest.raises(ValueError, match="depth .model.variant.: 0 there, 1 here"):
        finetune.transfer(old, fresh)


# ---- source


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of two checkpoints, the first of them the best; and one with an average."""
    folder = tmp_path_factory.mktemp("sources")
    variables = toy_variables()
    make_run(folder / "plain", variables, steps=(5, 9), score={5: 0.9, 9: 0.8})
    ema = jax.tree.map(lambda x: x + 100, variables)
    adamw = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    make_run(folder / "averaged@home", variables, tx=adamw, ema=ema)
    return folder, variables


@pytest.mark.parametrize(
    ("name", "step", "shift"),
    [
        ("plain", 9, 9),
        ("plain@best", 5, 5),
        ("plain@5", 5, 5),
        ("averaged@home", 5, 105),
        ("averaged@home@5", 5, 105),
    ],
)
def test_a_run_whatever_its_optimizer(runs, name, step, shift):
    folder, variables = runs
    got, about = finetune.source(str(folder / name))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y + shift, rtol=1e-6), got, variables
    )
    kind = "average" if shift > 99 else "plain"
    assert (about["step"], about["weights"], about["commit"]) == (step, kind, None)
    assert about["path"] == str(folder / name)
    assert about["config"] == configs.to_json(config())


def test_the_plain_weights_of_a_run_with_an_average(runs):
    got, about = finetune.of_run(runs[0] / "averaged@home", average=False)
    assert about["weights"] == "plain"
    bias = runs[1]["params"]["body"]["bias"] + 5
    np.testing.assert_allclose(got["params"]["body"]["bias"], bias, rtol=1e-6)
    assert finetune.source(str(runs[0] / "averaged@home"), False)[1] == about | {
        "path": str(runs[0] / "averaged@home"),
        "others": ["average"],
    }


FAMILY = dict(num_classes=4, image_size=8, in_channels=1, timesteps=2, heads=2)


def state_dict(path, family="spikformer", variant="1-16", **options):
    """A file as public code would write it, and our variables in it."""
    model = models.build(family, variant, **FAMILY | options)
    images = jnp.zeros((1, 8, 8, 1))
    shaped = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = filled(shaped)
    torch_weights.save(path, model, variables)
    return variables


def test_a_state_dict_of_pytorch_is_taken_as_any_other(tmp_path):
    path = tmp_path / "public.safetensors"
    want = state_dict(path)
    variables, about = finetune.source(str(path))
    chex.assert_trees_all_equal(variables, want)
    assert about["family"] == "spikformer" and len(about["sha256"]) == 64
    assert about["path"] == str(path)
    taken, _, notes = finetune.whole(str(path), want, "spikformer")
    chex.assert_trees_all_equal(taken, want)
    assert notes == [
        "left out: 11 counters (num_batches_tracked)",
        "head: as many classes there as here: taken over",
    ]


def both(tmp_path, **changes):
    """(path of a torch file with weights and their average, ours of both)."""
    want = state_dict(tmp_path / "public.safetensors")
    plain = torch_files.read(tmp_path / "public.safetensors")
    tree = {
        "state_dict": torch_format.behind("module.", plain),
        "state_dict_ema": {name: x / 2 for name, x in plain.items()},
        "net_ops": {"total_ops": np.zeros(1)},
        "args": torch_format.Call("argparse.Namespace", state={"lr": 0.1}),
    } | changes
    half = jax.tree.map(lambda x: x / 2, want)
    return torch_format.save(tmp_path / "public.pth", tree), want, half


def test_of_two_in_a_torch_file_the_average_is_taken_unless_told(tmp_path):
    path, want, half = both(tmp_path)
    for average, kind, tree in ((True, "average", half), (False, "plain", want)):
        variables, about, notes = finetune.whole(str(path), want, "spikformer", average)
        chex.assert_trees_all_equal(variables, tree)
        assert about["weights"] == kind and "notes" not in about
        ends = "took state_dict_ema, an average of the weights" if average else "dict"
        assert notes[0].startswith("holds state_dict and state_dict_ema, took ")
        assert notes[0].endswith(ends)
    assert about["others"] == ["state_dict_ema"] and about["entry"] == "state_dict"
    named, about = finetune.source(f"{path}@state_dict")
    chex.assert_trees_all_equal(named, want)
    assert about["path"] == f"{path}@state_dict" and len(about["sha256"]) == 64


@pytest.mark.parametrize("ema", [True, False])
def test_a_run_starts_from_the_average_or_from_the_weights(tmp_path, ema):
    path, want, half = both(tmp_path)
    c = config(init_from=str(path), eval__ema=ema, model__name="spikformer")
    parts = setup.prepare(c)
    state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), parts.abstract_state())
    finetune.check(str(path), tmp_path / "new", state.variables, ema)
    state, about, notes = finetune.begin(str(path), state, c, parts.mesh)
    chex.assert_trees_all_equal(state.variables, half if ema else want)
    kind = "average" if ema else "plain"
    assert about["weights"] == kind
    assert notes[0] == f"starting from {path} ({kind} weights)"


def test_a_torch_file_without_a_head_trains_on_and_is_not_scored(tmp_path):
    path, want, _ = both(tmp_path)
    state = torch_files.read(path)
    headless = {n: x for n, x in state.items() if not n.startswith("head.")}
    torch_format.save(path, {"model": torch_format.behind("backbone.", headless)})
    taken, _, notes = finetune._fitting(str(path), want, True)
    chex.assert_trees_all_equal(taken, want)
    assert "head: none there, 4 classes here: initialised anew" in notes
    assert notes[0] == "left out in front of names: backbone."
    with pytest.raises(ValueError, match="head: none there, 4 classes here, expected"):
        finetune.whole(str(path), want, "spikformer")


def test_a_state_dict_of_another_model_is_an_error_that_names_its_family(tmp_path):
    path = tmp_path / "public.safetensors"
    state_dict(path)
    with pytest.raises(ValueError) as error:
        finetune.whole(str(path), shapes(), "columnar")
    message = str(error.value)
    assert "spikformer's" in message and "attention/k_linear/bias" in message
    assert "\n" not in message
    other = state_dict(tmp_path / "of7.safetensors", num_classes=7)
    with pytest.raises(ValueError, match="4 classes there, 7 here, expected as many"):
        finetune.whole(str(path), other, "spikformer")


def test_of_equal_shapes_the_names_tell_the_family(tmp_path):
    """The columnar model and the Spike-Driven Transformer have the same variables."""
    path = tmp_path / "public.safetensors"
    want = state_dict(path, "spike_driven")
    with pytest.raises(
        ValueError, match="named as spike_driven's, expected .*=columnar"
    ):
        finetune.whole(str(path), want, "columnar")
    assert (
        finetune.whole(str(path), want, "spike_driven")[1]["family"] == "spike_driven"
    )


def test_of_a_broken_file_the_reason_is_told(tmp_path):
    path = tmp_path / "cut.safetensors"
    state_dict(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cut.safetensors.*damaged"):
        finetune.source(str(path))


@pytest.mark.parametrize("suffix", weights.SUFFIXES)
def test_an_exported_file_remembers_its_run(runs, tmp_path, suffix):
    path = str(runs[0] / "plain@5")
    weights.save(tmp_path / f"model{suffix}", *finetune.source(path))
    got, about = finetune.source(str(tmp_path / f"model{suffix}"))
    bias = runs[1]["params"]["body"]["bias"] + 5
    np.testing.assert_allclose(got["params"]["body"]["bias"], bias, rtol=1e-6)
    assert (about["step"], about["exported_from"]) == (5, path)
    assert about["path"].endswith(suffix) and len(about["sha256"]) == 64


NOWHERE = {
    "nothing": ("nothing", ["which does not exist", "expected a run's DIR"]),
    "no run to have a best": ("nothing@best", ["which does not exist"]),
    "no config": ("empty", ["which has no config.json"]),
    "no checkpoint": ("bare", ["which has no checkpoint"]),
    "no such step": ("plain@7", ["plain@7", "expected last, best or a step", "5, 9"]),
    "no step": ("plain@dev", ["plain@dev", "expected last, best or a step"]),
    "no scores": ("averaged@home@best", ["no checkpoint has a score"]),
    "another kind": ("model.h5", ["a file of another kind", ".npz, .safetensors"]),
    "damaged": ("broken.npz", ["broken.npz: got a zip archive cut short"]),
    "a page": ("page.pth", ["page.pth: got an HTML page", "download it again"]),
    "no such entry": ("two.pth@net", ["two.pth", "entry 'net', expected one of first"]),
    "an entry of ours": ("ours.npz@model", ["ours.npz@model", "one set of weights"]),
}


@pytest.mark.parametrize("what", NOWHERE)
def test_what_is_not_there_is_found_before_anything_is_written(
    runs, tmp_path, toy, what, monkeypatch
):
    folder = shutil.copytree(runs[0], tmp_path / "sources")
    (folder / "empty").mkdir()
    (folder / "bare").mkdir()
    write_json(folder / "bare" / "config.json", configs.to_json(config()))
    (folder / "model.h5").touch()
    (folder / "broken.npz").write_bytes(b"PK\3\4")
    (folder / "page.pth").write_text("<html>sign in</html>")
    two = {k: {"head.weight": np.ones((4, 8), np.float32)} for k in ("first", "second")}
    torch_format.save(folder / "two.pth", two)
    weights.save(folder / "ours.npz", runs[1])
    monkeypatch.setattr(setup.Parts, "fresh_state", None)  # nothing is compiled
    name, words = NOWHERE[what]
    with pytest.raises((ValueError, OSError)) as error:
        loop.run(config(init_from=str(folder / name)), tmp_path / "new")
    message = str(error.value)
    assert [word for word in words if word not in message] == [], message
    assert not (tmp_path / "new").exists()


def test_what_does_not_fit_is_found_before_anything_is_written(tmp_path, toy):
    path = make_run(tmp_path / "wide", toy_variables(width=9))
    with pytest.raises(ValueError, match="init_from .*wide: .* tensors differ") as e:
        loop.run(config(init_from=str(path)), tmp_path / "new")
    assert "params/bn/bias is [9] there, [8] here; " in str(e.value)
    assert not (tmp_path / "new").exists()


def test_a_damaged_checkpoint_is_an_error_and_no_other_is_taken(runs, tmp_path):
    run = shutil.copytree(runs[0] / "plain", tmp_path / "plain")
    data = max(
        (p for p in (run / "checkpoints/9").glob("state/**/d/*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    data.write_bytes(data.read_bytes()[:-9])
    with pytest.raises(OSError, match="checkpoints/9: .* has .* bytes"):
        finetune.source(str(run))
    assert finetune.source(f"{run}@5")[1]["step"] == 5


# ---- whole runs

STILL = dict(optim__lr=1e-30, optim__min_lr=0.0, optim__weight_decay=0.0)


def test_a_run_starts_there_says_so_and_records_it(runs, tmp_path, toy, capsys):
    source = make_run(tmp_path / "source", runs[1], optim__name="sgd")
    write_json(source / "result.json", {"commit": "abc"})
    c = config(
        init_from=str(source), data__classes=6, data__size=16, model__timesteps=4
    )
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in STILL.items()})
    result = loop.run(c, tmp_path / "run")
    err = capsys.readouterr().err.splitlines()
    assert err[2:5] == [
        f"starting from {source} (step 5, plain weights)",
        "head: 4 classes there, 6 here: initialised anew",
        "other than there: data.size was 8, is 16; model.timesteps was 2, is 4",
    ]
    record = {"step": 5, "weights": "plain", "commit": "abc", "path": str(source)}
    assert result["init_from"] == record
    assert json.loads((tmp_path / "run/result.json").read_text()) == result

    init_key, _ = jax.random.split(jax.random.key(0))
    fresh = setup.prepare(c).fresh_state(init_key)
    _, state = last(tmp_path / "run", c)
    for name, array in flat(state.params).items():
        source_of = fresh.params if name.startswith("head/") else runs[1]["params"]
        shift = 0 if name.startswith("head/") else 5
        want = flat(source_of)[name] + shift
        np.testing.assert_allclose(array, want, atol=1e-20, rtol=1e-6, err_msg=name)


def test_a_resumed_run_goes_on_from_its_own_checkpoint(runs, tmp_path, toy, capsys):
    source = make_run(tmp_path / "source", runs[1])
    c = config(init_from=str(source), optim__lr=1e-2)
    whole = loop.run(c, tmp_path / "whole")
    with c.unlocked():
        c.train.stop_after = 1
    loop.run(c, tmp_path / "run")
    shutil.rmtree(source)  # nobody asks for it any more
    capsys.readouterr()
    c.train.stop_after = None
    result = loop.run(c, tmp_path / "run")
    assert "starting from" not in capsys.readouterr().err
    assert result["init_from"] == whole["init_from"] and result["test"] == whole["test"]
    a, b = (last(tmp_path / name, c)[1] for name in ("whole", "run"))
    chex.assert_trees_all_equal(a, b)
    assert loop.run(c, tmp_path / "run") == result  # finished: reported


def test_what_it_starts_from_is_kept_before_the_first_step(runs, tmp_path, toy):
    source = make_run(tmp_path / "source", runs[1])
    c = config(init_from=str(source), optim__lr=1e-2, train__log_steps=1)
    whole = loop.run(c, tmp_path / "whole")

    def killed(record):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        loop.run(c, tmp_path / "run", loggers=[killed])
    assert Checkpoints(tmp_path / "run/checkpoints").steps() == [0]
    shutil.rmtree(source)  # or it has gone on, and its last step is another
    result = loop.run(c, tmp_path / "run")
    assert result["init_from"] == whole["init_from"] and result["test"] == whole["test"]
    a, b = (last(tmp_path / name, c)[1] for name in ("whole", "run"))
    chex.assert_trees_all_equal(a, b)


def test_without_a_checkpoint_that_loads_it_starts_there_again(runs, tmp_path, toy):
    source = make_run(tmp_path / "source", runs[1])
    c = config(init_from=str(source), **STILL)
    (tmp_path / "run/checkpoints/2").mkdir(parents=True)
    write_json(tmp_path / "run/config.json", configs.to_json(c))
    assert loop.run(c, tmp_path / "run")["init_from"]["step"] == 5
    got = last(tmp_path / "run", c)[1].params["body"]["kernel"]
    np.testing.assert_allclose(got, runs[1]["params"]["body"]["kernel"] + 5, rtol=1e-6)


def test_its_own_workdir_is_refused(runs, tmp_path, toy):
    run = shutil.copytree(runs[0] / "plain", tmp_path / "plain")
    for name in (str(run), f"{run}@5", f"{run}/../plain"):
        with pytest.raises(ValueError, match="init_from: got .* own workdir"):
            loop.run(config(init_from=name), run)


def test_an_average_starts_from_the_weights_and_shares_no_memory(runs, toy):
    c = config()
    parts = setup.prepare(c)
    state = parts.fresh_state(jax.random.key(0))
    state = state._replace(ema=jax.tree.map(jnp.zeros_like, state.variables))
    path = str(runs[0] / "plain")
    state, record, notes = finetune.begin(path, state, c, parts.mesh)
    assert "config" not in record and "data" not in " ".join(notes)
    chex.assert_trees_all_equal(state.ema, state.variables)
    np.testing.assert_allclose(
        state.judged["params"]["body"]["kernel"],
        runs[1]["params"]["body"]["kernel"] + 9,
        rtol=1e-6,
    )
    where = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(where)) == len(where)
    assert jax.tree.all(jax.tree.map(lambda x: not x.any(), state.opt_state))


@pytest.mark.slow
def test_the_columnar_model_trains_on_with_other_t_resolution_and_classes(
    tmp_path, capsys
):
    variables = filled(shapes())
    source = make_run(tmp_path / "source", variables)
    c = config(
        init_from=str(source), data__classes=3, data__size=16, model__timesteps=3
    )
    c.train.stop_after = 1
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in STILL.items()})
    assert loop.run(c, tmp_path / "run")["init_from"]["step"] == 5
    assert "head: 4 classes there, 3 here" in capsys.readouterr().err
    _, state = last(tmp_path / "run", c)
    got = state.params["block_0"]["mlp"]["fc1_linear"]["kernel"]
    want = variables["params"]["block_0"]["mlp"]["fc1_linear"]["kernel"] + 5
    np.testing.assert_allclose(got, want, rtol=1e-6)

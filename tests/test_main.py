import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

from a2os2a_jax import config as configs
from a2os2a_jax import main
from a2os2a_jax.commands import plan
from a2os2a_jax.train import checkpoint, finetune, metrics, setup

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
SMOKE = f"--config={ROOT / 'configs' / 'digits.py'}:smoke"


def call(*flags):
    return main.main(["main", *map(str, flags)])


def program(*flags, **environment):
    """The program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "a2os2a_jax.main", *map(str, flags)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        timeout=300,
        text=True,
    )


def one_error(text, *needles):
    """The only line, which names what was got and what was expected."""
    (line,) = text.splitlines()
    assert line.startswith("error: ")
    for needle in needles:
        assert needle in line, line
    assert "Traceback" not in line and len(line) < 500


# ---- errors, found before anything is written

WRONG = {
    "unknown key": (["--config.optim.lrr=1"], ["lrr", 'Did you mean "lr"']),
    "unknown group": (["--config.optimizer.lr=1"], ["got 'optimizer'", "expected"]),
    "not a number": (["--config.optim.lr=fast"], ["optim.lr=fast", "float"]),
    "not an integer": (["--config.train.batch=1.5"], ["train.batch=1.5", "int()"]),
    "not a truth value": (["--config.augment.flip=perhaps"], ["flip=perhaps"]),
    "a group": (["--config.optim=3"], ["optim=3"]),
    "not finite": (["--config.optim.lr=inf"], ["optim.lr: got inf", "finite"]),
    "image size": (
        ["--config.data.size=9"],
        ["image_size: got 9", "expected a multiple of 2"],
    ),
    "heads": (["--config.model.heads=5"], ["model.heads: got 5", "divisor of dim 32"]),
    "None for a value": (["--config.model.mlp_ratio=None"], ["got None", "as 4"]),
    "None for no key": (["--config.model.size=None"], ["got model.size"]),
    "no timesteps": (["--config.model.timesteps=0"], ["got 0", "integer >= 1"]),
    "variant": (["--config.model.variant=tiny"], ["got 'tiny'", "expected depth-dim"]),
    "model": (["--config.model.name=vit"], ["got 'vit'", "'qkformer'"]),
    "pool of stages": (
        ["--config.model.name=qkformer"],
        ["model.pool: got '0001'", "expected None with qkformer"],
    ),
    "kind": (["--config.model.attention.kind=some"], ["got 'some'", "'a2os2a'"]),
    "rule": (["--config.model.neuron.rule=some"], ["got 'some'", "'paper'"]),
    "data that are not there": (
        ["--config.data.name=folder:nowhere"],
        ["data.name: found no folder", "nowhere"],
    ),
    "unknown source": (["--config.data.name=some"], ["'some' is unknown", "digits"]),
    "batch too large": (
        ["--config.train.batch=999"],
        ["batch 999 is larger than the data: 256"],
    ),
    "warm-up too long": (
        ["--config.optim.warmup_epochs=10.0"],
        ["optim.warmup_epochs: got 80 steps", "fewer than the 16"],
    ),
    "no such split": (["--config.eval.split=dev"], ["got split 'dev'", "train, test"]),
    "too few examples": (["--config.eval.examples=101"], ["got 101", "1 to 100"]),
    "augmentation": (
        ["--config.augment.zoom=1.5"],
        ["augment.zoom: got 1.5", "below 1"],
    ),
    "seed": (["--config.seed=-1"], ["seed: got -1", "expected 0 to"]),
    "dtype": (["--config.dtype=float16"], ["dtype: got 'float16'", "float32"]),
    "no dtype": (["--config.dtype=0"], ["dtype: got '0'", "float32"]),
    "stray argument": (["digits"], ["got 'digits'", "expected flags alone"]),
    "unknown flag": (["--workdirs=x"], ["workdirs"]),
    "unknown mode": (["--mode=fly"], ["'fly' is unknown", "expected train, eval, "]),
    "nothing to evaluate": (["--mode=eval"], ["got no config.json", "expected a run"]),
}


def test_none_takes_back_what_a_config_chose():
    line = [*"main --config=configs/cifar10.py --mode=plan".split()]
    assert main.parse(line).config.model.heads == 8
    found = main.parse([*line, "--config.model.heads=None", "--config.model.pool=None"])
    assert (found.config.model.heads, found.config.model.pool) == (None, None)


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_one_line_and_leaves_nothing(what, tmp_path, capsys):
    flags, needles = WRONG[what]
    workdir = tmp_path / "new" / "run"
    assert call(SMOKE, f"--workdir={workdir}", *flags) == 1
    out, err = capsys.readouterr()
    one_error(err, *needles)
    assert out == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", main.LATER)
def test_modes_to_come_say_so(mode, tmp_path, capsys):
    assert call(SMOKE, f"--workdir={tmp_path / 'new'}", f"--mode={mode}") == 1
    one_error(capsys.readouterr().err, f"'{mode}' is not built yet, expected train, ")
    assert list(tmp_path.iterdir()) == []


OTHER = {str: "some", float: 0.5, int: 3}  # by type; no default among them


@pytest.mark.parametrize("key", configs.NOT_BUILT)
def test_keys_to_come_say_so(key, tmp_path, capsys):
    group, _, name = key.rpartition(".")
    node = configs.default()
    for part in filter(None, group.split(".")):
        node = node[part]
    value = OTHER[node.get_type(name)]
    flags = [f"--workdir={tmp_path / 'new'}", f"--config.{key}={value}"]
    assert call(SMOKE, *flags) == 1
    one_error(
        capsys.readouterr().err, f"error: {key}: ", str(value), "is not built yet"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "needles"),
    [
        (None, ["--config: got none", "expected a file"]),
        ("--config=configs/nowhere.py", ["got configs/nowhere.py", "expected a file"]),
        (SMOKE.replace("smoke", "tiny"), ["got :tiny", "expected :full or :smoke"]),
    ],
)
def test_a_config_that_is_not_there_is_named(config, needles, tmp_path, capsys):
    flags = [config] if config else []
    assert call(*flags, f"--workdir={tmp_path / 'new'}") == 1
    one_error(capsys.readouterr().err, *needles)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [m for m in main.MODES if m not in main.NO_WORKDIR])
def test_a_workdir_is_needed(mode, capsys):
    assert call(SMOKE, f"--mode={mode}") == 1
    one_error(capsys.readouterr().err, "--workdir: got none, expected a directory")


@pytest.mark.parametrize(
    ("flags", "needles"),
    [
        (["--config.nope=1"], ["--config: expected a key", "nope"]),
        (["--config.optimizer.lr=1"], ["--config: expected a key", "optimizer"]),
        (["--workdir="], ["--workdir: got none, expected a directory"]),
    ],
)
def test_what_is_wrong_without_a_config_is_one_line(flags, needles, capsys):
    assert call("--mode=predict", "--workdir=zoo:digits", "--image=x.png", *flags) == 1
    one_error(capsys.readouterr().err, *needles)


@pytest.mark.parametrize("mode", sorted(set(main.MODES) - {"predict"}))
def test_the_zoo_is_no_workdir(mode, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(SMOKE, "--workdir=zoo:digits", f"--mode={mode}") == 1
    one_error(capsys.readouterr().err, "zoo:digits", "--config.init_from=zoo:digits")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_needs_no_workdir_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(SMOKE, "--mode=plan", "--config.train.batch=64") == 0
    out, err = capsys.readouterr()
    assert "total: 28,870 parameters" in out and "64 = 1 x 64" in out and err == ""
    assert call(SMOKE, "--mode=plan", f"--workdir={tmp_path / 'new'}") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"{tmp_path / 'new'}, nothing there yet" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_folder_of_somebody_else_stays_as_it_is(mode, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("precious")
    assert call(SMOKE, f"--workdir={tmp_path}", f"--mode={mode}") == 1
    one_error(capsys.readouterr().err, "config.json", "expected")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("below", ["", "run"])
def test_a_workdir_cannot_be_a_file_nor_below_one(below, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("precious")
    assert call(SMOKE, f"--workdir={file / below}") == 1
    one_error(capsys.readouterr().err, str(file / below), "cannot be made")
    assert file.read_text() == "precious"


@pytest.mark.parametrize(
    ("flags", "needles"),
    [
        (
            ["--config.train.batch=12"],
            ["train.batch: got 12, expected a multiple of 8"],
        ),
        (["--config.mesh.data=9"], ["mesh.data: got 9, expected -1 or 1 to 8"]),
        (["--config.model.hads=3"], ["hads", 'Did you mean "heads"']),
    ],
)
def test_the_program_ends_with_1_and_one_line(flags, needles, tmp_path):
    found = program(
        SMOKE,
        f"--workdir={tmp_path / 'new'}",
        *flags,
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
    )
    assert found.returncode == 1 and found.stdout == ""
    one_error(found.stderr, *needles)
    assert list(tmp_path.iterdir()) == []


# ---- help and list


def help_of(mode):
    """{keyword: words} of the part on one mode."""
    title, *lines = main.usage(mode).rstrip().splitlines()
    assert title.startswith(f"--mode={mode} ") and len(title.split()) > 3
    found, words = {}, []
    for line in lines:
        if keyword := line[4:14].strip():
            words = found[keyword] = []
        words += line[14:].split()
    return found


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_grouped_by_mode(flag, capsys):
    assert call(flag) == 0
    out, err = capsys.readouterr()
    assert err == "" and max(map(len, out.splitlines())) <= 88
    for word in ("--config=", "--workdir=", "--list", "a2os2a_jax/config.py"):
        assert word in out
    for mode in main.MODES:
        assert main.usage(mode) in out
        assert call(flag, "--mode", mode) == 0
        assert capsys.readouterr().out == main.usage(mode)
        assert call(flag, f"--mode={mode}") == 0
        assert capsys.readouterr().out == main.usage(mode)
    assert f"not built yet: {', '.join(main.LATER)}" in out


def test_help_on_a_mode_that_is_not_there_says_so(capsys):
    assert call("--help", "--mode=fly") == 1
    one_error(capsys.readouterr().err, "'fly' is unknown, expected train, eval")


@pytest.mark.parametrize("mode", main.MODES)
def test_the_help_on_a_mode_names_keys_that_are_there(mode):
    found = help_of(mode)
    assert found.keys() == {"keys", "writes", "next"} and all(found.values())
    flat = configs.flatten(configs.default())
    groups = {f"{key.rpartition('.')[0]}.*" for key in flat}
    dotted = [word.rstrip(";") for word in found["keys"] if "." in word]
    assert not set(dotted) - set(flat) - groups


@pytest.mark.parametrize("mode", main.MODES)
def test_every_mode_says_what_is_next(mode):
    path = ROOT / Path(*main.MODES[mode].split(".")).with_suffix(".py")
    assert re.search(r"(?:print\(|return)[^)]*?\"next: ", path.read_text())


def test_every_key_stands_in_the_help_of_some_mode():
    words = {w.rstrip(";") for mode in main.MODES for w in help_of(mode)["keys"]}
    for key in configs.flatten(configs.default()):
        assert words & {key, f"{key.partition('.')[0]}.*"}, key


def test_list_needs_no_config(capsys):
    assert call("--list") == 0
    out, err = capsys.readouterr()
    assert "attention kinds" in out and "next: " in out and err == ""
    assert f"not built yet: {', '.join(main.LATER)}" in out


# ---- what surrounds the work


def test_what_a_run_turns_on_in_jax_ends_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    seen = {}

    def spy(config, workdir):
        seen.update(x64=jax.config.jax_enable_x64, flags=os.environ["XLA_FLAGS"])
        raise ValueError("as far as this")

    monkeypatch.setattr(plan, "run", spy)
    assert not jax.config.jax_enable_x64
    flags = ["--config.dtype=float64", "--config.deterministic=True"]
    assert call(SMOKE, "--mode=plan", *flags) == 1
    assert seen["x64"] and "deterministic_ops=true" in seen["flags"]
    assert not jax.config.jax_enable_x64
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_enable_fast_math=false"


@pytest.mark.parametrize("form", ["{}={}", "{} {}"])
def test_paths_may_begin_at_home(form, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.py").write_text((ROOT / "configs" / "digits.py").read_text())

    def parsed(**given):
        words = [
            form.format(f"--{name}", value).split() for name, value in given.items()
        ]
        return main.parse(["main", *sum(words, [])])

    found = parsed(config="~/c.py:smoke", workdir="~/run")
    assert found.workdir == str(tmp_path / "run") and found.config.data.name == "fake"
    given = dict(config="~/c.py:smoke", workdir="~/run", mode="predict")
    found = parsed(**given, image="~/a.png", out="~/o")
    assert found.options["image"] == str(tmp_path / "a.png")
    assert found.options["out"] == str(tmp_path / "o")
    (tmp_path / "run").mkdir()
    c = configs.default()
    c.seed = 7
    (tmp_path / "run" / "config.json").write_text(json.dumps(configs.to_json(c)))
    assert parsed(mode="export", workdir="~/run").config.seed == 7


def test_keys_that_are_paths_stay_as_given_and_are_looked_up_at_home(
    tmp_path, monkeypatch
):
    """A run that was begun so goes on: its config.json holds them as they are."""
    monkeypatch.setenv("HOME", str(tmp_path))
    given = ["--config.init_from=~/other@best", "--config.data.data_dir=~/sets"]
    found = main.parse(["main", SMOKE, "--mode=plan", *given]).config
    assert (found.init_from, found.data.data_dir) == ("~/other@best", "~/sets")
    with pytest.raises(ValueError, match=f"found no folder .*{tmp_path}/pictures"):
        setup.load_data(configs_with(name="folder:~/pictures", size=8))
    with pytest.raises(ValueError, match=f"folder {tmp_path}/sets/pictures"):
        setup.load_data(configs_with(name="folder:pictures", data_dir="~/sets", size=8))
    with pytest.raises(ValueError, match="init_from: got ~/other@best, which does not"):
        finetune.source("~/other@best")
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=f"got {tmp_path}/other, which has no config"):
        finetune.source("~/other@best")


def configs_with(**data):
    c = configs.default()
    c.data.update(data)
    return c


@pytest.mark.parametrize("mode", [mode for mode in main.MODES if mode != "predict"])
def test_a_workdir_of_python_may_begin_at_home(mode, tmp_path, monkeypatch):
    """Every command looks there, as the command line does."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    c = main.parse(["main", SMOKE, "--mode=plan"]).config
    module = importlib.import_module(main.MODES[mode])
    with contextlib.suppress(ValueError):  # none of this program's
        module.run(c, "~/run")
    assert not (tmp_path / "~").exists()


def test_without_a_home_directory_a_path_from_there_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert call(SMOKE, "--workdir", "~/run") == 1
    one_error(capsys.readouterr().err, "--workdir: got ~/run, expected a path without")


def test_a_config_file_that_ends_the_program_does_not(tmp_path, capsys):
    (tmp_path / "c.py").write_text("raise SystemExit(3)")
    assert call(f"--config={tmp_path / 'c.py'}", "--mode=plan") == 1
    one_error(capsys.readouterr().err, "--config: ", "c.py, line 1: SystemExit: 3")


def test_flags_come_in_any_order(capsys):
    assert (
        main.parse(["main", "--config.seed=5", SMOKE, "--mode=plan"]).config.seed == 5
    )


def test_a_notebooks_backend_and_an_old_pipe_cost_no_run(tmp_path, quick_compilation):
    """Trained, scored and drawn, as by !python in a notebook, or into a cp1252 pipe."""
    pytest.importorskip("matplotlib")
    surroundings = dict(
        MPLBACKEND="module://no_such_backend.inline",
        PYTHONIOENCODING="ascii",
        HOME="/nonexistent",
    )
    workdir = tmp_path / "\N{SNOWMAN}"
    found = program(SMOKE, f"--workdir={workdir}", **surroundings)
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr and r"\u2603" in found.stdout
    figures = {path.name for path in (workdir / "figures").iterdir()}
    assert figures == {"training_curves.png", "spike_raster.png"}


def test_traceback_shows_where_an_error_came_from(tmp_path):
    with pytest.raises(ValueError, match="model.heads: got 5"):
        call(
            SMOKE,
            f"--workdir={tmp_path / 'n'}",
            "--config.model.heads=5",
            "--traceback",
        )


def test_overrides_are_those_given_not_those_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["pytest", "--config.optim.lr=9", "-x"])
    flags = [SMOKE, f"--workdir={tmp_path}", "--config.optim.lr=0.5"]
    config, workdir, mode, traceback, options = main.parse(
        ["main", *flags, "--config.train.steps=7", "--config.augment.flip=true"]
    )
    assert (config.optim.lr, config.train.steps, config.augment.flip) == (0.5, 7, True)
    assert (workdir, mode, traceback) == (str(tmp_path), "train", False)
    assert options == {}


def test_predict_and_export_take_the_config_of_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "--config.optim.lr=9", "-x"])
    c = configs.default()
    c.update(seed=3, init_from="elsewhere")
    (tmp_path / "config.json").write_text(json.dumps(configs.to_json(c)))
    given = ["main", f"--workdir={tmp_path}", "--config.eval.checkpoint=best"]
    found = main.parse([*given, "--mode=export"])
    assert (found.config.seed, found.config.eval.checkpoint) == (3, "best")
    assert found.config.init_from == "elsewhere" and found.options == {}
    flags = ["--mode", "predict", "--image=a.png", "--top=2", "--figures", "0"]
    found = main.parse(["main", "--workdir", str(tmp_path), *flags])
    assert found.config.seed == 3 and found.workdir == str(tmp_path)
    want = {"image": "a.png", "top": 2, "out": None, "figures": 0}
    assert found.options == want
    found = main.parse(["main", SMOKE, *flags, "--workdir=x"])  # a config of one's own
    assert found.config.data.name == "fake"


@pytest.mark.parametrize("flag", ["--image=a.png", "--top=3", "--out=x", "--figures=1"])
@pytest.mark.parametrize("mode", ["train", "export"])
def test_flags_of_predict_mean_nothing_elsewhere(mode, flag, tmp_path, capsys):
    assert call(SMOKE, f"--workdir={tmp_path / 'new'}", f"--mode={mode}", flag) == 1
    name, _, value = flag.partition("=")
    one_error(
        capsys.readouterr().err, f"{name}: got ", value, f"--mode={mode}, expected none"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_other_modes_need_a_config(mode, tmp_path, capsys):
    (tmp_path / "config.json").write_text(
        json.dumps(configs.to_json(configs.default()))
    )
    assert call(f"--workdir={tmp_path}", f"--mode={mode}") == 1
    one_error(capsys.readouterr().err, "--config: got none, expected a file")


def test_ctrl_c_is_no_crash(monkeypatch, tmp_path, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("a2os2a_jax.commands.train.run", interrupted)
    assert call(SMOKE, f"--workdir={tmp_path}") == 130
    assert "the same command goes on" in capsys.readouterr().out


class Toy(nn.Module):
    """Compiles at once."""

    frozen = ()

    @nn.compact
    def __call__(self, x, train=False):
        self.variable("batch_stats", "none", lambda: np.zeros(1, np.float32))
        return nn.Dense(10)(x.reshape(len(x), -1))


def test_what_is_not_finite_ends_with_1_and_says_when(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(setup, "build", lambda *_, **__: Toy())
    flags = ["--config.optim.lr=1e38", "--config.optim.warmup_epochs=0"]
    assert call(SMOKE, f"--workdir={tmp_path}", *flags) == 1
    *progress, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: step 2: loss is nan, expected finite numbers")
    assert not [line for line in progress if line.startswith("error")]
    assert not (tmp_path / "result.json").exists()


# ---- whole runs


FILES = {
    *("config.json", "data.json", "metrics.jsonl", "result.json"),
    *("checkpoints", "tensorboard"),
    *("figures/training_curves.png", "figures/spike_raster.png"),
}


# What they share with another one is trained there; the default run leaves them out.
ALIKE = ("cifar10", "cifar10_dvs", "cifar100", "dvs128_gesture", "fashion_mnist")
ALIKE += ("imagenet", "mnist", "nmnist")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name
        for name in CONFIGS
    ],
)
def test_every_config_smokes(name, tmp_path, capfd, quick_compilation):
    workdir = tmp_path / "run"
    config = ROOT / "configs" / f"{name}.py"
    flags = [f"--config={config}:smoke", f"--workdir={workdir}"]
    assert call(*flags) == 0
    out, err = capfd.readouterr()
    for file in FILES:
        assert (workdir / file).exists(), file
    assert (workdir / "figures/spike_raster.png").stat().st_size > 5000
    result = json.loads((workdir / "result.json").read_text())
    steps = [r["step"] for r in metrics.read_lines(workdir / "metrics.jsonl")]
    assert steps == sorted(steps) and steps[-1] == result["steps"]
    assert checkpoint.Checkpoints(workdir / "checkpoints").steps()[-1] == steps[-1]
    assert np.isfinite(result["test"]["loss"])

    # a log, not a terminal: lines, no bar, nothing from libraries
    assert "\r" not in out + err and "it/s" not in out + err
    first, *rest = err.splitlines()
    assert f"{result['parameters']:,} parameters" in first
    table = [line.partition(" ")[0] for line in rest].index("axes:") + 1
    assert f"total: {result['parameters']:,} parameters" in rest[table - 2]
    rest = rest[table:]
    assert rest and all(line.startswith("step ") for line in rest), err
    accuracy = f"{100 * result['test']['accuracy']:.2f} %"
    assert accuracy in out and str(workdir) in out and "next: " in out

    # the same command again reports it
    before = (workdir / "result.json").read_bytes()
    assert call(*flags) == 0
    again, err = capfd.readouterr()
    assert "holds this run already" in again and accuracy in again and err == ""
    assert (workdir / "result.json").read_bytes() == before

    # and evaluation gives the numbers of the training's end, up to the rounding of a
    # mean that is taken over the scores of the steps
    assert call(*flags, "--mode=eval") == 0
    out, err = capfd.readouterr()
    (record,) = metrics.read_lines(workdir / "evaluations.jsonl")
    scores = {k: record[k] for k in result["test"]}
    assert scores == pytest.approx(result["test"], rel=1e-5)
    assert (record["step"], record["split"]) == (result["steps"], "test")
    assert accuracy in out and err == ""
    assert (workdir / "result.json").read_bytes() == before


@pytest.mark.slow
def test_the_program_trains_in_float64(tmp_path):
    workdir = tmp_path / "run"
    found = program(
        f"--config={ROOT / 'configs' / 'recall.py'}:smoke",
        f"--workdir={workdir}",
        *("--config.dtype=float64", "--config.train.steps=2"),
        XLA_FLAGS="--xla_backend_optimization_level=0",  # compiles in half the time
    )
    assert found.returncode == 0, found.stderr
    lines = [line[:5] for line in found.stderr.splitlines()]
    assert lines[:3] == ["colum", "batch", "layer"] and lines[-2:] == ["axes:", "step "]
    assert "\r" not in found.stdout + found.stderr
    tree = (workdir / "checkpoints/2/_CHECKPOINT_METADATA").read_text()
    leaves = json.loads(tree)["custom_metadata"]["leaves"]
    kinds = {k: v for k, v in leaves.items() if k.startswith(("params", "batch_stats"))}
    assert kinds and all(v.startswith("float64") for v in kinds.values())

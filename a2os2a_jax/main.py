"""Spiking transformers with addition-only attention: plan, train and judge them.

    python -m a2os2a_jax.main --config=FILE[:arg] --workdir=DIR [--mode=MODE]
                              [--config.key=value ...] [--traceback]
    python -m a2os2a_jax.main --mode=predict --workdir=DIR --image=FILE_OR_FOLDER
    python -m a2os2a_jax.main --help [--mode=MODE]
    python -m a2os2a_jax.main --list

--config      a file in configs/; with :smoke the same program on made-up data;
              export and predict take a run's own if it is left out
--workdir     where the run lives; the same command again goes on where it stopped; one
              process at a time writes there
--mode        what to do with it, see below; train if it is left out
--config.…    overrides one key, as in --config.optim.lr=1e-3; the keys with their
              meaning are in a2os2a_jax/config.py; None takes a choice back
--list        models, attentions, data sets, optimizers, configs: all that can be named
--traceback   on an error, show where it came from instead of one line

--mode=train  trains, or goes on, or reports a run that is finished
    keys      data.* model.* augment.* optim.* train.* mesh.* seed dtype deterministic
              init_from eval.ema; eval.split eval.examples eval.epochs eval.batch
              eval.layers
    writes    DIR: config.json, metrics.jsonl, checkpoints/, tensorboard/, and at the
              end result.json and figures/
    next      --mode=eval

--mode=eval   scores a trained run on a split
    keys      eval.split eval.examples eval.batch eval.checkpoint eval.average eval.ema
              eval.data eval.timesteps eval.size; the others as in training
    writes    a line to DIR/evaluations.jsonl, and DIR/figures/: confusion matrix,
              reliability, accuracy at every time step
    next      the same at another T, or the mean of the last checkpoints

--mode=probe  fits a linear classifier to a run's features, from a few labelled examples
    keys      eval.shots eval.draws eval.split eval.examples eval.batch eval.checkpoint
              eval.ema eval.data eval.timesteps eval.size; the others as in training
    writes    a line to DIR/evaluations.jsonl
    next      --mode=train with --config.init_from=DIR and another workdir

--mode=preview  draws what the model sees in training: the first batches, augmented
    keys      data.* augment.* seed train.batch; the others change nothing
    writes    DIR/figures/preview.png
    next      --mode=train

--mode=plan   shows what training would be: layers, steps, learning rate, memory
    keys      as in training
    writes    nothing, and needs no workdir; with one it says how far the run there is
    next      --mode=train

--mode=certify  proves that the model needs no multiplication, or says where it does
    keys      model.* data.* dtype; eval.checkpoint eval.timesteps eval.size of a run
    writes    DIR/certificate.json, and the table; exits with 1 when a multiplication
              remains. DIR may hold a run, whose weights are then folded, or be new,
              and needs no data then
    next      --mode=train in the same DIR, and then --mode=energy

--mode=energy  counts what a trained run does on a whole split, and what it would cost
    keys      eval.split eval.examples eval.batch eval.checkpoint eval.ema eval.data
              eval.timesteps eval.size; the others as in training
    writes    DIR/energy.json: firing rates of every layer and time step, operations of
              every layer, three accounts of energy, break-even firing rates
    next      --mode=figures

--mode=figures  draws what a trained run has data for, as PNG and as SVG
    keys      eval.split eval.examples eval.batch eval.checkpoint eval.average eval.ema
              eval.data eval.timesteps eval.size; the others as in training
    writes    DIR/figures/: training curves, accuracy at every time step, spikes of one
              image, firing rates by layer and step, activity of the tokens on images,
              and energy bars where DIR/energy.json is; what is there already is kept
    next      --mode=energy first, for the bars and for rates of the whole split

--mode=export  makes a trained run a folder that runs without this package
    keys      eval.checkpoint eval.ema
    writes    DIR/export/ (export_step4/ of another checkpoint than the last): folded
              weights (safetensors), a program for any batch on cpu, cuda and tpu
              (jax.export), model.json, a model card, and load.py, which needs jax,
              numpy and flatbuffers alone; what is there and differs is refused
    next      --mode=predict with --workdir=DIR/export

--mode=predict  tells the classes of pictures, PNG or JPEG: --image=FILE_OR_FOLDER; DIR
              is a run, an exported folder, or zoo:NAME, and no data set is needed
    keys      eval.checkpoint eval.ema; and of its own --top=5 classes to tell, --out a
              new folder, --figures=8 pictures to draw
    writes    what --out names, else predictions/NAME of the model, with a number where
              that is taken: predictions.jsonl, predictions.json, and a figure of each
              of the first pictures: what is seen, the spikes, the answer over time
    next      --mode=export

Examples:
    python -m a2os2a_jax.main --config=configs/digits.py --mode=plan
    python -m a2os2a_jax.main --config=configs/digits.py --workdir=runs/digits
    python -m a2os2a_jax.main --config=configs/imagenet.py:smoke --workdir=runs/smoke
    python -m a2os2a_jax.main --workdir=runs/digits --mode=export
    python -m a2os2a_jax.main --workdir=runs/digits --mode=predict --image=photo.png
"""

import contextlib
import functools
import importlib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

try:
    from absl import flags

    from a2os2a_jax import failures, files, streams
except ImportError:  # a plain installation brings the primitives alone
    sys.exit(
        "error: no absl-py here, expected what training needs: pip install '.[train]' "
        "in a checkout"
    )

MODES = {  # mode -> module with run(config, workdir)
    "train": "a2os2a_jax.commands.train",
    "eval": "a2os2a_jax.commands.eval",
    "probe": "a2os2a_jax.commands.probe",
    "preview": "a2os2a_jax.commands.preview",
    "plan": "a2os2a_jax.commands.plan",
    "certify": "a2os2a_jax.commands.certify",
    "energy": "a2os2a_jax.commands.energy",
    "figures": "a2os2a_jax.commands.figures",
    "export": "a2os2a_jax.commands.export",
    "predict": "a2os2a_jax.commands.predict",
}
NO_WORKDIR = ("plan",)  # modes that need none, and then get None
READS = ("plan", "predict")  # modes that write nothing into the workdir
OWN_CONFIG = ("export", "predict")  # modes that take that of the workdir, if need be
OPTIONS = {  # of one mode alone: flag -> (mode, what defines it, default)
    "image": ("predict", flags.DEFINE_string, None),
    "top": ("predict", flags.DEFINE_integer, 5),
    "out": ("predict", flags.DEFINE_string, None),
    "figures": ("predict", flags.DEFINE_integer, 8),
}
PATHS = ("image", "out")  # of these
NO_DIR = "--workdir: got none, expected a directory for the run"
LATER = ("bench",)


class Line(NamedTuple):
    """A command line; options are those of its mode alone, for `run`."""

    config: Any
    workdir: str | None
    mode: str
    traceback: bool
    options: dict[str, Any]


def usage(mode: str | None = None) -> str:
    """The text of --help: all of it, or the part on one mode.

    Raises:
      ValueError: a mode that is not built.
    """
    if mode is None:
        return f"{__doc__}\nModes not built yet: {', '.join(LATER)}\n"
    _known(mode)
    return re.search(rf"^--mode={mode} .*?\n\n", __doc__, re.M | re.S)[0]


def _known(mode: str) -> None:
    if mode not in MODES:
        state = "not built yet" if mode in LATER else "unknown"
        *most, last = MODES
        expected = f"{', '.join(most)} or {last}"
        raise ValueError(f"--mode: {mode!r} is {state}, expected {expected}")


def parse(argv: Sequence[str]) -> Line:
    """A command line, checked; its workdir may be None.

    Raises:
      ValueError: names what was got and what was expected.
    """
    from ml_collections import config_flags

    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_string("mode", "train", "", flag_values=values)
    flags.DEFINE_bool("traceback", False, "", flag_values=values)
    for name, (_, define, default) in OPTIONS.items():
        define(name, default, "", flag_values=values)
    argv = values.read_flags_from_files(argv, force_gnu=False)
    config = _config(argv)
    argv, unset = _unset(_without(argv, "config"))
    try:
        # a list, else overrides are looked for in sys.argv
        how = dict(flag_values=values, sys_argv=argv)
        config_flags.DEFINE_config_dict("config", config, **how)
        left = values(argv)[1:]
        config = values.config
    except (KeyError, AttributeError) as error:
        got = error.args[0] if error.args else error
        got = got.args[0] if isinstance(got, KeyError) else got  # it says what is near
        raise ValueError(
            f"--config: expected a key of config.default(), got {got}"
        ) from error
    except Exception as error:  # absl's own, and whatever a value makes of a parser
        text = " ".join(str(error).split())
        raise ValueError(f"command line: {text or type(error).__name__}") from error
    if left:
        raise ValueError(
            f"command line: got {left[0]!r}, expected flags alone (--help)"
        )
    _known(values.mode)
    _take_back(config, unset)
    options = {}
    for name, (mode, *_) in OPTIONS.items():
        if mode == values.mode:
            value = values[name].value
            options[name] = value and _at_home(name, value) if name in PATHS else value
        elif values[name].present:
            raise ValueError(
                f"--{name}: got {values[name].value!r} with --mode={values.mode}, "
                f"expected none: it is of --mode={mode}"
            )
    if not values.workdir and values.mode not in NO_WORKDIR:
        raise ValueError(NO_DIR)
    if (values.workdir or "").startswith("zoo:") and values.mode != "predict":
        raise ValueError(
            f"--workdir: got {values.workdir} with --mode={values.mode}, expected a "
            f"directory: --config.init_from={values.workdir} starts from these weights"
        )
    workdir = values.workdir and _at_home("workdir", values.workdir)
    return Line(config, workdir, values.mode, values.traceback, options)


def _at_home(flag: str, path: str) -> str:
    """The path with the home directory for ~, which no shell sees behind =."""
    if not path.startswith("~"):
        return path
    try:
        return str(files.expanded(path))
    except ValueError as error:
        raise ValueError(f"--{flag}: {error}") from error


def _config(argv: Sequence[str]) -> Any:
    """The config that a command line names, else that of its workdir.

    Raises:
      ValueError: there is none, or it is no config.
    """
    from a2os2a_jax import config as configs

    path, workdir = _value(argv, "config"), _value(argv, "workdir")
    if path is not None:
        return configs.load(_at_home("config", path))
    if _mode(argv) not in OWN_CONFIG:
        raise ValueError("--config: got none, expected a file as configs/digits.py")
    if not workdir:
        raise ValueError(NO_DIR)
    inference = importlib.import_module("a2os2a_jax.train.inference")
    return inference.config_of(_at_home("workdir", workdir))


def _without(argv: Sequence[str], flag: str) -> list[str]:
    """The words but for those of a flag: --flag=value, or --flag value."""
    kept, words = [], iter(argv)
    for word in words:
        name, equals, _ = word.lstrip("-").partition("=")
        if not word.startswith("-") or name != flag:
            kept.append(word)
        elif not equals:
            next(words, None)
    return kept


def _unset(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the other words, keys of --config.key=None): back to nobody's choice."""
    found = [re.fullmatch(r"--?config\.([\w.]+)=None", word) for word in argv]
    words = [word for word, match in zip(argv, found, strict=True) if not match]
    return words, [match[1] for match in found if match]


def _take_back(config: Any, keys: Sequence[str]) -> None:
    """ValueError for a key that is unknown, or that has to have a value."""
    if not keys:
        return
    from a2os2a_jax import config as configs

    may = configs.flatten(configs.default())
    for key in keys:
        if key not in may:
            raise ValueError(f"--config: expected a key of config.default(), got {key}")
        if may[key] is not None:
            raise ValueError(f"{key}: got None, expected a value as {may[key]!r}")
        config.update_from_flattened_dict({key: None})


def main(argv: Sequence[str] = ()) -> int:
    """Runs a command line; returns the exit code.

    What goes wrong is one line on stderr, unless --traceback asks for more. What the
    command line turns on in jax for itself ends with it.
    """
    argv = list(argv) or sys.argv
    with streams.lasting(), contextlib.ExitStack() as settings:
        return _main(argv, settings)


def _main(argv: list[str], settings: contextlib.ExitStack) -> int:
    traceback = "--traceback" in argv
    mode, config = _mode(argv) or "train", None
    try:
        if {"--help", "-h", "-help"} & set(argv[1:]):
            print(usage(_mode(argv)), end="")
            return 0
        if {"--list", "-list"} & set(argv[1:]):
            listing = importlib.import_module("a2os2a_jax.commands.list")
            listing.run(MODES, LATER)
            return 0
        config, workdir, mode, traceback, options = parse(argv)
        _settle(config, settings)
        command = importlib.import_module(MODES[mode])
        with _held(workdir, mode):
            found = command.run(config, workdir, **options)
        return command.exit_code(found) if hasattr(command, "exit_code") else 0
    except KeyboardInterrupt:
        then = "; the same command goes on from the last checkpoint" * (mode == "train")
        print(f"interrupted{then}")
        return 130
    except Exception as error:  # the outermost place: whatever else it may be
        if traceback:
            raise
        advice = functools.partial(_advice, error, mode, config)
        print(f"error: {failures.line(error, advice)}", file=sys.stderr)
        return 1


def _advice(error: Exception, mode: str, config: Any) -> str:
    memory = importlib.import_module("a2os2a_jax.commands.memory")
    return memory.advice(error, mode, config)


def _settle(config: Any, settings: contextlib.ExitStack) -> None:
    """Sets what a config asks of jax, until `settings` ends."""
    if config.get("deterministic"):
        from a2os2a_jax.train import parallel

        before = os.environ.get("XLA_FLAGS")
        parallel.make_deterministic()
        settings.callback(_set_variable, "XLA_FLAGS", before)
    if config.get("dtype") == "float64":
        import jax

        if not jax.config.jax_enable_x64:  # for all threads, as those of checkpoints
            jax.config.update("jax_enable_x64", True)
            settings.callback(jax.config.update, "jax_enable_x64", False)


def _set_variable(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _held(workdir: str | None, mode: str) -> contextlib.AbstractContextManager:
    """The workdir, for this process alone if the mode writes into it."""
    if mode in READS:
        return contextlib.nullcontext()
    workdirs = importlib.import_module("a2os2a_jax.train.workdir")
    return workdirs.held(workdir, mode)


def _mode(argv: Sequence[str]) -> str | None:
    """The mode that a command line names, before it is parsed."""
    return _value(argv, "mode")


def _value(argv: Sequence[str], flag: str) -> str | None:
    """What a command line says of a flag, last, before it is parsed; None if nothing.

    As in --flag=value and --flag value.
    """
    found = None
    for word, after in zip(argv[1:], [*argv[2:], ""], strict=False):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name == flag:
            found = value if equals else after
    return found


if __name__ == "__main__":
    sys.exit(main())

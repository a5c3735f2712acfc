"""Spiking transformers with addition-only attention: plan, train and judge them.

    python -m a2os2a_jax.main --config=FILE[:arg] --workdir=DIR [--mode=MODE]
                              [--config.key=value ...] [--traceback]
    python -m a2os2a_jax.main --help [--mode=MODE]
    python -m a2os2a_jax.main --list

--config      a file in configs/; with :smoke the same program on made-up data
--workdir     where the run lives; the same command again goes on where it stopped
--mode        what to do with it, see below; train if it is left out
--config.…    overrides one key, as in --config.optim.lr=1e-3; the keys with their
              meaning are in a2os2a_jax/config.py
--list        models, attentions, data sets, optimizers, configs: all that can be named
--traceback   on an error, show where it came from

--mode=train  trains, or goes on, or reports a run that is finished
    keys      data.* model.* augment.* optim.* train.* mesh.* seed dtype deterministic
              init_from; eval.split eval.examples eval.epochs eval.batch eval.layers
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

Examples:
    python -m a2os2a_jax.main --config=configs/digits.py --mode=plan
    python -m a2os2a_jax.main --config=configs/digits.py --workdir=runs/digits
    python -m a2os2a_jax.main --config=configs/imagenet.py:smoke --workdir=runs/smoke
"""

import importlib
import re
import sys
from collections.abc import Sequence

from absl import flags

MODES = {  # mode -> module with run(config, workdir)
    "train": "a2os2a_jax.commands.train",
    "eval": "a2os2a_jax.commands.eval",
    "probe": "a2os2a_jax.commands.probe",
    "preview": "a2os2a_jax.commands.preview",
    "plan": "a2os2a_jax.commands.plan",
    "certify": "a2os2a_jax.commands.certify",
    "energy": "a2os2a_jax.commands.energy",
    "figures": "a2os2a_jax.commands.figures",
}
NO_WORKDIR = ("plan",)  # modes that need none, and then get None
LATER = ("export", "predict", "bench")


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


def parse(argv: Sequence[str]):
    """(config, workdir, mode, traceback) of a command line; workdir may be None.

    Raises:
      ValueError: names what was got and what was expected.
    """
    from ml_collections import ConfigDict, config_flags

    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_string("mode", "train", "", flag_values=values)
    flags.DEFINE_bool("traceback", False, "", flag_values=values)
    argv = list(argv)  # else the overrides are looked for in sys.argv
    config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
    try:
        left = values(argv)[1:]
        config = values.config
    except (KeyError, AttributeError) as error:
        got = error.args[0] if error.args else error
        got = got.args[0] if isinstance(got, KeyError) else got  # it says what is near
        raise ValueError(
            f"--config: expected a key of config.default(), got {got}"
        ) from error
    except Exception as error:  # a config file is a program, and may fail in any way
        if "parsing config file" in str(error):  # and there follows a traceback
            while error.__context__:
                error = error.__context__
        text = " ".join(str(error).split())
        raise ValueError(f"command line: {text or type(error).__name__}") from error
    if left:
        raise ValueError(
            f"command line: got {left[0]!r}, expected flags alone (--help)"
        )
    if config is None:
        raise ValueError("--config: got none, expected a file as configs/digits.py")
    if not isinstance(config, ConfigDict):
        got = config_flags.get_config_filename(values["config"])
        raise ValueError(f"--config: got {got}, expected a file as configs/digits.py")
    _known(values.mode)
    if values.workdir is None and values.mode not in NO_WORKDIR:
        raise ValueError("--workdir: got none, expected a directory for the run")
    return config, values.workdir, values.mode, values.traceback


def main(argv: Sequence[str] = ()) -> int:
    """Runs a command line; returns the exit code."""
    argv = list(argv) or sys.argv
    traceback = "--traceback" in argv
    try:
        if {"--help", "-h", "-help"} & set(argv[1:]):
            print(usage(_mode(argv)), end="")
            return 0
        if {"--list", "-list"} & set(argv[1:]):
            listing = importlib.import_module("a2os2a_jax.commands.list")
            listing.run(MODES, LATER)
            return 0
        config, workdir, mode, traceback = parse(argv)
        if config.get("deterministic"):
            from a2os2a_jax.train import parallel

            parallel.make_deterministic()
        if config.get("dtype") == "float64":
            import jax

            jax.config.update("jax_enable_x64", True)
        command = importlib.import_module(MODES[mode])
        found = command.run(config, workdir)
        return command.exit_code(found) if hasattr(command, "exit_code") else 0
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint")
        return 130
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if traceback:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _mode(argv: Sequence[str]) -> str | None:
    """The mode that a command line names, before it is parsed."""
    found = re.search(r"(?:^| )--?mode[= ](\S*)", " ".join(argv[1:]))
    return found[1] if found else None


if __name__ == "__main__":
    sys.exit(main())

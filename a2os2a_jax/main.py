"""Spiking transformers with addition-only attention: train and evaluate them.

    python -m a2os2a_jax.main --config=FILE[:arg] --workdir=DIR
                              [--mode=train|eval|probe] [--config.key=value ...]
                              [--traceback]

--config      a file in configs/; with :smoke the same program on made-up data
--workdir     where the run lives; the same command again goes on where it stopped
--mode        train (default), eval, or probe: a linear classifier of few examples
--config.…    overrides one key, as in --config.optim.lr=1e-3; the keys with their
              meaning are in a2os2a_jax/config.py
--traceback   on an error, show where it came from

Examples:
    python -m a2os2a_jax.main --config=configs/digits.py --workdir=runs/digits
    python -m a2os2a_jax.main --config=configs/imagenet.py:smoke --workdir=runs/smoke
"""

import importlib
import sys
from collections.abc import Sequence

from absl import flags

MODES = {  # mode -> module with run(config, workdir)
    "train": "a2os2a_jax.commands.train",
    "eval": "a2os2a_jax.commands.eval",
    "probe": "a2os2a_jax.commands.probe",
}
LATER = (
    "preview",
    "certify",
    "energy",
    "figures",
    "export",
    "predict",
    "plan",
    "bench",
)


def parse(argv: Sequence[str]):
    """(config, workdir, mode, traceback) of a command line.

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
    if values.workdir is None:
        raise ValueError("--workdir: got none, expected a directory for the run")
    if values.mode not in MODES:
        state = "not built yet" if values.mode in LATER else "unknown"
        raise ValueError(
            f"--mode: {values.mode!r} is {state}, expected {' or '.join(MODES)}"
        )
    return config, values.workdir, values.mode, values.traceback


def main(argv: Sequence[str] = ()) -> int:
    """Runs a command line; returns the exit code."""
    argv = list(argv) or sys.argv
    if {"--help", "-h", "-help"} & set(argv[1:]):
        print(__doc__)
        return 0
    traceback = "--traceback" in argv
    try:
        config, workdir, mode, traceback = parse(argv)
        if config.get("dtype") == "float64":
            import jax

            jax.config.update("jax_enable_x64", True)
        importlib.import_module(MODES[mode]).run(config, workdir)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint")
        return 130
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if traceback:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

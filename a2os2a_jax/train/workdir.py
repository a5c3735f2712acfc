"""The directory of a run: whose it is, what it holds, how it is written."""

import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager
from fnmatch import fnmatch
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from a2os2a_jax import config as configs
from a2os2a_jax.data.pipeline import Dataset
from a2os2a_jax.files import expanded, is_unfinished, write_atomically
from a2os2a_jax.train import lock
from a2os2a_jax.train.checkpoint import Checkpoints
from a2os2a_jax.train.setup import Parts, prepare

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


PREVIEW = "figures/preview.png"  # may be there before a run is
CERTIFICATE = "certificate.json"  # likewise, and certificate.1.json, ...
CONFIG, RESULT, CHECKPOINTS = "config.json", "result.json", "checkpoints"
DATA = "data.json"  # what a run knows of its data; see pipeline.Spec and `described`
LITTER = (  # files that may lie in a new workdir
    *(".DS_Store", "._*", "Thumbs.db", "desktop.ini", ".directory", ".nfs*"),
    *(".fuse_hidden*", ".gitkeep", ".gitignore", "*.swp", "*~"),
    *("*.log", "*.out", "*.err", "*.[oe][0-9]*", "log.txt", "stdout*", "stderr*"),
)
LITTER_FOLDERS = ("__MACOSX", "@eaDir", "lost+found", ".Trash*", ".snapshot")
LITTER_FOLDERS += (".ipynb_checkpoints", "__pycache__")


def held(workdir: str | os.PathLike, mode: str) -> AbstractContextManager:
    """`lock.held`, by the first of the processes that jax knows of."""
    counts = dict(process=jax.process_index(), processes=jax.process_count())
    return lock.held(workdir, mode, **counts)


def claim(workdir: Path, config: ConfigDict) -> dict[str, Any] | None:
    """Makes `workdir` this config's, or finds that it is.

    A workdir of another config in which nothing was trained is set aside within itself.

    Returns:
      The result of a finished run of the same config, else None.
    Raises:
      ValueError: it holds another config's run, or files that no run made.
      OSError: it cannot be made or written.
    """
    mine = configs.to_json(config)
    path = workdir / CONFIG
    if path.exists():
        if differing := configs.differences(read_json(path), mine):
            if has_trained(workdir):
                raise _of_another(workdir, differing)
            if jax.process_index() == 0:
                number = _set_aside(workdir)
                write_json(path, mine)
                print(
                    f"{workdir} held a run of another config in which nothing was "
                    f"trained: {'; '.join(differing)}. It is kept as config.{number}"
                    ".json, and so on; now it is this config's"
                )
        result = workdir / RESULT
        return read_json(result) if result.exists() else None
    if not is_free(workdir):
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
        if left := sorted(p.name for p in _others(workdir) if _is_litter(p)):
            few = f"{', '.join(left[:5])}{', …' * (len(left) > 5)}"
            print(f"{workdir}: passed over {len(left)} of no run's files: {few}")
        write_json(path, mine)
    return None


def _of_another(workdir: Path, differing: Sequence[str]) -> ValueError:
    return ValueError(
        f"workdir {workdir} holds a run of another config: {'; '.join(differing)}. "
        "Take another --workdir"
    )


def has_trained(workdir: Path) -> bool:
    """True if there is a result, or a checkpoint of a step, loadable or not."""
    steps = Checkpoints(workdir / CHECKPOINTS).steps()
    return (workdir / RESULT).exists() or max(steps, default=0) > 0


def _set_aside(workdir: Path) -> int:
    """Numbers what a run left: config.1.json, checkpoints.1; returns the number.

    The config is copied, so that a process killed here leaves a workdir with one.
    """

    def numbered(name: str, number: int) -> Path:
        stem, dot, end = name.partition(".")
        return workdir / f"{stem}.{number}{dot}{end}"

    names = (CONFIG, DATA, "metrics.jsonl", CHECKPOINTS, "tensorboard")
    number = 1
    while any(numbered(name, number).exists() for name in names):
        number += 1
    write_json(numbered(CONFIG, number), read_json(workdir / CONFIG))
    for name in names[1:]:
        if (workdir / name).exists():
            (workdir / name).rename(numbered(name, number))
    return number


def is_free(workdir: Path) -> bool:
    """True if a folder without a config is missing, empty, or holds only files that
    this program leaves before it writes one, and common litter."""
    return all(map(_is_litter, _others(workdir)))


def _others(workdir: Path) -> list[Path]:
    """The files below `workdir`, relative to it, but for what this program leaves."""
    if not workdir.is_dir():
        return []
    name, _, end = CERTIFICATE.partition(".")
    ours = rf"{PREVIEW}|{name}(\.\d+)?\.{end}|{lock.NAME}(\..*)?"
    # what is unfinished is of a process killed before it had a config
    paths = (p for p in workdir.rglob("*") if not is_unfinished(p.name))
    files = [p.relative_to(workdir) for p in paths if not p.is_dir()]
    return [p for p in files if not re.fullmatch(ours, p.as_posix())]


def _is_litter(path: Path) -> bool:
    """True for what desktops, editors, shells and schedulers leave anywhere."""
    *folders, file = path.parts
    return any(fnmatch(file, name) for name in LITTER) or any(
        fnmatch(folder, name) for folder in folders for name in LITTER_FOLDERS
    )


def open_run(
    config: ConfigDict, workdir: str | os.PathLike
) -> tuple[Parts, Checkpoints]:
    """What the config of a run describes, and the checkpoints of the run.

    Raises:
      ValueError: no run of this config is there, or its data are not those that it was
        trained on and `data.changed` is not set.
    """
    workdir = expanded(workdir)
    path = workdir / CONFIG
    if not path.exists():
        raise ValueError(
            f"workdir {workdir}: got no config.json, expected a run to load"
        )
    parts = prepare(config)
    if differing := configs.differences(read_json(path), configs.to_json(config)):
        raise _of_another(workdir, differing)
    if differing := changed_data(workdir, parts.dataset):
        _allow(workdir, config, differing)
    return parts, Checkpoints(workdir / CHECKPOINTS)


def load_trained(
    config: ConfigDict, workdir: str | os.PathLike
) -> tuple[Parts, int, dict[str, Any]]:
    """(parts, step, variables) of the last checkpoint of a run.

    Raises:
      ValueError: no run of this config is there, or it has no checkpoint that loads.
    """
    parts, checkpoints = open_run(config, workdir)
    restored = checkpoints.restore(parts.abstract_state())
    if restored is None:
        raise ValueError(
            f"workdir {workdir}: got no checkpoint, expected one that loads"
        )
    return parts, restored[0], restored[1].judged


# ---- the data of a run


def described(dataset: Dataset) -> dict[str, Any]:
    """The content of data.json: spec, sizes of the splits, stamp of the files.

    A later start is compared with it.
    """
    splits = {"train": dataset.train, "test": dataset.test}
    if dataset.validation is not None:
        splits["validation"] = dataset.validation
    sizes = {name: split.size for name, split in splits.items()}
    return dataset.spec.to_json() | {"sizes": sizes, "stamp": dataset.stamp}


def changed_data(workdir: Path, dataset: Dataset) -> list[str]:
    """The differences of `dataset` from what the run in `workdir` was trained on.

    A run of an older version knows less, and one that has not trained yet is not bound.
    """
    path = workdir / DATA
    if not path.exists() or not has_trained(workdir):
        return []
    old, new = read_json(path), json.loads(json.dumps(described(dataset)))
    words = ("name", "about", "note")  # may be put otherwise by another version
    differing = []
    for key in (k for k in new if k in old and k not in words):
        if key == "stamp" and not old[key]:
            continue  # of a version that gave none to this set
        differing += _named(key, old[key], new[key])
    return differing


def settle_data(workdir: Path, config: ConfigDict, dataset: Dataset) -> None:
    """Keeps what a run that trains now has to know of its data.

    Raises:
      ValueError: it was trained on other data, and `data.changed` is not set.
    """
    path, new = workdir / DATA, described(dataset)
    if differing := changed_data(workdir, dataset):
        _allow(workdir, config, differing)
    if jax.process_index() or (workdir / RESULT).exists():
        return
    if path.exists() and has_trained(workdir) and not differing:
        old = read_json(path)
        told = {k: v for k, v in old.items() if k != "stamp" or v}
        if new | told != old:  # of an older version, and bound from now on
            write_json(path, new | told)
        return
    write_new(path, new)


def _allow(workdir: Path, config: ConfigDict, differing: Sequence[str]) -> None:
    text = f"workdir {workdir} holds a run of other data: {'; '.join(differing)}."
    if not config.data.changed:
        raise ValueError(
            f"{text} Take another --workdir, or go on all the same with "
            "--config.data.changed=True"
        )
    if jax.process_index() == 0:
        print(f"{text} It goes on with them, as data.changed says")


def _named(key: str, old: Any, new: Any) -> list[str]:
    """The differences of two values of data.json, named as keys of a config are."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [t for k in names for t in _named(f"{key}.{k}", old.get(k), new.get(k))]
    if isinstance(old, list) and isinstance(new, list):
        pairs = enumerate(zip_longest(old, new))
        found = [t for i, pair in pairs for t in _named(f"{key}[{i}]", *pair)]
        return found[:2] + [f"and {len(found) - 2} more of {key}"] * (len(found) > 2)
    numbers = all(isinstance(x, int | float) for x in (old, new))
    if old == new or (numbers and math.isclose(old, new, rel_tol=1e-6)):
        return []
    return [f"{key} was {_short(old)}, is {_short(new)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


# ---- files


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file; ValueError if the file holds no JSON object."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: got {text[:40]!r}, expected one JSON object")
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes all of the file or none of it."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    with write_atomically(path) as temp:
        temp.write_text(text)


def write_new(path: Path, value: Any) -> Path:
    """`write_json`, where a file that says something else is kept, as name.1.json."""
    if path.exists() and read_json(path) != json.loads(json.dumps(value)):
        number = 1
        while (old := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
            number += 1
        path.rename(old)
        print(f"kept the earlier {path.name} as {old.name}")
    write_json(path, value)
    return path


def commit() -> str | None:
    """The commit this package runs from, "+changes" if its files differ from it.

    None outside git, and where the package only lies within somebody else's repository.
    """
    package = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        line = ["git", "-C", str(package), *words]
        how = dict(capture_output=True, text=True, check=True, timeout=10)
        return subprocess.run(line, **how).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        name, changes = (
            git("rev-parse", "HEAD"),
            git("status", "--porcelain", "--", "."),
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return name + ("+changes" if changes else "")


def device(mesh: Mesh) -> str:
    """For example "2 x TPU v5 lite", "1 x cpu (x86_64, 2 cores)"."""
    devices = mesh.devices.ravel()
    text = f"{len(devices)} x {devices[0].device_kind}"
    if devices[0].platform == "cpu":
        text += f" ({platform.machine()}, {os.cpu_count()} cores)"
    return text


def versions() -> dict[str, str]:
    """{package: version} of what a result depends on."""
    return {name: metadata.version(name) for name in PACKAGES}

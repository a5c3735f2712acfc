"""The directory of a run: whose it is, what it holds, how it is written."""

import json
import os
import platform
import re
import subprocess
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from a2os2a_jax import config as configs
from a2os2a_jax.train import lock
from a2os2a_jax.train.checkpoint import Checkpoints
from a2os2a_jax.train.setup import Parts, prepare

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


PREVIEW = "figures/preview.png"  # may be there before a run is
CERTIFICATE = "certificate.json"  # likewise, and certificate.1.json, ...
DATA = "data.json"  # what the model has to know of its input; see pipeline.Spec


def held(workdir: str | os.PathLike, mode: str) -> AbstractContextManager:
    """`lock.held`, by the first of the processes that jax knows of."""
    counts = dict(process=jax.process_index(), processes=jax.process_count())
    return lock.held(workdir, mode, **counts)


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
        if differing := configs.differences(read_json(path), mine):
            raise ValueError(
                f"workdir {workdir} holds a run of another config: "
                f"{'; '.join(differing)}. Take another --workdir"
            )
        result = workdir / "result.json"
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
        write_json(path, mine)
    return None


def is_free(workdir: Path) -> bool:
    """Whether all there is, in a folder without a config, is what we left."""
    if not workdir.is_dir():
        return True
    half = _temp(workdir / "config.json").name  # killed before it had a config
    files = {p.relative_to(workdir).as_posix() for p in workdir.rglob("*")}
    name, _, end = CERTIFICATE.partition(".")
    ours = rf"{name}(\.\d+)?\.{end}|{lock.NAME}(\..*)?"
    left = {f for f in files if not re.fullmatch(ours, f)}
    return left <= {half, "figures", PREVIEW}


def open_run(
    config: ConfigDict, workdir: str | os.PathLike
) -> tuple[Parts, Checkpoints]:
    """What the config of a run describes, and the checkpoints of the run.

    Raises:
      ValueError: no run of this config is there.
    """
    workdir = Path(workdir)
    if not (workdir / "config.json").exists():
        raise ValueError(
            f"workdir {workdir}: got no config.json, expected a run to load"
        )
    parts = prepare(config)
    claim(workdir, config)
    return parts, Checkpoints(workdir / "checkpoints")


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
    _temp(path).write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    os.replace(_temp(path), path)


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


def _temp(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


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

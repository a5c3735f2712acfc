"""Who may import whom. A file imports from its own floor and those below, no higher.

One row of ROOMS per part of the package: what it may import from elsewhere at the top
of a file, what only inside functions (so that a command which does not need it does not
wait for it), and which other parts it sees. Wings do not see each other.
"""

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "a2os2a_jax"


class Room(NamedTuple):
    floor: str
    top: str  # third-party packages, anywhere in a file
    lazy: str = ""  # third-party packages, only inside functions; "*" is any
    sees: str = ""  # other parts of the package


JAX = "jax numpy"
FLAX = "jax numpy flax"
BELOW = "functional modules models contents failures files streams texts"
LOOP = f"{BELOW} data analysis interop train config zoo"
ROOMS = {
    "functional": Room("floor 0", JAX),
    "modules": Room("floor 1", FLAX, "", "functional"),
    "models": Room("floor 2", FLAX, "", "functional modules"),
    "data": Room("wing", JAX, "*", "contents failures files streams texts"),
    "analysis": Room("wing", FLAX, "matplotlib", BELOW),
    "interop": Room("wing", FLAX, "safetensors jax2onnx onnx", BELOW),
    "train": Room(
        "floor 3",
        f"{FLAX} chex optax orbax absl etils ml_collections",
        "tqdm tensorboardX rich grain sklearn",
        f"{BELOW} data analysis interop config zoo",
    ),
    "commands": Room(
        "floor 4",
        f"{FLAX} optax orbax absl etils ml_collections",
        "*",
        LOOP,
    ),
    "config": Room("leaf", "ml_collections"),
    "contents": Room("leaf", ""),
    "failures": Room("leaf", "", "", "texts"),
    "files": Room("leaf", ""),
    "streams": Room("leaf", ""),
    "texts": Room("leaf", ""),
    "zoo": Room("leaf", ""),
    "main": Room("top", "absl jax ml_collections", "*", f"{LOOP} commands"),
    "__init__": Room("front door", "", "", "functional"),
    "configs/": Room("recipes", "ml_collections", "", "config"),
}


def room_of(path: Path) -> str:
    """a2os2a_jax/train/loop.py -> train, a2os2a_jax/main.py -> main."""
    if path.parts[0] != PACKAGE:
        return f"{path.parts[0]}/"
    return path.parts[1].removesuffix(".py")


def imports(tree: ast.Module, path: Path):
    """(line, dotted name, inside a function) of every import, relative ones too."""

    def walk(node, inside):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield child.lineno, alias.name, inside
            elif isinstance(child, ast.ImportFrom):
                base = path.with_suffix("").parts[: -child.level] if child.level else ()
                name = ".".join([*base, *filter(None, [child.module])])
                for alias in child.names:
                    yield child.lineno, f"{name}.{alias.name}", inside
            elif isinstance(child, ast.Call):
                called = ast.unparse(child.func).rpartition(".")[2]
                if called in ("import_module", "__import__") and child.args:
                    name = child.args[0]
                    if isinstance(name, ast.Constant) and isinstance(name.value, str):
                        yield child.lineno, name.value, inside
                yield from walk(child, inside)
            else:
                function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
                yield from walk(child, inside or isinstance(child, function))

    return walk(tree, False)


def offences(source: str, path: Path) -> list[str]:
    """What `source`, standing at `path` below the root, imports but must not."""
    name = room_of(path)
    if name not in ROOMS:
        return [f"{path}: {name!r} has no row in ROOMS, {__name__}"]
    room, found = ROOMS[name], []
    for line, dotted, inside in imports(ast.parse(source), path):
        head, _, rest = dotted.partition(".")
        if head == PACKAGE:
            part = rest.partition(".")[0]
            if part not in ROOMS:  # the package itself: it offers floor 0
                part = "functional"
            if part == name or part in room.sees.split():
                continue
            allowed = f"it sees {room.sees or 'no other part'}"
        elif head in sys.stdlib_module_names or head in room.top.split():
            continue
        elif inside and (room.lazy == "*" or head in room.lazy.split()):
            continue
        else:
            allowed = f"it may import {room.top or 'nothing'}"
            if room.lazy:
                lazy = "anything" if room.lazy == "*" else room.lazy
                allowed += f", inside functions {lazy}"
        found.append(f"{path}:{line}: {dotted} ({name} is {room.floor}: {allowed})")
    return found


FILES = sorted(
    path.relative_to(ROOT)
    for folder in (PACKAGE, "configs")
    for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_only_from_its_floor_and_below(path):
    found = offences((ROOT / path).read_text(encoding="utf-8"), path)
    assert not found, "\n" + "\n".join(found)


PLANTED = {
    "flax on floor 0": ("functional/neurons.py", "import flax.linen as nn"),
    "a model in a module": ("modules/block.py", "from a2os2a_jax import models"),
    "its submodule": ("modules/block.py", "import a2os2a_jax.models.columnar"),
    "a wing in a wing": ("analysis/x.py", "from a2os2a_jax.data import pipeline"),
    "upwards, relatively": ("models/columnar.py", "from ..train import loop"),
    "from the package file": ("models/__init__.py", "from ..train import loop"),
    "upwards, lazily": ("train/loop.py", "def f():\n  import a2os2a_jax.main"),
    "upwards, by name": ("data/x.py", "import_module('a2os2a_jax.models')"),
    "sklearn not lazily": ("data/digits.py", "from sklearn import datasets"),
    "in a class body": ("data/digits.py", "class A:\n  import sklearn"),
    "torch while training": ("train/loop.py", "def f():\n  import torch"),
    "only for types": ("functional/x.py", "if TYPE_CHECKING:\n  import optax"),
    "jax in the config": ("config.py", "import jax"),
    "more at the door": ("__init__.py", "from a2os2a_jax import models"),
    "a room unheard of": ("attic/x.py", ""),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_import_is_found(name):
    path, source = PLANTED[name]
    (found,) = offences(source, Path(PACKAGE) / path)
    assert path in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("functional/neurons.py", "import math\nfrom jax import numpy as jnp"),
        ("functional/__init__.py", "from . import neurons"),
        ("modules/block.py", "from ..functional import neurons"),
        ("modules/block.py", "from a2os2a_jax import neurons, __version__"),
        ("data/digits.py", "def f():\n  from sklearn import datasets"),
        ("commands/eval.py", "from a2os2a_jax import analysis, data, interop, train"),
    ],
)
def test_a_proper_import_is_let_through(path, source):
    assert offences(source, Path(PACKAGE) / path) == []


BARE = """
import importlib, pkgutil, sys

BLOCKED = {"flax", "optax", "orbax", "chex", "ml_collections", "tensorflow", "torch"}

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Block())
try:
    import flax
except ImportError:
    pass
else:
    sys.exit("the block does not block")
import a2os2a_jax.functional as floor
for module in pkgutil.walk_packages(floor.__path__, floor.__name__ + "."):
    importlib.import_module(module.name)
    print(module.name)
found = BLOCKED & {name.partition(".")[0] for name in sys.modules}
sys.exit(f"imported all the same: {found}" if found else None)
"""


def test_floor_0_needs_jax_alone():
    run = subprocess.run(
        [sys.executable, "-c", BARE], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "a2os2a_jax.functional.neurons" in run.stdout.split()

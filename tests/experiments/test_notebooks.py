"""Notebooks are stripped, install nothing they must not, and run on a CPU."""

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from tests import fences

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "experiments" / "notebooks"
SHOWN = {  # notebook -> (pictures at least, what it prints when all went well)
    "a2os2a_explained": (
        7,
        ["additions; if all of Q and V fired", "addition-only: multiplication-free"]
        + ["NOT addition-only: refused 1 operation", "an estimate (counts times"],
    ),
    "colab_tpu": (
        2,
        ["2 x cpu (cpu), mesh {'data': 2}", "the run is kept in runs/smoke, a new one"],
    ),
    "one_neuron": (6, ["by hand [0.309", "unseen points: 9", "in [-1, 0, 1]"]),
    "your_data": (5, ["wrote runs/mine-smoke/export", "of the test pictures are"]),
}
NAMES = sorted(SHOWN)
FLAX = "## Flax from here on"  # opens the second part of one_neuron
RUNTIMES_OWN = {"jax", "numpy", "pillow", "scikit-learn", "matplotlib", "tqdm"}
MACHINE_PATH = re.compile(r"(?<![\w./~-])/(?:work|root|home|Users|mnt|tmp)/")


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code(notebook: dict) -> list[str]:
    return [source(c) for c in notebook["cells"] if c["cell_type"] == "code"]


def of_python(text: str) -> str:
    """Without lines for the shell, and magics."""
    return re.sub(r"(?m)^(\s*)[!%].*$", r"\1pass", text)


def problems(notebook: dict) -> list[str]:
    """What a notebook must not have."""
    found = []
    if (notebook["nbformat"], notebook["nbformat_minor"]) != (4, 5):
        found.append("another format than 4.5")
    if set(notebook["metadata"]) - {"accelerator", "kernelspec", "language_info"}:
        found.append(f"metadata {sorted(notebook['metadata'])}")
    ids = [cell["id"] for cell in notebook["cells"]]
    if len(set(ids)) < len(ids) or not all(re.fullmatch(r"[a-z-]+", i) for i in ids):
        found.append("ids of cells that are no words, or that occur twice")
    for cell in notebook["cells"]:
        text, at = source(cell), cell["id"]
        if cell["metadata"]:
            found.append(f"{at}: metadata")
        if cell.get("outputs") or cell.get("execution_count") is not None:
            found.append(f"{at}: outputs")
        if MACHINE_PATH.search(text):
            found.append(f"{at}: the path of a machine")
        if cell["cell_type"] != "code":
            continue
        if re.search(r"pip\W+install", text):
            if "--no-deps" not in text:
                found.append(f"{at}: pip install without --no-deps")
            if re.search(r"--upgrade|\s-U\b|[\"' ](jax|jaxlib|libtpu)\b[^/_]", text):
                found.append(f"{at}: asks for jax, or for an upgrade")
    return found


def test_all_are_known():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_is_stripped_and_installs_nothing_it_must_not(name):
    assert not problems(read(name))


@pytest.mark.parametrize("name", NAMES)
def test_is_valid(name):
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat: extra notebooks")
    nbformat.validate(read(name))


@pytest.mark.parametrize("name", NAMES)
def test_cells_compile_and_know_of_smoke(name):
    cells = code(read(name))
    for text in cells:
        compile(of_python(text), name, "exec")
    assert any("A2OS2A_SMOKE" in text for text in cells)
    assert sum('os.environ.get("A2OS2A_SMOKE")' in text for text in cells) == 1


@pytest.mark.parametrize(
    "planted, found",
    [
        ({"outputs": [{"output_type": "stream"}]}, "outputs"),
        ({"execution_count": 3}, "outputs"),
        ({"metadata": {"collapsed": True}}, "metadata"),
        ({"source": ["!pip install flax"]}, "--no-deps"),
        ({"source": ['pip = ["-m", "pip", "install", "-q"]']}, "--no-deps"),
        ({"source": ["!pip install --no-deps --upgrade flax"]}, "upgrade"),
        ({"source": ["!pip install --no-deps flax jax>=0.10"]}, "jax"),
        ({"source": ['pip = ["pip", "install", "--no-deps", "jax"]']}, "jax"),
        ({"source": ['open("/' + 'home/me/x.npz")']}, "machine"),
        ({"id": "text-intro"}, "twice"),
    ],
)
def test_what_is_planted_is_found(planted, found):
    notebook = read("one_neuron")
    cell = next(c for c in notebook["cells"] if c["cell_type"] == "code")
    cell |= planted
    assert any(found in problem for problem in problems(notebook))


def test_colab_installs_the_bounds_of_requirements_and_leaves_the_runtime_alone():
    (cell,) = [text for text in code(read("colab_tpu")) if "PACKAGES = [" in text]
    names: dict = {}
    exec(re.search(r"PACKAGES = \[.*?\]\nTHEIRS = \[.*?\]\n", cell, re.S)[0], names)
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()]
    lines = {line for line in lines if line}
    ours, missing = set(names["PACKAGES"]), lines - set(names["PACKAGES"])
    assert ours <= lines
    assert {re.match(r"[\w-]+", line)[0] for line in missing} == RUNTIMES_OWN
    assert not RUNTIMES_OWN & set(names["THEIRS"])
    assert 'find_spec("a2os2a_jax") is None' in cell

    (first, *_) = code(read("colab_tpu"))
    bound = next(line for line in lines if line.startswith("jax>"))
    assert f'JAX = "{bound.removeprefix("jax")}"' in first
    assert first.count("REPOSITORY =") == 1 and "/OWNER/" in first
    text = "".join(source(cell) for cell in read("colab_tpu")["cells"])
    assert "never been run on a TPU so far" in text


def test_one_neuron_installs_itself_from_the_same_place_and_only_then():
    (of_colab,) = re.findall(r'^REPOSITORY = ".*"$', code(read("colab_tpu"))[0], re.M)
    first, *others = code(read("one_neuron"))
    assert of_colab in first and "--no-deps" in first
    assert not any("pip" in text for text in others)
    exec(first, {})  # it is importable here: nothing is installed
    absent = first.replace('find_spec("a2os2a_jax")', 'find_spec("not_there")')
    with pytest.raises(SystemExit, match="put the address of your copy"):
        exec(absent, {})


def test_colab_stops_at_a_jax_out_of_bounds():
    (first, *_) = code(read("colab_tpu"))
    planted = re.sub(r"JAX = .*", 'JAX = ">=99"', first)
    with pytest.raises(SystemExit, match="expected >=99: choose another runtime"):
        exec(planted, {})


def test_colab_keeps_the_run_in_drive_from_the_start(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cells = {cell["id"]: source(cell) for cell in read("colab_tpu")["cells"]}
    assert list(cells).index("keep") < list(cells).index("train")
    assert [i for i, text in cells.items() if re.search("^RUN =", text, re.M)] == [
        "keep"
    ]
    names: dict = {"Path": Path, "SMOKE": True}
    exec(cells["keep"], names)
    assert names["RUN"] == Path("runs/smoke")

    mounted: list[str] = []
    colab = types.ModuleType("google.colab")
    colab.drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    exec(cells["keep"], names)
    (drive,) = mounted
    assert names["RUN"].is_relative_to(drive)


@pytest.mark.parametrize("name", ["colab_tpu", "your_data"])
def test_a_stopped_training_says_so(name):
    (cell,) = [source(c) for c in read(name)["cells"] if c["id"] == "train"]
    stopped = types.SimpleNamespace(run=lambda config, workdir: {"stopped_at": 7})
    names = {"train": stopped, "config": None, "RUN": None}
    with pytest.raises(SystemExit, match="stopped at step 7: this cell again goes on"):
        exec(cell, names)


def test_the_readme_names_all_and_says_how_to_open_them():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"[{name}]({name}.ipynb)" in text for name in NAMES)
    found = fences.blocks(text)
    assert [block.info for block in found] == ["sh not-run"]
    assert found[0].commands == [
        "make digits",
        ".venv/bin/pip install -e '.[notebooks]' jupyterlab",
        ".venv/bin/jupyter lab experiments/notebooks",
    ]
    assert fences.WARNING.search(found[0].around)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder, from which the package and configs/ can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("A2OS2A_SMOKE", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "agg")
    return tmp_path


@pytest.mark.slow
def test_the_first_part_of_one_neuron_needs_no_flax(place):
    cells = read("one_neuron")["cells"]
    end = next(i for i, cell in enumerate(cells) if source(cell).startswith(FLAX))
    first, second = (code({"cells": c}) for c in (cells[:end], cells[end:]))
    blocked = "flax optax orbax ml_collections chex IPython sklearn safetensors"
    lines = [
        "import sys, warnings",
        "warnings.simplefilter('ignore')  # there is no screen for plt.show",
        f"for name in {blocked.split()}: sys.modules[name] = None",
    ]
    program = "\n".join([*lines, *first])
    subprocess.run([sys.executable, "-c", program], cwd=place, check=True)
    assert len(first) > len(second) > 4
    assert any("import nnx" in text for text in second)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs(name, place, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient: extra notebooks")
    pytest.importorskip("ipykernel", reason="needs ipykernel: extra notebooks")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.delenv("MPLBACKEND")  # the kernel has one that shows pictures inline
    monkeypatch.setenv("IPYTHONDIR", str(place / ".ipython"))
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    how = dict(timeout=600, kernel_name="python3")
    how |= dict(resources={"metadata": {"path": os.fspath(place)}})
    nbclient.NotebookClient(notebook, **how).execute()
    outputs = [o for c in notebook.cells for o in c.get("outputs", ())]
    pictures = sum("image/png" in o.get("data", ()) for o in outputs)
    printed = "".join(o["text"] for o in outputs if o["output_type"] == "stream")
    at_least, lines = SHOWN[name]
    assert pictures >= at_least
    for line in lines:
        assert line in printed, printed[-3000:]


def write_pictures(folder: Path, count: int) -> None:
    """Pictures of two classes, noise that is mostly red or blue, of kinds and sizes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    kinds = [("RGB", ".jpg"), ("RGB", ".JPEG"), ("RGBA", ".png"), ("L", ".jpg")]
    for i in range(count):
        name, channel = (("blue", 2), ("red", 0))[i % 2]
        pixels = rng.integers(0, 80, (*rng.integers(17, 60, 2), 3), np.uint8)
        pixels[..., channel] += 150
        mode, suffix = kinds[i // 2 % len(kinds)]
        path = folder / name / f"{i:03}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert(mode).save(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes, channels, judged",
    [
        pytest.param({"": 100}, 1, 20, id="flat, read as grey"),
        pytest.param({"train": 72, "val": 10}, 3, 10, id="split, in colour"),
    ],
)
def test_your_data_takes_pictures_as_they_are(place, sizes, channels, judged):
    for part, count in sizes.items():
        write_pictures(place / "pictures" / part, count)
    before = sorted((place / "pictures").rglob("*"))
    cells = code(read("your_data"))
    assert sum("channels=1" in text for text in cells) == 1
    lines = ["import warnings", "warnings.simplefilter('ignore')  # there is no screen"]
    program = "\n".join(
        [*lines, *cells, "assert dataset.class_names == ('blue', 'red')"]
    )
    program = program.replace("channels=1", f"channels={channels}")
    program += f"\nassert scores['count'] == {judged} and not DIGITS"
    pytest.importorskip("IPython", reason="needs IPython: extra notebooks")
    subprocess.run([sys.executable, "-c", program], cwd=place, check=True)
    assert sorted((place / "pictures").rglob("*")) == before

"""README's code runs, and its tables are those of the JSON files."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fences

pytestmark = pytest.mark.usefixtures("quick_compilation")
ROOT = Path(__file__).resolve().parent.parent


def test_python_blocks_run():
    programs = [b for b in fences.of("README") if b.info.startswith("python")]
    run = [b.code for b in programs if not b.info.endswith(fences.NOT_RUN)]
    assert len(run) >= 2
    for block in programs:
        program = compile(block.code, "README.md", "exec")
        if block.code in run:
            exec(program, {})


def test_the_primitives_need_no_flax():
    floor = re.compile(r"(?:import|from) (?:jax|numpy)\b|from a2os2a_jax import ")
    above = re.compile(r"from a2os2a_jax import .*\b(?:models|train|data|analysis)\b")
    codes = [b.code for b in fences.of("README") if b.info == "python"]
    bare = [
        code
        for code in codes
        if all(map(floor.match, re.findall(r"^(?:import|from) .*$", code, re.M)))
        and not above.search(code)
    ]
    assert bare, "README shows no neuron that needs jax alone"
    blocked = "import sys; sys.modules['flax'] = sys.modules['optax'] = None\n"
    for code in bare:
        subprocess.run([sys.executable, "-c", blocked + code], cwd=ROOT, check=True)


def test_results_are_those_of_the_json_files():
    path = ROOT / "experiments" / "tables.py"
    spec = importlib.util.spec_from_file_location("tables", path)
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    readme = (ROOT / "README.md").read_text()
    assert tables.render(readme) == readme
    for name, make in tables.PAGES.items():
        page = (ROOT / name).read_text()
        assert make(page) == page, name
    assert "0.4914 0.4822 0.4465" in (ROOT / "docs" / "data.md").read_text()
    assert tables.render(readme.replace("| recall, ", "| recal, ")) == readme
    assert "| recall, " in readme

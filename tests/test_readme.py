"""README's code runs, and its tables are those of the JSON files."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_the_primitives_need_no_flax():
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    blocked = "import sys; sys.modules['flax'] = sys.modules['optax'] = None\n"
    subprocess.run([sys.executable, "-c", blocked + block], cwd=ROOT, check=True)


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
    assert tables.render(readme.replace("| recall |", "| recal |")) == readme

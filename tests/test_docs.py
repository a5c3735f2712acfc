"""The code in docs/ runs, and what it says of records is so."""

import csv
import re
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest

from a2os2a_jax.train import metrics, setup

ROOT = Path(__file__).resolve().parent.parent
DOCS = {path.stem: path for path in sorted((ROOT / "docs").glob("*.md"))}
FENCE = re.compile(r"^```(python[^\n]*)\n(.*?)^```$", re.M | re.S)
RUN, NOT_RUN = "python", "python not-run"  # what stands behind the opening fence


def blocks(text):
    """[(info, code)] of the fenced blocks of Python."""
    return [match.groups() for match in FENCE.finditer(text)]


class Toy(nn.Module):
    """Stands in for a model: compiles at once."""

    frozen = ()

    @nn.compact
    def __call__(self, x, train=False):
        self.variable("batch_stats", "none", lambda: np.zeros(1, np.float32))
        self.sow("spikes", "out", x)
        self.sow("potentials", "out", x)
        return nn.Dense(10)(x.reshape(len(x), -1))


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """name of a page -> the folder in which its blocks have run."""

    def run(name):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(setup, "build", lambda *_, **__: Toy())
        for info, code in blocks(DOCS[name].read_text(encoding="utf-8")):
            assert info in (RUN, NOT_RUN), f"{name}: ```{info}"
            program = compile(code, DOCS[name].name, "exec")
            if info == RUN:
                exec(program, {})
        return tmp_path

    return run


@pytest.mark.parametrize("name", sorted(set(DOCS) - {"hooks"}))
def test_python_blocks_run_or_say_that_they_do_not(name, ran):
    ran(name)


def test_hooks_run_and_records_are_as_described(ran, capsys):
    folder = ran("hooks")
    records = metrics.read_lines(folder / "runs" / "hooks" / "metrics.jsonl")
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert [r[:3] for r in rows] == [
        [str(r[key]) for key in ("step", "epoch", "split")] for r in records
    ]
    assert {r["split"] for r in records} == {"train", "test"}
    printed = [line for line in capsys.readouterr().out.splitlines() if line[0] == "{"]
    assert len(printed) == len(records)

    text = DOCS["hooks"].read_text(encoding="utf-8")
    described = {}
    for keys, of in re.findall(r"^\| (`.*?) \| (\w+) \|", text, re.M):
        described |= dict.fromkeys(re.findall(r"`(\w+)`", keys), of)
    del described["layers"]  # with eval.layers
    for record in records:
        of = {"all", "train" if record["split"] == "train" else "scores"}
        assert set(record) == {key for key, which in described.items() if which in of}


def test_weights_and_biases_takes_ten_lines_and_is_not_run():
    ((_, code),) = [
        (info, code)
        for info, code in blocks(DOCS["hooks"].read_text(encoding="utf-8"))
        if info == NOT_RUN
    ]
    lines = [line for line in code.splitlines() if line.strip()]
    assert lines[0] == "import wandb" and len(lines) == 10


def test_a_block_is_taken_for_what_its_fence_says():
    text = "```python\na\n```\n```\nb\n```\n```python not-run\nc\n```\n"
    assert blocks(text) == [(RUN, "a\n"), (NOT_RUN, "c\n")]

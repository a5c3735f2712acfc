import sys
from pathlib import Path

import numpy as np
import pytest

from a2os2a_jax import data

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import cifar  # noqa: E402
import pack  # noqa: E402


@pytest.fixture
def arrays():
    rng = np.random.RandomState(0)

    def split(n):
        return rng.randint(0, 256, (n, 8, 8, 3)).astype(np.uint8), np.arange(n) % 5

    return {"train": split(2000), "test": split(300)}


def test_what_is_packed_comes_back_to_the_bit(arrays, tmp_path):
    paths = pack.write(arrays, {"name": "x"}, list("abcde"), tmp_path / "p", mib=0.1)
    assert len(paths) > 4 and all(p.stat().st_size <= 0.1 * 2**20 for p in paths)
    d = data.load(f"npz:{tmp_path / 'p'}")
    for name, (images, labels) in arrays.items():
        np.testing.assert_array_equal(d.split(name).resident[0], images)
        np.testing.assert_array_equal(d.split(name).resident[1], labels)
    assert d.class_names == tuple("abcde")


def test_nothing_is_written_over(arrays, tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(ValueError, match="a folder with files, expected a new one"):
        pack.write(arrays, {}, list("abcde"), tmp_path)


def test_a_cut_of_cifar100_by_the_command(tmp_path, capsys):
    found = pack.main(["nosuch", f"--out={tmp_path / 'p'}"])
    assert found == 1 and "is unknown" in capsys.readouterr().err


def test_the_runs_of_the_table():
    runs = cifar.runs(["factorial", "2-512"], 20, 2, [("dtype", "bfloat16")])
    assert len(runs) == 2 * 15 and len({run.name for run in runs}) == 30
    assert [run.seed for run in runs[:15]] == [0] * 15  # one seed of all, first
    assert runs[0].config == "configs/cifar10.py:2-256,20"
    assert len([r for r in runs if "decay_input=True" in r.name]) == 14
    for run in (runs[0], runs[3], runs[14]):
        cifar.sweep.check(run)

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from a2os2a_jax import data
from a2os2a_jax.data import pipeline

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
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


def test_a_crash_leaves_nothing_that_is_read(arrays, tmp_path, monkeypatch):
    out = tmp_path / "p"
    out.mkdir()  # an empty one may be there
    save, made = np.savez_compressed, []

    def third(path, **parts):
        made.append(path)
        if len(made) == 3:
            raise KeyboardInterrupt
        save(path, **parts)

    # killed: what clears up does not run either
    monkeypatch.setattr(np, "savez_compressed", third)
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(pack.shutil, "rmtree", lambda *_, **__: None)
        pack.write(arrays, {}, list("abcde"), out, mib=0.1)
    assert len(list(made[0].parent.glob("piece_*"))) == 2 and made[0].parent != out
    with pytest.raises(ValueError, match="found no .npz file"):
        data.load(f"npz:{out}")
    paths = pack.write(arrays, {}, list("abcde"), out, mib=0.1)
    assert sorted(paths) == sorted(out.glob("*.npz"))
    assert data.load(f"npz:{out}").train.size == 2000
    assert list(tmp_path.iterdir()) == [out]


def test_too_large_an_example_leaves_nothing(arrays, tmp_path):
    with pytest.raises(ValueError, match="bytes, expected 0.0001 MiB"):
        pack.write(arrays, {}, list("abcde"), tmp_path / "p", mib=0.0001)
    assert list(tmp_path.iterdir()) == []


def test_the_list_of_pieces_says_what_a_result_has_to(tmp_path, monkeypatch, arrays):
    splits = {name: pipeline.resident_split(*xy) for name, xy in arrays.items()}
    how = dict(about="ten kinds", note="of a copy")
    made = pipeline.Dataset("cifar10", (8, 8, 3), 5, **splits, **how)
    monkeypatch.setattr(data, "load", lambda name, **_: made)
    assert pack.main(["cifar10", f"--out={tmp_path / 'p'}"]) == 0
    about = json.loads((tmp_path / "p" / "pieces.json").read_text())
    assert (about["name"], about["about"]) == ("cifar10", "ten kinds")
    monkeypatch.undo()
    assert data.load(f"npz:{tmp_path / 'p'}", size=8).note == "of a copy"


def test_what_is_unknown_is_said_in_a_line(tmp_path, capsys):
    found = pack.main(["nosuch", f"--out={tmp_path / 'p'}"])
    assert found == 1 and "is unknown" in capsys.readouterr().err

import sys

import numpy as np
import pytest

from a2os2a_jax.data import images, prepare


def one_line(err, *needles):
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    for needle in needles:
        assert needle in line


def test_what_is_there_is_read_in_full(tfds_dir, capsys):
    root = tfds_dir("cifar100_small")
    assert prepare.main(["cifar100_small", f"--data_dir={root}"]) == 0
    out = capsys.readouterr().out
    assert "cifar100_small train: 3,000 records, 0 unreadable" in out
    assert "--config.data.name=tfds:cifar100_small" in out


def test_what_is_not_there_needs_tensorflow_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    assert prepare.main(["cifar10", f"--data_dir={tmp_path}"]) == 1
    one_line(capsys.readouterr().err, "a2os2a_jax[prepare]", "cifar10 is not in")
    assert prepare.main(["cifar10", f"--data_dir={tmp_path}", "--check"]) == 1
    one_line(capsys.readouterr().err, "found no cifar10")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", prepare.WHERE)
def test_recordings_are_fetched_by_hand(name, tmp_path, capsys):
    assert prepare.main([name, f"--data_dir={tmp_path}"]) == 1
    one_line(capsys.readouterr().err, f"{tmp_path}/{name}", "Download", "Terms")


def test_the_unreadable_are_listed(encode):
    class Made:
        rows = [encode(np.zeros((4, 4, 3), np.uint8)), b"", b"\x89PNG"]

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return images.Record(self.rows[index], 0)

        def name(self, index):
            return f"row {index}"

    found = prepare.unreadable(Made(), images.Target(4, 3, 1, (4, 4)))
    assert [text[:6] for text in found] == ["row 1:", "row 2:"]

import gzip
import pickle

import numpy as np
import pytest

from a2os2a_jax.data import signatures


def saved(path):
    with open(path, "wb") as file:
        np.save(file, np.arange(3))


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (saved, "a single array, as np.save writes it"),
        (lambda p: p.write_bytes(pickle.dumps({"x": 1})), "a pickle"),
        (lambda p: p.write_bytes(gzip.compress(b"x")), "a gzip archive"),
        (
            lambda p: p.write_text("\n<!DOCTYPE html>"),
            "a page of HTML or XML, an error ",
        ),
        (lambda p: p.write_text("\ufeff<html>", "utf-8"), "a page of HTML"),
        (
            lambda p: p.write_text("version https://git-lfs.github.com/spec/v1"),
            "a git-",
        ),
        (lambda p: p.write_text("a,b\n1,2\n"), "text"),
        (lambda p: p.write_text(""), "an empty file"),
        (lambda p: p.write_bytes(bytes(99)), "only zeros"),
        (lambda p: p.write_bytes(b"\1\2\3\4"), "a file of an unknown kind"),
    ],
)
def test_kind(tmp_path, write, expected):
    write(tmp_path / "a.npz")
    assert signatures.kind(tmp_path / "a.npz").startswith(expected)

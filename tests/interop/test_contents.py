"""Files that are not what their names say: each is called what it is."""

import gzip
import io
import shutil
import tarfile
import zipfile

import numpy as np
import pytest

from a2os2a_jax.interop import torch_files
from tests.interop.torch_format import STATE


def archive(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, text in members.items():
            file.writestr(name.replace("__", "/"), text)
    return stream.getvalue()


def tarred(name):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        file.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393
size 12345678
"""
DISGUISES = {
    "html": (
        b"<!DOCTYPE html>\n<html><title>Sign in</title>",
        "an HTML page .'Sign in'",
    ),
    "html too": (b"\xef\xbb\xbf\n<!-- x --><HTML lang='en'>", "an HTML page"),
    "lfs": (POINTER, "a git-lfs pointer to 12,345,678 bytes.* `git lfs pull`"),
    "text": (b"Entry not found", "a text that begins 'Entry not found'"),
    "json": (b'{"error": "Repository not found"}', "a text that begins"),
    "zeros": (bytes(5000), "5,000 bytes that begin with zeros"),
    "empty": (b"", "an empty file"),
    "gzip": (gzip.compress(b"x"), "a gzip archive"),
    "tar": (tarred("spikformer.pth"), "a tar archive of spikformer.pth: unpack it"),
    "zip": (archive(a="1", b="2", c="3", d="4"), "a zip archive of a, b, c and 1 more"),
    "cut zip": (
        archive(m__data_pkl="x" * 99)[:60],
        "a zip archive cut short after 60 bytes",
    ),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
    "npy": (b"\x93NUMPY\1\0" + bytes(99), "one array of numpy.save"),
}


@pytest.mark.parametrize("name", ["model.pth", "model.npz", "model.safetensors"])
@pytest.mark.parametrize("what", DISGUISES)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path, name, what):
    content, words = DISGUISES[what]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: got {words}") as error:
        torch_files.read(tmp_path / name)
    message = str(error.value)
    assert "\n" not in message and "weights_only" not in message


def test_kinds_under_the_name_of_another(saved, tmp_path):
    pytest.importorskip("safetensors")
    torch_files.write(tmp_path / "a.safetensors", STATE, {})
    np.savez(tmp_path / "a.npz", **STATE)
    kinds = {
        "a.safetensors": "a .safetensors file: name it so",
        "a.npz": "an archive of numpy.savez: name it .npz",
        saved(STATE, "new.pth").name: "a file of torch.save: name it .pth",
        saved(STATE, "old.pth", old=True).name: "a pickle: if torch wrote it, name it",
    }
    for name, words in kinds.items():
        for suffix in (".pth", ".npz", ".safetensors"):
            path = tmp_path / f"renamed{suffix}"
            shutil.copy(tmp_path / name, path)
            if name.endswith(suffix):
                assert torch_files.read(path).keys() == STATE.keys()
                continue
            with pytest.raises(ValueError, match=f"{path.name}: got {words}"):
                torch_files.read(path)
    (tmp_path / "dir.pth").mkdir()
    with pytest.raises(ValueError, match="dir.pth: got a directory"):
        torch_files.read(tmp_path / "dir.pth")

import errno
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

from a2os2a_jax import models
from a2os2a_jax.interop import export, loader, weights
from tests.analysis.test_brute_force import made

OPTIONS = dict(num_classes=10, timesteps=2, heads=2)
IMAGES = OPTIONS | dict(image_size=8, in_channels=1, pool="0011")
TOKENS = OPTIONS | dict(image_size=None, in_channels=6, stem="tokens")
CASES = {  # dtype, options, shape of an example
    "float32": ("float32", IMAGES, (8, 8, 1)),
    "bfloat16": ("bfloat16", IMAGES, (8, 8, 1)),
    "float64": ("float64", IMAGES, (8, 8, 1)),
    "events": ("float64", IMAGES | dict(in_channels=2), (2, 8, 8, 2)),
    "tokens": ("float64", TOKENS | dict(readout="query"), (5, 6)),
}
QUICK = {"xla_backend_optimization_level": 0}


def card(about):
    return f"{about['signature']}\n"


class Written:
    """A folder, the models it was made of, and the logits of this process."""

    def __init__(self, folder, dtype, options, shape):
        self.folder, self.shape = folder, shape
        self.model = models.build("columnar", "1-16", dtype=dtype, **options)
        self.images = np.random.default_rng(1).normal(size=(3, *shape))
        self.images = self.images.astype(np.float32)
        like = jax.eval_shape(self.model.init, jax.random.key(0), self.images)
        self.variables = jax.tree.map(
            lambda x, like: jnp.asarray(x, like.dtype),
            made(self.model, self.images),
            like,
        )
        tokens = shape[-2] if options.get("stem") else None
        self.folded, self.params = models.fold(
            self.model, self.variables, tokens=tokens
        )
        self.about, _ = self.write()
        self.call = loader.load(folder)
        self.logits = {n: np.asarray(self.call(self.images[:n])) for n in (1, 3)}

    def write(self, **about):
        what = {"dtype": self.model.dtype.name} | about
        return export.write(
            self.folder, self.folded, self.params, self.shape, what, card
        )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """written(name) -> Written; each is made once."""
    kept = {}

    def get(name):
        if name not in kept:
            wide = CASES[name][0] == "float64"
            with jax.enable_x64(wide):
                folder = tmp_path_factory.mktemp(name) / "export"
                kept[name] = Written(folder, *CASES[name])
        return kept[name]

    return get


BARE = """
import importlib.util, sys
BLOCKED = {"flax", "optax", "orbax", "chex", "ml_collections", "safetensors", "etils",
           "a2os2a_jax", "absl", "matplotlib"}

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Block())
import numpy as np
for folder in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("load", folder + "/load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model, images = module.load(folder), np.load(folder + "/../images.npy")
    for n in (1, 3):
        np.save(f"{folder}/../logits_{n}.npy", model(images[:n]))
for name in ("flax", "a2os2a_jax"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit("the block does not block")
"""


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("float32",), id="float32"),
        # the last one turns x64 on
        pytest.param(("bfloat16", "float64"), id="others", marks=pytest.mark.slow),
    ],
)
def test_a_bare_process_gives_exactly_the_same_logits(written, tmp_path, names):
    folders = []
    for name in names:
        of = written(name)
        folders.append(tmp_path / name / "elsewhere")
        shutil.copytree(of.folder, folders[-1])
        np.save(tmp_path / name / "images.npy", of.images)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    line = [sys.executable, "-c", BARE, *map(str, folders)]
    how = dict(cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    done = subprocess.run(line, **how)
    assert done.returncode == 0, done.stderr
    for name in names:
        for n, want in written(name).logits.items():
            got = np.load(tmp_path / name / f"logits_{n}.npy")
            assert (
                got.dtype
                == want.dtype
                == (np.float64 if name == "float64" else np.float32)
            )
            np.testing.assert_array_equal(got, want, err_msg=name)
        assert np.ptp(want, axis=0).max() > 1e-3  # no silent model


@pytest.mark.parametrize(
    "name", ["float64", "tokens", pytest.param("events", marks=pytest.mark.slow)]
)
def test_in_float64_it_agrees_with_the_folded_model_and_the_trained_one(
    x64, written, name
):
    of = written(name)
    run = jax.jit(
        lambda v, p, x: (
            *of.model.apply(v, x, mutable=["spikes"]),
            of.folded.apply(p, x),
        ),
        compiler_options=QUICK,
    )
    trained, sown, folded = run(of.variables, of.params, of.images)
    rates = [np.mean(np.asarray(s) != 0) for s in jax.tree.leaves(sown)]
    assert all(0.02 < rate < 0.7 for rate in rates), rates
    assert np.ptp(trained, axis=0).max() > 1e-3
    np.testing.assert_allclose(of.logits[3], folded, rtol=0, atol=1e-10)
    np.testing.assert_allclose(of.logits[3], trained, rtol=0, atol=1e-10)


def test_in_float32_it_agrees_with_the_folded_model_in_most(written):
    """One rounding flips a spike and many follow; of three examples no class changes
    here, and most logits agree to the last digits."""
    of = written("float32")
    want = np.asarray(jax.jit(of.folded.apply)(of.params, of.images))
    np.testing.assert_array_equal(of.logits[3].argmax(-1), want.argmax(-1))
    assert np.mean(np.abs(of.logits[3] - want) < 1e-5) > 0.6


def test_a_permuted_batch_gives_permuted_logits_and_a_part_its_own(x64, written):
    of = written("float64")
    got = of.call(of.images[[2, 0, 1]])
    np.testing.assert_allclose(got, of.logits[3][[2, 0, 1]], rtol=0, atol=1e-12)
    np.testing.assert_allclose(of.logits[1], of.logits[3][:1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "shape", [(1, 8, 8, 3), (1, 9, 9, 1), (8, 8, 1), (0, 8, 8, 1), (1, 2, 8, 8, 1)]
)
def test_another_shape_is_an_error(written, shape):
    with pytest.raises((ValueError, TypeError)):
        written("float32").call(np.zeros(shape, np.float32))


def test_what_the_folder_holds(written):
    of = written("float32")
    assert sorted(p.name for p in of.folder.iterdir()) == sorted(export.FILES)
    assert export.read(of.folder) == of.about == json.loads(json.dumps(of.about))
    assert of.about["signature"] == (
        "images float32 [b, 8, 8, 1] -> logits float32 [b, 10]"
    )
    assert (of.folder / "README.md").read_text() == of.about["signature"] + "\n"
    kept, _ = weights.load(of.folder / "weights.safetensors")  # by the usual reader
    for name, x in export.flat(of.params).items():
        np.testing.assert_array_equal(export.flat(kept)[name], x)
    raw = (of.folder / "model.jaxexport").read_bytes()
    held = jax_export.deserialize(bytearray(raw))
    assert held.platforms == ("cpu", "cuda", "tpu") == export.PLATFORMS
    assert str(held.in_avals[-1].shape) == "(b, 8, 8, 1)"
    # weights are there once; no folder of this machine is named
    assert len(raw) < (of.folder / "weights.safetensors").stat().st_size * 3
    for folder in (Path(export.__file__).parents[2], Path(jax.__file__).parents[1]):
        assert str(folder).encode() not in raw
    assert os.access(of.folder / "weights.safetensors", os.R_OK)


def test_the_loader_takes_thirty_lines_and_prints_shapes(written, capsys):
    of = written("float32")
    code = (of.folder / "load.py").read_text()
    assert code == Path(loader.__file__).read_text()
    lines = [line for line in code.splitlines() if line.strip()]
    assert lines[0].startswith('"""') and len(lines[1:]) <= 36
    runpy.run_path(str(of.folder / "load.py"), run_name="__main__")
    assert capsys.readouterr().out == of.about["signature"] + "\n"


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_the_loader_names_the_picture_that_is_not_finite(written, bad):
    of = written("float32")
    images = of.images.astype(np.float64)
    images[[1, 2], 3] = bad
    with np.errstate(over="ignore"):
        narrow = jnp.asarray(images.astype(np.float32))
    for same in (images, images.tolist(), narrow):
        with pytest.raises(
            ValueError, match=r"got NaN or infinity in images\[1\], expe"
        ):
            of.call(same)
    # inside another program nothing can be raised, and nothing is
    assert jax.jit(lambda x: of.call(x))(narrow).shape == (3, 10)


@pytest.mark.parametrize("name", ["weights.safetensors", "model.jaxexport"])
def test_a_damaged_file_is_found(written, tmp_path, name):
    shutil.copytree(written("float32").folder, tmp_path / "copy")
    path = tmp_path / "copy" / name
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="copy: damaged: sha256 is not as in its"):
        loader.load(tmp_path / "copy")


def test_the_same_is_kept_and_anything_else_refused(written, tmp_path):
    of = written("float32")
    before = {p.name: p.read_bytes() for p in of.folder.iterdir()}
    about, new = of.write()
    assert not new and about == of.about
    # another version of the package writes the same
    about, new = of.write(commit="abc", versions={"jax": "9"})
    assert not new and about == of.about
    with pytest.raises(ValueError, match="holds another export, .* differs in note;"):
        of.write(note="changed")
    assert {p.name: p.read_bytes() for p in of.folder.iterdir()} == before
    assert [p.name for p in of.folder.parent.iterdir()] == ["export"]
    place = tmp_path / "export"
    place.mkdir()
    (place / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="holds no model.json, expected none"):
        export.write(place, of.folded, of.params, of.shape, {}, card)
    assert [p.name for p in place.iterdir()] == ["thesis.tex"]


def test_half_a_folder_is_never_left(written, tmp_path):
    of = written("float32")
    killed = tmp_path / ".export.tmp"  # which could not clear up
    killed.mkdir()
    (killed / "weights.safetensors").write_text("half")

    def failing(about):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        export.write(tmp_path / "export", of.folded, of.params, of.shape, {}, failing)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_named_before_anything_is_made(
    written, tmp_path, monkeypatch
):
    of = written("float32")
    monkeypatch.setattr(export, "program", None)
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "export"
    with pytest.raises(OSError, match="^export: cannot write .*export: Not a direc"):
        export.write(place, of.folded, of.params, of.shape, {}, card)

    def read_only(**_):
        raise OSError(errno.EROFS, "Read-only file system", "somewhere")

    export.check_writable(tmp_path / "new" / "folder", "--out")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    monkeypatch.setattr(export.tempfile, "TemporaryFile", read_only)
    words = f"^--out: cannot write {tmp_path}/new: Read-only file system, expected a"
    with pytest.raises(OSError, match=words):
        export.check_writable(tmp_path / "new", "--out")


@pytest.mark.parametrize("lacking", ["kind", "x64", "sha256", "weights.safetensors"])
def test_keys_that_a_description_lacks_are_named(written, tmp_path, lacking):
    about = json.loads((written("float32").folder / "model.json").read_text())
    about.pop(lacking, None)
    about.get("sha256", {}).pop(lacking, None)
    (tmp_path / "model.json").write_text(json.dumps(about))
    words = f"{tmp_path}: model.json lacks .*{lacking}.*, expected it as --mode=export"
    if lacking == "sha256":
        words = words.replace("sha256", "sha256 of weights.safetensors and model")
    with pytest.raises(ValueError, match=words):
        export.read(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"format": 9}'])
def test_another_or_a_broken_description_is_named(tmp_path, text):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ValueError, match="expected (one|1)"):
        export.read(tmp_path)


def test_parameters_of_two_dtypes_are_refused(written, tmp_path):
    of = written("float32")
    mixed = jax.tree.map(lambda x: x, of.params)
    mixed["params"]["head"]["bias"] = np.zeros(10, np.float16)
    with pytest.raises(ValueError, match="got parameters of float16, float32"):
        export.write(tmp_path / "e", of.folded, mixed, of.shape, {}, card)

import re
import subprocess
import sys

import pytest

from a2os2a_jax import data

MADE = ("digits", "fake", "recall")  # the others need files
BUILT = ", ".join([*data.SOURCES, *(f"{scheme}:..." for scheme in data.SCHEMES)])


@pytest.mark.parametrize("name", MADE)
def test_every_source_loads_and_describes_itself(name):
    if name == "digits":
        pytest.importorskip("sklearn")
    loaded = data.load(name, validation=20)
    assert loaded.name == name and loaded.about
    assert len(loaded.class_names) == loaded.classes
    assert loaded.split("validation").size == 20


def test_arguments_reach_the_source():
    fake = data.load("fake", size=16, classes=3, timesteps=2, channels=1)
    assert (fake.shape, fake.classes) == ((2, 16, 16, 1), 3)
    assert data.load("recall", classes=4, pairs=8).shape == (9, 13)


def test_names_with_a_path():
    assert data.module_of("folder:a:b") == (data.SCHEMES["folder"], "a:b")
    assert data.module_of("tfds:eurosat/rgb")[1] == "eurosat/rgb"
    with pytest.raises(ValueError, match="found no folder .*birds"):
        data.load("folder:birds", size=8)
    for name in ("zip:birds", "folder:", "folder"):
        with pytest.raises(ValueError, match=f"'{name}' is unknown"):
            data.load(name)


def test_unknown_names_list_what_there_is():
    expected = f"data.name 'digit' is unknown, expected one of {re.escape(BUILT)}"
    with pytest.raises(ValueError, match=expected):
        data.load("digit")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("digits", {"size": 7}),
        ("digits", {"classes": 5}),
        ("digits", {"timesteps": 4}),
        ("digits", {"pairs": 4}),
        ("recall", {"size": 8}),
        ("recall", {"data_dir": "x"}),
        ("recall", {"timesteps": 2}),
        ("fake", {"data_dir": "x"}),
        ("fake", {"pairs": 8}),
        ("fake", {"seed": -1}),
    ],
)
def test_nothing_is_silently_ignored(name, options):
    (key,) = options
    with pytest.raises(ValueError, match=key):
        data.load(name, **options)


def test_what_a_source_takes_is_what_it_honours():
    assert "size" in data.takes("digits") and "pairs" not in data.takes("digits")
    assert "pairs" in data.takes("recall") and "size" not in data.takes("recall")
    assert "name" not in data.takes("cifar10") and "area" in data.takes("folder:here")
    assert data.takes("birds") == data.takes("birds:here") == ()


def test_importing_the_wing_imports_no_source_and_no_heavy_package():
    code = (
        "import sys, a2os2a_jax.data as d, a2os2a_jax.data.augment; d.load('fake');"
        "heavy = {'sklearn', 'tensorflow', 'torch', 'flax', 'optax', 'grain', 'PIL',"
        " 'a2os2a_jax.data.sources.recall'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

import pytest

from a2os2a_jax.data import layout

TRAIN, TEST, VALIDATION = layout.TRAIN, layout.TEST, layout.VALIDATION
NAMES = {
    "train": (TRAIN, ()),
    "Train-Images": (TRAIN, ()),
    "training_set_224x224": (TRAIN, ()),
    "TrainingSet": (TRAIN, ()),
    "trainval": (TRAIN, ()),
    "TESTING": (TEST, ()),
    "images.test": (TEST, ()),
    "imagesTest": (TEST, ()),
    "test (1)": (TEST, ()),
    "val2017": (VALIDATION, ()),
    "Validation": (VALIDATION, ()),
    "seg_dev": (VALIDATION, ("seg",)),
    "train_station": (TRAIN, ("station",)),  # a split only beside test_station
    "testudo": None,
    "Valencia": None,
    "strain": None,
    "test_train": None,
    "2017": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_splits(name):
    assert layout._role(name) == NAMES[name]

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from matplotlib.image import imread  # noqa: E402

from a2os2a_jax.analysis import plots  # noqa: E402

RECORDS = [
    {"step": 10, "epoch": 1.0, "split": "train", "loss": 2.0, "accuracy": 0.25},
    {"step": 30, "epoch": 3.0, "split": "train", "loss": 0.5, "accuracy": 0.75},
    {"step": 20, "epoch": 2.0, "split": "train", "loss": None, "accuracy": 0.5},
    {"step": 20, "epoch": 2.0, "split": "validation", "loss": 1.0, "accuracy": 0.4},
    {"step": 30, "epoch": 3.0, "split": "test", "loss": 0.6, "accuracy": 0.725},
    {"step": 30, "epoch": 3.0, "split": "other"},
]


def test_curves_show_the_records(tmp_path, figures):
    path = plots.training_curves(RECORDS, tmp_path / "figures" / "c.png", "digits")
    assert imread(path).shape == (630, 1500, 4)
    assert [p.name for p in path.parent.iterdir()] == ["c.png"]
    loss, accuracy = figures[0].axes
    train, validation, test = accuracy.lines
    np.testing.assert_array_equal(train.get_xdata(), [1, 2, 3])  # sorted
    np.testing.assert_array_equal(train.get_ydata(), [25, 50, 75])  # in percent
    np.testing.assert_array_equal(validation.get_xydata(), [[2, 40]])
    np.testing.assert_array_equal(test.get_xydata(), [[3, 72.5]])
    np.testing.assert_array_equal(loss.lines[0].get_ydata(), [2, np.nan, 0.5])
    assert accuracy.get_xlabel() == loss.get_xlabel() == "epoch"
    assert accuracy.get_ylabel() == "accuracy (%)"
    assert "test (last 72.5 %)" in [
        t.get_text() for t in accuracy.get_legend().get_texts()
    ]
    assert validation.get_marker() == "o"  # held-out is drawn as points


def test_curves_without_epochs_use_steps(tmp_path, figures):
    records = [{"step": s, "split": "train", "loss": 1 / s} for s in (1, 2)]
    plots.training_curves(records, tmp_path / "c.png")
    assert figures[0].axes[0].get_xlabel() == "step"
    assert not figures[0].axes[1].lines


def test_curves_without_records_say_so(tmp_path):
    with pytest.raises(ValueError, match="got 1 records, expected some with split in"):
        plots.training_curves([{"step": 1, "split": "other"}], tmp_path / "c.png")
    assert not list(tmp_path.iterdir())

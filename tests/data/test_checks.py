import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.data import checks


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, jnp.bfloat16])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_example_that_is_not_finite(monkeypatch, kind, bad):
    monkeypatch.setattr(checks, "_BLOCK", 12)  # several blocks
    images = np.ones((9, 2, 3), kind)
    checks.check_finite("a", "x", images)
    images[[5, 8], 1, 2] = bad
    with pytest.raises(ValueError, match=r"a: got NaN or infinity in x\[5\], expected"):
        checks.check_finite("a", "x", images)


def test_integers_and_nothing_are_finite():
    for images in (np.zeros((0, 2)), np.zeros((2, 0)), np.arange(3), np.ones(3, bool)):
        checks.check_finite("a", "x", images)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -2], r"a: got y\[1\] = -2, expected a class, -1 to 2\^31 - 1"),
        ([2**31, 0], r"got y\[0\] = 2147483648"),
        ([0.5], r"got y float64 \(1,\), expected integers \[N\]"),
        ([[1]], r"got y int64 \(1, 1\)"),
    ],
)
def test_labels(labels, message):
    for fine in ([], [-1, 5], [2**31 - 1]):
        checks.check_labels("a", "y", np.array(fine, int))
    checks.check_labels("a", "y", np.array([True, False]))
    with pytest.raises(ValueError, match=message):
        checks.check_labels("a", "y", np.array(labels))

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from a2os2a_jax.functional import checks


@pytest.mark.parametrize("number", [float, np.float32, np.array, jnp.bfloat16])
def test_a_comparison_fails_where_it_does_not_hold(number):
    assert checks.fails(operator.gt, number(0.5), 0.5)
    assert checks.fails(operator.gt, number(float("nan")), 0)
    assert not checks.fails(operator.ge, number(0.5), 0.5)
    assert checks.fails(operator.gt, np.array([1.0, 0.5]), number(0.5))
    assert checks.fails(operator.gt, None, number(0.5))
    assert checks.fails(operator.gt, "1", number(0.5))


def test_traced_values_pass_and_leave_nothing_behind():
    ones = jnp.ones(2)

    def f(x):
        assert not checks.fails(operator.gt, x, 1e9)
        assert checks.fails(operator.gt, ones, 1)  # has a value, also here
        assert checks.plain(x) is x
        return x

    assert not jax.make_jaxpr(f)(1.0).eqns


def test_scalars_become_pythons():
    given = (np.int8(1), np.float32(0.5), np.bool_(True), np.array(2), jnp.float32(3))
    assert list(map(type, checks.plain(given))) == [int, float, bool, int, float]
    assert checks.plain([jnp.bfloat16(0.5), "a", None]) == [0.5, "a", None]
    array = np.ones(1)
    assert checks.plain(array) is array

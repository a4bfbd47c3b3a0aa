"""The arithmetic that the interpreter is lent: exact, against fractions."""

from fractions import Fraction

import numpy as np
import pytest
from exact_fma import fma32, fma64
from hypothesis import example, given
from hypothesis import strategies as st


def nearest_float32(exact):
    """The nearest float32, ties to even: among the neighbours of a number rounded twice."""
    near = np.float32(float(exact))
    candidates = near, np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))
    return min(candidates, key=lambda c: (abs(Fraction(float(c)) - exact), int(c.view(np.int32)) & 1))


def apply(fma, dtype, *operands):
    return fma(*(np.array([operand], dtype) for operand in operands))[0]


# where nothing overflows
float32 = st.floats(width=32, min_value=-(2.0**63), max_value=2.0**63)
float64 = st.floats(min_value=-(2.0**511), max_value=2.0**511)
TIE = 1 + 2.0**-12  # its square lies halfway between two float32


@given(float32, float32, float32)
@example(TIE, TIE, 2.0**-60)
@example(TIE, TIE, -(2.0**-60))
@example(2.0**-100, 2.0**-49, 2.0**-149)  # a denormal result
def test_fma32_is_exact(x, y, z):
    assert apply(fma32, np.float32, x, y, z) == nearest_float32(Fraction(x) * Fraction(y) + Fraction(z))


@given(float64, float64, float64)
@example(1 + 2.0**-52, 1 - 2.0**-52, -1.0)
def test_fma64_is_exact(x, y, z):
    assert apply(fma64, np.float64, x, y, z) == float(Fraction(x) * Fraction(y) + Fraction(z))


@pytest.mark.parametrize(("fma", "dtype"), [(fma32, np.float32), (fma64, np.float64)])
@pytest.mark.parametrize(
    ("operands", "expected"),
    [
        ((np.inf, 2.0, 1.0), "inf"),
        ((np.inf, 1.0, -np.inf), "nan"),
        ((0.0, np.inf, 1.0), "nan"),
        ((-0.0, 1.0, -0.0), "-0.0"),
        ((1.0, -1.0, 1.0), "0.0"),
        ((1e30, 1e30, -np.inf), "-inf"),
    ],
)
def test_fma_of_special_values(fma, dtype, operands, expected):
    assert str(apply(fma, dtype, *operands)) == expected

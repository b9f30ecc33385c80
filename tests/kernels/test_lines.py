"""Copies and reductions by lines, through the caches and past them."""

import numpy as np
import pytest
from numba import njit

from sfb.kernels import _lines

TYPES = ("f4", "f8", "i4", "i8")
OPS = {_lines.SUM: np.add, _lines.PROD: np.multiply, _lines.MAX: np.maximum, _lines.MIN: np.minimum}
COUNTS = (0, 1, 7, 16, 31, 200, 1003)


# Only other kernels can call them.
@njit
def reduce(op, terms, begin, target, streamed):
    size = target.itemsize
    to, nbytes = _lines.address(target), _lines.nbytes_of(target)
    _lines.reduce(_lines.kind_of(target), op, terms, begin * size, to, nbytes, streamed)


@njit
def move(source, target, streamed):
    _lines.move(_lines.address(source), _lines.address(target), _lines.nbytes_of(target), streamed)


@pytest.fixture(params=[False, True], ids=["cached", "streamed"])
def streamed(request):
    return request.param


def _drawn(rng, dtype, count, offset):
    """Return numbers of which all sums and products are exact, at an address that is no multiple of a line."""
    return rng.integers(-3, 4, count + offset).astype(dtype)[offset:]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("terms", [1, 2, 3, 5])
def test_reduces_in_the_order_of_terms(dtype, op, terms, streamed, rng):
    for count in COUNTS:
        for offset in (0, 1, 5):
            given = [_drawn(rng, dtype, count + 3, offset + i) for i in range(terms)]
            around = np.full(count + offset + 20, 99, dtype)
            target = around[offset : offset + count]
            reduce(op, np.array([x.ctypes.data for x in given]), 3, target, streamed)
            expected = given[0][3:].copy()
            for term in given[1:]:
                expected = OPS[op](expected, term[3:])
            np.testing.assert_array_equal(target, expected)
            assert (around[:offset] == 99).all()
            assert (around[offset + count :] == 99).all()


def test_reduces_into_one_of_the_terms(streamed, rng):
    first, second = rng.standard_normal((2, 1003))
    expected = first + second
    reduce(_lines.SUM, np.array([first.ctypes.data, second.ctypes.data]), 0, second, streamed)
    np.testing.assert_array_equal(second, expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_copies_no_more_than_the_target_holds(dtype, streamed, rng):
    for count in COUNTS:
        source = _drawn(rng, dtype, count + 9, 1)
        around = np.full(count + 12, 99, dtype)
        move(source, around[3 : 3 + count], streamed)
        np.testing.assert_array_equal(around[3 : 3 + count], source[:count])
        assert (around[:3] == 99).all()
        assert (around[3 + count :] == 99).all()

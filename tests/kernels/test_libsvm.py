"""The parser of LIBSVM's format against Python's ``float``."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfb.kernels.stages import compiled


@pytest.fixture(scope="module")
def kernel():
    return compiled("libsvm")


def parse(kernel, text, base=1, odd=64):
    """Return the status, labels, starts, columns, values, odd rows, largest column and queries."""
    rows, count = text.count(b"\n") + 1, text.count(b":")
    labels, starts = np.zeros(rows), np.zeros(rows + 1, np.int32)
    columns, values = np.zeros(count, np.int32), np.zeros(count, np.float32)
    left = np.zeros((odd, 3), np.int64)
    status, rows, count, odds, largest, queries = kernel.parse(
        np.frombuffer(text, np.uint8), base, labels, starts, columns, values, left
    )
    return status, labels[:rows], starts[: rows + 1], columns[:count], values[:count], left[:odds], largest, queries


def test_samples(kernel):
    text = b"+1 1:.5 3:2. # a 9:9\n\n \t# none\n-1\t2:-1e3\r\n7 qid:3 1:1 2:2 30:3E-2"
    status, labels, starts, columns, values, odd, largest, queries = parse(kernel, text)
    assert status == kernel.PARSED
    assert labels.tolist() == [1, -1, 7]
    assert starts.tolist() == [0, 2, 3, 6]
    assert columns.tolist() == [0, 2, 1, 0, 1, 29]
    np.testing.assert_array_equal(values, np.float32([0.5, 2, -1000, 1, 2, 0.03]))
    assert not odd.size
    assert (largest, queries) == (29, 1)
    assert parse(kernel, b"", 1)[0] == kernel.PARSED
    assert parse(kernel, b"1 0:1 1:2", 0)[3].tolist() == [0, 1]


@pytest.mark.parametrize(
    "line",
    [
        b"1 0:1",
        b"1 x:1",
        b"1 1",
        b"1 1:",
        b"1 :1",
        b"1 2:1 2:1",
        b"1 2:1 1:1",
        b"1 -1:1",
        b"1 2147483648:1",
        b"1 1: 2:1",
        b"1 99999999999999999999999:1",
        b"1 qid",
        b"1 1:#2",
    ],
)
def test_faults(kernel, line):
    for text in (line, b"1 1:1\n" + line + b"\n1 1:1\n"):
        assert parse(kernel, text)[0] == kernel.FAULT


def test_the_largest_index(kernel):
    assert parse(kernel, b"1 2147483647:1")[3].tolist() == [2**31 - 2]


DIGITS = st.text("0123456789", max_size=25)
NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr),
    st.builds(lambda x, digits: f"{x:.{digits}e}", st.floats(-1e6, 1e6), st.integers(0, 30)),
    st.builds(lambda x, digits: f"{x:.{digits}f}", st.floats(-1e6, 1e6), st.integers(0, 30)),
    st.builds(
        lambda sign, whole, part, power: f"{sign}{whole or '0'}.{part}{power}",
        st.sampled_from(["", "+", "-"]),
        DIGITS,
        DIGITS,
        st.one_of(
            st.just(""), st.integers(-400, 400).map(lambda n: f"e{n}"), st.integers(0, 40).map(lambda n: f"E+{n}")
        ),
    ),
)


@given(numbers=st.lists(NUMBERS, min_size=1, max_size=30))
def test_numbers_are_those_of_float(kernel, numbers):
    text = "\n".join(f"{number} 1:{number}" for number in numbers).encode()
    status, labels, _, _, values, odd, *_ = parse(kernel, text)
    assert status == kernel.PARSED
    rest = {at: (begin, end) for at, begin, end in odd.tolist()}
    for i, number in enumerate(numbers):
        for at in (i, -1 - i):
            if at in rest:
                begin, end = rest[at]
                assert text[begin:end].decode() == number
        with np.errstate(over="ignore"):
            expected = np.float32(float(number))
        if i not in rest:
            assert values[i].tobytes() == expected.tobytes(), number
        if -1 - i not in rest:
            assert labels[i] == float(number)


@given(bits=st.integers(0x00800000, 0x7F000000))
def test_halfway_between_two_float32(kernel, bits):
    """The decimal expansions of midpoints, exact and a little off, are left to Python or right."""
    low, high = np.array([bits, bits + 1], np.uint32).view(np.float32).astype(np.float64)
    middle = (low + high) / 2
    for number in (
        f"{middle:.17e}",
        f"{middle:.60e}",
        f"{np.nextafter(middle, 0):.17e}",
        f"{np.nextafter(middle, np.inf):.17e}",
    ):
        _, _, _, _, values, odd, *_ = parse(kernel, f"1 1:{number}".encode())
        assert odd.size or values[0] == np.float32(float(number))


def test_few_numbers_are_left_to_python(kernel):
    rng = np.random.default_rng(0)
    text = "\n".join(f"1 1:{value!r} 2:{value:.6g}" for value in rng.standard_normal(5000).tolist()).encode()
    status, *_, odd, _, _ = parse(kernel, text)
    assert status == kernel.PARSED
    assert not odd.size


def test_what_python_parses(kernel):
    *_, odd, _, _ = parse(kernel, b"nan 1:inf 2:1x 3:1e\n1 1:1e-400")
    assert [at for at, _, _ in odd.tolist()] == [-1, 0, 1, 2, 3]
    assert parse(kernel, b"1 1:nan 2:nan", odd=1)[0] == kernel.FULL
    assert parse(kernel, b"1 1:nan\nnan 2:1", odd=1)[0] == kernel.FULL

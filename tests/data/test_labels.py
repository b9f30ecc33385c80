"""One rule for labels: the classes are the distinct labels in ascending order."""

import numpy as np
import pytest

from sfb.data import DataError, encode


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.arange(1, 11), [*range(1, 11)]),
        (np.arange(0, 100, 10), [*range(0, 100, 10)]),
        (np.array([42, 3, 17, 3]), [3, 17, 42]),
        (np.array([1, -1, -1], np.int8), [-1, 1]),
        (np.array([2.0, -7.0]), [-7, 2]),
        (np.array([False, True]), [False, True]),
        (np.array(["pear", "apple", "äpfel"]), ["apple", "pear", "äpfel"]),
        (np.array([b"b", b"a"]), [b"a", b"b"]),
        (np.array([2**64 - 1, 2**63], np.uint64), [2**63, 2**64 - 1]),
        (np.array([-(2**63), 2**63 - 1]), [-(2**63), 2**63 - 1]),
    ],
    ids=str,
)
def test_classes_are_the_distinct_labels(labels, classes):
    found, indices = encode(labels)
    assert found.tolist() == classes
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(found[indices], labels)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([24.0, 21.6, 34.7]), r"sample 1 \(from 0\) has the label 21.6: labels must name classes.*regression"),
        (np.array([0, np.nan]), r"sample 1 \(from 0\) has the label nan"),
        (np.array([np.inf, 0]), r"sample 0 \(from 0\) has the label inf"),
        (np.array([1e300, 0]), "save them as integers"),
        (np.array([1j, 0]), "integers or strings, got complex128"),
        (np.array(["2020-01-01", "2021-01-01"], "M8[D]"), "integers or strings"),
        (np.ones(3), "all samples have the same label, 1"),
        (np.array(["x" * 1000] * 2), "same label, x{60}…"),
    ],
    ids=str,
)
def test_refuses(labels, message):
    with pytest.raises(DataError, match=message):
        encode(labels)

"""Bags of words in the format of UCI."""

import bz2
import gzip

import numpy as np
import pytest

from sfb.data import DataError, read_bag_of_words, read_vocabulary

LINES = b"4\n3\n4\n1 2 5\n1 3 1\n3 1 2\n4 3 7\n"
COUNTS = [[0, 5, 1], [0, 0, 0], [2, 0, 0], [0, 0, 7]]


@pytest.fixture
def write(tmp_path):
    def write(content, name="docword.txt"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize(("pack", "suffix"), [(bytes, ""), (gzip.compress, ".gz"), (bz2.compress, ".bz2")])
def test_counts(write, pack, suffix):
    found = read_bag_of_words(write(pack(LINES), f"docword.txt{suffix}"))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found.toarray(), COUNTS)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_parts_are_the_whole(write, size):
    path = write(LINES)
    parts = [read_bag_of_words(path, rank=rank, size=size).toarray() for rank in range(size)]
    np.testing.assert_array_equal(np.vstack(parts), COUNTS)


def test_no_entries(write):
    assert read_bag_of_words(write(b"2\n3\n0\n")).shape == (2, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "three lines"),
        (b"4\n3\nx\n", "whole numbers"),
        (b"4\n3\n2\n1 2 5\n", r"expected 2 lines DOCUMENT WORD COUNT, got an array of shape \(1, 3\)"),
        (b"4\n3\n1\n1 2\n", r"shape \(1, 2\)"),
        (b"4\n3\n1\n1 2 0.5\n", "whole numbers"),
        (
            b"4\n3\n2\n1 1 1\n1 4 1\n",
            "line 5: expected a document from 1 to 4, .* and a count, got 1 4 1",
        ),
        (b"4\n3\n1\n0 1 1\n", "line 4"),
        (b"4\n3\n1\n1 1 -1\n", "line 4"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_a_malformed_file(write, content, message):
    with pytest.raises(DataError, match=message):
        read_bag_of_words(write(content))


def test_no_file_and_no_part(tmp_path, write):
    with pytest.raises(DataError, match="no such file"):
        read_bag_of_words(tmp_path / "nothing")
    with pytest.raises(ValueError, match="rank < size"):
        read_bag_of_words(write(LINES), rank=2, size=2)


def test_vocabulary(write, tmp_path):
    assert read_vocabulary(write("één\ntwo\n".encode(), "vocab.txt")) == ["één", "two"]
    with pytest.raises(DataError, match=r"vocab\.none"):
        read_vocabulary(tmp_path / "vocab.none")

"""Files of every format, told by their content, and what is wrong with them."""

import bz2
import gzip
import lzma

import numpy as np
import pytest

from sfb.data import DataError, read

LINES = b"+1 1:0.5 3:2 # a comment\n\n-1 2:-1e3\r\n7 qid:3 1:1 2:2 3:3\n"
X, LABELS = [[0.5, 0, 2], [0, -1000, 0], [1, 2, 3]], [1, -1, 7]


@pytest.fixture
def write(tmp_path):
    pytest.importorskip("sklearn")

    def write(content, name="data"):
        path = tmp_path / name
        path.write_bytes(content)
        return str(path)

    return write


@pytest.mark.parametrize("name", ["data", "data.svm", "data.t", "data.npz"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "byte-order mark"])
def test_libsvm(write, name, pack, mark):
    x, labels = read(write(pack(mark + LINES), name))
    np.testing.assert_array_equal(x.toarray(), X)
    np.testing.assert_array_equal(labels, LABELS)


def test_indices_count_from_1_or_as_the_caller_says(write):
    path = write(b"1 1:1\n2 2:2\n")
    np.testing.assert_array_equal(read(path)[0].toarray(), [[1, 0], [0, 2]])
    np.testing.assert_array_equal(read(path, zero_based=True)[0].toarray(), [[0, 1, 0], [0, 0, 2]])
    path = write(b"1 1:1\n2 0:2\n")
    np.testing.assert_array_equal(read(path, zero_based=True)[0].toarray(), [[0, 1], [2, 0]])
    with pytest.raises(DataError, match=r"line 2: indices of LIBSVM count from 1, got 0; .* zero_based=True"):
        read(path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1 not:a:number", "line 4: expected INDEX:VALUE, got not:a:number"),
        (b"1 3", "line 4: expected INDEX:VALUE, got 3"),
        (b"1 1:", "line 4: expected INDEX:VALUE, got 1:"),
        (b"1,2,3", "line 4: expected LABEL INDEX:VALUE INDEX:VALUE …, got the label 1,2,3"),
        (b"1 3:1 2:1", "line 4: indices must ascend, got 2 after 3"),
        (b"1 -3:1", "line 4: indices of LIBSVM count from 1, got -3"),
        (b"1 1:" + 100_000 * b"x", "line 4: expected INDEX:VALUE, got 1:x{58}…$"),
        (b"1 1:\xff\x80", r"line 4: expected INDEX:VALUE, got 1:\\xff\\x80"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else "",
)
def test_a_malformed_line_is_named_and_cut_short(write, line, message, pack):
    with pytest.raises(DataError, match=message) as caught:
        read(write(pack(b"# a comment\n1 1:1\n2 1:1\n" + line + b"\n")))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "2 samples"),
        (b"1 1:1\n2 1:1\n".decode().encode("utf-16"), "UTF-16"),
        (b"\x89HDF\0\0\0", "is binary"),
        (b"\x93NUMPY\1\0", "name the .npy file of the labels"),
        (b"PK\x03\x04 no archive", "damaged .npz"),
        (b"1 1:1e39\n2 3:1\n", r"line 1, feature 1: 1e\+39 is beyond float32"),
        (b"1 1:1\n2 2:1 3:nan\n", r"line 2, feature 3: nan is not a finite number"),
        (b"1\n2\n", "a feature each"),
    ],
)
def test_refuses(write, content, message):
    with pytest.raises(DataError, match=message):
        read(write(content))


def test_refuses_python_objects(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.ones((2, 2)), y=np.array(["a", None]))
    with pytest.raises(DataError, match="save numbers or strings"):
        read(str(tmp_path / "data.npz"))


def test_a_file_cut_off_within_its_compression(write):
    with pytest.raises((DataError, EOFError), match="end"):
        read(write(gzip.compress(1000 * LINES)[:-9]))

"""Ratings from files of every format."""

import numpy as np
import pytest
from scipy import sparse

from sfb.data import DataError, read_ratings

USERS, ITEMS, VALUES = [10, 10, 7, 12], [3, 900, 3, 5], [5.0, 3.5, 1.0, 4.0]
DENSE = [[1, 0, 0], [5, 0, 3.5], [0, 4, 0]]
LINES = [f"{u} {i} {v}" for u, i, v in zip(USERS, ITEMS, VALUES, strict=True)]


def check(table):
    assert table.user_names.tolist() == [7, 10, 12]
    assert table.item_names.tolist() == [3, 5, 900]
    np.testing.assert_array_equal(table.shard(0, 1).toarray(), DENSE)


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(LINES),
        "\n\n".join(line + " 881250949" for line in LINES) + "\n",
        "\n".join(line.replace(" ", "\t") for line in LINES),
        "\n".join(line.replace(" ", "::") + "::978300760" for line in LINES),
        "userId,movieId,rating,timestamp\n" + "\n".join(line.replace(" ", ",") + ",1" for line in LINES),
        "\ufeffrating;user;item\n" + "\n".join(";".join([line.split()[2], *line.split()[:2]]) for line in LINES),
        "a b c\n" + "\n".join(LINES),
    ],
    ids=["spaces", "u.data", "tabs", "ratings.dat", "ratings.csv", "other order", "other names"],
)
def test_text(tmp_path, text):
    path = tmp_path / "ratings"
    path.write_text(text, encoding="utf-8")
    check(read_ratings(path))


def test_names(tmp_path):
    path = tmp_path / "ratings"
    path.write_text("bob,x y,2\nann,z,3\n", encoding="utf-8")
    table = read_ratings(path)
    assert table.user_names.tolist() == ["ann", "bob"]
    assert table.item_names.tolist() == ["x y", "z"]
    np.testing.assert_array_equal(table.shard(0, 1).toarray(), [[0, 3], [2, 0]])


def test_npz(tmp_path):
    np.savez(tmp_path / "triples", users=USERS, items=ITEMS, ratings=VALUES)
    check(read_ratings(tmp_path / "triples.npz"))
    sparse.save_npz(tmp_path / "matrix", sparse.coo_array((VALUES, (USERS, ITEMS))))
    check(read_ratings(tmp_path / "matrix.npz"))


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "ratings.parquet"
    parquet.write_table(pa.table({"rating": VALUES, "userId": USERS, "extra": list("abcd"), "movieId": ITEMS}), path)
    check(read_ratings(path))
    parquet.write_table(pa.table({"rating": VALUES, "who": USERS}), path)
    with pytest.raises(DataError, match="expected columns user, item and rating, found rating, who"):
        read_ratings(path)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shards_are_the_whole(tmp_path, size):
    path = tmp_path / "ratings"
    path.write_text("\n".join(LINES), encoding="utf-8")
    table = read_ratings(path)
    found = np.zeros((3, 3))
    for rank in range(size):
        found[rank::size] = table.shard(rank, size).toarray()
    np.testing.assert_array_equal(found, DENSE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"1 2\n", "line 1"),
        (b"1 2 3\n4 5\n", "line 2: expected USER ITEM RATING, got 4 5"),
        (b"1 2 3\n4 5 six\n", "line 2: expected USER ITEM RATING, got 4 5 six"),
        (b"1 2 3\n4 5 nan\n", r"rating 1 \(from 0\) is not a finite number"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"PK\x03\x04 no archive", "damaged .npz"),
    ],
)
def test_a_malformed_file(tmp_path, content, message):
    path = tmp_path / "ratings"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_ratings(path)


def test_other_arrays(tmp_path):
    np.savez(tmp_path / "other", x=USERS)
    with pytest.raises(DataError, match="found x"):
        read_ratings(tmp_path / "other.npz")

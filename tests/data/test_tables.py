"""Columns of CSV and Parquet files: which are features, which are labels, and what is wrong with them."""

import sys

import numpy as np
import pytest

from sfb.data import DataError, describe, read, read_part, unite

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def csv(tmp_path):
    def write(text):
        (tmp_path / "data.csv").write_text(text, newline="")
        return str(tmp_path / "data.csv")

    return write


@pytest.fixture(params=["csv", "parquet"])
def table(request, tmp_path, csv):
    """Write columns in either format."""

    def write(**columns):
        made = pyarrow.table(columns)
        if request.param == "parquet":
            parquet.write_table(made, tmp_path / "data.parquet", row_group_size=2)
            return str(tmp_path / "data.parquet")
        rows = [columns, *zip(*columns.values(), strict=True)]
        return csv("".join(",".join("" if value is None else str(value) for value in row) + "\n" for row in rows))

    return write


def test_columns(table, caplog):
    path = table(name=["p", "q", "r"], a=[1, 2, 3], y=[1, 2, 1], b=[0.5, -1.5, 2.5], c=[True, False, True])
    x, y = read(path)
    np.testing.assert_array_equal(x, np.float32([[1, 0.5, 1], [2, -1.5, 0], [3, 2.5, 1]]))
    assert y.tolist() == [1, 2, 1]
    assert y.dtype.kind == "i"
    assert "not used as features (no numbers, or row numbers): name" in caplog.text
    assert describe(path).names == ("a", "b", "c")
    x, y = read(path, features=("b", "y"), labels="name")
    np.testing.assert_array_equal(x, [[0.5, 1], [-1.5, 2], [2.5, 1]])
    assert y.tolist() == ["p", "q", "r"]
    assert read(path, features="a")[0].shape == (3, 1)
    assert read(path, labelled=False)[0].shape == (3, 3)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": [1, 2], "b": [1, 2]}, {}, "name the column of the labels by labels=NAME .* one of a, b"),
        ({"a": [1, 2], "y": [1, 2], "label": [1, 2]}, {}, "one of a, y, label"),
        ({"a": [1, 2], "y": [1, 2]}, {"labels": "z"}, "has no column 'z'; it has a, y"),
        ({"a": [1, 2], "y": [1, 2]}, {"features": ("a", "z")}, "has no column 'z'"),
        ({"a": ["p", "q"], "y": [1, 2]}, {"features": "a"}, "the column 'a' holds no numbers"),
        ({"a": ["p", "q"], "y": [1, 2]}, {}, "has no column of numbers beside the labels"),
        ({"a": [1, 2], "y": [1, 2]}, {"features": ("a", "y")}, "'y' cannot be both"),
        ({"a": [1.0, None, 2.0], "y": [1, 2, 1]}, {}, r"(line 3|sample 1 \(from 0\)), column a: nan is not a finite"),
        ({"a": [1, 2, 3], "y": ["p", "q", None]}, {}, r"(line 4|sample 2 \(from 0\)) has no label"),
        ({"a": [1, 2, 3], "y": ["p", "", "q"]}, {}, r"(line 3|sample 1 \(from 0\)) has no label"),
        (
            {"a": [1, 2, 1e300], "y": [1, 2, 1]},
            {},
            r"(line 4|sample 2 \(from 0\)), column a: 1e\+300 is beyond float32",
        ),
    ],
)
def test_refuses(table, columns, options, message):
    with pytest.raises(DataError, match=message):
        read(table(**columns), **options)


def test_many_columns_are_not_all_listed(table):
    with pytest.raises(DataError, match=r"one of c0, .*, c9, …$"):
        read(table(**{f"c{i}": [1, 2] for i in range(500)}))


@pytest.mark.parametrize(
    ("column", "classes"),
    [
        (["10", "9", "-1"], [-1, 9, 10]),
        (["1.0", "2.0", "1"], [1, 2]),
        (["01", "1", "2"], [1, 2]),
        (["a", "10", "9"], ["10", "9", "a"]),
        (["yes", "no", "yes"], ["no", "yes"]),
        (['"a,b"', "c", "c"], ["a,b", "c"]),
        (["9223372036854775807", "-9223372036854775808", "0"], [-(2**63), 0, 2**63 - 1]),
    ],
)
def test_labels_in_text_are_numbers_if_all_of_them_can_be(csv, column, classes):
    path = csv("label,a\n" + "".join(f"{label},{i}\n" for i, label in enumerate(column)))
    source = describe(path)
    parts = [read_part(source, part, 3) for part in range(3)]
    found, tables = unite([part.distinct for part in parts], untyped=source.untyped)
    assert found.tolist() == classes
    expected = read(path)[1].tolist()
    assert [found[table[i]] for table, part in zip(tables, parts, strict=True) for i in part.labels] == expected


def test_fractions_are_no_classes(csv):
    with pytest.raises(DataError, match=r"a sample has the label 0\.5: labels must name classes"):
        read(csv("y,a\n0.5,1\n1.5,2\n"))
    assert read(csv("y,a\n0.5,1\n1.5,2\n"), targets="numbers")[1].tolist() == [0.5, 1.5]


@pytest.mark.parametrize(
    "text",
    [
        "a,b,y\n1,2,p\n3,4,q\n",
        "a;b;y\r\n1;2;p\r\n3;4;q",
        "a\tb\ty\n1\t2\tp\n3\t4\tq\n",
        "\n\na,b,y\n\n1,2,p\n\n3,4,q\n\n",
        '"a","b","y"\n1,2,"p"\n"3",4,"q"\n',
        "\ufeffa,b,y\n1,2,p\n3,4,q\n",
        " a , b , y \n1,2,p\n3,4,q\n",
        "# a,b,y\n1,2,p\n3,4,q\n",
    ],
)
def test_dialects(csv, text):
    path = csv(text)
    assert describe(path).names == ("a", "b")
    x, y = read(path)
    np.testing.assert_array_equal(x, [[1, 2], [3, 4]])
    assert y.tolist() == ["p", "q"]


def test_without_header(csv):
    path = csv("5.1,3.5,7\n4.9,3.0,8\n")
    for labels in ("2", "-1"):
        x, y = read(path, labels=labels)
        np.testing.assert_array_equal(x, np.float32([[5.1, 3.5], [4.9, 3.0]]))
        assert y.tolist() == [7, 8]
    assert read(path, labels="2", features=("1",))[0].shape == (2, 1)
    with pytest.raises(DataError, match="one of 0, 1, 2"):
        read(path)


def test_a_header_that_begins_like_an_archive(csv):
    assert describe(csv("PK,y\n1,2\n2,3\n")).names == ("PK",)


def test_row_numbers_of_pandas_are_no_features(csv, caplog):
    assert read(csv(",a,y\n0,1,p\n1,2,q\n"))[0].tolist() == [[1], [2]]
    assert "row numbers): the unnamed one" in caplog.text


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5,6", "line 6: expected 3 fields, got 2"),
        ("5,6,p,7", "line 6: expected 3 fields, got 4"),
        ("5,x,p", "line 6: expected a number in the column b, got x"),
        ("5,,p", "line 6, column b: nan"),
        ("5,6,", "line 6 has no label"),
    ],
)
def test_an_error_names_the_line_of_the_whole_file(csv, monkeypatch, line, message, parts):
    monkeypatch.setattr("sfb.data.tables._PROBE", 8)
    monkeypatch.setattr("sfb.data.text.Text.chunks.__defaults__", (0, 1, 8))
    path = csv(f"a,b,y\n\n1,2,p\n\n3,4,q\n{line}\n" + "7,8,p\n" * 3)
    source = describe(path)
    with pytest.raises(DataError, match=message):
        [read_part(source, part, parts) for part in range(parts)]


def test_a_header_alone_and_columns_of_one_name(csv):
    with pytest.raises(DataError, match="at least 2 samples"):
        read(csv("a,b,y\n"))
    with pytest.raises(DataError, match="several columns 'a'"):
        read(csv("a,a,y\n1,2,3\n"))


def test_categories_and_a_damaged_file(tmp_path):
    path = tmp_path / "data.parquet"
    labels = pyarrow.array(["p", "q", "p"]).dictionary_encode()
    parquet.write_table(pyarrow.table({"a": [1, 2, 3], "label": labels}), path)
    assert read(str(path))[1].tolist() == ["p", "q", "p"]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match="damaged Parquet"):
        read(str(path))


def test_columns_of_data_to_test_on_go_by_name(csv, tmp_path):
    learn = describe(csv("a,b,kind\n1,2,p\n3,4,q\n"), labels="kind")
    path = tmp_path / "test.csv"
    path.write_text("kind,extra,b,a\nq,0,4,3\n")
    part = read_part(describe(str(path), like=learn))
    assert part.x().tolist() == [[3, 4]]
    path.write_text("kind,b\nq,4\n")
    with pytest.raises(DataError, match="has no column 'a'; it has kind, b"):
        describe(str(path), like=learn)


def test_a_missing_package_names_the_extra(csv, monkeypatch):
    path = csv("a,y\n1,2\n2,3\n")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs the package pyarrow: pip install 'sfb-mpi\[data\]'"):
        read(path)

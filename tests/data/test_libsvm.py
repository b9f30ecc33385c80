"""Text in LIBSVM's format, in blocks and parts of any size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfb.data import DataError, describe, read, read_part

NUMBERS = st.one_of(
    st.integers(-9, 9).map(str),
    st.floats(-(2.0**90), 2.0**90, width=32).map(repr),
    st.sampled_from(["+.5", "1e-3", "3.", "1e-300"]),
)
SAMPLES = st.builds(
    lambda label, indices, numbers: (label, dict(zip(sorted(indices), numbers, strict=False))),
    st.integers(-3, 3),
    st.sets(st.integers(1, 40), max_size=6),
    st.lists(NUMBERS, min_size=6, max_size=6),
)
BETWEEN = st.sampled_from([" ", "  ", "\t", " qid:7 "])
ENDS = st.sampled_from(["\n", "\r\n", " \n", " # 3:4\n", "#\n", "\n\n", "\n# a comment\n", "\n   \n"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("libsvm")


@given(
    lines=st.lists(st.tuples(SAMPLES, BETWEEN, ENDS), min_size=1, max_size=20),
    parts=st.integers(1, 7),
    last=st.booleans(),
    odd=st.sampled_from([0, 3, 1 << 16]),
)
def test_parts_are_what_was_written(folder, lines, parts, last, odd):
    text = "".join(
        between.join([f"{label}", *(f"{j}:{value}" for j, value in row.items())]) + end
        for (label, row), between, end in lines
    )
    path = folder / "data"
    path.write_text(text if last else text.rstrip("\n"), newline="")
    expected = np.zeros((len(lines), 41))
    for i, ((_, row), _, _) in enumerate(lines):
        for j, value in row.items():
            expected[i, j - 1] = float(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sfb.data.libsvm._ODD", odd)
        source = describe(str(path))
        found = [read_part(source, part, parts) for part in range(parts)]
    assert max(part.width for part in found) == max((j for (_, row), _, _ in lines for j in row), default=0)
    x = np.concatenate([part.x(41).toarray() for part in found])
    np.testing.assert_array_equal(x, expected.astype(np.float32))
    labels = [label for part in found for label in part.distinct[part.labels].tolist()]
    assert labels == [label for (label, _), _, _ in lines]
    noted = any("qid" in note for part in found for note in part.notes)
    assert noted == any("qid" in between and row for (_, row), between, _ in lines)


@pytest.mark.parametrize("odd", [0, 1 << 16])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 3:1 x", "line 5: expected INDEX:VALUE, got x"),
        ("1 3:1 4:1__0", "line 5: expected INDEX:VALUE, got 4:1__0"),
        ("1 3:1 4:1_0", "line 5: expected INDEX:VALUE, got 4:1_0"),
        ("a 3:1", "line 5: expected LABEL .* got the label a"),
        ("1 0:1", "line 5: indices of LIBSVM count from 1, got 0; .*--zero-based"),
        ("1 2147483648:1", "line 5: there may be 2³¹ - 1 features, got the index 2147483648"),
        ("1 12345678901234567890123:1", "line 5: there may be 2³¹ - 1 features"),
        ("1 1:1 3:1e39", r"line 5, feature 3: 1e\+39 is beyond float32"),
        ("1 1:1 3:1e999", "line 5, feature 3: inf is not a finite number"),
        ("1 qid:3 1:1 3:NaN 4:1", "line 5, feature 3: nan is not a finite number"),
        ("0.5 1:1", r"line 5 has the label 0\.5: labels must name classes"),
        ("nan 1:1", "line 5 has the label nan"),
    ],
)
@pytest.mark.parametrize("parts", [1, 3])
def test_an_error_names_the_line_of_the_whole_file(tmp_path, monkeypatch, line, message, parts, odd):
    monkeypatch.setattr("sfb.data.libsvm._ODD", odd)
    monkeypatch.setattr("sfb.data.text.Text.chunks.__defaults__", (0, 1, 16))
    path = tmp_path / "data"
    path.write_text(f"1 1:1\n# a comment\n\n2 2:2\n{line}\n" + "3 3:3\n" * 3)
    source = describe(str(path))
    with pytest.raises(DataError, match=message):
        [read_part(source, part, parts) for part in range(parts)]


def test_the_number_of_features(tmp_path):
    path = tmp_path / "data"
    path.write_text("1 1:1\n2 2:2\n")
    assert read(str(path))[0].shape == (2, 2)
    assert read(str(path), features="5")[0].shape == (2, 5)
    with pytest.raises(DataError, match="line 2: expected 1 features, as given, got the index 2"):
        read(str(path), features="1")
    for wrong in ("a", "0", ("1", "2")):
        with pytest.raises(DataError, match="features have no names; expected their number, got"):
            read(str(path), features=wrong)


def test_without_scikit_learn(tmp_path, monkeypatch):
    import builtins

    real = builtins.__import__

    def fail(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    (tmp_path / "data").write_text("1 1:1\n2 2:2\n")
    assert read(str(tmp_path / "data"))[0].nnz == 2

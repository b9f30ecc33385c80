"""Parts of text consist of whole lines, and together are the whole."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfb.data import DataError
from sfb.data.text import Text

LINES = st.lists(st.binary(max_size=9).map(lambda line: line.replace(b"\n", b"").replace(b"\0", b"")), max_size=30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("text")


@given(
    lines=LINES,
    parts=st.integers(1, 7),
    block=st.integers(1, 40),
    last=st.sampled_from([b"", b"\n"]),
    packed=st.booleans(),
)
def test_parts_are_the_whole(folder, lines, parts, block, last, packed):
    content = b"\n".join([b"first", *lines]) + last  # which begins like no compressed file
    path = folder / "lines"
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    text = Text.of(path)
    assert text.size == len(content)
    found = b""
    for part in range(parts):
        for position, chunk in text.chunks(part, parts, block):
            assert position == len(found)
            assert chunk
            assert text.line_number(position) == found.count(b"\n") + 1
            found += chunk
            assert chunk.endswith(b"\n") or found == content
    assert found == content


def test_a_line_belongs_to_the_part_in_which_it_begins(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"aaa\nbbb\nccc\nddd\n")
    text = Text.of(path)
    assert [[chunk for _, chunk in text.chunks(part, 2)] for part in range(2)] == [[b"aaa\nbbb\n"], [b"ccc\nddd\n"]]
    assert [b"".join(chunk for _, chunk in text.chunks(part, 16)) for part in (0, 1, 4)] == [b"aaa\n", b"", b"bbb\n"]


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"\xef\xbb\xbfa\nb\n")
    assert list(Text.of(path).chunks()) == [(3, b"a\nb\n")]


@pytest.mark.parametrize(
    ("content", "message"),
    [("a\n".encode("utf-16"), "UTF-16"), (b"a\0b", "binary"), (gzip.compress(b"a\n" * 999, mtime=0)[:-9], "cut off")],
)
def test_refuses(tmp_path, content, message):
    path = tmp_path / "lines"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        Text.of(path)

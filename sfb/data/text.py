"""Text files, plain or compressed, in parts that consist of whole lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sfb.data.errors import DataError

__all__ = ["BLOCK", "Text", "open_text"]

BLOCK = 1 << 24  # bytes of text that are read at a time

_UTF8 = b"\xef\xbb\xbf"  # the byte-order marks
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_PIECE = 1 << 20  # bytes that are decompressed at a time to be passed over


@dataclass(frozen=True)
class Text:
    """The lines of a file.

    A part is a range of bytes, of the decompressed text, and holds the lines that begin there. A part of a plain file
    is read from where it begins; a part of a compressed file decompresses all that comes before it.

    Attributes:
        path: The file.
        start: Where the first line begins, after a byte-order mark.
        size: Bytes of the text, decompressed.
        compressed: Whether the file is compressed.
    """

    path: str
    start: int
    size: int
    compressed: bool

    def chunks(self, part: int = 0, parts: int = 1, block: int = BLOCK) -> Iterator[tuple[int, bytes]]:
        """Yield the lines of a part, some whole lines at a time, each time with the position of the first.

        Args:
            part: The part, from 0.
            parts: The number of parts.
            block: Bytes to read at a time.
        """
        low, high = (self.start + (self.size - self.start) * i // parts for i in (part, part + 1))
        if low == high:
            return
        with open_text(self.path) as file:
            at, rest = self._first_line(file, low, block)
            more = True
            while more and at < high:
                piece = file.read(block)
                more = bool(piece)
                text = rest + piece
                # The part ends with the line of the last byte below ``high``.
                end = text.find(b"\n", max(0, high - 1 - at)) + 1
                if end:
                    more = False
                else:
                    end = text.rfind(b"\n") + 1 if more else len(text)
                if end:
                    yield at, text[:end]
                rest = text[end:]
                at += end

    def _first_line(self, file: IO[bytes], low: int, block: int) -> tuple[int, bytes]:
        """Move to the first line that begins at ``low`` or after it; return its position, and what is read of it."""
        if low == self.start:
            _move(file, low, self.compressed)
            return low, b""
        at = low - 1
        _move(file, at, self.compressed)
        while piece := file.read(min(block, 1 << 16)):
            end = piece.find(b"\n") + 1
            if end:
                return at + end, piece[end:]
            at += len(piece)
        return self.size, b""

    def line_number(self, position: int) -> int:
        """Return the number, from 1, of the line that begins at a position."""
        number, at = 1, 0
        with open_text(self.path) as file:
            while at < position and (piece := file.read(min(BLOCK, position - at))):
                number += piece.count(b"\n")
                at += len(piece)
        return number

    @classmethod
    def of(cls, path: Path) -> Text:
        """Return the text of a file; a compressed one is decompressed once, to know its size.

        Raises:
            DataError: The file is no text of bytes.
        """
        opener = _opener(path)
        with open_text(path) as file:
            head = file.read(1 << 12)
            if head.startswith(_UTF16):
                raise DataError("is text in UTF-16; save it as UTF-8 or ASCII")
            if b"\0" in head:
                raise DataError("is binary, of no format that sfb reads")
            start = len(_UTF8) if head.startswith(_UTF8) else 0
            if opener is None:
                return cls(str(path), start, path.stat().st_size, False)
            size = len(head)
            while piece := file.read(_PIECE):
                size += len(piece)
        return cls(str(path), start, size, True)


@contextmanager
def open_text(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file to read its bytes, decompressed.

    Raises:
        DataError: The compressed file is damaged or cut off.
    """
    opener = _opener(Path(path))
    if opener is None:
        with Path(path).open("rb") as file:
            yield file
        return
    import lzma
    import zlib

    try:
        with opener(path, "rb") as file:
            yield file
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if getattr(error, "errno", None) is not None:  # an error of the system, not of the content
            raise
        raise DataError(f"is damaged, or cut off before its end: {error}") from error


def _opener(path: Path) -> Callable[..., Any] | None:
    """Return the function that opens a compressed file, None if the file is not compressed."""
    with path.open("rb") as file:
        head = file.read(6)
    return next((opener for magic, opener in _COMPRESSED.items() if head.startswith(magic)), None)


def _move(file: IO[bytes], position: int, compressed: bool) -> None:
    """Move from the beginning of a file to a position."""
    if not compressed:
        file.seek(position)
        return
    while position > 0 and (piece := file.read(min(_PIECE, position))):
        position -= len(piece)


def _gzip(path: Any, mode: str) -> Any:
    import gzip

    return gzip.open(path, mode)


def _bzip2(path: Any, mode: str) -> Any:
    import bz2

    return bz2.open(path, mode)


def _xz(path: Any, mode: str) -> Any:
    import lzma

    return lzma.open(path, mode)


# By their first bytes.
_COMPRESSED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": _gzip, b"BZh": _bzip2, b"\xfd7zXZ\0": _xz}
